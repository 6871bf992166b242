"""Seconds and CPU seconds of phases, and their floors, on timelines made by hand."""

import time

import numpy as np
import pytest

from ppo_jax.ceilings import Ceilings, Rate
from ppo_jax.cost import Work
from ppo_jax.phase_times import HOST, PHASES, Profile, beside_floor, cpu_samples, phase_seconds
from ppo_jax.profile import OTHER, Timeline

SECOND = 1e9
SEGMENTS = [
    (1.0, 4.0, "rollout"),
    (4.0, 5.0, "scoring"),
    (5.0, 5.5, "reward"),
    (5.5, 6.0, OTHER),
    (6.0, 9.0, "update"),
]


def profile_of(segments, busy, cores: float) -> Profile:
    """From second 0 to 10; the process uses `cores` CPUs until 5, one from then on."""
    scale = lambda spans: [(s * SECOND, e * SECOND, *rest) for s, e, *rest in spans]
    clock_N = np.linspace(0, 10, 2001) * SECOND
    cpu_N = np.where(clock_N < 5 * SECOND, cores * clock_N, cores * 5 * SECOND)
    cpu_N = cpu_N + np.maximum(clock_N - 5 * SECOND, 0)
    return Profile(Timeline((0.0, 10 * SECOND), scale(segments), scale(busy)), clock_N, cpu_N)


def test_the_phases_of_a_timeline():
    found = phase_seconds(profile_of(SEGMENTS, [(1.0, 2.0), (3.5, 8.0)], cores=2.0))
    assert tuple(found) == PHASES
    expected = {  # seconds, busy, CPU
        "rollout": (3.0, 1.5, 6.0),
        "score": (1.0, 1.0, 2.0),
        "update": (3.0, 2.0, 3.0),
        OTHER: (1.0, 1.0, 1.0),  # the device's reward among it
        HOST: (2.0, 0.0, 3.0),
    }
    for phase, values in expected.items():
        np.testing.assert_allclose(list(found[phase].values()), values, atol=1e-6)
    assert sum(times["seconds"] for times in found.values()) == pytest.approx(10.0)


def test_a_profile_that_names_nothing_is_all_host():
    found = phase_seconds(profile_of([], [], cores=1.0))
    assert found[HOST]["seconds"] == pytest.approx(10.0)
    assert sum(times["seconds"] for times in found.values()) == pytest.approx(10.0)


CEILINGS = Ceilings(Rate(100.0, 50.0), Rate(10.0, 10.0), {})
TIMES = {"rollout": {"seconds": 4.0, "busy_s": 3.0, "cpu_s": 8.0}, HOST: {"seconds": 1.0}}
WORK = {"rollout": Work(flops=100.0, bytes=20.0)}


def test_floors_on_the_cpu_are_in_its_seconds_too():
    facts = beside_floor(TIMES, WORK, 12, CEILINGS, devices=4, on_cpu=True)
    assert facts[HOST] == TIMES[HOST]
    assert facts["rollout"] == TIMES["rollout"] | {
        "flops": 100.0,
        "bytes": 20.0,
        "tokens_per_s": 3.0,
        "floor_s": 2.0,  # 20 bytes at 10 a second
        "floor_fraction": 0.5,
        "matmul_fraction": 0.25,  # 100 FLOPs at 100 a second
        "cpu_floor_s": 2.0,
        "cpu_floor_fraction": 0.25,
        "cpu_matmul_fraction": 0.25,
    }


def test_devices_add_up():
    facts = beside_floor(TIMES, WORK, 12, CEILINGS, devices=4, on_cpu=False)
    assert facts["rollout"]["floor_s"] == 0.5 and facts["rollout"]["matmul_fraction"] == 0.0625
    assert not any(name.startswith("cpu_floor") for name in facts["rollout"])


def test_stages_of_the_work_wait_for_each_other():
    stages_N2 = np.array([[100.0, 0.0], [0.0, 20.0]])
    work = {"rollout": Work(100.0, 20.0, stages_N2)}
    facts = beside_floor(TIMES, work, 12, CEILINGS, devices=1, on_cpu=False)
    assert facts["rollout"]["floor_s"] == 3.0


def test_the_cpu_time_of_the_process_is_followed():
    with cpu_samples() as samples:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
    clock_N, cpu_N = np.asarray(samples).T
    assert len(samples) >= 3 and (np.diff(clock_N) >= 0).all() and (np.diff(cpu_N) >= 0).all()
    assert cpu_N[-1] - cpu_N[0] >= 0.05 * SECOND

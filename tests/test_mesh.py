"""Any mesh of eight devices gives one device's tokens, losses and gradients."""

import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mesh_runs

TESTS = Path(__file__).parent
OWN = ("rollout/slot_use", "rollout/slot_steps", "update/padding")  # what a mesh may make its own
ROUNDING = ("rollout/logprob_gap", "ratio", "approxkl")  # metrics that are rounding alone


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """`runs(kind)` -> {(kind, mesh, rollout): {name: array}}, made once for all workers."""
    several = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    return functools.cache(functools.partial(_runs, base.parent if several else base))


def _runs(folder: Path, kind: str):
    out, found = folder / f"meshes-{kind}.npz", {}
    with open(folder / f"meshes-{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the file is closed
        if not out.exists():
            _make(kind, out)
    with np.load(out, allow_pickle=False) as arrays:
        for name, array in arrays.items():
            *case, key = name.split("/", 3)
            found.setdefault(tuple(case), {})[key] = array
    return found


def _make(kind: str, out: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, str(TESTS / "mesh_runs.py"), kind, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


CASES = [case for case in mesh_runs.cases() if case[1] != "one"]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_mesh_agrees_with_one_device(runs, case):
    of_kind = runs(case[0])
    one, other = of_kind[case[0], "one", "shard_map"], of_kind[case]
    assert one.keys() == other.keys()
    compared = 0
    for name, array in other.items():
        if name.startswith("ids "):
            np.testing.assert_array_equal(array, one[name], err_msg=name)
            compared += 1
        elif name.startswith("gradient "):
            np.testing.assert_allclose(array, one[name], rtol=1e-5, atol=1e-5, err_msg=name)
            assert np.abs(one[name]).max() > 1e-4 or "lora_a" in name, name
            compared += 1
        elif name.startswith("metric ") and not name.endswith(OWN):
            near = 1e-4 if any(word in name for word in ROUNDING) else 1e-5
            np.testing.assert_allclose(array, one[name], rtol=1e-5, atol=near, err_msg=name)
            compared += 1
    assert compared > 50


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_decode_loop_speaks_to_no_other_rows(runs, case):
    count = int(runs(case[0])[case]["decode collectives"])
    assert (count > 0) == ("tensor" in case[1])


@pytest.mark.parametrize("mesh, shares", [("data 8", 8), ("fsdp 8", 8), ("data 4, tensor 2", 4)])
def test_devices_stop_at_their_own_longest_row(runs, mesh, shares):
    steps_B = runs("unrolled")["unrolled", mesh, "shard_map"]["slot steps 0"]
    per_device = steps_B.reshape(shares, -1)
    np.testing.assert_array_equal(per_device, per_device[:, :1] + 0 * per_device)
    assert len(set(per_device[:, 0].tolist())) > 1


@pytest.mark.parametrize(
    "mesh, most",
    [("fsdp 8", 0.2), ("data 4, tensor 2", 0.55), ("data 2, fsdp 2, tensor 2", 0.3)],
)
@pytest.mark.parametrize("kind", ["unrolled", "scanned"])
def test_a_device_holds_its_share_of_the_weights(runs, kind, mesh, most):
    assert runs(kind)[kind, mesh, "shard_map"]["largest share"] < most
    assert runs(kind)[kind, "data 8", "shard_map"]["largest share"] == 1

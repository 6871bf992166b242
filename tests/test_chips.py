"""Devices by name, and this machine by measurement."""

import time

import pytest

from ppo_jax import chips
from ppo_jax.errors import ConfigError


@pytest.mark.parametrize("name", chips.TABLE)
def test_known_devices_are_what_they_are_called(name):
    chip = chips.find_chip(name)
    assert chip.name == name and chip.platform == ("tpu" if name[0] == "v" else "gpu")
    # Every accelerator does tens to hundreds of products in the time of reading a byte.
    assert 150 < chip.flops_per_s / chip.bytes_per_s < 700
    assert 16e9 <= chip.memory_bytes <= 180e9 and chip.source


@pytest.mark.parametrize("name,near", [("h20", "h200"), ("H100", "h100"), ("v6", "v6e")])
def test_an_unknown_device_gives_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"device={name}: expected one of .*cpu; nearest: {near}"):
        chips.find_chip(name)


def test_this_machine_is_measured_in_less_than_two_seconds():
    began = time.monotonic()
    chip = chips.find_chip("cpu")
    assert time.monotonic() - began < 2.0
    assert chip.platform == "cpu" and chip.memory_bytes > 2**28
    assert 1e8 < chip.bytes_per_s < 2e12 and 1e8 < chip.flops_per_s < 5e13


def test_rates_are_work_over_the_best_time(monkeypatch):
    clock = iter([0.0, 0, 0.5, 0.5, 0.75, 0.75, 2.0, 2.0, 2.25, 9.0])
    monkeypatch.setattr(chips.time, "monotonic", lambda: next(clock))
    assert chips._best(lambda: None, seconds=1.0) == 0.25


@pytest.mark.parametrize("text,limit", [("1073741824\n", 2**30), ("max\n", None), (None, None)])
def test_a_container_may_have_less_memory_than_the_machine(tmp_path, monkeypatch, text, limit):
    physical = chips.memory_here()
    file = tmp_path / "memory.max"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(chips, "CGROUP_LIMIT", file)
    assert chips.memory_here() == limit if limit else chips.memory_here() >= physical

"""TPU slices by Cloud TPU's names, GPUs by XLA's figures."""

import re

import pytest

from ppo_jax import topologies
from ppo_jax.chips import TABLE
from ppo_jax.errors import ConfigError
from ppo_jax.topologies import GPUS, TPUS, gpu, open_gpus, open_tpu, target_config, tpu_slice


@pytest.mark.parametrize("name", TPUS)
def test_a_slice_has_the_chips_that_its_name_counts(name):
    found = tpu_slice(name)
    generation, count = name.split("-")
    cores = 2 if generation in ("v4", "v5p") else 1
    assert found.chips == int(count) // cores
    assert TABLE[found.chip].platform == "tpu"
    sizes = zip(found.layout.split("x"), found.host.split("x"), strict=True)
    assert all(int(whole) % int(part) == 0 for whole, part in sizes)
    assert found.chips % found.hosts == 0


def test_slices_that_are_known():
    assert tpu_slice("v5litepod-8")[:2] == ("v5e", "2x4") and tpu_slice("v5litepod-8").hosts == 1
    assert tpu_slice("v6e-8").layout == "2x4" and tpu_slice("v6e-16").hosts == 4
    assert tpu_slice("v5p-8").layout == "2x2x1" and tpu_slice("v5p-32").chips == 16


@pytest.mark.parametrize(
    "name,near", [("v6e-9", "v6e-8"), ("v5e-8", "v6e-8|v5p-8"), ("V5P-8", "v5p-8")]
)
def test_an_unknown_slice_gives_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"accelerator={name}: .*nearest: ({near})$"):
        open_tpu(name)


def test_an_unknown_gpu_gives_the_nearest():
    with pytest.raises(ConfigError, match="gpu=h20: expected one of a100.*nearest: h200"):
        open_gpus("h20", 1)


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_has_what_xla_asks(name):
    text, chip = target_config(name), TABLE[name]
    assert text.count("{") == text.count("}") and f'"{gpu(name).description}"' in text
    numbers = {key: float(n) for key, n in re.findall(r"(\w+): ([\d.]+)", text)}
    assert numbers["device_memory_size"] == chip.memory_bytes
    assert numbers["memory_bandwidth"] == chip.bytes_per_s
    # Multiply-adds of float32 at the clock: a tenth to a half of the bfloat16 peak.
    rate = 2e9 * numbers["core_count"] * numbers["fpus_per_core"] * numbers["clock_rate_ghz"]
    assert 0.02 < rate / chip.flops_per_s < 0.5


def test_without_the_compilers_the_target_that_brings_them_is_named(monkeypatch):
    def missing(platform, **options):
        if platform == "tpu":
            raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with pytest.raises(ConfigError, match="accelerator=v6e-8: .*`make tpu-check`"):
        topologies.open_tpu("v6e-8")
    with pytest.raises(ConfigError, match="gpu=h100: .*`make gpu-check`"):
        topologies.open_gpus("h100", 1)

"""Accelerators that programs are compiled for where there are none: TPU slices by the names that
Cloud TPU gives them, GPUs by what XLA asks of one."""

import difflib
import math
from typing import Any, NamedTuple

from ppo_jax import chips
from ppo_jax.chips import Chip
from ppo_jax.errors import ConfigError

CUDNN = (9, 28)  # assumed on the GPUs; what lowers the attention is the version installed here


class Slice(NamedTuple):
    """A TPU slice."""

    chip: str  # name in `chips.TABLE`
    layout: str  # of its chips
    host: str  # layout of the chips of one host

    @property
    def chips(self) -> int:
        return _count(self.layout)

    @property
    def hosts(self) -> int:
        return self.chips // _count(self.host)


class Gpu(NamedTuple):
    """What XLA asks of a GPU: NVIDIA's data sheets, and CUDA's table of compute capabilities."""

    description: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    fpus: int  # float32 lanes of one
    shared: int  # bytes of shared memory of one; a block may have 1 KiB less
    cache: int  # bytes, L2
    clock: float  # GHz, boost


# v4 and v5p count TensorCores, of which a chip has two; v5litepod and v6e count chips.
TPUS = {
    "v4-8": Slice("v4", "2x2x1", "2x2x1"),
    "v4-16": Slice("v4", "2x2x2", "2x2x1"),
    "v4-32": Slice("v4", "2x2x4", "2x2x1"),
    "v4-64": Slice("v4", "2x4x4", "2x2x1"),
    "v4-128": Slice("v4", "4x4x4", "2x2x1"),
    "v4-256": Slice("v4", "4x4x8", "2x2x1"),
    "v4-512": Slice("v4", "4x8x8", "2x2x1"),
    "v5litepod-1": Slice("v5e", "1x1", "1x1"),
    "v5litepod-4": Slice("v5e", "2x2", "2x2"),
    "v5litepod-8": Slice("v5e", "2x4", "2x4"),
    "v5litepod-16": Slice("v5e", "4x4", "2x2"),
    "v5litepod-32": Slice("v5e", "4x8", "2x2"),
    "v5litepod-64": Slice("v5e", "8x8", "2x2"),
    "v5litepod-128": Slice("v5e", "8x16", "2x2"),
    "v5litepod-256": Slice("v5e", "16x16", "2x2"),
    "v5p-8": Slice("v5p", "2x2x1", "2x2x1"),
    "v5p-16": Slice("v5p", "2x2x2", "2x2x1"),
    "v5p-32": Slice("v5p", "2x2x4", "2x2x1"),
    "v5p-64": Slice("v5p", "2x4x4", "2x2x1"),
    "v5p-128": Slice("v5p", "4x4x4", "2x2x1"),
    "v5p-256": Slice("v5p", "4x4x8", "2x2x1"),
    "v5p-512": Slice("v5p", "4x8x8", "2x2x1"),
    "v6e-1": Slice("v6e", "1x1", "1x1"),
    "v6e-4": Slice("v6e", "2x2", "2x2"),
    "v6e-8": Slice("v6e", "2x4", "2x4"),
    "v6e-16": Slice("v6e", "4x4", "2x2"),
    "v6e-32": Slice("v6e", "4x8", "2x2"),
    "v6e-64": Slice("v6e", "8x8", "2x2"),
    "v6e-128": Slice("v6e", "8x16", "2x2"),
    "v6e-256": Slice("v6e", "16x16", "2x2"),
}
MEGACORE = ("v4", "v5p")  # the two cores of a chip are one device

GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 167_936, 41_943_040, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 233_472, 52_428_800, 1.98),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 128, 233_472, 52_428_800, 1.98),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 128, 233_472, 132_120_576, 1.965),
}


class Target(NamedTuple):
    """Devices to compile for, which need not be here."""

    name: str  # v6e-8; 2 x h200
    chip: Chip
    count: int
    hosts: int
    devices: list[Any]  # jax's descriptions of them


def tpu_slice(name: str) -> Slice:
    """The slice of that name; ConfigError with the nearest where there is none."""
    if name not in TPUS:
        near = difflib.get_close_matches(name.lower(), TPUS, n=1, cutoff=0.0)[0]
        counts = "v4 and v5p count two cores a chip, v5litepod and v6e chips"
        raise ConfigError(f"accelerator={name}: no such TPU slice ({counts}); nearest: {near}")
    return TPUS[name]


def gpu(name: str) -> Gpu:
    """What XLA asks of that GPU; ConfigError with the nearest where it is not known."""
    if name not in GPUS:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"gpu={name}: expected one of {', '.join(GPUS)}; nearest: {near}")
    return GPUS[name]


def open_tpu(name: str) -> Target:
    """The devices of a slice. ConfigError for an unknown name, and where libtpu is missing."""
    from jax.experimental import topologies

    found = tpu_slice(name)
    bounds = [int(n) for n in found.host.split("x")]
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{found.chip}:{found.layout}",
            chips_per_host_bounds=bounds + [1] * (3 - len(bounds)),
            chip_config_name="megacore" if found.chip in MEGACORE else "default",
        )
    except Exception as error:  # jax says it by a RuntimeError, libtpu by errors of its own
        why = _one_line(error)
        if "not installed" in why:
            why = "the TPU's compiler, libtpu, is not installed here: run `make tpu-check`"
        raise ConfigError(f"accelerator={name}: {why}") from None
    devices = list(described.devices)
    assert len(devices) == found.chips, f"{name}: {len(devices)} devices"
    return Target(name, chips.find_chip(found.chip), len(devices), found.hosts, devices)


def open_gpus(name: str, count: int) -> Target:
    """`count` GPUs of one host. ConfigError for an unknown name and without the plugin."""
    from jax.experimental import topologies

    config = target_config(name)
    try:
        described = topologies.get_topology_desc(
            platform="cuda", target_config=config, topology=f"1x1x{count}"
        )
    except NotImplementedError:
        why = "the GPU's compiler, jax-cuda13-plugin, is not installed here: run `make gpu-check`"
        raise ConfigError(f"gpu={name}: {why}") from None
    except Exception as error:  # of the plugin
        raise ConfigError(f"gpu={name}: {_one_line(error)}") from None
    shown = name if count == 1 else f"{count} x {name}"
    return Target(shown, chips.find_chip(name), count, 1, list(described.devices))


def target_config(name: str) -> str:
    """XLA's GpuTargetConfigProto of a GPU, as text."""
    found, chip = gpu(name), chips.find_chip(name)
    major, minor = found.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {found.shared - 1024}
  shared_memory_per_core: {found.shared}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: {found.cores} fpus_per_core: {found.fpus} clock_rate_ghz: {found.clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bytes_per_s)} l2_cache_size: {found.cache}
  device_memory_size: {int(chip.memory_bytes)}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: 0 }}
device_description_str: "{found.description}"
"""


def _count(layout: str) -> int:
    return math.prod(int(n) for n in layout.split("x"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

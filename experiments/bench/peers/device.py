"""Whether there is a CUDA device, and each side's environment sees it: asked before any work."""

import ctypes
import subprocess
from collections.abc import Mapping

# What a side's interpreter runs, and what to install where it fails.
PROBES = {
    "ours": ("import jax; jax.config.update('jax_platforms', 'cuda'); jax.devices()", ".[cuda]"),
    "trl": ("import torch; torch.zeros(1, device='cuda')", "a torch built for CUDA"),
}


class BenchError(Exception):
    """The comparison cannot be made; the message is one line."""

    exit_code = 1


class NoDevice(BenchError):
    """It is asked for on a device that is not there."""

    exit_code = 2


def cuda_devices() -> int:
    """Devices that the driver shows to this process and its children; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def require_cuda(workload: str) -> None:
    """Raises NoDevice without a CUDA device."""
    if not cuda_devices():
        raise NoDevice(f"{workload} on a CUDA device: there is none here (or --device cpu)")


def require_environments(pythons: Mapping[str, str]) -> None:
    """Raises NoDevice where a side's libraries cannot use the device: a run is minutes long, and
    the last side starts when the others are done."""
    for name, python in pythons.items():
        code, wanted = PROBES[name]
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1][:200]
            raise NoDevice(f"{name}: {python} cannot use the device, install {wanted}: {said}")

"""The XLA flags that won a measurement, by platform: the one place that sets any.

XLA reads them once, with the first array of a process. An unknown flag ends the process, so each
has been tried with every jax that `pyproject.toml` allows. A flag for one platform's compiler does
nothing on another. Figures: experiments/bench/README.md.
"""

import os

FLAGS = {
    "cpu": {
        # Schedules for concurrency hold more arrays at a time, and two cores gain nothing by them.
        "xla_cpu_enable_concurrency_optimized_scheduler": "false",
    },
    "gpu": {
        # Products that share an operand are not joined: at every token of the decode loop XLA would
        # copy the kernels, or the blocks of the cache, next to each other first.
        "xla_gpu_dot_merger_threshold_mb": "0",
    },
}


def set_flags() -> None:
    """Add them to XLA_FLAGS for this process and its children; what is already there wins."""
    present = os.environ.get("XLA_FLAGS", "")
    wanted = {name: value for flags in FLAGS.values() for name, value in flags.items()}
    added = [f"--{name}={value}" for name, value in wanted.items() if f"--{name}=" not in present]
    os.environ["XLA_FLAGS"] = " ".join([*present.split(), *added])

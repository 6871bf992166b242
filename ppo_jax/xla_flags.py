"""The XLA flags that won, by platform, and the one place that sets any.

XLA reads them once, with the first array of a process. An unknown flag ends the process, so each
has been tried with every jax that `pyproject.toml` allows. A flag for one platform's compiler does
nothing on another. What was seen of each: experiments/bench/README.md.
"""

import os

FLAGS = {
    "cpu": {
        # Schedules for concurrency hold more arrays at a time, and two cores gain nothing by them.
        "xla_cpu_enable_concurrency_optimized_scheduler": "false",
        # Devices that share cores wait for each other while other work has the cores: XLA ends the
        # process after 40 s of it.
        "xla_cpu_collective_call_terminate_timeout_seconds": "300",
    },
    "gpu": {
        # Products that share an operand are not joined: at every token of the decode loop XLA would
        # copy the kernels, or the blocks of the cache, next to each other first.
        "xla_gpu_dot_merger_threshold_mb": "0",
    },
}


def with_flags(present: str) -> str:
    """The value of XLA_FLAGS with these flags added; what is already there wins."""
    names = {word.removeprefix("--").partition("=")[0] for word in present.split()}
    wanted = {name: value for flags in FLAGS.values() for name, value in flags.items()}
    added = [f"--{name}={value}" for name, value in wanted.items() if name not in names]
    return " ".join([*present.split(), *added])


def set_flags() -> None:
    """For this process and its children."""
    os.environ["XLA_FLAGS"] = with_flags(os.environ.get("XLA_FLAGS", ""))

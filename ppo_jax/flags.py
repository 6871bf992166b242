"""XLA options the programs are compiled with, by platform, each with what it was measured to do."""

XLA_OPTIONS: dict[str, dict[str, bool | str]] = {
    # The CPU's default scheduler lets everything that could start start: activations of layers and
    # models that wait for each other are held together, and rematerialisation saves nothing. In
    # order of memory, a whole update holds less than half, and takes no longer on a few cores.
    "cpu": {"xla_cpu_enable_concurrency_optimized_scheduler": False},
}


def xla_options(platform: str) -> dict[str, bool | str]:
    """`compiler_options` of the programs that run on a platform."""
    return XLA_OPTIONS.get(platform, {})

"""Programs compiled by their first call, for its arguments' shapes and for good."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from ppo_jax import freed_memory
from ppo_jax.agreement import meet

KEEP = object()  # of a result: laid out as the program's first argument is


class Built(NamedTuple):
    """What has been compiled."""

    compiled: dict[str, jax.stages.Compiled]  # by program name
    seconds: dict[str, float]  # by program name: tracing, lowering and compilation


def program(
    built: Built, name: str, function: Callable, out_shardings, *, donate: bool = False
) -> Callable:
    """`function`, compiled by the first call; a later one with other shapes is an error instead of
    another compilation. `donate` gives the first argument up."""

    def traced(*arguments):
        return function(*arguments)

    traced.__name__ = name

    def call(*arguments):
        if name not in built.compiled:
            clock = time.monotonic()
            as_it_is = jax.tree.map(lambda x: x.sharding, arguments[0])
            shardings = jax.tree.map(lambda s: as_it_is if s is KEEP else s, out_shardings)
            donated = 0 if donate else ()
            jitted = jax.jit(traced, donate_argnums=donated, out_shardings=shardings)
            built.compiled[name] = jitted.lower(*arguments).compile()
            built.seconds[name] = time.monotonic() - clock
            freed_memory.give_back()
            meet(f"compiled {name}")
        return built.compiled[name](*arguments)

    return call

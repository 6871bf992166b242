"""What a control task is, and how its episodes follow one another inside a compiled program.

A task is written for one state; `jax.vmap` makes many of it. Letters: B environments, T steps,
F features of an observation, A actions, or dimensions of one where they are continuous.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array, State = jax.Array, Any


class Task(NamedTuple):
    """Dynamics of one environment, as pure functions."""

    name: str
    features: int
    actions: int  # how many there are to choose from; continuous: how many numbers one has
    continuous: bool
    limit: int  # steps after which an episode is cut off, which is no end of its own
    start: Callable[[Array], State]  # key -> first state of an episode
    observe: Callable[[State], Array]  # -> [F], float32
    # (state, action) -> (next state, reward, whether the episode ended there)
    step: Callable[[State, Array], tuple[State, Array, Array]]


class Episode(NamedTuple):
    """Where one environment stands."""

    state: State
    steps: Array  # int32, of this episode so far
    total: Array  # float32, sum of its rewards so far


class Outcome(NamedTuple):
    """Of one step, before a new episode takes the place of one that is over."""

    reward: Array
    next_seen_F: Array
    terminated: Array  # bool: nothing comes after this
    truncated: Array  # bool: cut off by the limit, and worth what the state was worth
    total: Array  # sum of the episode's rewards, this one included


def begin(task: Task, key: Array) -> Episode:
    return Episode(task.start(key), jnp.int32(0), jnp.float32(0))


def advance(task: Task, episode: Episode, action: Array, key: Array) -> tuple[Episode, Outcome]:
    """One step; after the last one of an episode the next begins, from `key`."""
    state, reward, terminated = task.step(episode.state, action)
    on = Episode(state, episode.steps + 1, episode.total + reward)
    truncated = ~terminated & (on.steps >= task.limit)
    outcome = Outcome(reward, task.observe(state), terminated, truncated, on.total)
    over = terminated | truncated
    after = jax.tree.map(lambda new, old: jnp.where(over, new, old), begin(task, key), on)
    return after, outcome

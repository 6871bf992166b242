"""What an environment on the device is: pure JAX for one row; the sampler runs rows side by side.

A dialogue is one sequence: prompt, opening observation, action, observation, action, … An action
is what the policy writes up to a stop id or its length limit; observations are read, not drawn.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.errors import ConfigError
from ppo_jax.text import one_line
from ppo_jax.types import Array, PyTree


class Observation(NamedTuple):
    """What the policy is told. Width O is the environment's to choose, once for all turns or one
    for the opening and one for the rest."""

    ids_O: Array  # int32
    length: Array  # int32, leading ids that are meant; 0: nothing is said


class DeviceEnv(NamedTuple):
    """An environment inside the compiled step. Its tables are arguments of the step, never
    closures; its state is a pytree of arrays whose shapes and types stay as `reset` made them.

    `key` is the same for all samples of a prompt, so that they can be compared, and another one
    in every iteration; `row` holds the row's numbers, a scalar a numeric column of the data.
    """

    name: str
    # (tokenizer, vocab_size) -> numpy arrays
    make_tables: Callable[[Any, int], PyTree]
    # (tables, key, row) -> (state, observation)
    reset: Callable[[PyTree, Array, dict[str, Array]], tuple[PyTree, Observation]]
    # (tables, state, action_ids_A, tokens of the action, its stop id included)
    # -> (state, observation, float32 reward, bool: the episode is over)
    step: Callable[[PyTree, PyTree, Array, Array], tuple[PyTree, Observation, Array, Array]]
    # (tables, state at the end) -> scalars by name, logged as means over the rows: env/<name>
    measures: Callable[[PyTree, PyTree], dict[str, Array]]
    max_action_tokens: int
    max_turns: int  # actions after which a dialogue that is not over is cut


def observation_width(environment: DeviceEnv, tables: PyTree, row: dict[str, Any]) -> int:
    """Tokens of the longest observation there can be, at least one, for a row of these arrays or
    shapes."""
    (_, opening), (_, answer, *_) = _shapes(environment, tables, row)
    return max(1, opening.ids_O.shape[0], answer.ids_O.shape[0])


def check_environment(
    environment: DeviceEnv,
    tables: PyTree,
    columns: Mapping[str, Any],
    *,
    new_tokens: int,
    min_new_tokens: int,
) -> None:
    """ConfigError where the environment breaks its contract on rows of these columns [B, ...], or
    where not even one turn fits into `rollout.max_new_tokens`."""
    name, A = f"environment {environment.name}", environment.max_action_tokens
    if A < 1 or environment.max_turns < 1:
        raise ConfigError(
            f"{name}: max_action_tokens={A}, max_turns={environment.max_turns}; expected both to "
            "be at least 1"
        )
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), dict(columns))
    try:
        (state, opening), (after, answer, reward, done) = _shapes(environment, tables, row)
        measures = jax.eval_shape(environment.measures, tables, state)
    except ConfigError:
        raise
    except Exception as error:  # while it is traced: a fault of the environment
        present = ", ".join(sorted(columns)) or "none"
        what = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise ConfigError(f"{name}: {what} (columns of the data: {present})") from error
    if jax.tree.structure(after) != jax.tree.structure(state) or any(
        (x.shape, x.dtype) != (y.shape, y.dtype)
        for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True)
    ):
        raise ConfigError(f"{name}: step returns the state {after}; expected reset's: {state}")
    for what, x, kind in (
        ("the opening", opening.ids_O, jnp.int32),
        ("an observation", answer.ids_O, jnp.int32),
        ("the reward", reward, jnp.float32),
        ("done", done, jnp.bool_),
        *((f"measure {key}", x, None) for key, x in measures.items()),
    ):
        rank = 1 if kind is jnp.int32 else 0
        if len(x.shape) != rank or kind not in (None, x.dtype.type):
            wanted = "a scalar" if kind is None else f"{jnp.dtype(kind).name} of rank {rank}"
            raise ConfigError(f"{name}: {what} is {x.dtype}{list(x.shape)}; expected {wanted}")
    if opening.ids_O.shape[0] + A > new_tokens:
        needed = opening.ids_O.shape[0] + A
        raise ConfigError(
            f"rollout.max_new_tokens={new_tokens}: {name} opens with up to "
            f"{opening.ids_O.shape[0]} tokens, and an action has up to {A}; nearest valid: {needed}"
        )
    if min_new_tokens > 0:
        raise ConfigError(
            f"rollout.min_new_tokens={min_new_tokens}: with {name} stop ids end actions, not "
            "responses; nearest valid: 0"
        )


def _shapes(environment: DeviceEnv, tables: PyTree, row: dict[str, Any]):
    """Shapes of (reset's results, step's results)."""
    key = jax.eval_shape(jax.random.key, 0)
    first = jax.eval_shape(environment.reset, tables, key, row)
    ids_A = jax.ShapeDtypeStruct((environment.max_action_tokens,), jnp.int32)
    length = jax.ShapeDtypeStruct((), jnp.int32)
    return first, jax.eval_shape(environment.step, tables, first[0], ids_A, length)

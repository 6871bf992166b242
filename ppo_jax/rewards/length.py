"""Length rewards on the device: how near a response comes to the number of tokens asked for."""

from collections.abc import Callable

import jax.numpy as jnp

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import DeviceReward
from ppo_jax.rewards.checks import is_number
from ppo_jax.types import Array, PyTree, Rollout


def target_length(
    tokens: float | str,
    *,
    width: float | None = None,
    floor: float | None = 0.0,
    name: str = "target_length",
) -> DeviceReward:
    """The reward max(floor, 1 - |n - target| / width) of a response of n tokens; float32 [B].

    The linear penalty of L1's LCPO-Exact (Aggarwal and Welleck 2025, arXiv 2503.04697; there
    -alpha |n - target| with alpha = 0.0003: `width=1/0.0003, floor=None`, but for the constant 1).
    `tokens` is the target, or the numeric column of the data that holds each prompt's. `width`, in
    tokens, is how far from the target the score is 0; None: as far as the target itself, at least
    one token, so that the score judges the relative distance. `floor` bounds the score from below;
    None: nothing does. The stop token does not count, and neither does anything that is masked: an
    empty response has n = 0. A response that is cut off at the length limit is not told from one
    that ends there.

    Raises `ConfigError` for a target or a width that is not above 0, for a floor that is not below
    1, and, when the step is traced, for a column that the data does not have.
    """
    score = nearness(tokens, "tokens", width=width, floor=floor, name=name)

    def of_tokens(rollout: Rollout, columns: dict[str, Array], tables: PyTree) -> Array:
        return score(without_stop(rollout).sum(axis=1), columns)

    return DeviceReward(name, of_tokens, no_tables)


def nearness(
    target: float | str, what: str, *, width: float | None, floor: float | None, name: str
) -> Callable[[Array, dict[str, Array]], Array]:
    """The score, float32 [B], of numbers of `what` [B] for a target; see `target_length`."""
    if isinstance(target, str):
        if not target:
            raise ConfigError(f"reward {name}: {what} names no column: the name is empty")
    else:
        _check_positive(what, target, name, "or the name of a column")
    if width is not None:
        _check_positive("width", width, name, "or None")
    if floor is not None and not (is_number(floor) and floor < 1):
        raise ConfigError(
            f"reward {name}: floor must be a finite number below 1 or None, got {floor!r}"
        )

    def score(count_B: Array, columns: dict[str, Array]) -> Array:
        target_B = jnp.broadcast_to(_target(target, columns, name), count_B.shape)
        width_B = jnp.maximum(target_B, 1.0) if width is None else jnp.float32(width)
        score_B = 1.0 - jnp.abs(count_B - target_B) / width_B
        return score_B if floor is None else jnp.maximum(score_B, floor)

    return score


def without_stop(rollout: Rollout) -> Array:
    """The mask of a rollout, float32 [B, T], less the stop token of the rows that have one; that
    of a dialogue is whole, for it ends as its environment says."""
    if rollout.env_rewards_BT is not None:
        return rollout.mask_BT
    stop_BT = rollout.last_BT & rollout.ended_B[:, None]
    return jnp.where(stop_BT, 0.0, rollout.mask_BT)


def no_tables(tokenizer, vocab_size: int) -> PyTree:
    """`make_tables` of a reward that needs none."""
    return ()


def _target(target: float | str, columns: dict[str, Array], name: str) -> Array:
    if not isinstance(target, str):
        return jnp.float32(target)
    if target not in columns:
        raise ConfigError(f"reward {name}: `{target}` is not a numeric column of the data")
    return columns[target].astype(jnp.float32)


def _check_positive(what: str, value, name: str, other: str) -> None:
    if not (is_number(value) and value > 0):
        raise ConfigError(
            f"reward {name}: {what} must be a finite number above 0 {other}, got {value!r}"
        )

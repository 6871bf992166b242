"""Guess the number: the policy names one and hears whether the hidden one is higher or lower."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.envs.base import DeviceEnv, Observation
from ppo_jax.envs.text import Pieces, Spelling, encode_pieces, first_number, say, spell
from ppo_jax.errors import ConfigError
from ppo_jax.types import Array, PyTree

ANSWERS = ("yes\n", "higher\n", "lower\n", "no number\n")
YES, HIGHER, LOWER, NO_NUMBER = range(4)


class GuessTables(NamedTuple):
    opening: Pieces
    answers: Pieces
    spelling: Spelling


class GuessState(NamedTuple):
    secret: Array  # int32
    guesses: Array  # int32
    found: Array  # bool


def guess(
    low: int = 1, high: int = 9, *, max_turns: int = 6, prize: float = 1.0, cost: float = 0.1
) -> DeviceEnv:
    """A number from `low` to `high` is hidden: that of the column `secret` of the data, or where
    that is negative or missing any, each as likely.

    It opens with `low-high`. A guess is the first number of an action; each costs `cost`, the right
    one earns `prize` and ends the game. No number is a guess that is answered with `no number`.

    Measures: `success` (the number was found), `guesses`.
    Raises ConfigError unless 0 <= low < high, and both are of at most nine digits.
    """
    if not 0 <= low < high < 10**9:
        raise ConfigError(f"guess: low={low}, high={high}; expected 0 <= low < high < 10^9")

    def make_tables(tokenizer, vocab_size: int) -> GuessTables:
        opening = encode_pieces(tokenizer, [f"{low}-{high}\n"])
        return GuessTables(opening, encode_pieces(tokenizer, ANSWERS), spell(tokenizer, vocab_size))

    def reset(tables: GuessTables, key: Array, row: dict) -> tuple[GuessState, Observation]:
        drawn = jax.random.randint(key, (), low, high + 1)
        given = jnp.asarray(row.get("secret", -1), jnp.int32)
        secret = jnp.where(given < 0, drawn, given)
        state = GuessState(secret, jnp.int32(0), jnp.bool_(False))
        return state, say((tables.opening, jnp.int32(0)))

    def step(tables: GuessTables, state: GuessState, ids_A: Array, length: Array):
        number = first_number(tables.spelling, ids_A, length)
        answer = jnp.where(number < state.secret, HIGHER, LOWER)
        answer = jnp.where(number == state.secret, YES, answer)
        answer = jnp.where(number < 0, NO_NUMBER, answer)
        found = answer == YES
        state = GuessState(state.secret, state.guesses + 1, found)
        reward = jnp.where(found, prize, 0.0) - cost
        return state, say((tables.answers, answer)), reward.astype(jnp.float32), found

    def measures(tables: PyTree, state: GuessState) -> dict[str, Array]:
        return {"success": state.found, "guesses": state.guesses}

    return DeviceEnv("guess", make_tables, reset, step, measures, len(str(high)), max_turns)

"""A small environment on ids, the same in plain Python, and a plain loop that plays it."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.dialogue import OPENING
from ppo_jax.envs.base import DeviceEnv, Observation

A, TURNS = 3, 4  # tokens of an action, turns
IDS = 50  # observations are of ids below


class PlainSums:
    """What each answer says follows from the sum of all that was said."""

    def __init__(self, secret: int, row: dict):
        self.total = secret + 7 * int(row["start"])
        self.actions = 0

    def opening(self) -> list[int]:
        return self._said(self.total % 3)

    def step(self, action: list[int]):
        """(observation, reward, done)"""
        self.total += sum((place + 1) * id for place, id in enumerate(action)) + len(action)
        self.actions += 1
        return self._said(self.total % 5), math.sin(self.total), self.total % 6 == 0

    def _said(self, count: int) -> list[int]:
        return [(self.total + place) % IDS for place in range(count)]


def secret_of(key, prompt: int, group: int) -> int:
    for number in (prompt, group, OPENING):
        key = jax.random.fold_in(key, number)
    return int(jax.random.randint(key, (), 0, 100))


def _said(total, width: int, count) -> Observation:
    return Observation((total + jnp.arange(width)) % IDS, count)


def _reset(tables, key, row):
    total = jax.random.randint(key, (), 0, 100) + tables["scale"] * row["start"].astype(jnp.int32)
    return {"total": total, "actions": jnp.int32(0)}, _said(total, 2, total % 3)


def _step(tables, state, ids_A, length):
    there_A = jnp.arange(A) < length
    said = jnp.sum(jnp.where(there_A, (jnp.arange(A) + 1) * ids_A, 0))
    total = state["total"] + said + length
    state = {"total": total, "actions": state["actions"] + 1}
    return state, _said(total, 4, total % 5), jnp.sin(total.astype(jnp.float32)), total % 6 == 0


SUMS = DeviceEnv(
    "sums",
    lambda tokenizer, vocab_size: {"scale": np.int32(7)},
    _reset,
    _step,
    lambda tables, state: state,
    A,
    TURNS,
)
TABLES = {"scale": jnp.int32(7)}


def starts(B: int) -> dict:
    """The column that the environment reads."""
    return {"start": jnp.arange(B, dtype=jnp.float32) % 5}


class Played:
    """A row as a plain loop has it."""

    def __init__(self):
        self.ids, self.generated, self.rewards = [], [], []
        self.logprobs, self.values = [], []
        self.turns, self.done, self.end = 0, False, ""


def play(env: PlainSums, state_after, row_key, stops, T: int) -> Played:
    """One dialogue, token by token. `state_after(ids) -> (float64 logits, value)` is a pass over
    the whole sequence."""
    row, reading, action = Played(), env.opening(), []

    def take(id, generated, logprob=0.0, value=0.0):
        row.ids.append(id)
        row.generated.append(generated)
        row.rewards.append(0.0)
        row.logprobs.append(logprob)
        row.values.append(value)

    while True:
        for id in reading:
            take(id, False)
        if row.turns == TURNS or len(row.ids) == T:
            row.end = "turns" if row.turns == TURNS else "tokens after an observation"
            return row
        logits_V, value = state_after(row.ids)
        weights_V = np.exp(logits_V - logits_V.max())
        cdf_V = np.cumsum(weights_V)
        u = float(jax.random.uniform(jax.random.fold_in(row_key, len(row.ids))))
        id = int(np.searchsorted(cdf_V, u * cdf_V[-1], side="right"))
        take(id, True, float(np.log(weights_V[id] / cdf_V[-1])), value)
        action.append(id)
        if id in stops or len(action) == A:
            reading, row.rewards[-1], row.done = env.step(action)
            row.turns, action = row.turns + 1, []
            if row.done:
                row.end = "done"
                return row
            if len(row.ids) + len(reading) > T:
                row.end = "no room to read"
                return row
        else:
            reading = []
            if len(row.ids) == T:
                row.end = "tokens in an action"
                return row

"""Continuations of fixed prompts, sampled and scored as in training but without an update."""

import functools

import jax
import numpy as np

from ppo_jax.agreement import meet
from ppo_jax.sharding import batch_devices, replicated
from ppo_jax.step import Setup, device_scores, sample_with
from ppo_jax.tokenizer import decode
from ppo_jax.trunks import assemble
from ppo_jax.types import Array, Prompts, PyTree


def make_evaluation(setup: Setup):
    """`evaluate(params, frozen, temperature, prompts, key) -> (rollout, raw device scores)`, all
    rows of them on every device; the first call compiles, for good."""

    @functools.partial(jax.jit, out_shardings=replicated(setup.mesh))
    def evaluated(params: PyTree, frozen: PyTree, temperature: Array, prompts: Prompts, key: Array):
        rollout = sample_with(setup, assemble(frozen, params), prompts, key, temperature)
        return rollout, device_scores(setup, frozen, rollout, prompts.columns)

    compiled: list[jax.stages.Compiled] = []

    def evaluate(*arguments):
        if not compiled:
            compiled.append(evaluated.lower(*arguments).compile())
            meet("compiled evaluation")
        return compiled[0](*arguments)

    return evaluate


def pad_rows(setup: Setup, prompts: Prompts) -> Prompts:
    """The prompts, the last row repeated until the devices share them evenly."""
    rows = prompts.ids_BP.shape[0]
    missing = -rows % batch_devices(setup.mesh)
    index = np.minimum(np.arange(rows + missing), rows - 1)
    return jax.tree.map(lambda x: np.asarray(x)[index], prompts)


def response_texts(tokenizer, ids_BT: np.ndarray, lengths_B: np.ndarray) -> list[str]:
    """The responses as text, without special tokens."""
    return [decode(tokenizer, ids[:n]) for ids, n in zip(ids_BT, lengths_B, strict=True)]

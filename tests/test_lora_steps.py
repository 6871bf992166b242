"""Iterations with adapters beside what else may move: references, critics, the sampler's copy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import row_states
from ppo_jax.config import replace
from ppo_jax.decoder import Decoder
from ppo_jax.lora import attach, init_adapters
from ppo_jax.model import init_trunk
from ppo_jax.rollout_weights import rollout_copy
from step_builders import BASE, SHAPE, case, leaves, run, same

LORA = replace(BASE, **{"model.lora.rank": 4, "hparams.learning_rate": 1e-2})


@pytest.mark.parametrize("scan", ["scan", "unroll"])
def test_a_reference_that_resets_is_the_adapters_of_then(scan):
    moving = {"reward.reference": "reset", "reward.reference_reset_every": 1}
    built = case(replace(LORA, **moving, **{"model.scan_layers": scan}))
    assert same(built.state.ref, built.state.params["policy"])
    state, history, _ = run(built, 3)
    assert same(state.ref, state.params["policy"])
    assert not same(state.ref, built.state.ref)
    for metrics in history:  # the policy is the reference again whenever an iteration begins
        assert abs(metrics["objective/kl"]) <= 1e-6 * metrics["rollout/length_mean"]
        assert metrics["policy/approxkl_avg"] > 1e-6


def test_a_reference_that_averages_does_so_with_each_factor():
    moving = {"reward.reference": "ema", "hparams.reference_decay": 0.75}
    built = case(replace(LORA, **moving))
    after, history, _ = run(built, 1)
    start, moved = leaves(built.state.params["policy"]), leaves(after.params["policy"])
    for name, ref in leaves(after.ref).items():
        np.testing.assert_allclose(ref, 0.75 * start[name] + 0.25 * moved[name], atol=1e-7)
    assert abs(history[0]["objective/kl"]) <= 1e-5


def test_a_separate_critic_has_adapters_of_its_own():
    built = case(replace(LORA, **{"model.critic": "separate"}))
    after, history, _ = run(built, 2)
    assert same(built.state.params["policy"], built.state.params["value"]["trunk"])
    assert not same(after.params["policy"], after.params["value"]["trunk"])
    assert all(metrics["val/ratio_first_max_dev"] <= 1e-5 for metrics in history)


def random_adapters(seed: int, scale: float):
    """Adapters whose product is a change of about `scale` to each weight."""
    adapters = init_adapters(SHAPE, LORA.model.lora, jax.random.key(seed))
    spread = lambda k, x: scale * jax.random.normal(k, x.shape)
    keys = iter(jax.random.split(jax.random.key(seed + 1), 99))
    return jax.tree_util.tree_map_with_path(
        lambda path, x: spread(next(keys), x) if path[-1].key == "lora_b" else x, adapters
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_unmerged_copy_is_the_training_forward(dtype):
    """In bfloat16 merging rounds a small change away, which the adapters beside the kernel keep."""
    decoder = Decoder(SHAPE, dtype, lora_scale=2.0)
    base = init_trunk(SHAPE, jax.random.key(0))
    whole = attach(base, random_adapters(3, 2e-3))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 64, (6, 12)), jnp.int32)
    hidden = jax.jit(lambda params: row_states(decoder, params, ids, ids >= 0))
    exact = np.asarray(hidden(whole), np.float32)
    error = {}
    for weights in ("unmerged", "compute", "int8"):
        copied = hidden(rollout_copy(decoder, whole, weights))
        error[weights] = np.abs(np.asarray(copied, np.float32) - exact).mean()
    if dtype == "float32":
        assert error["unmerged"] < 1e-6 and error["compute"] < 1e-5
    else:
        assert error["unmerged"] < 0.5 * error["compute"]
    assert error["compute"] < error["int8"]


@pytest.mark.parametrize("weights", ["compute", "unmerged"])
def test_sampler_and_training_forward_agree(weights):
    hparams = dataclasses.replace(LORA.hparams, learning_rate=3e-2)
    _, history, _ = run(case(replace(LORA, **{"rollout.weights": weights})), 3, hparams)
    assert abs(history[2]["objective/kl"]) > 1e-3  # the adapters are not zero any more
    for metrics in history:
        assert metrics["rollout/logprob_gap_max"] < 1e-4

"""A step by tokens is the step by rows: the same losses, gradients, state and metrics."""

import dataclasses
import functools
from collections import Counter

import jax
import numpy as np
import pytest

from ppo_jax import parts, passes
from ppo_jax.config import replace
from ppo_jax.decoder import make_decoder
from ppo_jax.model import init_trunk, init_value_head
from ppo_jax.prepare import init_state
from ppo_jax.sharding import put_replicated
from ppo_jax.step import train_step
from step_builders import BASE, assert_close, case, prompts_at, setup_of, start, traced

# Rows of 2 to 17 tokens; responses end early now and then.
RAGGED = {"rollout.max_new_tokens": 12, "model.shape.init_std": 0.3}
BY_TOKENS = {"ppo.token_sizes": 2}
CASES = {
    "shared critic": {},
    "separate critic, microbatches": {"model.critic": "separate", "ppo.microbatches": 2},
    "exact KL in the loss": {"reward.kl_estimator": "full", "reward.kl_in": "loss"},
    "bootstrap, scan, remat": {
        "ppo.bootstrap_truncated": True,
        "model.scan_layers": "scan",
        "model.remat": "full",
    },
    "cut sequences dropped": {"reward.drop_truncated": True, "ppo.microbatches": 2},
    "sampler's logprobs, top-k": {"rollout.old_logprobs": "sampler", "rollout.top_k": 9},
    "small chunks of logits": {"model.logit_chunk": 5, "ppo.aggregate": "seq-mean"},
    "adapters": {"model.lora.rank": 2},
    "no critic": {"ppo.advantage": "reinforce", "rollout.old_logprobs": "recompute"},
}


def outcome(changes, devices=1):
    built = case(replace(BASE, **RAGGED, **changes), devices)
    state, metrics, rollout, _ = built.program(
        built.state, built.frozen, built.hparams, prompts_at(built.setup)
    )
    return jax.device_get((state.params, metrics, rollout.lengths_B))


def assert_same(got, want, *, atol=3e-5):
    params, metrics, lengths_B = got
    assert len(set(lengths_B)) > 2  # ragged, or nothing is tested
    np.testing.assert_array_equal(lengths_B, want[2])
    assert_close(params, want[0], atol=atol)
    assert_close(metrics, want[1], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_equals_the_step_by_rows(changes):
    got, want = outcome(changes | BY_TOKENS), outcome(changes)
    assert_same(got, want)
    if changes.get("rollout.old_logprobs") != "sampler":
        assert got[1]["val/ratio_first_max_dev"] <= 1e-5
    assert 0 <= got[1]["update/padding"] < 1 and got[1]["update/parts"] >= 1


def test_parts_of_few_rows_change_nothing(monkeypatch):
    """As where a fused kernel reads padded rows."""
    whole = passes.parts_by_tokens
    few = lambda setup, rollout: whole(setup, rollout)._replace(rows=1)
    changes = {"ppo.microbatches": 4, "reward.kl_estimator": "full", "reward.kl_in": "loss"}
    want = outcome(changes)
    monkeypatch.setattr(passes, "parts_by_tokens", few)
    got = outcome(changes | BY_TOKENS)
    assert_same(got, want)
    assert got[1]["update/parts"] == 4


def test_sequences_are_scored_in_the_parts_that_learn_from_them(monkeypatch):
    """Those dropped have no place in the update, so neither among the ones that are kept."""
    planned, plan = [], parts.plan

    def recorded(recipe, tokens_B):
        jax.debug.callback(lambda x_B: planned.append(tuple(sorted(x_B.tolist()))), tokens_B)
        return plan(recipe, tokens_B)

    monkeypatch.setattr(parts, "plan", recorded)
    changes = {"reward.drop_truncated": True, "ppo.epochs": 1, "ppo.minibatches": 2}
    outcome(changes | BY_TOKENS)
    jax.effects_barrier()
    kept, dropped = 2 * ["twice"], 2 * ["once"]  # of each minibatch, the dropped ones scored alone
    counts = ["twice" if n == 2 else "once" for n in Counter(planned).values()]
    assert any(0 in tokens for tokens in planned) and sorted(counts) == sorted(kept + dropped)


def test_does_not_depend_on_the_devices():
    changes = BY_TOKENS | {"ppo.minibatches": 1, "ppo.microbatches": 2}
    one = outcome(changes)
    for devices in (2, 4):
        assert_same(outcome(changes, devices), one)


def test_padding_is_the_share_of_flops_that_no_real_token_needs():
    """By rows: every row at full width, squares of widths for the attention."""
    _, metrics, lengths_B = outcome({})
    prompts_B = prompts_at(case(replace(BASE, **RAGGED)).setup).mask_BP.sum(axis=1)
    real, padded = row_flops(BASE.model.shape, prompts_B + lengths_B - 1)
    np.testing.assert_allclose(metrics["update/padding"], 1 - real / padded, rtol=1e-5)


def row_flops(shape, real_B):
    """Forward FLOPs of a one-layer trunk: (on the real tokens of rows, on rows at full width)."""
    D, H, G, K, F = (
        shape.embed_dim, shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.mlp_dim
    )  # fmt: skip
    dense = 2 * (D * H * K * 2 + 2 * D * G * K + 3 * D * F)
    flops = lambda length_B: (dense * length_B + 4 * H * K * length_B**2).sum()
    return flops(real_B), flops(np.full_like(real_B, 6 + 12 - 1))


@pytest.mark.parametrize("epochs, value_epochs", [(2, 2), (1, 3), (3, 1)])
def test_padding_counts_a_trunk_in_the_epochs_that_run_it(epochs, value_epochs):
    """A critic that is nearly all attention, of which padding is a larger share."""
    changes = {"ppo.epochs": epochs, "ppo.value_epochs": value_epochs}
    config = replace(BASE, **RAGGED, **changes, **{"model.critic": "separate"})
    policy, critic = (
        config.model.shape,
        dataclasses.replace(config.model.shape, embed_dim=8, mlp_dim=8, num_heads=16),
    )
    setup = setup_of(config)._replace(critic=make_decoder(critic, config.model))
    state, frozen = start(setup)
    value = {"head": init_value_head(critic), "trunk": init_trunk(critic, jax.random.key(8))}
    state = init_state(config, {"policy": state.params["policy"], "value": value})
    state, prompts = put_replicated(setup.mesh, state), prompts_at(setup)
    program = jax.jit(
        functools.partial(train_step, setup),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    _, metrics, rollout, _ = program(state, frozen, traced(config.hparams), prompts)
    real_B = np.asarray(prompts.mask_BP.sum(axis=1) + rollout.lengths_B - 1)
    each = np.asarray([row_flops(policy, real_B), row_flops(critic, real_B)])
    real, padded = np.asarray([epochs, value_epochs]) @ each
    np.testing.assert_allclose(metrics["update/padding"], 1 - real / padded, rtol=1e-5)

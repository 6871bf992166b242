"""Whole iterations of every family: what must always hold does, and what trains moves."""

import dataclasses

import jax
import numpy as np
import pytest

from family_configs import FAMILIES, RICH, model_config
from ppo_jax.config import ModelConfig, replace
from step_builders import BASE, EOS, PAD, VOCAB, case, leaves, run, same

# Scan and list, whole weights and adapters: every family sees one of each at least.
LAYOUTS = {"full": "scan", "lora": "unroll"}


def shape_of(family: str) -> ModelConfig:
    special = {"vocab_size": VOCAB, "eos_token_ids": (EOS,), "pad_token_id": PAD}
    return dataclasses.replace(model_config(RICH[family]), init_std=0.2, **special)


def config_of(family: str, kind: str):
    lora = {"model.lora.rank": 4} if kind == "lora" else {}
    layout = {"model.scan_layers": LAYOUTS[kind], "model.remat": "full"}
    return replace(BASE, **{"model.shape": shape_of(family)}, **layout, **lora)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize("kind", LAYOUTS)
def test_training(family, kind):
    """Ratio 1 and KL 0 before the first step; two iterations move what trains and that alone."""
    built = case(config_of(family, kind))
    hparams = dataclasses.replace(BASE.hparams, learning_rate=3e-3)
    state, history, rollouts = run(built, 2, hparams)
    for metrics in history:
        assert metrics["val/ratio_first_max_dev"] <= 1e-5
        assert metrics["policy/approxkl_first"] <= 1e-10
        assert metrics["rollout/logprob_gap_max"] <= 1e-4
        assert metrics["update/skipped_nonfinite"] == 0
        assert all(np.isfinite(value) for value in metrics.values())
    assert abs(history[0]["objective/kl"]) <= 1e-6 * rollouts[0].mask_BT.sum(1).mean()
    assert abs(history[1]["objective/kl"]) > 1e-4  # and no longer once the policy has moved
    before, after = leaves(built.state.params), leaves(state.params)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert not [name for name in still if not _unread(name)], still
    trains = jax.tree.leaves(state.params["policy"])
    if kind == "lora":
        assert {str(path[-1]) for path, _ in _paths(state.params["policy"])} == {
            "['lora_a']",
            "['lora_b']",
        }
        assert sum(x.size for x in trains) < sum(x.size for x in jax.tree.leaves(built.frozen)) / 3
    # Adam's two moments of what trains, and nothing of what does not.
    moments = [x for x in jax.tree.leaves(state.opt_state["policy"]) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in trains)


def test_the_frozen_weights_stay(family):
    built = case(config_of(family, "lora"))
    kept = jax.tree.map(np.array, built.frozen["base"])
    run(built, 1)
    assert same(kept, built.frozen["base"])


def _paths(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def _unread(name: str) -> bool:
    """Learned positions that no sequence reaches; a key's bias, which no softmax sees."""
    return "positions" in name or name.endswith("['k']['bias']")

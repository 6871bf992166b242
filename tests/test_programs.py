"""One program or three, a rule on the device or half of it on the host: the same iteration."""

import functools

import jax
import numpy as np
import pytest

from ppo_jax import data
from ppo_jax.config import replace
from ppo_jax.loading import open_source, resolve_options
from ppo_jax.prepare import Opened, prepare
from ppo_jax.programs import make_stepper
from ppo_jax.rewards.base import parse_rewards
from step_builders import assert_close
from tiny_runs import CONFIG, ascii_share, half_and_half, write_prompts

KINDS = {"fused": ascii_share, "cut": half_and_half()}


@pytest.fixture(scope="module")
def iterations(tmp_path_factory):
    """(stepper, states, finished iterations) of two iterations, fused or cut."""
    path = write_prompts(tmp_path_factory.mktemp("data"))
    source = open_source(None, CONFIG.model.shape)
    changes = {"data.path": path, "model": resolve_options(CONFIG.model, source)}
    config = replace(CONFIG, **changes)
    dataset = data.load_dataset(config.data, source.tokenizer, vocab_size=259)

    @functools.cache
    def run_with(kind: str):
        run, state, frozen = prepare(
            Opened(config, source, None, dataset, parse_rewards(KINDS[kind]))
        )
        stepper = make_stepper(run)
        states, done = [state], []
        for step in range(2):
            prompts = data.make_batch(dataset, config, step, pad_id=run.pad_id, width=run.width)
            state, finished = stepper.dispatch(state, frozen, step, prompts)
            states.append(state)
            done.append(finished)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
        return stepper, states, done

    return run_with


def test_a_reward_in_python_cuts_the_step_in_three(iterations):
    fused, _, results = iterations("fused")
    assert set(fused.compiled) == {"train_step"} and all(done.times == {} for done in results)
    cut, _, results = iterations("cut")
    assert set(cut.compiled) == {"sample", "score", "update"}
    assert all(done.times["time/reward"] > 0 for done in results)


def test_cut_and_fused_agree(iterations):
    _, fused_states, fused = iterations("fused")
    _, cut_states, cut = iterations("cut")
    for one, other in zip(fused, cut, strict=True):
        np.testing.assert_array_equal(one.rollout.response_ids_BT, other.rollout.response_ids_BT)
        np.testing.assert_allclose(one.scores_B, other.scores_B, rtol=1e-6)
        assert np.std(one.scores_B) > 0
        metrics, same = (
            {name: m for name, m in done.metrics.items() if not name.startswith("reward/")}
            for done in (one, other)
        )
        assert_close(metrics, same, rtol=1e-6, atol=1e-6)
    assert_close(fused_states[-1].params, cut_states[-1].params, rtol=1e-6, atol=1e-6)
    assert_close(fused_states[-1].opt_state, cut_states[-1].opt_state, rtol=1e-6, atol=1e-6)


def test_parts_are_logged_unweighted(iterations):
    _, _, (done, _) = iterations("cut")
    parts = {name: value for name, value in done.metrics.items() if name.startswith("reward/")}
    total = done.metrics["objective/scores"]
    expected = {"ascii_text/share": total, "ascii_text/zero": 0.0, "ascii_share": total}
    assert parts.keys() == {f"reward/{name}" for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(parts[f"reward/{name}"], value, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_donated(iterations, kind):
    _, (first, second, last), _ = iterations(kind)
    for state in (first, second):
        arrays = {"params": state.params, "opt": state.opt_state, "ref": state.ref}
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arrays))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(last))
    assert last.opt_state.keys() == {"policy", "value"} and int(last.step) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_other_shapes_are_an_error_not_another_compilation(iterations, kind):
    stepper, (_, _, last), (done, _) = iterations(kind)
    more = lambda x_BP: np.pad(x_BP, ((0, 0), (1, 0)))
    prompts = done.prompts
    wider = prompts._replace(ids_BP=more(prompts.ids_BP), mask_BP=more(prompts.mask_BP))
    with pytest.raises(TypeError, match="compiled"):
        stepper.dispatch(last, {"ref": None, "reward": {"ascii_share": ()}}, 2, wider)

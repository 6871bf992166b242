"""A model as a reward inside the compiled step: its score is that of a slow float64 model, however
the step is cut, the batch taken apart and the weights shared; what cannot be one is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import trunk_params
from decoder_oracle import slow_hidden
from family_configs import first_case, model_config
from ppo_jax import data
from ppo_jax.classifier import (
    make_classifier,
    open_classifier,
    open_classifiers,
    place_classifier,
    score_responses,
)
from ppo_jax.config import replace
from ppo_jax.errors import ConfigError
from ppo_jax.loading import open_source, resolve_options
from ppo_jax.model import value_head
from ppo_jax.prepare import Opened, open_critic, prepare
from ppo_jax.programs import make_stepper
from ppo_jax.rewards.base import LearnedReward, parse_rewards
from ppo_jax.rewards.learned import learned_reward
from ppo_jax.sharding import make_mesh, put_batch
from ppo_jax.stages import Stages
from ppo_jax.text_env import PPOTextEnv
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.types import Rollout
from ppo_jax.weights import save_hf
from tiny_runs import CONFIG as TINY
from tiny_runs import write_prompts

CONFIG = replace(TINY, **{"ppo.token_sizes": None, "ppo.epochs": 1, "ppo.minibatches": 1})
EOS, PAD = 257, 258
# Of another family than the policy, and deeper.
SHAPE = dataclasses.replace(
    model_config(first_case("gpt2")), vocab_size=259, eos_token_ids=(EOS,), pad_token_id=PAD
)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """(folder of a classifier, its trunk, its head)."""
    folder = tmp_path_factory.mktemp("judge") / "hf"
    trunk = trunk_params(SHAPE, 3)
    kernel_D1 = np.linspace(-1, 1, SHAPE.embed_dim, dtype=np.float32)[:, None]
    head = {"kernel": kernel_D1, "bias": np.float32([0.7])}
    save_hf(folder, SHAPE, trunk, byte_tokenizer(), head=head)
    return str(folder), trunk, head


def rollout_of(rows: int, seed: int = 0) -> Rollout:
    """Prompts of 1 to 5 tokens, responses of 1 to 6, of which the first ends in the padding id."""
    rng = np.random.default_rng(seed)
    P, T = 5, 6
    prompts, lengths = rng.integers(1, P + 1, size=rows), rng.integers(1, T + 1, size=rows)
    ids_BP, ids_BT = (rng.integers(0, 256, size=(rows, n)).astype(np.int32) for n in (P, T))
    lengths[0], ids_BT[0, 2:4] = 4, PAD
    mask_BT = (np.arange(T) < lengths[:, None]).astype(np.float32)
    return Rollout(
        prompt_ids_BP=ids_BP,
        prompt_mask_BP=np.arange(P) >= P - prompts[:, None],
        response_ids_BT=ids_BT,
        mask_BT=mask_BT,
        lengths_B=lengths.astype(np.int32),
        ended_B=np.zeros(rows, bool),
        logprobs_BT=np.zeros_like(mask_BT),
        values_BT=None,
        kept_ids_BTK=None,
        slot_steps_B=np.zeros(rows, np.float32),
    )


def slow_scores(trunk, head, rollout) -> np.ndarray:
    """The head on the state after the last token that is not the padding id."""
    found = []
    for b, n in enumerate(np.asarray(rollout.lengths_B)):
        prompt = np.asarray(rollout.prompt_ids_BP)[b][np.asarray(rollout.prompt_mask_BP)[b]]
        ids = [*prompt, *np.asarray(rollout.response_ids_BT)[b, :n]]
        while ids[-1] == PAD:
            ids.pop()
        state_D = slow_hidden(SHAPE, trunk, np.asarray(ids))[-1]
        found.append(state_D @ np.float64(head["kernel"][:, 0]) + float(head["bias"][0]))
    return np.array(found)


def scored_by(path, rollout, **changes):
    config = replace(CONFIG, **changes)
    source = open_source(path)
    mesh = make_mesh(config.parallel)
    model, weights = make_classifier(config, mesh, source), place_classifier(config, mesh, source)
    quick = {"xla_backend_optimization_level": 0}
    score = jax.jit(functools.partial(score_responses, model), compiler_options=quick)
    return score(put_batch(mesh, rollout), {}, weights), weights


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel.data": 1},
        {"parallel.data": 2, "ppo.minibatches": 2},
        {"parallel.data": 2, "parallel.fsdp": 2, "ppo.token_sizes": 2, "ppo.microbatches": 2},
    ],
)
def test_scores_are_those_of_a_slow_float64_model(judge, changes):
    path, trunk, head = judge
    rollout = rollout_of(8)
    scores, weights = scored_by(path, rollout, **changes)
    np.testing.assert_allclose(scores, slow_scores(trunk, head, rollout), atol=1e-4)
    assert scores.dtype == jnp.float32
    kernel = weights["trunk"]["layers"][0]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * changes.get("parallel.fsdp", 1) == kernel.size


def test_a_lone_row_of_many_parts(judge):
    path, trunk, head = judge
    rollout = rollout_of(3)
    scores, _ = scored_by(path, rollout, **{"parallel.data": 1, "ppo.minibatches": 2})
    np.testing.assert_allclose(scores, slow_scores(trunk, head, rollout), atol=1e-4)


@pytest.fixture(scope="module")
def iterations(judge, tmp_path_factory):
    """kind -> (run, finished) of one iteration, fused or cut by a reward in Python of weight 0."""
    home = tmp_path_factory.mktemp("data")
    source = open_source(None, CONFIG.model.shape)
    changes = {"data.path": write_prompts(home), "model": resolve_options(CONFIG.model, source)}
    config = replace(CONFIG, **changes)
    dataset = data.load_dataset(config.data, source.tokenizer, vocab_size=259)
    zero = lambda prompts, responses: [0.0] * len(prompts)
    model = learned_reward(judge[0], name="judge")

    @functools.cache
    def run_with(kind: str):
        parts = parse_rewards([(2.0, model)] if kind == "fused" else [(2.0, model), (0.0, zero)])
        learned = open_classifiers(parts, config, source, Stages("case"))
        opened = Opened(config, source, None, dataset, parts, learned=learned)
        run, state, frozen = prepare(opened)
        stepper = make_stepper(run)
        prompts = data.make_batch(dataset, config, 0, pad_id=run.pad_id, width=run.width)
        _, finished = stepper.dispatch(state, frozen, 0, prompts)
        return set(stepper.compiled), jax.device_get(finished)

    return run_with


def test_inside_the_step_it_scores_what_was_sampled(judge, iterations):
    programs, done = iterations("fused")
    assert programs == {"train_step"}
    expected = slow_scores(*judge[1:], done.rollout)
    np.testing.assert_allclose(done.scores_B, 2.0 * expected, atol=2e-4)
    assert done.metrics["objective/scores"] == pytest.approx(2.0 * expected.mean(), abs=1e-4)
    assert done.metrics["reward/judge"] == pytest.approx(expected.mean(), abs=1e-4)


def test_cut_and_fused_agree(iterations):
    _, fused = iterations("fused")
    programs, cut = iterations("cut")
    assert programs == {"sample", "score", "update"}
    np.testing.assert_array_equal(fused.rollout.response_ids_BT, cut.rollout.response_ids_BT)
    np.testing.assert_allclose(fused.scores_B, cut.scores_B, rtol=1e-5, atol=1e-5)
    for name in ("policy/approxkl_avg", "loss/value_avg"):
        assert fused.metrics[name] == pytest.approx(cut.metrics[name], rel=1e-3, abs=1e-7)


def test_a_critic_begins_with_the_scores(judge):
    """Bias and all: its value of a state is the reward model's score of it."""
    path, trunk, head = judge
    config = replace(CONFIG, **{"model.critic": "separate", "model.critic_path": path})
    source = open_source(None, CONFIG.model.shape)
    critic = open_critic(config, source)
    config = replace(config, model=resolve_options(config.model, source, critic))
    dataset = data.Dataset(["a"], [[97]], {}, {}, [1], 0, 0, "")
    _, state, _ = prepare(Opened(config, source, critic, dataset, []))
    value = jax.device_get(state.params["value"])
    hidden_SD = slow_hidden(SHAPE, value["trunk"], np.array([97, 98]))
    expected = slow_hidden(SHAPE, trunk, np.array([97, 98])) @ np.float64(head["kernel"]) + 0.7
    values = value_head(value["head"], jnp.asarray(hidden_SD, jnp.float32))
    np.testing.assert_allclose(values, expected[:, 0], atol=1e-4)


def test_a_text_environment_rewards_by_a_model(judge):
    """The score of the whole text, once it has ended; the last token is read."""
    path, trunk, head = judge
    env = PPOTextEnv(
        4, tokenizer=byte_tokenizer(), reward=learned_reward(path), max_prompt_tokens=3
    )
    env.reset(seed=0, options={"prompt": "ab"})
    rewards = [env.step(token)[1] for token in (b"x"[0], b"y"[0], b"."[0])]
    state_D = slow_hidden(SHAPE, trunk, np.array([*b"ab", *b"xy."]))[-1]
    expected = state_D @ np.float64(head["kernel"][:, 0]) + float(head["bias"][0])
    assert rewards[:2] == [0, 0] and rewards[2] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": learned_reward()}, "@reward-model is a stage of an experiment"),
        ({"tokenizer": None}, "reads another vocabulary (259 tokens)"),
        ({"max_steps": 65}, "holds 64 positions, a text may have 68"),
    ],
)
def test_a_model_that_cannot_judge_a_text_is_refused(judge, changes, said):
    given = {"tokenizer": byte_tokenizer(), "reward": learned_reward(judge[0]), "max_steps": 4}
    with pytest.raises(ConfigError) as error:
        PPOTextEnv(**given | {"max_prompt_tokens": 3} | changes)
    assert said in str(error.value)


# What is refused


def refused(path, config=CONFIG, policy=None):
    policy = open_source(None, CONFIG.model.shape) if policy is None else policy
    with pytest.raises(ConfigError) as error:
        open_classifier(LearnedReward("judge", str(path)), config, policy, Stages("case"))
    return str(error.value)


def test_another_vocabulary_is_refused(judge):
    policy = open_source(None, CONFIG.model.shape)
    other = byte_tokenizer()
    other.add_tokens(["<more>"])
    said = refused(judge[0], policy=policy._replace(tokenizer=other))
    assert "reads another vocabulary (259 tokens) than the policy (260)" in said
    assert "one on the host reads the text itself: ppo_jax.rewards.hf_classifier" in said
    wider = dataclasses.replace(CONFIG.model.shape, vocab_size=300)
    assert "another vocabulary" in refused(judge[0], policy=policy._replace(config=wider))


def test_what_does_not_score_is_refused(judge, tmp_path):
    _, trunk, head = judge
    save_hf(tmp_path / "lm", SHAPE, trunk, byte_tokenizer())
    assert "is a language model: expected a run of ppo-jax reward-model" in refused(tmp_path / "lm")
    two = {"kernel": np.repeat(head["kernel"], 2, axis=1)}
    save_hf(tmp_path / "two", SHAPE, trunk, byte_tokenizer(), head=two)
    assert "is a classifier of 2 outputs: expected" in refused(tmp_path / "two")
    long = replace(CONFIG, **{"data.max_prompt_tokens": 60})
    assert "holds 64 positions, data.max_prompt_tokens" in refused(judge[0], config=long)
    assert "the experiment case has no REWARD_MODEL" in refused("@reward-model")
    with pytest.raises(ConfigError, match="expected a model's path and a name"):
        learned_reward("")


def test_parts_of_an_experiment():
    model = learned_reward("somewhere")
    parts = parse_rewards([model, (0.5, model)])
    assert [(p.name, p.weight) for p in parts] == [("reward_model", 1.0), ("reward_model_2", 0.5)]
    assert all(p.learned == model and p.device is p.host is None for p in parts)


def test_a_head_whose_end_token_pads_is_written_without_a_padding_id(tmp_path):
    """transformers would not read the EOS, which a reward model does."""
    shape = dataclasses.replace(SHAPE, pad_token_id=EOS)
    head = {"kernel": np.ones((SHAPE.embed_dim, 1), np.float32)}
    for name, more in {"critic": {}, "reward": {"bias": np.float32([1.5])}}.items():
        save_hf(tmp_path / name, shape, trunk_params(shape, 1), None, head=head | more)
    said = lambda name: json.loads((tmp_path / name / "config.json").read_text())
    assert said("critic")["pad_token_id"] == EOS and "ppo_jax_reward_bias" not in said("critic")
    assert (
        said("reward").get("pad_token_id") is None and said("reward")["ppo_jax_reward_bias"] == 1.5
    )

"""The text environment by Gymnasium's own checks and by hand; the policy by `ppo-jax score`."""

import importlib
import json
import re
import string
import sys
import types
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from builders import trunk_params
from ppo_jax.arguments import ScoreArgs
from ppo_jax.commands import score
from ppo_jax.config import ModelConfig, replace
from ppo_jax.errors import ConfigError, DataError
from ppo_jax.experiment import Experiment
from ppo_jax.restore import restore_params
from ppo_jax.rewards.exact import exact_match
from ppo_jax.run_folder import run_folder
from ppo_jax.text_env import PPOTextEnv
from ppo_jax.text_policy import text_policy
from ppo_jax.tokenizer import byte_tokenizer, decode
from ppo_jax.train import train
from ppo_jax.weights import save_hf
from tiny_runs import CONFIG, ascii_share, write_prompts

ID = "ppo_jax.text_env:ppo_jax/Text-v0"
MODEL = ModelConfig(embed_dim=32, num_layers=1, mlp_dim=32, num_heads=2, num_kv_heads=1)
TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id


def length(prompts, responses, seeds):
    """A reward on the host, of two parts."""
    return {"characters": [len(text) for text in responses], "seeds": [s >= 0 for s in seeds]}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    found = [{"prompt": f"{n}+1=", "answer": [f"{n + 1}.", "?"]} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, found)))
    return str(path)


def write(env, text, then=()):
    """The steps of writing a text, character by character, and then some ids."""
    ids = [*env.tokenizer.encode(text), *then]
    return [env.step(np.int64(i)) for i in ids]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["plain", "rewarded"])
def test_gymnasiums_own_checks(kind, rows):
    options = {"prompts": rows, "reward": length, "tokenizer": TOKENIZER, "max_steps": 7}
    options = options if kind == "rewarded" else {}
    env = gymnasium.make(ID, render_mode="ansi", **options)
    check_env(env.unwrapped)
    env.reset(seed=0)
    for _ in range(300):  # with the passive checker around it
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


@pytest.mark.filterwarnings("error")
def test_vectors_of_environments():
    many = gymnasium.make_vec(ID, num_envs=3, vectorization_mode="sync", max_steps=4)
    seen, _ = many.reset(seed=5)
    assert seen.shape == (3, 4) and seen.dtype == np.int32 and (seen == -1).all()
    for number in range(1, 5):
        seen, rewards, *_ = many.step(np.array([12, 13, 14]))
        assert (seen[:, :number] == [[12], [13], [14]]).all() and (seen[:, number:] == -1).all()
    assert rewards.tolist() == [1, 1, 1]


def test_a_hundred_characters_until_the_full_stop():
    """The environment as it was asked for: `TextGenerationEnv(max_steps=100, vocab_size=100)`."""
    env = PPOTextEnv(max_steps=100, vocab_size=100, render_mode="ansi")
    assert env.action_space.n == 100 and env.observation_space.shape == (100,)
    observation, info = env.reset(seed=1)
    assert (observation == -1).all() and info == {"text": ""}
    *before, last = write(env, "Hi\n.")
    assert [step[1:4] for step in before] == [(0.0, False, False)] * 3
    assert last[1:] == (1.0, True, False, {"text": "Hi\n."})
    assert [string.printable[i] for i in last[0][:4]] == ["H", "i", "\n", "."]
    assert (last[0][4:] == -1).all() and env.render() == "Hi\\n."
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset()
    steps = write(env, "ab" * 50)
    assert [step[1:4] for step in steps] == [(0.0, False, False)] * 99 + [(1.0, False, True)]
    env.reset()
    with pytest.raises(gymnasium.error.InvalidAction, match="100"):
        env.step(np.int64(100))


def test_an_eos_ends_a_text_without_the_reward_of_a_full_stop():
    env = PPOTextEnv(max_steps=3, tokenizer=TOKENIZER)
    assert env.vocab_size == 259
    env.reset()
    assert write(env, "a", [EOS])[-1][1:] == (0.0, True, False, {"text": "a"})
    env = PPOTextEnv(max_steps=3, tokenizer=TOKENIZER, stop=None, eos_token_ids=[ord("b")])
    env.reset()
    first, second, third = write(env, ".", [EOS, ord("b")])
    assert [step[2:4] for step in (first, second, third)] == [(False, False)] * 2 + [(True, False)]


REWARD = [(2.0, exact_match()), (0.5, length)]


def test_any_reward_of_the_project_at_the_end(rows):
    env = PPOTextEnv(max_steps=6, tokenizer=TOKENIZER, reward=REWARD, prompts=rows, stop=None)
    assert env.observation_space.shape == (5 + 6,)  # "19+1="
    _, begun = env.reset(seed=3)
    number = int(decode(TOKENIZER, env.episode.dataset.prompt_ids[env.episode.row])[:-3])
    *before, (_, reward, ended, _, info) = write(env, f" {number + 1}.", [EOS])
    assert begun == {"text": ""} and not any(step[1] for step in before)
    size = len(f" {number + 1}.")
    assert ended and info["text"] == f" {number + 1}."
    assert info["scores"] == {"exact_match": 1.0, "length/characters": size, "length/seeds": 1.0}
    assert reward == 2.0 + 0.5 * size + 0.5
    env.reset()
    *_, (_, reward, ended, cut, info) = write(env, "?" * 6)  # without its end: no match
    assert not ended and cut and info["scores"]["exact_match"] == 0.0 and reward == 3.5


def test_prompts_by_seed_and_by_options(rows):
    env = PPOTextEnv(tokenizer=TOKENIZER, reward=REWARD, prompts=rows, max_steps=4, stop="!")
    drawn = [env.reset(seed=seed)[0].tolist() for seed in (0, 1, 2, 3, 0)]
    assert drawn[0] == drawn[-1] and len({tuple(row) for row in drawn}) > 2
    observation, _ = env.reset(options={"prompt": "é=", "answer": "e"})
    assert observation.tolist() == [*"é=".encode(), -1, -1, -1, -1, -1, -1]
    assert write(env, "e", [EOS])[-1][1] == 2.0 + 0.5 + 0.5
    with pytest.raises(ConfigError, match="has 6 tokens; give max_prompt_tokens=6 .* room for 5"):
        env.reset(options={"prompt": "abcdef", "answer": "e"})
    with pytest.raises(DataError, match="options of reset: no column 'answer'"):
        env.reset(options={"prompt": "abc"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_steps": 0}, "max_steps=0: must be a whole number from 1 to .*; nearest valid: 1"),
        ({"max_steps": 2.5}, "max_steps=2.5: must be a whole number .*; nearest valid: 2"),
        ({"max_steps": "7"}, "max_steps='7': must be a whole number .*; nearest valid: 7"),
        ({"max_steps": True}, "max_steps=True: must be a whole number .*; nearest valid: 1"),
        ({"max_prompt_tokens": -1}, "max_prompt_tokens=-1: .* from 0 to .*; nearest valid: 0"),
        ({"max_prompt_tokens": None}, "max_prompt_tokens=None: .*; nearest valid: 0"),
        ({"tokenizer": TOKENIZER, "vocab_size": 0}, "vocab_size=0: .*; nearest valid: 1"),
        ({"eos_token_ids": [1000]}, "eos_token_ids=1000: .* from 0 to 99; nearest valid: 99"),
        ({"eos_token_ids": [3, -1]}, "eos_token_ids=-1: .* from 0 to 99; nearest valid: 0"),
        ({"eos_token_ids": ["a"]}, "eos_token_ids='a': must be a whole number from 0 to 99"),
        ({"eos_token_ids": 5}, "eos_token_ids=5: must be a list of ids; nearest valid: \\[5\\]"),
        ({"eos_token_ids": "ab"}, "eos_token_ids='ab': .*; nearest valid: \\[0\\]"),
        ({"max_steps": 10**5000}, "max_steps=a value without a text .*; nearest valid: 1073741824"),
        ({"vocab_size": 101}, "vocab_size=101: there are 100 characters; nearest valid: 100"),
        ({"render_mode": "human"}, "render_mode=human: nearest valid: ansi"),
        ({"reward": 3}, "3 is not a reward"),
        ({"prompts": "nowhere.jsonl"}, "no file 'nowhere.jsonl'"),
    ],
)
def test_unusable_options_are_named(options, says):
    with pytest.raises((ConfigError, DataError), match=says) as raised:
        PPOTextEnv(**options)
    assert "\n" not in str(raised.value)


def test_characters_that_have_no_id():
    env = PPOTextEnv(max_prompt_tokens=4)
    with pytest.raises(ConfigError, match="the prompt has 'é', which is none of the 100"):
        env.reset(options={"prompt": "é"})


def test_a_missing_gymnasium_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "ppo_jax.text_env")
    with pytest.raises(ConfigError, match=r"needs gymnasium: .*pip install gymnasium "):
        importlib.import_module("ppo_jax.text_env")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with distributions that are far from flat."""
    folder = tmp_path_factory.mktemp("model") / "model"
    params = jax.tree.map(np.asarray, trunk_params(MODEL, 1))
    save_hf(str(folder), MODEL, params, TOKENIZER)
    return str(folder)


@pytest.fixture(scope="module")
def policy(folder):
    return text_policy(folder)


def test_an_episode_has_the_logprobs_of_ppo_jax_score(folder, policy, tmp_path):
    prompts = ["ab", "the cat"]
    env = PPOTextEnv(12, policy.vocab_size, tokenizer=policy.tokenizer, max_prompt_tokens=8)
    lines, found = [], []
    for number, prompt in enumerate(prompts):
        observation, _ = env.reset(options={"prompt": prompt})
        logprobs, over, key = [], False, jax.random.key(number)
        while not over:
            key, draw = jax.random.split(key)
            action, logprob, value = policy.act(observation, None if number else draw)
            assert value == 0 and action.shape == ()
            observation, _, ended, cut, info = env.step(action)
            logprobs.append(logprob)
            over = ended or cut
        lines.append({"prompt": prompt, "response": info["text"] or "-", "response_ids": env.ids})
        found.append(logprobs)
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    score(ScoreArgs(folder, str(data), str(out)))
    scored = [json.loads(line)["logprobs"] for line in out.read_text().splitlines()]
    assert max(map(len, found)) > 3 and min(map(min, found)) < -0.5
    for ours, theirs in zip(found, scored, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_values_weights_and_gradients(folder, policy):
    """With a column of the tied embedding as its head, a value is that token's logit."""
    column_D1 = policy.params["policy"]["embed"]["embedding"][7][:, None]
    params = {**policy.params, "value": {"head": {"kernel": column_D1}}}
    rows_NW = np.array([[65, 66, -1, -1], [67, -1, -1, -1], [1, 2, 3, 4]], np.int32)
    logits_NV, values_N = policy.apply(params, rows_NW)
    assert np.std(logits_NV) > 0.1
    np.testing.assert_allclose(values_N, logits_NV[:, 7], rtol=1e-5)
    acts = policy.act(rows_NW, params=params)
    np.testing.assert_array_equal(acts.actions, np.argmax(logits_NV, axis=1))
    np.testing.assert_array_equal(acts.values, values_N)
    # A row's numbers do not depend on what stands after or beside it.
    np.testing.assert_allclose(policy.apply(params, rows_NW[:1, :2])[0], logits_NV[:1], atol=1e-5)
    began = text_policy(folder, params, begin=65)
    np.testing.assert_allclose(
        began.apply(params, np.array([[66, -1]]))[0], logits_NV[:1], atol=1e-5
    )
    assert began.act(np.array([-1, -1])).actions.shape == ()

    def loss(params):
        logits_NV, values_N = policy.apply(params, rows_NW)
        return jax.nn.log_softmax(logits_NV)[:, 3].sum() + values_N.sum()

    grads = jax.grad(loss)(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_draws_follow_the_distribution(policy):
    row_NW = np.full((2000, 2), 65, np.int32)
    acts = policy.act(row_NW, jax.random.key(0), temperature=1.5)
    logprobs_V = jax.nn.log_softmax(policy.apply(policy.params, row_NW)[0][0] / 1.5)
    np.testing.assert_allclose(acts.logprobs, logprobs_V[acts.actions], atol=1e-5)
    shares_V = np.bincount(acts.actions, minlength=259) / 2000
    assert np.abs(shares_V - np.exp(logprobs_V)).max() < 0.05 and shares_V.max() < 0.9


def test_a_run_gives_its_policy_and_its_critic(tmp_path):
    options = {"run.dir": str(tmp_path), "data.path": write_prompts(tmp_path)}
    config = replace(CONFIG, **options, **{"run.iterations": 1})
    train(config, Experiment("case", config, ascii_share, Path("case.py"), ""))
    folder = run_folder(tmp_path / "case" / "base" / "seed0")
    policy, trained = text_policy(str(folder.root)), restore_params(folder.checkpoints)
    jax.tree.map(np.testing.assert_array_equal, policy.params["value"], trained["value"])
    wanted = trained["policy"]["final_norm"]
    jax.tree.map(np.testing.assert_array_equal, policy.params["policy"]["final_norm"], wanted)
    env = PPOTextEnv(4, tokenizer=policy.tokenizer, max_prompt_tokens=2)
    observation, _ = env.reset(options={"prompt": "ab"})
    assert policy.act(observation).values != 0


def test_observations_that_the_model_cannot_read():
    policy = text_policy(None, shape=MODEL)  # a random one
    with pytest.raises(ConfigError, match="observation 1 has no token, .*begin=256"):
        policy.act(np.array([[1, -1], [-1, -1]]))
    with pytest.raises(ConfigError, match="holds the id 300, the model has 259"):
        policy.act(np.array([300]))


def test_what_is_said_to_a_policy_that_cannot_begin_lets_it_begin():
    """Of an environment as it is by default, whose texts begin from nothing."""
    policy = text_policy(None, shape=MODEL)
    env = PPOTextEnv(5, tokenizer=policy.tokenizer)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ConfigError) as caught:
        policy.act(observation)
    assert re.search(r"begin=(\d+)\), its bos_token <\|bos\|>$", str(caught.value))[1] == "256"
    policy, over = text_policy(None, shape=MODEL, begin=256), False
    while not over:
        observation, _, ended, cut, info = env.step(policy.act(observation).actions)
        over = ended or cut
    assert env.ids and len(env.ids) <= 5
    with pytest.raises(ConfigError, match=r"begin=1\), its eos_token \\n$"):
        unnamed = types.SimpleNamespace(bos_token_id=None, eos_token_id=1, eos_token="\n")
        policy._replace(tokenizer=unnamed, begin=None).act(np.array([-1]))

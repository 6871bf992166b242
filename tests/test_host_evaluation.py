"""Held-out rows played with an environment in ordinary Python, by a run and by `ppo-jax eval`."""

import json

import jax
import numpy as np
import pytest

from ppo_jax import data
from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelConfig,
    ModelOptions,
    ParallelOptions,
    PPOOptions,
    RolloutOptions,
    RunOptions,
)
from ppo_jax.envs.host import HostEnv
from ppo_jax.evaluation import make_answers, metrics
from ppo_jax.main import main
from ppo_jax.metrics import read_metrics
from ppo_jax.prepare import open_run_of, prepare, read_dataset
from ppo_jax.programs import make_stepper
from ppo_jax.rewards.environment import environment_reward

SHAPE = ModelConfig(embed_dim=16, num_layers=1, num_heads=1, num_kv_heads=1, mlp_dim=16)
ACTION, TURNS, ROWS = 2, 3, 7


class Echo:
    """Opens with a number made from its seed, pays a hundredth for each byte it hears."""

    made: list["Echo"] = []

    def __init__(self):
        Echo.made.append(self)
        self.games: list[tuple[int, list[str]]] = []  # (seed, what it heard) of each game

    def reset(self, seed, row):
        self.games.append((seed, []))
        return f"{seed % 100:02}{row['sign']}"

    def step(self, action):
        heard = self.games[-1][1]
        heard.append(action)
        return f"<{len(heard)}>", 0.01 * len(action), len(action) == 1

    def measures(self):
        return {"heard": len(self.games[-1][1])}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """(run, first state, frozen) with seven held-out rows in batches of four."""
    folder = tmp_path_factory.mktemp("played")
    for name, sign, count in (("train", "+", 4), ("held", "-", ROWS)):
        rows = [json.dumps({"prompt": f"{name[0]}{i}", "sign": sign}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    config = Config(
        model=ModelOptions(path=None, shape=SHAPE, remat="none"),
        data=DataOptions(
            path=str(folder / "train.jsonl"),
            eval_path=str(folder / "held.jsonl"),
            max_prompt_tokens=4,
        ),
        rollout=RolloutOptions(
            batch_size=4, max_new_tokens=18, stop_token_ids=tuple(range(0, 256, 3))
        ),
        ppo=PPOOptions(epochs=1, token_sizes=None),
        parallel=ParallelOptions(data=2),
        run=RunOptions(iterations=2, eval_every=1),
        hparams=HParams(learning_rate=1e-2, kl_coef=0.0),
    )
    environment = HostEnv("echo", Echo, ACTION, TURNS)
    return prepare(open_run_of(config, environment_reward(), read_dataset, environment))


@pytest.fixture(scope="module")
def answered(played):
    run, state, frozen = played
    Echo.made.clear()  # of other tests
    answer = make_answers(run)
    return answer, answer(state, frozen), Echo.made[:]


def test_answers_are_the_games(played, answered):
    """Batches of four play seven rows: the last one is filled up with the last row."""
    run, _, _ = played
    _, found, players = answered
    assert len(players) == 4 and [len(player.games) for player in players] == [2] * 4
    games = [player.games[batch] for batch in range(2) for player in players][:ROWS]
    for i, (seed, heard) in enumerate(games):
        said = found.responses[i]
        text = f"{seed % 100:02}-"
        assert said.startswith(text)
        for turn, action in enumerate(heard):
            text += action
            over = len(action) == 1
            text += "" if over else f"<{turn + 1}>"
        assert said.startswith(text) and found.written[i].startswith("".join(heard))
        assert found.parts["env/heard"][i] == len(heard) == found.parts["env/turns"][i]
        paid = sum(0.01 * len(action) for action in heard)
        np.testing.assert_allclose(found.scores_N[i], paid, rtol=1e-5)
        assert found.ended_N[i] == (len(heard[-1].encode()) == 1)
    np.testing.assert_allclose(found.kl_N, 0.0, atol=1e-5)  # the first policy is the reference
    assert metrics(found)["eval/env/heard"] == pytest.approx(np.mean([len(h) for _, h in games]))
    assert run.held_out is not None and len(run.held_out.lines) == ROWS


def test_every_evaluation_plays_the_same_games(played, answered):
    run, state, frozen = played
    answer, found, players = answered
    again = answer(state, frozen)
    assert again.responses == found.responses and len(Echo.made) == len(players)
    prompts = data.make_batch(run.dataset, run.config, 0, pad_id=run.pad_id, width=run.width)
    trained, done = make_stepper(run).dispatch(
        jax.tree.map(lambda x: x.copy(), state), frozen, 0, prompts
    )
    jax.block_until_ready(done.metrics)
    assert len(Echo.made) == 8  # training has players of its own
    other = answer(trained, frozen)
    openings = lambda answers: [text[:3] for text in answers.responses]
    assert openings(other) == openings(found)
    assert not np.allclose(other.sums["logprob"], found.sums["logprob"])


SOURCE = '''"""A shop that pays for what it hears."""
from ppo_jax.config import *
from ppo_jax.envs.host import HostEnv
from ppo_jax.rewards.environment import environment_reward


class Shop:
    def reset(self, seed, row):
        return f"{seed % 10}:"

    def step(self, action):
        return "", 0.5 * len(action), True


BASE = Config(
    model=ModelOptions(path=None, remat="none"),
    data=DataOptions(path="rows.jsonl", eval_path="rows.jsonl"),
    rollout=RolloutOptions(batch_size=4, max_new_tokens=6),
    ppo=PPOOptions(token_sizes=None),
    run=RunOptions(iterations=2, eval_every=1, show_prompts=0, profile_after=0, compile_cache=None),
)
REWARD = environment_reward()
ENVIRONMENT = HostEnv("shop", Shop, max_action_tokens=4, max_turns=1)
'''


def test_a_run_and_eval(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "row {i}"}}\n' for i in range(6)))
    one = ["--parallel.data", "1"]
    assert main(["train", "mine.py", *one]) == 0
    rows = read_metrics(tmp_path / "runs/mine/base/seed0/metrics.jsonl")
    assert all(0 < row["eval/scores"] <= 2 and row["eval/env/turns"] == 1 for row in rows)
    assert 0 <= rows[-1]["eval/win_rate"] <= 1
    words = ["eval", "mine.py", "--samples", "3", "--against", "@reference", *one]
    assert main(words) == 0
    folder = tmp_path / "runs/mine/base/seed0"
    report = json.loads((folder / "eval.json").read_text())
    assert report["metrics"]["model"]["env/turns"]["value"] == 1
    said = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    openings = [row["response"][:2] for row in said if row["of"] == "model"]
    assert len(openings) == 18
    for i in range(0, 18, 3):  # the samples of a row meet the same opening
        assert len(set(openings[i : i + 3])) == 1
    assert len(set(openings)) > 1
    assert main([*words[:2], "--temperature", "0", *one]) == 0

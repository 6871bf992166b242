"""Reward models: the step is that of a slow float64 model however a batch is taken apart, a run of
them learns a rule, and what it leaves has normalised scores wherever it is loaded."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoder_oracle import slow_hidden
from ppo_jax import critics, manifest
from ppo_jax.arguments import ExportArgs
from ppo_jax.commands import export
from ppo_jax.config import replace
from ppo_jax.critics import is_reward_model, load_critic, normalised
from ppo_jax.data import Dataset
from ppo_jax.errors import ConfigError, DataError
from ppo_jax.loading import open_source
from ppo_jax.metrics import read_metrics
from ppo_jax.model import init_reward_head
from ppo_jax.preferences import Rated
from ppo_jax.prepare import Opened, prepare
from ppo_jax.responses import as_rollout
from ppo_jax.restore import restore_fields
from ppo_jax.reward_model import OBJECTIVE, score_batch
from ppo_jax.sharding import put_batch
from ppo_jax.tuning import tuning_step, tuning_sums
from ppo_jax.types import Prompts
from reward_runs import HELD_OUT, config_in, launch, pairs, responses, write
from step_builders import BASE, EOS, PAD, VOCAB, assert_close, setup_of, start, traced

CONFIG = replace(BASE, **{"ppo.minibatches": 1})
RNG = np.random.default_rng(0)
ROWS = [
    (
        RNG.integers(2, VOCAB, size=RNG.integers(1, 7)).tolist(),
        [RNG.integers(2, VOCAB, size=n).tolist() + [EOS] for n in RNG.integers(0, 6, size=2)],
    )
    for _ in range(8)
]
MARGINS = np.linspace(0.0, 1.4, 8).astype(np.float32)


def batch_of(setup, rows, margins, counts=None, each=2):
    prompts = [prompt for prompt, _ in rows for _ in range(each)]
    ids_BP = np.full((len(prompts), 6), PAD, np.int32)
    for i, prompt in enumerate(prompts):
        ids_BP[i, 6 - len(prompt) :] = prompt
    zeros_B = np.zeros(len(prompts), np.int32)
    given = [ids for _, answers in rows for ids in answers[:each]]
    rollout = as_rollout(Prompts(ids_BP, ids_BP != PAD, zeros_B, zeros_B, {}), given, 6)
    together = jax.tree.map(lambda x: x.reshape(-1, each, *x.shape[1:]), rollout)
    counts = np.ones(len(rows), np.float32) if counts is None else np.float32(counts)
    return put_batch(setup.mesh, Rated(together, margins, counts))


def start_of(setup):
    state, frozen = start(setup)
    head = {**state.params["value"]["head"], "bias": jnp.full(1, 0.3)}
    transform = lambda params: jax.tree.map(jnp.zeros_like, params)
    moments = state.opt_state["value"][0]._replace(
        mu=transform({"head": head}), nu=transform({"head": head})
    )
    opt_state = {**state.opt_state, "value": (moments, *state.opt_state["value"][1:])}
    return state._replace(
        params={**state.params, "value": {"head": head}}, opt_state=opt_state
    ), frozen


def quick(function):
    """Compiled without optimisation: compiling takes nearly all of the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def stepped(parts: tuple, devices: int):
    """(setup, state before, state after, metrics) of a step on ROWS."""
    setup = setup_of(replace(CONFIG, **dict(parts)), devices)
    state, frozen = start_of(setup)
    step = quick(functools.partial(tuning_step, setup, OBJECTIVE))
    batch = batch_of(setup, ROWS, MARGINS)
    after, metrics = step(state, frozen, traced(CONFIG.hparams), batch)
    return setup, state, after, jax.tree.map(float, metrics)


@functools.cache
def summing():
    setup, state, _, _ = stepped((), 1)
    sums = quick(functools.partial(tuning_sums, setup, OBJECTIVE))
    frozen = {"base": None, "critic": None, "ref": None}
    return lambda batch: jax.tree.map(float, sums(state.params, frozen, batch))


def slow_score(config, trunk, head, ids: list[int]) -> float:
    """Of the state after the last token, in float64."""
    state_D = slow_hidden(config, trunk, np.asarray(ids))[-1]
    return float(state_D @ np.float64(head["kernel"][:, 0]) + np.float64(head["bias"][0]))


def slow_scores(setup, state):
    params = jax.device_get(state.params)
    score = functools.partial(
        slow_score, setup.decoder.config, params["policy"], params["value"]["head"]
    )
    return np.array([[score(p + ids) for ids in answers] for p, answers in ROWS])


def test_the_loss_is_that_of_a_slow_float64_model():
    setup, state, _, metrics = stepped((), 1)
    scores_N2 = slow_scores(setup, state)
    gap_N = scores_N2[:, 0] - scores_N2[:, 1]
    assert metrics["loss"] == pytest.approx(np.logaddexp(0, MARGINS - gap_N).mean(), rel=1e-5)
    assert metrics["gap"] == pytest.approx(gap_N.mean(), rel=1e-4)
    assert metrics["accuracy"] == np.where(gap_N == 0, 0.5, gap_N > 0).mean()
    assert metrics["tokens"] == sum(len(p) + len(ids) for p, both in ROWS for ids in both)
    sums = summing()(batch_of(setup, ROWS, MARGINS, each=1))
    expected = np.sum((scores_N2[:, 0] - MARGINS) ** 2)
    assert float(sums["loss"]) == pytest.approx(expected, rel=1e-4) and float(sums["count"]) == 8


def test_every_weight_that_the_score_reads_learns():
    _, before, after, _ = stepped((), 1)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, after.params)
    assert min(jax.tree.leaves(moved["policy"])) > 0
    # Of a pair both scores have the same bias.
    assert moved["value"]["head"]["kernel"] > 0 and moved["value"]["head"]["bias"] < 1e-4


@pytest.mark.parametrize(
    ("parts", "devices"),
    [
        ((("ppo.microbatches", 4),), 1),
        ((("parallel.fsdp", 2), ("ppo.token_sizes", 2), ("ppo.microbatches", 4)), 2),
    ],
)
def test_parts_streams_and_devices_give_the_same_step(parts, devices):
    _, _, after, metrics = stepped((), 1)
    setup, _, other, theirs = stepped(parts, devices)
    for name in ("loss", "accuracy", "gap", "grad_norm", "tokens"):
        assert theirs[name] == pytest.approx(metrics[name], rel=1e-5), name
    assert_close(after.params, other.params, rtol=1e-4, atol=2e-5)
    # Held-out rows go through the same parts.
    state, frozen = start_of(setup)
    batch = batch_of(setup, ROWS, MARGINS, counts=[1, 1, 0, 1, 1, 1, 1, 0])
    scores = quick(functools.partial(score_batch, setup))(state.params, frozen, batch)
    rows = [0, 1, 3, 4, 5, 6]
    np.testing.assert_allclose(np.asarray(scores)[rows], slow_scores(setup, state)[rows], atol=1e-4)


def test_rows_that_fill_a_batch_change_nothing():
    setup = stepped((), 1)[0]
    sums = lambda counts: summing()(batch_of(setup, ROWS, MARGINS, counts=counts))
    half, rest, whole = sums([1] * 3 + [0] * 5), sums([0] * 3 + [1] * 5), sums([1] * 8)
    for name in whole:
        assert half[name] + rest[name] == pytest.approx(whole[name], rel=1e-5), name


def test_a_head_begins_small_and_a_constant_score_is_not_stretched():
    config = setup_of(CONFIG).decoder.config
    head = init_reward_head(config.__class__(embed_dim=4096), jax.random.key(0))
    assert float(head["kernel"].std()) == pytest.approx(4097**-0.5, rel=0.05)
    assert head["bias"].tolist() == [0.0]
    same = normalised(
        {"kernel": np.ones((2, 1)), "bias": np.ones(1)}, {"count": 4, "mean": 3, "m2": 0}
    )
    assert same["kernel"].tolist() == [[1.0], [1.0]] and same["bias"].tolist() == [-2.0]


# Runs


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("straight"))


def held_out_scores(folder, step=None):
    """Of all held-out responses, chosen before rejected, by a slow float64 model."""
    source = open_source(str(folder.root) if step is None else f"{folder.root}@{step}")
    model = load_critic(source)
    score = lambda text: slow_score(model.config, model.trunk, model.head, [*text.encode(), 257])
    rows = pairs(HELD_OUT, 2)
    return np.array(
        [[score(row["prompt"] + row[k]) for k in ("chosen", "rejected")] for row in rows]
    )


def test_a_run_learns_the_rule_and_leaves_normalised_scores(straight):
    rows = read_metrics(straight.metrics)
    judged = [row for row in rows if "eval/accuracy" in row]
    assert [row["step"] for row in judged] == [29, 59, 89]
    assert judged[-1]["eval/accuracy"] > 0.95 and judged[-1]["eval/ece"] < 0.1
    for row in (judged[-1], judged[0]):
        step = row["step"] + 1
        if step not in manifest.steps(straight.checkpoints):
            continue
        scores_N2 = held_out_scores(straight, step)
        assert scores_N2.mean() == pytest.approx(0.0, abs=1e-5)
        assert scores_N2.std() == pytest.approx(1.0, abs=1e-5)
        gap_N = (scores_N2[:, 0] - scores_N2[:, 1]) * row["eval/score_std"]
        assert row["eval/accuracy"] == np.mean(gap_N > 0)
        assert row["eval/loss"] == pytest.approx(np.logaddexp(0, -gap_N).mean(), rel=1e-3)


def test_stopped_and_resumed_equals_straight(straight, tmp_path):
    launch(tmp_path, **{"run.iterations": 60})
    resumed = launch(tmp_path)
    one, other = (
        restore_fields(folder.checkpoints, 90, "params", "moments")
        for folder in (straight, resumed)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert one["moments"]["count"] == 2 * HELD_OUT
    losses = [[row["loss"] for row in read_metrics(f.metrics)] for f in (straight, resumed)]
    assert losses[0] == losses[1]


def test_an_exported_model_is_read_back_as_it_was(straight, tmp_path):
    with pytest.raises(ConfigError, match="is a reward model; nearest valid: reward-model"):
        export(ExportArgs(str(straight.root), str(tmp_path / "lm")))
    export(ExportArgs(str(straight.root), str(tmp_path / "hf"), part="reward-model"))
    ours, theirs = (load_critic(open_source(str(p))) for p in (straight.root, tmp_path / "hf"))
    assert not is_reward_model(open_source(str(tmp_path / "hf")))
    jax.tree.map(np.testing.assert_array_equal, ours.head, theirs.head)
    trunk = {name: x for name, x in ours.trunk.items() if name != "lm_head"}
    jax.tree.map(np.testing.assert_array_equal, trunk, theirs.trunk)
    file = tmp_path / "hf" / "config.json"
    said = json.loads(file.read_text())
    assert said["num_labels" if "num_labels" in said else "id2label"] in (1, {"0": "LABEL_0"})
    file.write_text(json.dumps(said | {"ppo_jax_reward_bias": "high"}))
    with pytest.raises(ConfigError, match="ppo_jax_reward_bias = 'high', expected a number"):
        load_critic(open_source(str(tmp_path / "hf")))


def test_a_reward_model_writes_nothing(straight):
    source = open_source(str(straight.root))
    opened = Opened(CONFIG, source, None, Dataset(["a"], [[97]], {}, {}, [1], 0, 0, ""), [])
    with pytest.raises(ConfigError, match="seed0: a reward model, expected one that writes"):
        prepare(opened)


def test_a_step_that_was_not_evaluated_is_no_reward_model(straight, monkeypatch):
    def as_interrupted(*asked):
        found = restore_fields(*asked)
        found["moments"]["count"] = np.float32(0)
        return found

    monkeypatch.setattr(critics, "restore_fields", as_interrupted)
    with pytest.raises(ConfigError, match="the scores of step 90 are not normalised"):
        load_critic(open_source(str(straight.root)))


def test_scores_are_learnt_too(tmp_path):
    rows = lambda count, seed: [
        {"prompt": "x", "response": text, "score": 3.0 + text.count("a")}
        for text in responses(count, seed)
    ]
    paths = {
        "data.path": write(tmp_path / "scored.jsonl", rows(400, 3)),
        "data.eval_path": write(tmp_path / "scored_held.jsonl", rows(50, 4)),
        "run.keep_best": "-eval/loss",
    }
    folder = launch(tmp_path, **paths)
    last = read_metrics(folder.metrics)[-1]
    assert last["eval/correlation"] > 0.95 and last["eval/score_mean"] > 2.0
    model = load_critic(open_source(str(folder.root)))
    score = lambda text: slow_score(model.config, model.trunk, model.head, [*text.encode(), 257])
    scores_N = np.array([score("x" + text) for text in responses(50, 4)])
    assert scores_N.mean() == pytest.approx(0.0, abs=1e-5)
    assert scores_N.std() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data.eval_path": None}, "data.eval_path=None: a reward model is judged"),
        ({"run.eval_every": None, "run.keep_best": None}, "run.eval_every=None: a reward model"),
        ({"run.keep_best": "eval/brier"}, "=eval/brier: the lowest is its best; .*: -eval/brier "),
        ({"run.keep_best": "eval/error"}, "=eval/error: the lowest is its best; .*: -eval/error "),
        ({"run.checkpoint_every": 50}, "multiple of run.eval_every=30.*nearest valid: 60"),
        ({"rollout.batch_size": 30}, "must be a multiple of 4 responses.*nearest valid: 28"),
        ({"model.critic": "separate"}, "model.critic=separate: not for ppo-jax reward-model"),
        ({"rollout.max_new_tokens": 4}, "pairs.jsonl:.*rollout.max_new_tokens is 4"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_begins(change, said, tmp_path):
    with pytest.raises((ConfigError, DataError), match=said):
        launch(tmp_path, **change)


def test_held_out_rows_are_of_the_same_kind(tmp_path):
    scored = [{"prompt": "x", "response": "a", "score": 1.0}]
    path = write(tmp_path / "scored.jsonl", scored)
    with pytest.raises(ConfigError, match="scored.jsonl: has scored responses, data.path pairs"):
        launch(tmp_path, **{"data.eval_path": path})
    assert config_in(tmp_path).data.eval_path.endswith("held.jsonl")

"""Supervised steps: the loss is the responses' alone and the same however a batch is taken apart;
a run of them resumes bit for bit, and what it leaves is what PPO begins from."""

import functools
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoder_oracle import slow_hidden, slow_logits
from faults.launch import exact
from ppo_jax import manifest
from ppo_jax.config import HParams, replace
from ppo_jax.errors import CheckpointError, ConfigError, DataError
from ppo_jax.experiment import Experiment
from ppo_jax.flags import read_config
from ppo_jax.loading import load_trunk, open_source
from ppo_jax.metrics import read_metrics
from ppo_jax.responses import as_rollout
from ppo_jax.restore import restore_params
from ppo_jax.run_folder import run_folder
from ppo_jax.sft import OBJECTIVE, SFT
from ppo_jax.sharding import put_batch
from ppo_jax.stages import Stages, resolve, run_at
from ppo_jax.train import train
from ppo_jax.tuning import tuning_step, tuning_sums
from ppo_jax.types import Prompts
from step_builders import BASE, EOS, PAD, VOCAB, assert_close, leaves, same, setup_of, start, traced
from tiny_runs import CONFIG as TINY

CONFIG = replace(BASE, **{"ppo.minibatches": 1, "optim.warmup": 2})
RNG = np.random.default_rng(0)
ROWS = [
    (RNG.integers(2, VOCAB, size=n).tolist(), RNG.integers(2, VOCAB, size=m).tolist() + [EOS])
    for n, m in zip(RNG.integers(1, 7, size=8), RNG.integers(0, 6, size=8), strict=True)
]


def oracle(config, params, ids: list[int]):
    return slow_logits(config, params, slow_hidden(config, params, np.asarray(ids)))


def batch_of(setup, rows, order=None):
    """Prompts left-padded to 6 tokens, responses right-padded to 6; a row of None is empty."""
    rows = rows if order is None else [rows[i] for i in order]
    ids_BP = np.full((len(rows), 6), PAD, np.int32)
    for i, (prompt, _) in enumerate(rows):
        ids_BP[i, 6 - len(prompt) :] = prompt
    zeros_B = np.zeros(len(rows), np.int32)
    prompts = Prompts(ids_BP, ids_BP != PAD, zeros_B, zeros_B, {})
    return put_batch(setup.mesh, as_rollout(prompts, [response for _, response in rows], 6))


@functools.cache
def stepped(parts: tuple, devices: int):
    """(setup, state before, state after, metrics) of a step on ROWS."""
    setup = setup_of(replace(CONFIG, **dict(parts)), devices)
    state, frozen = start(setup)
    step = jax.jit(functools.partial(tuning_step, setup, OBJECTIVE))
    after, metrics = step(state, frozen, traced(CONFIG.hparams), batch_of(setup, ROWS))
    return setup, state, after, jax.tree.map(float, metrics)


WHOLE = ()


def test_the_loss_is_the_mean_over_response_tokens_of_a_slow_float64_model():
    setup, state, _, metrics = stepped(WHOLE, 1)
    total, entropy, count = 0.0, 0.0, 0
    params = jax.device_get(state.params["policy"])
    for prompt, response in ROWS:
        logits_SV = oracle(setup.decoder.config, params, prompt + response)
        logprobs_SV = logits_SV - np.logaddexp.reduce(logits_SV, axis=-1, keepdims=True)
        for t, token in enumerate(response):
            logprobs_V = logprobs_SV[len(prompt) + t - 1]
            total -= logprobs_V[token]
            entropy -= np.sum(np.exp(logprobs_V) * logprobs_V)
            count += 1
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["entropy"] == pytest.approx(entropy / count, rel=1e-5)
    # In a stream a row is without its last token, which is read for nothing.
    assert metrics["tokens"] == sum(len(p) + len(r) - 1 for p, r in ROWS)


def test_the_step_is_adams_first_along_the_gradient_of_that_loss():
    setup, state, after, metrics = stepped(WHOLE, 1)
    frozen = start(setup)[1]

    def loss(policy):
        params = {**state.params, "policy": policy}
        sums = tuning_sums(setup, OBJECTIVE, params, frozen, batch_of(setup, ROWS))
        return sums["loss"] / sums["count"]

    policy = state.params["policy"]
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), policy)
    along = lambda size: jax.tree.map(lambda p, d: p + size * d, policy, direction)
    slope = (float(loss(along(1e-3))) - float(loss(along(-1e-3)))) / 2e-3
    grads = jax.grad(loss)(policy)
    dot = sum(
        float(jnp.vdot(g, d))
        for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True)
    )
    assert dot == pytest.approx(slope, rel=2e-2)
    norm = math.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    # Adam's first step: each weight moves by the rate times g / (|g| + eps), of the clipped g.
    rate, clip = CONFIG.hparams.learning_rate / 2, min(1.0, 1.0 / norm)
    assert metrics["lr"] == pytest.approx(rate)
    for p, q, g in zip(*map(jax.tree.leaves, (policy, after.params["policy"], grads)), strict=True):
        g = np.asarray(g, np.float64) * clip
        expected = np.asarray(p, np.float64) - rate * g / (np.abs(g) + CONFIG.optim.eps)
        np.testing.assert_allclose(np.asarray(q), expected, atol=2e-2 * rate)
    assert same(state.params["value"], after.params["value"])


@pytest.mark.parametrize(
    ("parts", "devices"),
    [
        ((("ppo.microbatches", 4),), 1),
        ((("ppo.token_sizes", 3), ("ppo.microbatches", 4)), 1),
        ((("ppo.token_sizes", 2), ("ppo.microbatches", 2)), 2),
        ((("model.scan_layers", "scan"), ("model.logit_chunk", 5)), 4),
    ],
)
def test_parts_streams_and_devices_give_the_same_step(parts, devices):
    _, _, after, metrics = stepped(WHOLE, 1)
    _, _, other, theirs = stepped(parts, devices)
    for name in ("loss", "entropy", "grad_norm", "tokens"):
        assert theirs[name] == pytest.approx(metrics[name], rel=1e-5), name
    if "model.scan_layers" not in dict(parts):
        assert_close(after.params, other.params, rtol=1e-4, atol=2e-5)


def test_empty_rows_and_the_order_of_rows_change_nothing():
    setup, state, _, metrics = stepped(WHOLE, 1)
    frozen = start(setup)[1]
    sums_of = jax.jit(functools.partial(tuning_sums, setup, OBJECTIVE))
    rows = [*ROWS[:5], *(([7, 8], []),) * 3]
    part = sums_of(state.params, frozen, batch_of(setup, rows))
    rest = sums_of(state.params, frozen, batch_of(setup, [*ROWS[5:], *(([9], []),) * 5]))
    whole = sums_of(state.params, frozen, batch_of(setup, ROWS, order=[3, 1, 7, 0, 2, 6, 5, 4]))
    for name in whole:
        assert float(part[name] + rest[name]) == pytest.approx(float(whole[name]), rel=1e-5)
    assert float(whole["loss"] / whole["count"]) == pytest.approx(metrics["loss"], rel=1e-5)


def test_a_step_that_is_not_finite_is_counted_and_not_applied():
    setup, state, _, _ = stepped(WHOLE, 1)
    frozen, hparams = start(setup)[1], traced(HParams(learning_rate=1e-2))
    broken = jax.tree.map(lambda x: x, state)
    broken.params["policy"]["final_norm"]["scale"] = (
        broken.params["policy"]["final_norm"]["scale"].at[0].set(jnp.nan)
    )
    step = jax.jit(functools.partial(tuning_step, setup, OBJECTIVE))
    after, metrics = step(broken, frozen, hparams, batch_of(setup, ROWS))
    assert metrics["update/skipped_nonfinite"] == 1 and metrics["update/nonfinite_in_row"] == 1
    assert leaves(after.opt_state).keys() and same(after.opt_state, state.opt_state)
    assert same(after.params["policy"]["embed"], state.params["policy"]["embed"])


# Runs


RUN = replace(
    TINY,
    **{
        "reward.reference": "fixed",
        "hparams.reference_decay": None,
        "reward.kl_controller": "fixed",
        "hparams.kl_target": None,
        "ppo.minibatches": 1,
        "ppo.token_sizes": 2,
        "run.cell": "sft",
        "run.iterations": 6,
        "run.checkpoint_every": 2,
        "run.eval_every": 2,
        "run.keep": 1,
        "run.keep_best": "-eval/loss",
        "hparams.learning_rate": 1e-2,
    },
)


def write(folder: Path, name: str, rows: list[dict]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def launch(folder: Path, **changes):
    rows = [{"prompt": "abcdef"[n % 6 :], "response": "xyz"[: 1 + n % 3]} for n in range(13)]
    paths = {
        "data.path": write(folder, "given.jsonl", rows),
        "data.eval_path": write(folder, "held.jsonl", [{**r, "prompt": "q"} for r in rows[:11]]),
    }
    config = replace(RUN, **{**paths, "run.dir": str(folder), **changes})
    experiment = Experiment("case", config, lambda prompts, responses: [], Path("case.py"), "")
    train(config, experiment, kind=SFT)
    return run_folder(folder / "case" / config.run.cell / "seed0")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("straight"))


def test_a_run_learns_and_is_judged_on_held_out_rows(straight):
    rows = read_metrics(straight.metrics)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    judged = [row["step"] for row in rows if "eval/loss" in row]
    assert judged == [1, 3, 5]
    # The last one anew: each held-out row by a slow float64 model of the weights that are saved.
    policy = load_trunk(open_source(str(straight.root)))
    total, count = 0.0, 0
    for line in (straight.root.parents[2] / "held.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt, response = list(row["prompt"].encode()), [*row["response"].encode(), 257]
        logits_SV = oracle(RUN.model.shape, policy, prompt + response)
        for t, token in enumerate(response):
            logits_V = logits_SV[len(prompt) + t - 1]
            total -= logits_V[token] - np.logaddexp.reduce(logits_V)
            count += 1
    assert rows[-1]["eval/loss"] == pytest.approx(total / count, rel=1e-4)
    assert rows[-1]["eval/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-3)


def test_stopped_and_resumed_equals_straight(straight, tmp_path):
    half = launch(tmp_path, **{"run.iterations": 3})
    assert len(read_metrics(half.metrics)) == 3
    resumed = launch(tmp_path)
    evaluated = lambda folder: [r for r in exact(folder) if "eval/loss" in r]
    # The end of the half run was judged too; the rest is equal to the bit.
    assert evaluated(straight)[-1]["eval/loss"] == evaluated(resumed)[-1]["eval/loss"]
    assert [r["loss"] for r in exact(straight)] == [r["loss"] for r in exact(resumed)]
    one, other = (restore_params(folder.checkpoints, 6) for folder in (straight, resumed))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_a_stage_and_a_step_of_a_run_are_called(straight):
    config = replace(RUN, **{"run.dir": str(straight.root.parents[2]), "run.cell": "base"})
    assert resolve("@sft", config, Stages("case")) == f"{straight.root}@best"
    assert resolve("elsewhere", config, Stages("case")) == "elsewhere"
    best = manifest.best_step(straight.checkpoints)
    assert run_at(f"{straight.root}@best") == (straight.root, best)
    assert run_at(str(straight.root)) == (straight.root, None)
    assert open_source(f"{straight.root}@best").name == f"{straight.root}@{best}"
    with pytest.raises(CheckpointError, match="no step 5; there: "):
        run_at(f"{straight.root}@5")
    with pytest.raises(
        ConfigError,
        match="no run .*case/reward-model/seed0, and the experiment case has no REWARD_M",
    ):
        resolve("@reward-model", config, Stages("case"))
    with pytest.raises(ConfigError, match="@sfp: no stage .*nearest valid: @sft"):
        resolve("@sfp", config, Stages("case"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ppo.minibatches": 2}, "ppo.minibatches=2: not for ppo-jax sft; nearest valid: 1"),
        ({"model.critic": "separate"}, "model.critic=separate: not for .*nearest valid: shared"),
        ({"hparams.entropy_coef": 0.1}, "hparams.entropy_coef=0.1: not for .*nearest valid: None"),
        ({"data.eval_path": None}, "run.eval_every=2: needs data.eval_path"),
        ({"run.keep_best": "loss"}, "run.keep_best=loss: the lowest is its best; .* valid: -loss "),
        ({"run.keep_best": "eval/perplexity"}, "=eval/perplexity: .* nearest valid: -eval/perpl"),
        ({"rollout.max_new_tokens": 3}, "given.jsonl:3: the response has 4 tokens with its EOS"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_begins(change, said, tmp_path):
    with pytest.raises((ConfigError, DataError), match=said):
        launch(tmp_path, **change)


def test_the_lowest_is_asked_for_by_the_flag_that_the_error_names(tmp_path):
    with pytest.raises(ConfigError, match="run.keep_best=eval/loss: ") as caught:
        launch(tmp_path, **{"run.keep_best": "eval/loss"})
    (flag,) = re.findall(r"\((--.*)\)$", str(caught.value))
    experiment = Experiment("case", RUN, None, Path("case.py"), "")
    assert read_config("sft case", [flag], experiment).run.keep_best == "-eval/loss"

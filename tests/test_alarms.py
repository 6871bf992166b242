"""Alarms: each kind in the iteration that shows it and not at once again; none in a sound run."""

import math
import random
import re
from pathlib import Path

import pytest

from ppo_jax.alarms import IN_A_ROW, QUIET, Alarms
from ppo_jax.config import Config, ModelOptions, replace
from ppo_jax.metrics import read_metrics

ROOT = Path(__file__).parents[1]
FIXED = replace(Config(), **{"model.compute_dtype": "float32"})
ADAPTIVE = replace(FIXED, **{"reward.kl_controller": "adaptive", "hparams.kl_target": 3.0})
NAN, INF = math.nan, math.inf


def sound(step, **changes):
    """Iteration `step` of a run that learns: score 0.18 to 0.65, KL 0 to 3.8 nats."""
    noise = random.Random(step).gauss
    done = min(step / 40, 1.0)
    return {
        "objective/kl": 3.8 * done + noise(0, 0.2) * done,
        "objective/kl_coef": 0.1 - 0.05 * done,
        "objective/entropy": 85 - 10 * done + noise(0, 5),
        "objective/scores": 0.18 + 0.47 * done + noise(0, 0.07),
        "objective/scores_std": 0.35 + noise(0, 0.05),
        "rollout/length_mean": 23.5 + noise(0, 0.5),
        "rollout/ended": max(noise(0.02, 0.04), 0.0),
        "policy/approxkl_avg": 0.0003,
        "val/ratio_first_max_dev": 2e-6,
        "loss/policy_avg": -0.01,
        "loss/value_avg": 0.02,
        "grad_norm/policy": 1.5,
        "grad_norm/value": 0.5,
        "value/explained_variance": 0.2,
        "reward/lexicon": 0.3,
        "update/steps": 4.0,
        "update/skipped_nonfinite": 0.0,
        "update/nonfinite_in_row": 0.0,
        **changes,
    }


def lines(config, rows):
    """Iteration -> what was said in it."""
    alarms = Alarms(config)
    said = {step: alarms.look(step, row) for step, row in enumerate(rows)}
    return {step: found for step, found in said.items() if found}


def after(start, steps, **changes):
    """A sound run whose metrics change from iteration `start` on; functions take the iterations
    gone by since."""

    def row(step):
        if step < start:
            return sound(step)
        made = {k: v(step - start) if callable(v) else v for k, v in changes.items()}
        return sound(step, **{k.replace("__", "/"): v for k, v in made.items()})

    return [row(step) for step in range(steps)]


def only(config, rows, step):
    """The one line, which must come in iteration `step`."""
    found = lines(config, rows)
    assert list(found) == [step], found
    (line,) = found[step]
    assert line.startswith(f"iteration {step}: ") and "\n" not in line and len(line) <= 165
    return line


@pytest.mark.parametrize("config", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_a_run_that_learns_is_left_alone(config):
    penalised = {"reward.drop_truncated": True, "hparams.missing_eos_penalty": 1.0}
    assert lines(config, map(sound, range(300))) == {}
    assert (
        lines(replace(config, **penalised), [sound(i, **{"rollout/ended": 0.1}) for i in range(60)])
        == {}
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments/results").rglob("*.jsonl")), ids=lambda path: path.stem
)
def test_committed_runs_are_left_alone(path):
    target = 1.5 if "target1.5" in path.stem else 3.0
    rows = read_metrics(path)
    assert len(rows) >= 30
    assert lines(replace(ADAPTIVE, **{"hparams.kl_target": target}), rows) == {}


@pytest.mark.parametrize(
    "changes, found, cure",
    [
        ({"reward/lexicon": NAN, "objective/scores": NAN}, "reward/lexicon nan", "reward.on_error"),
        ({"objective/scores_std": INF}, "objective/scores_std inf", "reward.on_error"),
        ({"objective/kl": NAN}, "objective/kl nan", "hparams.learning_rate"),
        (
            {"objective/entropy": INF, "objective/kl": INF},
            "objective/entropy inf",
            "check the weights",
        ),
        ({"value/explained_variance": NAN}, "explained_variance nan", "critic_learning_rate"),
        ({"loss/policy_avg": INF}, "loss/policy_avg inf", "hparams.log_ratio_clamp"),
        ({"loss/value_avg": -INF}, "loss/value_avg -inf", "hparams.critic_learning_rate"),
        ({}, "only the gradient not finite (grad_norm/policy)", "hparams.learning_rate"),
    ],
)
def test_a_skipped_step_names_what_was_not_finite(changes, found, cure):
    # What follows is not finite either, and is not named.
    bad = {"grad_norm/policy": NAN, **changes}
    if changes:
        bad |= {"loss/policy_avg": NAN, "grad_norm/value": NAN, **changes}
    bad |= {"update/skipped_nonfinite": 2.0, "update/nonfinite_in_row": 1.0}
    rows = [*map(sound, range(7)), sound(7, **bad), *map(sound, range(8, 40))]
    line = only(FIXED, rows, 7)
    assert "2 of 4 steps skipped (1 of optim.max_nonfinite=3 in a row)" in line
    assert found in line and cure in line


def test_a_step_skipped_again_is_not_said_again_so_soon():
    # A critic that learns on after the policy's stop: its steps are not among update/steps.
    bad = {"update/skipped_nonfinite": 3.0, "update/steps": 2.0}
    found = lines(FIXED, [sound(i, **bad) for i in range(41)])
    assert list(found) == [0, 20, 40]
    assert "3 of 3 steps" in found[0][0]


def test_adaptive_kl_far_above_its_target():
    # The first iteration far above is the 20th: in the IN_A_ROW-th the coefficient has risen.
    far = after(
        20, 35, objective__kl=lambda n: 16.0 + n, objective__kl_coef=lambda n: 0.1 + 0.01 * n
    )
    line = only(ADAPTIVE, far, 20 + IN_A_ROW - 1)
    assert "KL 20, 7 x hparams.kl_target=3" in line and "hparams.kl_gain" in line
    large = [row | {"policy/approxkl_avg": 0.2} for row in far]
    assert "lower hparams.learning_rate or ppo.epochs" in only(ADAPTIVE, large, 24)
    once = replace(ADAPTIVE, **{"ppo.epochs": 1})
    assert only(once, large, 24).endswith("lower hparams.learning_rate")


@pytest.mark.parametrize(
    "kl, coef",
    [
        (lambda n: 30.0 - n, lambda n: 0.1 + 0.01 * n),  # the controller brings it back
        (lambda n: 16.0 + n, lambda n: 0.1),  # nothing tries to
        (lambda n: 14.9, lambda n: 0.1 + 0.01 * n),
        (lambda n: 20.0 if n % IN_A_ROW else 14.0, lambda n: 0.1 + 0.01 * n),
    ],
    ids=["falling", "coefficient at rest", "below", "not in a row"],
)
def test_adaptive_kl_that_is_no_fault(kl, coef):
    rows = after(20, 32, objective__kl=kl, objective__kl_coef=coef, rollout__length_mean=24.0)
    assert lines(ADAPTIVE, rows) == {}


def test_fixed_kl_that_grows_fast():
    # 0.35 of 3.5 nats is 1.2; by 0.5 nats a token and iteration that takes three iterations.
    grown = dict(rollout__length_mean=24.0, objective__kl=lambda n: 24.0 * 0.5 * (n + 1))
    still = [sound(i, **{"objective/kl": 0.0, "rollout/length_mean": 24.0}) for i in range(20)]
    rows = still + after(20, 30, **grown)[20:]
    line = only(FIXED, rows, 22)
    assert "KL 0 -> 1.5 nats a token" in line and "raise hparams.kl_coef=0.05" in line
    large = [row | {"policy/approxkl_avg": 0.3} for row in rows]
    assert "steps are large (approxkl 0.3)" in only(FIXED, large, 22)
    slow = dict(rollout__length_mean=24.0, objective__kl=lambda n: 24.0 * 0.2 * (n + 1))
    assert lines(FIXED, still + after(20, 60, **slow)[20:]) == {}
    sure = [row | {"objective/entropy": 5.0} for row in still]  # 0.2 nats a token from the start
    near = dict(grown, objective__kl=lambda n: 24.0 * min(0.5 * (n + 1), 1.0))
    assert lines(FIXED, sure + after(20, 60, **near)[20:]) == {}


@pytest.mark.parametrize("batch, kl", [(32, -0.51), (8, -1.1), (2, -4.1)])
def test_a_kl_below_zero(batch, kl):
    config = replace(FIXED, **{"rollout.batch_size": batch})
    line = only(config, after(10, 20, objective__kl=kl), 10 + IN_A_ROW - 1)
    assert "hparams.temperature" in line and f"KL {kl}" in line
    assert lines(config, after(10, 40, objective__kl=0.9 * kl)) == {}  # may be noise
    assert lines(config, after(10, 40, objective__kl=lambda n: kl if n % IN_A_ROW else 0.0)) == {}


@pytest.mark.parametrize(
    "dtype, sound_value, bad",
    [("float32", 9e-4, 2e-3), ("bfloat16", 0.09, 0.2), ("auto", 0.09, 0.2)],
)
def test_a_first_ratio_off_one(dtype, sound_value, bad):
    config = replace(FIXED, **{"model.compute_dtype": dtype})
    assert lines(config, after(0, 30, val__ratio_first_max_dev=sound_value)) == {}
    line = only(config, after(3, 15, val__ratio_first_max_dev=bad), 3)
    assert f"val/ratio_first_max_dev {bad:.2g}" in line and "model.attention=xla" in line
    sampler = replace(config, **{"rollout.old_logprobs": "sampler"})
    assert lines(sampler, after(0, 30, val__ratio_first_max_dev=bad)) == {}


def hacked(**more):
    return after(25, 40, objective__scores=lambda n: 12.0 if n else 6.0, **more)


def test_a_score_that_jumps_with_the_kl():
    line = only(FIXED, hacked(objective__kl=20.0), 27)  # the third iteration up there
    assert "samples.jsonl" in line and "hparams.kl_coef" in line and "length" not in line
    assert "x its spread" in line and "-> 20" in line
    assert lines(FIXED, after(25, 60, objective__scores=12.0, objective__kl=3.0)) == {}
    assert lines(FIXED, after(25, 60, objective__scores=2.0, objective__kl=20.0)) == {}
    short = after(25, 60, objective__scores=lambda n: 12.0 if n in (0, 1, 6) else 0.5)
    assert lines(FIXED, [row | {"objective/kl": 2.0 + i} for i, row in enumerate(short)]) == {}


def test_a_score_that_jumps_with_the_length():
    line = only(FIXED, hacked(rollout__length_mean=60.0), 27)
    assert re.search(r", length 23\.\d -> 60: reward hacking", line)
    assert "length" in only(FIXED, hacked(rollout__length_mean=5.0), 27)


def test_scores_all_alike():
    # float32 leaves such a spread of equal scores.
    alike = {"objective__scores_std": 3e-8, "objective__scores": 0.1}
    line = only(FIXED, after(10, 10 + QUIET, **alike), 10 + IN_A_ROW - 1)
    assert "(0.1)" in line and "reward is constant" in line
    assert len(lines(FIXED, after(10, 20, objective__scores_std=0.0))) == 1
    assert lines(FIXED, after(10, 40, objective__scores_std=1e-4)) == {}
    assert lines(FIXED, after(10, 40, objective__scores_std=lambda n: n % IN_A_ROW)) == {}
    assert lines(replace(FIXED, **{"rollout.batch_size": 1}), after(10, 40, **alike)) == {}


def test_an_entropy_that_is_gone():
    gone = after(10, 10 + QUIET, objective__entropy=2.0)
    line = only(FIXED, gone, 10 + IN_A_ROW - 1)
    assert "nats a token" in line and "hparams.entropy_coef" in line
    assert lines(FIXED, after(10, 60, objective__entropy=6.0)) == {}
    # A response of a token has less entropy than one of 24, and as much a token.
    one = {"objective__kl": 0.1, "objective__entropy": 3.0, "rollout__length_mean": 1.0}
    short = after(10, 60, **one)
    assert lines(FIXED, short) == {}


def test_responses_that_are_all_cut():
    cut = after(10, 10 + QUIET, rollout__ended=0.0)
    assert lines(FIXED, cut) == {}
    dropped = replace(FIXED, **{"reward.drop_truncated": True})
    rows = [row | {"rollout/ended": 0.1} for row in cut[:10]] + cut[10:]
    line = only(dropped, rows, 10 + IN_A_ROW - 1)
    assert "reward.drop_truncated" in line and "rollout.max_new_tokens=24" in line
    punished = replace(FIXED, **{"hparams.missing_eos_penalty": 1.0})
    assert "missing_eos_penalty" in only(punished, rows, 10 + IN_A_ROW - 1)
    assert lines(replace(FIXED, **{"hparams.missing_eos_penalty": 0.0}), rows) == {}


def test_rows_without_a_score():
    assert lines(FIXED, after(5, 30, reward__masked=16.0)) == {}
    line = only(FIXED, after(5, 5 + QUIET, reward__masked=17.0), 5)
    assert "17 of 32 responses without a score (reward/masked)" in line


def test_kinds_are_quiet_each_for_itself():
    bad = after(0, QUIET + 6, val__ratio_first_max_dev=0.5, objective__scores_std=0.0)
    assert list(lines(FIXED, bad)) == [0, IN_A_ROW - 1, QUIET, QUIET + IN_A_ROW - 1]
    twice = [row | {"reward/masked": 30.0} for row in bad[:1]]
    assert len(lines(FIXED, twice)[0]) == 2


@pytest.mark.parametrize("odd", [NAN, INF, -INF, 0, 0.0, 3e38, -3e38, None, "nan", True])
def test_no_number_breaks_a_look(odd):
    for config in (FIXED, ADAPTIVE, replace(FIXED, **{"model": ModelOptions()})):
        alarms = Alarms(config)
        for step in range(60):
            row = sound(step)
            for name in random.Random(step).sample(sorted(row), k=step % len(row)):
                row[name] = odd
            assert all(isinstance(line, str) for line in alarms.look(step, row))
        for name in sound(0):  # each alone, for long
            assert isinstance(lines(config, [sound(i, **{name: odd}) for i in range(20)]), dict)


def test_missing_metrics_say_nothing():
    assert lines(FIXED, [{}] * 40) == {}
    for name in sound(0):
        rows = [{k: v for k, v in sound(i).items() if k != name} for i in range(40)]
        assert lines(FIXED, rows) == {}


def test_a_gap_breaks_what_must_last():
    rows = after(10, 10 + IN_A_ROW, objective__scores_std=0.0)
    rows[12] = sound(12, **{"objective/scores_std": NAN})
    assert lines(FIXED, rows) == {}

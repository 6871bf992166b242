"""PPO on control tasks: the rows that the update learns from, the networks, and what is written."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from control_parts import classic, gymnasium_own, networks, settings, study, task, training
from ppo_jax.errors import ConfigError

B, T, GAMMA, LAM = 3, 12, 0.9, 0.8
SMALL = settings.Settings(
    seeds=2, environments=2, horizon=8, iterations=2, hidden=(4,), epochs=1, minibatches=2,
    value_clip=None, entropy_coef=None, test_episodes=2, gymnasium=1,
)  # fmt: skip


def some_params(seed=0, critic="separate", of=classic.CARTPOLE):
    params = networks.init_params(of, (6, 5), critic, jax.random.key(seed))
    noise = lambda x: x + 0.5 * jax.random.normal(jax.random.key(seed + 9), x.shape)
    return jax.tree.map(noise, params)


def slow_value(params, seen_F) -> float:
    """The critic by NumPy in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = np.asarray(seen_F, np.float64)
    for layer in params["value"].get("trunk", params["policy"]["trunk"]):
        x = np.tanh(x @ layer["w"] + layer["b"])
    return float((x @ params["value"]["head"]["w"] + params["value"]["head"]["b"])[0])


def some_steps(params):
    """Steps whose episodes end, or are cut off, in the middle of rows and at their ends."""
    rng = np.random.default_rng(1)
    seen = rng.normal(size=(B, T, 4)).astype(np.float32)
    kind = rng.choice(3, p=[0.6, 0.2, 0.2], size=(B, T))  # goes on, ends, is cut off
    kind[:, -1] = [0, 1, 2]
    after = np.concatenate([seen[:, 1:], rng.normal(size=(B, 1, 4))], axis=1)
    after = np.where(kind[..., None] > 0, rng.normal(size=after.shape), after).astype(np.float32)
    reward = rng.normal(size=(B, T)).astype(np.float32)
    action = rng.integers(2, size=(B, T))
    logprobs = rng.normal(size=(B, T)).astype(np.float32)
    outcome = task.Outcome(reward, after, kind == 1, kind == 2, np.zeros((B, T), np.float32))
    return jax.tree.map(jnp.asarray, training.Steps(seen, action, logprobs, outcome))


@pytest.mark.parametrize("critic, scale, kl_coef", [("separate", 1.0, 0.0), ("shared", 0.1, 0.7)])
def test_advantages_are_the_float64_sum_within_each_episode(critic, scale, kl_coef):
    """A_t = sum over the rest of its episode of (gamma lam)^k delta; delta has V of the state after
    the step, but for an episode's true end."""
    params, reference = some_params(critic=critic), some_params(seed=5)
    steps = some_steps(params)
    plain = dataclasses.replace(SMALL, critic=critic, gamma=GAMMA, lam=LAM, whiten_advantages=False)
    config = settings.config_of(plain)
    hparams = dataclasses.replace(config.hparams, kl_coef=kl_coef)
    shape = training.Shape(B, T, (6, 5), scale)
    rows = jax.jit(training.training_rows, static_argnums=(0, 1))(
        config, shape, hparams, params, reference if kl_coef else None, steps
    )
    outcome = jax.tree.map(np.asarray, steps.outcome_BT)
    expected = np.zeros((B, T))
    values = np.array([[slow_value(params, x) for x in row] for row in np.asarray(steps.seen_BTF)])
    nexts = np.array([[slow_value(params, x) for x in row] for row in outcome.next_seen_F])
    reward = scale * outcome.reward.astype(np.float64)
    for b, t in np.ndindex(B, T):
        logits = gymnasium_own.policy_output(
            jax.tree.map(np.asarray, reference["policy"]), steps.seen_BTF[b, t]
        )
        ref = logits[int(steps.action_BT[b, t])] - np.log(np.exp(logits).sum())
        reward[b, t] -= kl_coef * (float(steps.logprobs_BT[b, t]) - ref)
    delta = reward + GAMMA * np.where(outcome.terminated, 0.0, nexts) - values
    over = outcome.terminated | outcome.truncated
    for b, t in np.ndindex(B, T):
        end = t + int(np.argmax(over[b, t:])) if over[b, t:].any() else T - 1
        powers = (GAMMA * LAM) ** np.arange(end - t + 1)
        expected[b, t] = (powers * delta[b, t : end + 1]).sum()
    assert over[:, :-1].sum() > 8
    advantages = np.asarray(rows.advantages_BT).reshape(B, T)
    np.testing.assert_allclose(advantages, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(
        np.asarray(rows.returns_BT).reshape(B, T), expected + values, rtol=2e-4, atol=2e-4
    )
    assert all(x.shape[:2] == (B * T, 1) for x in jax.tree.leaves(rows))


def test_whitened_advantages():
    config = settings.config_of(SMALL)
    params = some_params()
    rows = training.training_rows(
        config, training.Shape(B, T, (6, 5)), config.hparams, params, None, some_steps(params)
    )
    advantages = np.asarray(rows.advantages_BT, np.float64)
    assert abs(advantages.mean()) < 1e-6 and advantages.std(ddof=1) == pytest.approx(1, abs=1e-5)


def test_distributions():
    seen_F = jnp.array([0.3, -0.2, 0.5])
    policy = some_params(of=classic.PENDULUM)["policy"]
    mean = gymnasium_own.policy_output(jax.tree.map(np.asarray, policy), seen_F)[0]
    std = np.exp(float(policy["log_std"][0]))
    action, logprob = networks.draw(classic.PENDULUM, policy, seen_F, jax.random.key(0))
    z = (float(action[0]) - mean) / std
    density = np.exp(-0.5 * z**2) / (std * np.sqrt(2 * np.pi))
    assert float(logprob) == pytest.approx(np.log(density), abs=1e-5)
    again, entropy = networks.logprob_and_entropy(policy, seen_F, action)
    assert float(again) == pytest.approx(float(logprob), abs=1e-6)
    assert float(entropy) == pytest.approx(0.5 * np.log(2 * np.pi * np.e * std**2), abs=1e-5)
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn, _ = jax.vmap(lambda key: networks.draw(classic.PENDULUM, policy, seen_F, key))(keys)
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.04 * std)
    assert float(drawn.std()) == pytest.approx(std, rel=0.03)
    best = networks.likeliest(classic.PENDULUM, policy, seen_F)
    assert float(best[0]) == pytest.approx(mean, abs=1e-5)

    seen_F, policy = jnp.array([0.3, -0.2, 0.5, 1.0]), some_params()["policy"]
    logits = gymnasium_own.policy_output(jax.tree.map(np.asarray, policy), seen_F)
    p = np.exp(logits) / np.exp(logits).sum()
    logprob, entropy = networks.logprob_and_entropy(policy, seen_F, jnp.int32(1))
    assert float(logprob) == pytest.approx(np.log(p[1]), abs=1e-5)
    assert float(entropy) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)
    drawn, _ = jax.vmap(lambda key: networks.draw(classic.CARTPOLE, policy, seen_F, key))(keys)
    assert float((drawn == 1).mean()) == pytest.approx(p[1], abs=0.015)
    assert int(networks.likeliest(classic.CARTPOLE, policy, seen_F)) == np.argmax(p)


def test_weights_are_orthogonal_with_the_gains_of_baselines():
    params = networks.init_params(classic.CARTPOLE, (64, 64), "separate", jax.random.key(0))
    for group, gain in (("policy", 0.01), ("value", 1.0)):
        head = np.asarray(params[group]["head"]["w"], np.float64)
        np.testing.assert_allclose(head.T @ head, gain**2 * np.eye(head.shape[1]), atol=1e-5)
        first, second = (np.asarray(layer["w"], np.float64) for layer in params[group]["trunk"])
        np.testing.assert_allclose(first @ first.T, 2 * np.eye(4), atol=1e-5)
        np.testing.assert_allclose(second.T @ second, 2 * np.eye(64), atol=1e-5)
    shared = networks.init_params(classic.CARTPOLE, (8,), "shared", jax.random.key(0))
    assert shared["value"].keys() == {"head"}


def test_a_study_is_written_down(tmp_path):
    """Two iterations on a continuous task, judged in Gymnasium's own environment too."""
    out = tmp_path / "some" / "pendulum.json"
    study.study(classic.PENDULUM, dataclasses.replace(SMALL, out=out), "pendulum")
    result = json.loads(out.read_text())
    assert result["task"] == "Pendulum-v1" and result["environment_steps"] == 32
    assert result["settings"]["horizon"] == 8
    assert len(result["returns"]) == 3  # in training no episode came to its end
    for label, numbers in result["returns"].items():
        assert len(numbers["by_seed"]) == 2 and -2000 < numbers["mean"] < -100, label
    assert result["update"]["ratio_max_dev_first"] <= 1e-5
    assert {"git", "jax", "platform"} <= result.keys()
    assert result["curves"]["return_by_seed"] == [[None, None]] * 2


def test_the_shortest_run_takes_time():
    """Steps a second are had from the seconds, which are rounded where they are shown alone."""
    result, seconds = study.timed(lambda x: x + 1, jnp.float32(1))
    assert result == 2 and min(seconds["compile"], seconds["run"]) > 0


def test_what_is_not_finite_ends_with_code_3(capsys):
    run = lambda: study.study(classic.PENDULUM, dataclasses.replace(SMALL, learning_rate=1e38), "")
    assert study.ends_in_a_line(run) == 3
    assert "learning_rate=1e+38: " in capsys.readouterr().err


def test_returns_by_hand():
    history = {
        "episodes": np.array([[0, 60, 30, 0, 70]]),
        "returns": np.array([[0.0, 600.0, 600.0, 0.0, 2800.0]]),
    }
    assert study.last_episodes(history).tolist() == [34.0]  # the last three stretches: 3400 / 100
    found = study.curves(history)
    assert found == {"iteration": [1, 2, 3, 4, 5], "return_by_seed": [[None, 10, 20, None, 40]]}
    numbers = study.summary(np.array([1.0, 2.0, 3.0]))
    assert numbers["mean"] == 2 and numbers["min"] == 1 and numbers["max"] == 3
    half = 4.302653 / np.sqrt(3)  # Student's t of two degrees of freedom
    np.testing.assert_allclose(numbers["ci95"], [2 - half, 2 + half], atol=5e-3)
    assert study.summary(np.array([1.0]))["ci95"] is None


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--minibatches", "3"], "ppo.minibatches=3: must divide rollout.batch_size=512"),
        (["--seeds", "0"], "seeds=0: must be in [1, inf)"),
        (["--gamma", "1.5"], "hparams.gamma=1.5: must be in"),
        (["--hidden", "0"], "hidden=(0,): must be in [1, inf)"),
    ],
)
def test_a_bad_flag_is_one_line_and_code_2(flags, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cartpole.py", *flags])
    assert study.main(classic.CARTPOLE, settings.Settings(), "") == ConfigError.exit_code == 2
    error = capsys.readouterr().err
    assert error.startswith("control: error: ") and says in error and error.count("\n") == 1


def test_an_unknown_flag_ends_with_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cartpole.py", "--learning_rte", "1"])
    with pytest.raises(SystemExit) as caught:
        study.main(classic.CARTPOLE, settings.Settings(), "")
    assert caught.value.code == 2 and "--learning_rate" in capsys.readouterr().err

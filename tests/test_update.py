"""The update on a policy of a few numbers: gradients against float64, and what each option does."""

import copy

import jax
import numpy as np
import pytest

from loss_oracle import finite_difference
from ppo_jax.config import replace
from ppo_jax.update import epoch_plan, trained_groups
from step_builders import assert_close, same
from toy_policy import BASE, B, T, make_params, make_rows, program, slow_loss, static, update

INF = float("inf")
SEPARATE = replace(BASE, **{"model.critic": "separate"})


def config_of(base=BASE, **changes):
    return replace(base, **{name.replace("__", "."): value for name, value in changes.items()})


def params_and_rows(config, spread=0.3):
    params = make_params(config.model.critic)
    return params, make_rows(params, spread=spread)


def counts(opt_state):
    return {group: int(state.count) for group, state in opt_state.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__critic": "separate", "ppo__aggregate": "seq-mean", "ppo__microbatches": 2},
        {"reward__kl_in": "loss", "reward__kl_estimator": "k2", "ppo__aggregate": "seq-sum-norm"},
        {"reward__kl_in": "loss", "reward__kl_estimator": "k3", "hparams__entropy_coef": 0.3},
        {"reward__kl_in": "loss", "reward__kl_estimator": "full", "hparams__dual_clip": 1.5},
    ],
)
def test_gradients_match_finite_differences_in_float64(changes):
    config = config_of(hparams__max_grad_norm=None, hparams__vf_coef=0.7, **changes)
    params, rows = params_and_rows(config)
    _, grads, metrics = update(config, params, rows, "sum", kl_coef=0.4)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for group, name in (("policy", "u"), ("policy", "w"), ("value", "w")):

        def loss(x, group=group, name=name):
            moved = copy.deepcopy(wide)
            moved[group][name] = x
            return slow_loss(config, moved, rows, 0.4)

        expected = finite_difference(loss, wide[group][name])
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(grads[group][name], expected, rtol=1e-4, atol=2e-6)
    norm = np.sqrt(sum((g**2).sum() for g in grads["policy"].values()))
    np.testing.assert_allclose(metrics["grad_norm/policy"], norm, rtol=1e-5)
    assert metrics["ran"] == 1 and metrics["skipped"] == 0


@pytest.mark.parametrize("aggregate", ["token-mean", "seq-mean"])
def test_microbatches_change_nothing(aggregate):
    results = []
    for count in (1, 2, 4) if aggregate == "token-mean" else (1, 4):
        config = config_of(
            ppo__microbatches=count, ppo__minibatches=2, ppo__aggregate=aggregate, ppo__epochs=2
        )
        results.append(update(config, *params_and_rows(config)))
    for other in results[1:]:
        assert_close(other, results[0], rtol=2e-5, atol=1e-6)


def test_an_epoch_reads_every_row_once():
    """With the parameters held still, minibatch gradients sum to those of the whole batch."""
    changes = {"ppo__aggregate": "seq-sum-norm", "hparams__max_grad_norm": None}
    whole, parts = config_of(**changes), config_of(ppo__minibatches=4, ppo__epochs=3, **changes)
    whole, parts = (replace(c, **{"hparams.vf_coef": 0.0}) for c in (whole, parts))
    params, rows = params_and_rows(whole)
    once = update(whole, params, rows, "sum")[1]["policy"]
    for seed in range(5):
        often = update(parts, params, rows, "sum", seed=seed)[1]["policy"]
        assert_close(often, jax.tree.map(lambda g: 12 * g, once), rtol=1e-4, atol=1e-5)


def test_one_pass_has_nothing_to_clip():
    """Ratios are 1 while nothing has been learnt yet, so the clip cannot matter; later it does."""
    for epochs, equal in ((1, True), (5, False)):
        config = config_of(ppo__epochs=epochs, hparams__learning_rate=0.2)
        params, rows = params_and_rows(config, spread=0.0)
        free = config_of(config, hparams__clip_low=INF, hparams__clip_high=INF)
        clipped, unclipped = update(config, params, rows), update(free, params, rows)
        assert same(clipped[0], unclipped[0]) == equal
        assert (clipped[2]["clipfrac"] == 0) == equal and unclipped[2]["clipfrac"] == 0
        assert clipped[2]["ratio_max_dev_first"] < 1e-5


@pytest.mark.parametrize(
    "critic, epochs, value_epochs, plan",
    [
        ("shared", 2, None, [(("policy", "value"), 2)]),
        ("shared", 1, 3, [(("policy", "value"), 1), (("value",), 2)]),
        ("separate", 3, 1, [(("policy", "value"), 1), (("policy",), 2)]),
    ],
)
def test_epochs_of_policy_and_critic(critic, epochs, value_epochs, plan):
    config = config_of(
        model__critic=critic, ppo__epochs=epochs, ppo__value_epochs=value_epochs, ppo__minibatches=2
    )
    assert epoch_plan(config) == plan
    params, rows = params_and_rows(config)
    _, opt_state, metrics = update(config, params, rows)
    steps = {"policy": 0, "value": 0}
    for parts, passes in plan:
        for group in trained_groups(config, parts):
            steps[group] += 2 * passes
    expected = {
        ("shared", 2): {"policy": 4, "value": 4},
        ("shared", 1): {"policy": 6, "value": 6},  # the value loss trains the shared trunk too
        ("separate", 3): {"policy": 6, "value": 2},
    }[critic, epochs]
    assert counts(opt_state) == steps == expected
    assert metrics["ran"] == 2 * sum(passes for _, passes in plan)


def test_critic_free_estimators_have_no_value_loss():
    config = config_of(ppo__advantage="reinforce", ppo__epochs=3)
    assert epoch_plan(config) == [(("policy",), 3)]
    params, rows = params_and_rows(config)
    moved, opt_state, metrics = update(config, params, rows)
    assert same(moved["value"], params["value"]) and counts(opt_state) == {"policy": 3, "value": 0}
    assert "value_loss" not in metrics and not same(moved["policy"], params["policy"])


def test_more_value_epochs_leave_a_separate_policy_alone():
    few, many = (config_of(SEPARATE, ppo__value_epochs=n, ppo__epochs=2) for n in (None, 5))
    params, rows = params_and_rows(few)
    one, other = update(few, params, rows), update(many, params, rows)
    assert_close(one[0]["policy"], other[0]["policy"], rtol=1e-6, atol=1e-7)
    assert np.abs(one[0]["value"]["w"] - other[0]["value"]["w"]).max() > 0.01


@pytest.mark.parametrize("field", ["advantages_BT", "returns_BT", "old_logprobs_BT"])
@pytest.mark.parametrize("bad", [np.nan, -INF])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_nothing_moves_where_a_loss_is_not_finite(field, bad, critic):
    """Not even the group that the bad number does not reach, nor Adam's count."""
    config = config_of(model__critic=critic, ppo__epochs=2)
    params, rows = params_and_rows(config)
    _, warm, _ = update(config, params, rows)  # moments that are not zero
    spoilt = np.array(getattr(rows, field))
    spoilt[3, 0] = bad
    spoilt = rows._replace(**{field: spoilt})
    moved, opt_state, metrics = update(config, params, spoilt, opt_state=warm)
    assert same(moved, params) and same(opt_state, warm)
    assert metrics["skipped"] == 2 and metrics["ran"] == 2


def test_one_bad_row_costs_its_own_minibatch():
    config = config_of(ppo__minibatches=4)
    params, rows = params_and_rows(config)
    spoilt = np.array(rows.advantages_BT)
    spoilt[3, 0] = np.nan
    for seed in range(6):
        moved, opt_state, metrics = update(
            config, params, rows._replace(advantages_BT=spoilt), seed=seed
        )
        assert metrics["skipped"] == 1 and metrics["ran"] == 4
        assert counts(opt_state) == {"policy": 3, "value": 3}
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(moved))


def test_what_is_masked_is_never_read():
    config = config_of(reward__kl_in="loss", reward__kl_estimator="k2", ppo__epochs=4)
    params, rows = params_and_rows(config)
    rows.mask_BT[5:] = 0
    expected = update(config, params, rows, kl_coef=0.1)
    fill = lambda x: np.where(rows.mask_BT > 0, x, np.nan)
    dirty = rows._replace(**{name: fill(x) for name, x in rows._asdict().items() if "_BT" in name})
    dirty = dirty._replace(mask_BT=rows.mask_BT)
    assert same(update(config, params, dirty, kl_coef=0.1), expected)


def test_a_batch_without_tokens_moves_nothing():
    params, rows = params_and_rows(BASE)
    moved, _, metrics = update(BASE, params, rows._replace(mask_BT=np.zeros((B, T))), "sgd")
    assert same(moved, params) and metrics["skipped"] == 0 and metrics["policy_loss"] == 0


def test_target_kl_stops_on_the_device():
    """Full-batch steps from ratio 1: the first is applied, the second sees the KL and is not."""
    one, five = (config_of(ppo__epochs=n, hparams__target_kl=INF) for n in (1, 5))
    params, rows = params_and_rows(one, spread=0.0)
    after_one = update(one, params, rows)
    assert after_one[2]["ran"] == 1
    free = update(five, params, rows)
    assert free[2]["ran"] == 5 and counts(free[1]) == {"policy": 5, "value": 5}
    target = float(free[2]["approxkl"]) / 100
    stopped = update(config_of(five, hparams__target_kl=target), params, rows)
    assert stopped[2]["ran"] == 2 and counts(stopped[1]) == {"policy": 1, "value": 1}
    assert_close(stopped[0], after_one[0], rtol=1e-5, atol=1e-6)
    away, far_rows = params_and_rows(five)  # the very first step is past the target
    halted = update(config_of(five, hparams__target_kl=target), away, far_rows)
    assert halted[2]["ran"] == 1 and same(halted[0], away)


def test_a_separate_critic_goes_on_after_the_stop():
    config = config_of(SEPARATE, ppo__epochs=2, ppo__value_epochs=6, hparams__target_kl=1e-9)
    params, rows = params_and_rows(config)
    moved, opt_state, metrics = update(config, params, rows)
    assert same(moved["policy"], params["policy"]) and metrics["ran"] == 5
    assert counts(opt_state) == {"policy": 0, "value": 6}


def test_target_kl_is_half_as_far_again():
    config = config_of(ppo__epochs=1, hparams__target_kl=1.0)
    params, rows = params_and_rows(config)
    approxkl = float(update(config_of(config, hparams__target_kl=INF), params, rows)[2]["approxkl"])
    for factor, applied in ((1.01, True), (0.99, False)):
        changed = config_of(config, hparams__target_kl=factor * approxkl / 1.5)
        assert same(update(changed, params, rows)[0], params) != applied


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_critic_warmup_holds_the_policy(critic):
    config = config_of(model__critic=critic, ppo__epochs=2)
    params, rows = params_and_rows(config)
    moved, opt_state, metrics = update(config, params, rows, freeze=True)
    assert same(moved["policy"], params["policy"]) and not same(moved["value"], params["value"])
    assert counts(opt_state) == {"policy": 0, "value": 2}
    assert metrics["ran"] == 2 and metrics["skipped"] == 0


def test_learning_rates_of_the_two_groups():
    both = config_of(SEPARATE, hparams__critic_learning_rate=0.05, ppo__epochs=2)
    params, rows = params_and_rows(both)
    plain = update(config_of(SEPARATE, ppo__epochs=2), params, rows)
    assert_close(update(both, params, rows)[0], plain[0], rtol=1e-6, atol=1e-7)
    still = update(config_of(both, hparams__critic_learning_rate=0.0), params, rows)
    assert same(still[0]["value"], params["value"])
    assert_close(still[0]["policy"], plain[0]["policy"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_gradient_clip(critic):
    """One norm over everything on a shared trunk, one a group where the critic is apart."""
    free = config_of(model__critic=critic, hparams__max_grad_norm=1e9, hparams__learning_rate=1.0)
    params, rows = params_and_rows(free)
    rows = rows._replace(returns_BT=rows.returns_BT + 50)
    step = lambda config: jax.tree.map(
        lambda p, q: np.asarray(p) - q, params, update(config, params, rows, "sgd")[0]
    )
    norm = lambda tree: float(np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree))))
    grads, clipped = step(free), step(config_of(free, hparams__max_grad_norm=0.05))
    groups = [{"policy", "value"}] if critic == "shared" else [{"policy"}, {"value"}]
    for group in groups:
        whole, short = ({g: tree[g] for g in group} for tree in (grads, clipped))
        assert norm(whole) > 0.05
        np.testing.assert_allclose(norm(short), 0.05, rtol=1e-3)
        factor = 0.05 / norm(whole)
        scaled = jax.tree.map(lambda g, by=factor: by * g, whole)
        assert_close(short, scaled, rtol=1e-3, atol=1e-5)


def test_kl_in_the_loss_pulls_towards_the_reference():
    config = config_of(reward__kl_in="loss", reward__kl_estimator="k2", ppo__epochs=4)
    params, rows = params_and_rows(config)
    losses = [update(config, params, rows, kl_coef=c)[2]["kl_loss"] for c in (0.0, 1.0, 10.0)]
    assert losses[0] > losses[1] > losses[2]


def test_entropy_bonus_raises_entropy():
    config = config_of(hparams__entropy_coef=0.0, ppo__epochs=5)
    params, rows = params_and_rows(config)
    entropies = [
        update(config_of(config, hparams__entropy_coef=c), params, rows)[2]["entropy"]
        for c in (0.0, 0.5, 5.0)
    ]
    assert entropies[0] < entropies[1] < entropies[2]


def test_no_hyper_parameter_recompiles():
    every = dict.fromkeys(("dual_clip", "log_ratio_clamp", "entropy_coef", "target_kl"), 2.0)
    config = config_of(SEPARATE, **{f"hparams__{name}": value for name, value in every.items()})
    config = config_of(config, hparams__critic_learning_rate=0.01)
    params, rows = params_and_rows(config)
    update(config, params, rows)
    compiled = program(static(config), "adam")
    before = compiled._cache_size()
    for name in ("learning_rate", "clip_low", "clip_high", "value_clip", "vf_coef", *every):
        for value in (0.3, INF):
            update(config_of(config, **{f"hparams__{name}": value}), params, rows)
    update(config, params, rows, kl_coef=3.0, freeze=True, seed=9)
    assert compiled._cache_size() == before == 1

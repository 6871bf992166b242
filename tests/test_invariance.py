"""What must not matter: padding, the split into microbatches, the devices, the order of rows."""

import jax
import numpy as np
import pytest

from ppo_jax.config import replace
from step_builders import BASE, assert_close, case, prompts_at

WHOLE = replace(BASE, **{"ppo.minibatches": 1, "hparams.entropy_coef": 0.01})
ORDERS = [np.random.default_rng(seed).permutation(8) for seed in range(4)]
# Gaps between two roundings of the same number: relative to nothing.
ROUNDING = ("rollout/logprob_gap", "rollout/logprob_gap_max", "val/ratio_first_max_dev")


def iteration(config, devices=1, **options):
    built = case(config, devices)
    prompts = prompts_at(built.setup, **options)
    state, metrics, rollout, scores_B = built.program(
        built.state, built.frozen, built.hparams, prompts
    )
    metrics = {name: metric for name, metric in metrics.items() if name not in ROUNDING}
    return jax.device_get((state._replace(key=None), metrics, rollout, scores_B))


@pytest.fixture(scope="module")
def plain():
    return iteration(WHOLE)


def assert_same_iteration(other, plain, order=slice(None)):
    """Same tokens; parameters, moments and metrics to float tolerance."""
    state, metrics, rollout, scores_B = plain
    np.testing.assert_array_equal(other[2].response_ids_BT, rollout.response_ids_BT[order])
    np.testing.assert_allclose(other[2].logprobs_BT, rollout.logprobs_BT[order], atol=2e-5)
    np.testing.assert_allclose(other[3], scores_B[order], rtol=1e-5, atol=1e-6)
    assert_close(other[1], metrics, rtol=2e-5, atol=1e-5)
    assert_close(other[0].params, state.params, rtol=1e-5, atol=2e-5)
    assert_close(other[0].opt_state, state.opt_state, rtol=1e-5, atol=1e-5)
    assert_close(*(s._replace(params=None, opt_state=None) for s in (other[0], state)))


def test_more_padding(plain):
    assert_same_iteration(iteration(WHOLE, width=9), plain)


def test_another_split_into_microbatches(plain):
    assert_same_iteration(iteration(replace(WHOLE, **{"ppo.microbatches": 4})), plain)


@pytest.mark.parametrize("devices, count", [(2, 2), (4, 1)])
def test_another_number_of_devices(plain, devices, count):
    assert len(jax.devices()) >= devices
    config = replace(WHOLE, **{"ppo.microbatches": count})
    assert_same_iteration(iteration(config, devices), plain)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_another_order_of_rows(plain, order):
    assert_same_iteration(iteration(WHOLE, order=order), plain, order)

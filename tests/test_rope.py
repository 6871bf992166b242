"""Positions, rotary wavelengths and the rotation itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import tiny_model
from decoder_oracle import slow_frequencies
from ppo_jax.config import RopeScaling
from ppo_jax.rope import frequencies, positions_from_mask, rotate, rotations

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 16)
SCALINGS = [
    None,
    LLAMA3,
    RopeScaling(),
    RopeScaling("llama3", 32.0, 1.5, 6.0, 64),
    RopeScaling("linear", 8.0),
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head_dim, theta", [(8, 10000.0), (16, 500000.0), (64, 1000.0)])
def test_rope_matches_the_published_formula(scaling, head_dim, theta):
    config = tiny_model(head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    expected = slow_frequencies(config)
    np.testing.assert_allclose(frequencies(config), expected, rtol=3e-6)
    positions_BS = np.random.default_rng(0).integers(0, 500, size=(3, 11))
    both = rotations(config, jnp.asarray(positions_BS))
    angles_BSR = positions_BS[..., None] * expected
    assert both.local is both.full  # one theta, one set of angles
    cos_BSR, sin_BSR = np.cos(angles_BSR), np.sin(angles_BSR)
    np.testing.assert_allclose(both.full.cos, np.concatenate([cos_BSR, cos_BSR], -1), atol=2e-4)
    np.testing.assert_allclose(both.full.sin, np.concatenate([-sin_BSR, sin_BSR], -1), atol=2e-4)


def test_local_layers_have_a_theta_of_their_own_and_no_scaling():
    config = tiny_model(
        rope_theta=1e6, rope_scaling=RopeScaling("linear", 8.0), local_rope_theta=100.0
    )
    for local in (False, True):
        expected = slow_frequencies(config, local)
        np.testing.assert_allclose(frequencies(config, local=local), expected, rtol=3e-6)
    assert rotations(tiny_model(position="learned"), jnp.zeros((1, 1))) is None


@pytest.mark.parametrize("rotary_dim", [2, 4, 8, None])
def test_rotation_turns_pairs_and_leaves_the_rest(rotary_dim):
    """As complex numbers; the dot product of two turned vectors knows only their distance."""
    config, R = tiny_model(rotary_dim=rotary_dim), rotary_dim or 8
    x_BSHK = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    positions_BS = jnp.asarray([[0, 1, 2, 3, 9], [0, 0, 0, 1, 2]])
    turned = np.asarray(rotate(x_BSHK, rotations(config, positions_BS).full))
    pairs = lambda x: np.asarray(x)[..., : R // 2] + 1j * np.asarray(x)[..., R // 2 : R]
    angles = np.asarray(positions_BS)[:, :, None, None] * slow_frequencies(config)
    np.testing.assert_allclose(pairs(turned), pairs(x_BSHK) * np.exp(1j * angles), atol=1e-5)
    np.testing.assert_array_equal(turned[..., R:], x_BSHK[..., R:])
    again = np.asarray(rotate(x_BSHK, rotations(config, positions_BS + 31).full))
    dots = lambda y: np.einsum("bshk,bthk->bhst", y, y)
    np.testing.assert_allclose(dots(turned), dots(again), atol=1e-4)


def test_the_rope_cases_reach_all_three_branches():
    config = tiny_model(
        head_dim=64, rope_theta=1000.0, rope_scaling=RopeScaling("llama3", 32.0, 1.5, 6.0, 64)
    )
    plain = slow_frequencies(dataclasses.replace(config, rope_scaling=None))
    ratio = slow_frequencies(config) / plain
    assert np.any(ratio == 1) and np.any(np.isclose(ratio, 1 / 32))
    assert np.any((ratio > 1.01 / 32) & (ratio < 0.99))


def test_positions_count_real_tokens():
    mask_BS = jnp.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 1]], bool)
    positions_BS = positions_from_mask(mask_BS)
    assert positions_BS.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 0, 0, 0]]

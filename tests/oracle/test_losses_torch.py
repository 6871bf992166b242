"""Losses, whitening, GAE and KL estimates against torch in float64, written as TRL writes them.

(`trl/experimental/ppo/ppo_trainer.py` at commit 0062ee1; gradients by torch's autograd. Means of
the approximate KL and of the ratio are over real tokens here, in TRL over the padding too.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppo_jax.gae import compute_gae
from ppo_jax.losses import policy_loss, value_loss
from ppo_jax.masked import masked_whiten
from ppo_jax.reward import kl_estimate

torch.set_num_threads(1)
B, T = 7, 9
SEEDS = range(12)
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def torch_mean(x, mask):
    return (x * mask).sum() / mask.sum()


def torch_whiten(x, mask, shift_mean=True):
    mean = torch_mean(x, mask)
    count = mask.sum()
    variance = torch_mean((x - mean) ** 2, mask) * count / (count - 1)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return white if shift_mean else white + mean


def torch_gae(rewards, values, gamma, lam):
    last, backwards = 0.0, []
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t < rewards.shape[1] - 1 else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        last = delta + gamma * lam * last
        backwards.append(last)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


def torch_policy_loss(new, old, advantages, mask, clip):
    log_ratio = new - old
    ratio = torch.exp(log_ratio)
    plain = -advantages * ratio
    clipped = -advantages * torch.clamp(ratio, 1.0 - clip, 1.0 + clip)
    loss = torch_mean(torch.max(plain, clipped), mask)
    metrics = {
        "clipfrac": torch_mean((clipped > plain).double(), mask),
        "approxkl": 0.5 * torch_mean(log_ratio**2, mask),
        "ratio": torch_mean(ratio, mask),
    }
    return loss, metrics


def torch_value_loss(values, old, returns, mask, clip):
    near = torch.clamp(values, old - clip, old + clip)
    plain, clipped = torch.square(values - returns), torch.square(near - returns)
    loss = 0.5 * torch_mean(torch.max(plain, clipped), mask)
    return loss, {"clipfrac": torch_mean((clipped > plain).double(), mask)}


def prefix_mask(rng, extra=0):
    """Right-padded responses: one whole, one of a single token, the others between."""
    lengths = np.concatenate([[T, 1], rng.integers(1, T + 1, size=B - 2)])
    return (np.arange(T) < lengths[:, None] + extra).astype(float)


def tensors(*arrays):
    return [torch.tensor(x, dtype=torch.float64) for x in arrays]


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), **TOLERANCE)


def same_loss_and_gradient(program, torch_fn, arrays, mask):
    """Loss, metrics and the gradient of the first array; ours must not see the padding."""
    first, *rest = tensors(*arrays)
    first.requires_grad_()
    wanted, wanted_metrics = torch_fn(first, *rest, torch.tensor(mask))
    wanted.backward()
    spoilt = [np.where(mask > 0, x, np.nan) for x in arrays]
    (loss, metrics), gradient = program(*spoilt, mask)
    assert loss.dtype == gradient.dtype == np.float64
    close(loss, wanted)
    close(gradient, first.grad)
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value.item(), rtol=1e-6, err_msg=name)


def loss_program(loss_fn, **options):
    return jax.jit(jax.value_and_grad(functools.partial(loss_fn, **options), has_aux=True))


@pytest.mark.parametrize("clip", [0.05, 0.2, 0.6])
def test_policy_loss(clip):
    program = loss_program(policy_loss, clip_low=clip, clip_high=clip)
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        mask = prefix_mask(rng)
        old = -rng.exponential(size=(B, T))
        # The first cases are on policy, where the plain and the clipped loss tie.
        new = old if seed < 2 else old + (0.05, 0.5)[seed % 2] * rng.normal(size=(B, T))
        arrays = (new, old, rng.normal(size=(B, T)))
        same_loss_and_gradient(program, lambda *x: torch_policy_loss(*x, clip), arrays, mask)


@pytest.mark.parametrize("clip", [0.1, 0.2, 1.5])
def test_value_loss(clip):
    program = loss_program(value_loss, clip=clip)
    for seed in SEEDS:
        rng = np.random.default_rng(100 + seed)
        mask = prefix_mask(rng)
        old, returns = rng.normal(size=(2, B, T))
        new = old if seed < 2 else old + 0.4 * rng.normal(size=(B, T))
        arrays = (new, old, returns)
        same_loss_and_gradient(program, lambda *x: torch_value_loss(*x, clip), arrays, mask)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_masked_whiten(shift_mean):
    def weighted(x, mask, weight):
        white = masked_whiten(x, mask, shift_mean=shift_mean)
        return jnp.sum(white * weight), white

    program = jax.jit(jax.value_and_grad(weighted, has_aux=True))
    for seed in SEEDS:
        rng = np.random.default_rng(200 + seed)
        mask = prefix_mask(rng) if seed % 2 else (rng.random((B, T)) < 0.5).astype(float)
        x, weight = 3.0 + 2.0 * rng.normal(size=(B, T)), rng.normal(size=(B, T))
        x_t, mask_t, weight_t = tensors(x, mask, weight)
        x_t.requires_grad_()
        wanted = torch_whiten(x_t, mask_t, shift_mean) * mask_t
        (wanted * weight_t).sum().backward()
        (_, white), gradient = program(x, mask, weight)
        close(white, wanted)
        close(gradient, x_t.grad)


@pytest.mark.parametrize("after_last", [0, 1])
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 1.0), (0.97, 0.0), (0.8, 0.6)])
def test_gae(gamma, lam, after_last):
    """`after_last` = 1 is TRL's layout: the state after the last token is one step more, and it is
    there that the score is paid."""

    def weighted(rewards, values, mask, weights):
        both = compute_gae(rewards, values, mask, gamma=gamma, lam=lam)
        return jnp.sum(jnp.stack(both) * weights), both

    program = jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))
    for seed in SEEDS:
        rng = np.random.default_rng(300 + seed)
        mask = prefix_mask(rng, after_last)
        rewards, values = rng.normal(size=(2, B, T))
        weights = rng.normal(size=(2, B, T)) * mask
        r, v, mask_t, weights_t = tensors(rewards, values, mask, weights)
        r.requires_grad_(), v.requires_grad_()
        # TRL fills rewards and values beyond the end with zeros.
        wanted = torch_gae(r * mask_t, v * mask_t, gamma, lam)
        (torch.stack(wanted) * weights_t).sum().backward()
        (_, got), gradients = program(rewards, values, mask, weights)
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours.dtype == np.float64
            close(ours, theirs * mask_t)
        close(gradients[0], r.grad)
        close(gradients[1], v.grad)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "abs"])
def test_kl_estimate(kind):
    def summed(new, ref):
        estimate = kl_estimate(new, ref, kind)
        return estimate.sum(), estimate

    program = jax.jit(jax.value_and_grad(summed, (0, 1), has_aux=True))
    for seed in SEEDS:
        rng = np.random.default_rng(400 + seed)
        new = -rng.exponential(size=(B, T))
        ref = new + 0.7 * rng.normal(size=(B, T))
        new_t, ref_t = tensors(new, ref)
        new_t.requires_grad_(), ref_t.requires_grad_()
        log_ratio = ref_t - new_t
        wanted = {
            "k1": -log_ratio,
            "k2": log_ratio.square() / 2,
            "k3": (log_ratio.exp() - 1) - log_ratio,
            "abs": log_ratio.abs(),
        }[kind]
        wanted.sum().backward()
        (_, estimate), gradients = program(new, ref)
        close(estimate, wanted)
        close(gradients[0], new_t.grad)
        close(gradients[1], ref_t.grad)

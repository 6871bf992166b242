"""Optimiser pieces. The learning rate stays outside: a step applies -lr(step) * u, so that it can
be traced, scheduled and swept without a new program."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, ScalarLike

from ppo_jax.config import Config, OptimOptions
from ppo_jax.types import PyTree


def make_optimizer(optim: OptimOptions) -> optax.GradientTransformation:
    """Adam in the form asked for, then decoupled weight decay (https://arxiv.org/abs/1711.05101).

    Its updates are to be subtracted, times the learning rate: `apply_updates`.
    """
    adam = optax.scale_by_adam if optim.adam == "optax" else scale_by_adam_tf
    transforms = [adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)]
    if optim.weight_decay is not None:
        transforms.append(optax.add_decayed_weights(optim.weight_decay))
    return optax.chain(*transforms)


def scale_by_adam_tf(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam as TensorFlow has it, in which OpenAI's results were obtained.

        u = sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

    The form before section 2.1 of https://arxiv.org/abs/1412.6980: epsilon meets the uncorrected
    second moment, so early steps are smaller than optax's where gradients are small.
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads: PyTree, state: optax.ScaleByAdamState, params: PyTree = None):
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, grads)
        scale = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def learning_rate_factor(config: Config, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """What the learning rate is multiplied by in iteration `step` of `run.iterations`.

    Warm-up is linear, 1/warmup in iteration 0 and 1 in its last; from there the schedule falls and
    would reach `final_ratio` in the iteration after the last, so with 0 no iteration is lost.
    """
    step = jnp.asarray(step, jnp.float32)
    optim, warmup = config.optim, config.warmups["optim.warmup"]
    progress = jnp.clip((step - warmup) / (config.run.iterations - warmup), 0.0, 1.0)
    fall = {
        "constant": jnp.zeros_like(progress),
        "linear": progress,
        "cosine": 0.5 * (1.0 - jnp.cos(jnp.pi * progress)),
    }[optim.schedule]
    factor = 1.0 - (1.0 - optim.final_ratio) * fall
    if warmup == 0:
        return factor
    return jnp.where(step < warmup, (step + 1.0) / warmup, factor)


def clip_by_global_norm(
    grads: PyTree, max_norm: ScalarLike | None
) -> tuple[PyTree, Float[Array, ""]]:
    """Gradients scaled down to a global norm of at most `max_norm`, and the norm they had.

    None or inf: no clip. A norm that is not finite leaves the gradients alone: whoever sees the
    norm must drop the update.
    """
    norm = jnp.sqrt(sum(jnp.sum(g.astype(jnp.float32) ** 2) for g in jax.tree.leaves(grads)))
    if max_norm is None:
        return grads, norm
    scale = jnp.where(jnp.isfinite(norm) & (norm > max_norm), max_norm / norm, 1.0)
    return jax.tree.map(lambda g: g * scale, grads), norm


def apply_updates(params: PyTree, updates: PyTree, learning_rate: ScalarLike) -> PyTree:
    """params - learning_rate * updates, computed in float32, in the dtype of the parameters."""
    rate = jnp.asarray(learning_rate, jnp.float32)
    return jax.tree.map(
        lambda p, u: (p.astype(jnp.float32) - rate * u.astype(jnp.float32)).astype(p.dtype),
        params,
        updates,
    )

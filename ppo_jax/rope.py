"""Positions, and the rotary embedding of queries and keys."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.config import ModelConfig, RopeScaling
from ppo_jax.types import Array


class Rotation(NamedTuple):
    """cos [B, S, R] of the rotary angles, each twice, and their sin, first below zero; float32. The
    first R dimensions of a head rotate."""

    cos: Array
    sin: Array


class Rotations(NamedTuple):
    """Angles of the layers that see everything and of those with a window."""

    full: Rotation
    local: Rotation


def positions_from_mask(mask_BS: Array) -> Array:
    """Position of each real token; padding before a sequence does not count."""
    return jnp.maximum(jnp.cumsum(mask_BS.astype(jnp.int32), axis=1) - 1, 0)


def frequencies(config: ModelConfig, *, local: bool = False) -> Array:
    """Radians a position of each rotary pair, [R/2], scaled where configured."""
    own_theta = local and config.local_rope_theta is not None
    theta = config.local_rope_theta if own_theta else config.rope_theta
    R = config.head_dim if config.rotary_dim is None else config.rotary_dim
    plain = theta ** (-jnp.arange(0, R, 2, dtype=jnp.float32) / R)
    if own_theta or config.rope_scaling is None:
        return plain
    if config.rope_scaling.kind == "linear":
        return plain / config.rope_scaling.factor
    return _llama3(plain, config.rope_scaling)


def _llama3(frequencies: Array, scaling: RopeScaling) -> Array:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    turns = scaling.original_max_positions * frequencies / (2 * jnp.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / scaling.factor)


def rotations(config: ModelConfig, positions_BS: Array) -> Rotations | None:
    """Rotary angles at these positions; None where positions are learned."""
    if config.position == "learned":
        return None

    def rotation(local: bool) -> Rotation:
        per_position = frequencies(config, local=local)[None, None]
        angles_BSR = positions_BS[..., None].astype(jnp.float32) * per_position
        cos_BSR, sin_BSR = jnp.cos(angles_BSR), jnp.sin(angles_BSR)
        twice = lambda a, b: jnp.concatenate([a, b], axis=-1)
        return Rotation(twice(cos_BSR, cos_BSR), twice(-sin_BSR, sin_BSR))

    full = rotation(local=False)
    return Rotations(full, full if config.local_rope_theta is None else rotation(local=True))


def pick(both: Rotations | None, local: bool | Array) -> Rotation | None:
    """The angles of a layer; `local` may be traced, where layers of both kinds run as a scan."""
    if both is None or both.full is both.local:
        return None if both is None else both.full
    if isinstance(local, bool):
        return both.local if local else both.full
    return jax.tree.map(lambda a, b: jnp.where(local, a, b), both.local, both.full)


def rotate(x_BSHK: Array, rotation: Rotation) -> Array:
    """The first R dimensions of every head, in Hugging Face's half-split order, in float32."""
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
    R = cos.shape[-1]
    x = x_BSHK[..., :R].astype(jnp.float32)
    # Turned by half a head: joining halves computed apart is scalar code on the CPU.
    turned = (x * cos + jnp.roll(x, R // 2, axis=-1) * sin).astype(x_BSHK.dtype)
    return turned if x_BSHK.shape[-1] == R else jnp.concatenate([turned, x_BSHK[..., R:]], axis=-1)

"""Bytes of a trunk's activations: what XLA keeps of each layer, and works with in one.

Counted in numbers a token: of the residual (D), the MLP (F), the queries (HK), keys or values (GK),
the windows of keys that a block of queries sees, and its scores. The multiples were read off the
buffers of compiled steps on the CPU and fitted to their sizes.
"""

from typing import NamedTuple

from ppo_jax import attention_band
from ppo_jax.config import ModelConfig
from ppo_jax.cost import FLOAT32


class Held(NamedTuple):
    """What the activations depend on."""

    model: ModelConfig
    tokens: float  # at once on a device
    width: int  # the most tokens of a row
    stream: bool  # attention along the stream, recomputed in the backward pass; else by rows
    item: float  # bytes of a number in the compute dtype
    remat: str
    adapters: bool
    scanned: bool
    attention: str  # kernel of whole sequences
    platform: str

    @property
    def together(self) -> bool:
        """XLA's CPU schedule of unrolled layers runs all recomputation before the first gradient,
        and the policy's pass beside the reference's: `remat` spares nothing."""
        return self.platform == "cpu" and not self.scanned


class Sizes(NamedTuple):
    """Bytes a token of one array of each kind."""

    D: float
    F: float
    HK: float
    GK: float
    window: float
    scores: float


def sizes(held: Held) -> Sizes:
    c, keys, windows = held.model, held.width, 0
    if held.stream:
        block = attention_band.block_size(held.width)
        windows = -(-(held.width - 1) // block) + 1
        keys = windows * block
    if held.attention != "xla":  # a fused kernel keeps neither
        keys = windows = 0
    heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    each = (c.embed_dim, c.mlp_dim, heads, kv, windows * kv)
    return Sizes(*(n * held.item for n in each), c.num_heads * keys * FLOAT32)


def forward_bytes(held: Held) -> float:
    """Working set of a forward pass: the larger of a layer's MLP and its attention."""
    n, gated = sizes(held), held.model.gated_mlp
    mlp = (3 if gated else 2) * n.F + 3.5 * n.D
    mixing = 2.7 * n.D + 3.5 * n.HK + 2 * n.window + n.scores
    if held.together:
        mlp, mixing = 2 * mlp - 5 * n.D, mixing + 5 * n.HK
    return held.tokens * max(mlp, mixing)


def saved_bytes(held: Held) -> float:
    """Kept of all layers until the backward pass has come to them."""
    n, gated = sizes(held), held.model.gated_mlp
    rows = 0.0 if held.stream else n.scores
    if held.together and held.remat == "none":
        layer = (5 if gated else 3) * n.F + 6 * n.D + 4 * n.HK + 2 * rows
    elif held.together:
        layer = (4 if gated else 3) * n.F + 7 * n.D + 3.2 * n.HK + 3 * rows
    elif held.remat == "none":
        layer = (6 if gated else 4) * n.F + 11 * n.D + 3 * n.HK + 2 * rows
    elif held.remat == "dots":
        layer = (2 if gated else 1) * n.F + 3 * n.D + n.HK + 2 * n.GK
    else:
        layer = n.D  # the layer's input
    return held.tokens * held.model.num_layers * layer


def working_bytes(held: Held) -> float:
    """Of the layer that the backward pass is at: what is computed again, and gradients."""
    n, gated = sizes(held), held.model.gated_mlp
    rows, along = (0.0, n.scores) if held.stream else (n.scores, 0.0)
    if held.together:
        return held.tokens * (8 * n.D + 2.3 * (n.HK + n.GK) + 0.9 * n.window)
    if held.remat == "none":
        mlp = 1.7 * n.F if gated else 0.9 * n.F
        return held.tokens * (mlp + 4 * n.D + 2 * n.HK + 2.4 * n.window + 3 * along + rows)
    mlp = (7 if gated else 3.5) * n.F + 11.4 * n.D + 2.4 * n.HK + 2.2 * n.GK + 3 * rows
    if held.adapters:  # their products are arrays of their own
        mlp += 2.5 * n.F + n.D
    if held.remat == "dots":
        mlp -= (2 if gated else 1) * n.F + 2 * n.D + n.HK
    mixing = 9 * n.D + 4 * n.HK + 2.4 * n.window + 3 * along
    return held.tokens * max(mlp, mixing)

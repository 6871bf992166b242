"""Bytes of a trunk's activations: what XLA keeps of each layer, and works with in one.

Counted in numbers a token: of the residual (D), the MLP (F), the queries (HK), keys or values (GK),
these as attention reads them, the windows of them that a block of queries sees, and its scores. The
multiples are counts of arrays, read off the buffers of compiled steps on the CPU at their peak.
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
    cells: float  # of padded rows, that a fused kernel reads, for each token
    deferred: bool  # the weights' gradients come after those of all activations


class Sizes(NamedTuple):
    """Bytes a token of one array of each kind."""

    D: float
    F: float
    HK: float
    GK: float
    read: float  # keys or values as attention reads them
    window: float
    scores: float


def sizes(held: Held) -> Sizes:
    c, keys, windows = held.model, held.width, 0
    heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    read = heads  # by rows they are repeated for the heads that share them
    if held.stream:
        block = attention_band.block_size(held.width)
        windows = -(-(held.width - 1) // block) + 1
        keys, read = windows * block, kv
    if held.attention != "xla":  # a fused kernel keeps neither
        keys = windows = 0
        heads, read = heads * held.cells, kv * held.cells
    each = (c.embed_dim, c.mlp_dim, heads, kv, read, windows * kv)
    return Sizes(*(n * held.item for n in each), c.num_heads * keys * FLOAT32)


def forward_bytes(held: Held) -> float:
    """Working set of a forward pass: the larger of a layer's MLP and its attention."""
    n = sizes(held)
    mlp = (3 if held.model.gated_mlp else 2) * n.F + 2 * n.D
    if held.adapters:  # their products are arrays of their own
        mlp += 2 * n.F
    mixing = n.D + 3 * n.HK + n.window + 2 * n.scores
    return held.tokens * max(mlp, mixing)


def saved_bytes(held: Held) -> float:
    """Kept of all layers when the backward pass begins."""
    n, gated = sizes(held), held.model.gated_mlp
    layer = n.D  # the layer's input
    if held.remat == "none":
        layer = 2 * n.HK + 2 * n.read + (0.0 if held.stream else 2 * n.scores)
        # A scan writes every residual of the gradient; of unrolled layers XLA fuses some away.
        if held.scanned:
            layer += (6 if gated else 4) * n.F + 10 * n.D
        else:
            layer += (5 if gated else 3) * n.F + 4 * n.D
    elif held.remat == "dots":
        layer = (2 if gated else 1) * n.F + 2 * n.D + n.HK + 2 * n.GK
    # Depth first, the last layer's MLP may have been computed again by then.
    early = 3 * n.F if held.deferred and held.remat != "none" else 0.0
    return held.tokens * (held.model.num_layers * layer + early)


def backward_bytes(held: Held) -> float:
    """At the peak of a backward pass: all that is kept, and what one layer works with."""
    n = sizes(held)
    if not held.deferred:
        again = 0.0 if held.remat == "none" else _again(held)
        return saved_bytes(held) + held.tokens * max(again, _mixing(held))
    begun = saved_bytes(held) + held.tokens * (2 * n.F + n.D)
    through = held.model.num_layers * _passed(held) + max(3 * n.F, _attention(held))
    if held.adapters and held.model.gated_mlp:  # two matrices by their adapters
        through += 2 * n.F
    return max(begun, held.tokens * through)


def _again(held: Held) -> float:
    """A token's bytes where a layer has been computed again, to the gradient of its MLP."""
    n, gated = sizes(held), held.model.gated_mlp
    again = (6 if gated else 3) * n.F + 9 * n.D + 2 * n.HK + 2 * n.read
    again += 0.0 if held.stream else 2 * n.scores
    if held.adapters:
        again += (4 if gated else 2) * n.F
    if held.remat == "dots":
        again -= (2 if gated else 1) * n.F + 2 * n.D
    return again


def _mixing(held: Held) -> float:
    """A token's bytes where the gradient has come to a layer's attention, with that of its MLP."""
    n = sizes(held)
    mlp = 2 * n.F + 5 * n.D if held.remat == "none" else 3 * n.F + 7 * n.D
    return mlp + _attention(held)


def _attention(held: Held) -> float:
    """Of the attention itself: along a stream two arrays of scores, by rows three."""
    n = sizes(held)
    return 4 * n.HK + 2 * n.read + 2 * n.window + (2 if held.stream else 3) * n.scores


def _passed(held: Held) -> float:
    """Of a layer whose activations' gradients are known: what those of its weights are made of."""
    n, gated = sizes(held), held.model.gated_mlp
    if held.adapters:  # of which most are of narrow arrays
        return (6 if gated else 4) * n.F + 5 * n.D + n.HK + 2 * n.GK
    mlp = 3 if gated else 2
    if held.remat != "none":  # the input of the last matrix is multiplied once more
        mlp += 2 if gated else 1
    return mlp * n.F + 10.5 * n.D + 2 * n.HK + 2 * n.GK

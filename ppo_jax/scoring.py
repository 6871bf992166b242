"""The training forward: log-probabilities, entropies, values and exact KLs of sampled tokens.

The scoring passes before the update and the loss inside it call the same `forward`, which is why
the first minibatch's ratios are 1 to rounding. It reads token streams, so that padding costs
nothing; logits exist for a chunk of response tokens at a time: [B, T, V] never exists.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax import sampling
from ppo_jax.chunks import by_chunks
from ppo_jax.decoder import Decoder
from ppo_jax.model import head_of, stream_trunk, unembed, value_head
from ppo_jax.sharding import batch_devices, constrain_rows, on_each_device
from ppo_jax.stream import Layout, Stream, gather, move, pack, row_layout, row_width
from ppo_jax.types import Array, PyTree, Rollout


class Scorer(NamedTuple):
    """Static facts of the scoring passes."""

    decoder: Decoder
    critic: Decoder  # of a critic with a trunk of its own
    stops: tuple[int, ...]
    min_new_tokens: int
    chunk: int  # response tokens whose logits exist at once, over all devices


class Reading(NamedTuple):
    """Sampled sequences as the forward passes read them."""

    rollout: Rollout
    layout: Layout
    stream: Stream

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T) of the responses."""
        return self.rollout.response_ids_BT.shape


class Forward(NamedTuple):
    """[B, T] arrays are 0 where the reading has no response token."""

    logprobs_BT: Array
    entropy_BT: Array
    kl_BT: Array | None
    hidden_ZND: Array  # states of the token streams


def read(rollout: Rollout, layout: Layout | None = None, present_B: Array | None = None) -> Reading:
    """The rows that are present (None: all), in streams of this layout (None: padded rows)."""
    if layout is None:
        layout = row_layout(rollout, final=True)
    if present_B is None:
        present_B = jnp.ones(rollout.lengths_B.shape, bool)
    return Reading(rollout, layout, pack(rollout, present_B, layout))


def read_to_the_end(
    mesh: Mesh, rollout: Rollout, present_B: Array | None, size: int | None
) -> Reading:
    """The rows that are present, their last token as well, in streams of `size` tokens a device, or
    all of them as padded rows."""
    if size is None:
        return read(rollout)
    rollout = constrain_rows(mesh, rollout)
    layout = Layout(batch_devices(mesh), size, row_width(rollout, final=True), final=True)
    return read(rollout, layout, present_B)


def forward(
    scorer: Scorer,
    params: PyTree,
    reading: Reading,
    temperature: Array,
    *,
    reference: tuple[PyTree, Array] | None = None,
) -> Forward:
    """Score the sampled tokens under the trunk `params`.

    `reference` = (reference trunk, its `response_states` [B, T, D]) asks for the exact KL of this
    policy to the reference at every position, over the ids that could be sampled, in nats.
    """
    hidden_ZND = stream_trunk(scorer.decoder, params, reading.stream, reading.layout)
    return from_states(scorer, params, reading, hidden_ZND, temperature, reference=reference)


def from_states(
    scorer: Scorer,
    params: PyTree,
    reading: Reading,
    hidden_ZND: Array,
    temperature: Array,
    *,
    reference: tuple[PyTree, Array] | None = None,
) -> Forward:
    """`forward` from the trunk's states on, which it returns as well."""
    stream = reading.stream
    columns = _response_columns(reading, reference)
    columns["hidden"] = move(hidden_ZND, stream.state_ZM, stream.response_ZN)
    ref_params = None if reference is None else reference[0]
    stats = token_statistics(scorer, params, columns, stream.count_Z, temperature, ref_params)
    rows = lambda x_ZM: move(x_ZM, stream.token_ZC, stream.cell_ZM).reshape(reading.shape)
    return Forward(*jax.tree.map(rows, stats), hidden_ZND)


def response_states(reading: Reading, hidden_ZND: Array) -> Array:
    """States [B, T, D] before each response token, 0 where there is none."""
    stream = reading.stream
    hidden_ZMD = move(hidden_ZND, stream.state_ZM, stream.response_ZN)
    return move(hidden_ZMD, stream.token_ZC, stream.cell_ZM).reshape(*reading.shape, -1)


def _response_columns(reading: Reading, reference) -> dict[str, Array]:
    """What the head reads beside the states, of the response tokens in line."""
    rollout, cell_ZM = reading.rollout, reading.stream.cell_ZM
    Z, T = cell_ZM.shape[0], reading.shape[1]
    in_line = lambda x_BT: gather(x_BT.reshape(Z, -1, *x_BT.shape[2:]), cell_ZM)
    columns = {"ids": in_line(rollout.response_ids_BT), "t": cell_ZM % T}
    if rollout.kept_ids_BTK is not None:
        columns["kept"] = in_line(rollout.kept_ids_BTK)
    if reference is not None:
        columns["ref_hidden"] = in_line(reference[1])
    return columns


def token_statistics(scorer, params, columns, count_Z, temperature, ref_params=None):
    """(log-probabilities, entropies, exact KLs or None) [Z, M] of response tokens in line.

    `columns` [Z, M, ...] = {"hidden", "ids", "t"[, "kept"][, "ref_hidden"]}, of which the leading
    `count_Z` (traced) hold tokens.
    """

    def statistics(shared, chunk):
        head_params, ref_head_params, temperature = shared
        over, chosen = _logits(scorer, head_params, chunk["hidden"], chunk, temperature)
        norm = jax.nn.logsumexp(over, axis=-1)
        probs = jnp.exp(over - norm[..., None])
        entropy = norm - jnp.sum(probs * over, axis=-1)
        if ref_head_params is None:
            return chosen - norm, entropy, None
        ref_over, _ = _logits(scorer, ref_head_params, chunk["ref_hidden"], chunk, temperature)
        gap = jax.nn.logsumexp(ref_over, axis=-1) - norm
        return chosen - norm, entropy, jnp.sum(probs * (over - ref_over), axis=-1) + gap

    ref_head = None if ref_params is None else head_of(scorer.decoder, ref_params)
    shared = head_of(scorer.decoder, params), ref_head, jnp.float32(temperature)
    width = max(1, scorer.chunk // columns["ids"].shape[0])

    def on_own_rows(shared, rows):
        columns, count_Z = rows
        return by_chunks(statistics, width, shared, columns, count_Z.max())

    return on_each_device(scorer.decoder.mesh, on_own_rows, shared, (columns, count_Z))


def _logits(scorer, head_params, hidden, chunk, temperature) -> tuple[Array, Array]:
    """Tempered logits: of the ids a token could have been, and of the token it was."""
    logits = unembed(scorer.decoder, head_params, hidden) / temperature
    if scorer.min_new_tokens > 0:
        logits = sampling.suppress(logits, scorer.stops, chunk["t"] < scorer.min_new_tokens)
    chosen = jnp.take_along_axis(logits, chunk["ids"][..., None], axis=-1)[..., 0]
    if "kept" not in chunk:
        return logits, chosen
    kept = chunk["kept"]
    over = jnp.take_along_axis(logits, jnp.maximum(kept, 0), axis=-1)
    # Columns past the end of a response kept nothing: give them the whole row, it is masked later.
    empty = jnp.all(kept < 0, axis=-1, keepdims=True)
    return jnp.where((kept >= 0) | empty, over, sampling.NEVER), chosen


def final_scores(decoder: Decoder, params: PyTree, reading: Reading) -> Array:
    """Scores [B] of the state after each row's last token, 0 of a row that is not there, by a model
    {"head", "trunk"}. The reading's layout has that state: `final`."""
    stream = reading.stream
    hidden_ZND = stream_trunk(decoder, params["trunk"], stream, reading.layout)
    return gather(value_head(params["head"], hidden_ZND), stream.final_ZR).reshape(-1)


def values_from(
    params: PyTree, scorer: Scorer, reading: Reading, hidden_ZND: Array | None
) -> tuple[Array, Array | None]:
    """(values [B, T] of the states before each response token, 0 where there is none; values [B] of
    the states after the last one, None where the layout leaves them out).

    `params` is the value tree: a head on the policy's hidden states, or one with a trunk of its
    own, which then reads the sequences itself.
    """
    stream, layout = reading.stream, reading.layout
    if "trunk" in params:
        hidden_ZND = stream_trunk(scorer.critic, params["trunk"], stream, layout)
    values_ZN = value_head(params["head"], hidden_ZND)
    values_ZM = move(values_ZN, stream.state_ZM, stream.response_ZN)
    values_BT = move(values_ZM, stream.token_ZC, stream.cell_ZM).reshape(reading.shape)
    final_B = gather(values_ZN, stream.final_ZR).reshape(-1) if layout.final else None
    return values_BT, final_B

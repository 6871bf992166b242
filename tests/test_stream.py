"""Token streams against rows taken apart by hand, and moves between them and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.stream import Layout, columns_of_rows, gather, move, pack, row_layout, row_tokens
from scoring_builders import B, P, T, make_rollout


def slow_streams(rollout, present_B, streams, final):
    """Per stream: [(row of the stream, position, id, response index or None)], in order."""
    lines = []
    for z in range(streams):
        line = []
        for r in range(B // streams):
            b = z * (B // streams) + r
            if not present_B[b]:
                continue
            prompt = [int(i) for i, m in zip(rollout.prompt_ids_BP[b], rollout.prompt_mask_BP[b],
                                             strict=True) if m]  # fmt: skip
            response = [int(i) for i in rollout.response_ids_BT[b][: int(rollout.lengths_B[b])]]
            tokens = prompt + (response if final else response[:-1])
            line += [(r, n, i, len(prompt)) for n, i in enumerate(tokens)]
        lines.append(line)
    return lines


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("streams", [1, 2, 3, B])
def test_streams_hold_the_real_tokens_in_order(streams, final):
    for seed in range(8):
        rollout = make_rollout(seed)
        present_B = np.random.default_rng(seed).random(B) < (1.0 if seed % 2 else 0.6)
        lines = slow_streams(rollout, present_B, streams, final)
        columns = max(map(len, lines)) + seed
        layout = Layout(streams, max(columns, 1), P + T, final)
        stream = jax.device_get(pack(rollout, jnp.asarray(present_B), layout))
        R = B // streams
        for z, line in enumerate(lines):
            n = len(line)
            assert list(stream.row_ZN[z][:n]) == [row for row, *_ in line]
            assert np.all(stream.row_ZN[z][n:] == R)
            assert list(stream.positions_ZN[z][:n]) == [position for _, position, *_ in line]
            assert list(stream.ids_ZN[z][:n]) == [i for *_, i, _ in line]
        check_responses(rollout, present_B, stream, layout, lines)


def check_responses(rollout, present_B, stream, layout, lines):
    """Each response token's state is the column of the token before it in its own row."""
    R, counts = B // layout.streams, []
    for z, line in enumerate(lines):
        column = {(row, position): n for n, (row, position, *_) in enumerate(line)}
        m = 0
        for r in range(R):
            b = z * R + r
            length = int(rollout.lengths_B[b]) if present_B[b] else 0
            prompt = int(rollout.prompt_mask_BP[b].sum())
            for t in range(length):
                before = column[(r, prompt + t - 1)]
                assert stream.state_ZM[z, m] == before and stream.response_ZN[z, before] == m
                assert stream.cell_ZM[z, m] == r * T + t and stream.token_ZC[z, r * T + t] == m
                m += 1
            if layout.final and length:
                assert stream.final_ZR[z, r] == column[(r, prompt + length - 1)]
        counts.append(m)
        M = stream.state_ZM.shape[1]
        assert np.all(stream.state_ZM[z][m:] == layout.columns)
        assert np.sum(stream.response_ZN[z] < M) == m == np.sum(stream.token_ZC[z] < M)
    np.testing.assert_array_equal(stream.count_Z, counts)


def test_padded_rows_are_streams_of_one_row():
    rollout = make_rollout(3)
    layout = row_layout(rollout, final=True)
    assert layout == Layout(B, P + T, P + T, True)
    stream = pack(rollout, jnp.ones(B, bool), layout)
    np.testing.assert_array_equal(stream.lengths_ZR[:, 0], row_tokens(rollout, final=True))
    assert stream.ids_ZN.shape == (B, P + T)


def test_cells_of_padded_rows_and_columns_are_inverse():
    for seed in range(5):
        rollout = make_rollout(seed)
        layout = Layout(2, 3 * (P + T), P + T, True)
        stream = pack(rollout, jnp.arange(B) % 4 != 1, layout)
        columns_ZC, cells_ZN = columns_of_rows(stream, layout)
        x_ZN = jax.random.normal(jax.random.key(seed), (2, layout.columns, 3))
        real_ZN = np.asarray(stream.row_ZN < B // 2)
        rows_ZC = gather(x_ZN, columns_ZC)
        back_ZN = gather(rows_ZC, cells_ZN)
        np.testing.assert_array_equal(back_ZN, np.where(real_ZN[..., None], x_ZN, 0))
        sums = np.abs(np.asarray(rows_ZC)).sum(-1).reshape(2, B // 2, P + T) > 0
        lengths = np.asarray(stream.lengths_ZR)
        np.testing.assert_array_equal(sums, np.arange(P + T) < lengths[..., None])


def test_the_gradient_of_a_move_is_that_of_the_gather():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        n, m = 9, 6
        index_ZM = np.stack([rng.permutation(n)[:m] for _ in range(2)])
        index_ZM[rng.random((2, m)) < 0.3] = n
        inverse_ZN = np.full((2, n), m)
        for z, j in zip(*np.nonzero(index_ZM < n), strict=True):
            inverse_ZN[z, index_ZM[z, j]] = j
        x_ZN = jnp.asarray(rng.normal(size=(2, n, 4)), jnp.float32)
        w_ZM = jnp.asarray(rng.normal(size=(2, m, 4)), jnp.float32)
        index_ZM, inverse_ZN = jnp.asarray(index_ZM), jnp.asarray(inverse_ZN)
        total = lambda taken_ZM, w_ZM=w_ZM: jnp.sum(w_ZM * taken_ZM**2)
        taken_ZM, pull = jax.vjp(lambda x, i, j: move(x, i, j), x_ZN, index_ZM, inverse_ZN)
        plain_ZM, pull_plain = jax.vjp(gather, x_ZN, index_ZM)
        moved, plain = pull(jax.grad(total)(taken_ZM))[0], pull_plain(jax.grad(total)(plain_ZM))[0]
        np.testing.assert_allclose(moved, plain, rtol=1e-6)
        np.testing.assert_array_equal(move(x_ZN, index_ZM, inverse_ZN), gather(x_ZN, index_ZM))

"""Batches of prompts: a pure function of (seed, step), left-padded, each sequence with its id."""

import json
from collections import Counter

import numpy as np
import pytest

from ppo_jax.config import Config, DataOptions, replace
from ppo_jax.data import (
    batch_columns,
    batch_prompts,
    batch_rows,
    fixed_prompts,
    load_dataset,
    make_batch,
)
from ppo_jax.errors import DataError
from ppo_jax.tokenizer import byte_tokenizer

PAD = 258


@pytest.fixture
def small(tmp_path):
    """Prompts of 1 to 5 bytes with a column of each kind."""
    rows = [
        {"prompt": "abcde"[: n + 1], "n": n, "x": n / 2, "ok": n > 2, "tag": f"t{n}", "z": [n]}
        for n in range(5)
    ]
    path = tmp_path / "small.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return load_dataset(DataOptions(path=str(path)), byte_tokenizer(), vocab_size=259)


def stream(n_rows, batch, steps, **options):
    return [batch_rows(n_rows, batch, step=step, **options) for step in range(steps)]


def test_batches_tile_the_epochs():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n_rows, batch = int(rng.integers(1, 40)), int(rng.integers(1, 50))
        seed, shuffle = int(rng.integers(0, 2**40)), bool(rng.integers(0, 2))
        steps = -(-4 * n_rows // batch)
        batches = stream(n_rows, batch, steps, seed=seed, shuffle=shuffle)
        for rows, occurrence in batches:
            assert rows.shape == occurrence.shape == (batch,)
            assert rows.dtype == occurrence.dtype == np.int32
            # (row, occurrence) is unique in a batch, and occurrences count up from 0.
            pairs = set(zip(rows.tolist(), occurrence.tolist(), strict=True))
            counts = Counter(rows.tolist())
            assert pairs == {(row, i) for row, count in counts.items() for i in range(count)}
        flat = np.concatenate([rows for rows, _ in batches])
        for epoch in range(4):
            rows = flat[epoch * n_rows : (epoch + 1) * n_rows]
            assert sorted(rows.tolist()) == list(range(n_rows))
            if not shuffle:
                assert rows.tolist() == list(range(n_rows))


def test_batch_is_a_function_of_seed_and_step():
    in_order = stream(50, 8, 30, seed=3, shuffle=True)
    for step in np.random.default_rng(1).permutation(30).tolist():
        again = batch_rows(50, 8, seed=3, step=step, shuffle=True)
        np.testing.assert_array_equal(again, in_order[step])
    rows = np.concatenate([rows for rows, _ in in_order])
    assert rows[:50].tolist() != rows[50:100].tolist()  # every epoch has its own order
    other = np.concatenate([rows for rows, _ in stream(50, 8, 30, seed=4, shuffle=True)])
    assert rows[:50].tolist() != other[:50].tolist()
    # The stream does not depend on how it is cut into batches.
    recut = np.concatenate([rows for rows, _ in stream(50, 24, 10, seed=3, shuffle=True)])
    np.testing.assert_array_equal(recut, rows)


def test_far_step_does_not_overflow():
    rows, _ = batch_rows(7, 4096, seed=0, step=10**12, shuffle=False)
    assert rows.tolist() == [(4096 * 10**12 + i) % 7 for i in range(4096)]


def config(batch_size, samples=1, seed=0, shuffle=False):
    return replace(
        Config(),
        **{
            "rollout.batch_size": batch_size,
            "rollout.samples_per_prompt": samples,
            "run.seed": seed,
            "data.shuffle": shuffle,
        },
    )


def test_left_padding_and_columns(small):
    batch = make_batch(small, config(5), 0, pad_id=PAD)
    want = [[PAD] * (4 - n) + list(b"abcde"[: n + 1]) for n in range(5)]
    np.testing.assert_array_equal(batch.ids_BP, want)
    np.testing.assert_array_equal(batch.mask_BP, np.tri(5, dtype=bool)[:, ::-1])
    assert (batch.ids_BP.dtype, batch.mask_BP.dtype) == (np.int32, np.bool_)
    assert set(batch.columns) == {"n", "x", "ok"}
    np.testing.assert_array_equal(batch.columns["n"], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(batch.columns["x"], [0, 0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(batch.columns["ok"], [0, 0, 0, 1, 1])
    dtypes = {name: array.dtype for name, array in batch.columns.items()}
    assert dtypes == {"n": np.int32, "x": np.float32, "ok": np.int32}


def test_pad_id_may_be_a_token_of_the_prompt(small):
    plain = make_batch(small, config(5), 0, pad_id=PAD)
    same = make_batch(small, config(5), 0, pad_id=ord("a"))
    np.testing.assert_array_equal(plain.mask_BP, same.mask_BP)
    np.testing.assert_array_equal(
        np.where(plain.mask_BP, plain.ids_BP, 0), np.where(same.mask_BP, same.ids_BP, 0)
    )


def test_width_adds_padding_only(small):
    narrow = make_batch(small, config(5), 1, pad_id=PAD)
    wide = make_batch(small, config(5), 1, pad_id=PAD, width=9)
    assert wide.ids_BP.shape == wide.mask_BP.shape == (5, 9)
    assert not wide.mask_BP[:, :4].any() and (wide.ids_BP[:, :4] == PAD).all()
    np.testing.assert_array_equal(wide.ids_BP[:, 4:], narrow.ids_BP)
    np.testing.assert_array_equal(wide.mask_BP[:, 4:], narrow.mask_BP)
    with pytest.raises(DataError, match=r"small\.jsonl:4: prompt has 4 tokens, the batch is 3 w"):
        make_batch(small, config(5), 0, pad_id=PAD, width=3)


def test_samples_of_a_prompt_stand_side_by_side(small):
    batch = make_batch(small, config(12, samples=3, shuffle=True, seed=5), 2, pad_id=PAD)
    rows, _ = batch_rows(5, 4, seed=5, step=2, shuffle=True)
    np.testing.assert_array_equal(batch.prompt_index_B, [r for r in rows for _ in range(3)])
    assert batch.prompt_index_B.dtype == batch.sample_index_B.dtype == np.int32
    for i, row in enumerate(batch.prompt_index_B.tolist()):
        assert bytes(batch.ids_BP[i][batch.mask_BP[i]].tolist()) == small.prompts[row].encode()
        assert batch.columns["n"][i] == row


def test_fewer_prompts_than_a_batch(small):
    """Rows repeat, and every sequence of the batch keeps an id of its own."""
    batch = make_batch(small, config(24, samples=2), 0, pad_id=PAD)
    assert batch.prompt_index_B.tolist() == [r % 5 for r in range(12) for _ in range(2)]
    assert batch.sample_index_B.tolist() == [2 * (r // 5) + k for r in range(12) for k in range(2)]
    ids = set(zip(batch.prompt_index_B.tolist(), batch.sample_index_B.tolist(), strict=True))
    assert len(ids) == 24


def test_batches_are_pure(small):
    settings = config(8, samples=2, shuffle=True, seed=9)
    for step in (0, 3, 17):
        one = make_batch(small, settings, step, pad_id=PAD)
        two = make_batch(small, settings, step, pad_id=PAD)
        for a, b in zip(one[:4], two[:4], strict=True):
            np.testing.assert_array_equal(a, b)


def test_host_columns_and_prompts_follow_the_rows(small):
    batch = make_batch(small, config(12, samples=2, shuffle=True), 1, pad_id=PAD)
    rows = batch.prompt_index_B.tolist()
    columns = batch_columns(small, batch)
    assert columns["tag"] == [f"t{row}" for row in rows]
    assert columns["z"] == [[row] for row in rows]
    assert columns["ok"] == [row > 2 for row in rows] and type(columns["ok"][0]) is bool
    assert batch_prompts(small, batch) == ["abcde"[: row + 1] for row in rows]


def test_fixed_prompts(small):
    prompts = fixed_prompts(small, 2, pad_id=PAD, width=3)
    np.testing.assert_array_equal(prompts.ids_BP, [[PAD, PAD, 97], [PAD, 97, 98]])
    assert prompts.prompt_index_B.tolist() == [0, 1] and prompts.sample_index_B.tolist() == [0, 0]
    assert fixed_prompts(small, 99, pad_id=PAD, width=5).ids_BP.shape == (5, 5)
    assert fixed_prompts(small, 0, pad_id=PAD, width=5).ids_BP.shape == (0, 5)

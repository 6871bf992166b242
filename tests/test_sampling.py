"""Drawing ids: the distribution, the edges of the cumulative sum, top-k and top-p."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import sampling
from ppo_jax.sampling import MAX_KEPT, NEVER, draw, greedy, invert_cdf, suppress, uniforms

SIZES = [1, 2, 7, 64, 255, 256, 257, 300, 512, 1000]
LAST = np.float32(1 - 2**-24)  # the largest number `uniforms` can return

jit_invert = jax.jit(invert_cdf)
jitted_draw = jax.jit(draw, static_argnames=("top_k", "top_p"))


def random_logits(rng, B, V, scale=2.0):
    return (scale * rng.normal(size=(B, V))).astype(np.float32)


def probabilities(logits_BV):
    logits_BV = np.asarray(logits_BV, np.float64)
    weights_BV = np.exp(logits_BV - logits_BV.max(-1, keepdims=True))
    return weights_BV / weights_BV.sum(-1, keepdims=True)


def jit_draw(logits_BV, u_B, top_k=None, top_p=None):
    drawn = jitted_draw(jnp.asarray(logits_BV), jnp.asarray(u_B), top_k=top_k, top_p=top_p)
    return jax.device_get(drawn)


def assert_chi_square(ids, probs_V):
    """Counts against expectations, rare ids pooled; the bound is five standard deviations."""
    counts_V = np.bincount(ids, minlength=len(probs_V))
    assert len(counts_V) == len(probs_V)
    expected_V = probs_V * len(ids)
    rare_V = expected_V < 5
    pool = lambda x_V: np.append(x_V[~rare_V], x_V[rare_V].sum())
    counts, expected = pool(counts_V), pool(expected_V)
    statistic = np.sum((counts - expected) ** 2 / np.maximum(expected, 1e-9))
    freedom = len(counts) - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("V", [2, 7, 64, 255, 300, 1000])
def test_frequencies_follow_the_softmax(V):
    rng = np.random.default_rng(V)
    logits_V = random_logits(rng, 1, V)[0]
    N = 20_000
    keys_N = jax.random.split(jax.random.key(V), N)
    u_N = uniforms(keys_N, jnp.full(keys_N.shape, 3))
    ids_N = jit_invert(jnp.broadcast_to(logits_V, (N, V)), u_N)
    assert ids_N.dtype == jnp.int32
    assert_chi_square(np.asarray(ids_N), probabilities(logits_V))


def test_truncated_frequencies_follow_the_renormalised_softmax():
    rng = np.random.default_rng(0)
    logits_V, N = random_logits(rng, 1, 300)[0], 20_000
    u_N = uniforms(jax.random.split(jax.random.key(0), N), jnp.zeros(N, jnp.int32))
    ids_N = jit_draw(np.broadcast_to(logits_V, (N, 300)), u_N, top_k=20).ids_B
    probs_V = probabilities(logits_V)
    probs_V[np.argsort(-probs_V)[20:]] = 0
    assert_chi_square(np.asarray(ids_N), probs_V / probs_V.sum())


def test_uniforms_depend_on_key_and_position_alone():
    keys_B = jax.random.split(jax.random.key(1), 64)
    u_TB = np.stack([uniforms(keys_B, jnp.full(keys_B.shape, t)) for t in range(64)])
    assert u_TB.min() >= 0 and u_TB.max() < 1 and len(np.unique(u_TB)) > 0.999 * u_TB.size
    assert abs(u_TB.mean() - 0.5) < 0.02 and abs(u_TB.var() - 1 / 12) < 0.01
    order_B = np.random.default_rng(0).permutation(64)
    shuffled_B = uniforms(keys_B[order_B], jnp.full(keys_B.shape, 5))
    np.testing.assert_array_equal(shuffled_B, u_TB[5][order_B])
    np.testing.assert_array_equal(uniforms(keys_B[:3], jnp.full(3, 7)), u_TB[7][:3])
    # Neither neighbouring rows nor neighbouring positions are correlated.
    assert abs(np.corrcoef(u_TB[:, 1:].ravel(), u_TB[:, :-1].ravel())[0, 1]) < 0.06
    assert abs(np.corrcoef(u_TB[1:].ravel(), u_TB[:-1].ravel())[0, 1]) < 0.06


@pytest.mark.parametrize("V", SIZES)
def test_the_id_is_that_of_the_float64_search(V):
    rng = np.random.default_rng(V)
    B = 600
    logits_BV = random_logits(rng, B, V, scale=rng.choice([0.1, 1, 4, 12], size=(B, 1)))
    u_B = rng.random(B).astype(np.float32)
    ids_B = np.asarray(jit_invert(logits_BV, u_B))
    assert ids_B.min() >= 0 and ids_B.max() < V
    ends_BV = np.cumsum(probabilities(logits_BV), axis=1)
    near = 0
    for id, u, ends_V in zip(ids_B, u_B.astype(np.float64), ends_BV, strict=True):
        begin = ends_V[id - 1] if id > 0 else 0.0
        assert begin - 1e-5 <= u < ends_V[id] + 1e-5
        if np.abs(ends_V[:-1] - u).min(initial=1.0) < 1e-5:
            near += 1
        else:
            assert id == min(np.searchsorted(ends_V, u, side="right"), V - 1)
    assert near < 0.1 * B


def impossible_patterns(V, rng):
    """Which ids are made impossible: ends, blocks, all but one, at random."""
    index_V = np.arange(V)
    yield index_V < V // 2
    yield index_V >= V - V // 3 - 1
    yield (index_V < V // 3) | (index_V > 2 * V // 3)
    yield index_V % 2 == 0
    yield index_V % 2 == 1
    yield (index_V // 256) % 2 == 0
    yield (index_V // 256) % 2 == 1
    yield index_V >= 256
    yield index_V != 0
    yield index_V != V - 1
    yield index_V != V // 2
    for share in (0.1, 0.5, 0.9, 0.99):
        yield rng.random(V) < share


def edge_uniforms(weights_V):
    """0, the largest, random ones, and every end of a slice with its float32 neighbours."""
    weights_V = np.asarray(weights_V)
    ends = np.cumsum(weights_V.astype(np.float64)) / weights_V.astype(np.float64).sum()
    ends = np.unique(ends.astype(np.float32))
    below, above = np.nextafter(ends, np.float32(0)), np.nextafter(ends, np.float32(2))
    u = np.concatenate([[0, 2**-24, LAST], ends, below, above])
    return np.clip(u, 0, LAST).astype(np.float32)


@pytest.mark.parametrize("sums", ["plain", "parallel"])
@pytest.mark.parametrize("V", [2, 64, 257, 600])
def test_impossible_ids_are_never_drawn(V, sums, monkeypatch):
    if sums == "parallel":  # as accelerators may add: the order of sums differs between ends
        scan = lambda x, axis: jax.lax.associative_scan(jnp.add, x, axis=axis % x.ndim)
        monkeypatch.setattr(sampling.jnp, "cumsum", scan)
    invert = jax.jit(lambda logits, u: invert_cdf(logits, u))
    rng = np.random.default_rng(V)
    cases = []
    for pattern_V in impossible_patterns(V, rng):
        if pattern_V.all():
            continue
        for never in (NEVER, -200.0):
            logits_V = random_logits(rng, 1, V, scale=rng.choice([0.3, 3.0]))[0]
            logits_V[pattern_V] = never
            u = edge_uniforms(jnp.exp(logits_V - logits_V.max()))
            cases += [(logits_V, pattern_V, rng.permutation(u)[:200]), (logits_V, pattern_V, u[:3])]
    for logits_V, pattern_V, u_N in cases:
        u_B = np.resize(u_N, 200)
        ids_B = np.asarray(invert(jnp.broadcast_to(logits_V, (200, V)), u_B))
        assert ids_B.min() >= 0 and ids_B.max() < V
        assert not pattern_V[ids_B].any()
    # u = 0 is the first possible id, and no slice is passed over.
    assert int(invert(logits_V[None], np.zeros(1, np.float32))[0]) == np.argmin(pattern_V)


def test_every_possible_id_can_be_drawn():
    rng = np.random.default_rng(1)
    for V in (64, 300):
        logits_V = random_logits(rng, 1, V, scale=1.0)[0]
        ends_V = np.cumsum(probabilities(logits_V))
        middle_V = ends_V - probabilities(logits_V) / 2
        ids_V = jit_invert(jnp.broadcast_to(logits_V, (V, V)), middle_V.astype(np.float32))
        np.testing.assert_array_equal(ids_V, np.arange(V))


def test_a_row_that_is_not_finite_still_gives_an_id():
    logits_BV = np.zeros((3, 300), np.float32)
    logits_BV[0, 5], logits_BV[1] = np.nan, np.nan
    logits_BV[2, 7] = np.inf
    ids_B = np.asarray(jit_invert(logits_BV, np.full(3, 0.9, np.float32)))
    assert np.all((ids_B >= 0) & (ids_B < 300))


def sorted_oracle(logits_V, top_k, top_p):
    """Kept ids by Hugging Face's order: the k likeliest, renormalised, then the nucleus of them.

    Returns (kept, doubtful): ids whose mass before them is within 1e-6 of top_p may go either way.
    """
    probs_V = probabilities(logits_V)
    order = np.argsort(-probs_V, kind="stable")
    if top_k is not None:
        order = order[:top_k]
        probs_V = probs_V / probs_V[order].sum()
    kept, doubtful, before = set(), set(), 0.0
    for rank, id in enumerate(order[:MAX_KEPT]):
        if top_p is None or rank == 0 or before < top_p:
            kept.add(int(id))
        if top_p is not None and rank > 0 and abs(before - top_p) < 1e-6:
            doubtful.add(int(id))
        before += probs_V[id]
    return kept, doubtful


@pytest.mark.parametrize("V", [7, 64, 300, 1000])
@pytest.mark.parametrize(
    "top_k, top_p",
    [(1, None), (5, None), (256, None), (None, 0.05), (None, 0.6), (None, 0.95), (None, 1.0)]
    + [(5, 0.5), (40, 0.9), (3, 1.0), (64, 0.01)],
)
def test_kept_ids_and_logprobs_match_the_sorted_oracle(V, top_k, top_p):
    rng = np.random.default_rng(V)
    B = 60
    logits_BV = random_logits(rng, B, V, scale=rng.choice([0.2, 1, 3], size=(B, 1)))
    drawn = jit_draw(logits_BV, rng.random(B).astype(np.float32), top_k, top_p)
    assert drawn.kept_BK.shape == (B, min(V, MAX_KEPT if top_k is None else top_k))
    rows = zip(logits_BV, drawn.ids_B, drawn.logprobs_B, drawn.kept_BK, strict=True)
    for logits_V, id, logprob, kept_K in rows:
        kept = [int(i) for i in kept_K if i >= 0]
        expected, doubtful = sorted_oracle(logits_V, top_k, top_p)
        assert len(set(kept)) == len(kept)
        assert expected - doubtful <= set(kept) <= expected | doubtful
        assert int(id) in kept
        probs_V = probabilities(logits_V)
        assert abs(np.log(probs_V[id] / probs_V[kept].sum()) - logprob) < 1e-5


def test_whole_vocabulary_logprobs():
    rng = np.random.default_rng(2)
    logits_BV = random_logits(rng, 200, 300, scale=4.0)
    drawn = jit_draw(logits_BV, rng.random(200).astype(np.float32))
    assert drawn.kept_BK is None
    expected_B = np.log(probabilities(logits_BV)[np.arange(200), drawn.ids_B])
    np.testing.assert_allclose(drawn.logprobs_B, expected_B, atol=1e-5)


@pytest.mark.parametrize("top_k, top_p", [(None, None), (50, None), (None, 0.99), (50, 0.99)])
def test_suppressed_ids_are_neither_drawn_nor_kept(top_k, top_p):
    rng = np.random.default_rng(3)
    V, B, stops = 64, 300, (0, 5, 63)
    logits_BV = random_logits(rng, B, V)
    logits_BV[:, 5] += 8  # the likeliest by far
    where_B = jnp.arange(B) % 2 == 0
    quiet_BV = suppress(jnp.asarray(logits_BV), stops, where_B)
    drawn = jit_draw(quiet_BV, rng.random(B).astype(np.float32), top_k, top_p)
    stopped_B = np.isin(drawn.ids_B, stops)
    assert not stopped_B[where_B].any() and stopped_B[~np.asarray(where_B)].mean() > 0.5
    assert np.isfinite(drawn.logprobs_B).all()
    if drawn.kept_BK is not None:
        assert not np.isin(np.asarray(drawn.kept_BK)[where_B], stops).any()


def test_more_room_than_possible_ids():
    logits_BV = np.full((3, 20), NEVER, np.float32)
    logits_BV[:, [4, 11]] = 1.0
    drawn = jit_draw(logits_BV, np.asarray([0.0, 0.4, LAST], np.float32), top_k=8)
    assert drawn.ids_B.tolist() == [4, 4, 11]
    assert sorted(drawn.kept_BK[0].tolist()) == [-1] * 6 + [4, 11]
    np.testing.assert_allclose(drawn.logprobs_B, np.log(0.5), rtol=1e-6)


def test_suppress_only_where_asked():
    logits = jnp.asarray(np.random.default_rng(4).normal(size=(2, 3, 7)), jnp.float32)
    where = jnp.asarray([[True, False, True], [False, False, True]])
    quiet = np.asarray(suppress(logits, (1, 6), where))
    for i in range(2):
        for j in range(3):
            for v in range(7):
                hit = bool(where[i, j]) and v in (1, 6)
                assert quiet[i, j, v] == (np.float32(NEVER) if hit else logits[i, j, v])
    np.testing.assert_array_equal(suppress(logits, (), where), logits)


def test_greedy_takes_the_likeliest_with_its_logprob():
    rng = np.random.default_rng(5)
    logits_BV = random_logits(rng, 100, 300)
    logits_BV[0, [3, 8]] = 50.0  # of equals, the first
    drawn = greedy(jnp.asarray(logits_BV))
    assert drawn.ids_B.dtype == jnp.int32 and drawn.kept_BK is None
    np.testing.assert_array_equal(drawn.ids_B, logits_BV.argmax(1))
    expected_B = np.log(probabilities(logits_BV).max(1))
    np.testing.assert_allclose(drawn.logprobs_B, expected_B, atol=1e-5)

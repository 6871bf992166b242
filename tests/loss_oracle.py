"""Random cases for the losses, and the losses as loops over tokens in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

B, T = 8, 6
AGGREGATES = ("token-mean", "seq-mean", "seq-sum-norm")


def random_mask(rng):
    """Rows that are empty, single, full, a prefix, and holed."""
    mask = (rng.random((B, T)) < 0.6).astype(float)
    mask[0] = 0
    mask[1] = np.arange(T) == rng.integers(T)
    mask[2] = 1
    mask[3] = np.arange(T) < rng.integers(2, T)
    return mask


def random_policy_case(seed, spread=0.4):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=(B, T))
    new = old + spread * rng.normal(size=(B, T))
    arrays = (new, old, rng.normal(size=(B, T)))
    return *(x.astype(np.float32).astype(float) for x in arrays), random_mask(rng)


def random_value_case(seed):
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=(3, B, T)) * np.array([1, 1, 2])[:, None, None]
    return *arrays.astype(np.float32).astype(float), random_mask(rng)


def as_jax(*arrays, garbage=None):
    *data, mask = arrays
    if garbage is not None:
        data = [np.where(mask > 0, x, garbage) for x in data]
    return [jnp.asarray(x, jnp.float32) for x in (*data, mask)]


def parts_of(arrays, parts):
    """The rows dealt into `parts` microbatches, in order."""
    split = [np.split(np.asarray(x), parts) for x in arrays]
    return [[jnp.asarray(x) for x in part] for part in zip(*split, strict=True)]


def slow_aggregate(x, mask, aggregate):
    """Lists of real tokens, one a sequence, then the mean that is asked for."""
    rows = [[x[b, t] for t in range(T) if mask[b, t]] for b in range(len(x))]
    if aggregate == "token-mean":
        tokens = [v for row in rows for v in row]
        return sum(tokens) / len(tokens) if tokens else 0.0
    if aggregate == "seq-mean":
        means = [sum(row) / len(row) for row in rows if row]
        return sum(means) / len(means) if means else 0.0
    return sum(sum(row) for row in rows) / (len(rows) * T)


def slow_policy_loss(new, old, advantages, mask, low, high, dual, clamp, aggregate):
    loss = np.zeros_like(new)
    for b, t in zip(*np.nonzero(mask), strict=True):
        log_ratio, a = new[b, t] - old[b, t], advantages[b, t]
        if clamp is not None:
            log_ratio = min(max(log_ratio, -clamp), clamp)
        ratio = np.exp(log_ratio)
        loss[b, t] = -min(a * ratio, a * min(max(ratio, 1 - low), 1 + high))
        if dual is not None and a < 0:
            loss[b, t] = min(loss[b, t], -dual * a)
    return slow_aggregate(loss, mask, aggregate)


def slow_value_loss(values, old, returns, mask, clip):
    loss = np.zeros_like(values)
    for b, t in zip(*np.nonzero(mask), strict=True):
        v, o, r = values[b, t], old[b, t], returns[b, t]
        near = v if clip is None else o + min(max(v - o, -clip), clip)
        loss[b, t] = 0.5 * max((v - r) ** 2, (near - r) ** 2)
    return slow_aggregate(loss, mask, "token-mean")


def finite_difference(fn, x, h=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        gradient[index] = (fn(x + step) - fn(x - step)) / (2 * h)
    return gradient


@functools.partial(jax.jit, static_argnames=("loss_fn", "static"))
def _grad(loss_fn, static, arrays, options):
    fn = lambda first: loss_fn(first, *arrays[1:], **dict(static), **options)
    return jax.value_and_grad(fn, has_aux=True)(arrays[0])


def grad_of(loss_fn, arrays, **options):
    """((loss, metrics), gradient of the first array); all options but `aggregate` are traced."""
    static = tuple((name, options.pop(name)) for name in ("aggregate",) if name in options)
    outcome = _grad(loss_fn, static, list(arrays), options)
    return jax.tree.map(np.asarray, outcome)

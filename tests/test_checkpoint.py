"""Checkpoints: exact round trips, donation right after a save, what is kept, errors in one line."""

import contextlib
import functools
import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ppo_jax import manifest
from ppo_jax.checkpoint import open_saver, save, wait
from ppo_jax.errors import CheckpointError, StorageError
from ppo_jax.removal import put_aside
from ppo_jax.restore import abstract_like, restore, restore_params
from ppo_jax.types import ScoreMoments, TrainState

ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


def make_state(seed=0, *, width=4, critic=True, ref=False):
    keys = jax.random.split(jax.random.key(seed), 4)
    policy = {
        "layers": [{"w": jax.random.normal(key, (width, 3))} for key in keys[:3]],
        "embed": jax.random.normal(keys[3], (width,)),
    }
    params = {"policy": policy, "value": {"head": jnp.ones((width,))} if critic else None}
    opt_state = {name: None if tree is None else ADAM.init(tree) for name, tree in params.items()}
    return TrainState(
        step=jnp.int32(seed),
        params=params,
        opt_state=opt_state,
        key=jax.random.key(seed + 40),
        kl_coef=jnp.float32(0.1),
        kl_error=jnp.float32(-0.2),
        moments=ScoreMoments(jnp.float32(3.0), jnp.float32(0.5), jnp.float32(0.25)),
        nonfinite=jnp.int32(1),
        tokens=jnp.float32(1e6),
        ref=jax.tree.map(jnp.copy, policy) if ref else None,
    )


@functools.partial(jax.jit, donate_argnums=0)
def donating_step(state):
    grads = jax.tree.map(jnp.cos, state.params["policy"])
    updates, policy_opt = ADAM.update(grads, state.opt_state["policy"])
    policy = optax.apply_updates(state.params["policy"], updates)
    return state._replace(
        step=state.step + 1,
        params={**state.params, "policy": policy},
        opt_state={**state.opt_state, "policy": policy_opt},
        tokens=state.tokens * 2.0,
    )


def to_numpy(tree):
    """Copies, not views: what is compared must outlive donation."""
    words = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return jax.tree.map(lambda x: np.array(words(x)), tree)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, to_numpy(left), to_numpy(right))


@contextlib.contextmanager
def no_late_garbage():
    """What a failure leaves in Orbax is destroyed here, and not while pytest parses a source.

    asyncio logs a traceback for each task destroyed, for which Python 3.11 parses a source too: if
    one happens within the other it raises SystemError, and pytest ends with an INTERNALERROR.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.enable()


@pytest.fixture(autouse=True)
def _no_late_garbage():
    with no_late_garbage():
        yield


def names(path):
    return sorted(child.name for child in path.iterdir())


def parts(*steps):
    """What lies in a folder that holds these steps and nothing else."""
    return sorted(name for step in steps for name in (f"{step}", f"{step}.json"))


@pytest.mark.parametrize("critic", [True, False])
@pytest.mark.parametrize("ref", [True, False])
def test_round_trip(tmp_path, critic, ref):
    state, path = make_state(critic=critic, ref=ref), tmp_path / "new" / "ck"
    with open_saver(path, keep=2) as saver:
        assert manifest.latest_step(path) is saver.durable is None
        save(saver, 3, state)
        wait(saver)
        assert manifest.latest_step(path) == saver.durable == 3 and saver.seconds > 0
    assert names(path) == parts(3)
    back = restore(path, 3, abstract_like(state))
    assert_same(back, state)
    assert type(back) is TrainState and type(back.moments) is ScoreMoments
    assert back.key.dtype == state.key.dtype
    params = restore_params(path)
    assert_same(params, state.params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))


def test_what_is_written_is_no_step_s_memory_and_the_same_in_each_save(tmp_path):
    """A donated array that Orbax still reads would hold the step up until it is on the disk."""
    state = make_state(width=4096)
    where = lambda tree: {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree.params)}
    with open_saver(tmp_path, keep=1) as saver:
        save(saver, 1, state)
        first = where(saver.spare)
        assert first.isdisjoint(where(state))
        state = donating_step(state)
        save(saver, 2, state)
        assert where(saver.spare) == first
    assert_same(restore(tmp_path, 2, abstract_like(state)), state)


def test_a_relative_path_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, path = make_state(), Path("ck")
    with open_saver(path, keep=2) as saver:
        save(saver, 1, state)
    assert_same(restore(path, 1, abstract_like(state)), state)
    assert_same(restore_params(path), state.params)


def test_shardings_are_those_asked_for(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    replicated = NamedSharding(mesh, PartitionSpec())
    state = jax.device_put(make_state(), replicated)
    with open_saver(tmp_path, keep=1) as saver:
        save(saver, 0, state)
    back = restore(tmp_path, 0, abstract_like(state))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    on_one = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
    moved = restore(tmp_path, 0, jax.tree.map(on_one, state))
    assert all(leaf.sharding == replicated for leaf in jax.tree.leaves(back))
    assert all(leaf.sharding == one for leaf in jax.tree.leaves(moved))
    assert_same(back, state)
    assert_same(moved, state)


def test_donating_right_after_a_save_is_safe(tmp_path):
    state, kept = make_state(width=20_000), {}
    with open_saver(tmp_path, keep=3) as saver:
        for step in range(3):
            kept[step] = to_numpy(state)
            save(saver, step, state)
            for _ in range(3):  # writes into the buffers being saved, if anything does
                state = donating_step(state)
        abstract = abstract_like(state)
    for step, expected in kept.items():
        assert_same(to_numpy(restore(tmp_path, step, abstract)), expected)


def test_resumed_equals_uninterrupted(tmp_path):
    straight = make_state()
    for _ in range(6):
        straight = donating_step(straight)
    state = make_state()
    for _ in range(3):
        state = donating_step(state)
    with open_saver(tmp_path, keep=2) as saver:
        save(saver, 3, state)
    with open_saver(tmp_path, keep=2) as saver:
        assert saver.durable == 3
        state = restore(saver.path, 3, abstract_like(make_state()))
        for _ in range(3):
            state = donating_step(state)
        save(saver, 6, state)
    assert_same(state, straight)


def test_newest_are_kept(tmp_path):
    states = [make_state(seed) for seed in range(5)]
    with open_saver(tmp_path, keep=2) as saver:
        for step, state in enumerate(states):
            save(saver, step, state)
        save(saver, 4, states[0])  # there already: left alone
        with pytest.raises(StorageError, match="step 1 comes before.*step 4"):
            save(saver, 1, states[1])
    assert names(tmp_path) == parts(3, 4)
    assert_same(restore_params(tmp_path), states[4].params)
    assert_same(restore_params(tmp_path, 3), states[3].params)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "goodness, keep, left",
    [
        ((1.0, 3.0, 2.0, 0.0), 1, (1, 3)),
        ((-1.0, -3.0, None, -2.0), 1, (0, 3)),
        ((1.0, 2.0, 3.0, 4.0), 2, (2, 3)),
        ((NAN, 1.0, None, 0.5), 1, (1, 3)),  # of NaN it cannot be said that it is better
        ((0.0, INF, -INF, None), 1, (0, 3)),
        ((NAN, None, NAN, None), 2, (2, 3)),
    ],
)
def test_the_best_is_kept_beside_the_newest(tmp_path, goodness, keep, left):
    for step, how_good in enumerate(goodness):  # each by a process of its own: the files know
        with open_saver(tmp_path, keep) as saver:
            goodness = None if how_good is None else ("score", how_good)
            save(saver, step, make_state(), goodness=goodness)
    assert names(tmp_path) == parts(*left)


def test_the_best_is_by_one_measure(tmp_path):
    """After another was asked for, numbers of the one before say nothing."""
    measures = [("score", 9.0), ("score", 8.0), ("-kl", -3.0), ("-kl", -1.0), ("-kl", -2.0)]
    with open_saver(tmp_path, keep=1) as saver:
        for step, goodness in enumerate(measures):
            save(saver, step, make_state(), goodness=goodness)
    assert names(tmp_path) == parts(3, 4)


def test_put_aside_twice(tmp_path):
    for number in range(2):
        with open_saver(tmp_path, keep=2) as saver:
            save(saver, 6, make_state(number))
        aside = put_aside(tmp_path, 6)
        assert aside.name == ("6.corrupt", "6.corrupt-2")[number]
        assert manifest.latest_step(tmp_path) is None and names(aside) == parts(6)
        assert_same(restore_params(aside), make_state(number).params)  # nothing of it is lost
    assert names(tmp_path) == ["6.corrupt", "6.corrupt-2"]


def refused(path, step, abstract):
    with pytest.raises(CheckpointError) as raised:
        restore(path, step, abstract)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message and f"step {step}" in message
    return message


def test_a_state_that_does_not_fit_names_the_tensor(tmp_path):
    state = make_state()
    with open_saver(tmp_path, keep=2) as saver:
        save(saver, 1, state)
    wider = abstract_like(make_state(width=5))
    message = refused(tmp_path, 1, wider)
    assert "opt_state.policy.1.mu.embed is float32[4], this run needs float32[5]" in message
    half = abstract_like(state)._replace(tokens=jax.ShapeDtypeStruct((), jnp.bfloat16))
    assert "tokens is float32[], this run needs bfloat16[]" in refused(tmp_path, 1, half)
    assert "ref.embed is not in it" in refused(tmp_path, 1, abstract_like(make_state(ref=True)))
    message = refused(tmp_path, 1, abstract_like(make_state(critic=False)))
    assert "opt_state.value.1.count is in it but not in this run's state" in message


def test_unreadable_checkpoints(tmp_path):
    abstract = abstract_like(make_state())
    for nothing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match=f"{nothing}: no checkpoint; there: none"):
            restore_params(nothing)
    with open_saver(tmp_path, keep=2) as saver:
        save(saver, 1, make_state())
    refused(tmp_path, 5, abstract)
    with pytest.raises(CheckpointError, match="no checkpoint of step 5; there: 1"):
        restore_params(tmp_path, 5)
    for data in (tmp_path / "1" / "state").glob("*/[0-9]*"):
        data.write_bytes(b"")
    refused(tmp_path, 1, abstract)
    with pytest.raises(CheckpointError, match="has 0 bytes"):
        restore_params(tmp_path)


@pytest.mark.parametrize("pattern, content", [("*/[0-9]*", ""), ("_METADATA", "{")])
def test_files_that_were_written_broken(tmp_path, pattern, content):
    """Their hashes are right, as the disk had lost them before they were read back."""
    with open_saver(tmp_path, keep=2) as saver:
        save(saver, 1, make_state())
    for file in (tmp_path / "1" / "state").glob(pattern):
        file.write_text(content)
    manifest.write_record(tmp_path, 1, {})
    refused(tmp_path, 1, abstract_like(make_state()))
    with pytest.raises(CheckpointError, match="step 1 cannot be restored"):
        restore_params(tmp_path)

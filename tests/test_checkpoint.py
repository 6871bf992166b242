"""Checkpoints: exact round trips, donation right after a save, and errors in one line."""

import functools
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ppo_jax.checkpoint import (
    abstract_like,
    latest_step,
    open_manager,
    restore,
    restore_params,
    save,
)
from ppo_jax.errors import CheckpointError, StorageError
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


@pytest.mark.parametrize("critic", [True, False])
@pytest.mark.parametrize("ref", [True, False])
def test_round_trip(tmp_path, critic, ref):
    state = make_state(critic=critic, ref=ref)
    with open_manager(tmp_path / "ck", keep=2) as manager:
        assert latest_step(manager) is None
        save(manager, 3, state)
        assert latest_step(manager) == 3
    with open_manager(tmp_path / "ck", keep=2, read_only=True) as manager:
        back = restore(manager, 3, abstract_like(state))
    assert_same(back, state)
    assert type(back) is TrainState and type(back.moments) is ScoreMoments
    assert back.key.dtype == state.key.dtype
    params = restore_params(tmp_path / "ck")
    assert_same(params, state.params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))


def test_shardings_are_those_asked_for(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    replicated = NamedSharding(mesh, PartitionSpec())
    state = jax.device_put(make_state(), replicated)
    with open_manager(tmp_path, keep=1) as manager:
        save(manager, 0, state)
        manager.wait_until_finished()
        back = restore(manager, 0, abstract_like(state))
        one = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
        on_one = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
        moved = restore(manager, 0, jax.tree.map(on_one, state))
    assert all(leaf.sharding == replicated for leaf in jax.tree.leaves(back))
    assert all(leaf.sharding == one for leaf in jax.tree.leaves(moved))
    assert_same(back, state)
    assert_same(moved, state)


def test_donating_right_after_a_save_is_safe(tmp_path):
    state, kept = make_state(width=20_000), {}
    with open_manager(tmp_path, keep=3) as manager:
        for step in range(3):
            kept[step] = to_numpy(state)
            save(manager, step, state)
            for _ in range(3):  # writes into the buffers being saved, if anything does
                state = donating_step(state)
        abstract = abstract_like(state)
    with open_manager(tmp_path, keep=3, read_only=True) as manager:
        for step, expected in kept.items():
            assert_same(to_numpy(restore(manager, step, abstract)), expected)


def test_resumed_equals_uninterrupted(tmp_path):
    straight = make_state()
    for _ in range(6):
        straight = donating_step(straight)
    state = make_state()
    for _ in range(3):
        state = donating_step(state)
    with open_manager(tmp_path, keep=2) as manager:
        save(manager, 3, state)
    with open_manager(tmp_path, keep=2) as manager:
        state = restore(manager, latest_step(manager), abstract_like(make_state()))
        for _ in range(3):
            state = donating_step(state)
        save(manager, 6, state)
    assert_same(state, straight)


def test_newest_are_kept(tmp_path):
    states = [make_state(seed) for seed in range(5)]
    with open_manager(tmp_path, keep=2) as manager:
        for step, state in enumerate(states):
            save(manager, step, state)
        save(manager, 4, states[0])  # there already: left alone
        with pytest.raises(StorageError, match="step 1 comes before.*step 4"):
            save(manager, 1, states[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]
    assert_same(restore_params(tmp_path), states[4].params)
    assert_same(restore_params(tmp_path, 3), states[3].params)


def test_stale_temporary_folders_go(tmp_path):
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    with open_manager(tmp_path, keep=2) as manager:
        assert latest_step(manager) is None
        save(manager, 1, make_state())
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_run_still_saves_and_comes_out(tmp_path, error):
    state = make_state()
    with pytest.raises(error, match="mine"), open_manager(tmp_path, keep=2) as manager:
        save(manager, 2, state)
        raise error("mine")
    assert_same(restore_params(tmp_path, 2), state.params)


def test_a_save_that_fails_is_a_storage_error(tmp_path, capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = make_state(width=50_000)
    try:
        with pytest.raises(StorageError, match="not saved") as raised:
            with open_manager(tmp_path / "a", keep=2) as manager:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
                save(manager, 1, state)
        with (
            pytest.raises(StorageError, match="step 2"),
            open_manager(tmp_path / "b", 2) as manager,
        ):
            save(manager, 1, state)
            save(manager, 2, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value) and raised.value.exit_code == 6
    assert capfd.readouterr().err == ""


def test_a_save_that_vanishes_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="step 1 is not there"):
        with open_manager(tmp_path, keep=2) as manager:
            save(manager, 1, make_state())
            manager.wait_until_finished()
            (tmp_path / "1").rename(tmp_path / "elsewhere")


def refused(path, step, abstract):
    with pytest.raises(CheckpointError) as raised, open_manager(path, 2, read_only=True) as manager:
        restore(manager, step, abstract)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message and f"step {step}" in message
    return message


def test_a_state_that_does_not_fit_names_the_tensor(tmp_path):
    state = make_state()
    with open_manager(tmp_path, keep=2) as manager:
        save(manager, 1, state)
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
    with pytest.raises(CheckpointError, match="nowhere"):
        restore_params(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        restore_params(tmp_path)
    with open_manager(tmp_path, keep=2) as manager:
        save(manager, 1, make_state())
    assert "there: 1" in refused(tmp_path, 5, abstract)
    with pytest.raises(CheckpointError, match="no checkpoint of step 5; there: 1"):
        restore_params(tmp_path, 5)
    for data in (tmp_path / "1" / "state").glob("**/d/*"):
        data.write_bytes(b"")
    refused(tmp_path, 1, abstract)
    with pytest.raises(CheckpointError, match="step 1 cannot be restored"):
        restore_params(tmp_path)
    (tmp_path / "1" / "state" / "_METADATA").write_text("{")
    refused(tmp_path, 1, abstract)
    with pytest.raises(CheckpointError, match="step 1 cannot be restored"):
        restore_params(tmp_path)

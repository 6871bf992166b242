"""Phase times: read off a real profile, and intervals counted once."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.profile import operation_phases, peak_memory_bytes, profiled, union_length


def test_union_length_against_a_painted_line():
    rng = np.random.default_rng(0)
    for _ in range(200):
        spans = [tuple(sorted(rng.integers(0, 50, 2).tolist())) for _ in range(rng.integers(0, 9))]
        painted = np.zeros(50, bool)
        for start, end in spans:
            painted[start:end] = True
        assert union_length(spans) == painted.sum()


def test_operations_take_the_phase_of_their_scope():
    text = """HloModule jit_train_step, is_scheduled=true
  %dot.1 = f32[2]{0} dot(%a, %b), metadata={op_name="jit(train_step)/rollout/while/body/dot"}
  ROOT fusion.2 = f32[2]{0} fusion(%dot.1), metadata={op_name="jit(train_step)/update/scan/add"}
  %copy.3 = f32[2]{0} copy(%dot.1)
  %add.4 = f32[2]{0} add(%a, %b), metadata={op_name="jit(train_step)/add"}
"""
    phases = operation_phases([text])
    assert phases == {
        ("jit_train_step", "dot.1"): "rollout",
        ("jit_train_step", "fusion.2"): "update",
    }


def test_profile_of_a_program_with_unequal_phases():
    @jax.jit
    def program(x):
        with jax.named_scope("rollout"):
            y = jax.lax.fori_loop(0, 400, lambda _, y: jnp.tanh(y @ x), x)
        with jax.named_scope("update"):
            return jax.lax.fori_loop(0, 20, lambda _, y: jnp.tanh(y @ x), y)

    x = jnp.eye(128)
    compiled = program.lower(x).compile()
    jax.block_until_ready(compiled(x))
    clock = time.monotonic()
    result, seconds = profiled(lambda: compiled(x), [compiled.as_text()])
    wall = time.monotonic() - clock
    np.testing.assert_array_equal(result, program(x))
    assert set(seconds) == {"time/rollout", "time/update"}
    assert 0 < seconds["time/update"] < seconds["time/rollout"] < wall


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_bytes()
    held = np.ones(300_000_000, np.uint8)
    assert peak_memory_bytes() >= max(before, held.nbytes)

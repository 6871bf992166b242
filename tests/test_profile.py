"""Phase times: read off a real profile, and intervals counted once."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.profile import (
    OTHER,
    merged,
    operation_phases,
    overlap,
    peak_memory_bytes,
    phase_segments,
    profiled,
    record,
)


def test_union_and_overlap_against_a_painted_line():
    rng = np.random.default_rng(0)
    for _ in range(200):
        spans = [tuple(sorted(rng.integers(0, 50, 2).tolist())) for _ in range(rng.integers(0, 9))]
        painted = np.zeros(50, bool)
        for start, end in spans:
            painted[start:end] = True
        union = merged(spans)
        assert sum(end - start for start, end in union) == painted.sum()
        assert all(a[1] < b[0] for a, b in zip(union, union[1:], strict=False))
        start, end = sorted(rng.integers(0, 50, 2).tolist())
        assert overlap(union, start, end) == painted[start:end].sum()


def test_phases_reach_over_nameless_operations_and_waits():
    spans = [
        (1, 2, None),  # before the first phase
        (2, 3, "rollout"),
        (4, 6, None),  # a nameless operation, a wait, all in the rollout
        (7, 9, "rollout"),
        (7, 8, "rollout"),  # inside of the one before
        (10, 11, None),  # between two phases
        (12, 15, "update"),
        (16, 17, None),  # after the last
    ]
    expected = [(1, 2, OTHER), (2, 9, "rollout"), (9, 12, OTHER), (12, 15, "update")]
    assert phase_segments(reversed(spans)) == [*expected, (15, 17, OTHER)]
    assert phase_segments([(1, 2, None)]) == [] == phase_segments([])


def test_segments_follow_each_other():
    rng = np.random.default_rng(1)
    for _ in range(200):
        starts = rng.integers(0, 40, rng.integers(1, 9))
        kinds = rng.choice(["rollout", "update", ""], len(starts))
        spans = [
            (int(s), int(s + rng.integers(1, 9)), str(k) or None)
            for s, k in zip(starts, kinds, strict=True)
        ]
        segments = phase_segments(spans)
        if not any(kinds):
            assert segments == []
            continue
        assert segments[0][0] == min(s for s, _, _ in spans)
        assert segments[-1][1] == max(e for _, e, _ in spans)
        assert all(start < end for start, end, _ in segments)
        for left, right in zip(segments, segments[1:], strict=False):
            assert left[1] == right[0] and left[2] != right[2]


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
        ("jit_train_step", "copy.3"): None,
        ("jit_train_step", "add.4"): None,
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


def test_the_timeline_lies_within_the_work():
    compiled = jax.jit(lambda x: jax.named_scope("rollout")(jnp.tanh)(x @ x)).lower(jnp.eye(256))
    compiled = compiled.compile()

    def work():
        time.sleep(0.05)
        return jax.block_until_ready(compiled(jnp.eye(256)))

    _, timeline = record(work, [compiled.as_text()])
    (begin, end), segments, busy = timeline
    assert begin + 0.05e9 <= segments[0][0] and segments[-1][1] <= end
    assert {phase for _, _, phase in segments} <= {"rollout", OTHER}
    assert 0 < overlap(busy, begin, end) <= segments[-1][1] - segments[0][0]


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_bytes()
    held = np.ones(300_000_000, np.uint8)
    assert peak_memory_bytes() >= max(before, held.nbytes)

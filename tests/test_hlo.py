"""Kernels, copies and loops read off a compiled program: against programs whose loops are known."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from ppo_jax import hlo
from ppo_jax.hlo_kernels import (
    Launches,
    custom_calls,
    decode_steps,
    moved,
    moved_before,
    phase_launches,
)

TEXT = """\
HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %e = f32[8]{0} exponential(%p)
}

%layer (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = (s32[], f32[8]{0:T(256)}) parameter(0)
  %x = f32[8]{0:T(256)} get-tuple-element(%a), index=1
  %f = f32[8]{0:T(256)} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/rollout/while/body/while/body/exp"}
  %c = (f32[8]{0:T(256)}, f32[8]{0:T(256)}, u32[]{:S(2)}) copy-start(%f)
  %d = f32[8]{0:T(256)} copy-done(%c)
  ROOT %t = (s32[], f32[8]{0:T(256)}) tuple(%i, %d)
}

%many (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %u = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused
  ROOT %v = f32[8]{0} custom-call(%u), custom_call_target="__cublas$gemm"
}

%few (a: f32[8]) -> f32[8] {
  %kept = f32[8]{0} parameter(0)
  ROOT %again = f32[8]{0} copy(%kept)
}

%decode (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[], f32[8]{0}) parameter(0)
  %w = (s32[], f32[8]{0}) while(%b), condition=%c0, body=%layer, metadata={op_name="jit(step)/rollout/while/body/while"}, backend_config={"known_trip_count":{"n":"24"}}
  %k = f32[8]{0} conditional(%pred, %g, %g), branch_computations={%many, %few}
  ROOT %r = (s32[], f32[8]{0}) tuple(%i, %k)
}

ENTRY %main (z: f32[8]) -> f32[8] {
  %z = f32[8]{0} parameter(0)
  %w2 = (s32[], f32[8]{0}) while(%t0), condition=%c1, body=%decode, metadata={op_name="jit(step)/rollout/while"}
  %ar = f32[8]{0} all-reduce(%g2), to_apply=%add, metadata={op_name="jit(step)/update/psum"}
  ROOT %cp = f32[8]{0} copy(%ar), metadata={op_name="jit(step)/update/copy"}
}
"""  # noqa: E501


PROGRAM = hlo.parse(TEXT)


def test_a_decode_step_counts_its_layers_as_often_as_they_run():
    # 24 layers of a fusion and an asynchronous copy of 8 floats (its destination and its source
    # are in its type), then the side of the branch that launches more.
    assert decode_steps(PROGRAM) == [
        Launches(kernels=24 * 2 + 2, copies=24, copy_bytes=24 * 8 * 4, fusions=25)
    ]


def test_phases_are_listed_once():
    phases = phase_launches(PROGRAM, ("rollout", "update"))
    assert phases["update"] == Launches(kernels=2, copies=1, copy_bytes=32, fusions=0)
    assert phases["rollout"] == Launches(kernels=1, copies=0, copy_bytes=0, fusions=1)


def test_foreign_kernels_by_name():
    assert custom_calls(PROGRAM) == {"__cublas$gemm": 1}
    assert custom_calls(PROGRAM, "layer") == {}


def test_what_a_step_was_given_and_copies():
    """The copy of a side's parameter; not that of what a fusion has just made."""
    (one,) = moved(PROGRAM, least=32)
    assert (one.name, one.type, one.bytes) == ("again", "f32[8]", 32)
    assert moved(PROGRAM, least=33) == []


CASTS = """\
HloModule jit_step

%cast (p: f32[4,4], q: f32[4,4]) -> bf16[8,4] {
  %p = f32[4,4]{1,0} parameter(0)
  %q = f32[4,4]{1,0} parameter(1)
  %j = f32[8,4]{1,0} concatenate(%p, %q), dimensions={0}
  ROOT %h = bf16[8,4]{1,0} convert(%j)
}

%reads (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %m = f32[4,4]{1,0} multiply(%p, %p)
}

%decode (b: (f32[4,4], f32[4,4])) -> (f32[4,4], f32[4,4]) {
  %b = (f32[4,4]{1,0}, f32[4,4]{1,0}) parameter(0)
  %x = f32[4,4]{1,0} get-tuple-element(%b), index=0
  %y = f32[4,4]{1,0} get-tuple-element(%b), index=1
  %z = f32[4,4]{1,0} bitcast(%y)
  %joined = bf16[8,4]{1,0} fusion(%x, %z), kind=kLoop, calls=%cast
  %made = f32[4,4]{1,0} fusion(%x), kind=kLoop, calls=%reads
  %chip = (f32[4,4]{1,0:S(1)}, f32[4,4]{1,0}, u32[]) copy-start(%x)
  %near = f32[4,4]{1,0:S(1)} copy-done(%chip)
  %part = ((f32[4,4]{1,0}), f32[2,4]{1,0:T(8,128)S(1)}, s32[]) slice-start(%y), slice={[0:2], [0:4]}
  %own = f32[4,4]{1,0} copy(%made)
  ROOT %r = (f32[4,4]{1,0}, f32[4,4]{1,0}) tuple(%own, %y)
}

ENTRY %main (z: f32[4,4]) -> f32[4,4] {
  %z = f32[4,4]{1,0} parameter(0)
  %own_w = bf16[4,4]{1,0} convert(%z), metadata={op_name="jit(step)/rollout/convert_element_type"}
  %ref = bf16[4,4]{1,0} convert(%z), metadata={op_name="jit(step)/scoring/convert_element_type"}
  %t = (f32[4,4]{1,0}, f32[4,4]{1,0}) tuple(%z, %z)
  %w = (f32[4,4]{1,0}, f32[4,4]{1,0}) while(%t), condition=%c, body=%decode, metadata={op_name="jit(step)/rollout/shard_map/while"}
  ROOT %g = f32[4,4]{1,0} get-tuple-element(%w), index=0
}
"""  # noqa: E501


def test_joins_and_casts_are_copies_and_reads_are_none():
    """Neither are moves into a TPU's memory on the chip, nor copies of what was made here."""
    program = hlo.parse(CASTS)
    assert [(one.name, one.bytes) for one in moved(program, least=16)] == [("joined", 64)]
    assert [(one.name, one.bytes) for one in moved_before(program, least=16)] == [("own_w", 32)]


@pytest.mark.parametrize(
    "scope,decodes",
    [
        ("jit(f)/rollout/while", True),
        ("jit(f)/rollout/shard_map/while", True),
        ("jit(f)/rollout/shard_map/while/body/while", False),
        ("jit(f)/rollout/shard_map/scatter", False),
        ("jit(f)/update/while", False),
    ],
)
def test_which_loops_decode(scope, decodes):
    line = f'  %w = s32[] while(%x), condition=%c, body=%b, metadata={{op_name="{scope}"}}'
    program = hlo.parse("ENTRY %e (x: s32[]) -> s32[] {\n" + line + "\n}\n")
    (op,) = program.computations["e"]
    assert hlo.is_decode_loop(program, op) is decodes
    assert op.called == ["c", "b"] and op.bodies == ["b"]


CONDITION = """\
HloModule m

%c (p: (s32[], f32[2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(30), metadata={stack_frame_id=221}
  %p = (s32[]{:T(128)}, f32[2]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %e (x: (s32[], f32[2])) -> (s32[], f32[2]) {
  %x = (s32[], f32[2]{0}) parameter(0)
  ROOT %w = (s32[], f32[2]{0}) while(%x), condition=%c, body=%b
}
"""


@pytest.mark.parametrize(
    "old,new,trips",
    [
        ("", "", 30),  # as a TPU's compiler leaves it: no count on the loop's own line
        ("direction=LT", "direction=GT", None),
        ("compare(%i, %limit)", "compare(%i, %i)", None),
        ("body=%b", 'body=%b, backend_config={"known_trip_count":{"n":"7"}}', 7),
    ],
)
def test_loops_that_count(old, new, trips):
    program = hlo.parse(CONDITION.replace(old, new) if old else CONDITION)
    assert program.trips(program.computations["e"][-1]) == trips


def test_lines_with_brackets_in_them():
    text = """\
HloModule m

ENTRY %e (x: (f32[2]{0}, s8[3])) -> f32[2] {
  %c = (f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/ pred[], bf16[4]{0}) custom-call(%x, f32[2]{0} %y), custom_call_target="a(b", backend_config={"k":"v)"}
  ROOT %k = f32[2]{0} constant({1, 2})
}
"""  # noqa: E501
    call, constant = hlo.parse(text).computations["e"]
    assert call.opcode == "custom-call" and call.operands == ["x", "y"] and call.space == 1
    assert hlo.array_bytes(call.type) == [24, 1, 8]
    assert constant.opcode == "constant" and constant.space == 0


def test_a_real_program_has_the_loops_it_was_written_with():
    def step(x, limit):
        with jax.named_scope("rollout"):
            layer = lambda i, y: jnp.sin(y) @ y
            body = lambda y: lax.fori_loop(0, 5, layer, y)
            x = lax.while_loop(lambda y: y[0, 0] < limit, body, x)
            return lax.while_loop(lambda y: y[0, 0] < 2 * limit, body, x)

    program = hlo.parse(jax.jit(step).lower(jnp.ones((8, 8)), 3.0).compile().as_text())
    trips = [program.trips(op) or 0 for op in hlo.operations(program) if op.opcode == "while"]
    assert sorted(trips) == [0, 0, 5, 5]
    decode = decode_steps(program)
    assert len(decode) == 2 and decode[0] == decode[1]
    assert 5 <= decode[0].kernels <= 5 * 12
    assert program.entry in program.computations

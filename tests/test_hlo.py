"""Kernels and loops read off a compiled program: against programs whose loops are known."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "bench"


@pytest.fixture(scope="module")
def hlo():
    spec = importlib.util.spec_from_file_location("hlo", FOLDER / "_hlo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["hlo"] = module
    spec.loader.exec_module(module)
    return module


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
  ROOT %v = f32[8]{0} custom-call(%u), custom_call_target="gemm"
}

%few (a: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} copy(%a)
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


def test_a_decode_step_counts_its_layers_as_often_as_they_run(hlo):
    # 24 layers of a fusion and an asynchronous copy of 8 floats (its destination and its source
    # are in its type), then the side of the branch that launches more.
    (step,) = hlo.decode_loops(TEXT)
    assert step == {"kernels": 24 * 2 + 2, "copies": 24, "copy_bytes": 24 * 8 * 4, "fusions": 25}


def test_phases_and_collectives_are_listed_once(hlo):
    phases = hlo.phase_launches(TEXT, ("rollout", "update"))
    assert phases["update"] == {"kernels": 2, "copies": 1, "copy_bytes": 32, "fusions": 0}
    assert phases["rollout"] == {"kernels": 1, "copies": 0, "copy_bytes": 0, "fusions": 1}
    assert hlo.collectives(TEXT) == {"all-reduce": 1}


def test_a_real_program_has_the_loops_it_was_written_with(hlo):
    def step(x, limit):
        with jax.named_scope("rollout"):
            layer = lambda i, y: jnp.sin(y) @ y
            body = lambda y: lax.fori_loop(0, 5, layer, y)
            x = lax.while_loop(lambda y: y[0, 0] < limit, body, x)
            return lax.while_loop(lambda y: y[0, 0] < 2 * limit, body, x)

    text = jax.jit(step).lower(jnp.ones((8, 8)), 3.0).compile().as_text()
    computations, entry = hlo.parse(text)
    assert sorted((op.trips or 0) for op in hlo.loops(computations)) == [0, 0, 5, 5]
    decode = hlo.decode_loops(text)
    assert len(decode) == 2 and decode[0] == decode[1]
    assert 5 <= decode[0]["kernels"] <= 5 * 12
    assert entry in computations

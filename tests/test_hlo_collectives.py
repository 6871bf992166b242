"""What a program sends between devices: groups as XLA writes them, phases, loops, and real ones."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from ppo_jax import hlo
from ppo_jax.config import ParallelOptions
from ppo_jax.hlo_collectives import collectives, crossed, device_groups, needless
from ppo_jax.sharding import AXES, make_mesh

PHASES = ("rollout", "scoring", "update")
MESH = {"data": 2, "fsdp": 1, "tensor": 2}

TEXT = """\
HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%fused (p: bf16[8]) -> bf16[4] {
  %p = bf16[8]{0} parameter(0)
  ROOT %rs = bf16[4]{0} reduce-scatter(%p), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}, to_apply=%sum
}

%all-reduce-scatter (p: bf16[8]) -> bf16[4] {
  %p = bf16[8]{0} parameter(0)
  %whole = bf16[8]{0} all-reduce(%p), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%sum
  ROOT %share = bf16[4]{0} dynamic-slice(%whole, %p), dynamic_slice_sizes={4}
}

%small (p: bf16[8]) -> bf16[4] {
  %p = bf16[8]{0} parameter(0)
  ROOT %rs2 = bf16[4]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
}

%minibatch (b: bf16[8]) -> bf16[8] {
  %b = bf16[8]{0} parameter(0)
  %g = (f32[8]{0}, bf16[8]{0}) all-reduce(%x, %b), replica_groups={}, to_apply=%sum, metadata={op_name="jit(step)/update/while/body/psum"}
  %f = bf16[4]{0} fusion(%b), kind=kCustom, calls=%fused
  %tpu = bf16[4]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter
  %i = s32[] constant(0)
  %k = bf16[4]{0} conditional(%i, %b, %b), branch_computations={%fused, %small}
  %x = f32[8]{0} convert(%b)
  ROOT %again = bf16[8]{0} copy(%b)
}

%decode (b: bf16[8]) -> bf16[8] {
  %b = bf16[8]{0} parameter(0)
  %s = (bf16[8]{0}, bf16[16]{0}) all-gather-start(%b), replica_groups={{0,1},{2,3}}, dimensions={0}
  %d = bf16[16]{0} all-gather-done(%s)
  %one = bf16[8]{0} all-reduce(%b), replica_groups={{0},{1},{2},{3}}, to_apply=%sum
  ROOT %l = bf16[8]{0} slice(%d), slice={[0:8]}
}

%until (b: bf16[8]) -> pred[] {
  %b = bf16[8]{0} parameter(0)
  %stop = pred[] constant(false)
  ROOT %any = pred[] all-reduce(%stop), replica_groups=mesh['a'=2,'b'=2] {'a'}, to_apply=%sum
}

ENTRY %main (z: bf16[8]) -> bf16[8] {
  %z = bf16[8]{0} parameter(0)
  %roll = bf16[8]{0} while(%z), condition=%until, body=%decode, metadata={op_name="jit(step)/rollout/shard_map/while"}
  %parts = bf16[8]{0} while(%roll), condition=%c, body=%minibatch, metadata={op_name="jit(step)/update/while"}
  ROOT %epochs = bf16[8]{0} while(%parts), condition=%c, body=%minibatch, metadata={op_name="jit(step)/update/while"}, backend_config={"known_trip_count":{"n":"3"}}
}

%c (b: bf16[8]) -> pred[] {
  %b = bf16[8]{0} parameter(0)
  ROOT %p = pred[] constant(true)
}
"""  # noqa: E501


def test_by_phase_axes_and_loops():
    found = {one.place: one[4:] for one in collectives(hlo.parse(TEXT), MESH, PHASES)}
    everything, data, tensor = ("data", "tensor"), ("data",), ("tensor",)
    # In a loop of three rounds and in one of at least one: 8 floats and 8 bfloat16.
    assert found.pop(("update", "all-reduce", everything, False)) == (4, 4 * 48.0, True)
    # In two fusions, and in a branch, whose other side sends as much.
    assert found.pop(("update", "reduce-scatter", data, False))[:2] == (4 * 3, 4 * 3 * 16.0)
    # Of a token; what each device does alone does not count.
    assert found.pop(("rollout", "all-gather", tensor, True)) == (1, 32.0, False)
    assert found.pop(("rollout", "all-reduce", data, True)) == (1, 1.0, False)
    assert not found


def test_what_the_decode_loop_need_not_hold():
    found = needless(collectives(hlo.parse(TEXT), MESH, PHASES))
    assert [(one.kind, one.axes) for one in found] == [("all-reduce", ("data",))]


@pytest.mark.parametrize(
    "text,groups",
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups={{0,1,2,3}}, to_apply=%s", [[0, 1, 2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("channel_id=1", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([0,3,1,2]) {'b'}", [[0, 3], [1, 2]]),
        ("source_target_pairs={{0,2},{2,0}}", [[0, 2], [2, 0]]),
    ],
)
def test_groups_as_xla_writes_them(text, groups):
    assert device_groups(text, 4) == groups


def test_axes_that_a_group_goes_along():
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    assert crossed([[0, 1], [2, 3]], mesh) == ("tensor",)
    assert crossed([[0, 2, 4, 6], [1, 3, 5, 7]], mesh) == ("data", "fsdp")
    assert crossed([[0], [1]], mesh) == ()


def decoded(mesh, stop_together: bool) -> str:
    """A loop that ends on each device by itself, or when all have ended."""

    def rows(x_BN):
        done = lambda y: (y < 100.0).any()
        if stop_together:
            done = lambda y: lax.pmax((y < 100.0).any().astype(jnp.int32), ("data", "fsdp")) > 0
        return lax.while_loop(done, lambda y: y * 2.0, x_BN)

    @functools.partial(jax.jit, static_argnums=())
    def step(x_BN):
        with jax.named_scope("rollout"):
            split = P(("data", "fsdp"))
            y_BN = jax.shard_map(rows, mesh=mesh, in_specs=split, out_specs=split)(x_BN)
        with jax.named_scope("update"):
            return y_BN.mean()

    return step.lower(jnp.ones((8, 4))).compile().as_text()


@pytest.mark.parametrize("together", [False, True])
def test_real_loops_with_and_without_a_common_end(together):
    mesh = make_mesh(ParallelOptions(data=4))
    program = hlo.parse(decoded(mesh, together))
    assert tuple(mesh.shape) == AXES and len(hlo.decode_loops(program)) == 1
    found = collectives(program, dict(mesh.shape), PHASES)
    assert bool(needless(found)) is together
    assert any(one.phase == "update" and one.axes == ("data",) for one in found)

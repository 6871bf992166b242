"""Where weights live on the mesh, and how they come together for use.

Every weight has a share of `tensor`, as Megatron-LM cuts it (Shoeybi et al. 2019, arXiv
1909.08053): matrices that read the residual stream by their columns, those that write to it by
their rows, tables by the vocabulary. What is left of it is shared over `fsdp` as in ZeRO's third
stage (Rajbhandari et al. 2019, arXiv 1910.02054): a matrix is gathered in the compute dtype right
where it is used, and its float32 gradient is summed to the shares.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppo_jax.sharding import BATCH, constrain_rows
from ppo_jax.types import Array, PyTree

# Modules by which side of their kernel [in, out] is shared over `tensor`; all others are whole.
BY_COLUMN = ("q", "k", "v", "qkv", "up", "gate", "up_gate", "lm_head")
BY_ROW = ("o", "down")
TABLES = ("embed", "positions")  # [vocabulary or positions, D]


class Place(NamedTuple):
    """Of one weight: how it is kept, and how it is used. Hashable, static."""

    mesh: Mesh
    kept: P
    used: P


def place_of(mesh: Mesh | None, module: str, name: str, shape: tuple[int, ...]) -> Place | None:
    """Of leaf `name` of a module; None where there is nothing to share, or where the rows' devices
    each run a program of their own (inside of a `shard_map`, which is given whole weights).

    `shape` is that of one layer. An axis whose size the mesh does not divide is kept whole.
    """
    if mesh is None or not _shares_weights(mesh):
        return None
    kept, used = _specs(mesh, module, name, shape)
    return Place(mesh, kept, used)


def gather(place: Place | None, x: Array) -> Array:
    """Inside a program: the weight as it is used."""
    return x if place is None else _constrain(x, place.mesh, place.used)


def share(place: Place | None, x: Array) -> Array:
    """Inside a program: a weight, or its gradient, as it is kept."""
    return x if place is None else _constrain(x, place.mesh, place.kept)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gathered(place: Place | None, dtype: jnp.dtype, x: Array) -> Array:
    """A weight as it is used, sent as this dtype, in which products read it; with the dtype of the
    weight itself, in which its gradient adds up before it is summed to the shares."""
    return x if place is None else gather(place, x.astype(dtype)).astype(x.dtype)


gathered.defvjp(
    lambda place, dtype, x: (gathered(place, dtype, x), None),
    lambda place, dtype, _, grad: (share(place, grad),),
)


def weight_shardings(mesh: Mesh | AbstractMesh, tree: PyTree) -> PyTree:
    """A NamedSharding a leaf of any tree of weights: trunks, heads, adapters, moments, whole train
    states. Leaves are told by their last two names; layers may be stacked along a leading axis."""

    def of(path, leaf) -> NamedSharding:
        module, name = _names(path)
        stacked = module in (*BY_COLUMN[:-1], *BY_ROW) and leaf.ndim == _ndim(name) + 1
        shape = leaf.shape[1:] if stacked else leaf.shape
        spec = _specs(mesh, module, name, shape)[0]
        return NamedSharding(mesh, P(None, *spec) if stacked else spec)

    return jax.tree_util.tree_map_with_path(of, tree)


def gather_trunk(mesh: Mesh | None, trunk: PyTree) -> PyTree:
    """Inside a program: a trunk whose layers are a list with every weight as it is used, for the
    sampler, which gets its own copy."""

    def use(path, x):
        return gather(place_of(mesh, *_names(path), x.shape), x)

    return jax.tree_util.tree_map_with_path(use, trunk)


def split_rows_only(mesh: Mesh | None, x_ZND: Array) -> Array:
    """Inside a program in global view whose weights are shared: states split by their rows alone,
    so that what a layer writes is summed over `tensor` before it is read again."""
    return x_ZND if mesh is None or not _shares_weights(mesh) else constrain_rows(mesh, x_ZND)


def _shares_weights(mesh: Mesh) -> bool:
    """Whether a program in global view, as this one, has weights in shares."""
    inside = jax.sharding.get_abstract_mesh().manual_axes
    return mesh.shape["fsdp"] * mesh.shape["tensor"] > 1 and not inside


def on_own_heads(mesh: Mesh | None, arrays: PyTree, axis: int) -> PyTree:
    """Inside a program: heads, which stand along `axis`, split over `tensor`; of the sampler too,
    whose devices each have rows of their own."""
    if mesh is None or mesh.shape["tensor"] == 1:
        return arrays
    inside = jax.sharding.get_abstract_mesh()
    if inside.manual_axes:
        place = NamedSharding(inside, P(*(None,) * axis, "tensor"))
    else:
        place = NamedSharding(mesh, P(*BATCH, *(None,) * (axis - 1), "tensor"))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, place), arrays)


def whole_logits(mesh: Mesh | None, logits_NV: Array) -> Array:
    """Inside of the sampler: logits that every device of `tensor` draws from alike."""
    if mesh is None or mesh.shape["tensor"] == 1:
        return logits_NV
    inside = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(logits_NV, NamedSharding(inside, P()))


def share_count(sharding: NamedSharding) -> int:
    """In how many shares an array is cut."""
    axes = [axis for part in sharding.spec if part is not None for axis in _tuple(part)]
    return math.prod(sharding.mesh.shape[axis] for axis in axes)


def _specs(
    mesh: Mesh | AbstractMesh, module: str, name: str, shape: tuple[int, ...]
) -> tuple[P, P]:
    """(kept, used)."""
    rows, columns = _axes(module, name)
    if len(shape) != _ndim(name) or rows is columns is None:
        return P(), P()
    if len(shape) == 1:
        kept = used = [columns]
    else:
        kept, used = [rows, columns], [_only_tensor(rows), _only_tensor(columns)]
    fits = lambda axis, size: axis is None or size % mesh.shape[axis] == 0
    cut = lambda axes: P(*(a if fits(a, n) else None for a, n in zip(axes, shape, strict=True)))
    return cut(kept), cut(used)


def _axes(module: str, name: str) -> tuple[str | None, str | None]:
    """Mesh axes of a leaf's rows and columns; of a vector, the latter."""
    if name == "embedding" and module in TABLES:
        return ("tensor" if module == "embed" else None), "fsdp"
    by_column, by_row = module in BY_COLUMN, module in BY_ROW
    if not by_column and not by_row:
        return None, None
    if name in ("bias", "kernel_scale"):
        return None, "tensor" if by_column else None
    if name == "kernel":
        return ("fsdp", "tensor") if by_column else ("tensor", "fsdp")
    if name == "lora_a":
        return ("fsdp" if by_column else "tensor"), None
    if name == "lora_b":
        return None, ("tensor" if by_column else "fsdp")
    return None, None


def _ndim(name: str) -> int:
    """Of a leaf of one layer."""
    return 2 if name in ("kernel", "embedding", "lora_a", "lora_b") else 1


def _only_tensor(axis: str | None) -> str | None:
    return axis if axis == "tensor" else None


def _names(path: tuple[Any, ...]) -> tuple[str, str]:
    """(module, leaf) by the last two dictionary keys; empty where there are none."""
    keys = [str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey)]
    return (keys[-2], keys[-1]) if len(keys) > 1 else ("", keys[-1] if keys else "")


def _tuple(part: Any) -> tuple[str, ...]:
    return part if isinstance(part, tuple) else (part,)


def _constrain(x: Array, mesh: Mesh, spec: P) -> Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

"""The mesh, and where rows of a batch live on it; `weight_sharding` says where weights do.

Axes: `data` and `fsdp` share the rows; `fsdp` also holds a share of every weight each, gathered for
use; `tensor` shares the heads and the widths of the matrices. In a run of several processes the
mesh spans all their devices, and each process puts and fetches the rows of its own.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppo_jax.config import ParallelOptions
from ppo_jax.errors import ConfigError
from ppo_jax.types import PyTree

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))  # rows of a batch
REPLICATED = P()
# Runs that share a program: of the devices that they are dealt to, and of what one has at once.
RUNS, AT_ONCE = "runs", "at_once"


def make_mesh(parallel: ParallelOptions, devices: list | None = None) -> Mesh:
    """Mesh `data` x `fsdp` x `tensor` of the first so many devices; -1 is what the others leave.

    On TPUs the axes follow the links between the chips; slices that are joined by a network alone
    share the `data` axis. Raises ConfigError if they cannot.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parallel.sizes(len(devices))
    return Mesh(_grid(sizes, devices[: math.prod(sizes)]), AXES, axis_types=(AxisType.Auto,) * 3)


def make_runs_mesh(runs: int) -> Mesh:
    """Mesh of the fewest devices on which no device has more of `runs` runs than it must; each run
    is on one."""
    devices = jax.devices()
    most = math.ceil(runs / len(devices))
    grid = np.asarray(devices[: math.ceil(runs / most)])
    return Mesh(grid, (RUNS,), axis_types=(AxisType.Auto,))


def _grid(sizes: tuple[int, int, int], devices: list) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(sizes)
    if slices > 1:
        if sizes[0] % slices:
            raise ConfigError(
                f"parallel.data={sizes[0]}: the TPU has {slices} slices, which share this axis "
                f"alone; expected a multiple of {slices}; nearest valid: "
                f"{max(slices, sizes[0] // slices * slices)}"
            )
        inside = (sizes[0] // slices, *sizes[1:])
        across = (slices, 1, 1)
        return mesh_utils.create_hybrid_device_mesh(
            inside, across, devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def batch_devices(mesh: Mesh) -> int:
    """How many shares the rows of a batch have."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, REPLICATED)


def put_batch(mesh: Mesh, rows: PyTree) -> PyTree:
    """Host arrays with leading axis B, the same in every process, dealt to the devices."""
    return jax.tree.map(lambda x: _placed(x, batch_sharding(mesh)), rows)


def put_replicated(mesh: Mesh, tree: PyTree) -> PyTree:
    """Every leaf whole on every device, in buffers of its own (safe to donate)."""
    return put(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays of the host, the same in every process, laid out in buffers of their own."""
    leaves, structure = jax.tree.flatten(tree)
    wanted = structure.flatten_up_to(shardings)
    impls = [jax.random.key_impl(x) if _is_key(x) else None for x in leaves]
    words = [
        x if impl is None else jax.random.key_data(x) for x, impl in zip(leaves, impls, strict=True)
    ]
    placed = [_placed(x, sharding) for x, sharding in zip(words, wanted, strict=True)]

    def whole(arrays):
        # A key's words are what travels: no process can place a key on the devices of another.
        wrap = lambda x, impl: x.copy() if impl is None else jax.random.wrap_key_data(x, impl=impl)
        return list(map(wrap, arrays, impls))

    # On the CPU what was placed may be memory of NumPy's, which a program must not write over.
    donate = () if wanted and wanted[0].mesh.devices.flat[0].platform == "cpu" else (0,)
    return structure.unflatten(jax.jit(whole, out_shardings=wanted, donate_argnums=donate)(placed))


def _placed(x, sharding: NamedSharding) -> jax.Array:
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _is_key(x) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def own_rows(mesh: Mesh, count: int) -> np.ndarray:
    """Which of `count` rows of a batch lie on this process's devices, ascending."""
    shares = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    rows = [np.arange(count)[share[0]] for share in shares if share is not None]
    return np.unique(np.concatenate(rows))


def put_own_rows(mesh: Mesh, count: int, rows: PyTree) -> PyTree:
    """Arrays [count, ...] on all devices, of which this process has the rows `own_rows` names."""
    own = own_rows(mesh, count)

    def place(x):
        x = np.asarray(x)
        take = lambda index: x[np.searchsorted(own, np.arange(count)[index[0]])]
        shape = (count, *x.shape[1:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh), take)

    return jax.tree.map(place, rows)


def fetch_own_rows(mesh: Mesh, rows: PyTree) -> PyTree:
    """The rows of this process as NumPy arrays, in the order of `own_rows`; waits for them."""

    def fetch(x: jax.Array | np.ndarray) -> np.ndarray:
        if isinstance(x, np.ndarray) or x.is_fully_addressable:
            return np.asarray(x)
        shares = {s.index[0].start or 0: s for s in x.addressable_shards}
        return np.concatenate([np.asarray(shares[start].data) for start in sorted(shares)])

    return jax.tree.map(fetch, rows)


def on_each_device(mesh: Mesh | None, function: Callable, whole: PyTree, rows: PyTree) -> PyTree:
    """Inside a program: `function(whole, rows)`, run by every device on its own share of the rows.

    The gradient of `whole` is summed over the devices once, after what `function` itself loops
    over. The loops of one device may end before those of another.
    """
    if mesh is None or batch_devices(mesh) == 1 or jax.sharding.get_abstract_mesh().manual_axes:
        return function(whole, rows)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(REPLICATED, BATCH),
        out_specs=BATCH,
        axis_names=manual_axes(mesh),
        check_vma=False,  # carries of loops start as constants, the same on every device
    )(whole, rows)


def manual_axes(mesh: Mesh) -> set[str]:
    """The axes of a `shard_map`: the compiler itself splits over `tensor`, where there is such."""
    return set(mesh.axis_names if mesh.shape["tensor"] == 1 else mesh.axis_names[:2])


def constrain_rows(mesh: Mesh, rows: PyTree, axis: int = 0) -> PyTree:
    """Inside a program: keep the rows (at `axis`) of every leaf split over the batch devices."""
    if mesh.size == 1:
        return rows
    spec = P(*(None,) * axis, *BATCH)
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec)), rows
    )

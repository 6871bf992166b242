"""The mesh and where arrays live on it: the only file that names mesh axes."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppo_jax.config import ParallelOptions
from ppo_jax.types import PyTree

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))  # rows of a batch; everything else is replicated
REPLICATED = P()


def make_mesh(parallel: ParallelOptions, devices: list | None = None) -> Mesh:
    """Mesh of `parallel.data` devices (all of them for -1) along the data axis."""
    devices = jax.devices() if devices is None else devices
    data = len(devices) if parallel.data == -1 else parallel.data
    grid = np.asarray(devices[:data]).reshape(data, 1, 1)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_devices(mesh: Mesh) -> int:
    """How many devices share the rows of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_batch(mesh: Mesh, rows: PyTree) -> PyTree:
    """Host arrays with leading axis B, dealt to the devices."""
    return jax.device_put(rows, batch_sharding(mesh))


def put_replicated(mesh: Mesh, tree: PyTree) -> PyTree:
    """Every leaf whole on every device, in buffers of its own (safe to donate)."""
    return jax.jit(lambda t: jax.tree.map(lambda x: x.copy(), t), out_shardings=replicated(mesh))(
        tree
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, REPLICATED)


def constrain_rows(mesh: Mesh, rows: PyTree, axis: int = 0) -> PyTree:
    """Inside a program: keep the rows (at `axis`) of every leaf split over the batch devices."""
    spec = P(*(None,) * axis, *BATCH)
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec)), rows
    )

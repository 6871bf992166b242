"""What rests in the memory of the host beside each device, and comes to it where it is used.

Where an array rests, its sharding says; where it is inside of a program, its type. So whoever reads
weights or moments fetches them, and nobody else need know of the option.
"""

import jax

from ppo_jax.config import Config
from ppo_jax.errors import ConfigError
from ppo_jax.types import Array, PyTree, TrainState
from ppo_jax.weight_sharding import weight_shardings

HOST = "pinned_host"
# Fields of the train state, and keys of what is frozen.
RESTING = {
    "none": (),
    "reference": ("ref",),
    "optimizer": ("opt_state",),
    "both": ("ref", "opt_state"),
}


def shardings_at_rest(config: Config, mesh, tree: TrainState | dict[str, PyTree]) -> PyTree:
    """A NamedSharding a leaf of the train state, or of what is frozen: `weight_shardings`, and in
    whose memory. Scalars and vectors stay on the device, where they are as good as nothing."""
    shardings = weight_shardings(mesh, tree)
    state = isinstance(tree, TrainState)
    parts = tree._asdict() if state else tree
    rest = lambda x, sharding: sharding.with_memory_kind(HOST) if x.ndim > 1 else sharding
    where = shardings._asdict() if state else shardings
    moved = {
        name: jax.tree.map(rest, parts[name], where[name])
        for name in RESTING[config.parallel.offload]
        if name in parts
    }
    return shardings._replace(**moved) if state else shardings | moved


def fetched(tree: PyTree, after: PyTree = None) -> PyTree:
    """Inside a program: what of the arrays rests on the host, on the device; no sooner than
    `after` is there, as far as the compiler keeps to that."""
    leaves, structure = jax.tree.flatten(tree)
    resting = [i for i, x in enumerate(leaves) if rests(x)]
    waiting = [leaves[i] for i in resting]
    if waiting and after is not None:
        waiting, _ = jax.lax.optimization_barrier((waiting, after))
    for i, x in zip(resting, waiting, strict=True):
        leaves[i] = jax.device_put(x, jax.memory.Space.Device)
    return structure.unflatten(leaves)


def put_back(tree: PyTree, like: PyTree) -> PyTree:
    """Inside a program: the arrays where those of `like` are."""
    back = lambda x, old: jax.device_put(x, jax.memory.Space.Host) if rests(old) else x
    return jax.tree.map(back, tree, like)


def rests(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether an array, or what stands for it inside a program, is on the host."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def check_memories(config: Config, devices: list) -> None:
    """ConfigError where something is to rest on the host and the devices cannot reach it there."""
    asked = config.parallel.offload
    if asked == "none":
        return
    kinds = [memory.kind for memory in devices[0].addressable_memories()]
    if HOST not in kinds:
        raise ConfigError(
            f"parallel.offload={asked}: {devices[0].device_kind} has no memory of the host that it "
            f"reads by itself ({HOST}), but {', '.join(kinds)}; nearest valid: none"
        )

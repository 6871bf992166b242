"""Impossible meshes, found before anything is loaded; `validate` asks for them all."""

import math
from collections.abc import Iterator

from ppo_jax.config import Config, ModelConfig
from ppo_jax.validate_model import Mistakes, near_divisors, near_multiples

AXES = ("data", "fsdp", "tensor")


def mesh_options(config: Config) -> Mistakes:
    """What is wrong whatever the devices."""
    parallel = config.parallel
    rest = [axis for axis in AXES if getattr(parallel, axis) == -1]
    if len(rest) > 1:
        second = rest[0] if rest[0] != "data" else rest[1]
        other = next(axis for axis in rest if axis != second)
        yield (
            f"parallel.{second}",
            f"one axis alone takes the rest of the devices, and parallel.{other} does; nearest "
            f"valid: 1 (or set parallel.{other}=1)",
        )
    shared = [axis for axis in AXES[1:] if getattr(parallel, axis) != 1]
    if parallel.rollout == "pmap" and shared:
        yield (
            "parallel.rollout",
            f"pmap has no parallel.{shared[0]}; nearest valid: shard_map",
        )
    if config.model.lora.rank is not None and parallel.offload in ("reference", "both"):
        near = "optimizer" if parallel.offload == "both" else "none"
        yield (
            "parallel.offload",
            f"with model.lora.rank={config.model.lora.rank} the reference is the base under the "
            f"policy's own adapters, which is in use all the time; nearest valid: {near}",
        )


def mesh_devices(config: Config, device_count: int, processes: int = 1) -> Mistakes:
    """What these devices, of so many processes, cannot be, or cannot share."""
    parallel, batch, ppo = config.parallel, config.rollout.batch_size, config.ppo
    sizes = parallel.sizes(device_count)
    asked = {axis: getattr(parallel, axis) for axis in AXES}
    if device_count % math.prod(sizes):
        axis, others, room = _too_large(asked, device_count)
        near = near_divisors(asked[axis], room)
        rest = ", or -1 for the rest" if -1 not in asked.values() else ""
        beside = "" if others == 1 else f" beside {others} for the other axes"
        yield (
            f"parallel.{axis}",
            f"must divide the {device_count} devices present{beside}; nearest valid: {near}{rest}",
        )
    if processes > 1 and parallel.rollout == "pmap":
        yield "parallel.rollout", "pmap is of one process; nearest valid: shard_map"
    if device_count % math.prod(sizes) == 0 and 1 < processes and math.prod(sizes) != device_count:
        yield (
            "parallel.data",
            f"a run of {processes} processes has all their {device_count} devices, not "
            f"{math.prod(sizes)}; nearest valid: -1",
        )
    shares = sizes[0] * sizes[1]
    if config.microbatch_size % shares:
        rows = ppo.minibatches * ppo.microbatches * shares
        near = near_multiples(batch, math.lcm(rows, config.rollout.samples_per_prompt))
        yield (
            "rollout.batch_size",
            f"{shares} devices cannot share a microbatch of {config.microbatch_size} rows "
            f"(ppo.minibatches={ppo.minibatches}, ppo.microbatches={ppo.microbatches}); "
            f"nearest valid: {near}",
        )
    slots = config.rollout.slots
    if slots is not None and slots % shares:
        near = near_multiples(slots, shares)
        yield "rollout.slots", f"{shares} devices cannot share them; nearest valid: {near}"


def _too_large(asked: dict[str, int], device_count: int) -> tuple[str, int, int]:
    """(an axis, devices of the others, what these leave it), of sizes that together do not divide
    the devices: one that does not divide what the others leave."""
    named = sorted((a for a in AXES if asked[a] > 1), key=lambda a: -asked[a])
    alone = [(a, 1, device_count) for a in named if device_count % asked[a]]
    others = {a: math.prod(asked[b] for b in named if b != a) for a in named}
    rooms = {a: device_count // math.gcd(device_count, others[a]) for a in named}
    return (alone or [(a, others[a], rooms[a]) for a in named if rooms[a] % asked[a]])[0]


def shared_model(config: Config, model: ModelConfig, device_count: int) -> Mistakes:
    """What of a model `fsdp` and `tensor` cannot share."""
    _, fsdp, tensor = config.parallel.sizes(device_count)
    if model.embed_dim % fsdp:  # every weight's axis that is cut
        yield (
            "parallel.fsdp",
            f"{fsdp} devices cannot share the model's width of {model.embed_dim}; nearest valid: "
            f"{max(n for n in _divisors(fsdp) if model.embed_dim % n == 0)} (parallel.data takes "
            "the rest)",
        )
    counts = {
        "key-value heads": model.num_kv_heads,
        "heads": model.num_heads,
        "columns of the MLP": model.mlp_dim,
    }
    for what, count in counts.items():
        if count % tensor:
            valid = [n for n in _divisors(tensor) if all(c % n == 0 for c in counts.values())]
            yield (
                "parallel.tensor",
                f"cannot share the model's {count} {what}; nearest valid: {valid[-1]}",
            )
    if tensor > 1 and model.fused_qkv:
        yield (
            "parallel.tensor",
            f"the models of family {model.family} make q, k and v by one matrix, which is not cut "
            "by heads; nearest valid: 1 (parallel.fsdp shares such a model)",
        )


def _divisors(number: int) -> Iterator[int]:
    return (n for n in range(1, number + 1) if number % n == 0)

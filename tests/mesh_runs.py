"""Runs on meshes of eight fake devices, in a process of their own: `mesh_runs.py KIND OUT.npz`.

The tests of this folder have four devices, which is settled before any of them begins.
"""

import functools
import os
import re
import sys
from collections.abc import Iterator

if __name__ == "__main__":  # before jax looks
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np

import step_builders as builders
from ppo_jax.config import LoraOptions, replace
from ppo_jax.step import train_step

SHAPE = {
    "model.shape.num_layers": 2,
    "model.shape.num_heads": 4,
    "model.shape.num_kv_heads": 2,
    "model.shape.head_dim": 8,
}
BASE = replace(
    builders.BASE,
    **SHAPE,
    **{
        "rollout.batch_size": 16,
        "rollout.max_new_tokens": 24,
        "rollout.cache_widths": 1,
        "ppo.epochs": 1,
        "ppo.minibatches": 1,
        "hparams.max_grad_norm": None,
    },
)
KINDS = {
    "unrolled": {"ppo.token_sizes": 2, "ppo.microbatches": 2},
    "scanned": {
        "model.scan_layers": "scan",
        "model.remat": "full",
        "model.critic": "separate",
        "model.shape.tie_embeddings": False,
        "model.shape.qkv_bias": True,
        "model.shape.mlp_bias": True,
        "model.logit_chunk": 4,
    },
    "adapters": {"model.lora": LoraOptions(rank=2), "model.shape.position": "learned"},
}
MESHES = {  # data, fsdp, tensor
    "one": (1, 1, 1),
    "data 8": (8, 1, 1),
    "fsdp 8": (1, 8, 1),
    "data 4, tensor 2": (4, 1, 2),
    "data 2, fsdp 2, tensor 2": (2, 2, 2),
}
SOME = ("one", "data 2, fsdp 2, tensor 2")  # of the adapters
ITERATIONS = 2
COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)")


def cases() -> Iterator[tuple[str, str, str]]:
    """(kind, mesh, how the rollout is mapped)."""
    for kind in KINDS:
        for mesh in MESHES if kind != "adapters" else SOME:
            yield kind, mesh, "shard_map"
    yield "unrolled", "data 8", "pmap"


def run(kind: str, mesh: str, rollout: str) -> Iterator[tuple[str, np.ndarray]]:
    data, fsdp, tensor = MESHES[mesh]
    sizes = {"parallel.fsdp": fsdp, "parallel.tensor": tensor, "parallel.rollout": rollout}
    config = replace(BASE, **KINDS[kind], **sizes)
    setup = builders.setup_of(config, data)
    state, frozen = builders.start(setup)
    hparams = builders.traced(config.hparams)
    keep = jax.tree.map(lambda x: x.sharding, state)
    program = jax.jit(functools.partial(train_step, setup), out_shardings=(keep, None, None, None))
    lowered = program.lower(state, frozen, hparams, builders.prompts_at(setup))
    # Without optimisation: compiling takes nearly all of the time.
    program = lowered.compile({"xla_backend_optimization_level": 0})
    yield "decode collectives", np.asarray(decode_collectives(program.as_text()), np.int32)
    yield "largest share", np.asarray(largest_share(state.params), np.float32)
    for step in range(ITERATIONS):
        state, metrics, drawn, _ = program(state, frozen, hparams, builders.prompts_at(setup, step))
        yield f"ids {step}", jax.device_get(drawn.response_ids_BT)
        yield f"slot steps {step}", jax.device_get(drawn.slot_steps_B)
        for name, value in metrics.items():
            yield f"metric {step} {name}", jax.device_get(value)
        moments = jax.tree_util.tree_leaves_with_path(state.opt_state)
        for path, leaf in moments:  # after one step of Adam: a tenth of the gradient
            if step == 0 and ".mu" in (name := jax.tree_util.keystr(path)):
                yield f"gradient {name}", jax.device_get(leaf) * 10


def largest_share(params) -> float:
    """Of the bytes of all weights, those that one device holds."""
    whole = sum(x.nbytes for x in jax.tree.leaves(params))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    return held / whole


def decode_collectives(hlo: str) -> int:
    """Collectives in the bodies of the rollout's loops, and in what these call."""
    parts = re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", hlo, re.M | re.S)
    bodies = dict(parts)
    loops = [
        name
        for body in bodies.values()
        for line in body.splitlines()
        if " while(" in line and "/rollout/" in line
        for name in re.findall(r"body=%?([\w.\-]+)", line)
    ]
    assert loops, "the program has no decode loop"
    seen, waiting = set(), loops
    while waiting:
        name = waiting.pop()
        if name in bodies and name not in seen:
            seen.add(name)
            called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", bodies[name])
            branches = re.findall(r"branch_computations=\{([^}]*)\}", bodies[name])
            called += [n.strip(" %") for group in branches for n in group.split(",")]
            waiting += called
    return sum(bool(COLLECTIVE.search(line)) for name in seen for line in bodies[name].splitlines())


def main(kind: str, out: str) -> None:
    arrays = {}
    for case in cases():
        if case[0] == kind:
            arrays |= {"/".join((*case, name)): array for name, array in run(*case)}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])

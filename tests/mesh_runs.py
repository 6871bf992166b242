"""Runs on meshes of eight fake devices, in a process of their own: `mesh_runs.py GROUP OUT.npz`.

The tests of this folder have four devices, which is settled before any of them begins.
"""

import dataclasses
import functools
import os
import re
import sys
from collections.abc import Iterator

if __name__ == "__main__":  # before jax looks
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np

import family_configs
import step_builders as builders
from ppo_jax import hlo
from ppo_jax.config import Config, LoraOptions, ModelConfig, replace
from ppo_jax.hlo_collectives import KINDS as COLLECTIVES
from ppo_jax.hlo_collectives import collectives, needless
from ppo_jax.profile import PHASES
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
# Of the families, whose programs differ in the model alone: what compiles soonest.
SMALL = {"rollout.batch_size": 8, "rollout.max_new_tokens": 8, "rollout.compactions": 0}


def _shape(case: str, **changes) -> ModelConfig:
    return dataclasses.replace(
        family_configs.model_config(case),
        vocab_size=builders.VOCAB,
        eos_token_ids=(builders.EOS,),
        pad_token_id=builders.PAD,
        init_std=0.2,
        **changes,
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
RICH = family_configs.RICH
FAMILIES = {
    # One matrix for q, k and v; biases; ungated; learned positions and rope on a part of a head.
    "gpt2": {"model.shape": _shape(RICH["gpt2"], num_layers=1)},
    "gpt_neox": {"model.shape": _shape(RICH["gpt_neox"]), "model.scan_layers": "scan"},
    # Their layer with q, k and v apart, which is what `tensor` can share.
    "gpt": {
        "model.shape": _shape("gpt2-tied", num_layers=1, fused_qkv=False, parallel_residual=True),
        "model.remat": "dots",
    },
    # Windows in some of the layers, soft caps, norms before and after, scaled embeddings.
    "gemma2": {
        "model.shape": _shape(RICH["gemma2"]),
        "model.scan_layers": "scan",
        "model.remat": "full",
    },
    # Normed queries and keys; two bases of rope; the sampler's weights in 8 bits.
    "gemma3_text": {
        "model.shape": _shape(RICH["gemma3_text"], num_layers=2, local_layers=(True, False)),
        "rollout.weights": "int8",
    },
    "qwen3": {"model.shape": _shape(RICH["qwen3"]), "model.remat": "dots"},
}
FUSED = ("gpt2", "gpt_neox")
MESHES = {  # data, fsdp, tensor
    "one": (1, 1, 1),
    "data 8": (8, 1, 1),
    "fsdp 8": (1, 8, 1),
    "data 4, tensor 2": (4, 1, 2),
    "data 2, fsdp 2, tensor 2": (2, 2, 2),
}
SOME = ("one", "fsdp 8", "data 2, fsdp 2, tensor 2")
MESHES_OF = {
    "adapters": ("one", "data 2, fsdp 2, tensor 2"),
    **{family: SOME[:2] if family in FUSED else SOME for family in FAMILIES},
}
ITERATIONS = 2


def cases() -> Iterator[tuple[str, str, str]]:
    """(kind, mesh, how the rollout is mapped)."""
    for kind in (*KINDS, *FAMILIES):
        for mesh in MESHES_OF.get(kind, MESHES):
            yield kind, mesh, "shard_map"
    yield "unrolled", "data 8", "pmap"


def group_of(kind: str) -> str:
    """Which kinds one process runs."""
    return "families" if kind in FAMILIES else kind


def config_of(kind: str, mesh: str, rollout: str = "shard_map") -> Config:
    _, fsdp, tensor = MESHES[mesh]
    sizes = {"parallel.fsdp": fsdp, "parallel.tensor": tensor, "parallel.rollout": rollout}
    changes = SMALL | FAMILIES[kind] if kind in FAMILIES else KINDS[kind]
    return replace(BASE, **changes, **sizes)


def run(kind: str, mesh: str, rollout: str) -> Iterator[tuple[str, np.ndarray]]:
    setup = builders.setup_of(config_of(kind, mesh, rollout), MESHES[mesh][0])
    state, frozen = builders.start(setup)
    state = _with_all_adapters(state)
    hparams = builders.traced(setup.config.hparams)
    keep = jax.tree.map(lambda x: x.sharding, state)
    program = jax.jit(functools.partial(train_step, setup), out_shardings=(keep, None, None, None))
    lowered = program.lower(state, frozen, hparams, builders.prompts_at(setup))
    # Compiling takes nearly all of the time, hence as little of it as can be.
    quick = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    program = lowered.compile(quick)
    yield from facts(program.as_text() or "", dict(setup.mesh.shape))
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
    for part in ("params", "opt_state"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(state, part)):
            held = leaf.addressable_shards[0].data.size / leaf.size
            yield f"share {part}{jax.tree_util.keystr(path)}", np.asarray(held, np.float32)


def _with_all_adapters(state):
    """The state with a second half of each adapter that is not zero, as it is at first: the first
    half would have no gradient."""

    def drawn(path, x):
        if "lora_b" not in (name := jax.tree_util.keystr(path)):
            return x
        rng = np.random.default_rng(list(name.encode()))
        return jax.device_put(rng.normal(0, 0.2, x.shape).astype(x.dtype), x.sharding)

    return state._replace(params=jax.tree_util.tree_map_with_path(drawn, state.params))


def facts(text: str, mesh: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    """What the compiled step says of itself."""
    program = hlo.parse(text)
    found = collectives(program, mesh, tuple(PHASES))
    yield "decode collectives", np.asarray(sum(one.count for one in found if one.decoding))
    yield "needless collectives", np.asarray(sum(one.count for one in needless(found)))
    yield "kinds", np.asarray(sorted({one.kind for one in found}))
    written = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", text)
    yield "kinds written", np.asarray(sorted(set(written)))
    yield (
        "update axes",
        np.asarray(sorted({a for o in found if o.phase == "update" for a in o.axes})),
    )
    loops = hlo.decode_loops(program)
    assert loops, "the program has no decode loop"
    # Of what a loop carries only the caches, [W, G, S, K], have four axes.
    carried = re.findall(r"\w\[(\d+),(\d+),(\d+),(\d+)\]", loops[0].type)
    yield "caches", np.asarray(carried, np.int32)


def main(group: str, out: str) -> None:
    arrays = {}
    for case in cases():
        if group_of(case[0]) == group:
            arrays |= {"/".join((*case, name)): array for name, array in run(*case)}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])

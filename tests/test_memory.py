"""The memory model against the compiled step, and against what it must be made of."""

import jax
import pytest

from ppo_jax import data
from ppo_jax.abstract_step import lower_step
from ppo_jax.config import Config, ModelConfig, replace
from ppo_jax.decoder import make_decoder
from ppo_jax.loading import open_source, resolve_options
from ppo_jax.memory import memory_of
from ppo_jax.memory_weights import Case, abstract_weights, tree_bytes
from ppo_jax.prepare import Opened, prepare
from ppo_jax.programs import memory_bytes
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.sharding import make_mesh
from tiny_runs import CONFIG, ascii_share, write_prompts

BASE = replace(
    Config(),
    **{
        "model.path": None,
        "model.shape": ModelConfig(
            vocab_size=3000,
            embed_dim=192,
            num_layers=3,
            num_heads=3,
            num_kv_heads=3,
            head_dim=64,
            mlp_dim=640,
            max_positions=2048,
        ),
        "model.compute_dtype": "float32",
        "model.attention": "xla",
        "model.scan_layers": "scan",
        "rollout.batch_size": 32,
        "rollout.max_new_tokens": 64,
        "ppo.epochs": 1,
        "ppo.minibatches": 2,
        "ppo.token_sizes": 1,  # more of them cost compile time and no memory
        "parallel.data": 1,
    },
)
GROUPED = {"model.shape.num_kv_heads": 1, "model.shape.gated_mlp": False}
CASES = {
    "scan-wide": {**GROUPED, "model.shape.gated_mlp": True, "model.shape.mlp_dim": 2000},
    "scan-dots-bf16": {"model.remat": "dots", "model.compute_dtype": "bfloat16"},
    "unroll-vocabulary": {
        "model.scan_layers": "unroll",
        "model.shape.num_layers": 2,
        "model.shape.vocab_size": 30000,
        "model.shape.embed_dim": 96,
    },
    "deep-narrow-rows": {
        "model.shape.num_layers": 12,
        "model.shape.embed_dim": 64,
        "model.shape.head_dim": 32,
        "model.shape.num_heads": 2,
        "model.shape.num_kv_heads": 2,
        "model.shape.mlp_dim": 256,
        "model.remat": "none",
        "ppo.token_sizes": None,
    },
    "long": {"rollout.max_new_tokens": 400, "rollout.batch_size": 16, **GROUPED},
    "rollout": {
        "rollout.batch_size": 64,
        "rollout.max_new_tokens": 200,
        "ppo.microbatches": 16,
    },
    "lora": {"model.lora.rank": 8, "rollout.batch_size": 64},
    "unroll-full": {"model.scan_layers": "unroll", "model.shape.num_layers": 4},
    "unroll-full-micro": {
        "model.scan_layers": "unroll",
        "model.shape.num_layers": 4,
        "ppo.microbatches": 2,
    },
    "unroll-lora": {"model.scan_layers": "unroll", "model.lora.rank": 8, **GROUPED},
    "unroll-separate-none-rows": {
        "model.scan_layers": "unroll",
        "model.remat": "none",
        "model.critic": "separate",
        "ppo.token_sizes": None,
    },
    "separate-four-parts": {"model.critic": "separate", "ppo.microbatches": 4},
    "separate-none": {"model.critic": "separate", "model.remat": "none"},
    "separate-few-tokens": {  # the optimiser's arrays are most of it
        "model.critic": "separate",
        "model.shape.embed_dim": 384,
        "model.shape.mlp_dim": 1536,
        "model.shape.num_heads": 6,
        "model.shape.num_kv_heads": 6,
        "rollout.batch_size": 4,
        "rollout.max_new_tokens": 8,
    },
}
WIDTH = 36


def case_of(config: Config, devices: int = 1, platform: str = "cpu") -> Case:
    model = config.model.shape
    critic = model if config.model.critic == "separate" else None
    return Case(model, critic, WIDTH, devices, platform)


def compiled_bytes(config: Config) -> int:
    """Of the whole step, compiled for shapes alone; code is generated without optimisation, which
    changes no buffer."""
    case, mesh = case_of(config), make_mesh(config.parallel)
    decoder = make_decoder(case.model, config.model, mesh)
    lowered = lower_step(config, case, mesh, decoder)
    options = {"xla_backend_optimization_level": 0}
    return memory_bytes({"train_step": lowered.compile(compiler_options=options)})


MESHES = {
    "fsdp": {"parallel.data": 1, "parallel.fsdp": 4},
    "tensor": {"parallel.data": 2, "parallel.tensor": 2},
    "both": {"parallel.data": 1, "parallel.fsdp": 2, "parallel.tensor": 2},
}


@pytest.mark.parametrize(
    "name, mesh",
    [
        ("scan-wide", "both"),
        ("rollout", "fsdp"),
        ("lora", "tensor"),
        ("separate-four-parts", "both"),
    ],
)
def test_the_peak_of_a_device_is_that_of_the_compiled_step(name, mesh):
    config = replace(BASE, **CASES[name], **MESHES[mesh])
    planned = memory_of(config, case_of(config, 4)).peak
    assert planned == pytest.approx(compiled_bytes(config), rel=0.2)


@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_that_of_the_compiled_step(name):
    config = replace(BASE, **CASES[name])
    planned = memory_of(config, case_of(config)).peak
    assert planned == pytest.approx(compiled_bytes(config), rel=0.15)


WEIGHTS = {
    "whole": {},
    "stacked": {"model.scan_layers": "scan"},
    "separate": {"model.critic": "separate"},
    "separate-untied": {"model.critic": "separate", "model.shape.tie_embeddings": False},
    "adapters": {"model.lora.rank": 2, "reward.reference": "fixed"},
    "adapters-separate": {"model.lora.rank": 2, "model.critic": "separate"},
    "fixed": {"reward.reference": "fixed", "hparams.reference_decay": None},
    "bfloat16": {
        "model.compute_dtype": "bfloat16",
        "reward.reference": "fixed",
        "hparams.reference_decay": None,
    },
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_that_training_prepares(name, tmp_path):
    config = replace(CONFIG, **{"data.path": write_prompts(tmp_path), **WEIGHTS[name]})
    source = open_source(None, config.model.shape)
    config = replace(config, **{"model": resolve_options(config.model, source)})
    dataset = data.load_dataset(config.data, source.tokenizer, vocab_size=259)
    _, state, frozen = prepare(Opened(config, source, None, dataset, parse_rewards(ascii_share)))
    critic = source.config if config.model.critic == "separate" else None
    shapes, still = abstract_weights(config, source.config, critic)
    frozen = {name: tree for name, tree in frozen.items() if name != "reward"}
    same = lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype)
    assert jax.tree.all(jax.tree.map(same, (state, frozen), (shapes, still)))
    assert tree_bytes(shapes.params) == sum(x.nbytes for x in jax.tree.leaves(state.params))


LESS = {  # what each option is there to make smaller, and in which phase
    "microbatches": ({"ppo.microbatches": 4}, "layers", "activations"),
    "remat": ({"model.remat": "full"}, "layers", "activations"),
    "chunk": ({"model.logit_chunk": 32}, "head", "logits"),
    "slots": ({"rollout.slots": 8}, "rollout", "kv"),
    "adapters": ({"model.lora.rank": 4}, "optimiser", "optimiser"),
    "bfloat16": ({"model.compute_dtype": "bfloat16"}, "rollout", "kv"),
    "int8": ({"rollout.weights": "int8"}, "rollout", "params"),
}


@pytest.mark.parametrize("name", LESS)
def test_each_option_spares_what_it_is_for(name):
    changes, phase, category = LESS[name]
    before = replace(BASE, **{"model.remat": "none"})
    sizes = [
        memory_of(config, case_of(config, platform="gpu")).phases[phase][category]
        for config in (before, replace(before, **changes))
    ]
    assert 0 < sizes[1] < 0.85 * sizes[0]


def test_devices_share_the_batch_and_not_the_weights():
    one, four = (memory_of(BASE, case_of(BASE, n, "gpu")).phases["rollout"] for n in (1, 4))
    assert four["kv"] == one["kv"] / 4 and four["batch"] == one["batch"] / 4
    assert four["params"] == one["params"]

"""Rewards that are models, in plans and in the step that is compiled for shapes alone."""

import dataclasses

import jax
import numpy as np
import pytest

from ppo_jax.abstract_step import Rewards, lower_step
from ppo_jax.classifier import (
    Classifier,
    make_classifier,
    most_parts,
    place_classifier,
    reward_function,
    scans_itself,
)
from ppo_jax.config import Config, ModelConfig, replace
from ppo_jax.decoder import make_decoder
from ppo_jax.loading import load_trunk, open_source, resolve_options
from ppo_jax.memory import memory_of
from ppo_jax.memory_weights import Case, RewardModel, abstract_reward_model, tree_bytes
from ppo_jax.model import SCAN_FROM_LAYERS
from ppo_jax.planned import reward_decoder
from ppo_jax.programs import memory_bytes
from ppo_jax.sharding import make_mesh
from ppo_jax.weights import save_hf

POLICY = ModelConfig(
    vocab_size=2000,
    embed_dim=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=128,
    max_positions=128,
    eos_token_ids=(1,),
)
LARGE = dataclasses.replace(POLICY, embed_dim=256, num_layers=4, num_kv_heads=1, mlp_dim=1536)
CONFIG = replace(
    Config(),
    **{
        "model.path": None,
        "model.shape": POLICY,
        "model.compute_dtype": "float32",
        "model.attention": "xla",
        "model.scan_layers": "unroll",
        "model.remat": "none",
        "rollout.batch_size": 32,
        "rollout.max_new_tokens": 24,
        "rollout.compactions": 0,
        "model.logit_chunk": 64,
        "ppo.epochs": 1,
        "ppo.minibatches": 2,
        "ppo.token_sizes": None,  # which costs compile time
        "parallel.data": 1,
    },
)
WIDTH = 20
FSDP = {"parallel.fsdp": 4}


def case_of(config: Config, *rewards: RewardModel, platform: str = "cpu") -> Case:
    devices = config.parallel.fsdp * config.parallel.data
    return Case(config.model.shape, None, WIDTH, devices, platform, rewards)


def compiled_bytes(config: Config, reward: RewardModel) -> int:
    """Of the whole step, with the reward's model in it."""
    mesh, case = make_mesh(config.parallel), case_of(config, reward)
    decoder = reward_decoder(config, reward, mesh)
    rule = reward_function(Classifier(decoder, mesh, None, most_parts(config), None))
    weights = {"judge": abstract_reward_model(config, reward)}
    rewards = Rewards({"judge": rule}, {"judge": 1.0}, {}, {}, models=weights)
    policy = make_decoder(case.model, config.model, mesh)
    lowered = lower_step(config, case, mesh, policy, rewards=rewards)
    options = {"xla_backend_optimization_level": 0}
    return memory_bytes({"train_step": lowered.compile(compiler_options=options)})


@pytest.mark.parametrize(
    "scanned, changes, tolerance", [(True, {}, 0.15), (False, FSDP, 0.2)], ids=["scan", "fsdp"]
)
def test_the_peak_is_that_of_the_compiled_step(scanned, changes, tolerance):
    """Of a reward so large that nothing else is at the peak."""
    config, reward = replace(CONFIG, **changes), RewardModel(LARGE, "xla", scanned)
    planned = memory_of(config, case_of(config, reward))
    phases = {name: sum(parts.values()) for name, parts in planned.phases.items()}
    assert (
        planned.peak
        == phases["reward"]
        > 1.2 * max(size for name, size in phases.items() if name != "reward")
    )
    assert planned.peak == pytest.approx(compiled_bytes(config, reward), rel=tolerance)


@pytest.mark.parametrize("layers, dtype", [("unroll", "float32"), ("scan", "bfloat16")])
def test_weights_are_those_that_training_places(tmp_path, layers, dtype):
    """Stacked by their own depth, in the compute dtype and in shares, whatever the policy's are."""
    depth = 2 if layers == "unroll" else SCAN_FROM_LAYERS
    shape = dataclasses.replace(POLICY, vocab_size=259, num_layers=depth, eos_token_ids=(257,))
    head = {"kernel": np.ones((64, 1), np.float32), "bias": np.ones(1, np.float32)}
    source = open_source(None, shape)
    save_hf(tmp_path, shape, load_trunk(source), source.tokenizer, head=head)
    changes = {"model.compute_dtype": dtype, "parallel.fsdp": 2, "model.lora.rank": 2}
    config = replace(CONFIG, **changes)
    judge, mesh = open_source(str(tmp_path)), make_mesh(config.parallel)
    config = replace(config, model=resolve_options(config.model, source))
    placed = place_classifier(config, mesh, judge)
    reward = RewardModel(judge.config, "xla", scans_itself(config.model, judge.config))
    shapes = abstract_reward_model(config, reward)
    same = lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype)
    assert jax.tree.all(jax.tree.map(same, placed, shapes))
    assert reward.scanned is (layers == "scan")
    model = make_classifier(config, mesh, judge)
    assert model.decoder == reward_decoder(config, reward, mesh)
    # On each device what is there in truth.
    here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed))
    case, alone = case_of(config, reward), case_of(config)
    sizes = [memory_of(config, c).phases["optimiser"]["params"] for c in (case, alone)]
    assert sizes[0] - sizes[1] == here < tree_bytes(shapes)


def test_a_small_reward_adds_its_weights_alone():
    small = RewardModel(dataclasses.replace(POLICY, embed_dim=32, mlp_dim=64), "xla", False)
    weights = tree_bytes(abstract_reward_model(CONFIG, small))
    before = memory_of(CONFIG, case_of(CONFIG))
    assert "reward" not in before.phases
    after = memory_of(CONFIG, case_of(CONFIG, small))
    assert after.peak == before.peak + weights
    # Of two the larger pass counts, and the weights of both.
    large = RewardModel(LARGE, "xla", False)
    one, two = (memory_of(CONFIG, case_of(CONFIG, *x)) for x in ((large,), (small, large)))
    assert two.peak == one.peak + weights
    assert two.phases["reward"]["activations"] == one.phases["reward"]["activations"]


def test_more_parts_are_smaller_ones():
    reward = RewardModel(LARGE, "xla", False)
    sizes = []
    for parts in (1, 4):
        config = replace(CONFIG, **{"ppo.microbatches": parts})
        sizes.append(memory_of(config, case_of(config, reward)).phases["reward"]["activations"])
    assert sizes[1] == sizes[0] / 4 > 0

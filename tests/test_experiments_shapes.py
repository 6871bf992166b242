"""Every experiment's iteration can be traced at its real size, without its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import data
from ppo_jax.config import ModelConfig, replace
from ppo_jax.decoder import make_decoder
from ppo_jax.envs.base import DeviceEnv
from ppo_jax.experiment import list_experiments, load_experiment
from ppo_jax.loading import open_source, resolve_options
from ppo_jax.model import cast_weights, init_trunk, init_value_head, stack_layers
from ppo_jax.prepare import init_state
from ppo_jax.rewards.base import parse_rewards, text_columns
from ppo_jax.sharding import make_mesh
from ppo_jax.step import Setup, device_scores, learn, sample_rollout, score_rollout
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.types import Prompts

SMOLLM2_135M = ModelConfig(
    vocab_size=49152,
    embed_dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_dim=1536,
    max_positions=8192,
    rope_theta=1e5,
    eos_token_ids=(2,),
    pad_token_id=2,
)
MODELS = {None: None, "smollm2-135m": SMOLLM2_135M}


def abstract_start(config, model, decoder):
    """Shapes of the first state and of the reference."""

    def start():
        layout = stack_layers if config.model.scan_layers == "scan" else lambda tree: tree
        policy = layout(init_trunk(model, jax.random.key(0)))
        value = {"head": init_value_head(model)}
        if config.model.critic == "separate":
            value["trunk"] = policy
        fixed = config.reward.reference == "fixed"
        state = init_state(config, {"policy": policy, "value": value})
        return state, cast_weights(decoder, policy) if fixed else None

    return jax.eval_shape(start)


def abstract_prompts(config, texts) -> Prompts:
    options = replace(config, **{"data.overlong": "truncate"}).data
    dataset = data.load_dataset(options, byte_tokenizer(), vocab_size=259, texts=texts)
    batch = data.make_batch(dataset, config, 0, pad_id=0, width=config.data.max_prompt_tokens)
    return abstract(batch)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree)


@pytest.mark.parametrize("name", sorted(list_experiments()))
def test_the_iteration_traces(name):
    experiment = load_experiment(name)
    start = experiment.sft if experiment.base.model.path == "@sft" else experiment.base
    model = MODELS[start.model.path] or start.model.shape
    config = replace(
        experiment.base, model=resolve_options(experiment.base.model, open_source(None, model))
    )
    decoder = make_decoder(model, config.model)
    parts = parse_rewards(experiment.reward)
    on_device = {part.name: part.device for part in parts if part.device is not None}
    setup = Setup(
        config,
        make_mesh(config.parallel),
        decoder,
        decoder,
        {name: reward.fn for name, reward in on_device.items()},
        {part.name: part.weight for part in parts},
        experiment.environment if isinstance(experiment.environment, DeviceEnv) else None,
    )
    state, ref = abstract_start(config, model, decoder)
    tokenizer = byte_tokenizer()
    tables = {
        name: abstract(reward.make_tables(tokenizer, model.vocab_size))
        for name, reward in on_device.items()
    }
    env = setup.environment and abstract(setup.environment.make_tables(tokenizer, model.vocab_size))
    B = config.rollout.batch_size
    host = {part.name: jax.ShapeDtypeStruct((B,), jnp.float32) for part in parts if part.host}

    def iteration(state, frozen, hparams, prompts, host):
        rollout = sample_rollout(setup, state, frozen, hparams, prompts)
        scored = score_rollout(setup, state, frozen, hparams, rollout)
        raw = device_scores(setup, frozen, rollout, prompts.columns) | host
        return learn(setup, state, frozen, hparams, rollout, scored, raw)

    hparams = abstract(jax.tree.map(np.float32, config.hparams))
    frozen = {"base": None, "critic": None, "ref": ref, "reward": tables, "env": env}
    after, metrics, rollout, scores_B = jax.eval_shape(
        iteration, state, frozen, hparams, abstract_prompts(config, text_columns(parts)), host
    )
    assert after == state  # what a step leaves is what the next one takes
    assert scores_B.shape == (B,) and scores_B.dtype == jnp.float32
    assert rollout.response_ids_BT.shape == (B, config.rollout.max_new_tokens)
    assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())

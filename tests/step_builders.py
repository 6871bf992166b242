"""Tiny cases of the whole step: a model of one layer, random prompts, a rule on ids as reward."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config import (
    Config,
    HParams,
    ModelConfig,
    ModelOptions,
    OptimOptions,
    ParallelOptions,
    PPOOptions,
    RolloutOptions,
    RunOptions,
    replace,
)
from ppo_jax.decoder import make_decoder
from ppo_jax.lora import init_adapters
from ppo_jax.model import cast_weights, init_trunk, init_value_head, stack_layers, without_lm_head
from ppo_jax.prepare import place_frozen, place_state
from ppo_jax.sharding import make_mesh, put_batch
from ppo_jax.step import Setup, train_step
from ppo_jax.types import Prompts

VOCAB, EOS, PAD = 64, 1, 0
SHAPE = ModelConfig(
    vocab_size=VOCAB,
    embed_dim=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    mlp_dim=48,
    max_positions=64,
    init_std=0.2,  # far from uniform
    eos_token_ids=(EOS,),
    pad_token_id=PAD,
)
BASE = Config(
    model=ModelOptions(path=None, shape=SHAPE, compute_dtype="float32", remat="none"),
    rollout=RolloutOptions(batch_size=8, max_new_tokens=6),
    ppo=PPOOptions(epochs=2, minibatches=2, token_sizes=None),  # by rows: compiles much sooner
    optim=OptimOptions(),
    parallel=ParallelOptions(data=1),
    run=RunOptions(iterations=10, seed=3),
    hparams=HParams(learning_rate=1e-2, kl_coef=0.1),
)


class Case(NamedTuple):
    """A setup with its program, and what a first iteration starts from."""

    setup: Setup
    state: Any
    frozen: Any
    hparams: HParams
    program: Callable


def rule_on_device(rollout, columns, tables):
    """Mean over the response of a wave over the ids."""
    waves_BT = jnp.where(rollout.mask_BT > 0, jnp.sin(rollout.response_ids_BT * 0.7), 0.0)
    return waves_BT.sum(axis=1) / rollout.lengths_B


def column_reward(rollout, columns, tables):
    """The data says the score of each row, whatever the response."""
    return columns["score"]


def setup_of(config: Config, devices: int = 1, rule: Callable = rule_on_device) -> Setup:
    mesh = make_mesh(replace(config, **{"parallel.data": devices}).parallel)
    decoder = make_decoder(config.model.shape, config.model, mesh)
    return Setup(config, mesh, decoder, decoder, {"rule": rule}, {"rule": 1.0})


def start(setup: Setup):
    """(state, frozen): a policy that is the reference, and a critic that says something."""
    config = setup.config
    layout = stack_layers if config.model.scan_layers == "scan" else lambda params: params
    policy = layout(init_trunk(config.model.shape, jax.random.key(5)))
    head = init_value_head(config.model.shape)
    noise = jax.random.normal(jax.random.key(6), head["kernel"].shape)
    value = {"head": {**head, "kernel": 0.1 * noise}}
    frozen = {"base": None, "critic": None, "ref": None}
    if config.model.lora.rank is not None:
        frozen["base"] = cast_weights(setup.decoder, policy)
        adapters = init_adapters(config.model.shape, config.model.lora, jax.random.key(7))
        policy = layout(adapters)
    elif config.reward.reference == "fixed":
        frozen["ref"] = cast_weights(setup.decoder, policy)
    if config.model.critic == "separate":
        value["trunk"] = without_lm_head(policy)
    state = place_state(config, setup.mesh, {"policy": policy, "value": value})
    frozen["reward"] = {name: () for name in setup.device_rewards}
    return state, place_frozen(config, setup.mesh, frozen)


def traced(hparams: HParams) -> HParams:
    return jax.tree.map(jnp.float32, hparams)


def case(config: Config, devices: int = 1, rule=rule_on_device, *, optimised=False) -> Case:
    """Nothing is donated, so the state serves again; one program for all tests of a config.

    Compiling takes nearly all of the time, hence without optimisation unless asked for.
    """
    return _case(config, devices, rule, optimised)


@functools.cache
def _case(config: Config, devices: int, rule: Callable, optimised: bool) -> Case:
    setup = setup_of(config, devices, rule)
    state, frozen = start(setup)
    options = None if optimised else {"xla_backend_optimization_level": 0}
    # The state stays laid out as it is, or its second step would be another program.
    keep = jax.tree.map(lambda x: x.sharding, state)
    program = jax.jit(
        functools.partial(train_step, setup),
        compiler_options=options,
        out_shardings=(keep, None, None, None),
    )
    return Case(setup, state, frozen, traced(config.hparams), program)


def prompts_at(setup: Setup, step: int = 0, *, width: int = 6, order=None, **columns) -> Prompts:
    """Random prompts of 1 to 5 tokens, the same for a step whatever the width."""
    rows, samples = setup.config.rollout.batch_size, setup.config.rollout.samples_per_prompt
    rng = np.random.default_rng(100 + step)
    ids_BP = np.full((rows, width), PAD, np.int32)
    for first in range(0, rows, samples):
        ids = rng.integers(2, VOCAB, size=rng.integers(1, 6))
        ids_BP[first : first + samples, width - len(ids) :] = ids
    prompts = Prompts(
        ids_BP,
        ids_BP != PAD,
        np.arange(rows, dtype=np.int32) // samples,
        np.arange(rows, dtype=np.int32) % samples,
        {name: np.asarray(column, np.float32) for name, column in columns.items()},
    )
    if order is not None:
        prompts = jax.tree.map(lambda x: x[order], prompts)
    return put_batch(setup.mesh, prompts)


def run(built: Case, iterations: int, hparams: HParams | None = None, **options):
    """(state, [metrics], [rollout]) after some iterations."""
    state, history, rollouts = built.state, [], []
    for step in range(iterations):
        state, metrics, rollout, _ = built.program(
            state,
            built.frozen,
            built.hparams if hparams is None else traced(hparams),
            prompts_at(built.setup, step, **options),
        )
        history.append({name: value.item() for name, value in metrics.items()})
        rollouts.append(jax.device_get(rollout))
    return state, history, rollouts


def leaves(tree) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def same(left, right) -> bool:
    """Bit for bit."""
    left, right = leaves(left), leaves(right)
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and left[k].tobytes() == right[k].tobytes() for k in left
    )


# How the work was laid out, which is no result: it differs by devices, parts and padding.
OF_THE_LAYOUT = ("parts", "padding", "slot_use", "slot_steps_B", "trunk_flops")


def assert_close(left, right, *, rtol=1e-5, atol=1e-6):
    """Results are close; how the work was laid out may differ."""
    left, right = leaves(left), leaves(right)
    assert left.keys() == right.keys()
    for name in left:
        if any(of in name for of in OF_THE_LAYOUT):
            continue
        np.testing.assert_allclose(left[name], right[name], rtol=rtol, atol=atol, err_msg=name)

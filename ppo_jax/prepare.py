"""From a config to what the loop works with: weights, first state, what stays frozen."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax import data
from ppo_jax.classifier import make_classifier, place_classifier, reward_function
from ppo_jax.config import Config, HParams
from ppo_jax.critics import check_writes
from ppo_jax.decoder import Decoder, make_decoder
from ppo_jax.envs.base import DeviceEnv, check_environment
from ppo_jax.envs.host import HostEnv, check_host_environment
from ppo_jax.errors import ConfigError
from ppo_jax.first_weights import initial_weights
from ppo_jax.kl_control import INITIAL_KL_ERROR
from ppo_jax.loading import (
    Source,
    open_source,
    resolve_options,
)
from ppo_jax.offload import check_memories, shardings_at_rest
from ppo_jax.optimizer import make_optimizer
from ppo_jax.rewards.base import Part, check_columns, check_values, parse_rewards, text_columns
from ppo_jax.rewards.host import SEEDS, HostScores, Rows
from ppo_jax.sharding import make_mesh, put, put_replicated
from ppo_jax.step import Setup
from ppo_jax.types import PyTree, ScoreMoments, TrainState
from ppo_jax.validate import check_model, check_shared
from ppo_jax.weight_sharding import weight_shardings

CallHost = Callable[[Part, Rows, int], HostScores]  # a host reward, its rows, a seed


class Run(NamedTuple):
    """What the loop works with beside `state` and `frozen`, which hold the arrays."""

    config: Config
    setup: Setup
    parts: list[Part]
    dataset: data.Dataset
    tokenizer: Any
    width: int  # prompt columns, wide enough for the held-out prompts
    hparams: HParams  # float32 scalars
    held_out: data.Dataset | None = None  # of data.eval_path
    call_host: CallHost | None = None  # None: in this process
    host_env: HostEnv | None = None  # what the policy talks with, where that is ordinary Python
    judge: list[Part] = []  # of responses to held-out prompts; no reward of theirs
    judging: Setup | None = None  # with the judge beside the rewards; None: there is none

    @property
    def held(self) -> "Run":
        """The run on its held-out prompts, the judge beside the rewards."""
        assert self.held_out is not None
        parts, setup = [*self.parts, *self.judge], self.judging or self.setup
        return self._replace(dataset=self.held_out, parts=parts, setup=setup)

    @property
    def pad_id(self) -> int:
        return self.setup.decoder.config.pad_token_id

    @property
    def has_host_reward(self) -> bool:
        return any(part.host is not None for part in self.parts)

    @property
    def is_cut(self) -> bool:
        """Whether the host has its part in an iteration."""
        return self.has_host_reward or self.host_env is not None


class Opened(NamedTuple):
    """All that a run is made of, read and held against each other; no weights yet."""

    config: Config  # with the model's options resolved
    source: Source
    critic: Source | None
    dataset: data.Dataset
    parts: list[Part]
    held_out: data.Dataset | None = None  # of data.eval_path
    environment: DeviceEnv | HostEnv | None = None
    env_tables: PyTree = None  # of one on the device, NumPy arrays
    learned: dict[str, Source] = {}  # models that are rewards, or judge, by the part's name
    judge: list[Part] = []  # of the held-out rows, where there are any

    @property
    def width(self) -> int:
        """Tokens of the longest prompt."""
        return max(data.prompt_width(d) for d in (self.dataset, self.held_out) if d is not None)

    @property
    def host_env(self) -> HostEnv | None:
        return self.environment if isinstance(self.environment, HostEnv) else None


def open_run_of(
    config: Config,
    reward: Any,
    dataset_of: Callable[[Config, Source, tuple[str, ...]], data.Dataset],
    environment: DeviceEnv | HostEnv | None = None,
    judge: Sequence[Part] = (),
) -> Opened:
    """Open the models, the data, the rewards (None: it has none), the environment, and the judge of
    held-out rows, which alone need its columns. Raises ConfigError or DataError."""
    source = open_policy(config)
    critic = open_critic(config, source)
    config = dataclasses.replace(config, model=resolve_options(config.model, source, critic))
    parts = [] if reward is None else parse_rewards(reward)
    dataset, held_out = dataset_of(config, source, text_columns(parts)), None
    if config.data.eval_path is not None:
        options = dataclasses.replace(config.data, path=config.data.eval_path)
        texts = text_columns([*parts, *judge])
        held_out = dataset_of(dataclasses.replace(config, data=options), source, texts)
        held_out = data.first_rows(held_out, config.data.eval_rows)
    opened = Opened(config, source, critic, dataset, parts, held_out)
    if held_out is not None:
        opened = opened._replace(judge=[*judge])
    check_model(config, source.config, opened.width)
    for model in filter(None, (source, critic)):
        check_shared(config, model.config, jax.device_count())
    check_memories(config, jax.devices())
    for read, scorers in ((dataset, parts), (held_out, [*parts, *judge])):
        for part in scorers if read is not None else ():
            check_columns(part, {*read.columns, SEEDS})
            check_values(part, read.columns, read.lines, read.path)
    return opened if environment is None else _with_environment(opened, environment)


def _with_environment(opened: Opened, environment: DeviceEnv | HostEnv) -> Opened:
    config, model = opened.config, opened.source.config
    if isinstance(environment, HostEnv):
        check_host_environment(environment, config)
        return opened._replace(environment=environment)
    tables = environment.make_tables(opened.source.tokenizer, model.vocab_size)
    for read in filter(None, (opened.dataset, opened.held_out)):
        row = data.fixed_prompts(read, 1, pad_id=model.pad_token_id, width=opened.width)
        check_environment(
            environment,
            tables,
            row.columns,
            new_tokens=config.rollout.max_new_tokens,
            min_new_tokens=config.rollout.min_new_tokens,
        )
    return opened._replace(environment=environment, env_tables=tables)


def read_dataset(config: Config, source: Source, texts: tuple[str, ...]) -> data.Dataset:
    """The prompts of `data.path`; `texts` names what rewards on the device read as strings."""
    vocab_size = source.config.vocab_size
    return data.load_dataset(config.data, source.tokenizer, vocab_size=vocab_size, texts=texts)


def prepare(
    opened: Opened, *, reference: bool = True, weights: Callable | None = None
) -> tuple[Run, TrainState, PyTree]:
    """Load the weights and build (run, first state, frozen), the arrays on the devices; without a
    copy of the first weights where nothing is to be compared with them. `weights` loads others than
    `initial_weights` does."""
    config, source = opened.config, opened.source
    if weights is None:
        check_writes(source, "model.path")
    mesh = make_mesh(config.parallel)
    decoder = critic = make_decoder(source.config, config.model, mesh)
    if opened.critic is not None:
        critic = make_decoder(opened.critic.config, config.model, mesh)
    load = initial_weights if weights is None else weights
    trained, still = load(config, source, opened.critic, decoder, critic)
    if not reference:
        still["ref"] = None
    state = place_state(config, mesh, trained)
    hparams = jax.tree.map(jnp.float32, config.hparams)
    run = Run(
        config,
        make_setup(opened, mesh, decoder, critic),
        opened.parts,
        opened.dataset,
        source.tokenizer,
        opened.width,
        hparams,
        held_out=opened.held_out,
        host_env=opened.host_env,
        judge=opened.judge,
        judging=make_setup(opened, mesh, decoder, critic, opened.judge) if opened.judge else None,
    )
    return run, state, place_frozen(config, mesh, still) | place_tables(opened, mesh)


def make_setup(
    opened: Opened, mesh: Mesh, decoder: Decoder, critic: Decoder, judge: Sequence[Part] = ()
) -> Setup:
    """With the rewards, and those of a judge beside them."""
    parts = [*opened.parts, *judge]
    rewards = {part.name: part.device.fn for part in parts if part.device is not None}
    for part in parts:
        if part.learned is not None:  # a part that is not there would be missed by nobody
            source = opened.learned[part.name]
            rewards[part.name] = reward_function(make_classifier(opened.config, mesh, source))
    return Setup(
        opened.config,
        mesh,
        decoder,
        critic,
        rewards,
        {part.name: part.weight for part in parts},
        opened.environment if isinstance(opened.environment, DeviceEnv) else None,
    )


def place_tables(opened: Opened, mesh: Mesh) -> dict[str, PyTree]:
    """What the rewards of the program, the judge and the environment look up, on every device; and
    the weights of rewards that are models, in shares."""
    source, parts = opened.source, [*opened.parts, *opened.judge]
    parts = [part for part in parts if part.device is not None]
    make = lambda part: part.device.make_tables(source.tokenizer, source.config.vocab_size)
    tables: dict[str, PyTree] = {"reward": {part.name: make(part) for part in parts}}
    if isinstance(opened.environment, DeviceEnv):
        tables["env"] = opened.env_tables
    tables = put_replicated(mesh, tables)
    for name, model in opened.learned.items():
        tables["reward"][name] = place_classifier(opened.config, mesh, model)
    return tables


def open_policy(config: Config) -> Source:
    """The model that a run begins from, before its weights are read. Raises ConfigError."""
    return open_source(
        config.model.path,
        config.model.shape,
        seed=config.run.seed,
        base_path=config.model.base_path,
        trust_remote_code=config.model.trust_remote_code,
    )


def open_critic(config: Config, source: Source) -> Source | None:
    """The critic's own checkpoint, before its weights are read; None: it starts as the policy.

    Raises ConfigError if it is no model, or not one that can read the policy's sequences.
    """
    path = config.model.critic_path
    if path is None:
        return None
    critic = open_source(path, trust_remote_code=config.model.trust_remote_code)
    check_critic(config, critic, source)
    return critic


def check_critic(config: Config, critic: Source, source: Source) -> None:
    """ConfigError where a critic of its own checkpoint cannot read the policy's sequences."""
    path = config.model.critic_path
    if critic.config.vocab_size != source.config.vocab_size:
        raise ConfigError(
            f"model.critic_path={path}: its vocabulary has {critic.config.vocab_size} tokens, the "
            f"policy's {source.config.vocab_size}"
        )
    if critic.config.max_positions < config.data.max_prompt_tokens + config.rollout.max_new_tokens:
        raise ConfigError(
            f"model.critic_path={path}: holds {critic.config.max_positions} positions, fewer than "
            f"data.max_prompt_tokens + rollout.max_new_tokens"
        )


def place_state(config: Config, mesh: Mesh, params: PyTree) -> TrainState:
    """The state before the first iteration on the devices, from weights on the host. No device
    ever holds more of it than its share."""
    first = lambda params: jax.tree.map(lambda x: x.copy(), init_state(config, params))
    shardings = shardings_at_rest(config, mesh, jax.eval_shape(first, params))
    placed = put(params, weight_shardings(mesh, params))
    return jax.jit(first, out_shardings=shardings, donate_argnums=0)(placed)


def place_frozen(config: Config, mesh: Mesh, still: PyTree) -> PyTree:
    """The weights that stay still where they rest, from weights on the host."""
    placed = put(still, weight_shardings(mesh, still))
    return jax.device_put(placed, shardings_at_rest(config, mesh, still))


def init_state(config: Config, params: PyTree) -> TrainState:
    """The state before the first iteration."""
    transform = make_optimizer(config.optim)
    moving = config.reward.reference != "fixed"
    zero = jnp.zeros((), jnp.float32)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={group: transform.init(params[group]) for group in params},
        key=jax.random.key(config.run.seed),
        kl_coef=jnp.asarray(config.hparams.kl_coef, jnp.float32),
        kl_error=jnp.asarray(INITIAL_KL_ERROR, jnp.float32),
        moments=ScoreMoments(zero, zero, zero),
        nonfinite=jnp.zeros((), jnp.int32),
        tokens=zero,
        ref=params["policy"] if moving else None,
    )

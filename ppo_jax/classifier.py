"""A model's score of a response as a reward inside the compiled step: see `rewards.learned`."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax.config import Config, LoraOptions, ModelConfig, ModelOptions, replace
from ppo_jax.critics import is_reward_model, load_critic
from ppo_jax.decoder import Decoder, make_decoder
from ppo_jax.errors import ConfigError
from ppo_jax.hf_config import classifier_labels, padding_id
from ppo_jax.loading import Source, open_source, resolve_options
from ppo_jax.microbatch import by_microbatch
from ppo_jax.model import cast_weights, scans_layers, stack_layers, without_lm_head
from ppo_jax.parts import by_tokens, map_over_tokens
from ppo_jax.rewards.base import LearnedReward, Part
from ppo_jax.scoring import final_scores, read_to_the_end
from ppo_jax.sharding import batch_devices, make_mesh, put
from ppo_jax.stages import Stages, resolve
from ppo_jax.stream import row_tokens, row_width
from ppo_jax.types import Array, PyTree, Rollout
from ppo_jax.weight_sharding import weight_shardings

# Reads the text with a classifier's own tokenizer, whatever the policy's is.
ON_HOST = "ppo_jax.rewards.hf_classifier.hf_classifier(PATH, label=...)"


class Classifier(NamedTuple):
    """Static facts of a model that scores responses."""

    decoder: Decoder
    mesh: Mesh
    unread: int | None  # a token that is not read at the end of a response
    parts: int  # of a batch, at most
    token_sizes: int | None  # static sizes a part's tokens may take; None: padded rows


def open_classifier(
    reward: LearnedReward, config: Config, policy: Source, stages: Stages
) -> Source:
    """The model of a reward, before its weights are read.

    Raises ConfigError where it is none that scores, or `check_reads` does.
    """
    path = resolve(reward.path, config, stages)
    source = _scorer(reward, path, trust=config.model.trust_remote_code)
    check_reads(reward, source, config, policy)
    return source


def _scorer(reward: LearnedReward, path: str | None, *, trust: bool = False) -> Source:
    source = open_source(path, trust_remote_code=trust)
    labels = None if source.folder is None else classifier_labels(source.folder)
    if labels != 1 and not is_reward_model(source):
        what = "a language model" if labels is None else f"a classifier of {labels} outputs"
        raise ConfigError(
            f"reward {reward.name}: {reward.path} is {what}: expected a run of ppo-jax "
            "reward-model, or a sequence classifier of one output (of any number, on the host: "
            f"{ON_HOST})"
        )
    return source


def check_reads(reward: LearnedReward, source: Source, config: Config, policy: Source) -> None:
    """ConfigError where a reward's model reads another vocabulary than the policy, or fewer
    positions than the run's sequences have."""
    vocab_size = policy.config.vocab_size
    where = _check_vocabulary(reward, source, policy.tokenizer, vocab_size)
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if source.config.max_positions < longest:
        raise ConfigError(
            f"{where} holds {source.config.max_positions} positions, data.max_prompt_tokens + "
            f"rollout.max_new_tokens are {longest}"
        )


def _check_vocabulary(
    reward: LearnedReward, source: Source, tokenizer: Any, vocab_size: int
) -> str:
    """The model as it is named in errors. ConfigError where it reads other tokens."""
    where = f"reward {reward.name}: {reward.path}"
    same = source.tokenizer.get_vocab() == tokenizer.get_vocab()
    if not same or source.config.vocab_size < vocab_size:
        theirs, ours = len(source.tokenizer), len(tokenizer)
        raise ConfigError(
            f"{where} reads another vocabulary ({theirs} tokens) than the policy ({ours}): it "
            f"cannot be a reward on the device; one on the host reads the text itself: {ON_HOST}"
        )
    return where


def open_classifiers(
    parts: Iterable[Part], config: Config, policy: Source, stages: Stages
) -> dict[str, Source]:
    """Those of all rewards that are models, by the reward's name."""
    return {
        part.name: open_classifier(part.learned._replace(name=part.name), config, policy, stages)
        for part in parts
        if part.learned is not None
    }


def make_classifier(config: Config, mesh: Mesh, source: Source) -> Classifier:
    decoder = make_decoder(source.config, _options(config, source), mesh)
    return classifier_by(decoder, config, mesh, source)


def classifier_by(decoder: Decoder, config: Config, mesh: Mesh, source: Source) -> Classifier:
    """As this decoder computes it."""
    return Classifier(
        decoder,
        mesh,
        None if source.folder is None else padding_id(source.folder),
        most_parts(config),
        config.ppo.token_sizes,
    )


def most_parts(config: Config) -> int:
    """Parts that a batch is read in, at most: as many as an update's."""
    return config.ppo.minibatches * config.ppo.microbatches


def place_classifier(config: Config, mesh: Mesh, source: Source) -> PyTree:
    """{"head", "trunk"} on the devices: in the compute dtype, in the shares of `weight_sharding`,
    the head in float32 and whole."""
    model, options = load_critic(source), _options(config, source)
    decoder, scans = make_decoder(source.config, options, mesh), options.scan_layers == "scan"
    weights = {"head": model.head, "trunk": as_read(decoder, model.trunk, scans)}
    return put(weights, weight_shardings(mesh, weights))


def as_read(decoder: Decoder, trunk: PyTree, scans: bool) -> PyTree:
    """A trunk, its layers as a list, as the program reads it."""
    trunk = without_lm_head(trunk)
    return cast_weights(decoder, stack_layers(trunk) if scans else trunk)


def _options(config: Config, source: Source) -> ModelOptions:
    """How the model is computed: as the policy, but by its own depth, and merged."""
    layers = "scan" if scans_itself(config.model, source.config) else "unroll"
    return replace(config, **{"model.scan_layers": layers, "model.lora": LoraOptions()}).model


def scans_itself(options: ModelOptions, model: ModelConfig) -> bool:
    """Whether a reward's model has its layers stacked, whatever the policy's are."""
    return scans_layers(model, dataclasses.replace(options, scan_layers="auto"))


def score_responses(model: Classifier, rollout: Rollout, columns, weights: PyTree) -> Array:
    """Scores [B], float32, of the state after each response's last token that is read, in parts of
    bounded memory. `weights` as `place_classifier` gives them."""
    if model.unread is not None:
        rollout = _without_end(rollout, model.unread)
    rollout = rollout._replace(values_BT=None, kept_ids_BTK=None)

    def score(part: Rollout, present_B=None, size=None) -> Array:
        reading = read_to_the_end(model.mesh, part, present_B, size)
        return final_scores(model.decoder, weights, reading)

    shards = batch_devices(model.mesh)
    rows = rollout.lengths_B.shape[0] // shards
    if model.token_sizes is None:
        return by_microbatch(score, rollout, math.gcd(rows, model.parts))
    width, padded = row_width(rollout, final=True), model.decoder.attention != "xla"
    parts = min(rows, model.parts)
    recipe = by_tokens(shards, rows, width, parts, model.token_sizes, padded=padded)
    return map_over_tokens(recipe, row_tokens(rollout, final=True), rollout, score)


def reward_function(model: Classifier):
    """The reward `fn(rollout, columns, weights) -> scores_B` of a step."""
    return functools.partial(score_responses, model)


def open_alone(
    reward: LearnedReward, tokenizer: Any, vocab_size: int, longest: int
) -> tuple[Callable, PyTree]:
    """(`fn(rollout, columns, weights) -> scores_B`, the weights) of a reward outside of any run, on
    one device, for texts of at most `longest` tokens of this tokenizer. Raises ConfigError."""
    if reward.path.startswith("@"):
        what = f"reward {reward.name}: {reward.path} is a stage of an experiment"
        raise ConfigError(f"{what}, and there is none here; expected the path of a run or a model")
    source = _scorer(reward, reward.path)
    where = _check_vocabulary(reward, source, tokenizer, vocab_size)
    if source.config.max_positions < longest:
        holds = source.config.max_positions
        raise ConfigError(f"{where} holds {holds} positions, a text may have {longest}")
    config = replace(Config(), **{"ppo.token_sizes": None, "parallel.data": 1})
    config = dataclasses.replace(config, model=resolve_options(config.model, source))
    mesh = make_mesh(config.parallel)
    model = make_classifier(config, mesh, source)
    return reward_function(model), place_classifier(config, mesh, source)


def _without_end(rollout: Rollout, token: int) -> Rollout:
    """The responses up to their last token that is not this one: as transformers' classifiers,
    which take it for padding, read them."""
    columns_1T = jnp.arange(rollout.response_ids_BT.shape[1])[None]
    read_BT = (columns_1T < rollout.lengths_B[:, None]) & (rollout.response_ids_BT != token)
    return rollout._replace(lengths_B=jnp.max(jnp.where(read_BT, columns_1T + 1, 0), axis=1))

"""A model's score of a response as a reward inside the compiled step: see `rewards.learned`."""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax.config import Config, LoraOptions, ModelOptions, replace
from ppo_jax.critics import is_reward_model, load_critic
from ppo_jax.decoder import Decoder, make_decoder
from ppo_jax.errors import ConfigError
from ppo_jax.hf_config import classifier_labels, padding_id
from ppo_jax.loading import Source, open_source
from ppo_jax.microbatch import by_microbatch
from ppo_jax.model import cast_weights, scans_layers, stack_layers, without_lm_head
from ppo_jax.parts import by_tokens, map_over_tokens
from ppo_jax.rewards.base import LearnedReward, Part
from ppo_jax.scoring import final_scores, read_to_the_end
from ppo_jax.sharding import batch_devices, put
from ppo_jax.stages import resolve
from ppo_jax.stream import row_tokens, row_width
from ppo_jax.types import Array, PyTree, Rollout
from ppo_jax.weight_sharding import weight_shardings


class Classifier(NamedTuple):
    """Static facts of a model that scores responses."""

    decoder: Decoder
    mesh: Mesh
    unread: int | None  # a token that is not read at the end of a response
    parts: int  # of a batch, at most
    token_sizes: int | None  # static sizes a part's tokens may take; None: padded rows


def open_classifier(
    reward: LearnedReward, config: Config, policy: Source, experiment: str
) -> Source:
    """The model of a reward, before its weights are read.

    Raises ConfigError where it is none that scores, or reads another vocabulary than the policy, or
    fewer positions than the run's sequences have.
    """
    where = f"reward {reward.name}: {reward.path}"
    path = resolve(reward.path, config, experiment)
    source = open_source(path, trust_remote_code=config.model.trust_remote_code)
    labels = None if source.folder is None else classifier_labels(source.folder)
    if labels != 1 and not is_reward_model(source):
        what = "a language model" if labels is None else f"a classifier of {labels} outputs"
        raise ConfigError(
            f"{where} is {what}: expected a run of ppo-jax reward-model, or a sequence classifier "
            "of one output"
        )
    same = source.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    if not same or source.config.vocab_size < policy.config.vocab_size:
        theirs, ours = len(source.tokenizer), len(policy.tokenizer)
        raise ConfigError(
            f"{where} reads another vocabulary ({theirs} tokens) than the policy ({ours}): it "
            "cannot be a reward on the device; one on the host, fn(prompts, responses), may read "
            "the text with any model"
        )
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if source.config.max_positions < longest:
        raise ConfigError(
            f"{where} holds {source.config.max_positions} positions, data.max_prompt_tokens + "
            f"rollout.max_new_tokens are {longest}"
        )
    return source


def open_classifiers(
    parts: Iterable[Part], config: Config, policy: Source, experiment: str
) -> dict[str, Source]:
    """Those of all rewards that are models, by the reward's name."""
    return {
        part.name: open_classifier(
            part.learned._replace(name=part.name), config, policy, experiment
        )
        for part in parts
        if part.learned is not None
    }


def make_classifier(config: Config, mesh: Mesh, source: Source) -> Classifier:
    options = _options(config, source)
    return Classifier(
        make_decoder(source.config, options, mesh),
        mesh,
        None if source.folder is None else padding_id(source.folder),
        config.ppo.minibatches * config.ppo.microbatches,
        config.ppo.token_sizes,
    )


def place_classifier(config: Config, mesh: Mesh, source: Source) -> PyTree:
    """{"head", "trunk"} on the devices: in the compute dtype, in the shares of `weight_sharding`,
    the head in float32 and whole."""
    model = load_critic(source)
    trunk = without_lm_head(model.trunk)
    options = _options(config, source)
    if options.scan_layers == "scan":
        trunk = stack_layers(trunk)
    trunk = cast_weights(make_decoder(source.config, options, mesh), trunk)
    weights = {"head": model.head, "trunk": trunk}
    return put(weights, weight_shardings(mesh, weights))


def _options(config: Config, source: Source) -> ModelOptions:
    """How the model is computed: as the policy, but by its own depth, and merged."""
    options = replace(config, **{"model.scan_layers": "auto", "model.lora": LoraOptions()}).model
    layers = "scan" if scans_layers(source.config, options) else "unroll"
    return replace(config, **{"model.scan_layers": layers, "model.lora": LoraOptions()}).model


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


def _without_end(rollout: Rollout, token: int) -> Rollout:
    """The responses up to their last token that is not this one: as transformers' classifiers,
    which take it for padding, read them."""
    columns_1T = jnp.arange(rollout.response_ids_BT.shape[1])[None]
    read_BT = (columns_1T < rollout.lengths_B[:, None]) & (rollout.response_ids_BT != token)
    return rollout._replace(lengths_B=jnp.max(jnp.where(read_BT, columns_1T + 1, 0), axis=1))

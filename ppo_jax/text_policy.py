"""A model as the policy of ordinary RL code: what `text_env` observes to a token, with its value.

One forward of the decoder over the tokens so far a token, without a cache: simple, and the same
numbers as `ppo-jax score`. The compiled sampler (`rollout`) is what is fast.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config import ModelConfig, ModelOptions
from ppo_jax.critics import load_critic
from ppo_jax.decoder import Decoder, make_decoder
from ppo_jax.errors import ConfigError
from ppo_jax.loading import Source, load_trunk, open_source
from ppo_jax.model import head_of, init_value_head, stream_trunk, unembed
from ppo_jax.restore import restore_params
from ppo_jax.sampling import draw, greedy
from ppo_jax.scoring import Scorer, read, response_states, values_from
from ppo_jax.text import visible
from ppo_jax.types import Array, PyTree, Rollout

Apply = Callable[[PyTree, Array], tuple[Array, Array]]


class Act(NamedTuple):
    """Arrays [N], or scalars where a single observation was given."""

    actions: np.ndarray  # int32
    logprobs: np.ndarray  # float32, of the distribution drawn from; greedy: at temperature 1
    values: np.ndarray  # float32, of the state before the action


class TextPolicy(NamedTuple):
    """A policy, its weights apart from it: `apply(params, observations_NW) -> (logits_NV float32,
    values_N)` may be differentiated and put into other compiled functions."""

    params: PyTree  # {"policy": trunk, "value": {"head"[, "trunk"]}}
    apply: Apply
    tokenizer: Any  # for the environment
    vocab_size: int
    begin: int | None  # id that stands before each observation

    def act(
        self,
        observations: np.ndarray,
        key: Array | None = None,
        *,
        params: PyTree = None,
        temperature: float = 1.0,
    ) -> Act:
        """The next token of each observation, [N, W] or one [W]; without a key the most likely.

        `params` stand in for the policy's own. Raises ConfigError for an observation without a
        token where nothing `begin`s it, and for one with a token that the model does not have.
        """
        observations = np.asarray(observations)
        rows_NW = np.atleast_2d(observations)
        _check_observations(rows_NW, self)
        params = self.params if params is None else params
        logits_NV, values_N = self.apply(params, jnp.asarray(rows_NW))
        actions_N, logprobs_N = _choose(logits_NV, key, jnp.float32(temperature))
        found = Act(*jax.device_get((actions_N, logprobs_N, values_N)))
        return found if observations.ndim == 2 else jax.tree.map(lambda x: x[0], found)


def text_policy(
    model: str | None,
    params: PyTree = None,
    *,
    shape: ModelConfig | None = None,
    seed: int = 0,
    begin: int | None = None,
) -> TextPolicy:
    """The policy of a model's path (None: the random model of `shape` and `seed`).

    `params` are trained weights of that shape, in place of those at the path. A run has its critic;
    any other model a value head that gives 0. `begin` is put before the tokens of each observation:
    texts that begin from nothing need one. Raises ConfigError where there is no usable model.
    """
    source = open_source(model, shape, seed=seed)
    decoder = make_decoder(source.config, ModelOptions())
    critic = decoder
    if params is None:
        value, critic_config = _value(source)
        critic = make_decoder(critic_config, ModelOptions())
        params = jax.tree.map(jnp.asarray, {"policy": load_trunk(source), "value": value})
    apply = make_apply(decoder, critic, begin=begin)
    return TextPolicy(params, apply, source.tokenizer, source.config.vocab_size, begin)


def make_apply(decoder: Decoder, critic: Decoder, *, begin: int | None = None) -> Apply:
    """`TextPolicy.apply`, compiled once for each shape of observations."""

    @jax.jit
    def apply(params: PyTree, observations_NW: Array) -> tuple[Array, Array]:
        reading = read(_asked(observations_NW, begin))
        stream, layout = reading.stream, reading.layout
        hidden_ZND = stream_trunk(decoder, params["policy"], stream, layout)
        scorer = Scorer(decoder, critic, (), 0, chunk=1)
        values_NT, _ = values_from(params["value"], scorer, reading, hidden_ZND)
        state_ND = response_states(reading, hidden_ZND)[:, 0]
        logits_NV = unembed(decoder, head_of(decoder, params["policy"]), state_ND)
        return logits_NV, values_NT[:, 0]

    return apply


def _asked(observations_NW: Array, begin: int | None) -> Rollout:
    """Observations as prompts whose response's first token is asked for."""
    if begin is not None:
        observations_NW = jnp.pad(observations_NW, ((0, 0), (1, 0)), constant_values=begin)
    N, W = observations_NW.shape
    lengths_N = jnp.sum(observations_NW >= 0, axis=1)
    at_NW = jnp.arange(W)[None] - (W - lengths_N[:, None])  # prompts stand at the right end
    ids_NW = jnp.take_along_axis(observations_NW, jnp.maximum(at_NW, 0), axis=1)
    ones_N1 = jnp.ones((N, 1), jnp.float32)
    return Rollout(
        prompt_ids_BP=jnp.where(at_NW >= 0, ids_NW, 0),
        prompt_mask_BP=at_NW >= 0,
        response_ids_BT=jnp.zeros((N, 1), jnp.int32),  # never read: nothing comes after it
        mask_BT=ones_N1,
        lengths_B=jnp.ones(N, jnp.int32),
        ended_B=jnp.zeros(N, bool),
        logprobs_BT=jnp.zeros_like(ones_N1),
        values_BT=None,
        kept_ids_BTK=None,
        slot_steps_B=jnp.zeros(N, jnp.float32),
    )


@jax.jit
def _choose(logits_NV: Array, key: Array | None, temperature: Array) -> tuple[Array, Array]:
    """(ids, log-probabilities)"""
    if key is None:
        return greedy(logits_NV)[:2]
    uniforms_N = jax.random.uniform(key, logits_NV.shape[:1])
    return draw(logits_NV / temperature, uniforms_N, top_k=None, top_p=None)[:2]


def _value(source: Source) -> tuple[PyTree, ModelConfig]:
    """The critic that a run has trained, with the shape of its trunk; 0 for any other model."""
    trained = None
    if source.run is not None:
        trained = restore_params(source.run.checkpoints, source.step).get("value")
    if trained is None:
        return {"head": init_value_head(source.config)}, source.config
    if "trunk" not in trained:
        return {"head": trained["head"]}, source.config
    critic = load_critic(source)
    return {"head": critic.head, "trunk": critic.trunk}, critic.config


def _check_observations(rows_NW: np.ndarray, policy: TextPolicy) -> None:
    empty = np.flatnonzero((rows_NW < 0).all(axis=1))
    if policy.begin is None and empty.size:
        raise ConfigError(
            f"observation {empty[0]} has no token, and a model continues at least one: give the "
            "environment prompts (prompts=, or reset(options={'prompt': ...})), or make the policy "
            f"by text_policy(..., begin={_usual_begin(policy.tokenizer)}"
        )
    if rows_NW.max(initial=-1) >= policy.vocab_size:
        raise ConfigError(
            f"an observation holds the id {rows_NW.max()}, the model has {policy.vocab_size}: make "
            "the environment with the policy's own tokenizer"
        )


def _usual_begin(tokenizer: Any) -> str:
    """The argument with which texts of this tokenizer begin, for a message."""
    for name in ("bos_token", "eos_token"):
        id = getattr(tokenizer, f"{name}_id")
        if id is not None:
            return f"{id}), its {name} {visible(getattr(tokenizer, name))}"
    return "ID)"

"""Models that make a number of a text, critics and reward models: a trunk and a head on it."""

from typing import NamedTuple

import jax
import numpy as np

from ppo_jax import manifest
from ppo_jax.config import ModelConfig
from ppo_jax.config_io import load_config
from ppo_jax.errors import ConfigError
from ppo_jax.hf_config import classifier_labels
from ppo_jax.loading import Source, load_trunk, merged, open_source
from ppo_jax.model import unstack_layers
from ppo_jax.restore import restore_fields
from ppo_jax.run_folder import RunFolder
from ppo_jax.types import PyTree
from ppo_jax.weights import load_classifier

REWARD_MODEL = "reward-model"  # what a checkpoint's facts call the run that makes one


class Critic(NamedTuple):
    """A model of values or scores: float32 NumPy weights, layers as a list."""

    config: ModelConfig
    head: PyTree | None  # {"kernel": [D, 1][, "bias": [1]]}; None where there is a trunk alone
    trunk: PyTree


def is_reward_model(source: Source) -> bool:
    """Whether `ppo-jax reward-model` has made it."""
    if source.run is None:
        return False
    checkpoints = source.run.checkpoints
    step = manifest.latest_step(checkpoints) if source.step is None else source.step
    if step is None:
        return False
    return manifest.read_record(checkpoints, step)["facts"].get("kind") == REWARD_MODEL


def check_writes(source: Source, what: str) -> None:
    """ConfigError where the model, which `what` names, is no language model."""
    if is_reward_model(source):
        raise ConfigError(f"{what}={source.name}: a reward model, expected one that writes")


def load_critic(source: Source) -> Critic:
    """A critic's own checkpoint.

    A run gives its critic, or the reward model that it is, whose head makes normalised scores; a
    sequence classifier of one output its head and trunk, any other model its trunk alone.
    """
    if source.run is not None:
        return (_reward_model if is_reward_model(source) else _run_critic)(source, source.run)
    labels = None if source.folder is None else classifier_labels(source.folder)
    if source.folder is None or labels is None:
        return Critic(source.config, None, load_trunk(source))
    if labels != 1:
        raise ConfigError(
            f"{source.folder}: a classifier of {labels} outputs: expected one, a value or a score"
        )
    config, trunk, head = load_classifier(source.folder)
    return Critic(config, head, trunk)


def _run_critic(source: Source, run: RunFolder) -> Critic:
    config = load_config(run.config)
    if config.ppo.advantage != "gae":
        raise ConfigError(f"{run.root}: ppo.advantage={config.ppo.advantage} trained no critic")
    value = restore_fields(run.checkpoints, source.step, "params")["params"]["value"]
    if "trunk" not in value:
        return Critic(source.config, value["head"], load_trunk(source))
    path = config.model.critic_path
    own = None if path is None else open_source(path, trust_remote_code=source.trusted)
    trunk = unstack_layers(value["trunk"])
    if source.adapters is not None:
        base = load_trunk(source.adapters.base) if own is None else load_critic(own).trunk
        trunk = merged(base, trunk, source.adapters)
    return Critic(source.config if own is None else own.config, value["head"], trunk)


def _reward_model(source: Source, run: RunFolder) -> Critic:
    found = restore_fields(run.checkpoints, source.step, "params", "moments")
    moments = found["moments"]
    if moments["count"] == 0:
        step = manifest.latest_step(run.checkpoints) if source.step is None else source.step
        raise ConfigError(
            f"{run.root}: the scores of step {step} are not normalised, for the run was stopped "
            "there: go on with it, or take a step that was evaluated (RUN@best)"
        )
    head = normalised(found["params"]["value"]["head"], moments)
    return Critic(source.config, head, load_trunk(source))


def normalised(head: PyTree, moments: PyTree) -> PyTree:
    """The head whose scores have mean 0 and standard deviation 1 where those of `head` had these
    moments {"count", "mean", "m2"}; of scores that were all the same the mean alone."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), head)
    deviation = float(np.sqrt(moments["m2"] / moments["count"]))
    gain = 1.0 / deviation if deviation > 0 else 1.0
    bias = gain * (wide["bias"] - float(moments["mean"]))
    return {"kernel": (gain * wide["kernel"]).astype(np.float32), "bias": bias.astype(np.float32)}

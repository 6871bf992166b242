"""A workload: an experiment whose prompts may be random ids, made ready to be timed."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ppo_jax import data, freed_memory
from ppo_jax.classifier import open_classifiers
from ppo_jax.config import Config, ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.loading import Source
from ppo_jax.prepare import Run, open_run_of, prepare, read_dataset
from ppo_jax.types import Prompts, PyTree, Rollout, TrainState
from ppo_jax.validate import check_config

BATCHES = 8  # different ones; the next iterations repeat them


@dataclass(frozen=True)
class Workload:
    """What a workload's file says, as its `WORKLOAD`, beside BASE and REWARD."""

    prompt_tokens: tuple[int, int] | None = None  # shortest, longest; None: those of data.path
    platforms: tuple[str, ...] = ("cpu",)  # where it is run when no workload is named
    seed: int = 0  # of the random prompts


def constant(rollout: Rollout, columns: dict) -> jnp.ndarray:
    """A reward of 0, which teaches nothing: one other than the first values', which are 0, would
    make the responses longer or shorter."""
    return jnp.zeros_like(rollout.lengths_B, jnp.float32)


def workload_of(experiment: Experiment) -> Workload:
    """The experiment's WORKLOAD; without one it is timed on its own data.

    Raises ConfigError if it is of another type, or its range of lengths is none.
    """
    workload = experiment.workload or Workload()
    if not isinstance(workload, Workload):
        raise ConfigError(
            f"{experiment.path}: WORKLOAD is a {type(workload).__name__}; expected a "
            "ppo_jax.workload.Workload"
        )
    if workload.prompt_tokens is not None:
        shortest, longest = workload.prompt_tokens
        if not 1 <= shortest <= longest:
            raise ConfigError(
                f"{experiment.path}: WORKLOAD.prompt_tokens={workload.prompt_tokens}: must be "
                f"(shortest, longest) from 1 on; nearest valid: {_nearest_range(shortest, longest)}"
            )
    return workload


def check_workload(config: Config, experiment: Experiment) -> None:
    """`check_config` for an experiment whose prompts may be random ids."""
    check_config(config, reads_text=workload_of(experiment).prompt_tokens is None)


def load_workload(config: Config, experiment: Experiment) -> tuple[Run, TrainState, PyTree]:
    """(run, first state, frozen) of an experiment, as training has them.

    Raises ConfigError or DataError where training would.
    """
    workload = workload_of(experiment)
    read = functools.partial(dataset_of, workload)
    opened = open_run_of(config, experiment.reward, read, experiment.environment)
    learned = open_classifiers(opened.parts, opened.config, opened.source, experiment.stages)
    loaded = prepare(opened._replace(learned=learned))
    freed_memory.give_back(caches=True)
    return loaded


def dataset_of(
    workload: Workload, config: Config, source: Source, texts: tuple[str, ...]
) -> data.Dataset:
    """Random prompts, or those of `data.path` (see `prepare.read_dataset`)."""
    if workload.prompt_tokens is None:
        return read_dataset(config, source, texts)
    return random_dataset(workload, config, source.config)


def random_dataset(workload: Workload, config: Config, model: ModelConfig) -> data.Dataset:
    """Prompts of random ids, none of which stops a response, pads or begins a text.

    Within each batch the lengths are spread evenly over the range, in random order, so that every
    iteration has equally many prompt tokens.
    """
    assert workload.prompt_tokens is not None
    shortest, longest = workload.prompt_tokens
    apart = {*model.eos_token_ids, *config.rollout.stop_token_ids, model.pad_token_id}
    apart |= {model.bos_token_id}
    allowed = np.array([i for i in range(model.vocab_size) if i not in apart], np.int64)
    if allowed.size == 0:
        raise ConfigError(
            f"rollout.stop_token_ids: all {model.vocab_size} ids stop a response, pad or begin a "
            "text; no id is left for random prompts"
        )
    rng, count = np.random.default_rng(workload.seed), config.prompts_per_batch
    rows: list[list[int]] = []
    for _ in range(BATCHES):
        lengths = np.linspace(longest, shortest, count).round().astype(int)
        rows += [rng.choice(allowed, n).tolist() for n in rng.permutation(lengths)]
    lines = list(range(1, len(rows) + 1))
    names: list[str | list[dict]] = [f"random prompt {line}" for line in lines]
    columns: dict[str, Any] = {}
    return data.Dataset(names, rows, columns, {}, lines, 0, 0, "(random prompts)")


def workload_batch(run: Run, workload: Workload, step: int) -> Prompts:
    """The prompts of iteration `step`; random ones batch by batch, as they were made."""
    if workload.prompt_tokens is None:
        return data.make_batch(run.dataset, run.config, step, pad_id=run.pad_id, width=run.width)
    ordered = dataclasses.replace(
        run.config, data=dataclasses.replace(run.config.data, shuffle=False)
    )
    return data.make_batch(run.dataset, ordered, step, pad_id=run.pad_id, width=run.width)


def _nearest_range(shortest: int, longest: int) -> tuple[int, int]:
    low = max(1, min(shortest, longest))
    return low, max(low, shortest, longest)

"""What a run trains: the few places where fine-tuning by rewards, on given responses and on
preferences differ. All else of a run, from its mesh to its checkpoints, is the same."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ppo_jax import data
from ppo_jax.baseline import Beginning, make_judge
from ppo_jax.classifier import open_classifiers
from ppo_jax.config import Config
from ppo_jax.experiment import Experiment, judge_parts
from ppo_jax.prepare import Opened, Run, open_run_of, prepare, read_dataset
from ppo_jax.programs import Past, Stepper, make_stepper
from ppo_jax.types import Prompts, PyTree, TrainState
from ppo_jax.validate import check_shared

Judge = Callable[[TrainState, PyTree], dict[str, float]]  # (state, frozen) -> `eval/...` metrics


class Kind(NamedTuple):
    """What one command trains."""

    command: str  # of ppo-jax
    open: Callable[[Config, Experiment], Opened]
    prepare: Callable[[Opened], tuple[Run, TrainState, PyTree]]
    make_batch: Callable[[Run, int], Any]  # of a step, on the host; a function of (seed, step)
    make_stepper: Callable[[Run, Past], Stepper]
    make_judge: Callable[[Run, Beginning], Judge]  # on data.eval_path
    generates: bool  # its model continues prompts, which are shown before and after
    # (run, state, the judge's metrics) -> the state with what it is to keep of them
    note: Callable[[Run, TrainState, Mapping[str, float]], TrainState] | None = None


def _open(config: Config, experiment: Experiment) -> Opened:
    judge = judge_parts(experiment.judge) if config.run.eval_every is not None else []
    opened = open_run_of(config, experiment.reward, read_dataset, experiment.environment, judge)
    parts = [*opened.parts, *opened.judge]
    learned = open_classifiers(parts, opened.config, opened.source, experiment.stages)
    for model in learned.values():
        check_shared(opened.config, model.config, jax.device_count())
    return opened._replace(learned=learned)


def _batch(run: Run, step: int) -> Prompts:
    return data.make_batch(run.dataset, run.config, step, pad_id=run.pad_id, width=run.width)


PPO = Kind("train", _open, prepare, _batch, make_stepper, make_judge, generates=True)

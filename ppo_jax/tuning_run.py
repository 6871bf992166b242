"""A run that tunes a model on given rows: its one program, and its sums over held-out rows."""

from collections.abc import Callable

import jax
import numpy as np

from ppo_jax.compiled import KEEP, Built, program
from ppo_jax.config import Config
from ppo_jax.errors import ConfigError
from ppo_jax.evaluation import EVAL
from ppo_jax.prepare import Run
from ppo_jax.programs import Finished, Stepper
from ppo_jax.sharding import put_batch, replicated
from ppo_jax.tuning import Objective, tuning_step, tuning_sums
from ppo_jax.types import PyTree, TrainState
from ppo_jax.validate import lowest_is_best

# What a step on given rows has no use for, and would be silently without: key -> what it must be.
UNUSED = {
    "rollout.samples_per_prompt": 1,
    "rollout.min_new_tokens": 0,
    "ppo.minibatches": 1,
    "ppo.critic_warmup": 0,
    "reward.reference": "fixed",
    "hparams.target_kl": None,
    "hparams.entropy_coef": None,
    "ppo.bootstrap_truncated": False,
    "model.critic": "shared",
}
# Metrics of steps and of held-out rows of which the lowest is the best.
LOSSES = {"loss", "perplexity", "error", "brier", "ece"}


def check_tuned(config: Config, command: str) -> None:
    """ConfigError on an option that `command` cannot follow."""
    for key, valid in UNUSED.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value != valid:
            raise ConfigError(f"{key}={value}: not for ppo-jax {command}; nearest valid: {valid}")
    asked = config.run.keep_best
    if asked is not None and asked.removeprefix(EVAL) in LOSSES:
        raise ConfigError(f"run.keep_best={asked}: {lowest_is_best(asked)}")
    if config.run.eval_every is not None and config.data.eval_path is None:
        raise ConfigError(
            f"run.eval_every={config.run.eval_every}: needs data.eval_path, held-out rows; "
            "nearest valid: None"
        )


def make_tuner(run: Run, objective: Objective, name: str, *, each: int = 1) -> Stepper:
    """One program, `name`: an optimiser step on a batch of the run, whose rows have `each` of its
    sequences."""
    mesh, built = run.setup.mesh, Built({}, {})
    step_on = lambda state, frozen, hparams, batch: tuning_step(
        run.setup, objective, state, frozen, hparams, batch
    )
    step_program = program(built, name, step_on, (KEEP, replicated(mesh)), donate=True)
    rows = each * len(run.dataset.prompts)

    def dispatch(state: TrainState, frozen: PyTree, step: int, batch: PyTree):
        on_device = put_batch(mesh, batch)
        state, metrics = step_program(state, frozen, run.hparams, on_device)
        epoch = (step + 1) * run.config.rollout.batch_size / rows
        return state, Finished(step, batch, metrics, None, None, {"epoch": epoch})

    return Stepper(dispatch, *built)


def held_out_sums(run: Run, objective: Objective):
    """`sums(state, frozen, count, batch_of) -> {name: float}` over rows 0 to `count`, of which
    `batch_of(rows_B)` makes a batch, -1 standing for no row; `count` of the objective's among
    them."""
    mesh = run.setup.mesh
    sums_on = lambda params, frozen, batch: tuning_sums(run.setup, objective, params, frozen, batch)
    sums_program = program(Built({}, {}), "held_out", sums_on, replicated(mesh))

    def sums(
        state: TrainState, frozen: PyTree, count: int, batch_of: Callable[[np.ndarray], PyTree]
    ) -> dict[str, float]:
        size, total = run.config.rollout.batch_size, {}
        for start in range(0, count, size):
            rows = np.arange(start, start + size)
            batch = put_batch(mesh, batch_of(np.where(rows < count, rows, -1)))
            part = jax.device_get(sums_program(state.params, frozen, batch))
            total = {name: total.get(name, 0.0) + float(x) for name, x in part.items()}
        return total

    return sums

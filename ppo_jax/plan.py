"""What an experiment will cost, before anything runs: time floors, memory, and what to change where
it does not fit. Reads the model's config and the prompts, never the weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax import chips
from ppo_jax.arguments import PlanArgs
from ppo_jax.chips import Chip
from ppo_jax.compile_check import run_check
from ppo_jax.config import Config
from ppo_jax.cost import Lengths, Work, floor_seconds, phase_work, reading_work
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.experiment import Experiment
from ppo_jax.memory import memory_of
from ppo_jax.memory_weights import Case
from ppo_jax.plan_advice import advise
from ppo_jax.plan_report import Phase, Plan, show_plan
from ppo_jax.planned import open_planned


def run_plan(experiment: Experiment, config: Config, options: PlanArgs) -> None:
    """The command: make the plan, show it, write it where asked for; or compile the step."""
    if options.compile or options.accelerator is not None or options.gpu is not None:
        return run_check(experiment, config, options)
    made = plan(experiment, config, options)
    show_plan(made)
    if options.out is not None:
        write_plan(made, options.out)


def plan(experiment: Experiment, config: Config, options: PlanArgs) -> Plan:
    """Count the work and the memory of one iteration of `experiment` with `config`.

    Raises ConfigError or DataError where training would, and for a device or a number of them that
    cannot be.
    """
    chip = chips.find_chip(options.device)
    _check_options(config, options)
    planned = open_planned(experiment, config, chip.platform, options.devices)
    config, case = planned.config, planned.case
    prompts = np.asarray([len(ids) for ids in planned.dataset.prompt_ids])
    lengths = expected_lengths(config, prompts, options.mean_response)
    memory = memory_of(config, case)
    advice = advise(config, case, chip.memory_bytes) if memory.peak > chip.memory_bytes else []
    return Plan(
        experiment.name,
        config,
        case.model,
        chip,
        options.devices,
        lengths,
        _phases(config, case, lengths, chip),
        memory,
        advice,
        {name: source.config for name, source in planned.rewards.items()},
        {name: source.config for name, source in planned.judges.items()},
        planned.unmade,
    )


def expected_lengths(config: Config, prompts: np.ndarray, mean: float | None) -> Lengths:
    """The lengths of one iteration: prompts spread as the data's are; responses all as long as they
    may be, or geometric with this mean, cut at the limit."""
    count, longest = config.prompts_per_batch, config.rollout.max_new_tokens
    at_P = (np.arange(count) + 0.5) / count
    prompt_P = np.sort(prompts)[(at_P * len(prompts)).astype(int)]
    prompt_B = np.repeat(prompt_P, config.rollout.samples_per_prompt)
    B = config.rollout.batch_size
    if mean is None:
        return Lengths(prompt_B, np.full(B, longest))
    at_B = (np.arange(B) + 0.5) / B
    stop = 1.0 / mean  # chance of a token to be the last
    tokens_B = np.ceil(np.log1p(-at_B) / np.log1p(-stop)) if mean > 1 else np.ones(B)
    tokens_B = np.clip(tokens_B, max(1, config.rollout.min_new_tokens), longest).astype(int)
    # Long responses do not go with long prompts.
    return Lengths(prompt_B, np.random.default_rng(0).permutation(tokens_B))


def write_plan(made: Plan, path: str) -> None:
    """The plan as JSON. StorageError where it cannot be written."""
    try:
        Path(path).write_text(json.dumps(as_json(made), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"out={path}: cannot be written: {error}") from None


def as_json(made: Plan) -> dict[str, Any]:
    """The plan as plain numbers: bytes, FLOPs, seconds."""
    chip = made.chip
    return {
        "experiment": made.experiment,
        "device": chip._asdict(),
        "devices": made.devices,
        "not_made_yet": list(made.unmade),
        "prompt_tokens": int(made.lengths.prompt_B.sum()),
        "response_tokens": int(made.lengths.response_B.sum()),
        "phases": {
            name: {
                "flops": phase.work.flops,
                "bytes": phase.work.bytes,
                "tokens": phase.tokens,
                "floor_seconds": phase.floor,
            }
            for name, phase in made.phases.items()
        },
        "memory": {
            "peak_bytes": made.memory.peak,
            "host_bytes": made.memory.host,
            "fits": made.fits,
            "phases": made.memory.phases,
        },
        "advice": [{"set": change.values, "peak_bytes": change.peak} for change in made.advice],
    }


def _check_options(config: Config, options: PlanArgs) -> None:
    if options.devices < 1:
        raise ConfigError(f"devices={options.devices}: must be at least 1; nearest valid: 1")
    longest, mean = config.rollout.max_new_tokens, options.mean_response
    if mean is not None and not 1 <= mean <= longest:
        near = 1 if mean < 1 else longest
        raise ConfigError(
            f"mean_response={mean:g}: must be in [1, {longest}] (rollout.max_new_tokens); "
            f"nearest valid: {near}"
        )


def _phases(config: Config, case: Case, lengths: Lengths, chip: Chip) -> dict[str, Phase]:
    """Each device has its share of the sequences, and all of the weights."""
    works = _works(config, case, Lengths(*(x_B[:: case.devices] for x_B in lengths)))
    everything = _works(config, case, lengths)
    sampled, whole = int(lengths.response_B.sum()), int(sum(x_B.sum() for x_B in lengths))
    tokens = {"rollout": sampled, "score": whole, "update": whole * config.ppo.epochs}
    tokens["reward"] = whole * len(case.reward_models)
    return {
        name: Phase(
            Work(everything[name].flops, work.bytes * case.devices),
            tokens[name],
            floor_seconds(work, chip.flops_per_s, chip.bytes_per_s),
        )
        for name, work in works.items()
    }


def _works(config: Config, case: Case, lengths: Lengths) -> dict[str, Work]:
    """The work of each phase, in order; of the rewards where some are models."""
    works = phase_work(config, case.model, case.critic, lengths)
    if case.reward_models:
        models = [reward.model for reward in case.reward_models]
        works["reward"] = reading_work(config, models, lengths)
    order = ("rollout", "score", "reward", "update")
    return {name: works[name] for name in order if name in works}

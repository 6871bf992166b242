"""`ppo-jax pipeline EXPERIMENT`: all the stages that a file defines, one after another, each as the
command of its own that it is: sft, reward-model, train, eval."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from ppo_jax.config import Config
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment

COMMON = ("--run.seed", "--run.dir")  # of all stages
CELL = "run.cell"  # of a stage, by which the later ones find its run
SWITCHES = ("--strict_resume", "--allow_config_change")  # of the stages that train
STAGES = ("sft", "reward-model", "train", "eval")


def stages_of(experiment: Experiment) -> list[str]:
    """The stages of an experiment, in order."""
    there = {"sft": experiment.sft is not None, "reward-model": experiment.reward_model is not None}
    return [stage for stage in STAGES if there.get(stage, True)]


def commands_of(experiment: Experiment, words: Sequence[str]) -> list[list[str]]:
    """The words of each stage's command, from the experiment's name and the flags in `words`.

    `--run.seed` and `--run.dir` go to all stages, `--STAGE.section.key` to that stage (its cell to
    the later ones as well), and any other flag to `train` (and `eval`, which reads the same
    config); `SWITCHES` to all that train. Raises ConfigError on a word that is no flag with a
    value, or of a stage that the file lacks.
    """
    stages = stages_of(experiment)
    flags: dict[str, list[str]] = {stage: [] for stage in stages}
    name, *given = words
    switches = [word for word in given if word in SWITCHES]
    rest = [part for word in given if word not in SWITCHES for part in _halves(word)]
    if len(rest) % 2:
        raise ConfigError(f"pipeline: {rest[-1]}: expected flags with a value each")
    for flag, value in zip(rest[::2], rest[1::2], strict=True):
        if not flag.startswith("--"):
            raise ConfigError(f"pipeline: {flag}: expected a flag, as --run.seed")
        stage, _, own = flag[2:].partition(".")
        if stage in STAGES:
            if stage not in flags:
                raise ConfigError(
                    f"{flag}: {experiment.path} has no such stage: {', '.join(flags)}"
                )
            flags[stage] += [f"--{own}", value]
            named = f"--{CELL}" if stage == "train" else flag  # what `@train` is of in `eval`
            for later in stages[stages.index(stage) + 1 :] if own == CELL else ():
                flags[later] += [named, value]
        else:
            for each in stages if flag in COMMON else ("train", "eval"):
                flags[each] += [flag, value]
    if "sft" in stages and "--against" not in flags["eval"]:
        flags["eval"] += ["--against", "@sft"]
    for stage in stages:
        flags[stage] += switches if stage != "eval" else []
    return [[stage, name, *flags[stage]] for stage in stages]


def check_roots(configs: Mapping[str, Config], keys: Sequence[str] = ("seed", "dir")) -> None:
    """ConfigError where the runs of stages, by their commands, would not find each other: `@sft` is
    of the root and the seed that the run after it has."""
    *others, last = configs
    for command in others:
        for key in keys:
            one, wanted = (getattr(configs[name].run, key) for name in (command, last))
            if one != wanted:
                raise ConfigError(
                    f"{command}: run.{key}={one}, but {last}: {wanted}; expected one for all: "
                    f"--run.{key} {wanted}"
                )


def _halves(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") and "=" in word else [word]


def run_pipeline(commands: Sequence[Sequence[str]]) -> int:
    """Run them in turn; the exit code of the first that fails, else 0."""
    for number, words in enumerate(commands, 1):
        print(f"[{number}/{len(commands)}] ppo-jax {' '.join(words)}", flush=True)
        code = _run([sys.executable, "-m", "ppo_jax", *words])
        if code != 0:
            return code
    return 0


def _run(command: Sequence[str]) -> int:
    """A stage in a process of its own, which gets what signals come: it saves, and ends with its
    own code."""
    stage = subprocess.Popen(command)
    hand_on = lambda number, frame: stage.send_signal(number)
    before = signal.signal(signal.SIGTERM, hand_on), signal.signal(signal.SIGINT, _wait_for_it)
    try:
        code = stage.wait()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    return 128 - code if code < 0 else code


def _wait_for_it(number, frame) -> None:
    """Ctrl-C reaches the stage as well, from the terminal."""

"""The command line: flags to a checked configuration, errors to one line and an exit code."""

import contextlib
import difflib
import os
import sys
from collections.abc import Sequence
from typing import TypeVar

from ppo_jax import __version__, arguments, processes
from ppo_jax.errors import ConfigError, PPOJaxError, Preempted
from ppo_jax.preemption import Preemption, watch
from ppo_jax.text import visible
from ppo_jax.xla_flags import set_flags

# What takes seconds to import (jax, orbax, transformers) is imported by the command that needs it,
# after its flags have been read.
Parsed = TypeVar("Parsed")

USAGE = """\
usage: ppo-jax COMMAND ...

PPO fine-tuning of language models in JAX.

commands:
  train EXPERIMENT [--section.key VALUE ...]     train, or go on; every field is a flag
  generate --model DIR --prompts F --out F       continue prompts, with log-probabilities
  score --model DIR --data F --out F             log-probabilities of given responses
  export --model DIR --out DIR                   write a Hugging Face or PEFT folder
  plan EXPERIMENT [--device h200] [...]          time, memory and fit, before anything runs
  plan EXPERIMENT --compile --accelerator v6e-8  the same step compiled for a TPU slice or a --gpu
  bench [WORKLOAD ...] [--compare F] [...]       time iterations against what the device allows

`ppo-jax COMMAND --help` lists the flags of a command, `ppo-jax train EXPERIMENT --help` those of an
experiment with their values in it. Exit codes: 0 done, 2 usage, configuration or data, 3 numerical
abort, 4 checkpoint unusable, 5 run folder locked, 6 storage, 7 reward failed, 75 preempted.
"""

TRAIN_USAGE = """\
usage: ppo-jax train EXPERIMENT [--section.key VALUE ...]

EXPERIMENT is the path of a .py file that defines BASE and REWARD, or a name in experiments/:
{experiments}

Every field of its BASE is a flag, for example
  ppo-jax train tiny --hparams.kl_coef 0.1 --hparams.kl_target None --run.progress False
`ppo-jax train EXPERIMENT --help` lists them all with their values in that experiment. Beside them:
  --strict_resume        exit with code 4 instead of going back past a damaged checkpoint
  --allow_config_change  go on with other options than the checkpoint was made with
A run of several processes needs no flag on Cloud TPU, Slurm, Open MPI and Kubernetes; elsewhere
each gets
  --coordinator HOST:PORT --processes N --process K   process 0 listens there; K counts from 0
  --join_seconds 300                                  that they wait for each other at the start
  --distributed off                                   alone, whatever the cluster says
"""


BENCH_USAGE = """\
usage: ppo-jax bench [WORKLOAD ...] [--iterations 5] [--warmup 2] [--out DIR] [--compare FILE]
                     [--section.key VALUE ...]

WORKLOAD is the path of an experiment file, or a name in experiments/bench/ (none: all that are
meant for this device):
{workloads}

Writes DIR/<workload>-<device>-<time>.json (experiments/bench/results); --compare shows an earlier
one beside it. Every field of a workload's BASE is a flag: `ppo-jax bench WORKLOAD --help`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (usage errors found by tyro raise SystemExit(2))."""
    set_flags()
    words = list(sys.argv[1:] if argv is None else argv)
    code = _main(words)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at its end, and end with a code of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    processes.leave(code)
    return code


def _main(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except Preempted as error:
        _tell(f"ppo-jax: {error}")
        return error.exit_code
    except PPOJaxError as error:  # it may hold text of a data file or of a model
        _tell(f"ppo-jax: error: {visible(str(error), sys.stderr.encoding or 'utf-8')}")
        return error.exit_code
    except KeyboardInterrupt:
        _tell("ppo-jax: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `ppo-jax … | head`
        return 1


def _tell(line: str) -> None:
    """A line on stderr; where it cannot be written the exit code says it alone."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _dispatch(words: list[str]) -> int:
    commands = {"train": _train, "generate": _generate, "score": _score, "export": _export}
    commands |= {"plan": _plan, "bench": _bench}
    if not words:
        print(USAGE, end="", file=sys.stderr)
        return 2
    command, *rest = words
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        print(f"ppo-jax {__version__}")
        return 0
    if command not in commands:
        near = difflib.get_close_matches(command, commands, n=1, cutoff=0.0)[0]
        raise ConfigError(f"no command {command!r}; nearest: {near} (of {', '.join(commands)})")
    commands[command](rest)
    return 0


def _train(words: list[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        print(TRAIN_USAGE.format(experiments=_listed()), end="")
        return
    preemption = Preemption()
    with watch(preemption):  # what follows takes seconds to import
        experiment = _first_experiment("train", words)
        if experiment.base.model.trust_remote_code:
            raise ConfigError(
                f"{experiment.path}: BASE: model.trust_remote_code=True: running a model's own "
                "code is asked for on the command line alone: --model.trust_remote_code True"
            )
        args, rest = arguments.take_switches(arguments.TrainArgs, words[1:])
        own, rest = arguments.take_values(arguments.ProcessArgs, rest)
        _check(own)
        processes.check(own)
        config = parse_config(f"train {words[0]}", rest, experiment)
        from ppo_jax.validate import check_config

        check_config(config)
        preemption.grace = config.run.grace
        with processes.joined(own, preemption):
            from ppo_jax.train import train

            train(config, experiment, args, preemption)


def _plan(words: list[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        _parse(arguments.PlanArgs, "plan EXPERIMENT", ["--help"])
    experiment = _first_experiment("plan", words)
    own, rest = arguments.split_words(words[1:])
    args = _parse(arguments.PlanArgs, f"plan {words[0]}", own)
    _check(args)
    config = parse_config(f"plan {words[0]}", rest, experiment)
    from ppo_jax.workload import check_workload

    check_workload(config, experiment)
    from ppo_jax.plan import run_plan

    run_plan(experiment, config, args)


def _bench(words: list[str]) -> None:
    from ppo_jax.experiment import WORKLOADS, load_experiment

    if words and words[0] in ("-h", "--help"):
        print(BENCH_USAGE.format(workloads=_listed(WORKLOADS)), end="")
        return
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    names, flags = words[:count], words[count:]
    own, rest = arguments.split_words(flags)
    args = _parse(arguments.BenchArgs, "bench", own)
    _check(args)
    from ppo_jax.workload import check_workload

    if not names:
        from ppo_jax.bench import workloads_here

        names = workloads_here()
    asked = []
    for name in names:
        experiment = load_experiment(name, WORKLOADS)
        config = parse_config(f"bench {name}", rest, experiment)
        check_workload(config, experiment)
        asked.append((experiment, config))
    from ppo_jax.bench import bench

    bench(asked, args, flags)


def _first_experiment(command: str, words: list[str]):
    """The experiment that the command's first word names."""
    from ppo_jax.experiment import list_experiments, load_experiment

    if not words or words[0].startswith("-"):
        names = ", ".join(list_experiments()) or "none found"
        got = f", not {words[0]}" if words else ""
        raise ConfigError(
            f"{command}: the experiment comes first{got}: ppo-jax {command} EXPERIMENT "
            f"[--section.key VALUE ...] (experiments: {names})"
        )
    return load_experiment(words[0])


def _listed(folder: str = "experiments") -> str:
    """A line an experiment in `folder`: its name, and what it is."""
    from ppo_jax.experiment import list_experiments, summary

    lines = (f"  {name:<16} {summary(path)}" for name, path in list_experiments(folder).items())
    return "\n".join(lines) or "  (none found)"


def _generate(words: list[str]) -> None:
    args = _parse(arguments.GenerateArgs, "generate", words)
    _check(args)
    from ppo_jax import commands

    commands.generate(args)


def _score(words: list[str]) -> None:
    args = _parse(arguments.ScoreArgs, "score", words)
    _check(args)
    from ppo_jax import commands

    commands.score(args)


def _export(words: list[str]) -> None:
    args = _parse(arguments.ExportArgs, "export", words)
    from ppo_jax import commands

    commands.export(args)


def _parse(cls: type[Parsed], command: str, words: list[str], **options) -> Parsed:
    """Flags to a dataclass; a flag that is unknown or of the wrong type raises SystemExit(2)."""
    import tyro

    return tyro.cli(
        cls,
        prog=f"ppo-jax {command}",
        args=words,
        # Bools are written out, as in a sweep; a None stays a value, not a subcommand.
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
        use_underscores=True,
        **options,
    )


def parse_config(command: str, words: list[str], experiment):
    """The experiment's BASE with the flags' values in it."""
    base = experiment.base
    return _parse(type(base), command, words, default=base, description=experiment.doc)


def _check(args) -> None:
    """ConfigError on an argument outside its range."""
    from ppo_jax.ranges import check_ranges

    check_ranges(
        args, {key: arguments.RANGES[key] for key in vars(args) if key in arguments.RANGES}
    )

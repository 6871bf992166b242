"""The command line: flags to a checked configuration, errors to one line and an exit code."""

import contextlib
import dataclasses
import difflib
import functools
import os
import sys
from collections.abc import Sequence
from typing import TypeVar

from ppo_jax import __version__, arguments, processes
from ppo_jax.errors import ConfigError, PPOJaxError, Preempted
from ppo_jax.preemption import Preemption, watch
from ppo_jax.text import visible
from ppo_jax.usage import BENCH_USAGE, PIPELINE_USAGE, TRAIN_USAGE, USAGE
from ppo_jax.xla_flags import set_flags

# Command -> what of an experiment file it trains.
STAGES = {"train": "BASE", "sft": "SFT", "reward-model": "REWARD_MODEL"}

# What takes seconds to import (jax, orbax, transformers) is imported by the command that needs it,
# after its flags have been read.
Parsed = TypeVar("Parsed")


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
    commands = {name: functools.partial(_run, name) for name in STAGES}
    commands |= {"generate": _generate, "score": _score, "export": _export}
    commands |= {"eval": _eval, "pipeline": _pipeline, "plan": _plan, "bench": _bench}
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
    return commands[command](rest) or 0


def _run(command: str, words: list[str]) -> None:
    """Train what the command trains."""
    base = STAGES[command]
    if words and words[0] in ("-h", "--help"):
        defines = ", ".join(dict.fromkeys(("BASE", "REWARD", base)))
        names = {"command": command, "base": base, "defines": defines}
        example = "tiny" if command == "train" else "arithmetic"
        print(TRAIN_USAGE.format(**names, example=example, experiments=_listed()), end="")
        return
    preemption = Preemption()
    with watch(preemption):  # what follows takes seconds to import
        experiment = _stage(_first_experiment(command, words), base)
        args, rest = arguments.take_switches(arguments.TrainArgs, words[1:])
        own, rest = arguments.take_values(arguments.ProcessArgs, rest)
        _check(own)
        processes.check(own)
        config = parse_config(f"{command} {words[0]}", rest, experiment)
        from ppo_jax.validate import check_config

        check_config(config)
        preemption.grace = config.run.grace
        with processes.joined(own, preemption):
            from ppo_jax.train import train

            train(config, experiment, args, preemption, _kind(command))


def _stage(experiment, base: str):
    """The experiment with that one of its configs as its BASE."""
    configs = {"SFT": experiment.sft, "REWARD_MODEL": experiment.reward_model}
    config = {"BASE": experiment.base, **configs}[base]
    if config is None:
        raise ConfigError(f"{experiment.path}: {base} is missing; expected {base} = a Config")
    if config.model.trust_remote_code:
        raise ConfigError(
            f"{experiment.path}: {base}: model.trust_remote_code=True: running a model's own code "
            "is asked for on the command line alone: --model.trust_remote_code True"
        )
    if base != "BASE" and config.run.cell == type(config.run)().cell:  # PPO has that one
        cell = next(command for command, of in STAGES.items() if of == base)
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, cell=cell))
    return experiment._replace(base=config)


def _kind(command: str):
    if command == "sft":
        from ppo_jax.sft import SFT

        return SFT
    if command == "reward-model":
        from ppo_jax.reward_model import TRAINED

        return TRAINED
    from ppo_jax.kind import PPO

    return PPO


def _pipeline(words: list[str]) -> int:
    if words and words[0] in ("-h", "--help"):
        print(PIPELINE_USAGE, end="")
        return 0
    from ppo_jax.pipeline import commands_of, run_pipeline

    return run_pipeline(commands_of(_first_experiment("pipeline", words), words))


def _eval(words: list[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        _parse(arguments.EvalArgs, "eval EXPERIMENT", ["--help"])
    experiment = _stage(_first_experiment("eval", words), "BASE")
    own, rest = arguments.split_words(words[1:])
    if "--temperature" in own:
        own = ["0" if word == "greedy" else word for word in own]
    args = _parse(arguments.EvalArgs, f"eval {words[0]}", own)
    _check(args)
    config = parse_config(f"eval {words[0]}", rest, experiment)
    from ppo_jax.validate import check_config

    check_config(config)
    from ppo_jax.eval_run import run_eval

    run_eval(experiment, config, args)


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
    config = _parse(type(base), command, words, default=base, description=experiment.doc)
    if base.model.path is None and config.model.path is not None:
        # The file's shape is that of its random model; another one brings its own.
        if config.model.shape == base.model.shape:
            model = dataclasses.replace(config.model, shape=type(base.model.shape)())
            config = dataclasses.replace(config, model=model)
    paths = {key: getattr(config.model, key) for key in ("path", "critic_path")}
    if not any(path is not None and path.startswith("@") for path in paths.values()):
        return config
    from ppo_jax.config import replace
    from ppo_jax.stages import resolve

    found = {key: resolve(path, config, experiment.name) for key, path in paths.items()}
    return replace(config, **{f"model.{key}": path for key, path in found.items()})


def _check(args) -> None:
    """ConfigError on an argument outside its range."""
    from ppo_jax.ranges import check_ranges

    check_ranges(
        args, {key: arguments.RANGES[key] for key in vars(args) if key in arguments.RANGES}
    )

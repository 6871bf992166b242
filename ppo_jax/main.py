"""The command line: flags to a checked configuration, errors to one line and an exit code."""

import contextlib
import difflib
import functools
import os
import sys
from collections.abc import Sequence

from ppo_jax import __version__, arguments, processes
from ppo_jax.errors import ConfigError, PPOJaxError, Preempted
from ppo_jax.flags import (
    STAGES,
    check,
    first_experiment,
    listed,
    parse,
    parse_config,
    read_config,
    stage,
    with_cells,
)
from ppo_jax.preemption import Preemption, watch
from ppo_jax.text import visible
from ppo_jax.usage import BENCH_USAGE, PIPELINE_USAGE, SWEEP_USAGE, TRAIN_USAGE, USAGE
from ppo_jax.xla_flags import set_flags

# What takes seconds to import (jax, orbax, transformers) is imported by the command that needs it,
# after its flags have been read.


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
    commands |= {"sweep": _sweep, "report": _report}
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
        defines = "BASE and REWARD" if command == "train" else base
        names = {"command": command, "base": base, "defines": defines}
        example = "tiny" if command == "train" else "arithmetic"
        print(TRAIN_USAGE.format(**names, example=example, experiments=listed()), end="")
        return
    preemption = Preemption()
    with watch(preemption):  # what follows takes seconds to import
        experiment, rest = with_cells(first_experiment(command, words), words[1:])
        experiment = stage(experiment, base)
        args, rest = arguments.take_switches(arguments.TrainArgs, rest)
        own, rest = arguments.take_values(arguments.ProcessArgs, rest)
        check(own)
        processes.check(own)
        config = parse_config(f"{command} {words[0]}", rest, experiment)
        from ppo_jax.validate import check_config

        check_config(config)
        preemption.grace = config.run.grace
        with processes.joined(own, preemption):
            from ppo_jax.train import train

            train(config, experiment, args, preemption, _kind(command))
            if processes.is_writer():
                from ppo_jax.report import leave_page
                from ppo_jax.run_folder import run_path

                leave_page(run_path(config.run, experiment.name))


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
    from ppo_jax.pipeline import check_roots, commands_of, run_pipeline

    experiment = first_experiment("pipeline", words)
    commands = commands_of(experiment, words)
    # A typo of the last stage's is not found hours later.
    configs = {name: _check_flags(name, experiment, flags) for name, _, *flags in commands}
    check_roots(configs)
    return run_pipeline(commands)


def _check_flags(command: str, experiment, words: list[str]):
    """The config of that stage: they are flags of it, with values that it takes."""
    from ppo_jax.validate import check_config

    experiment, words = with_cells(experiment, words)
    if command == "eval":
        own, rest = arguments.split_words(words)
        check(parse(arguments.EvalArgs, command, _greedy(own)))
    else:
        _, rest = arguments.take_switches(arguments.TrainArgs, words)
    name = f"{command} {experiment.name}"
    config = read_config(name, rest, stage(experiment, STAGES.get(command, "BASE")))
    check_config(config)
    return config


def _eval(words: list[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        parse(arguments.EvalArgs, "eval EXPERIMENT", ["--help"])
    experiment, rest = with_cells(first_experiment("eval", words), words[1:])
    experiment = stage(experiment, "BASE")
    own, rest = arguments.split_words(rest)
    args = parse(arguments.EvalArgs, f"eval {words[0]}", _greedy(own))
    check(args)
    config = parse_config(f"eval {words[0]}", rest, experiment)
    from ppo_jax.validate import check_config

    check_config(config)
    from ppo_jax.eval_run import run_eval

    run_eval(experiment, config, args)


def _greedy(words: list[str]) -> list[str]:
    """With the number that `--temperature greedy` stands for."""
    asked = "--temperature" in words
    return ["0" if asked and word == "greedy" else word for word in words]


def _plan(words: list[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        parse(arguments.PlanArgs, "plan EXPERIMENT", ["--help"])
    experiment, rest = with_cells(first_experiment("plan", words), words[1:])
    own, rest = arguments.split_words(rest)
    args = parse(arguments.PlanArgs, f"plan {words[0]}", own)
    check(args)
    config = read_config(f"plan {words[0]}", rest, experiment)  # stages need not have been run
    from ppo_jax.workload import check_workload

    check_workload(config, experiment)
    from ppo_jax.plan import run_plan

    run_plan(experiment, config, args)


def _bench(words: list[str]) -> None:
    from ppo_jax.experiment import WORKLOADS, load_experiment

    if words and words[0] in ("-h", "--help"):
        print(BENCH_USAGE.format(workloads=listed(WORKLOADS)), end="")
        return
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    names, flags = words[:count], words[count:]
    own, rest = arguments.split_words(flags)
    args = parse(arguments.BenchArgs, "bench", own)
    check(args)
    from ppo_jax.workload import check_workload

    if not names:
        from ppo_jax.bench import workloads_here

        names = workloads_here()
    asked = []
    for name in names:
        experiment, changes = with_cells(load_experiment(name, WORKLOADS), rest)
        config = parse_config(f"bench {name}", changes, experiment)
        check_workload(config, experiment)
        asked.append((experiment, config))
    from ppo_jax.bench import bench

    bench(asked, args, flags)


def _sweep(words: list[str]) -> int:
    from ppo_jax.experiment import ABLATIONS

    if {"-h", "--help"} & {*words}:
        print(SWEEP_USAGE.format(experiments=listed(ABLATIONS)), end="")
        return 0
    experiment = first_experiment("sweep", words)
    switches, rest = arguments.take_switches(arguments.TrainArgs, words[1:])
    own, flags = arguments.split_words(rest)
    args = parse(arguments.SweepArgs, f"sweep {words[0]}", _once(own, "--only"))
    if "--only" in own and not args.only:  # of an empty variable of a shell, say
        raise ConfigError("--only: expected names of cells; nearest: --list, which shows them")
    check(args)
    from ppo_jax.sweep import sweep

    return sweep(experiment, flags, args, switches)


def _once(words: list[str], flag: str) -> list[str]:
    """`--only a --only b` as `--only a b`."""
    first = words.index(flag) + 1 if flag in words else len(words)
    return [*words[:first], *(word for word in words[first:] if word != flag)]


def _report(words: list[str]) -> None:
    if words and words[0] == "--index":
        index = parse(arguments.IndexArgs, "report --index", words[1:])
        from ppo_jax.report_index import run_index

        return run_index(index)
    if words and words[0] in ("-h", "--help"):
        parse(arguments.ReportArgs, "report EXPERIMENT", ["--help"])
    if not words or words[0].startswith("-"):
        raise ConfigError(
            "report: expected an experiment or a run folder first: ppo-jax report EXPERIMENT "
            "[--metrics eval/scores ...], or ppo-jax report --index"
        )
    args = parse(arguments.ReportArgs, f"report {words[0]}", words[1:])
    check(args)
    from ppo_jax.report import run_report

    run_report(words[0], args)


def _generate(words: list[str]) -> None:
    args = parse(arguments.GenerateArgs, "generate", words)
    check(args)
    from ppo_jax import commands

    commands.generate(args)


def _score(words: list[str]) -> None:
    args = parse(arguments.ScoreArgs, "score", words)
    check(args)
    from ppo_jax import commands

    commands.score(args)


def _export(words: list[str]) -> None:
    args = parse(arguments.ExportArgs, "export", words)
    from ppo_jax import commands

    commands.export(args)

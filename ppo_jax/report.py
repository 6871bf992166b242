"""`ppo-jax report`: tables and plots of an experiment's runs, or the page of one run, from their
logs alone. The same logs give the same bytes."""

import contextlib
import difflib
import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from ppo_jax import console
from ppo_jax.arguments import ReportArgs
from ppo_jax.data import REPOSITORY
from ppo_jax.errors import ConfigError, PPOJaxError, StorageError
from ppo_jax.metrics import read_samples
from ppo_jax.report_cells import (
    KL,
    SCORES,
    TOGETHER,
    Study,
    is_run,
    read_cell,
    read_study,
    with_metrics,
)
from ppo_jax.report_html import run_page, study_page, token_views
from ppo_jax.report_plots import need_matplotlib, run_plots, study_plots
from ppo_jax.report_tables import (
    Result,
    curves_csv,
    differences_csv,
    left_out,
    make_result,
    markdown,
    summary_csv,
    tables_of,
)
from ppo_jax.run_folder import run_folder
from ppo_jax.storage import as_path, write_atomic
from ppo_jax.text import visible

RESULTS = "experiments/results"
TABLE, SUMMARY, CURVES, PAGE = "table.md", "summary.csv", "curves.csv", "report.html"
DIFFERENCES = "differences.csv"  # where the experiment names PAIRS
# Of an earlier report, with other metrics perhaps.
REPLACED = ("curves-*.svg", "deltas-*.svg", "frontier*.svg", DIFFERENCES)


def run_report(name: str, args: ReportArgs) -> None:
    """Report on the run folder, the folder of runs or the experiment of that name.

    Raises ConfigError where there is none, DataError for logs that are none, StorageError.
    """
    need_matplotlib()
    root = find_runs(name, args.run.dir)
    if is_run(root):
        return report_run(root, args)
    if args.tokens > 0:
        raise ConfigError(f"tokens={args.tokens}: of one run, {root} holds several; nearest: 0")
    report_study(root, args)


def find_runs(name: str, runs: str) -> Path:
    """A run folder, or one of an experiment's runs: given by its path, or by the experiment's name
    or file. ConfigError with the nearest where there is none."""
    given, top = as_path(name, "report").expanduser(), as_path(runs, "run.dir").expanduser()
    if is_run(given):
        return given
    # An experiment may be named with its folder, ablations/x, or by its file.
    named = top / (given.stem if given.suffix == ".py" else name)
    for folder in (named, top / given.name, given):
        if folder.is_dir():
            return folder
    known = sorted(path.name for path in top.iterdir() if path.is_dir()) if top.is_dir() else []
    near = difflib.get_close_matches(given.stem, known, n=1, cutoff=0.0)
    hint = f"nearest: {near[0]}" if near else f"there is nothing in {top}"
    raise ConfigError(f"report: no runs {named}; {hint} (--run.dir moves the root)")


def report_study(root: Path, args: ReportArgs) -> None:
    """`table.md`, `summary.csv`, `curves.csv`, plots and `report.html` of an experiment's runs;
    `differences.csv` of its PAIRS."""
    study = with_metrics(read_study(root), args.metrics)
    result = make_result(study, *base_of(study, args.base), args.window)
    out = as_path(args.out or f"{RESULTS}/{study.name}", "out").expanduser()
    plots, commands = study_plots(result), _commands(study, args)
    paths = dict.fromkeys((*study.metrics, KL, SCORES))
    curves = [name for name in paths if any(name in row for c in study.cells for row in c.rows)]
    contents = {
        **plots,
        TABLE: markdown(result, plots, commands),
        SUMMARY: summary_csv(result),
        CURVES: curves_csv(study, curves),
        PAGE: study_page(result, plots, commands),
    }
    if study.pairs:
        contents[DIFFERENCES] = differences_csv(result)
    write_all(out, contents, replaced=REPLACED)
    show(result)
    console.say(f"{out / TABLE}, {SUMMARY}, {CURVES}, {PAGE} and {len(plots)} plots")


def report_run(root: Path, args: ReportArgs) -> None:
    """`report.html` of a run, in its folder or in `args.out`."""
    folder = run_folder(root)
    cell = read_cell(root.parent.name, 0, root)
    samples = read_samples(folder.samples) if folder.samples.is_file() else []
    tokens: Sequence[str] = ()
    if args.tokens > 0:
        from ppo_jax.report_tokens import UNITS, token_rows  # which loads models

        tokens = token_views(token_rows(root, samples, args.tokens), UNITS)
    facts = {"status": cell.state, "made by": cell.command, **cell.facts}
    content = run_page(
        " / ".join(root.absolute().parts[-3:]),
        facts={name: fact for name, fact in facts.items() if fact},
        rows=cell.rows,
        plots=run_plots(cell.rows),
        samples=samples,
        tokens=tokens,
    )
    out = root if args.out is None else as_path(args.out, "out").expanduser()
    write_all(out, {PAGE: content})
    console.say(str(out / PAGE))


def leave_page(root: Path) -> None:
    """`report.html` in the folder of a run that has ended, where matplotlib is installed. The run
    is whole without it: what keeps it from being written is said, and ends nothing."""
    if importlib.util.find_spec("matplotlib") is None or not run_folder(root).metrics.is_file():
        return
    try:
        report_run(root, ReportArgs())
    except PPOJaxError as error:
        console.warn(f"no {PAGE}: {error}")


def base_of(study: Study, asked: str | None) -> tuple[str, str]:
    """(the variant that others are held against, why it is that one): the one asked for, the one
    that changes nothing of the experiment, else the first."""
    variants = study.variants
    if asked is not None:
        if asked not in variants:
            near = difflib.get_close_matches(asked, variants, n=1, cutoff=0.0)[0]
            raise ConfigError(f"base={asked}: no variant of {study.name}; nearest: {near}")
        return asked, "as asked"
    if "base" in variants:
        return "base", "by its name"
    if study.base is not None:
        return study.base, "which is the experiment's BASE"
    return variants[0], "the first (--base names another)"


def write_all(out: Path, contents: Mapping[str, str], *, replaced: Sequence[str] = ()) -> None:
    """Write files into a folder; others of the patterns `replaced`, of an earlier report with other
    metrics, go. Raises StorageError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: cannot be made ({error.strerror})") from None
    for name, content in contents.items():
        write_atomic(out / name, content)
    for path in (path for pattern in replaced for path in out.glob(pattern)):
        if path.name not in contents:
            try:
                path.unlink()
            except OSError as error:
                raise StorageError(f"{path}: cannot be removed ({error.strerror})") from None


def show(result: Result) -> None:
    """The tables on the screen, and what was left out."""
    screen = console.shared_console()
    for metric in result.study.metrics:
        title: str | None = visible(f"{metric}: {result.rule(metric)}")
        for names, rows in tables_of(result, metric):
            table = Table(title=title, box=SIMPLE)
            table.title_justify, title = "left", None
            for n, name in enumerate(names):
                table.add_column(Text(visible(name)), justify="right" if n else "left")
            for row in rows:
                table.add_row(*(Text(visible(cell)) for cell in row))
            screen.print(table)
    for line in left_out(result):
        console.warn(f"left out: {line}")


def _commands(study: Study, args: ReportArgs) -> dict[str, str]:
    """How runs and report are made again."""
    flags = [] if args.run.dir == "runs" else ["--run.dir", args.run.dir]
    if study.path is None:
        made = {f"{c.variant}, seed {c.seed}": c.command for c in study.cells if c.command}
    else:
        shared = any(cell.facts.get("runs") == TOGETHER for cell in study.cells)
        sweep = ["ppo-jax", "sweep", _nearby(study.path), *study.words]
        sweep += ["--vmap"] if shared else []
        made = {"all runs": shlex.join([*sweep, *flags])}
        made["one variant"] = shlex.join([*sweep, "--only", study.variants[0], *flags])
    own = ["--metrics", *args.metrics] if args.metrics else []
    own += ["--window", f"{args.window:g}"] if args.window != ReportArgs.window else []
    own += ["--base", args.base] if args.base is not None else []
    return {**made, "this report": shlex.join(["ppo-jax", "report", study.name, *own, *flags])}


def _nearby(path: str) -> str:
    """An experiment's file as one names it in the repository."""
    with contextlib.suppress(ValueError):
        return Path(path).relative_to(REPOSITORY).as_posix()
    return path

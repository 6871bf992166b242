"""Plots of a study and of a run, as SVG that is the same bytes each time.

Text stays text in them, is never read as mathematics, and is escaped by matplotlib.
"""

import importlib.util
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ppo_jax.errors import ConfigError
from ppo_jax.report_cells import KL, SCORES, Cell, Study, number
from ppo_jax.report_stats import EVAL, Window, as_number, bands, mean_interval
from ppo_jax.report_tables import Result
from ppo_jax.text import install_hint, visible

# Okabe and Ito's colours, told apart by those who see fewer; then again with other lines.
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000 #999999".split()
STYLES = ("-", "--", ":", "-.")
SHORT_LABEL = 40  # characters of a variant's name in a legend
OPTIONS = {
    "svg.hashsalt": "ppo_jax",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib: widths do not depend on the machine
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "path.simplify": False,
}
FRONTIERS = (("eval/kl", "eval/scores"), (KL, SCORES))  # the first that is there
JUDGED = ("eval/kl", "eval/judge")  # beside it: what nothing is trained on
METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
# A run's own plots, where it has them: title -> metrics in one pair of axes.
PANELS = {
    "score": (SCORES, "eval/scores"),
    "score of held-out rows by the judge": ("eval/judge",),
    "share won against the first model": ("eval/win_rate",),
    "KL to the reference, nats a response": (KL, "eval/kl"),
    "KL coefficient": ("objective/kl_coef",),
    "loss": ("loss", "eval/loss"),
    "accuracy": ("accuracy", "eval/accuracy"),
    "response tokens, mean": ("rollout/length_mean", "eval/length_mean"),
    "share that ended": ("rollout/ended", "eval/ended"),
    "entropy, nats a token": ("policy/entropy_avg", "eval/entropy"),
    "clipped share of tokens": ("policy/clipfrac_avg", "val/clipfrac_avg"),
    "approximate KL of the update": ("policy/approxkl_avg",),
    "value loss": ("loss/value_avg",),
    "explained variance of values": ("value/explained_variance",),
    "gradient norm": ("grad_norm/policy", "grad_norm/value", "grad_norm"),
    "response tokens a second": ("throughput/total",),
}


def need_matplotlib() -> None:
    """ConfigError, with the command that mends it, where it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        hint = install_hint("matplotlib", "report")
        raise ConfigError(f"report needs the package matplotlib: {hint}")


def study_plots(result: Result) -> dict[str, str]:
    """{file name: SVG} of learning curves and differences a metric, and of the frontiers."""
    study, plots = result.study, {}
    for slug, metric in _slugs(study.metrics).items():
        plots[f"curves-{slug}.svg"] = learning_curves(study, metric)
        if len(study.variants) > 1:
            plots[f"deltas-{slug}.svg"] = differences(result, metric)
    pair = next((pair for pair in FRONTIERS if _has_both(study, pair)), None)
    if pair is not None:
        plots["frontier.svg"] = frontier(result, *pair)
    if _has_both(study, JUDGED):
        plots["frontier-judge.svg"] = frontier(result, *JUDGED)
    return plots


def learning_curves(study: Study, metric: str) -> str:
    """Mean over the seeds that are done, with the band of its 95 % interval; a cell that is not, or
    that has other iterations than the rest, is a thin line of its own."""
    with svg_figure(6.4, 3.8) as (figure, svg):
        axes = figure.add_subplot(xlabel="iteration", ylabel=_short(metric))
        for variant, colour, style in _looks(study):
            together, alone = _aligned(study.of(variant), metric)
            if together:
                steps, values_NT = together[0][0], np.stack([curve[1] for curve in together])
                mean_T, low_T, high_T = bands(values_NT)
                label = f"{_short(variant)} (n = {len(together)})"
                marker = "o" if metric.startswith(EVAL) and len(steps) < 30 else None
                axes.plot(steps, mean_T, style, color=colour, label=label, marker=marker, ms=3)
                if len(together) > 1:
                    axes.fill_between(steps, low_T, high_T, color=colour, alpha=0.18, lw=0)
            for n, (steps, values_T) in enumerate(alone):
                label = None if n else f"{_short(variant)}, not done or of other length"
                axes.plot(steps, values_T, ":", color=colour, lw=0.8, alpha=0.8, label=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(axes)
    return svg[0]


def frontier(result: Result, x: str, y: str) -> str:
    """Score over KL: the way of each variant's mean, by tenths of its iterations, and where it
    ended, with the 95 % intervals of both."""
    study = result.study
    with svg_figure(6.4, 3.8) as (figure, svg):
        axes = figure.add_subplot(xlabel=f"{x}, nats a response", ylabel=y)
        for variant, colour, style in _looks(study):
            end_x, end_y = (
                mean_interval(_ends(study.of(variant), m, result.window_of(m))) for m in (x, y)
            )
            ways = [_way(cell.rows, (x, y)) for cell in study.of(variant) if cell.done]
            if end_x.n == 0 or end_y.n == 0:
                continue
            if len({way.shape for way in ways}) == 1:
                mean_2T = np.mean(ways, axis=0)
                axes.plot(*mean_2T, style, color=colour, lw=1, marker=".", ms=4)
            axes.plot([end_x.mean], [end_y.mean], "o", color=colour, label=_short(variant))
            if min(end_x.n, end_y.n) > 1:
                axes.plot([end_x.low, end_x.high], [end_y.mean] * 2, color=colour, lw=2)
                axes.plot([end_x.mean] * 2, [end_y.low, end_y.high], color=colour, lw=2)
        _legend(axes)
    return svg[0]


def differences(result: Result, metric: str) -> str:
    """Each variant's difference to the base, with its interval."""
    entries = [entry for entry in result.of(metric) if entry.delta is not None]
    with svg_figure(6.4, 1.1 + 0.3 * len(entries)) as (figure, svg):
        axes = figure.add_subplot(xlabel=f"{_short(metric)}, minus {_short(result.base)}'s")
        for y, entry in enumerate(entries):
            delta = entry.delta
            if delta is not None and math.isfinite(delta.mean):
                axes.plot([delta.mean], [y], "o", color=COLOURS[0], ms=4)
                if math.isfinite(delta.low):
                    axes.plot([delta.low, delta.high], [y, y], "-", color=COLOURS[0])
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(range(len(entries)), [_short(entry.variant) for entry in entries])
        axes.set_ylim(len(entries) - 0.5, -0.5)
    return svg[0]


def run_plots(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """A run's panels in one SVG; None where no metric of theirs is in its log."""
    names = {name for row in rows for name in row}
    panels = {title: [m for m in metrics if m in names] for title, metrics in PANELS.items()}
    panels = {title: metrics for title, metrics in panels.items() if metrics}
    if not panels:
        return None
    height = -(-len(panels) // 3)
    with svg_figure(11.0, 2.3 * height + 0.3) as (figure, svg):
        for n, (title, metrics) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(height, 3, n)
            axes.set_title(title, fontsize=9)
            axes.xaxis.get_major_locator().set_params(integer=True)
            for metric, colour in zip(metrics, COLOURS, strict=False):
                steps, values_T = _curve(rows, metric)
                marker = "o" if metric.startswith(EVAL) and len(steps) < 60 else None
                axes.plot(steps, values_T, color=colour, lw=1, marker=marker, ms=2, label=metric)
            if len(metrics) > 1:
                axes.legend(fontsize=7)
    return svg[0]


@contextmanager
def svg_figure(width: float, height: float) -> Iterator[tuple[Any, list[str]]]:
    """(a figure to draw into, a list that holds its SVG at the end), in inches."""
    from matplotlib import rc_context  # pyright: ignore
    from matplotlib.figure import Figure  # pyright: ignore

    svg: list[str] = []
    options: Any = {**_defaults(), **OPTIONS}
    with rc_context(options):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, svg
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=METADATA)
    # Without the prologue of a file of its own, so that a page can hold it.
    text = out.getvalue()
    lines = (line.rstrip() for line in text[text.index("<svg") :].splitlines())
    svg.append("\n".join(lines) + "\n")


def _defaults() -> dict[str, Any]:
    """Matplotlib's own: not those of a matplotlibrc that lies about."""
    import matplotlib  # pyright: ignore

    return {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}


def _aligned(cells: Sequence[Cell], metric: str) -> tuple[list, list]:
    """(curves of the done cells that have the same iterations, all other curves), each (steps,
    values)."""
    curves = [(cell.done, *_curve(cell.rows, metric)) for cell in cells]
    curves = [curve for curve in curves if curve[1]]
    lengths = [tuple(steps) for done, steps, _ in curves if done]
    usual = max(lengths, key=lambda x: (lengths.count(x), x)) if lengths else None
    fits = lambda curve: curve[0] and tuple(curve[1]) == usual
    together = [curve[1:] for curve in curves if fits(curve)]
    return together, [curve[1:] for curve in curves if not fits(curve)]


def _ends(cells: Sequence[Cell], metric: str, window: Window) -> list[float]:
    """What stands for each of the runs that have it."""
    found = (number(cell, metric, window)[0] for cell in cells)
    return [value for value in found if math.isfinite(value)]


def _has_both(study: Study, pair: tuple[str, str]) -> bool:
    return any(set(pair) <= row.keys() for cell in study.cells for row in cell.rows)


def _way(rows: Sequence[Mapping[str, Any]], pair: tuple[str, str]) -> np.ndarray:
    """Both metrics [2, T] of a run: means of tenths of the rows that have them."""
    found = [[as_number(row[metric]) for metric in pair] for row in rows if set(pair) <= row.keys()]
    if not found:
        return np.empty((2, 0))
    parts = np.array_split(np.asarray(found, np.float64), min(10, len(found)))
    return np.stack([part.mean(axis=0) for part in parts], axis=1)


def _curve(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[int], np.ndarray]:
    """(iterations, values) of the rows that have the metric; what is not finite is a gap."""
    found = [(row["step"], as_number(row[metric])) for row in rows if metric in row]
    values = np.asarray([value for _, value in found], np.float64)
    return [step for step, _ in found], np.where(np.isfinite(values), values, np.nan)


def _looks(study: Study) -> list[tuple[str, str, str]]:
    """(variant, colour, line) of each."""
    shades = len(COLOURS)
    return [
        (variant, COLOURS[n % shades], STYLES[n // shades % len(STYLES)])
        for n, variant in enumerate(study.variants)
    ]


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _short(name: str) -> str:
    """A name in a plot: one line, of a length that leaves room for the plot."""
    name = visible(name)
    name = name if len(name) <= SHORT_LABEL else name[: SHORT_LABEL - 3] + "..."
    return f"\u200b{name}" if name.startswith("_") else name  # which hides from a legend


def _slugs(metrics: Sequence[str]) -> dict[str, str]:
    """{part of a file's name: metric}, no two alike."""
    found: dict[str, str] = {}
    for metric in metrics:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", metric).strip("-") or "metric"
        while slug in found:
            slug += "-2"
        found[slug] = metric
    return found

"""What `ppo-jax eval` found: numbers with intervals, rows for a file, tables for the screen."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppo_jax import quality
from ppo_jax.console import shared_console, show_samples, warn
from ppo_jax.data import Dataset
from ppo_jax.errors import ConfigError
from ppo_jax.evaluation import WORDS, Answers, numbers
from ppo_jax.quality import Estimate, PerPrompt
from ppo_jax.text import visible

MODELS = ("model", "against")  # whose numbers stand side by side
Row = dict[str, Any]


def describe(
    answers: Answers, *, seed: int, greedy: bool, threshold: float | None
) -> dict[str, Row]:
    """All numbers of a model by name, each {"value", "ci95", "n", "over"}; None stands for what is
    not known. `ci95` is over prompts; diversity is of the responses at hand and has none.

    The KL is left out where responses were not drawn from the policy. pass@k is of scores that are
    all 0 or 1, or that reach `threshold`.
    """
    found = numbers(answers)
    if greedy:
        del found["kl"]
    scores_PK, decided_PK = answers.by_prompt(answers.scores_N), answers.decided_PK
    if answers.samples > 1:
        best_P = quality.best_known(scores_PK)
        found[f"best_of_{answers.samples}"] = quality.mean(
            best_P, share=quality.are_passes(scores_PK)
        )
    found |= _passes(decided_PK, threshold)
    rows = {name: _row(quality.estimate(number, seed=seed)) for name, number in found.items()}
    texts = answers.written
    spread = {f"distinct_{n}": quality.distinct(texts, n) for n in WORDS}
    try:
        spread["self_bleu"] = quality.self_bleu(texts, seed=seed)
    except ConfigError as error:  # a package is missing: the answers are worth more than this one
        warn(f"{error}; self_bleu is left out")
    spread["unscored"] = float(np.sum(~np.isfinite(answers.scores_N)))
    own = {"ci95": None, "n": len(texts), "over": "responses"}
    return rows | {name: {"value": _known(x), **own} for name, x in spread.items()}


def compare(ours: Answers, theirs: Answers) -> Row:
    """The share of prompts won, with its interval; and how many were won, tied and lost."""
    wins_P = quality.wins(ours.decided_PK, theirs.decided_PK)
    row = _row(quality.estimate(quality.mean(wins_P, share=True)))
    counts = {"won": wins_P > 0.5, "tied": wins_P == 0.5, "lost": wins_P < 0.5}
    by = "reward" if ours.verdicts_N is None else "judge"
    return row | {name: int(which.sum()) for name, which in counts.items()} | {"by": by}


def response_rows(dataset: Dataset, answers: Answers, which: str) -> Iterator[Row]:
    """One row a response, for the file; sums over its tokens are in nats."""
    sums = {name: x_N for name, x_N in answers.sums.items() if name != "tokens"}
    for n, text in enumerate(answers.responses):
        row, sample = divmod(n, answers.samples)
        found = {
            "of": which,
            "line": dataset.lines[row],
            "sample": sample,
            "prompt": dataset.prompts[row],
            "response": text,
            "response_ids": answers.ids[n],
            "tokens": int(answers.sums["tokens"][n]),
            "ended": bool(answers.ended_N[n]),
            "score": _known(answers.scores_N[n]),
        }
        if answers.verdicts_N is not None:
            found["judge"] = _known(answers.verdicts_N[n])
        found["parts"] = {name: _known(x_N[n]) for name, x_N in answers.parts.items()}
        found["kl"] = _known(answers.kl_N[n])
        yield found | {name: _known(x_N[n]) for name, x_N in sums.items()}


def show(
    report: Mapping[str, Any],
    responses: Sequence[Row],
    *,
    count: int,
    console: Console | None = None,
) -> None:
    """The numbers as a table, a line on the wins, and what each model says to the first `count`
    prompts, of its `response_rows`."""
    console = console or shared_console()
    found = {name: rows for name, rows in report["metrics"].items() if rows is not None}
    title = visible(f"{report['experiment']}: {report['data']['path']}", console.encoding)
    console.print(Text(title), soft_wrap=True)
    table = Table(box=SIMPLE)
    table.add_column("")
    for which in found:
        table.add_column(which, justify="right")
    names = dict.fromkeys(name for rows in found.values() for name in rows)
    for name in names:
        cells = (_cell(rows.get(name)) for rows in found.values())
        table.add_row(Text(visible(name, console.encoding)), *cells)
    console.print(table)
    if report["wins"] is not None:
        wins = report["wins"]
        line = "wins {} of {} prompts by {won} to {lost}, {tied} tied, as the {by} decides"
        console.print(Text(line.format(_cell(wins), wins["n"], **wins)), soft_wrap=True)
    for which in found:
        rows = [row for row in responses if (row["of"], row["sample"]) == (which, 0)][:count]
        if rows:
            show_samples(f"Responses: {which}", rows, console=console)


def _passes(decided_PK: np.ndarray, threshold: float | None) -> dict[str, PerPrompt]:
    """pass@k for k of 1, 2, 4 … and all samples."""
    if threshold is None:
        if not quality.are_passes(decided_PK):
            return {}
        threshold = 1.0
    samples = decided_PK.shape[1]
    counts = sorted({2**i for i in range(samples.bit_length())} | {samples})
    of = lambda k: quality.pass_at_k(decided_PK, k, threshold=threshold)
    return {f"pass@{k}": quality.mean(of(k), share=True) for k in counts}


def _row(found: Estimate) -> Row:
    interval = [_known(found.low), _known(found.high)]
    return {
        "value": _known(found.value),
        "ci95": None if None in interval else interval,
        "n": found.prompts,
        "over": "prompts",
    }


def _known(x: float) -> float | None:
    """A number that JSON can hold."""
    return float(x) if math.isfinite(x) else None


def _cell(row: Row | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    if row["ci95"] is None:
        return f"{row['value']:.4g}"
    return "{:.4g} [{:.4g}, {:.4g}]".format(row["value"], *row["ci95"])

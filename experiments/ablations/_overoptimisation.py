"""Laws of over-optimisation, fitted to the runs of overoptimisation.py, beside best of n.

    .venv/bin/python experiments/ablations/_overoptimisation.py [--run-dir runs] [--out FOLDER]

d is the square root of the KL to the first policy, in nats. What a policy gains in true worth is
fitted with d (alpha - beta log d), best of n with d (alpha - beta d), the forms of Gao et al. 2022
(arXiv 2210.10760, section 3.1), by least squares. That of RL goes through the mean of the seeds in
each quarter of d, up to the d that every seed has reached; its turn is where the fitted gain is
largest. Beside its R2 stand those of laws through all evaluations of one seed. The turn that was
seen is where the mean of five evaluations, one after the other, is largest. Intervals are of all
resamples of the seeds, each fitted again. Best of n needs the SFT policy's responses, scored by
each reward model:

    ppo-jax eval overoptimisation --model @sft --samples 32 --run.seed 0
        --reward-model.run.cell reward-model-model.shape.embed_dim=16,data.path=...
        --out RUNS/best-of-16-of-250-seed0

Written: `laws.md` and `laws.svg` in the folder of the ablation's results.
"""

import json
import re
import sys
from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np
from _finished import facts_lines, need_done, read_flags, study_of
from _gao_law import ALMOST_NONE, STEP, Law, Points, Size, Turn, rise, turn_of

from ppo_jax.baseline import FILE as BASELINE
from ppo_jax.metrics import read_metrics
from ppo_jax.report_cells import Cell, Study
from ppo_jax.report_plots import COLOURS, svg_figure
from ppo_jax.report_stats import PERCENTS

NAME = "overoptimisation"
SWEEP = f"ppo-jax sweep {NAME}"
TABLE, PLOT = "laws.md", "laws.svg"


def read_points(run: Path) -> Points:
    """The held-out evaluations of a run, against those of the policy before it."""
    first = json.loads((run / BASELINE).read_text())["metrics"]
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "eval/judge" in row]
    column = lambda name: np.array([row[f"eval/{name}"] for row in rows], np.float64)
    gain = lambda name: column(name) - first[f"eval/{name}"]
    return Points(np.sqrt(np.maximum(column("kl"), 0.0)), gain("scores"), gain("judge"))


def best_of(responses: Path) -> tuple[np.ndarray, np.ndarray]:
    """(d, gain in worth) of the response that the proxy likes best of n = 2, 4, 8 ..., by the
    unbiased estimate over all samples of a prompt; the KL of best of n is log n - (n - 1) / n."""
    rows = [json.loads(line) for line in responses.read_text(encoding="utf-8").splitlines()]
    by_prompt: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        by_prompt.setdefault(row["line"], []).append((row["score"], row["judge"]))
    count = len(next(iter(by_prompt.values())))
    liked = lambda rows: sorted(rows, key=lambda row: row[0])
    worth_PK = np.array([[judge for _, judge in liked(rows)] for rows in by_prompt.values()])
    sizes = [2**k for k in range(1, count.bit_length()) if 2**k <= count]
    d, gains = [], []
    for n in sizes:
        # The k-th of the sorted samples is the best of a draw of n with this probability.
        chance_K = np.array([comb(k, n - 1) / comb(count, n) for k in range(count)])
        gains.append(float((worth_PK @ chance_K).mean() - worth_PK.mean()))
        d.append(np.sqrt(np.log(n) - (n - 1) / n))
    return np.array(d), np.array(gains)


def reward_model_of(cell: Cell) -> str:
    """The run.cell of the stage that it started from, as its command has it."""
    found = re.search(r"--reward-model\.run\.cell=([^\s']+)", cell.command)
    if found is None:
        sys.exit(f"{cell.root}: its command names no --reward-model.run.cell: {cell.command}")
    return found[1]


def read_sizes(root: Path, study: Study) -> list[Size]:
    """In the order of the sweep. Raises SystemExit, in one line, where a run is not done."""
    sizes: dict[str, Size] = {}
    for cell in study.cells:
        need_done(cell, SWEEP)
        if not (cell.root / BASELINE).is_file():
            sys.exit(f"{cell.root}: no {BASELINE}; go on with: {SWEEP}")
        size = sizes.setdefault(cell.variant, Size(cell.variant, [], [], []))
        size.runs.append(read_points(cell.root))
        model = root / reward_model_of(cell) / f"seed{cell.seed}"
        logged = [row for row in read_metrics(model / "metrics.jsonl") if "eval/loss" in row]
        size.accuracies.append(min(logged, key=lambda row: row["eval/loss"])["eval/accuracy"])
        sampled = root / f"best-of-{cell.variant}-seed{cell.seed}" / "eval.jsonl"
        if sampled.is_file():
            size.best.append(best_of(sampled))
    for size in sizes.values():
        if len(size.best) not in (0, len(size.runs)):
            some = f"{len(size.best)} of {len(size.runs)} seeds"
            sys.exit(f"{root}/best-of-{size.label}-seed*: {some}; the rest: make reproduce ONLY=R6")
    return list(sizes.values())


def interval(values: Sequence[float]) -> str:
    low, high = np.percentile(values, PERCENTS, method="inverted_cdf")
    return f"{low:.2f} to {high:.2f}"


def law_turn(law: Law, laws: Sequence[Law], reach: float) -> str:
    """Where the law turns, by d with its interval (of resampled `laws`)."""
    if law.turn > reach:
        return f"none up to {reach:.2f}"
    return f"{law.turn:.2f} ({interval([one.turn for one in laws])})"


def turn_cells(turns: Sequence[Turn]) -> list[str]:
    """Where the runs turned: d of each and their mean, what was gained there and was left of it."""
    seen = ", ".join(f"{turn.d:.2f}" if np.isfinite(turn.d) else "none" for turn in turns)
    mean = np.mean([turn.d for turn in turns])
    return [
        f"{mean:.2f} ({seen})" if np.isfinite(mean) else seen,
        f"{np.mean([turn.gain for turn in turns]):.2f}",
        f"{np.mean([turn.end for turn in turns]):.2f}",
    ]


def table(sizes: Sequence[Size]) -> str:
    columns = (
        "proxy",
        "its accuracy on held-out pairs",
        "alpha",
        "beta",
        "R2",
        "fitted up to d",
        "R2 of each seed",
        "turn of the law, d (95 % CI)",
        "turn seen, d",
        "gain there",
        "gain at the end",
        "proxy: rank correlation with d",
        "proxy: largest fall of its gain",
        "best of n: alpha, beta, R2",
    )
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    lines = []
    for size in sizes:
        law, laws, best = size.law(), size.resampled(), size.law_of_best()
        ups = [rise(run) for run in size.runs]
        cells = [
            size.label,
            ", ".join(f"{x:.3f}" for x in size.accuracies),
            f"{law.alpha:.3f} ({interval([one.alpha for one in laws])})",
            f"{law.beta:.3f} ({interval([one.beta for one in laws])})",
            f"{law.r2:.3f}",
            f"{size.reach:.2f}",
            ", ".join(f"{one.r2:.3f}" for one in size.laws_of_each()),
            law_turn(law, laws, size.reach),
            *turn_cells([turn_of(run) for run in size.runs]),
            ", ".join(f"{rho:.3f}" for rho, _ in ups),
            ", ".join(f"{100 * fall:.1f} %" for _, fall in ups),
            "-" if best is None else f"{best.alpha:.3f}, {best.beta:.3f}, {best.r2:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |\n")
    return head + "".join(lines)


def sources(study: Study, sizes: Sequence[Size]) -> str:
    """What the numbers are of."""
    seeds, points = len(sizes[0].runs), len(sizes[0].runs[0].d_N)
    more = {
        "points": f"{seeds} seeds x {points} evaluations, a law through their mean in steps of d "
        f"{STEP:g} wide, those of each seed through all evaluations"
    }
    more |= {"made by": f"make reproduce ONLY=R6, which runs {Path(__file__).name}"}
    return facts_lines(study, more)


def plot(sizes: Sequence[Size]) -> str:
    """Gains over d: worth of each evaluation and its law, the proxy's own scores, best of n."""
    with svg_figure(11.0, 4.2) as (figure, svg):
        worth, proxy = figure.subplots(1, 2)
        for size, colour in zip(sizes, COLOURS, strict=False):
            d_N, law = np.linspace(ALMOST_NONE, size.reach, 200), size.law()
            worth.plot(d_N, law.gain(d_N), color=colour, label=size.label)
            for run in size.runs:
                worth.plot(run.d_N, run.gold_N, ".", color=colour, ms=3, alpha=0.6)
                order = np.argsort(run.d_N)
                proxy.plot(run.d_N[order], run.proxy_N[order], color=colour, lw=1)
            for d, gain in size.best:
                worth.plot(d, gain, "x", color=colour, ms=5)
        worth.set(xlabel="d, square root of nats", ylabel="gain in worth (x: best of n)")
        proxy.set(xlabel="d, square root of nats", ylabel="gain by the reward model")
        worth.legend()
    return svg[0]


def main(words: Sequence[str]) -> None:
    root, out = read_flags(words, NAME, __doc__)
    study = study_of(root, SWEEP)
    sizes = read_sizes(root, study)
    out.mkdir(parents=True, exist_ok=True)
    text = table(sizes) + "\n" + sources(study, sizes)
    (out / TABLE).write_text(text, encoding="utf-8")
    (out / PLOT).write_text(plot(sizes), encoding="utf-8")
    print(text + f"{out / TABLE} and {PLOT}")


if __name__ == "__main__":
    main(sys.argv[1:])

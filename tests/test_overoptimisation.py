"""The laws of over-optimisation: fitted from runs of known ones."""

import importlib
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SEEDS = 2
ALPHA, BETA = 1.4, 0.6
NAME = "overoptimisation"

sys.path.insert(0, str(ROOT / "experiments" / "ablations"))
laws = importlib.import_module("_overoptimisation")
gao = importlib.import_module("_gao_law")


def test_the_fit_finds_the_law():
    rng = np.random.default_rng(0)
    d = rng.uniform(0.2, 8.0, 200)
    exact = gao.fit(d, d * (ALPHA - BETA * np.log(d)), np.log)
    np.testing.assert_allclose([exact.alpha, exact.beta, exact.r2], [ALPHA, BETA, 1.0], atol=1e-9)
    # The turn is where the derivative is zero, by a fine grid.
    grid = np.linspace(0.01, 20.0, 200_001)
    assert abs(grid[exact.gain(grid).argmax()] - exact.turn) < 2e-4
    assert exact.gain(np.array([exact.turn]))[0] == pytest.approx(BETA * exact.turn)
    noisy = gao.fit(d, d * (ALPHA - BETA * np.log(d)) + rng.normal(0, 0.3, 200), np.log)
    assert 0.5 < noisy.r2 < 0.99 and abs(noisy.alpha - ALPHA) < 0.1
    other = gao.fit(d, d * (ALPHA - BETA * d), lambda d: d)
    np.testing.assert_allclose([other.alpha, other.beta], [ALPHA, BETA], atol=1e-9)


def write_responses(path, scores_PK, judges_PK):
    rows = [
        {"of": "model", "line": p, "sample": k, "score": float(s), "judge": float(j)}
        for p, (scores, judges) in enumerate(zip(scores_PK, judges_PK, strict=True))
        for k, (s, j) in enumerate(zip(scores, judges, strict=True))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_best_of_n_is_the_mean_over_all_draws(tmp_path):
    """Against every subset of n of 8 samples."""
    rng = np.random.default_rng(1)
    scores, judges = rng.normal(size=(2, 3, 8))
    write_responses(tmp_path / "eval.jsonl", scores, judges)
    d, gains = laws.best_of(tmp_path / "eval.jsonl")
    for at, n in enumerate((2, 4, 8)):
        drawn = [
            judges[p, max(some, key=lambda k, p=p: scores[p, k])]
            for p in range(3)
            for some in itertools.combinations(range(8), n)
        ]
        assert gains[at] == pytest.approx(np.mean(drawn) - judges.mean(), abs=1e-12)
        assert d[at] ** 2 == pytest.approx(np.log(n) - (n - 1) / n)


@pytest.fixture
def runs(tmp_path):
    """Runs of two widths that follow a law exactly; the narrower turns earlier."""
    root, cells = tmp_path / "runs" / "overoptimisation", []
    for width, beta in ((16, 1.2), (64, 0.6)):
        for seed in range(SEEDS):
            name, stage = f"{width}-wide", f"reward-model-model.shape.embed_dim={width},data.path=x"
            run, kl = root / f"{name}-0" / f"seed{seed}", np.linspace(0.0, 30.0, 41)[1:] + seed
            run.mkdir(parents=True)
            first = {"eval/scores": -1.0, "eval/judge": 0.5, "eval/kl": 0.0}
            (run / "baseline.json").write_text(json.dumps({"metrics": first}))
            (run / "status.json").write_text('{"status": "done"}')
            argv = ["ppo-jax", "train", NAME, f"--reward-model.run.cell={stage}"]
            (run / "env.json").write_text(json.dumps({"argv": argv}))
            d = np.sqrt(kl)
            gold = 0.5 + d * (ALPHA - beta * np.log(d))
            rows = [{"step": 0, "objective/kl": 0.0}]
            rows += [
                {"step": n, "eval/kl": k, "eval/scores": -1 + 0.1 * k, "eval/judge": g}
                for n, (k, g) in enumerate(zip(kl, gold, strict=True), 1)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            model = root / stage / f"seed{seed}"
            model.mkdir(parents=True)
            rows = [{"step": n, "eval/loss": abs(n - 3), "eval/accuracy": n / 10} for n in range(6)]
            (model / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            cells.append(
                {
                    "name": name,
                    "hash": "0",
                    "changes": {"reward-model.model.shape.embed_dim": width},
                    "seed": seed,
                    "dir": f"{name}-0/seed{seed}",
                }
            )
    (root / "sweep.json").write_text(json.dumps({"cells": cells, "metrics": ["eval/scores"]}))
    return root


def numbers(cell):
    return [float(word) for word in re.findall(r"[\d.]+", cell)]


def test_the_study_of_runs_with_a_law(runs, tmp_path, capsys):
    rng = np.random.default_rng(2)
    for seed in range(SEEDS):
        scores = rng.normal(size=(50, 16))
        write_responses(runs / f"best-of-64-wide-seed{seed}" / "eval.jsonl", scores, scores)
    out = tmp_path / "out"
    laws.main(["--run-dir", str(runs.parent), "--out", str(out)])
    lines = (out / "laws.md").read_text().splitlines()
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in lines[:4]]
    by_name = {row[0]: row for row in rows}
    assert lines[4] == "" and any(
        line.startswith("- points: 2 seeds x 40 evaluations, a law through their mean")
        for line in lines[5:]
    )
    narrow, wide = (
        dict(zip(by_name["proxy"], by_name[f"{n}-wide"], strict=True)) for n in (16, 64)
    )
    assert narrow["its accuracy on held-out pairs"] == "0.300, 0.300"
    # The mean over a step of d bends the law by a hundredth at most.
    assert numbers(narrow["alpha"]) == pytest.approx([ALPHA] * 3, abs=0.02)
    assert numbers(narrow["beta"]) == pytest.approx([1.2] * 3, abs=0.02)
    assert numbers(narrow["turn of the law, d (95 % CI)"]) == pytest.approx([1.18] * 3, abs=0.02)
    assert (wide["R2"], wide["R2 of each seed"]) == ("1.000", "1.000, 1.000")
    assert wide["fitted up to d"] == "5.48"
    assert numbers(wide["turn of the law, d (95 % CI)"]) == pytest.approx([3.79] * 3, abs=0.04)
    turn, *of_each = numbers(wide["turn seen, d"])
    assert len(of_each) == SEEDS and turn == pytest.approx(np.mean(of_each), abs=0.01)
    assert abs(turn - 3.79) < 0.1 and float(wide["gain there"]) == pytest.approx(
        0.6 * 3.79, abs=0.01
    )
    assert float(wide["gain at the end"]) < 0.6 * 3.79 - 0.05
    assert wide["proxy: rank correlation with d"] == "1.000, 1.000"
    assert wide["proxy: largest fall of its gain"] == "0.0 %, 0.0 %"
    assert narrow["best of n: alpha, beta, R2"] == "-" != wide["best of n: alpha, beta, R2"]
    assert (out / "laws.svg").read_text().count("<svg") == 1
    first = (out / "laws.svg").read_bytes()
    laws.main(["--run-dir", str(runs.parent), "--out", str(out)])
    assert (out / "laws.svg").read_bytes() == first
    assert str(out / "laws.md") in capsys.readouterr().out


def test_what_is_missing_is_said(runs, tmp_path):
    with pytest.raises(
        SystemExit, match="nowhere/overoptimisation.*; first: ppo-jax sweep overopt"
    ):
        laws.main(["--run-dir", str(tmp_path / "nowhere")])
    words = ["--run-dir", str(runs.parent), "--out", str(tmp_path / "out")]
    write_responses(runs / "best-of-64-wide-seed0" / "eval.jsonl", *np.ones((2, 3, 8)))
    with pytest.raises(SystemExit, match=r"best-of-64-wide-seed\*: 1 of 2 seeds; the rest: make"):
        laws.main(words)
    run = runs / "64-wide-0/seed1"
    (run / "baseline.json").rename(run / "other.json")
    with pytest.raises(SystemExit, match="seed1: no baseline.json; go on with: ppo-jax"):
        laws.main(words)
    (run / "other.json").rename(run / "baseline.json")
    (run / "status.json").write_text('{"status": "running"}')
    with pytest.raises(SystemExit, match="seed1: running after 41 iterations; go on with: ppo-jax"):
        laws.main(words)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit, match="seed1: no metrics.jsonl: not begun; go on with: ppo-jax"):
        laws.main(words)


def test_a_turn_is_where_runs_have_been():
    """One that lies beyond them, or that there is none of, is no number."""
    d_N = np.linspace(0.2, 3.0, 30)
    size = lambda gold: gao.Size("x", [], [gao.Points(d_N, d_N, gold(d_N))] * 2, [])
    by_law = lambda size: laws.law_turn(size.law(), size.resampled(), size.reach)
    early = size(lambda d: d * (0.3 - 0.6 * np.log(d)))
    assert numbers(by_law(early)) == pytest.approx([0.61] * 3, abs=0.02)
    for alpha, beta in ((1.4, 0.6), (0.1, -0.5), (1.0, 0.0)):
        late = size(lambda d, a=alpha, b=beta: d * (a - b * np.log(d)))
        assert by_law(late) == "none up to 3.00"
        assert laws.turn_cells([gao.turn_of(run) for run in late.runs])[0] == "none, none"


def test_a_turn_that_is_seen_is_of_five_evaluations():
    d_N, gold_N = np.arange(12.0), np.array([0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 9.0])
    # Means of five: 2, 3, 3.6, 3.8, 3.6, 3, 2, 3; the last evaluation alone is no turn.
    found = gao.turn_of(gao.Points(d_N, d_N, gold_N))
    assert found == pytest.approx((5.0, 3.8, 3.0))
    up = gao.turn_of(gao.Points(d_N, d_N, d_N))
    assert (up.d, up.gain, up.end) == (np.inf, pytest.approx(9.0), pytest.approx(9.0))
    one, other = gao.Turn(2.0, 3.0, 1.0), gao.Turn(np.inf, 5.0, 5.0)
    assert laws.turn_cells([one, one]) == ["2.00 (2.00, 2.00)", "3.00", "1.00"]
    assert laws.turn_cells([one, other]) == ["2.00, none", "4.00", "3.00"]


def test_a_law_is_fitted_as_far_as_every_seed_went():
    law = lambda d: d * (ALPHA - BETA * np.log(d))
    near, far = np.linspace(0.2, 3.0, 30), np.linspace(0.2, 6.0, 60)
    bent = np.where(far > 3.0, -5.0, law(far))  # beyond what the other seed has seen
    runs = [gao.Points(d, d, gold) for d, gold in ((near, law(near)), (far, bent))]
    both, one = (gao.Size("x", [], some, []) for some in (runs, runs[1:]))
    assert (both.reach, one.reach) == (3.0, 6.0)
    assert both.law().r2 > 0.9999 and both.law().beta == pytest.approx(BETA, abs=0.01)
    assert one.law().r2 < 0.9
    alone = both.laws_of_each()
    assert alone[0].r2 == pytest.approx(1.0) and alone[1].r2 < 0.9


def test_a_run_that_stays_counts_no_more_than_one_that_goes_on():
    """The law is that of the mean of two runs at each d, wherever one of them wrote most."""
    grid = np.linspace(0.1, 3.0, 291)
    law = lambda alpha, d: d * (alpha - BETA * np.log(d))
    stays = np.concatenate([grid, np.full(5000, 3.0)])
    runs = [gao.Points(d, d, law(alpha, d)) for alpha, d in ((1.0, grid), (2.0, stays))]
    found = gao.law_of_means(gao.means_by_step(runs, 3.0))
    assert found.alpha == pytest.approx(1.5, abs=0.01)
    assert found.beta == pytest.approx(BETA, abs=0.01) and found.r2 > 0.999
    # Where only one has been, the mean is its own.
    part = gao.Points(*(x_N[grid < 1.0] for x_N in runs[0]))
    short, whole = gao.means_by_step([part, runs[0]], 3.0)
    assert np.isnan(short).any() and not np.isnan(whole).any()
    found = gao.law_of_means(gao.means_by_step([part, runs[0]], 3.0))
    assert found.alpha == pytest.approx(1.0, abs=0.01)


def test_seeds_that_differ_widen_the_interval():
    d_N = np.linspace(0.2, 9.0, 40)
    runs = [gao.Points(d_N, d_N, d_N * (1.0 - b * np.log(d_N))) for b in (0.5, 0.6, 0.7)]
    turns = [np.exp(1 / b - 1) for b in (0.5, 0.7)]
    found = laws.interval([one.turn for one in gao.Size("x", [], runs, []).resampled()])
    assert numbers(found) == pytest.approx(turns[::-1], abs=0.02)
    flat = gao.Points(d_N, np.ones_like(d_N), d_N)
    assert all(map(np.isnan, gao.rise(flat)))

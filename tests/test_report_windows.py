"""Which runs are reported on, of which of their iterations, and which are set beside each other."""

import csv
import json

import pytest

from ppo_jax.main import main
from ppo_jax.report import find_runs
from report_builders import ENV, folder_of, report, summary, write_run, write_sweep


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The working directory, whose runs/ab is a finished sweep: scores 0.2 to 0.5, KL 0 to 1.5."""
    monkeypatch.chdir(tmp_path)
    root = write_sweep(tmp_path / "runs/ab", {"lam=0.0": {}}, (0, 1))
    for seed in range(2):
        write_run(root / folder_of("lam=0.0") / f"seed{seed}", [0.2, 0.3, 0.4, 0.5])
    return tmp_path


def with_fields(runs, **fields):
    path = runs / "runs/ab/sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", ["ab", "ablations/ab", "experiments/ablations/ab.py", "runs/ab"])
def test_runs_are_found_by_whatever_names_the_experiment(name, runs):
    assert find_runs(name, "runs").resolve() == runs / "runs/ab"


def test_a_metric_has_the_iterations_that_the_file_gives_it(runs):
    with_fields(runs, windows={"objective/kl": [1, 3]})
    out = report("ab", "--metrics", "objective/kl", "objective/scores")
    rows = {(row["metric"], row["variant"]): row for row in summary(out)}
    assert float(rows["objective/kl", "lam=0.0"]["mean"]) == pytest.approx(0.75)  # 0.5, 1.0
    assert rows["objective/kl", "lam=0.0"]["rule"] == "mean of iterations 1 to 2"
    assert float(rows["objective/scores", "lam=0.0"]["mean"]) == pytest.approx(0.5)
    for name in ("table.md", "report.html"):
        assert "objective/kl: mean of iterations 1 to 2" in (out / name).read_text()


def test_the_frontier_ends_where_the_table_does(runs):
    """The last iteration is what a metric without a window ends with, so one that says the same
    changes nothing, and one of earlier iterations moves the end."""

    def frontier(**fields):
        with_fields(runs, **fields)
        return (report("ab", "--metrics", "objective/scores") / "frontier.svg").read_bytes()

    plain = frontier()
    assert frontier(windows={"objective/kl": [3, 4]}) == plain
    assert frontier(windows={"objective/kl": [1, 3]}) != plain


def test_iterations_that_no_run_has_are_named(runs, capsys):
    with_fields(runs, windows={"objective/kl": [4, 9]})
    out = report("ab", "--metrics", "objective/kl")
    said = "seed 0: no objective/kl in its log at iterations 4 to 8"
    assert said in (out / "table.md").read_text()


@pytest.mark.parametrize("windows", [3, {"objective/kl": [1]}, {"objective/kl": [0, 2.5]}])
def test_iterations_that_are_none(windows, runs, capsys):
    with_fields(runs, windows=windows)
    assert main(["report", "ab"]) == 2
    error = capsys.readouterr().err
    assert "runs/ab/sweep.json: windows: expected {metric: [from, to]}, got" in error


def test_pairs_of_variants_are_set_beside_each_other(tmp_path, monkeypatch):
    """0.5 less 0.2 and 0.6 less 0.4, beside the differences to the base; none without PAIRS."""
    monkeypatch.chdir(tmp_path)
    scores = {"a": (0.1, 0.1), "b": (0.2, 0.4), "c": (0.5, 0.6)}
    root = write_sweep(tmp_path / "runs/ab", dict.fromkeys(scores, {}), (0, 1))
    for name, of_seeds in scores.items():
        for seed, score in enumerate(of_seeds):
            write_run(root / folder_of(name) / f"seed{seed}", [score])
    assert not (report("ab") / "differences.csv").exists()
    with_fields(tmp_path, pairs=[["c", "b"]])
    out = report("ab")
    (row,) = csv.DictReader((out / "differences.csv").open())
    assert (row["variant"], row["less"], row["n"], row["paired"]) == ("c", "b", "2", "1")
    assert [float(row[key]) for key in ("delta", "low", "high")] == pytest.approx([0.25, 0.2, 0.3])
    assert "| c | b | +0.25 | +0.2 to +0.3 | 2 |" in (out / "table.md").read_text()
    assert "<td>+0.2 to +0.3</td>" in (out / "report.html").read_text()
    with_fields(tmp_path, pairs=[])
    assert not (report("ab") / "differences.csv").exists()


@pytest.mark.parametrize(
    "pairs", [3, [["lam=0.0"]], [["lam=0.0", "lam=1"]], ["lam=0.0"], [["lam=0.0", []]]]
)
def test_pairs_that_are_none(pairs, runs, capsys):
    with_fields(runs, pairs=pairs)
    assert main(["report", "ab"]) == 2
    error = capsys.readouterr().err
    assert "runs/ab/sweep.json: pairs: expected [[variant, variant]], got" in error


def test_how_the_runs_were_made(runs):
    """The flags that all had, and one program where there was one."""
    with_fields(runs, words=["--run.iterations", "4"], doc="What it asks, in\ntwo lines.\n\nMore.")
    text = (report("ab") / "table.md").read_text()
    assert "| all runs | ppo-jax sweep case.py --run.iterations 4 |" in text
    assert "| runs | each by itself |" in text
    assert text.startswith("# ab\n\nWhat it asks, in two lines.\n\n## ")
    for path in (runs / "runs/ab").glob("*/seed0/env.json"):
        path.write_text(json.dumps(ENV | {"argv": ["ppo-jax", "sweep", "case.py", "--vmap"]}))
    text = (report("ab") / "table.md").read_text()
    assert "| all runs | ppo-jax sweep case.py --run.iterations 4 --vmap |" in text
    assert "| runs | one program (--vmap) (1 runs); each by itself (1 runs) |" in text

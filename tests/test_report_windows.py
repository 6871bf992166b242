"""Which runs are reported on, and of which of their iterations."""

import json

import pytest

from ppo_jax.main import main
from ppo_jax.report import find_runs
from report_builders import folder_of, report, summary, write_run, write_sweep


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The working directory, whose runs/ab is a finished sweep: scores 0.2 to 0.5, KL 0 to 1.5."""
    monkeypatch.chdir(tmp_path)
    root = write_sweep(tmp_path / "runs/ab", {"lam=0.0": {}}, (0, 1))
    for seed in range(2):
        write_run(root / folder_of("lam=0.0") / f"seed{seed}", [0.2, 0.3, 0.4, 0.5])
    return tmp_path


def with_windows(runs, windows):
    path = runs / "runs/ab/sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"windows": windows}))


@pytest.mark.parametrize("name", ["ab", "ablations/ab", "experiments/ablations/ab.py", "runs/ab"])
def test_runs_are_found_by_whatever_names_the_experiment(name, runs):
    assert find_runs(name, "runs").resolve() == runs / "runs/ab"


def test_a_metric_has_the_iterations_that_the_file_gives_it(runs):
    with_windows(runs, {"objective/kl": [1, 3]})
    out = report("ab", "--metrics", "objective/kl", "objective/scores")
    rows = {(row["metric"], row["variant"]): row for row in summary(out)}
    assert float(rows["objective/kl", "lam=0.0"]["mean"]) == pytest.approx(0.75)  # 0.5, 1.0
    assert rows["objective/kl", "lam=0.0"]["rule"] == "mean of iterations 1 to 2"
    assert float(rows["objective/scores", "lam=0.0"]["mean"]) == pytest.approx(0.5)
    for name in ("table.md", "report.html"):
        assert "objective/kl: mean of iterations 1 to 2" in (out / name).read_text()


def test_iterations_that_no_run_has_are_named(runs, capsys):
    with_windows(runs, {"objective/kl": [4, 9]})
    out = report("ab", "--metrics", "objective/kl")
    said = "seed 0: no objective/kl in its log at iterations 4 to 8"
    assert said in (out / "table.md").read_text()


@pytest.mark.parametrize("windows", [3, {"objective/kl": [1]}, {"objective/kl": [0, 2.5]}])
def test_iterations_that_are_none(windows, runs, capsys):
    with_windows(runs, windows)
    assert main(["report", "ab"]) == 2
    error = capsys.readouterr().err
    assert "runs/ab/sweep.json: windows: expected {metric: [from, to]}, got" in error

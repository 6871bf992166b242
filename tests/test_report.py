"""`ppo-jax report` of a sweep: numbers of the logs alone, gaps named, the same bytes each time."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from ppo_jax.main import main
from report_builders import (
    assert_self_contained,
    files,
    folder_of,
    report,
    summary,
    write_run,
    write_sweep,
)

VARIANTS = {"lam=0.0": {"hparams.lam": 0.0}, "lam=0.95": {"hparams.lam": 0.95}}
SCORES = {"lam=0.0": 0.2, "lam=0.95": 0.6}  # and 0.01 a seed, with 0.1 an iteration


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The working directory, whose runs/ab is a finished sweep of two variants by three seeds."""
    monkeypatch.chdir(tmp_path)
    root = write_sweep(tmp_path / "runs/ab", VARIANTS, (0, 1, 2), base="lam=0.95")
    for name, start in SCORES.items():
        for seed in range(3):
            scores = [start + 0.01 * seed + 0.1 * step for step in range(4)]
            held_out = {"eval__scores": [0.0, 0.0, 0.0, start]}
            write_run(root / folder_of(name) / f"seed{seed}", scores, **held_out)
    return tmp_path


def test_numbers_are_those_of_the_logs(runs, capsys):
    rows = summary(report("ab", "--metrics", "objective/scores", "eval/scores"))
    by = {(row["metric"], row["variant"]): row for row in rows}
    assert list(by) == [(m, v) for m in ("objective/scores", "eval/scores") for v in VARIANTS]
    ours = by["objective/scores", "lam=0.0"]
    values = np.array([0.5, 0.51, 0.52])  # of the last of four iterations
    expected = {"mean": values.mean(), "min": 0.5, "max": 0.52, "std": values.std(ddof=1)}
    expected |= {"low": 0.5, "high": 0.52, "delta": -0.4, "delta_low": -0.4, "delta_high": -0.4}
    assert {key: float(ours[key]) for key in expected} == pytest.approx(expected)
    assert [ours[key] for key in ("n", "seeds", "delta_n", "delta_paired")] == [
        *"3",
        "0 1 2",
        *"31",
    ]
    assert ours["base"] == "lam=0.95" and by["objective/scores", "lam=0.95"]["delta"] == ""
    assert float(by["eval/scores", "lam=0.95"]["mean"]) == pytest.approx(0.6)
    shown = capsys.readouterr().out
    assert "0.51" in shown and "mean of the last 10 % of the iterations" in shown


def test_table_says_what_it_is_made_of(runs):
    out = report("ab", "--window", "0.5")
    text = (out / "table.md").read_text()
    assert "mean of the last 50 % of the iterations" in text
    assert "| lam=0.0 | 0.46 | 0.45 to 0.47 | 3 of 3 | -0.4 | -0.4 to -0.4 | 3 |" in text
    assert "Differences are to lam=0.95, which is the experiment's BASE." in text
    assert "| commit | 0123456789ab and changes |" in text and "| jax | 0.10.2 |" in text
    assert "| device | 2 x cpu, 8 CPU cores |" in text and "| iterations | 4 |" in text
    assert "ppo-jax report ab --window 0.5" in text and "--only lam=0.0" in text
    assert "Left out:\n\n- nothing\n" in text
    names = set(re.findall(r"!\[.*?\]\((.*?)\)", text))
    stem = "objective-scores"
    assert names == {f"curves-{stem}.svg", f"deltas-{stem}.svg", "frontier.svg"}
    assert set(files(out)) == names | {"table.md", "summary.csv", "curves.csv", "report.html"}
    for name in names:
        assert ElementTree.parse(out / name).getroot().tag.endswith("}svg")


def test_what_a_judge_says_has_a_frontier_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_sweep(tmp_path / "runs/ab", {"one": {}}, (0, 1))
    judged = {"eval__scores": [0.0, 1.0], "eval__judge": [0.5, 0.25], "eval__kl": [0.0, 3.0]}
    for seed in range(2):
        write_run(root / folder_of("one") / f"seed{seed}", [0.0, 1.0], **judged)
    names = files(report("ab"))
    plots = {name: text.decode() for name, text in names.items() if "frontier" in name}
    assert plots.keys() == {"frontier.svg", "frontier-judge.svg"}
    for name, axis in (("frontier.svg", "eval/scores"), ("frontier-judge.svg", "eval/judge")):
        assert f">{axis}</text>" in plots[name] and name in names["table.md"].decode()


def test_curves_hold_every_iteration(runs):
    rows = list(csv.DictReader((report("ab") / "curves.csv").open()))
    assert len(rows) == 2 * 3 * 4
    last = rows[-1]
    assert last["variant"] == "lam=0.95" and last["seed"] == "2" and last["step"] == "3"
    assert float(last["objective/scores"]) == pytest.approx(0.92)
    assert float(last["objective/kl"]) == 1.5


def test_again_the_same_bytes(runs):
    """Whatever matplotlib is set to, in another process with other hashes."""
    first = files(report("ab"))
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.fonttype": "path"}):
        assert files(report("ab")) == first
    (runs / "matplotlibrc").write_text("lines.linewidth: 7\nfigure.facecolor: red\n")
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "ppo_jax", "report", "ab"]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert files(Path("experiments/results/ab")) == first


def test_gaps_are_named(runs, capsys):
    """Missing, unfinished, failed, unreadable and not finite: in no mean, and in every table."""
    root = runs / "runs/ab"
    seeds = range(7)
    write_sweep(root, VARIANTS, seeds, path=str(runs / "ab.py"))
    at = lambda seed: root / folder_of("lam=0.0") / f"seed{seed}"
    write_run(at(3), [0.9, 0.9], status="preempted")
    write_run(at(4), [0.9], status="failed", error="3 iterations in a row <b>")
    write_run(at(5), [0.9])
    (at(5) / "metrics.jsonl").write_text('{"step": 0}\n{"step": oh}\n')
    write_run(at(6), [0.9, 0.9, 0.9, "nan"])
    out = report("ab")
    said = [
        "lam=0.0, seed 3: preempted after 2 iterations",
        "lam=0.0, seed 4: failed after 1 iterations (3 iterations in a row <b>)",
        "lam=0.0, seed 5: ",
        "lam=0.0, seed 6: objective/scores is nan",
        *(f"lam=0.95, seed {seed}: no metrics.jsonl: not begun" for seed in range(3, 7)),
    ]
    text = (out / "table.md").read_text().replace("&lt;b&gt;", "<b>")
    errors = capsys.readouterr().err
    for line in said:
        assert f"- {line}" in text and f"left out: {line}" in errors
    assert "metrics.jsonl:2: not a JSON object" in text
    assert "| lam=0.0 | 0.51 | 0.5 to 0.52 | 3 of 7 |" in text
    page = assert_self_contained((out / "report.html").read_text())
    assert all(line in page.text for line in said)
    assert "not done or of other length" in (out / "curves-objective-scores.svg").read_text()


def test_a_sweep_of_which_nothing_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "runs/ab", VARIANTS, (0, 1))
    out = report("ab")
    text = (out / "table.md").read_text()
    assert "| lam=0.0 | - | - | 0 of 2 |" in text and text.count("not begun") == 4
    assert "Differences are to lam=0.0, the first" in text  # there is no file case.py to ask
    assert [row["mean"] for row in summary(out)] == ["", ""]


def test_one_cell_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_sweep(tmp_path / "runs/ab", {"base": {}}, (0,))
    write_run(root / folder_of("base") / "seed0", [0.25, "inf", 0.75])
    out = report("ab", "--window", "0.3")
    assert "| base | 0.75 | - | 1 of 1 |" in (out / "table.md").read_text()
    assert "deltas-objective-scores.svg" not in files(out)
    assert_self_contained((out / "report.html").read_text())


def test_runs_without_a_sweep(tmp_path, monkeypatch):
    """As they lie, with the metrics that are usual; those of stages do not count."""
    monkeypatch.chdir(tmp_path)
    for cell, seed in (("base", 0), ("base", 1), ("kl=0", 1), ("sft", 0)):
        write_run(tmp_path / f"there/ab/{cell}/seed{seed}", [0.5 + seed, 1.5 + seed])
    big = write_run(tmp_path / "there/ab/big/seed0", [9.0])  # an SFT in a cell of its own
    (big / "env.json").write_text(json.dumps({"argv": ["ppo-jax", "sft", "ab"]}))
    out = report("ab", "--run.dir", "there")
    rows = summary(out)
    assert {(row["variant"], row["metric"]) for row in rows} == {
        (v, m) for v in ("base", "kl=0") for m in ("objective/scores", "objective/kl")
    }
    assert rows[0]["mean"] == "2" and rows[1]["delta"] == "0.5" and rows[1]["delta_paired"] == "0"
    text = (out / "table.md").read_text()
    assert "| base, seed 1 | ppo-jax train case --run.seed 0 |" in text  # of its env.json


HOSTILE = 'a</td><script>alert(1)</script>`|$x_{$\x1b[31m\u202e"\n'


def test_hostile_text_stays_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variants = {"base": {}, HOSTILE: {"x": HOSTILE}, "_hidden": {}}
    metrics, doc = (HOSTILE, "objective/scores"), f"Why? {HOSTILE}\n</pre>{HOSTILE}"
    more = {"pairs": [[HOSTILE, "_hidden"]], "words": [HOSTILE]}
    root = write_sweep(tmp_path / "runs/ab", variants, (0, 1), metrics=metrics, doc=doc, **more)
    for name in variants:
        for seed in (0, 1):
            folder = write_run(root / folder_of(name) / f"seed{seed}", [1, 2], **{HOSTILE: [3, 4]})
            env = {"git": {"sha": HOSTILE}, "argv": [HOSTILE] * 2, "jax": HOSTILE}
            (folder / "env.json").write_text(json.dumps(env))
    out = report("ab")
    page = assert_self_contained((out / "report.html").read_text())
    assert page.text.count("<script>") > 5 and ("h1", {}) in page.elements
    for name, content in files(out).items():
        text = content.decode()
        assert "\x1b" not in text and "\u202e" not in text
        assert "<script" not in text or name.endswith(".csv")
        if name.endswith(".svg"):
            shown = "".join(ElementTree.fromstring(text).itertext())
            assert "a</td><script>alert(1)</script>`|$x_{" in shown
    table = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in table]
    assert set(bars) == {8, 6, 3}
    assert "_hidden" in (out / "curves-objective-scores.svg").read_text()
    assert {row["variant"] for row in summary(out)} >= {"base", "_hidden"}


@pytest.mark.parametrize(
    "words, said",
    [
        (["abc"], "report: no runs runs/abc; nearest: ab"),
        (["ab", "--run.dir", "no"], "report: no runs no/ab; there is nothing in no"),
        (["ab", "--base", "lam=0.9"], "base=lam=0.9: no variant of ab; nearest: lam=0.95"),
        (
            ["ab", "--metrics", "eval/score"],
            "metric 'eval/score': no run of ab has it; nearest: eval/s",
        ),
        (["ab", "--window", "0"], "window"),
        (["ab", "--tokens", "3"], "tokens=3: of one run"),
        (["--metrics"], "report: expected an experiment or a run folder first"),
        ([], "report: expected an experiment or a run folder first"),
    ],
)
def test_what_cannot_be_is_said(words, said, runs, capsys):
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "content, said",
    [
        ("[]", "expected a JSON object"),
        ("{", "expected a JSON object"),
        ("{}", "cells: expected list, got None"),
        ('{"cells": [], "metrics": []}', "cells: there are none"),
        ('{"cells": [3], "metrics": []}', "cells[0]: expected an object"),
        ('{"cells": [{"name": 3}]}', "cells[0]: name: expected str, got 3"),
    ],
)
def test_a_sweep_file_that_is_none(content, said, runs, capsys):
    (runs / "runs/ab/sweep.json").write_text(content)
    assert main(["report", "ab"]) == 2
    error = capsys.readouterr().err
    assert "runs/ab/sweep.json" in error and said in error


def test_without_matplotlib_it_says_how_to_get_it(runs, monkeypatch, capsys):
    found = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "matplotlib" else found(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    assert main(["report", "ab"]) == 2
    assert "-m pip install matplotlib (or -e '.[report]' " in capsys.readouterr().err
    assert not Path("experiments").exists()


def test_where_nothing_can_be_written(runs, capsys):
    Path("experiments").write_text("a file")
    assert main(["report", "ab"]) == 6
    assert "experiments/results/ab: cannot be made" in capsys.readouterr().err


def test_another_base_and_other_metrics(runs):
    (report("ab") / "notes.svg").write_text("mine")
    out = report("ab", "--base", "lam=0.0", "--metrics", "objective/kl")
    assert {row["base"] for row in summary(out)} == {"lam=0.0"}
    assert {name for name in files(out) if name.endswith(".svg")} == {
        *("curves-objective-kl.svg", "deltas-objective-kl.svg", "frontier.svg", "notes.svg")
    }

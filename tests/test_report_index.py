"""The table of all results: from every summary.csv, and nothing else in the file changes."""

import json
import re
from pathlib import Path

import pytest

from ppo_jax.main import main
from ppo_jax.report_index import BEGIN, END, index_lines
from report_builders import folder_of, write_run, write_sweep

AROUND = "# Mine\n\n| a | b |\n\n", "\n\nbelow, é\n"


@pytest.fixture
def readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "experiments/README.md"
    path.parent.mkdir()
    path.write_text(f"{AROUND[0]}{BEGIN}\nold\n{END}{AROUND[1]}", encoding="utf-8")
    return path


def index() -> int:
    return main(["report", "--index"])


def table_of(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(AROUND[0] + BEGIN + "\n") and text.endswith("\n" + END + AROUND[1])
    return text[len(AROUND[0] + BEGIN) : -len(END + AROUND[1])].strip().splitlines()


def test_all_results_in_one_table(readme, tmp_path):
    for name, gain in (("ab", 0.5), ("cd|", 0.2512345)):
        root = write_sweep(tmp_path / "runs" / name, {"base": {}, "b": {"x": 1}}, (0, 1))
        for seed in (0, 1):
            write_run(root / folder_of("base") / f"seed{seed}", [seed])
            write_run(root / folder_of("b") / f"seed{seed}", [seed + gain])
        more = ["--metrics", "objective/scores", "objective/kl"]  # the first one alone is shown
        assert main(["report", name, *more]) == 0
    assert index() == 0
    assert table_of(readme) == [
        "| experiment | metric | variant | mean (95 % CI) | seeds | difference (95 % CI) |",
        "|---|---|---|---|---|---|",
        "| [ab](results/ab/table.md) | objective/scores | base | 0.5 (0 to 1) | 2 |  |",
        "| [ab](results/ab/table.md) | objective/scores | b | 1 (0.5 to 1.5) | 2 "
        "| 0.5 (0.5 to 0.5) to base |",
        "| [cd\\|](results/cd%7C/table.md) | objective/scores | base | 0.5 (0 to 1) | 2 |  |",
        "| [cd\\|](results/cd%7C/table.md) | objective/scores | b | 0.7512 (0.2512 to 1.251) | 2 "
        "| 0.2512 (0.2512 to 0.2512) to base |",
    ]
    once = readme.read_bytes()
    assert index() == 0 and readme.read_bytes() == once


def test_no_results_yet(readme):
    assert index() == 0
    assert table_of(readme) == ["(none yet)"]


def test_a_file_without_a_place_for_it_is_left_alone(readme, capsys):
    for text in ("none\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n"):
        readme.write_text(text)
        assert index() == 2
        assert f"expected the lines {BEGIN}" in capsys.readouterr().err
        assert readme.read_text() == text


def test_a_summary_of_other_columns_is_named(readme, tmp_path, capsys):
    path = tmp_path / "experiments/results/ab/summary.csv"
    path.parent.mkdir(parents=True)
    path.write_text("experiment,metric\nab,x\n")
    before = readme.read_bytes()
    assert index() == 2
    assert "ab/summary.csv: expected the columns experiment, metric" in capsys.readouterr().err
    assert readme.read_bytes() == before


def test_the_projects_own_page_has_the_figures_of_its_files():
    folder = Path(__file__).parents[1] / "experiments"
    paths = sorted((folder / "results").glob("*/summary.csv"))
    lines = index_lines({path.parent.name: path for path in paths}, "results/")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.count("\n".join([BEGIN, *lines, END])) == text.count(BEGIN) == text.count(END) == 1


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "pendulum", "lander"])
def test_the_control_checks_page_has_the_figures_of_their_files(name):
    folder = Path(__file__).parents[1] / "experiments"
    found = json.loads((folder / f"results/control/{name}.json").read_text(encoding="utf-8"))
    returns = found["returns"]["new episodes"]
    text = (folder / "control/README.md").read_text(encoding="utf-8")
    (seen,) = re.findall(rf"^\| `{name}\.py` .*\| (.+) \|$", text, re.M)
    assert seen == f"{returns['mean']:.1f}, lowest {returns['min']:.1f}"

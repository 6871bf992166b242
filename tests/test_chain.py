"""Sweeps that change the stages before PPO: cells of their own, which their own runs start from."""

import re

import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.experiment import load_experiment
from ppo_jax.flags import read_config, stage, with_cells
from ppo_jax.grid import read_grid
from ppo_jax.standing import Standing
from ppo_jax.sweep import Found, _groups

HEAD = '''"""Question."""
from ppo_jax.experiment import load_experiment
PARENT = load_experiment("dialogue")
'''


@pytest.fixture
def grid_of(tmp_path):
    def grid_of(text, *words):
        path = tmp_path / "mine.py"
        path.write_text(HEAD + text)
        return read_grid(load_experiment(path), words)

    return grid_of


def listed(grid):
    """(command, cell, seed, cells that it starts from) of all runs, stages first."""
    return [(c.command, c.config.run.cell, c.seed, c.needs) for c in (*grid.stages, *grid.cells)]


def test_a_changed_stage_is_in_a_cell_of_its_own(grid_of):
    text = """GRID = {"reward-model.hparams.learning_rate": (1e-3, 5e-4), "hparams.lam": (0.5, 1)}
SEEDS = (2, 4)
"""
    grid = grid_of(text)
    rates = [f"reward-model-hparams.learning_rate={rate}" for rate in ("0.001", "0.0005")]
    assert [(c.command, c.name, c.seed, c.needs) for c in grid.stages] == [
        ("sft", "sft", 2, ()),
        ("sft", "sft", 4, ()),
        *[("reward-model", rate, seed, ("sft",)) for rate in rates for seed in (2, 4)],
    ]
    assert [(c.name, c.needs) for c in grid.cells[::2]] == [
        (f"learning_rate={rate.split('=')[1]},lam={lam}", ("sft", rate))
        for rate in rates
        for lam in ("0.5", "1")
    ]
    assert len({cell.hash for cell in grid.cells}) == 4
    cell = grid.cells[-1]
    assert cell.changes == {"reward-model.hparams.learning_rate": 5e-4, "hparams.lam": 1.0}
    # The rewards of what runs by these words are those of its own stage.
    mine, words = with_cells(grid.experiment, cell.words)
    assert mine.stages.cells["@reward-model"] == rates[1]
    assert read_config("train", words, stage(mine, "BASE")).hparams.lam == 1
    model = grid.stages[-1]
    mine, words = with_cells(grid.experiment, model.words)
    config = read_config("reward-model", words, stage(mine, "REWARD_MODEL"))
    assert (config.hparams.learning_rate, config.run.cell) == (5e-4, rates[1])


def test_what_starts_from_a_changed_stage_is_changed_too(grid_of):
    runs = 'RUNS = {"short": {"sft.run.iterations": 90}, "as-it-is": {}}\nSEEDS = (0,)\n'
    grid = grid_of(runs)
    own = "run.iterations=90"
    assert listed(grid)[:4] == [
        ("sft", f"sft-{own}", 0, ()),
        ("sft", "sft", 0, ()),
        ("reward-model", f"reward-model-{own}", 0, (f"sft-{own}",)),
        ("reward-model", "reward-model", 0, ("sft",)),
    ]
    short, plain = grid.cells
    assert short.needs == (f"sft-{own}", f"reward-model-{own}")
    assert plain.needs == ("sft", "reward-model")
    assert plain.hash == grid_of("SEEDS = (0,)\n").cells[0].hash != short.hash
    assert grid.stages[0].config.run.iterations == 90 and short.config.run.iterations == 40
    mine, _ = with_cells(grid.experiment, short.words)
    assert mine.stages.cells == {"@sft": f"sft-{own}", "@reward-model": f"reward-model-{own}"}
    # A flag for the stage counts wherever the file does not vary it.
    flagged = grid_of(runs, "--sft.hparams.learning_rate", "0.5", "--reward-model.run.keep=3")
    assert [one.config.hparams.learning_rate for one in flagged.stages[:2]] == [0.5, 0.5]
    assert [one.config.run.keep for one in flagged.stages[2:]] == [3, 3]


def test_runs_of_other_stages_share_no_program(grid_of):
    grid = grid_of('RUNS = {"a": {}, "b": {"reward-model.run.iterations": 90}}\nSEEDS = (0, 1)\n')
    found = [Found(i, cell, Standing("new", "")) for i, cell in enumerate(grid.cells)]
    assert [[one.cell.name for one in group] for group in _groups(found)] == [["a"] * 2, ["b"] * 2]


@pytest.mark.parametrize(
    "changes, words, line",
    [
        ({"sft.hparams.lr": 1}, (), "RUNS: sft: unknown key hparams.lr; did you mean hparams.lam"),
        ({"sft.run.cell": "x"}, (), "RUNS: sft.run.cell: a sweep sets it; nearest: SEEDS"),
        ({"sft.run.iterations": 0}, (), "RUNS: a: sft: run.iterations=0: must be in"),
        ({"sft.run.iterations": "x"}, (), "mine.py: RUNS: sft: run.iterations"),
        (
            {"sft.run.iterations": 90},
            ("--sft.run.iterations", "7"),
            "--sft.run.iterations: .*mine.py varies it; leave the flag out",
        ),
        (
            {"sft.run.iterations": 90},
            ("--sft.run.cell", "there"),
            "--sft.run.cell: .*mine.py varies that stage; leave the flag out",
        ),
    ],
)
def test_mistakes_are_said(grid_of, changes, words, line):
    with pytest.raises(ConfigError, match=line) as caught:
        grid_of(f"RUNS = {{'a': {changes!r}}}\n", *words)
    assert "\n" not in str(caught.value)


def test_a_stage_that_the_file_lacks(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HEAD.replace("dialogue", "tiny") + "RUNS = {'a': {'sft.run.keep': 3}}\n")
    with pytest.raises(ConfigError, match="RUNS: sft.run.keep: the file has no SFT"):
        read_grid(load_experiment(path))


def test_names_that_fold_into_one_are_refused(grid_of):
    text = 'RUNS = {"a": {"sft.data.path": "x/y"}, "b": {"sft.data.path": "x y"}}\n'
    with pytest.raises(ConfigError, match=re.escape("two stages are called sft-data.path=x-y;")):
        grid_of(text)

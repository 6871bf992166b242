"""Which run `@sft` and `@reward-model` mean: that in the cell which the experiment's stage has."""

import json
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from faults.launch import experiment, here
from ppo_jax import pipeline, sweep
from ppo_jax.config import Config, replace
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import WORKLOADS, Experiment, find_experiment, load_experiment
from ppo_jax.flags import parse_config, read_config, stage, with_cells
from ppo_jax.grid import read_grid
from ppo_jax.main import main
from ppo_jax.pipeline import commands_of
from ppo_jax.stages import Stages, resolve, stage_run

README = Path(__file__).parents[1] / "experiments" / "README.md"
ALL = Experiment(
    "case",
    replace(Config(), **{"model.path": "@sft"}),
    None,
    Path("case.py"),
    "",
    sft=replace(Config(), **{"model.path": None}),
    reward_model=Config(),
)
SFT = """REWARD = ascii_share
SFT = replace(BASE, **{{"data.path": {data!r}, "data.eval_path": {data!r}, "run.cell": {cell!r},
    "rollout.max_new_tokens": 4, "hparams.kl_target": None, "reward.kl_controller": "fixed",
    "ppo.minibatches": 1, "hparams.reference_decay": None, "reward.reference": "fixed"}})
BASE = replace(BASE, **{{"model.path": "@sft", "model.shape": type(BASE.model.shape)()}})
"""
SHORT = "--run.iterations 1 --run.checkpoint_every 1".split()


def done(root: Path) -> Path:
    """A run folder, as far as a stage's name is concerned."""
    (root / "checkpoints").mkdir(parents=True)
    (root / "status.json").write_text('{"status": "done"}')
    return root


def in_cells(sft="base", reward_model="base"):
    """The experiment with its stages' configs in these cells."""
    return ALL._replace(
        sft=replace(ALL.sft, **{"run.cell": sft}),
        reward_model=replace(ALL.reward_model, **{"run.cell": reward_model}),
    )


def test_a_stage_is_looked_for_in_the_cell_that_it_is_trained_in(tmp_path):
    root = {name: done(tmp_path / "case" / name / "seed0") for name in ("sft", "big", "rm2")}
    config = replace(Config(), **{"run.dir": str(tmp_path), "run.cell": "lam0"})
    for given, expected in (("base", "sft"), ("sft", "sft"), ("big", "big")):
        mine = in_cells(sft=given, reward_model="rm2")
        trained = stage(mine, "SFT").base.run.cell
        assert trained == expected
        assert resolve("@sft", config, mine.stages) == str(root[trained])
        assert resolve("@reward-model", config, mine.stages) == str(root["rm2"])
    assert stage_run("@train", config, mine.stages).root.parent.name == "lam0"
    assert stage_run("@sft", config, Stages("case")).root == root["sft"]


def test_a_run_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path):
    done(tmp_path / "case" / "sft" / "seed3")
    config = replace(Config(), **{"run.dir": str(tmp_path), "run.seed": 3})
    says = (
        rf"^@sft: no run {tmp_path}/case/big/seed3; make it with `ppo-jax sft case --run.seed 3 "
        rf"--run.cell big --run.dir {tmp_path}`, or name another cell: --sft.run.cell$"
    )
    with pytest.raises(ConfigError, match=says):
        resolve("@sft", config, in_cells(sft="big").stages)


@pytest.mark.parametrize(
    "given", ["experiments/case.py", "case", "ablations/one", "my own/case.py"]
)
def test_the_command_that_makes_a_run_names_the_file_as_it_was_given(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("experiments", "experiments/ablations", "my own"):
        (tmp_path / folder).mkdir()
    file = tmp_path / (given if given.endswith(".py") else f"experiments/{given}.py")
    file.write_text("from ppo_jax.config import Config\nSFT = Config()\n")
    mine = load_experiment(given, needs=())
    with pytest.raises(ConfigError, match="make it with `ppo-jax sft ") as caught:
        resolve("@sft", replace(Config(), **{"run.dir": "there"}), mine.stages)
    _, _, name, *flags = shlex.split(str(caught.value).split("`")[1])
    assert name == given and find_experiment(name) == file
    assert flags == ["--run.seed", "0", "--run.dir", "there"]


def test_the_command_of_a_workload_names_its_file(tmp_path, monkeypatch):
    """Its bare name is one in another folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / WORKLOADS / "case.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ppo_jax.config import Config\nSFT = Config()\n")
    with pytest.raises(ConfigError, match=f"make it with `ppo-jax sft {file} --run.seed 0"):
        resolve("@sft", Config(), load_experiment("case", WORKLOADS, needs=()).stages)


def test_a_flag_names_the_cell_where_a_later_stage_is_started_alone(tmp_path):
    big = done(tmp_path / "case" / "big" / "seed0")
    own = done(tmp_path / "case" / "sft" / "seed0")
    for words, expected in (
        (["--sft.run.cell", "big"], big),
        (["--sft.run.cell=big", "--ppo.epochs", "1"], big),
        ([], own),
        (["--model.path", str(big)], big),
    ):
        mine, rest = with_cells(stage(ALL, "BASE"), [*words, "--run.dir", str(tmp_path)])
        config = parse_config("train case", rest, mine)
        assert config.model.path == str(expected) and config.run.cell == "base"
    alone = ALL._replace(sft=None)
    for mine, words, says in (
        (alone, ["--sft.run.cell", "big"], "--sft.run.cell=big: case.py has no SFT"),
        (ALL, ["--sft.run.cell"], "--sft.run.cell: a value is missing"),
        (ALL, ["--sft.run.cell", "--run.seed"], "--sft.run.cell: a value is missing"),
        (ALL, ["--sft.run.cell=base"], "PPO's own runs; nearest valid: sft"),
        (ALL, ["--reward-model.run.cell=base"], "PPO's own runs; nearest valid: reward-model"),
    ):
        with pytest.raises(ConfigError, match=says):
            with_cells(mine, words)


def test_a_pipeline_hands_the_cell_of_a_stage_to_the_later_ones():
    words = "case --sft.run.cell=big --reward-model.run.cell rm2 --train.run.cell lam0".split()
    sft, rewarding, train, held_out = commands_of(ALL, words)
    assert sft == "sft case --run.cell big".split()
    assert rewarding == "reward-model case --sft.run.cell big --run.cell rm2".split()
    both = "--sft.run.cell big --reward-model.run.cell rm2 --run.cell lam0".split()
    assert train == ["train", "case", *both]
    assert held_out == ["eval", "case", *both, "--against", "@sft"]
    for command, base in (("sft", "SFT"), ("reward-model", "REWARD_MODEL"), ("train", "BASE")):
        own = next(words for words in (sft, rewarding, train) if words[0] == command)
        mine, rest = with_cells(ALL, own[2:])
        config = read_config(command, rest, stage(mine, base))
        assert config.run.cell == {"sft": "big", "reward-model": "rm2", "train": "lam0"}[command]
    mine, rest = with_cells(ALL, held_out[2:-2])
    assert dict(mine.stages.cells) == {"@sft": "big", "@reward-model": "rm2"}
    config = read_config("eval", rest, stage(mine, "BASE"))
    assert stage_run("@train", config, mine.stages).root.parent.name == "lam0"


@pytest.mark.parametrize("words", ["--sft.run.seed 5", "--sft.run.dir there", "--eval.run.seed 5"])
def test_stages_that_would_not_find_each_other_are_refused(words, monkeypatch):
    begun = []
    monkeypatch.setattr(pipeline, "run_pipeline", begun.append)
    code, err = here("pipeline", "arithmetic", *words.split())
    assert code == 2 and not begun and err.count("\n") == 1
    assert "expected one for all: --run." in err


def test_a_file_whose_stages_have_other_seeds_needs_the_flag(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(pipeline, "run_pipeline", lambda commands: begun.append(commands) or 0)
    path = experiment(tmp_path, reward=SFT.format(data="x.jsonl", cell="sft"))
    path.write_text(path.read_text() + 'SFT = replace(SFT, **{"run.seed": 7})\n')
    code, err = here("pipeline", str(path))
    assert code == 2 and "sft: run.seed=7, but eval: 0; expected one for all: --run.seed 0" in err
    assert here("pipeline", str(path), "--run.seed", "7") == (0, "") and len(begun) == 1


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The path of an experiment of two stages, whose commands run in this process: their words."""
    data = tmp_path / "responses.jsonl"
    rows = [{"prompt": "abc"[: 1 + n % 3], "response": "xyz"[n % 3 :]} for n in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    began = []
    run = lambda words: began.append(words[3:]) or main(list(words[3:]))
    monkeypatch.setattr(pipeline, "_run", run)
    return experiment(tmp_path, reward=SFT.format(data=str(data), cell="sft")), began


def test_a_pipeline_with_two_sft_cells_trains_from_and_is_held_against_its_own(tiny, tmp_path):
    path, began = tiny
    runs = tmp_path / "runs"
    flags = [*SHORT, "--run.dir", str(runs)]
    assert main(["sft", str(path), *flags]) == 0  # the old one, in the file's cell
    big = "--sft.run.cell big --sft.run.iterations 1 --train.run.cell b".split()
    assert main(["pipeline", str(path), *flags, *big]) == 0
    assert [words[0] for words in began] == ["sft", "train", "eval"]
    config = json.loads((runs / "case" / "b" / "seed0" / "config.json").read_text())
    assert Path(config["model"]["path"]) == runs / "case" / "big" / "seed0"
    found = json.loads((runs / "case" / "b" / "seed0" / "eval.json").read_text())
    assert found["against"]["path"] == str(runs / "case" / "big" / "seed0")
    assert found["model"]["path"] == str(runs / "case" / "b" / "seed0")
    # What goes on from one of them does not go on from the other.
    code, err = here("train", str(path), *flags, "--run.cell", "b")
    assert code == 4 and "big/seed0" in err and "sft/seed0" in err


def test_the_command_that_makes_a_run_makes_it_as_pasted(tiny, tmp_path, monkeypatch):
    path, _ = tiny
    monkeypatch.chdir(path.parent)
    flags = [*SHORT, "--run.dir", str(tmp_path / "runs")]
    code, err = here("train", path.name, *flags)
    program, *words = shlex.split(err.split("`")[1])
    assert code == 2 and program == "ppo-jax" and main([*words, *SHORT]) == 0
    assert main(["train", path.name, *flags]) == 0


def test_a_file_of_sft_alone_is_trained_and_may_get_more_later(tiny, tmp_path):
    path, _ = tiny
    text, flags = path.read_text(), [*SHORT, "--run.dir", str(tmp_path / "runs")]
    path.write_text(text.replace("REWARD = ascii_share\n", "") + "del BASE\n")
    assert main(["sft", str(path), *flags]) == 0
    run = tmp_path / "runs" / "case" / "sft" / "seed0"
    made = (run / "metrics.jsonl").read_bytes()
    assert json.loads((run / "status.json").read_text())["status"] == "done" and made
    code, err = here("train", str(path), *flags)
    assert code == 2 and "BASE is missing" in err
    path.write_text(text)  # the run is as good with BASE and REWARD beside it
    assert main(["sft", str(path), *flags]) == 0 and (run / "metrics.jsonl").read_bytes() == made


def test_the_sft_file_of_the_readme_trains_as_pasted(tmp_path, monkeypatch):
    shown = README.read_text().partition("needs `SFT` alone")[2].partition('\n    """')
    source = textwrap.dedent(shown[1][1:] + shown[2].partition("\n`@sft`")[0])
    (row,) = re.findall(r"# lines like (\{.*\})", source)
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "answers.jsonl").write_text(row + "\n")
    monkeypatch.chdir(tmp_path)
    words = [*SHORT, *"--model.path None --parallel.data 1 --run.show_prompts 0".split()]
    assert main(["sft", "mine.py", *words]) == 0
    assert (tmp_path / "runs/mine/sft/seed0/metrics.jsonl").read_text().count("\n") == 1


def test_cells_of_a_sweep_begin_from_the_stage_in_the_cell_that_is_named(tiny, tmp_path):
    path, _ = tiny
    path.write_text(path.read_text() + "SEEDS = (1, 2)\n")
    here_and_big = [], ["--sft.run.cell", "big"]
    own, big = (
        read_grid(load_experiment(path), ["--run.dir", str(tmp_path), *words])
        for words in here_and_big
    )
    assert [one.dir for one in big.stages] == ["big/seed1", "big/seed2"]
    assert dict(big.experiment.stages.cells) == {"@sft": "big"}
    assert own.cells[0].hash != big.cells[0].hash  # another run, whatever made it
    for cell in big.cells:
        mine, rest = with_cells(load_experiment(path), cell.words)
        start = stage_run("@sft", read_config("train", rest, mine), mine.stages)
        assert start.root == tmp_path / "case" / "big" / f"seed{cell.seed}"
    with pytest.raises(ConfigError, match="sft: run.dir=there, but train: runs"):
        read_grid(load_experiment(path), ["--sft.run.dir", "there"])


def test_cells_that_share_a_program_begin_from_their_stages_too(tiny, tmp_path, monkeypatch):
    path, _ = tiny
    path.write_text(path.read_text() + "SEEDS = (1, 2)\n")
    grid = read_grid(load_experiment(path), ["--run.dir", str(tmp_path), "--sft.run.cell", "big"])
    for seed in (1, 2):
        done(tmp_path / "case" / "big" / f"seed{seed}")
    began = []
    monkeypatch.setattr(sweep, "train_together", lambda configs, *rest: began.extend(configs) or {})
    found = [sweep.Found(n, cell, None) for n, cell in enumerate(grid.cells)]
    assert sweep._run_together(grid.experiment, found, sweep.TrainArgs()) == 0
    assert [Path(config.model.path).parts[-2:] for config in began] == [
        ("big", "seed1"),
        ("big", "seed2"),
    ]

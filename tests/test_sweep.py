"""Grids and named runs become cells: names, hashes, flags; a mistake is refused in one line."""

import dataclasses
import math

import pytest

from faults.launch import here
from ppo_jax.config import HParams, replace
from ppo_jax.config_io import to_dict
from ppo_jax.experiment import load_experiment
from ppo_jax.flags import read_config, stage
from ppo_jax.grid import read_grid
from ppo_jax.variants import field_of

HEAD = '''"""Question."""
from ppo_jax.experiment import load_experiment
PARENT = load_experiment("arithmetic")
'''
LAMBDAS = 'GRID = {"hparams.lam": (0.0, 0.95, 1)}\n'


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine", head=HEAD):
        path = tmp_path / f"{name}.py"
        path.write_text(head + text)
        return path

    return write


@pytest.fixture
def grid_of(write):
    return lambda text, *words: read_grid(load_experiment(write(text)), words)


def names(grid):
    return [f"{cell.name}/seed{cell.seed}" for cell in grid.cells]


def test_a_grid_is_every_combination_with_every_seed(grid_of):
    text = 'GRID = {"hparams.lam": (0, 0.5), "ppo.epochs": [1, 2, 4]}\nSEEDS = (3, 7)\n'
    grid = grid_of(text)
    expected = [
        f"lam={lam},epochs={n}/seed{k}" for lam in (0, 0.5) for n in (1, 2, 4) for k in (3, 7)
    ]
    assert names(grid) == expected and grid.seeds == (3, 7)
    for cell in grid.cells:
        values = {"hparams.lam": cell.config.hparams.lam, "ppo.epochs": cell.config.ppo.epochs}
        assert cell.changes == values and cell.config.run.seed == cell.seed
        assert cell.dir == f"{cell.name}-{cell.hash}/seed{cell.seed}"
    assert len({cell.hash for cell in grid.cells}) == 6


def test_runs_are_named_and_seeds_alone_are_a_sweep(grid_of):
    text = 'RUNS = {"as-it-is": {}, "no-clip": {"hparams.clip_low": float("inf")}}\n'
    plain, no_clip = grid_of(text).cells
    assert (plain.name, plain.seed, plain.changes) == ("as-it-is", 0, {})
    assert no_clip.config.hparams.clip_low == math.inf
    assert no_clip.changes == {"hparams.clip_low": "inf"}  # as strict JSON holds it
    assert names(grid_of("SEEDS = range(2)\n")) == ["base/seed0", "base/seed1"]
    assert grid_of("SEEDS = range(2)\n").cells[0].hash == plain.hash


def test_the_base_is_what_changes_nothing(grid_of):
    assert grid_of('GRID = {"hparams.lam": (0.0, 1, 0.5)}\n').base == "lam=1"
    text = 'RUNS = {"a": {"sft.run.iterations": 9}, "b": {"model.path": "@sft"}}\n'
    assert grid_of(text).base == "b"
    assert grid_of('GRID = {"hparams.lam": (0.0, 0.5)}\n').base is None
    assert grid_of("SEEDS = range(2)\n").base == "base"


CHANGES = {
    "model.path": None,
    "model.lora.rank": 4,
    "model.lora.targets": ("q_proj", "mlp.*"),
    "rollout.top_p": 0.9,
    "rollout.stop_token_ids": (3, 4),
    "rollout.old_logprobs": "sampler",
    "ppo.token_sizes": None,
    "optim.weight_decay": 1e-7,
    "reward.normalize_scores": True,
    "hparams.clip_low": math.inf,
    "hparams.kl_coef": 0,
    "run.keep_best": "-eval/loss",
}


def test_a_cell_s_flags_give_its_config(grid_of):
    text = f'inf = float("inf")\nRUNS = {{"all": {CHANGES!r}}}\nSEEDS = (9,)\n'
    grid = grid_of(text, "--run.dir", "/elsewhere", "--hparams.learning_rate", "0.5")
    (cell,) = grid.cells
    base = stage(grid.experiment, "BASE")
    read = read_config("train mine", list(cell.words), base)
    assert read == cell.config
    own = {"run.dir": "/elsewhere", "run.seed": 9, "run.cell": cell.config.run.cell}
    expected = replace(base.base, **CHANGES, **own, **{"hparams.learning_rate": 0.5})
    assert to_dict(read) == to_dict(expected)
    assert type(field_of(read, "hparams.kl_coef")) is float


def test_stages_come_once_a_seed_with_their_flags(grid_of):
    text = LAMBDAS + "SEEDS = (1, 2)\n"
    grid = grid_of(text, "--sft.run.iterations", "40", "--run.dir=/there")
    assert [(one.command, one.seed, one.dir) for one in grid.stages] == [
        ("sft", 1, "sft/seed1"),
        ("sft", 2, "sft/seed2"),
    ]
    sft = grid.stages[1].config
    assert (sft.run.iterations, sft.run.seed, sft.run.dir) == (40, 2, "/there")
    assert all(cell.needs == ("sft",) and cell.config.run.iterations == 300 for cell in grid.cells)
    assert grid_of(text, "--model.path", "smollm2-135m").stages == ()


def test_a_reward_model_comes_after_what_it_starts_from(write):
    path = write('PARENT = load_experiment("dialogue")\nSEEDS = (0,)\n')
    grid = read_grid(load_experiment(path))
    assert [(one.command, one.needs) for one in grid.stages] == [
        ("sft", ()),
        ("reward-model", ("sft",)),
    ]
    assert grid.cells[0].needs == ("sft", "reward-model")


def test_a_judge_may_be_a_reward_model_too(write):
    text = """
from ppo_jax.rewards.learned import learned_reward
PARENT = load_experiment("dialogue")
REWARD, JUDGE = (lambda prompts, responses: [0.0] * len(prompts)), learned_reward()
SEEDS = (0,)
"""
    judged = load_experiment(write(text))
    assert read_grid(judged).cells[0].needs == ("sft", "reward-model")
    unjudged = read_grid(judged, ["--data.eval_path", "None", "--run.eval_every", "None"])
    assert unjudged.cells[0].needs == ("sft",)


def test_the_hash_is_of_what_a_result_hangs_on(grid_of):
    before = [cell.hash for cell in grid_of(LAMBDAS).cells]

    def now(text, *words):
        return [cell.hash for cell in grid_of(text + LAMBDAS, *words).cells]

    idle = ["--run.iterations=7", "--parallel.data=2", "--reward.workers=2", "--run.keep=5"]
    assert now("SEEDS = (4, )\n", *idle) == before
    assert set(now("", "--hparams.gamma", "0.9")).isdisjoint(before)
    assert set(now("", "--sft.optim.weight_decay", "0.3")).isdisjoint(before)  # where it starts
    assert set(now("", "--data.eval_rows", "5")).isdisjoint(before)  # what METRICS are of


def test_a_field_to_come_changes_no_hash(grid_of, monkeypatch):
    """What is as by default does not count, so a default that is new does not either."""
    before = grid_of(LAMBDAS).cells

    @dataclasses.dataclass(frozen=True)
    class Later(HParams):
        new: float = 3.0

    def later(config):
        mine = {f.name: getattr(config.hparams, f.name) for f in dataclasses.fields(HParams)}
        return dataclasses.replace(config, hparams=Later(**mine))

    from ppo_jax import grid

    old = grid.diff
    monkeypatch.setattr(grid, "diff", lambda a, b: old(later(a), later(b)))
    assert [cell.hash for cell in grid_of(LAMBDAS).cells] == [cell.hash for cell in before]


MISTAKES: dict[str, tuple[str, str]] = {
    "a typo": (
        'GRID = {"hparams.lamda": (0, 1)}',
        "GRID: unknown key hparams.lamda; did you mean hparams.lam?",
    ),
    "a section": (
        'GRID = {"hparam.lam": (0, 1)}',
        "GRID: unknown key hparam; did you mean hparams?",
    ),
    "a type": ('GRID = {"ppo.epochs": (1, 2.5)}', "GRID: ppo.epochs=2.5"),
    "a text": ('GRID = {"hparams.lam": ("0.5",)}', "GRID: hparams.lam='0.5'"),
    "a range": (
        'GRID = {"hparams.lam": (0.5, 2)}',
        "GRID: lam=2: hparams.lam=2.0: must be in [0, 1]; nearest valid: 1",
    ),
    "a combination": (
        'RUNS = {"x": {"ppo.minibatches": 3}}',
        "RUNS: x: ppo.minibatches=3: must divide",
    ),
    "no values": (
        'GRID = {"hparams.lam": 0.5}',
        "GRID: expected {dotted key: (values)}, got {'hparams.lam': 0.5}",
    ),
    "one text": ('GRID = {"model.critic": "shared"}', "GRID: expected {dotted key: (values)}"),
    "none": ('GRID = {"hparams.lam": ()}', "GRID: expected {dotted key: (values)}"),
    "whole section": (
        'RUNS = {"x": {"hparams": {"lam": 1}}}',
        "RUNS: hparams: expected a dotted key",
    ),
    "the same": (
        'RUNS = {"x": {}, "y": {"ppo.epochs": 1}, "z": {"ppo.epochs": 2}}',
        "x and z are the same; leave one out",
    ),
    "twice": ('GRID = {"hparams.lam": (1, 1.0)}', "GRID: two of its cells are lam=1"),
    "both": (
        'GRID = {"hparams.lam": (1,)}\nRUNS = {"x": {}}',
        "RUNS: beside GRID; expected one of the two",
    ),
    "a name": ('RUNS = {"no/clip": {}}', "cell 'no/clip': expected at most 150 letters"),
    "no dict": ('RUNS = {"x": 3}', "RUNS: expected {name: {dotted key: value}}"),
    "its own": ('GRID = {"run.seed": (1, 2)}', "GRID: run.seed: a sweep sets it; nearest: SEEDS"),
    "seeds": (
        LAMBDAS + "SEEDS = 5",
        "SEEDS=5: expected whole numbers, each once; nearest: range(5)",
    ),
    "a seed twice": (LAMBDAS + "SEEDS = (1, 1)", "SEEDS=(1, 1): expected whole numbers, each once"),
    "below 0": (LAMBDAS + "SEEDS = (-1,)", "SEEDS: run.seed=-1: must be in"),
    "no sweep": ("", "GRID is missing; expected GRID = {key: (values)}, RUNS"),
    "a stage": (
        'RUNS = {"x": {"model.path": "@stf"}}',
        "RUNS: x: @stf: no stage of an experiment; nearest valid: @sft",
    ),
    "a stage's own": (
        'from ppo_jax.config import replace\nSFT = replace(PARENT.sft, **{"ppo.minibatches": 2})\n'
        + LAMBDAS,
        "SFT: ppo.minibatches=2: not for ppo-jax sft; nearest valid: 1",
    ),
    "no such stage": ("SFT = None\nSEEDS = (1,)", "SFT is missing; expected SFT = a Config"),
    "no flag": (
        'RUNS = {"x": {"model.base_path": "None"}}',
        "RUNS: model.base_path='None': no flag says that; nearest: None",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_the_file_is_one_line_and_code_2(write, what):
    text, says = MISTAKES[what]
    path = write(text + "\n")
    code, err = here("sweep", str(path), "--list")
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"ppo-jax: error: {path}: {says}")


@pytest.mark.parametrize(
    ("words", "says"),
    {
        ("--hparams.lam", "0.5"): "--hparams.lam: {path} varies it; leave the flag out",
        ("--run.seed=3",): "--run.seed: a sweep sets it; nearest: SEEDS of the file",
        ("--run.cell", "x"): "--run.cell: a sweep sets it",
        ("--eval.samples", "3"): "--eval.samples: a sweep does not evaluate",
        ("--index", "3"): "--index=3: must be 0 to 2; nearest valid: 2",
        ("--index", "1", "--only", "lam=0"): "--index: beside --only",
        ("--only",): "--only: expected names of cells; nearest: --list",
        (
            "--only",
            "lam=0",
            "--only",
            "lam=0.9",
        ): "--only lam=0.9: no such cell; nearest valid: lam=0.95",
        ("--jobs", "0"): "jobs=0: must be in [1, inf); nearest valid: 1",
        (
            "--reward-model.run.iterations",
            "3",
        ): "--reward-model.run.iterations: {path} has no such stage",
    }.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_in_the_flags_is_one_line_and_code_2(write, words, says):
    path = write(LAMBDAS)
    code, err = here("sweep", str(path), *words)
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("ppo-jax: error: " + says.format(path=path))
    assert not (path.parent / "runs").exists()


def test_a_typo_in_a_flag_shows_the_nearest(write):
    code, err = here("sweep", str(write(LAMBDAS)), "--hparams.gama", "0.5")
    assert code == 2 and "--hparams.gamma" in err

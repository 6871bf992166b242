"""What a sweep's file says of its report: METRICS, WINDOWS and PAIRS."""

import pytest

from faults.launch import here
from ppo_jax.experiment import load_experiment
from ppo_jax.grid import read_grid

HEAD = '''"""Question."""
from ppo_jax.experiment import load_experiment
PARENT = load_experiment("arithmetic")
'''
LAMBDAS = 'GRID = {"hparams.lam": (0.0, 0.95, 1)}\n'


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.py"
        path.write_text(HEAD + text + "\n")
        return path

    return write


@pytest.fixture
def grid_of(write):
    return lambda text: read_grid(load_experiment(write(text)))


def test_they_are_read(grid_of):
    plain = grid_of(LAMBDAS)
    assert (plain.metrics, plain.windows, plain.pairs) == (("objective/scores",), {}, [])
    text = 'METRICS = ("a", "b")\nWINDOWS = {"b": [0, 50]}\nPAIRS = [["lam=1", "lam=0.95"]]'
    grid = grid_of(LAMBDAS + text)
    assert (grid.metrics, grid.windows) == (("a", "b"), {"b": (0, 50)})
    assert grid.pairs == [("lam=1", "lam=0.95")]


MISTAKES: dict[str, tuple[str, str]] = {
    "no windows": (LAMBDAS + "WINDOWS = 3", "WINDOWS=3: expected iterations; nearest: {"),
    "a window of none": (
        LAMBDAS + 'METRICS = ("eval/scores",)\nWINDOWS = {"eval/score": (0, 5)}',
        "WINDOWS: 'eval/score' is not in METRICS; nearest: 'eval/scores'",
    ),
    "an empty window": (
        LAMBDAS + 'METRICS = ("x",)\nWINDOWS = {"x": (5, 5)}',
        "WINDOWS: 'x': (5, 5): expected (first, end) of iterations from 0; nearest: (0, 50)",
    ),
    "a window of one": (LAMBDAS + 'METRICS = ("x",)\nWINDOWS = {"x": (5,)}', "WINDOWS: 'x': (5,)"),
    "no pairs": (
        'RUNS = {"a": {}, "b": {"ppo.epochs": 1}}\nPAIRS = ["ab"]',
        "PAIRS=['ab']: expected two variants each; nearest: [('a', 'b')]",
    ),
    "a pair of no name": (
        'RUNS = {"a": {}, "b": {"ppo.epochs": 1}}\nPAIRS = [("a", [])]',
        "PAIRS=[('a', [])]: expected two variants each; nearest: [('a', 'b')]",
    ),
    "a pair with none": (
        'RUNS = {"as": {}, "b": {"ppo.epochs": 1}}\nPAIRS = [("a", "b")]',
        "PAIRS: 'a': no such variant; nearest: 'as'",
    ),
    "metrics": (LAMBDAS + 'METRICS = "eval/scores"', "METRICS='eval/scores': expected names"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_code_2(write, what):
    text, says = MISTAKES[what]
    path = write(text)
    code, err = here("sweep", str(path), "--list")
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"ppo-jax: error: {path}: {says}")

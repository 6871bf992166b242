"""An experiment file that starts from another one: what it is given, and what its code is then."""

import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.experiment import load_experiment
from ppo_jax.experiment_code import code_sha256

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


def test_a_file_has_what_its_parent_has_and_it_does_not_define(write, tmp_path):
    path = write(
        'from ppo_jax.config import replace\nBASE = replace(PARENT.base, **{"ppo.epochs": 9})\n'
    )
    mine, parent = load_experiment(path), load_experiment("arithmetic")
    assert mine.base.ppo.epochs == 9 and mine.sft == parent.sft and mine.name == "mine"
    assert mine.loaded == (parent.path,) and parent.loaded == ()
    assert load_experiment(write("SFT = None\nJUDGE = None\n")).sft is None
    other = write('PARENT = load_experiment(Path(__file__).with_name("mine.py"))\n', "other",
                  "from pathlib import Path\n" + HEAD)  # fmt: skip
    assert load_experiment(other).loaded == (parent.path, path)
    mine = load_experiment(write(LAMBDAS))
    assert mine.sweep.keys() == {"GRID"}
    child = write('PARENT = load_experiment(Path(__file__).with_name("mine.py"))\n', "other",
                  "from pathlib import Path\n" + HEAD)  # fmt: skip
    assert not load_experiment(child).sweep  # what is compared is each file's own


def test_a_parent_that_is_none_is_refused(write):
    with pytest.raises(ConfigError, match="PARENT is a str; expected what load_experiment gives"):
        load_experiment(write('PARENT = "arithmetic"\n', head=""))
    itself = write(f"{HEAD}PARENT = load_experiment(__file__)\n")
    with pytest.raises(ConfigError, match="starts from itself"):
        load_experiment(itself)
    assert load_experiment("arithmetic").name == "arithmetic"  # a file that fails leaves nothing


def test_the_code_of_an_experiment_is_its_parent_s_too_and_not_its_grid(write):
    def code(text):
        experiment = load_experiment(write(text, head=""))
        return code_sha256(experiment.path, experiment.loaded)

    reward = "def REWARD(prompts, responses):\n    return [0.0 for _ in prompts]\n"
    base = "from ppo_jax.config import Config\nBASE = Config()\n"
    load = "from pathlib import Path\nfrom ppo_jax.experiment import load_experiment\n"
    load += "PARENT = load_experiment(Path(__file__).with_name('parent.py'))\n"
    write(base + reward, "parent", head="")
    before = code(load)
    assert (
        code(load + "VALUES = (1, 2)\nSEEDS = VALUES\nGRID = {'hparams.lam': VALUES}\n") == before
    )
    write('"""Doc."""\n' + base.replace("()", "()  # all") + reward, "parent", head="")
    assert code(load) == before
    assert code(load + "VALUES = (1, 2)\n") != before
    # What a reward reads is no part of the sweep, whatever its name.
    own = "def REWARD(prompts, responses):\n    return [float(SEEDS[0]) for _ in prompts]\n"
    assert code(f"{load}SEEDS = (1,)\n{own}") != code(f"{load}SEEDS = (2,)\n{own}")
    write(base + reward.replace("0.0", "1.0"), "parent", head="")
    assert code(load) != before

"""Experiment files: those of the repository are runnable, broken ones are named with their line."""

import re

import pytest

from ppo_jax.config import Config
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import find_experiment, list_experiments, load_experiment, summary
from ppo_jax.flags import first_experiment, stage
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.validate import check_config

NAMES = sorted(list_experiments())
GOOD = """'''What it is.

More of it.'''
from ppo_jax.config import Config
BASE = Config()
def REWARD(prompts, responses):
    return [0.0] * len(prompts)
"""


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_complete(name):
    experiment = load_experiment(name)
    check_config(experiment.base)
    assert parse_rewards(experiment.reward)
    assert "make " in experiment.doc and "Expected" in experiment.doc
    assert summary(experiment.path) == experiment.doc.splitlines()[0]


def says_what_was_seen(doc: str) -> bool:
    """Figures after the word, a time anywhere, and nothing that is still to be measured."""
    doc = " ".join(doc.split())
    seen = re.search(r"\b[Ss]een\b.*?\d", doc.partition("Expected")[2])
    time = re.search(r"\b(\d+|an?|under a|half a) ?(s|min|minutes?|hours?)\b", doc)
    return bool(seen and time) and not re.search(r"\bnot yet (measured|run)\b", doc)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_says_what_was_seen(name):
    assert says_what_was_seen(load_experiment(name).doc)


@pytest.mark.parametrize(
    "doc, says",
    [
        ("Expected: a rise. Seen with seed 0: 0.5. 3 min on one core.", True),
        ("About a minute. Expected: a rise; seen with\nseed 0: from 0.1 to 0.5.", True),
        ("Seen 4. Expected: a rise to 0.5 in 3 min.", False),
        ("Expected: a rise. Seen with seed 0: 0.5.", False),
        ("Expected: not yet measured. 3 min.", False),
        ("Expected: Seen with seed 0: 0.5; other seeds not yet\nrun. 3 min.", False),
    ],
)
def test_what_counts_as_seen(doc, says):
    assert says_what_was_seen(doc) is says


def test_the_ones_of_the_makefile_exist():
    assert {"sentiment", "tiny"} <= set(NAMES)


def write(folder, text, name="mine"):
    (folder / "experiments").mkdir(exist_ok=True)
    path = folder / "experiments" / f"{name}.py"
    path.write_text(text)
    return path


def test_by_path_and_by_name_in_the_working_directory_first(tmp_path, monkeypatch):
    path = write(tmp_path, GOOD)
    write(tmp_path, GOOD, name="tiny")
    monkeypatch.chdir(tmp_path)
    for given in ("mine", "experiments/mine.py", path):
        experiment = load_experiment(given)
        assert experiment.name == "mine" and experiment.path == path.resolve()
        assert experiment.base == Config() and experiment.doc == "What it is.\n\nMore of it."
    assert find_experiment("tiny") == (tmp_path / "experiments" / "tiny.py").resolve()
    assert find_experiment("sentiment").parent != (tmp_path / "experiments").resolve()


def test_two_files_of_one_name_do_not_mix(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    seeds = [5, 6]
    paths = [
        write(
            tmp_path / folder,
            GOOD + f"from ppo_jax.config import RunOptions\n"
            f"BASE = Config(run=RunOptions(seed={seed}))\n",
        )
        for folder, seed in zip("ab", seeds, strict=True)
    ]
    assert [load_experiment(path).base.run.seed for path in paths] == seeds


def test_dataclasses_and_other_modules_work_in_the_file(tmp_path):
    extra = (
        "import dataclasses, jax\nfrom ppo_jax.rewards.base import parse_rewards\n"
        "@dataclasses.dataclass\nclass Options:\n    x: 'int' = 1\n"
    )
    assert load_experiment(write(tmp_path, GOOD + extra)).name == "mine"


@pytest.mark.parametrize(
    "text, says",
    [
        (GOOD.replace("BASE", "BASES"), "BASE is missing; expected BASE = a ppo_jax.config.Config"),
        (GOOD.replace("BASE", "BASES"), "nearest: BASES"),
        (GOOD.replace("REWARD", "reward"), "REWARD is missing"),
        (GOOD.replace("Config()", "{}"), "BASE is a dict; expected a ppo_jax.config.Config"),
        (GOOD + "REWARD = 3\n", "REWARD: reward: 3 is not a reward"),
        (GOOD + "REWARD = []\n", "the list is empty"),
        (GOOD + "JUDGE = 3\n", "JUDGE: reward: 3 is not a reward"),
        (GOOD + "\n1 / 0\n", ":9: ZeroDivisionError: division by zero"),
        (GOOD + "x = (\n", ":8: SyntaxError"),
        (GOOD + "import absent_package\n", ":8: ModuleNotFoundError"),
        (GOOD + "from ppo_jax.config import replace\nreplace(BASE, **{'run.sed': 1})\n", ":9: "),
    ],
)
def test_a_broken_file_is_named_in_one_line(text, says, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and says in line and "\n" not in line


STAGE = """from ppo_jax.config import Config
{name} = Config()
"""


@pytest.mark.parametrize(("name", "command"), [("SFT", "sft"), ("REWARD_MODEL", "reward-model")])
def test_a_stage_s_file_needs_that_stage_alone(tmp_path, name, command):
    path = write(tmp_path, STAGE.format(name=name))
    experiment = first_experiment(command, [str(path)])
    assert experiment.base is None and experiment.reward is None
    assert stage(experiment, name).base.run.cell == command
    for other in ("train", "eval", "plan", "sweep", "pipeline"):
        with pytest.raises(ConfigError, match=f"^{path}: BASE is missing; expected BASE = a ppo_j"):
            first_experiment(other, [str(path)])
    write(tmp_path, STAGE.format(name=name) + "BASE = Config()\n")
    with pytest.raises(ConfigError, match=f"^{path}: REWARD is missing; expected REWARD = a rewar"):
        first_experiment("train", [str(path)])
    write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=f"^{path}: {name} is missing; expected {name} = a Conf"):
        stage(first_experiment(command, [str(path)]), name)
    write(tmp_path, STAGE.format(name=name) + "REWARD = 3\n")
    with pytest.raises(ConfigError, match="REWARD: reward: 3 is not a reward"):
        first_experiment(command, [str(path)])


def test_a_file_may_start_from_one_of_a_stage_alone_and_leave_out_base(tmp_path):
    parent = write(tmp_path, STAGE.format(name="SFT"), name="parent")
    start = "from ppo_jax.experiment import load_experiment\nPARENT = load_experiment({!r})\n"
    path = write(tmp_path, start.format(str(parent)))
    assert load_experiment(path, needs=()).sft == Config()
    with pytest.raises(ConfigError, match=f"^{path}: BASE is missing"):
        load_experiment(path)
    whole = write(tmp_path, start.format(str(parent)) + GOOD, name="whole")
    assert load_experiment(whole).sft == Config() and load_experiment(whole).base == Config()
    less = write(tmp_path, start.format(str(whole)) + "BASE = REWARD = None\n", name="less")
    assert load_experiment(less, needs=()).base is None
    with pytest.raises(ConfigError, match=f"^{less}: BASE is missing"):
        load_experiment(less)


@pytest.mark.parametrize("given", ["sentimnt", "senti-ment", "Sentiment"])
def test_a_missing_name_lists_the_nearest(given):
    with pytest.raises(ConfigError, match=f"no experiments/{given}.py; nearest: sentiment"):
        load_experiment(given)


def test_a_missing_path_names_the_nearest(tmp_path):
    path = write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=f"no file .*mime.py; nearest: {path}"):
        load_experiment(path.with_name("mime.py"))
    with pytest.raises(ConfigError, match="no .py file in"):
        load_experiment(tmp_path / "mine.py")


def test_private_files_are_parts_of_others(tmp_path, monkeypatch):
    write(tmp_path, GOOD, name="_shared")
    monkeypatch.chdir(tmp_path)
    assert "_shared" not in list_experiments()

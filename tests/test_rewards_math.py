"""Mathematical answers by math-verify: its published examples, fractions, and attacks."""

import gc
import os
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest

from ppo_jax.config import RewardOptions
from ppo_jax.errors import ConfigError, DataError, RewardError
from ppo_jax.rewards import math_answers
from ppo_jax.rewards.answers import final_answer
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.host import Rows
from ppo_jax.rewards.math_answers import Judge, formula, math_answer
from ppo_jax.rewards.pool import open_pool


@pytest.fixture(scope="module")
def score():
    reward = math_answer(seconds=20)  # room for a busy machine
    return lambda response, answer: reward([""], [response], answer=[answer])[0]


# From the package's README and tests, and the textbook.
EQUAL = [
    ("${1,3} \\cup {2,4}$", "${1,2,3,4}$"),
    ("\\frac12", "So it is \\boxed{0.5}."),
    ("x^2+2x+1", "That gives $(x+1)^2$."),
    ("\\sqrt{8}", "\\boxed{2\\sqrt{2}}"),
    ("(1, 2]", "$x \\in (1,2]$"),
    ("1,234", "#### 1234"),
    ("It is 6 times 7.\n#### 42", "The answer is 42."),
    ("So $x$ is \\boxed{\\frac{3}{4}}.", "3/4"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "$\\begin{pmatrix}1\\\\2\\end{pmatrix}$"),
    (7, "\\boxed{7}"),
    (0.5, "1/2"),
]
DIFFERENT = [
    ("\\frac12", "\\boxed{0.51}"),
    ("x+1", "$x+2$"),
    ("(1, 2)", "$(2, 1)$"),
    ("42", "\\boxed{24} and 42"),
    ("42", ""),
    ("42", "no answer"),
    ("42", "\\boxed{"),
]


@pytest.mark.parametrize("answer, response", EQUAL)
def test_equal(score, answer, response):
    assert score(response, answer) == 1


@pytest.mark.parametrize("answer, response", DIFFERENT)
def test_different(score, answer, response):
    assert score(response, answer) == 0


def test_fractions_agree_with_python(score):
    draw = random.Random(0)
    for _ in range(60):
        a, b, factor = draw.randint(-99, 99), draw.randint(1, 30), draw.randint(1, 9)
        c, d = draw.choice([(a * factor, b * factor), (draw.randint(-99, 99), b)])
        same = Fraction(a, b) == Fraction(c, d)
        assert score(f"\\boxed{{\\frac{{{c}}}{{{d}}}}}", f"\\frac{{{a}}}{{{b}}}") == same


HOSTILE = [
    *("__import__('os').system('touch canary')", "$open('canary', 'w')$", "\\boxed{exit()}"),
    *("(" * 10**5, "$" + "(" * 200 + "1" + ")" * 200 + "$", "9" * 10**5, "$" + "9" * 4000 + "$"),
    *("1/0", "$\\frac{1}{0}$", "\\boxed{" * 100, "\\sqrt{" * 100, "$ $ " * 300, "1 " * 500),
    *("1+" * 300 + "1", "\0", "\ud800", "\u0663", "\n", '"', "\\", "]\n[1, 2]"),
]


def test_hostile_responses_score_zero(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A process of its own, so that it works in this folder.
    reward = math_answer(seconds=3)
    scores = reward([""] * len(HOSTILE), HOSTILE, answer=[42] * len(HOSTILE))
    assert scores == [0] * len(HOSTILE)
    assert list(tmp_path.iterdir()) == []


def test_what_takes_too_long_scores_zero_and_the_next_one_is_compared():
    judge = Judge(1.0)
    assert judge.compare("$1$", "1")
    first = judge.process
    start = time.monotonic()
    assert not judge.compare("$42$", "$10^{10^{10}}$")  # in C, where no signal handler runs
    assert time.monotonic() - start < 10
    assert first.poll() is not None
    judge.seconds = 20.0
    assert judge.compare("$42$", "\\boxed{42}")


def test_a_process_that_died_is_started_again():
    judge = Judge(20.0)
    assert judge.compare("$1$", "1")
    judge.process.kill()
    judge.process.wait()
    assert judge.compare("$1$", "1")
    process = judge.process
    del judge
    gc.collect()
    assert process.poll() is not None  # nobody is left to ask it


def test_a_process_that_does_not_start(monkeypatch):
    monkeypatch.setattr(math_answers.sys, "executable", "/bin/true")
    with pytest.raises(RewardError, match="math-verify did not start"):
        Judge(1.0).compare("$1$", "1")


def test_references():
    assert [formula(a) for a in ("42", "a\n#### 7", "$x$", "\\boxed{3}", 5, 0.25)] == [
        *("$42$", "$7$", "$x$", "\\boxed{3}", "$5$", "$0.25$")
    ]
    for bad in ("", "#### ", None, True, ["4"]):
        with pytest.raises(DataError, match="column answer: "):
            formula(bad)
    for bad in (0, -1, "3", 1e9, float("nan")):
        with pytest.raises(ConfigError, match="math_answer: seconds is"):
            math_answer(seconds=bad)


EXPERIMENT = """
from ppo_jax.config import Config
from ppo_jax.rewards.answers import final_answer
from ppo_jax.rewards.math_answers import math_answer
BASE, REWARD = Config(), [math_answer(seconds=1.5), (0.5, final_answer("boxed"))]
"""


def test_in_the_pool_of_a_run(tmp_path):
    """The pool ends the process of math-verify with its own."""
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    responses = ["\\boxed{7}", "$9^{9^{9}}$", "\\boxed{8}", "\\boxed{\\frac{14}{2}}"]
    rows = Rows([0, 1, 2, 3], [""] * 4, responses, {"answer": [7] * 4})
    parts = parse_rewards([math_answer(), final_answer("boxed")])
    with open_pool(path, tmp_path / "log", RewardOptions()) as pool:
        found = [pool.call(part, rows, seed=0).scores[part.name].tolist() for part in parts]
        worker = pool.workers[0].process.pid
        children = of_session(worker)
        assert len(children) == 2
    assert found == [[1, 0, 0, 1]] * 2
    until = time.monotonic() + 10
    while of_session(worker):
        assert time.monotonic() < until
        time.sleep(0.05)


def of_session(leader):
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z" and int(stat.parts[2]) != os.getpid():
            found.append(int(stat.parts[2]))
    return found

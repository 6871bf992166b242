"""Host rewards that misbehave (F17, F18, F19)."""

import time
from pathlib import Path

from faults.damage import says
from faults.launch import experiment, finish, launch, of
from faults.table import fault
from ppo_jax.metrics import read_metrics, read_samples

ROW = 3  # of each batch: the row whose turn it is
RETURNS = {  # kind -> (Python of a value for each row, what the error says)
    "NaN": ("[float('nan') if i == 3 else 1.0 for i in range(n)]", "row 3"),
    "inf": ("[float('inf') if i == 3 else 1.0 for i in range(n)]", "row 3"),
    "None": ("[None if i == 3 else 1.0 for i in range(n)]", "row 3"),
    "a string": ("['1' if i == 3 else 1.0 for i in range(n)]", "row 3"),
    "one too few": ("[1.0] * (n - 1)", "values for 8 rows"),
    "one too many": ("[1.0] * (n + 1)", "values for 8 rows"),
    "shape (B, 1)": ("np.ones((n, 1))", "shape (8, 1)"),
    "a number": ("1.0", "expected a list of 8 numbers"),
    "nothing": ("None", "expected a list of 8 numbers"),
}
FINE = {
    "bools": "[True] * n",
    "whole numbers": "[1] * n",
    "float64": "np.ones(n)",
    "a dict": "{'a': [1.0] * n, 'b': np.zeros(n, np.int64)}",
}


def returning(expression: str) -> str:
    return f"""
import numpy as np
def reward(prompts, responses):
    n = len(prompts)
    return {expression}
REWARD = reward
"""


@fault(
    "F17",
    "a host reward returns what it should not",
    injected=", ".join(RETURNS),
    expected="code 7 naming function, row, prompt, value; sound kinds of numbers pass",
)
def wrong_returns(folder: Path) -> str:
    for number, (kind, (expression, says_what)) in enumerate(RETURNS.items()):
        path = experiment(folder, name=f"bad{number}", reward=returning(expression))
        ended = launch(path, folder / "runs", "--run.iterations", "1")
        says(ended, 7, "reward reward", says_what)
        assert "Traceback" not in ended.err, f"{kind}: {ended.err}"
    for number, (kind, expression) in enumerate(FINE.items()):
        path = experiment(folder, name=f"fine{number}", reward=returning(expression))
        ended = launch(path, folder / "runs", "--run.iterations", "1")
        assert ended.code == 0, f"{kind}: {ended.err}"
    return f"{len(RETURNS)} kinds end with code 7, {len(FINE)} sound kinds pass"


MISBEHAVE = """
import os, signal, sys, threading, time
calls = []
def reward(prompts, responses):
    calls.append(1)
    scores = []
    for i, (prompt, response) in enumerate(zip(prompts, responses)):
        if response[:1] {when}:
            {act}
        scores.append(1.0)
    return scores
REWARD = reward
"""
ACTS = {
    "raises": "raise ValueError('no score for this one')",
    "sleeps": "time.sleep(3600)",
    "loops": "while True: pass",
    "hangs in C": "threading.Lock().acquire(); l = threading.Lock(); l.acquire(); l.acquire()",
    "holds the GIL in C": "__import__('re').fullmatch('(a+)+b', 'a' * 40)",
    "exits": "os._exit(3)",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
}
LEAK = "print('x' * 1000); sys.stdout.write('\\x1b[31m' * 1000); os.write(1, b'y' * 100000)"


@fault(
    "F18",
    "a host reward raises in the second iteration",
    injected="an exception at one row",
    expected="code 7 with the row; its traceback kept in reward.log; the checkpoint stays",
)
def raises(folder: Path) -> str:
    act = "if len(calls) > 1: raise ValueError('no score for this one')"
    path = experiment(
        folder, reward=MISBEHAVE.format(when="!= '' and i == 3", act=act), run__checkpoint_every=1
    )
    ended = launch(path, folder / "runs", "--run.iterations", "4")
    says(ended, 7, "reward reward raised on row 3", "ValueError: no score for this one")
    run = of(path, folder / "runs")
    log = (run.root / "reward.log").read_text()
    assert "in reward" in log and "ValueError" in log, log
    assert len(read_metrics(run.metrics)) == 1
    return ended.last.removeprefix("ppo-jax: error: ")


@fault(
    "F19",
    "a host reward hangs, dies, leaks",
    injected=", ".join([*ACTS, "prints escape sequences"]),
    expected="abort: code 7, at most reward.timeout + 5 s later than where it raises; mask: only "
    "such rows no gradient; a leak harms nothing",
)
def hangs(folder: Path) -> str:
    seen, ends = [], {}
    for number, (kind, act) in enumerate(ACTS.items()):
        mark = folder / f"mark{number}"
        act = f"os.path.exists({str(mark)!r}) or open({str(mark)!r}, 'w').close()\n{' ' * 12}{act}"
        reward = MISBEHAVE.format(when="!= '' and i == 3 and len(calls) > 1", act=act)
        path = experiment(folder, name=f"abort{number}", reward=reward)
        flags = ("--run.iterations", "3", "--reward.timeout", "4")
        ended = launch(path, folder / "runs", *flags)
        now = time.time()
        says(ended, 7, "reward reward", "row 3")
        ends[kind] = now - mark.stat().st_mtime
        rows = read_metrics(of(path, folder / "runs").metrics)
        assert len(rows) == 1, rows
    for number, kind in enumerate(("raises", "sleeps", "exits")):
        # By the row's own prompt, wherever it stands.
        act = f"if 'fabc' in prompt or prompt.startswith('f'): {ACTS[kind]}"
        reward = MISBEHAVE.format(when="!= None", act=act)
        path = experiment(folder, name=f"mask{number}", reward=reward, run__samples=8)
        flags = ("--run.iterations", "3", "--reward.on_error", "mask", "--reward.timeout", "60")
        run = of(path, folder / "runs")
        finish(path, folder / "runs", *flags, "--reward.row_timeout", "2")
        masked = [row["reward/masked"] for row in read_metrics(run.metrics)]
        bad = [row for row in read_samples(run.samples) if row["score"] == "nan"]
        assert bad and all(row["prompt"].startswith("f") for row in bad), f"{kind}: {bad}"
        assert sum(masked) == len(bad), f"{kind}: {masked}"
        seen.append(f"{kind}: {sum(masked):.0f} rows masked")
    late = max(ends.values()) - ends["raises"]  # which waits for nothing, but takes time to end
    assert late < 4 + 5, f"a run ended late: {ends}"
    path = experiment(folder, name="leak", reward=MISBEHAVE.format(when="!= None", act=LEAK))
    ended = launch(path, folder / "runs", "--run.iterations", "3")
    assert ended.code == 0 and "\x1b" not in ended.out + ended.err and "yyy" not in ended.out
    seen.append("leak harmless")
    return f"{len(ACTS)} kinds end with code 7, {late:.1f} s late at most; {'; '.join(seen)}"


@fault(
    "F19b",
    "a host reward that hangs",
    injected="an endless loop at one row",
    expected="code 7 with the row (in time: tests/test_reward_pool.py)",
    fast=True,
)
def loops(folder: Path) -> str:
    reward = MISBEHAVE.format(when="!= None and i == 3", act=ACTS["loops"])
    path = experiment(folder, reward=reward)
    ended = launch(path, folder / "runs", "--reward.timeout", "2")
    says(ended, 7, "did not answer in time", "row 3")
    return ended.last.removeprefix("ppo-jax: error: ")

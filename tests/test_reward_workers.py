"""The processes of host rewards: how they start, and that none is left however a run ends."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reward_toys
from ppo_jax.config import Config, RewardOptions, replace
from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.rewards import pool as pools
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.host import Rows
from ppo_jax.rewards.pool import open_pool
from ppo_jax.validate import check_config

TOYS = Path(reward_toys.__file__)
PARTS = {part.name: part for part in parse_rewards(reward_toys.REWARD)}
ROW = Rows([0], ["prompt"], ["text"], {})
EXPERIMENT = """
from ppo_jax.config import Config
BASE = Config()
def length(prompts, responses):
    import os
    return [os._exit(3) if text == "bad" else float(len(text)) for text in responses]
REWARD = length
"""


def alive(pid: float) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid:.0f}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until(condition, seconds: float = 5.0) -> bool:
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.02)
    return condition()


def pids_of(pool) -> list[int]:
    for worker in pool.workers:
        worker.get_ready()
    return [worker.process.pid for worker in pool.workers]


def about(pool) -> dict[str, float]:
    scores = pool.call(PARTS["about"], ROW, 0).scores
    return {name.split("/")[1]: values_B[0].item() for name, values_B in scores.items()}


def test_nothing_is_left_after_a_pool(tmp_path):
    """Nor what a reward has started; of a process that died, and of the one that took its place."""
    options = RewardOptions(workers=2)
    with open_pool(TOYS, tmp_path / "log", options) as pool:
        first = about(pool)
        with pytest.raises(RewardError, match="exit code 3"):
            pool.call(PARTS["leaves"], ROW._replace(responses=["bad"]), 0)
        second = about(pool)
        pids = [first["child"], second["child"], *pids_of(pool)]
        assert first["pid"] != second["pid"] == pids[2] and all(map(alive, pids[1:]))
    assert wait_until(lambda: not any(map(alive, [first["pid"], *pids])))


def test_a_pool_closes_while_a_process_is_at_work(tmp_path):
    """One share raises at once; the other would take all of its time."""
    rows = Rows([0, 1, 2, 3], ["p", "q", "r", "s"], ["a", "worse", "b", "bad"], {})
    began = time.monotonic()
    with (
        pytest.raises(RewardError, match="reward either raised on row 1 .*no luck"),
        open_pool(TOYS, tmp_path / "log", RewardOptions(workers=2, timeout=60.0)) as pool,
    ):
        processes = pids_of(pool)
        pool.call(PARTS["either"], rows, 0)
    assert time.monotonic() - began < 20.0 and not any(map(alive, processes))
    with pytest.raises(RewardError, match="have been ended"):  # no thread starts it again
        pool.workers[0].start()


SCRIPT = """
import sys, threading
from pathlib import Path
from ppo_jax.config import RewardOptions
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.host import Rows
from ppo_jax.rewards.pool import open_pool
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import reward_toys
parts = {part.name: part for part in parse_rewards(reward_toys.REWARD)}
with open_pool(Path(sys.argv[1]), Path(sys.argv[2]), RewardOptions(workers=2)) as pool:
    for worker in pool.workers:
        worker.get_ready()
    print(*(worker.process.pid for worker in pool.workers), flush=True)
    pool.call(parts[sys.argv[3]], Rows([0], ["prompt"], ["bad"], {}), 0)
"""


@pytest.mark.parametrize("name", ["spins", "backtracks", "sleeps"])
def test_nothing_is_left_after_a_run_that_was_killed(tmp_path, name):
    """Neither the process that hangs nor the one that waits."""
    words = [sys.executable, "-c", SCRIPT, str(TOYS), str(tmp_path / "log"), name]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pids = [float(word) for word in run.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        time.sleep(0.3)
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert wait_until(lambda: not any(map(alive, pids)))


def test_it_has_no_accelerator(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with open_pool(TOYS, tmp_path / "log", RewardOptions()) as pool:
        assert about(pool)["cpu"] == 1


def test_it_is_started_with_many_files_open(tmp_path):
    """More than `select` takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"at most {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            stack.enter_context(open(os.devnull))
        with open_pool(TOYS, tmp_path / "log", RewardOptions()) as pool:
            assert pool.call(PARTS["spins"], ROW, 0).scores["spins"] == [4.0]


def opened_with(experiment: Path, log: Path, **options):
    """An open pool on an experiment as it was when the run began."""
    experiment.write_text(EXPERIMENT)
    return open_pool(experiment, log, RewardOptions(**options))


BROKEN = {
    "raises": ("raise ValueError('no\\nluck')", r"case.py:1: ValueError: no luck"),
    "no reward": ("BASE = None", "BASE is missing; expected BASE = a ppo_jax.config.Config"),
    "no python": ("def", "SyntaxError"),
    "ends": ("import os; os._exit(5)", "exit code 5"),
    "hangs": ("import time; time.sleep(1000)", "no sign of life in time"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_experiment_that_does_not_load_there_is_said(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(pools, "START_SECONDS", 4.0)
    source, why = BROKEN[kind]
    path, log = tmp_path / "case.py", tmp_path / "log"
    path.write_text(source)
    with open_pool(path, log, RewardOptions(on_error="mask")) as pool:
        with pytest.raises(RewardError, match="the process of its reward did not start") as caught:
            pool.call(PARTS["spins"], ROW, 0)
        message = str(caught.value)
        assert why in message and "\n" not in message
        assert str(path) in message and str(log) in message and caught.value.exit_code == 7
        assert pool.workers[0].process is None


def test_one_that_was_changed_and_does_not_start_again_ends_the_run(tmp_path):
    path, log = tmp_path / "case.py", tmp_path / "log"
    path.write_text(EXPERIMENT)
    rows = Rows([0, 1], ["p", "q"], ["bad", "a"], {})
    part = PARTS["spins"]._replace(name="length")
    with open_pool(path, log, RewardOptions(on_error="mask", timeout=20.0)) as pool:
        assert pool.call(part, ROW, 0).scores["length"] == [4.0]
        path.write_text("BASE = REWARD = None")
        with pytest.raises(RewardError, match="did not start .*BASE is missing"):
            pool.call(part, rows, 0)


def test_a_start_does_not_outlast_the_time_of_a_batch(tmp_path):
    """It goes on, for the next batch."""
    path, log = tmp_path / "case.py", tmp_path / "log"
    path.write_text(EXPERIMENT)
    rows = Rows([0, 1], ["p", "q"], ["bad", "aa"], {})
    part = PARTS["spins"]._replace(name="length")
    with open_pool(path, log, RewardOptions(on_error="mask", timeout=1.5)) as pool:
        pool.call(part, ROW, 0)
        path.write_text("import time; time.sleep(4)\n" + EXPERIMENT)
        began = time.monotonic()
        found = pool.call(part, rows, 0)
        assert time.monotonic() - began < 4.0 and found.scores == {}
        assert "exit code 3" in found.failed[0]
        assert found.failed[1] == "no time was left for it"
        assert pool.call(part, ROW, 0).scores["length"] == [4.0]


def test_without_its_file_there_is_no_pool(tmp_path):
    with (
        pytest.raises(RewardError, match=r"imported from its experiment's file.*reward\.workers=0"),
        open_pool(tmp_path / "none.py", tmp_path / "log", RewardOptions()),
    ):
        pass


@pytest.mark.parametrize(
    "changes",
    [
        {"reward.on_error": "skip"},
        {"reward.workers": -1},
        {"reward.workers": 1.5},
        {"reward.timeout": 0.0},
        {"reward.timeout": float("nan")},
        {"reward.row_timeout": 0.0},
        {"reward.row_timeout": -1.0},
        {"reward.row_timeout": 1.0, "reward.workers": 0},
    ],
    ids=str,
)
def test_impossible_options_are_refused(changes):
    key = next(iter(changes))
    with pytest.raises(ConfigError) as caught:
        check_config(replace(Config(), **{"model.path": None}, **changes))
    assert key in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("on_error", ["abort", "mask"])
@pytest.mark.parametrize(("workers", "row_timeout"), [(0, None), (1, None), (1, 0.5), (8, 99.0)])
def test_possible_options_are_not(on_error, workers, row_timeout):
    options = RewardOptions(on_error=on_error, workers=workers, row_timeout=row_timeout)
    check_config(replace(Config(), **{"model.path": None, "reward": options}))

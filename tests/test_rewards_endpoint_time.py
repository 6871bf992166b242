"""A reward over HTTP names a server that hangs before the time of its batch is over."""

import inspect
import socket

import pytest

from ppo_jax.config import RewardOptions
from ppo_jax.errors import RewardError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.endpoint import endpoint
from ppo_jax.rewards.host import Rows
from ppo_jax.rewards.pool import open_pool

DEFAULTS = {p.name: p.default for p in inspect.signature(endpoint).parameters.values()}
TRIES, SECONDS = DEFAULTS["retries"] + 1, RewardOptions().timeout
EXPERIMENT = """
from ppo_jax.config import Config
from ppo_jax.rewards.endpoint import endpoint
BASE, REWARD = Config(), endpoint({url!r}, timeout={timeout}, backoff={backoff}, name="judge")
"""


def test_the_defaults_fit_into_the_time_of_a_batch():
    hangs = TRIES * DEFAULTS["timeout"] + DEFAULTS["backoff"] * (2 ** (TRIES - 1) - 1)
    assert hangs < 0.9 * SECONDS / 2  # the half that on_error=mask leaves
    assert TRIES * DEFAULTS["timeout"] + (TRIES - 1) * DEFAULTS["max_wait"] < 0.95 * SECONDS


@pytest.fixture
def silent(monkeypatch):
    """A server that takes connections and says nothing."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/score"


@pytest.mark.parametrize("on_error", ["abort", "mask"])
def test_a_server_that_hangs_is_named(silent, tmp_path, on_error):
    """All defaults, in a tenth of the time, through the pool of a run."""
    scaled = {name: DEFAULTS[name] / 10 for name in ("timeout", "backoff")}
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT.format(url=f"{silent}?key=hidden", **scaled))
    (part,) = parse_rewards(endpoint(silent, name="judge"))
    rows = Rows([4, 5], ["p", "q"], ["a", "bbb"], {})
    options = RewardOptions(timeout=SECONDS / 10, on_error=on_error)
    said = f"{silent} did not answer in {scaled['timeout']:g} s; tried {TRIES} times"
    with open_pool(path, tmp_path / "log", options) as pool:
        if on_error == "mask":
            failed = pool.call(part, rows, seed=0).failed
            assert set(failed) == {4, 5} and all(said in why for why in failed.values())
            return
        with pytest.raises(RewardError) as raised:
            pool.call(part, rows, seed=0)
        assert said in str(raised.value) and "hidden" not in str(raised.value)

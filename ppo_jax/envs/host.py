"""What an environment in ordinary Python is, and calling one: a tool, a game, a Gymnasium env."""

import math
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ppo_jax.config import Config
from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.returned import as_number, as_text, what_raised


class Player(Protocol):
    """One dialogue's other side. It may have `measures() -> dict[str, float]` too, asked at the end
    of the dialogue and logged as means: env/<name>."""

    def reset(self, seed: int, row: dict[str, Any]) -> str:
        """The opening, for a row of the data; the same for the same seed."""
        ...

    def step(self, action: str) -> tuple[str, float, bool] | tuple[str, float, bool, bool]:
        """(what it answers, reward, the episode is over[, it is cut off without being over])."""
        ...


class HostEnv(NamedTuple):
    """An environment in Python. The compiled step is cut: each turn is a program of its own, whose
    prompt is the dialogue so far. Each row of a batch has a player, which goes on from iteration to
    iteration and is reset at the start of each; held-out rows have players of their own, reset with
    the same seeds each time. All those of training are called in one thread, not the main one, and
    all those of held-out rows in another."""

    name: str
    make: Callable[[], Player]
    max_action_tokens: int
    max_turns: int  # actions after which a dialogue that is not over is cut
    timeout: float = 60.0  # seconds for one call of a player


def check_host_environment(environment: HostEnv, config: Config) -> None:
    """ConfigError for numbers that no environment has, and for what it cannot serve."""
    name, rollout = f"environment {environment.name}", config.rollout
    A, seconds = environment.max_action_tokens, environment.timeout
    if A < 1 or environment.max_turns < 1 or not seconds > 0:
        raise ConfigError(
            f"{name}: max_action_tokens={A}, max_turns={environment.max_turns}, timeout={seconds}; "
            "expected at least 1, at least 1, above 0"
        )
    if rollout.max_new_tokens < A:
        raise ConfigError(
            f"rollout.max_new_tokens={rollout.max_new_tokens}: an action of {name} has up to {A} "
            f"tokens; nearest valid: {A}"
        )
    if rollout.min_new_tokens > 0:
        raise ConfigError(
            f"rollout.min_new_tokens={rollout.min_new_tokens}: with {name} stop ids end actions, "
            "not responses; nearest valid: 0"
        )


def gymnasium_env(
    make: Callable[[], Any],
    to_text: Callable[[Any], str],
    to_action: Callable[[str], Any],
    *,
    name: str = "gymnasium",
    max_action_tokens: int = 8,
    max_turns: int = 32,
    timeout: float = 60.0,
) -> HostEnv:
    """A Gymnasium environment, by the text of its observations and the action that a text is."""

    class Adapter:
        def __init__(self):
            self.env = make()

        def reset(self, seed: int, row: dict[str, Any]) -> str:
            return to_text(self.env.reset(seed=seed)[0])

        def step(self, action: str) -> tuple[str, float, bool, bool]:
            seen, reward, terminated, truncated, _ = self.env.step(to_action(action))
            return to_text(seen), float(reward), bool(terminated), bool(truncated)

    return HostEnv(name, Adapter, max_action_tokens, max_turns, timeout)


Call = Callable[..., Any]  # (what, where, function, *arguments) -> what the function returns


def caller(environment: HostEnv) -> Call:
    """Calls functions of an environment, all in the same thread, as a connection to a database or a
    browser asks for. RewardError, in one line, if one raises or takes too long."""
    asked, done = _start()

    def call(what: str, where: str, function: Callable, *arguments) -> Any:
        nonlocal asked, done
        asked.put((function, arguments))
        try:
            fine, result = done.get(timeout=environment.timeout)
        except queue.Empty:  # of that thread nothing is asked again
            asked, done = _start()
            raise RewardError(
                f"environment {environment.name}: {what} took more than {environment.timeout:g} s "
                f"on {where}"
            ) from None
        if not fine:
            raise RewardError(
                f"environment {environment.name}: {what} raised on {where}: {what_raised(result)}"
            ) from result
        return result

    return call


def _start() -> tuple[queue.SimpleQueue, queue.SimpleQueue]:
    """A thread that takes (function, arguments) of the one queue, and puts (whether it is one, the
    result or the error) into the other."""
    asked: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        while True:
            function, arguments = asked.get()
            try:
                done.put((True, function(*arguments)))
            except (Exception, SystemExit) as error:
                done.put((False, error))

    # A thread that hangs must not keep the process from its end.
    threading.Thread(target=work, daemon=True).start()
    return asked, done


def check_text(environment: HostEnv, what: str, where: str, text: Any) -> str:
    if not isinstance(text, str):
        raise _wrong(environment, what, where, "a str", text)
    return text


def check_answer(environment: HostEnv, where: str, answer: Any) -> tuple[str, float, bool, bool]:
    """(text, reward, done, truncated) of a step. RewardError for anything else."""
    if not isinstance(answer, tuple) or len(answer) not in (3, 4):
        wanted = "a tuple (text, reward, done[, truncated])"
        raise _wrong(environment, "step", where, wanted, answer)
    text, reward, *ends = answer
    check_text(environment, "step", where, text)
    number = check_number(environment, "step", where, "reward", reward)
    for name, end in zip(("done", "truncated"), ends, strict=False):
        if end is not True and end is not False and type(end).__name__ not in ("bool_", "bool"):
            raise _wrong(environment, "step", where, f"{name} as a bool", end)
    done, truncated = map(bool, (*ends, False)[:2])
    return text, number, done, truncated


def check_measures(environment: HostEnv, where: str, found: Any) -> dict[str, float]:
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise _wrong(environment, "measures", where, "a dict of numbers by name", found)
    check = lambda name, x: check_number(environment, "measures", where, name, x)
    return {name: check(name, x) for name, x in found.items()}


def check_number(environment: HostEnv, what: str, where: str, name: str, value: Any) -> float:
    number = as_number(value)
    if number is None or not math.isfinite(number):
        raise _wrong(environment, what, where, f"{name} as a finite number", value)
    return number


def _wrong(environment: HostEnv, what: str, where: str, wanted: str, got: Any) -> RewardError:
    return RewardError(
        f"environment {environment.name}: {what} returned {as_text(got)} of type "
        f"{type(got).__name__} on {where}; expected {wanted}"
    )

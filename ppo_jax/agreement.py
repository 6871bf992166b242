"""What the processes of a run agree on, on the host: values that each gives, acts that all of them
see succeed or fail alike. A process by itself agrees with itself at once."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ppo_jax import errors, processes
from ppo_jax.config import Config
from ppo_jax.config_io import diff, from_dict
from ppo_jax.errors import ConfigError, PPOJaxError

VOTES = "votes"


def exchange(name: str, value: Any) -> list:
    """The values (JSON) of all processes, in their order; waits for them.

    All must come by here, and by `name` in the same order. Raises SpoiledError if one cannot.
    """
    links = processes.joined_links()
    if links is None:
        return [value]
    links.post(name, value)
    return links.collect(name)


def meet(name: str) -> None:
    """Wait for all: a program with collectives fails where one process begins it much later."""
    exchange(name, None)


def spoil(name: str, why: str) -> None:
    """No process waits any longer under a name that begins so."""
    links = processes.joined_links()
    if links is not None:
        links.spoil(name, why)


def together(name: str, act: Callable[[], Any]) -> list:
    """What `act` returns (JSON) in each process. What it raises in one, all raise; another error
    than those of `errors` as PPOJaxError."""
    if processes.joined_links() is None:
        return [act()]
    own: Exception | None = None
    try:
        said = {"value": act()}
    except Exception as error:
        own, said = error, {"error": _kind(error), "text": str(error)}
    outcomes = exchange(name, said)
    if own is not None:
        raise own
    for process, outcome in enumerate(outcomes):
        if "error" in outcome:
            raise _named(outcome["error"])(f"process {process}: {outcome['text']}")
    return [outcome["value"] for outcome in outcomes]


def _kind(error: Exception) -> str:
    """The name that an error has in `errors`."""
    names = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return next(names, PPOJaxError.__name__)


def _named(kind: str) -> type[PPOJaxError]:
    """The error that has the name in `errors`; another name is PPOJaxError's."""
    found = vars(errors).get(str(kind))
    return found if isinstance(found, type) and issubclass(found, PPOJaxError) else PPOJaxError


def on_first(name: str, act: Callable[[], Any]) -> Any:
    """What `act` returns, or raises, in the first process, where alone it is called."""
    first = processes.is_writer()
    return together(name, lambda: act() if first else None)[0]


class Votes:
    """Whether any process was told to end, or has reason for a save, as of an iteration that all
    have begun: known to all at the same iteration, without a wait for the slowest."""

    def __init__(self) -> None:
        self.end = self.save = False

    def cast(self, end: bool, save: bool) -> None:
        """This process's, for an iteration that it begins."""
        if (links := processes.joined_links()) is not None:
            links.post(VOTES, [end, save])

    def count(self) -> None:
        """All those of the first iteration that has not been counted, which all have ended."""
        if (links := processes.joined_links()) is not None:
            for end, save in links.collect(VOTES):
                self.end, self.save = self.end or end, self.save or save


def check_alike(facts: Mapping[str, Any]) -> None:
    """ConfigError where the processes have been started with different configurations, files or
    code; `facts` as `run_facts` gives them."""
    facts = json.loads(json.dumps(facts))
    for process, other in enumerate(exchange("facts", facts)):
        if other == facts:
            continue
        lines = diff(from_dict(Config, facts["config"]), from_dict(Config, other["config"]))
        lines += [
            name
            for fact, own in facts.items()
            for name in (_unlike(own, other[fact]) if isinstance(own, dict) else [fact])
            if fact != "config" and own != other[fact]
        ]
        raise ConfigError(
            f"process {processes.index()} and process {process} differ: {', '.join(lines)}; all "
            "processes of a run need the same command, files and code"
        )


def _unlike(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of what is not the same in both."""
    return [name for name in {**own, **other} if own.get(name) != other.get(name)]

"""Several tasks in one run: each row of the data is scored by the reward of its own task."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.rewards.base import ROWS, DeviceReward, Part, parameters_of, parse_rewards
from ppo_jax.rewards.checks import texts
from ppo_jax.rewards.host import Watched
from ppo_jax.rewards.length import no_tables
from ppo_jax.types import Array, PyTree, Rollout


def by_task(rewards: Mapping[str, Any], column: str = "task") -> list[Part]:
    """The rewards of a mixture of tasks: `REWARD = by_task({"qa": exact_match("answer"), ...})`.

    `rewards` gives to each task a reward of any kind, or a pair (weight, reward). A row is scored
    by the reward of the task that the text column `column` names, by several where that is a list;
    the others score 0 and, where they run on the host, are never shown it. `reward/<task>` is the
    mean over the rows of the task alone, left out of the log where a batch has none, and
    `reward/<task>.rows` their share.

    What a task costs is not shared by the others: with a reward of the host among them the step is
    cut, and on the device each is computed for all rows. The result may be part of a longer list:
    `[*by_task(...), (0.1, other)]`. Raises `ConfigError` for a mapping without tasks and for a task
    of several rewards; a row of a task that has no reward is a `DataError` before the run begins.
    """
    if not (isinstance(column, str) and column):
        raise ConfigError(f"by_task: column must name a column of texts, got {column!r}")
    if not isinstance(rewards, Mapping) or not rewards:
        raise ConfigError("by_task: expected a reward for each of one or more tasks by its name")
    parts: list[Part] = []
    for task, reward in rewards.items():
        if not isinstance(task, str) or not task:
            raise ConfigError(f"by_task: {task!r} is no task; expected its name in the data")
        own = parse_rewards(reward)
        if len(own) != 1:
            raise ConfigError(f"by_task: task {task} has {len(own)} rewards; expected one")
        host = None if own[0].host is None else _of_its_rows(own[0].host, task, column)
        parts.append(own[0]._replace(name=task, host=host))
        rows = DeviceReward(task + ROWS, _rows(task, column), no_tables, texts=(column,))
        parts.append(Part(rows.name, 0.0, rows, None, known=(column, tuple(rewards))))
    return parts


def _rows(task: str, column: str) -> Callable[[Rollout, dict[str, Any], PyTree], Array]:
    """1 at the rows of the task, else 0; float32 [B]."""
    wanted_M = np.frombuffer(task.encode(), np.uint8)

    def rows(rollout: Rollout, columns: dict[str, Any], tables: PyTree) -> Array:
        given = columns[column]
        M = given.bytes_BCM.shape[2]
        size = len(wanted_M)
        if size > M:  # longer than any that the data has
            return jnp.zeros(rollout.lengths_B.shape, jnp.float32)
        # Padded with 0, and as long: so the rest of the bytes need no look.
        same_BC = jnp.all(given.bytes_BCM[..., :size] == wanted_M[None, None], axis=2)
        return jnp.any(same_BC & (given.sizes_BC == size), axis=1).astype(jnp.float32)

    return rows


def _of_its_rows(reward: Callable, task: str, column: str) -> Callable[..., list[float]]:
    """A reward of the host that shows `reward` the rows of the task alone; the others score 0."""
    own = parameters_of(reward)
    by_keyword = [p for p in own[2:] if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    takes_column = any(p.name == column for p in by_keyword)

    def of_its_rows(prompts: list, responses: list[str], **columns: list) -> list[float]:
        mine = [row for row, given in enumerate(columns[column]) if task in texts(column, given)]
        scores = [0.0] * len(responses)
        if not mine:
            return scores
        shown = columns if takes_column else {k: v for k, v in columns.items() if k != column}
        some = {name: _picked(values, mine) for name, values in shown.items()}
        found = reward(_picked(prompts, mine), _picked(responses, mine), **some)
        if isinstance(found, dict):
            raise RewardError(f"returned a dict ({', '.join(map(str, found))}); expected a list")
        found = list(found)
        if len(found) != len(mine):
            raise RewardError(f"returned {len(found)} values for {len(mine)} rows of its task")
        for row, score in zip(mine, found, strict=True):
            scores[row] = score
        return scores

    # What the reward asks for, and the tasks: how a run knows which columns to hand over.
    asked = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in by_keyword if _named(p)]
    if not takes_column:
        asked.append(inspect.Parameter(column, inspect.Parameter.KEYWORD_ONLY))
    rest = [p for p in by_keyword if not _named(p)]
    setattr(of_its_rows, "__signature__", inspect.Signature([*own[:2], *asked, *rest]))  # noqa: B010
    return of_its_rows


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind is not inspect.Parameter.VAR_KEYWORD


def _picked(values: Sequence, rows: list[int]) -> list:
    """Those rows, which tell the run where the reward stands as all of them would."""
    some = [values[row] for row in rows]
    if not isinstance(values, Watched):
        return some
    return Watched(some, lambda at: values.note(rows[at] if at >= 0 else -1))

"""Dialogues with environments in ordinary Python: turn by turn, around a compiled program.

The rules are those of `dialogue`: an observation is read whole or not at all, and after the last
turn too.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax import data
from ppo_jax.agreement import together
from ppo_jax.envs import host
from ppo_jax.envs.host import HostEnv, Player
from ppo_jax.errors import RewardError
from ppo_jax.prepare import Run
from ppo_jax.sharding import (
    fetch_own_rows,
    own_rows,
    put_own_rows,
)
from ppo_jax.tokenizer import decode
from ppo_jax.types import Prompts, Rollout


@dataclasses.dataclass
class _Dialogue:
    """A row as far as it has come; one entry a response token in each list."""

    player: Player
    where: str  # for messages
    prompt: list[int]
    ids: list[int] = dataclasses.field(default_factory=list)
    generated: list[bool] = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)
    kept: list[np.ndarray] = dataclasses.field(default_factory=list)  # ids, of generated tokens
    turns: int = 0
    done: bool = False
    live: bool = True


class _Table(NamedTuple):
    """What a run's dialogues share."""

    environment: HostEnv
    call: host.Call
    run: Run
    stops: tuple[int, ...]
    names: list[str]  # of the measures, as the first iteration had them

    @property
    def room(self) -> int:
        """Tokens of a response."""
        return self.run.config.rollout.max_new_tokens


def make_player(run: Run, environment: HostEnv):
    """`play(write, number, size, prompts) -> Rollout` on the devices, for a batch of `size` rows of
    which this process has `prompts`; `write(turn, transcripts) -> Rollout` is the program that the
    actions come from, and `number` with the run's seed what its players are reset with."""
    mesh = run.setup.mesh
    table = _Table(environment, host.caller(environment), run, run.setup.scorer.stops, [])
    players: list[Player] = []

    def play(write, number: int, size: int, mine: Prompts) -> Rollout:
        own = own_rows(mesh, size)
        rows: list[_Dialogue] = []
        opened = lambda: rows.extend(_open(table, players, mine, own, number)) or _live(rows)
        live = sum(together("environment", opened))
        for turn in range(environment.max_turns):
            if live == 0:
                break
            transcript = put_own_rows(mesh, size, _transcripts(table, mine, rows))
            written = write(np.int32(turn), transcript)
            fetched = fetch_own_rows(mesh, written)
            answered = lambda fetched=fetched: _answer(table, rows, fetched) or _live(rows)
            live = sum(together("environment", answered))
        measures: list[dict[str, float]] = []
        measured = lambda: measures.extend(_measure(table, rows)) or sorted(measures[0])
        _check_names(table, together("environment", measured))
        return put_own_rows(mesh, size, _as_rollout(table, mine, rows, measures))

    return play


def _live(rows: list[_Dialogue]) -> int:
    return sum(row.live for row in rows)


def _open(
    table: _Table, players: list[Player], prompts: Prompts, own: np.ndarray, iteration: int
) -> list[_Dialogue]:
    """All rows of this process with their openings read."""
    run, environment = table.run, table.environment
    columns = data.batch_columns(run.dataset, prompts)
    texts = data.batch_prompts(run.dataset, prompts)
    groups = prompts.sample_index_B // run.config.rollout.samples_per_prompt
    rows = []
    for i, number in enumerate(own.tolist()):
        where = f"row {number} (prompt {str(texts[i])[:80]!r})"
        if i == len(players):
            players.append(table.call("make", where, environment.make))
        draw = [run.config.run.seed, iteration, int(prompts.prompt_index_B[i]), int(groups[i])]
        seed = int(np.random.SeedSequence(draw).generate_state(1)[0])
        column = {name: values[i] for name, values in columns.items()}
        text = table.call("reset", where, players[i].reset, seed, column)
        row = _Dialogue(players[i], where, prompts.ids_BP[i][prompts.mask_BP[i]].tolist())
        ids = _encode(table, host.check_text(environment, "reset", where, text), where)
        if len(ids) >= table.room:
            raise RewardError(
                f"environment {environment.name}: reset returned {len(ids)} tokens on {where}, "
                f"rollout.max_new_tokens is {table.room}; expected at most {table.room - 1}"
            )
        _read(row, ids)
        rows.append(row)
    return rows


def _encode(table: _Table, text: str, where: str) -> list[int]:
    ids = table.run.tokenizer.encode(text, add_special_tokens=False)
    vocab_size = table.run.setup.decoder.config.vocab_size
    if ids and max(ids) >= vocab_size:
        raise RewardError(
            f"environment {table.environment.name}: token id {max(ids)} of its text on {where} is "
            f"outside the model's vocabulary of {vocab_size}"
        )
    return ids


def _read(row: _Dialogue, ids: list[int]) -> None:
    """An observation at the end of a dialogue."""
    none = [0.0] * len(ids)
    row.ids += ids
    row.generated += [False] * len(ids)
    row.rewards, row.logprobs, row.values = (
        row.rewards + none,
        row.logprobs + none,
        row.values + none,
    )
    row.kept += [np.empty(0, np.int32)] * len(ids)


def _transcripts(table: _Table, prompts: Prompts, rows: list[_Dialogue]) -> Prompts:
    """Everything so far, left-padded; of rows that have ended a first token, which nobody reads."""
    width = prompts.ids_BP.shape[1] + table.room
    ids_BP = np.full((len(rows), width), table.run.pad_id, np.int32)
    mask_BP = np.zeros((len(rows), width), bool)
    for ids_P, mask_P, row in zip(ids_BP, mask_BP, rows, strict=True):
        said = row.prompt + row.ids if row.live else row.prompt[:1]
        ids_P[width - len(said) :], mask_P[width - len(said) :] = said, True
    return prompts._replace(ids_BP=ids_BP, mask_BP=mask_BP, columns={})


def _answer(table: _Table, rows: list[_Dialogue], written: Rollout) -> None:
    """What was written goes to the players of the live rows, and what they answer to the rows."""
    for i, row in enumerate(rows):
        if row.live:
            _take_turn(table, row, jax.tree.map(lambda x, i=i: x[i], written))


def _take_turn(table: _Table, row: _Dialogue, written: Rollout) -> None:
    environment, room = table.environment, table.room - len(row.ids)
    count = min(int(written.lengths_B), room)
    action = written.response_ids_BT[:count].tolist()
    row.ids += action
    row.generated += [True] * count
    row.rewards += [0.0] * count
    row.logprobs += written.logprobs_BT[:count].tolist()
    row.values += [0.0] * count if written.values_BT is None else written.values_BT[:count].tolist()
    if written.kept_ids_BTK is not None:
        row.kept += list(written.kept_ids_BTK[:count])
    if action[-1] not in table.stops and count < environment.max_action_tokens:
        row.live = False  # cut within an action, which no one hears
        return
    text = decode(table.run.tokenizer, action)
    answer = table.call("step", row.where, row.player.step, text)
    said, row.rewards[-1], row.done, cut = host.check_answer(environment, row.where, answer)
    row.turns += 1
    ids = _encode(table, said, row.where)
    if not row.done and len(row.ids) + len(ids) <= table.room:
        _read(row, ids)
        goes_on = row.turns < environment.max_turns and len(row.ids) < table.room
        row.live = goes_on and not cut
    else:
        row.live = False


def _measure(table: _Table, rows: list[_Dialogue]) -> list[dict[str, float]]:
    """The measures of each row, of the same names in all."""
    environment, found = table.environment, []
    for row in rows:
        ask = getattr(row.player, "measures", None)
        own = {} if ask is None else table.call("measures", row.where, ask)
        own = host.check_measures(environment, row.where, own)
        found.append({"turns": float(row.turns)} | dict(sorted(own.items())))
        if found[-1].keys() != found[0].keys():
            raise RewardError(
                f"environment {environment.name}: measures returned {sorted(found[-1])} on "
                f"{row.where}, {sorted(found[0])} on {rows[0].where}; expected the same names"
            )
    return found


def _check_names(table: _Table, said: list[list[str]]) -> None:
    """The measures are part of the program: the same in all processes and iterations."""
    for names in said:
        if not table.names:
            table.names.extend(names)
        if names != table.names:
            raise RewardError(
                f"environment {table.environment.name}: measures returned {names}, before "
                f"{table.names}; expected the same names each time"
            )


def _as_rollout(
    table: _Table, prompts: Prompts, rows: list[_Dialogue], measures: list[dict[str, Any]]
) -> Rollout:
    """NumPy arrays of this process's rows."""
    options, T = table.run.config.rollout, table.room
    has_values = table.run.setup.has_critic and table.run.config.model.critic == "shared"
    padded = lambda name, pad, dtype: np.stack(
        [np.array([*getattr(row, name), *[pad] * (T - len(row.ids))], dtype) for row in rows]
    )
    K = max((len(x) for row in rows for x in row.kept), default=0)
    kept_BTK = None
    if options.top_k is not None or (options.top_p is not None and options.top_p < 1.0):
        kept_BTK = np.full((len(rows), T, K), -1, np.int32)
        for kept_TK, row in zip(kept_BTK, rows, strict=True):
            for t, ids in enumerate(row.kept):
                kept_TK[t, : len(ids)] = ids
    column = lambda of, dtype: np.array([of(row) for row in rows], dtype)
    arrays: Any = {
        "prompt_ids_BP": prompts.ids_BP,
        "prompt_mask_BP": prompts.mask_BP,
        "response_ids_BT": padded("ids", table.run.pad_id, np.int32),
        "mask_BT": padded("generated", False, np.float32),
        "lengths_B": column(lambda row: len(row.ids), np.int32),
        "ended_B": column(lambda row: row.done, bool),
        "logprobs_BT": padded("logprobs", 0.0, np.float32),
        "values_BT": padded("values", 0.0, np.float32) if has_values else None,
        "kept_ids_BTK": kept_BTK,
        # Observations come with the next turn's prompt: no loop has steps for them.
        "slot_steps_B": np.zeros(len(rows), np.float32),
        "env_rewards_BT": padded("rewards", 0.0, np.float32),
        "measures": {
            name: np.array([m[name] for m in measures], np.float32) for name in measures[0]
        },
    }
    return Rollout(**arrays)

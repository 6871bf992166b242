"""The environments' rules against plain-Python twins; text on the device against str and re."""

import importlib
import re
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.config import replace
from ppo_jax.envs import maze as mazes
from ppo_jax.envs.base import Observation, check_environment
from ppo_jax.envs.guess import guess
from ppo_jax.envs.maze import FAR, make_maze, maze
from ppo_jax.envs.text import encode_pieces, first_letter, first_number, say, spell
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import load_experiment
from ppo_jax.prepare import open_run_of, read_dataset
from ppo_jax.rewards.environment import environment_reward
from ppo_jax.tokenizer import byte_tokenizer

DATA = Path(__file__).parents[1] / "experiments" / "data"
TOKENIZER, VOCAB, EOS = byte_tokenizer(), 259, 257
SPELLING = jax.tree.map(jnp.asarray, spell(TOKENIZER, VOCAB))
STEPS = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}
KEYS = jax.random.split(jax.random.key(0), 200)


def text_of(seen: Observation) -> str:
    return bytes(np.asarray(seen.ids_O)[: int(seen.length)].tolist()).decode()


def breadth_first(open_cells: set, start: tuple) -> dict:
    """Steps to every cell that can be reached."""
    steps, queue = {start: 0}, deque([start])
    while queue:
        row, column = cell = queue.popleft()
        for down, right in STEPS.values():
            beside = (row + down, column + right)
            if beside in open_cells and beside not in steps:
                steps[beside] = steps[cell] + 1
                queue.append(beside)
    return steps


def cells_of(open_C, size: int) -> set:
    return {divmod(c, size) for c in np.flatnonzero(open_C).tolist()}


@pytest.mark.parametrize("size, walls", [(2, 0.6), (3, 0.3), (5, 0.4), (6, 0.3)])
def test_mazes_are_solvable_and_their_distances_those_of_a_search(size, walls):
    make = jax.jit(jax.vmap(lambda key: make_maze(key, size, walls)))
    distances = jax.jit(jax.vmap(lambda open_C: mazes.all_distances(open_C, size)))
    open_NC, start_N, exit_N, shortest_N = jax.device_get(make(KEYS))
    steps_NCC = jax.device_get(distances(open_NC))
    for open_C, start, exit, shortest, steps_CC in zip(
        open_NC, start_N, exit_N, shortest_N, steps_NCC, strict=True
    ):
        found = breadth_first(cells_of(open_C, size), divmod(int(start), size))
        assert found[divmod(int(exit), size)] == shortest >= 2
        for c in range(size**2):
            assert steps_CC[start, c] == found.get(divmod(c, size), FAR)
    kinds = len({tuple(x) for x in open_NC.tolist()})
    assert kinds == 5 if size == 2 else kinds > 100  # of 2 x 2 there are five with a way of 2 steps
    assert 0.02 < 1 - open_NC.mean() < walls + 0.05  # small ones are cleared at times
    assert len(set(start_N.tolist())) == len(set(exit_N.tolist())) == size**2


class PlainMaze:
    """The rules on a dict of visits."""

    def __init__(self, open_cells, start, exit, size):
        self.open, self.at, self.exit, self.size = open_cells, start, exit, size
        self.visits, self.steps = {start: 1}, 0

    def view(self) -> str:
        signs = ""
        for down, right in STEPS.values():
            cell = (self.at[0] + down, self.at[1] + right)
            visits = str(min(self.visits.get(cell, 0), 9))
            signs += "#" if cell not in self.open else "X" if cell == self.exit else visits
        down, right = (int(np.sign(b - a)) for a, b in zip(self.at, self.exit, strict=True))
        return signs + "^-v"[down + 1] + "<->"[right + 1] + "\n"

    def map(self) -> str:
        sign = lambda cell: "@" if cell == self.at else "X" if cell == self.exit else "."
        rows = [
            "".join(sign((r, c)) if (r, c) in self.open else "#" for c in range(self.size))
            for r in range(self.size)
        ]
        return "".join(row + "\n" for row in rows)

    def step(self, action: str):
        self.steps += 1
        said = action.strip()[:1].lower()
        down, right = STEPS.get(said, (0, 0))
        cell = (self.at[0] + down, self.at[1] + right)
        moves = said in STEPS and cell in self.open
        if moves:
            self.at = cell
            self.visits[cell] = self.visits.get(cell, 0) + 1
        done = self.at == self.exit
        return self.view(), 10.0 * done - 0.1 - 0.5 * (not moves), done


@pytest.mark.parametrize("show_map", [False, True])
def test_a_maze_keeps_its_rules(show_map):
    size, env = 4, maze(4, show_map=show_map)
    tables = jax.tree.map(jnp.asarray, env.make_tables(TOKENIZER, VOCAB))
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    rng, ends = np.random.default_rng(0), 0
    for seed in range(12):
        state, seen = reset(tables, KEYS[0], {"seed": jnp.int32(seed)})
        cells = lambda c: divmod(int(c), size)
        plain = PlainMaze(cells_of(state.open_C, size), cells(state.at), cells(state.exit), size)
        optimal = breadth_first(plain.open, plain.at)[plain.exit]
        assert text_of(seen) == (plain.map() if show_map else "") + plain.view()
        done = False
        while not done and plain.steps < 40:
            action = str(rng.choice(list("udlrUDLRx#\n ~~")))
            state, seen, reward, done = step(tables, state, jnp.asarray([ord(action)]), 1)
            text, plain_reward, plain_done = plain.step(action)
            assert (text_of(seen), bool(done)) == (text, plain_done)
            assert float(reward) == pytest.approx(plain_reward)
        ends += int(plain_done)
        measures = {name: float(x) for name, x in env.measures(tables, state).items()}
        spl = plain_done * optimal / plain.steps
        assert measures == pytest.approx(
            {"success": float(plain_done), "steps": plain.steps, "optimal": optimal, "spl": spl}
        )
    assert 2 < ends


def test_seeds_name_mazes_and_negative_ones_new_ones():
    env = maze(5)
    tables = jax.tree.map(jnp.asarray, env.make_tables(TOKENIZER, VOCAB))
    reset = jax.jit(lambda key, seed: env.reset(tables, key, {"seed": seed})[0])
    fixed = [reset(key, jnp.int32(3)).open_C.tolist() for key in KEYS[:4]]
    fresh = [reset(key, jnp.int32(-1)).open_C.tolist() for key in KEYS[:4]]
    others = [reset(KEYS[0], jnp.int32(seed)).open_C.tolist() for seed in range(20)]
    assert all(maze == fixed[0] for maze in fixed)
    assert len({tuple(x) for x in fresh}) == 4 and len({tuple(x) for x in others}) == 20


def test_guess_keeps_its_rules():
    env = guess(5, 120, prize=2.0, cost=0.25)
    tables = jax.tree.map(jnp.asarray, env.make_tables(TOKENIZER, VOCAB))
    assert env.max_action_tokens == 3
    step = jax.jit(env.step)
    state, seen = env.reset(tables, KEYS[0], {"secret": jnp.int32(42)})
    assert text_of(seen) == "5-120\n"
    for action, answer, reward in [
        ("7", "higher\n", -0.25),
        ("100", "lower\n", -0.25),
        ("abc", "no number\n", -0.25),
        (" 42", "yes\n", 1.75),
    ]:
        ids = [*action.encode(), EOS][:3]
        padded = jnp.asarray([*ids, *[ord("9")] * (3 - len(ids))])  # what is past it is not read
        state, seen, got, done = step(tables, state, padded, len(ids))
        assert (text_of(seen), float(got), bool(done)) == (answer, reward, answer == "yes\n")
    assert {k: int(v) for k, v in env.measures(tables, state).items()} == {
        "success": 1,
        "guesses": 4,
    }
    reset = jax.jit(lambda key: env.reset(tables, key, {})[0].secret)
    secrets = set(jax.device_get(jax.vmap(reset)(KEYS)).tolist())
    assert min(secrets) >= 5 and max(secrets) <= 120 and len(secrets) > 60


def test_numbers_and_letters_are_those_of_python():
    rng = np.random.default_rng(1)
    parsers = lambda ids, n: (first_number(SPELLING, ids, n), first_letter(SPELLING, ids, n))
    parse = jax.jit(parsers)
    alphabet = np.frombuffer(b"0123456789999 \n\tabXYZ-.", np.uint8)
    for _ in range(300):
        ids = rng.choice([*alphabet.tolist(), EOS], size=12)
        length = int(rng.integers(0, 13))
        text = bytes(i for i in ids[:length].tolist() if i < 256).decode()
        found = re.search("[0-9]+", text)
        wanted = int(found[0]) if found and len(found[0]) <= 9 else -1
        said = text.lstrip(" \n\t")[:1].lower()
        number, letter = parse(jnp.asarray(ids), length)
        assert (int(number), int(letter)) == (wanted, ord(said) if said else 0)


def test_pieces_are_joined_whatever_their_lengths():
    encode = lambda *texts: jax.tree.map(jnp.asarray, encode_pieces(TOKENIZER, texts))
    words, signs = encode("", "one", "fifteen"), encode("-", "\n")
    speak = jax.jit(lambda i, j: say((words, i), (signs, j), (words, i[:1, 0])))
    seen = speak(jnp.asarray([[2, 0], [1, 2]]), jnp.int32(0))
    assert text_of(seen) == "fifteen" + "one" + "fifteen" + "-" + "fifteen"
    assert seen.ids_O.shape == (4 * 7 + 1 + 7,)
    assert text_of(speak(jnp.asarray([[0, 0], [0, 0]]), jnp.int32(1))) == "\n"


ENV = guess(1, 9)
BAD = {
    "max_new_tokens=4: .* up to 4 tokens, .* nearest valid: 5$": (ENV, {"new_tokens": 4}),
    "min_new_tokens=2: .* nearest valid: 0$": (ENV, {"min_new_tokens": 2}),
    "max_turns=0; expected": (ENV._replace(max_turns=0), {}),
    "KeyError: 'seed'.*columns of the data: secret": (
        ENV._replace(reset=lambda tables, key, row: row["seed"]),
        {},
    ),
    "step returns the state": (
        ENV._replace(step=lambda *a: (1.0, *ENV.step(*a)[1:])),
        {},
    ),
    "the reward is int32.*; expected float32 of rank 0": (
        ENV._replace(step=lambda *a: (*ENV.step(*a)[:2], jnp.int32(1), jnp.bool_(True))),
        {},
    ),
    "measure tries is .*; expected a scalar": (
        ENV._replace(measures=lambda tables, state: {"tries": jnp.zeros(2)}),
        {},
    ),
}


@pytest.mark.parametrize("line", BAD)
def test_what_breaks_the_contract_is_said(line):
    env, changes = BAD[line]
    tables = env.make_tables(TOKENIZER, VOCAB)
    options = {"new_tokens": 11, "min_new_tokens": 0} | changes
    columns = {"secret": np.zeros(3, np.int32)}
    with pytest.raises(ConfigError, match=line):
        check_environment(env, tables, columns, **options)


def test_a_contract_that_is_kept():
    for env in (ENV, maze(3), maze(3, show_map=True)):
        tables = env.make_tables(TOKENIZER, VOCAB)
        check_environment(env, tables, {}, new_tokens=40, min_new_tokens=0)


@pytest.mark.parametrize("make", [lambda: guess(5, 5), lambda: maze(1), lambda: maze(4, walls=1)])
def test_impossible_environments_are_refused(make):
    with pytest.raises(ConfigError, match="expected"):
        make()


def test_the_experiment_has_mazes_of_its_own_held_out(monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    splits, files = (importlib.import_module(name) for name in ("_make_maze", "_files"))
    for name, rows in splits.splits().items():
        assert (DATA / "maze" / f"{name}.jsonl").read_bytes() == files.lines(rows)
    seeds = {name: [row["seed"] for row in rows] for name, rows in splits.splits().items()}
    assert max(seeds["ppo"]) < 0  # new ones, of keys that no number makes
    assert len(set(seeds["eval"])) >= 200 and min(seeds["eval"]) >= 0


def test_a_run_is_opened_with_its_environment(tiny_config):
    open_with = lambda tokens: open_run_of(
        replace(tiny_config, **{"rollout.max_new_tokens": tokens}),
        environment_reward(),
        read_dataset,
        ENV,
    )
    assert open_with(5).environment is ENV and open_with(5).env_tables.answers.ids_KL.size
    with pytest.raises(ConfigError, match="^rollout.max_new_tokens=4: environment guess opens"):
        open_with(4)


def test_an_environment_is_one_of_two_kinds(tmp_path):
    path = tmp_path / "mine.py"
    head = (
        "from ppo_jax.config import Config\nBASE = Config()\nREWARD = lambda prompts, responses: []"
    )
    path.write_text(f"{head}\nfrom ppo_jax.envs.maze import maze\nENVIRONMENT = maze()")
    assert getattr(load_experiment(path).environment, "name", None) == "maze"
    path.write_text(f"{head}\nfrom ppo_jax.envs.maze import maze\nENVIRONMENT = maze")
    with pytest.raises(ConfigError, match="ENVIRONMENT is a function; expected a .*DeviceEnv"):
        load_experiment(path)

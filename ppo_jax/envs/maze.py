"""A maze as a text: the policy says a move a turn and reads what it sees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ppo_jax.envs.base import DeviceEnv, Observation
from ppo_jax.envs.text import Pieces, Spelling, encode_pieces, first_letter, say, spell
from ppo_jax.errors import ConfigError
from ppo_jax.types import Array, PyTree

MOVES = "udlr"  # up, down, left, right: by the first letter of an action
ROW_4, COLUMN_4 = (-1, 1, 0, 0), (0, 0, -1, 1)
SEEN = (*"0123456789", "#", "X")  # a cell by its visits so far; a wall, the exit
MOST_VISITS, WALL, EXIT = 9, 10, 11
HEADINGS = ("^", "-", "v", "<", "-", ">")  # where the exit lies: two signs, of rows and columns
MAP = (".", "#", "X", "@", "\n")  # @: where one stands at the start
FAR = 2**20  # steps to where no way leads


class MazeTables(NamedTuple):
    map: Pieces
    seen: Pieces
    headings: Pieces
    end: Pieces  # of an observation
    spelling: Spelling


class MazeState(NamedTuple):
    """Cells C are numbered row by row."""

    open_C: Array  # bool, no wall
    visits_C: Array  # int32
    at: Array  # int32, the cell one stands in
    exit: Array  # int32
    steps: Array  # int32, actions so far
    shortest: Array  # int32, steps from start to exit


def maze(
    size: int = 5,
    *,
    walls: float = 0.3,
    max_turns: int | None = None,
    show_map: bool = False,
    exit_reward: float = 10.0,
    step_cost: float = 0.1,
    wall_cost: float = 0.5,
) -> DeviceEnv:
    """A gridworld of `size` x `size` cells, each of them a wall by chance `walls`. Start and exit
    are two cells with a way of at least 2 steps between them, each such pair as likely; where there
    is none, all walls are gone.

    The maze of a row is that of the number in the column `seed` of the data, or, where that is
    negative or missing, a new one every time.

    An observation is what lies up, down, left and right (`#` wall or edge, `X` exit, else how often
    one has been there) and where the exit is (`^-v`, `<->`), as `#01#^>`; with `show_map` the whole
    grid comes first. An action's first letter is the move, u d l r. The exit earns `exit_reward`
    and ends the dialogue, each action costs `step_cost`, and one that leads into a wall or is no
    move costs `wall_cost` more and leaves one where one is. After `max_turns` actions
    (None: size^2) the dialogue is cut.

    Measures: `success`, `steps`, `optimal` (length of the shortest way) and `spl` = success x
    optimal / steps, success weighted by path length (Anderson et al. 2018, arXiv 1807.06757).
    Raises ConfigError for a size outside [2, 16] or walls outside [0, 1).
    """
    if not 2 <= size <= 16 or not 0 <= walls < 1:
        raise ConfigError(f"maze: size={size}, walls={walls}; expected [2, 16] and [0, 1)")

    def make_tables(tokenizer, vocab_size: int) -> MazeTables:
        encode = lambda texts: encode_pieces(tokenizer, texts)
        spelling = spell(tokenizer, vocab_size)
        return MazeTables(encode(MAP), encode(SEEN), encode(HEADINGS), encode("\n"), spelling)

    def reset(tables: MazeTables, key: Array, row: dict) -> tuple[MazeState, Observation]:
        own_key = _numbered(key, jnp.asarray(row.get("seed", -1), jnp.int32))
        open_C, start, exit, shortest = make_maze(own_key, size, walls)
        visits_C = jnp.zeros((size**2,), jnp.int32).at[start].set(1)
        state = MazeState(open_C, visits_C, start, exit, jnp.int32(0), shortest)
        parts = _view(tables, state, size)
        return state, say(*_map(tables, state, size), *parts) if show_map else say(*parts)

    def step(tables: MazeTables, state: MazeState, ids_A: Array, length: Array):
        letter = first_letter(tables.spelling, ids_A, length)
        state, moves = _move(state, letter, size)
        there = state.at == state.exit
        reward = jnp.where(there, exit_reward, 0.0) - step_cost - jnp.where(moves, 0.0, wall_cost)
        return state, say(*_view(tables, state, size)), reward.astype(jnp.float32), there

    def measures(tables: PyTree, state: MazeState) -> dict[str, Array]:
        success = (state.at == state.exit).astype(jnp.float32)
        spl = success * state.shortest / jnp.maximum(state.steps, 1)
        counts = {"steps": state.steps, "optimal": state.shortest}
        return {"success": success, "spl": spl} | counts

    turns = size**2 if max_turns is None else max_turns
    return DeviceEnv("maze", make_tables, reset, step, measures, 1, turns)


def _numbered(key: Array, seed: Array) -> Array:
    """The key of the maze with that number; `key` where it is negative."""
    words = jax.random.key_data
    key_2 = jnp.where(seed < 0, words(key), words(jax.random.key(jnp.maximum(seed, 0))))
    return jax.random.wrap_key_data(key_2, impl=jax.random.key_impl(key))


def _move(state: MazeState, letter: Array, size: int) -> tuple[MazeState, Array]:
    """The state after an action, and whether it led anywhere."""
    said_4 = letter == jnp.asarray([ord(c) for c in MOVES])
    next_4, free_4 = neighbours(state.open_C, state.at, size)
    move = jnp.argmax(said_4)
    moves = said_4.any() & free_4[move]
    at = jnp.where(moves, next_4[move], state.at)
    visits_C = state.visits_C.at[at].add(moves)
    return state._replace(visits_C=visits_C, at=at, steps=state.steps + 1), moves


def make_maze(key: Array, size: int, walls: float) -> tuple[Array, Array, Array, Array]:
    """(open_C, start, exit, steps of the shortest way between them) of a random maze."""
    k_walls, k_ends = jax.random.split(key)
    open_C = jax.random.uniform(k_walls, (size**2,)) >= walls
    far_CC = lambda steps_CC: (steps_CC >= 2) & (steps_CC < FAR)
    solvable = far_CC(all_distances(open_C, size)).any()
    open_C = open_C | ~solvable
    steps_CC = all_distances(open_C, size)
    weights = jnp.where(far_CC(steps_CC), 0.0, -jnp.inf).reshape(-1)
    pair = jax.random.categorical(k_ends, weights)
    start, exit = (pair // size**2).astype(jnp.int32), (pair % size**2).astype(jnp.int32)
    return open_C, start, exit, steps_CC.reshape(-1)[pair]


def all_distances(open_C: Array, size: int) -> Array:
    """Steps [C, C] of the shortest way from each open cell to each; int32, `FAR` where none leads.

    Breadth first from all cells at once: each round reaches the cells one step further.
    """
    C = size**2
    cells = jnp.arange(C)
    reached_CC = (cells[:, None] == cells[None]) & open_C[:, None]

    def one_further(n, carry):
        steps_CC, reached_CC = carry
        grid = jnp.pad(reached_CC.reshape(C, size, size), ((0, 0), (1, 1), (1, 1)))
        beside = grid[:, :-2, 1:-1] | grid[:, 2:, 1:-1] | grid[:, 1:-1, :-2] | grid[:, 1:-1, 2:]
        new_CC = beside.reshape(C, C) & open_C[None] & ~reached_CC
        return jnp.where(new_CC, n + 1, steps_CC), reached_CC | new_CC

    first_CC = jnp.where(reached_CC, 0, FAR).astype(jnp.int32)
    steps_CC, _ = lax.fori_loop(0, C - 1, one_further, (first_CC, reached_CC))
    return steps_CC


def neighbours(open_C: Array, at: Array, size: int) -> tuple[Array, Array]:
    """(cell [4] of each move from a cell, bool, it is in the grid and open); any cell outside."""
    row_4, column_4 = at // size + jnp.asarray(ROW_4), at % size + jnp.asarray(COLUMN_4)
    inside_4 = (row_4 >= 0) & (row_4 < size) & (column_4 >= 0) & (column_4 < size)
    cell_4 = jnp.where(inside_4, row_4 * size + column_4, 0)
    return cell_4, inside_4 & open_C[cell_4]


def _view(tables: MazeTables, state: MazeState, size: int) -> list[tuple[Pieces, Array]]:
    """What one sees: the four cells around, and where the exit lies."""
    next_4, free_4 = neighbours(state.open_C, state.at, size)
    seen_4 = jnp.minimum(state.visits_C[next_4], MOST_VISITS)
    seen_4 = jnp.where(next_4 == state.exit, EXIT, seen_4)
    seen_4 = jnp.where(free_4, seen_4, WALL)
    down = jnp.sign(state.exit // size - state.at // size)
    right = jnp.sign(state.exit % size - state.at % size)
    heading_2 = jnp.stack([down + 1, right + 4])
    return [(tables.seen, seen_4), (tables.headings, heading_2), (tables.end, jnp.int32(0))]


def _map(tables: MazeTables, state: MazeState, size: int) -> list[tuple[Pieces, Array]]:
    """The grid row by row."""
    cells = jnp.arange(size**2)
    shown_C = jnp.where(state.open_C, 0, 1)
    shown_C = jnp.where(cells == state.exit, 2, jnp.where(cells == state.at, 3, shown_C))
    ends = jnp.full((size, 1), len(MAP) - 1)
    return [(tables.map, jnp.concatenate([shown_C.reshape(size, size), ends], axis=1))]

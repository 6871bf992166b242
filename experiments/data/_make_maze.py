"""Rows that name mazes: a new one every time for training, fixed ones held out.

    .venv/bin/python experiments/data/_make_maze.py

`ppo_jax.envs.maze` makes the maze of a row on the device from its `seed`; below 0 is a new one.
"""

from _files import write

PROMPT = "go\n"
HELD_OUT = 512


def splits() -> dict[str, list[dict]]:
    row = lambda seed: {"prompt": PROMPT, "seed": seed}
    return {"ppo": [row(-1)], "eval": [row(seed) for seed in range(HELD_OUT)]}


if __name__ == "__main__":
    write("maze", splits())

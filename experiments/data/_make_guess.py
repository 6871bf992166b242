"""Rows that hide a number: any for training, each of the nine as often for evaluation.

    .venv/bin/python experiments/data/_make_guess.py

`ppo_jax.envs.guess` hides the number of the column `secret`; below 0 is one drawn anew every time.
"""

from _files import write

PROMPT = "guess\n"
SECRETS = range(1, 10)
GAMES = 24  # for each number, in `eval`


def splits() -> dict[str, list[dict]]:
    row = lambda secret: {"prompt": PROMPT, "secret": secret}
    return {"ppo": [row(-1)], "eval": [row(secret) for secret in SECRETS for _ in range(GAMES)]}


if __name__ == "__main__":
    write("guess", splits())

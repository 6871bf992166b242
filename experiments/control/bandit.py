"""The KL bandit: what PPO must converge to is known in closed form.

    .venv/bin/python experiments/control/bandit.py

One action of 16, a fixed reward for each, and KL to a reference policy in the reward: the best
policy is the reference's times exp(reward / beta), divided by its sum. Trained through the same
`compute_gae` and `ppo_update`, all coefficients beta and all seeds in one compiled program.
Expected: a total variation distance below 0.02 for every beta and seed. Seen, five betas from 0.1
to 2 and three seeds (experiments/results/control/bandit.json): at most 0.0013 (at 0.1, where it
starts at 0.515); 11 s of a CPU core in all, compiling included.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _networks import init_params, policy_output
from _settings import Settings, checked_config, shape_of
from _study import ends_in_a_line, read_flags, rounded, seed_keys, spread, timed, write
from _task import Array, Task
from _training import Shape, train

from ppo_jax.config import Config
from ppo_jax.ranges import check_ranges
from ppo_jax.run_folder import environment

ARMS = 16
REWARD_A = np.random.default_rng(2).uniform(-1, 1, ARMS)
REFERENCE_A = np.random.default_rng(3).normal(0, 1, ARMS)  # logits


@dataclass(frozen=True)
class Flags:
    """The KL bandit."""

    betas: tuple[float, ...] = (0.1, 0.3, 0.5, 1.0, 2.0)  # reward that a nat of KL costs
    seeds: int = 3
    actions: int = 512  # drawn an iteration
    iterations: int = 200
    learning_rate: float = 5e-3  # at the start; a cosine takes it to 0
    out: Path | None = None  # JSON to write; None: runs/control/bandit.json


def bandit() -> Task:
    """Nothing to see, and every episode is one step long."""
    reward_A = jnp.asarray(REWARD_A, jnp.float32)
    start = lambda key: jnp.zeros(())
    step = lambda state, action: (state, reward_A[action], jnp.ones((), bool))
    return Task("bandit", 1, ARMS, False, 1, start, lambda state: jnp.ones(1), step)


def prepared(flags: Flags) -> tuple[Config, Shape]:
    settings = Settings(
        seeds=flags.seeds,
        environments=flags.actions,
        horizon=1,
        iterations=flags.iterations,
        hidden=(16,),
        epochs=1,
        whiten_advantages=False,
        schedule="cosine",
        learning_rate=flags.learning_rate,
        value_clip=None,
        entropy_coef=None,
        max_grad_norm=None,
    )
    check_ranges(flags, {"betas": "(0, inf)"})
    return checked_config(settings), shape_of(settings)


def learnt(flags: Flags):
    """Policies [beta, seed, action] in float64, and the seconds to compile and to run."""
    task, (config, shape) = bandit(), prepared(flags)

    def one(beta: Array, key: Array) -> Array:
        hparams = jax.tree.map(jnp.float32, config.hparams)
        hparams = dataclasses.replace(hparams, kl_coef=beta)
        key_start, key = jax.random.split(key)
        start = init_params(task, shape.hidden, "separate", key_start)
        head = {"w": 0 * start["policy"]["head"]["w"], "b": jnp.asarray(REFERENCE_A, jnp.float32)}
        start["policy"]["head"] = head
        params = train(task, config, shape, hparams, key, start, reference=start).params
        return jax.nn.softmax(policy_output(params["policy"], jnp.ones(1)))

    seeds = jax.vmap(one, in_axes=(None, 0))
    both = jax.vmap(seeds, in_axes=(0, None))
    found, seconds = timed(both, jnp.array(flags.betas), seed_keys(flags.seeds)[0])
    return np.asarray(found, np.float64), seconds


def closed_form(beta: float) -> np.ndarray:
    weights_A = np.exp(REFERENCE_A + REWARD_A / beta)
    return weights_A / weights_A.sum()


def distance(p_A: np.ndarray, q_A: np.ndarray) -> np.ndarray:
    """Total variation, over the last axis."""
    return 0.5 * np.abs(p_A - q_A).sum(axis=-1)


def study(flags: Flags) -> None:
    found, seconds = learnt(flags)
    start_A = closed_form(np.inf)
    rows = []
    for beta, policy_NA in zip(flags.betas, found, strict=True):
        best_A = closed_form(beta)
        rows.append(
            {
                "beta": beta,
                "kl_nats": round(float((best_A * np.log(best_A / start_A)).sum()), 4),
                "distance_at_start": round(float(distance(start_A, best_A)), 4),
                "distance_by_seed": [round(float(x), 4) for x in distance(policy_NA, best_A)],
            }
        )
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()))
    print(f"seconds: {spread(rounded(seconds))}")
    settings = {name: value for name, value in vars(flags).items() if name != "out"}
    result = {"task": "bandit", "rows": rows, "seconds": rounded(seconds), "settings": settings}
    write(result | environment(), flags.out, "bandit")


if __name__ == "__main__":
    sys.exit(ends_in_a_line(lambda: study(read_flags(Flags(), __doc__))))

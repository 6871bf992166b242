"""W1s: W1 with the critic as a head on the policy's trunk, our default.

    ppo-jax bench w1s

Bar: at least 1.5 times the speed of TRL's PPOTrainer on W1, whose critic is a model of its own.
Expected: about 6 s an iteration on two cores.
"""

from pathlib import Path

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

_w1 = load_experiment(Path(__file__).with_name("w1.py"))

BASE = replace(_w1.base, **{"model.critic": "shared"})
REWARD = _w1.reward
WORKLOAD = _w1.workload

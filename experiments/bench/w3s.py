"""W3s: W3 with the critic as a head on the policy's trunk, our default.

    ppo-jax bench w3s

Bar: at least 3.5 times the speed of TRL's PPOTrainer on W3, whose critic is a model of its own.
Expected: about 3 s an iteration on two cores.
"""

from pathlib import Path

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

_w3 = load_experiment(Path(__file__).with_name("w3.py"))

BASE = replace(_w3.base, **{"model.critic": "shared"})
REWARD = _w3.reward
WORKLOAD = _w3.workload

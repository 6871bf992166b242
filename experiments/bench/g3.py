"""G3: the sentiment experiment on a GPU: SmolLM2-135M's own weights, its data, its reward.

    ppo-jax bench g3

The same file trains by `make train`; here its iterations are timed. Expected: not measured yet.
"""

from pathlib import Path

from ppo_jax.experiment import load_experiment
from ppo_jax.workload import Workload

_sentiment = load_experiment(Path(__file__).parents[1] / "sentiment.py")

BASE = _sentiment.base
REWARD = _sentiment.reward
WORKLOAD = Workload(platforms=("gpu", "tpu"))

"""Started by `rewards.pool`: the process of `rewards.worker`, for the reward of an experiment."""

import sys

from ppo_jax.experiment import all_parts, load_experiment
from ppo_jax.rewards.worker import main

if __name__ == "__main__":
    main(sys.argv[1:], lambda path: all_parts(load_experiment(path)))

"""Pendulum-v1: one continuous action, a Gaussian policy whose deviation is learnt.

    .venv/bin/python experiments/control/pendulum.py --gymnasium 10

Settings of RL Baselines3 Zoo, but for its state-dependent exploration and its constant learning
rate, and twice its steps. Expected: a mean return of at least -200 (the Zoo's PPO: -172.2, with a
deviation of 104.2 over the episodes of one run). Seen, ten seeds
(experiments/results/control/pendulum.json): -173.2 over 100 new episodes of each (-192.2 to
-156.8), -170.7 with the likeliest actions, -152.9 over 10 of Gymnasium's own; 19 s to compile and
42 s to run all ten on one of two CPU cores, the other busy.
"""

import sys

from _classic import PENDULUM
from _settings import Settings
from _study import main

SETTINGS = Settings(
    horizon=1024,
    iterations=49,
    epochs=10,
    minibatches=64,
    learning_rate=1e-3,
    gamma=0.9,
    value_clip=None,
    entropy_coef=None,
    reward_scale=0.1,
)

if __name__ == "__main__":
    sys.exit(main(PENDULUM, SETTINGS, __doc__))

"""Pendulum-v1."""

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

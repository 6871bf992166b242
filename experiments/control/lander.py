"""Lander."""

import sys

from _lander import LANDER
from _settings import Settings
from _study import main

SETTINGS = Settings(
    environments=16,
    horizon=128,
    iterations=244,
    learning_rate=1e-3,
    lam=0.8,
    value_clip=None,
    reward_scale=0.05,
)

if __name__ == "__main__":
    sys.exit(main(LANDER, SETTINGS, __doc__))

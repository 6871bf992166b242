"""Acrobot-v1: swing two links up with a motor between them; PureJaxRL's settings for CartPole.

    .venv/bin/python experiments/control/acrobot.py --gymnasium 10

Expected: a mean return of at least -100, Gymnasium's threshold (CleanRL's PPO: -86.4 after 500,000
steps; RL Baselines3 Zoo's: -73.5 after a million). Seen, ten seeds of 500,224 steps
(experiments/results/control/acrobot.json): -84.9 over 100 new episodes of each (-90.7 to -81.0),
-83.3 with the likeliest actions, -84.7 over 10 of Gymnasium's own; 21 s to compile and 41 s to run
all ten on one of two CPU cores, the other busy.
"""

import sys

from _classic import ACROBOT
from _settings import Settings
from _study import main

SETTINGS = Settings()

if __name__ == "__main__":
    sys.exit(main(ACROBOT, SETTINGS, __doc__))

"""Acrobot-v1: swing two links up with a motor between them; PureJaxRL's settings for CartPole.

    .venv/bin/python experiments/control/acrobot.py --gymnasium 10

Expected: a mean return of at least -100, Gymnasium's threshold (CleanRL's PPO: -86.4 after 500,000
steps; RL Baselines3 Zoo's: -73.5 after a million). Seen after 204,800 steps (`--seeds 2
--iterations 400`): -88.9 over 100 new episodes of each seed (-89.2 and -88.6), -84.6 with the
likeliest actions; 11 s to compile and 3 s to run on two CPU cores beside other work. Ten seeds of
500,000 steps have not been run yet.
"""

import sys

from _classic import ACROBOT
from _settings import Settings
from _study import main

SETTINGS = Settings()

if __name__ == "__main__":
    sys.exit(main(ACROBOT, SETTINGS, __doc__))

"""A lander with LunarLander's 8 observations, 4 actions and rewards; mechanics of our own.

    .venv/bin/python experiments/control/lander.py

gamma 0.99, lambda 0.8 and a learning rate of 1e-3. Expected: a mean return of at least 200, the
threshold of LunarLander-v3, whose returns are otherwise not these (see `_lander.py`). Seen, ten
seeds of 499,712 steps (experiments/results/control/lander.json): 239.3 over 100 new episodes of
each (230.3 to 250.2), but 205.2 with the likeliest actions (179.5 to 234.9); 22 s to compile and
56 s to run all ten on one of two CPU cores, the other busy. After 999,424 steps (`--seeds 3
--iterations 488`, an earlier run): 245.3 (237.8 to 250.2), and 243.3 with the likeliest.
"""

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

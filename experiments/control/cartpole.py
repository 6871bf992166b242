"""CartPole-v1 with PureJaxRL's settings, ten seeds in one program.

    .venv/bin/python experiments/control/cartpole.py --gymnasium 10

Expected: a mean return of at least 475 over ten seeds. Seen: 500.0, and 500.0 the lowest seed's,
over the last 100 episodes of training, over 100 new ones, and over 10 in Gymnasium's own
environment with the network in NumPy; on the way, the mean of the seeds first passes 475 after
210,000 of 500,224 steps. On one of two CPU cores, the other busy, all ten agents take 26 s to
compile and 47 s to run (experiments/results/control/cartpole.json).

Published: CleanRL 490.0 +- 6.1; PureJaxRL 490 to 500, one agent in about 17 s where CleanRL takes
185 s (read off its plots: another machine). CleanRL's own ppo.py (commit fe8d8a0, torch 2.13,
Gymnasium 0.29, `python ppo.py --no-cuda --seed 1`) took 122 s for one agent on the same core of
the same machine, and had 485.0 over its last 100 episodes. Both take the limit of 500 steps for an
end; here the last state's worth is added, which may be why every seed ends at 500.
"""

import sys

from _classic import CARTPOLE
from _settings import Settings
from _study import main

SETTINGS = Settings()

if __name__ == "__main__":
    sys.exit(main(CARTPOLE, SETTINGS, __doc__))

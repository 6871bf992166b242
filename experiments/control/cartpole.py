"""CartPole-v1."""

import sys

from _classic import CARTPOLE
from _settings import Settings
from _study import main

SETTINGS = Settings()

if __name__ == "__main__":
    sys.exit(main(CARTPOLE, SETTINGS, __doc__))

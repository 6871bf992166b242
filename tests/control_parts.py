"""The files of experiments/control, which import each other by their bare names."""

import importlib
import sys
from pathlib import Path

CONTROL = Path(__file__).parents[1] / "experiments" / "control"
sys.path.insert(0, str(CONTROL))
NAMES = "_task", "_classic", "_lander", "_networks", "_training", "_settings", "_study"
task, classic, lander, networks, training, settings, study = map(importlib.import_module, NAMES)
gymnasium_own = importlib.import_module("_gymnasium")
bandit = importlib.import_module("bandit")

"""What held-out responses are held against: those of the policy that the run began from.

They are drawn once, before the first iteration, and kept in the run folder, so that a run that is
resumed goes on with the same ones.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppo_jax import console, quality
from ppo_jax.agreement import on_first
from ppo_jax.evaluation import EVAL, Answers, make_answers, metrics
from ppo_jax.prepare import Run
from ppo_jax.run_folder import RunFolder
from ppo_jax.storage import as_path, write_atomic
from ppo_jax.types import PyTree, TrainState

FILE = "baseline.json"  # in the run folder
WIN_RATE = f"{EVAL}win_rate"


class Beginning(NamedTuple):
    """Where a run goes on."""

    folder: RunFolder
    start: int  # iterations that are done
    state: TrainState
    frozen: PyTree


def make_judge(run: Run, at: Beginning) -> Callable[[TrainState, PyTree], dict[str, float]]:
    """`judge(state, frozen)`: the metrics of `run.held_out`, each row continued once, the same in
    all processes. It neither alters the state nor draws from its key.

    A run at its very beginning is judged at once, which is what it is compared with.
    """
    answer, known = make_answers(run), []
    first = answer(at.state, at.frozen) if at.start == 0 else None
    on_first("baseline", lambda: known.append(open_baseline(run, at.folder, first)))

    def judge(state: TrainState, frozen: PyTree) -> dict[str, float]:
        answers = answer(state, frozen)
        return on_first("evaluated", lambda: compared(answers, *known))

    return judge


def compared(answers: Answers | None, baseline: np.ndarray | None) -> dict[str, float]:
    """`eval/...` metrics; with a baseline [P], what decided about its responses, also the share of
    prompts whose response is better than the baseline's, a tie being half a win."""
    assert answers is not None
    found = metrics(answers)
    if baseline is None:
        return found
    wins_P = quality.wins(answers.decided_PK, baseline[:, None])
    return found | {WIN_RATE: quality.value(quality.mean(wins_P))}


def open_baseline(run: Run, folder: RunFolder, first: Answers | None) -> np.ndarray | None:
    """The scores [P], by what decides, of the first answers, which are kept; without those the ones
    that were. NaN: none. None, and a line that says why, where there is nothing to compare with.

    Raises StorageError if they cannot be written.
    """
    path, asked = folder.root / FILE, _asked(run)
    if first is not None:
        return _keep(path, asked, run, first)
    why = "the run began without evaluations (run.eval_every)"
    try:
        kept = json.loads(as_path(path).read_text(encoding="utf-8"))
        scores_P = np.array([row["decided"] for row in kept["responses"]], np.float64)
        if kept["asked"] == asked:
            return scores_P
        why = "it is of other held-out rows, or decided by other parts of reward or judge"
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"cannot be read ({type(error).__name__})"
    console.warn(f"{path}: {why}; evaluations go on without {WIN_RATE}")
    return None


def _keep(path: Path, asked: str, run: Run, first: Answers) -> np.ndarray:
    assert run.held_out is not None
    found, scores_P = metrics(first), first.decided_PK[:, 0]
    known = lambda x: x if math.isfinite(x) else None  # as JSON has it
    rows = zip(run.held_out.lines, first.responses, scores_P.tolist(), strict=True)
    kept: dict[str, Any] = {
        "asked": asked,
        "by": "reward" if first.verdicts_N is None else "judge",
        "metrics": {name: known(x) for name, x in found.items()},
        "responses": [{"line": n, "response": x, "decided": known(y)} for n, x, y in rows],
    }
    write_atomic(path, json.dumps(kept, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    console.say(f"{path.parent}: before training  {console.iteration_line(found)}")
    return scores_P


def _asked(run: Run) -> str:
    """Of the held-out rows, and of what decides about their responses."""
    assert run.held_out is not None
    parts = [[part.name, part.weight] for part in run.judge or run.parts]
    what = [run.held_out.prompts, run.held_out.columns, parts]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()

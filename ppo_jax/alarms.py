"""What in a run's numbers points to a fault, in one line: its likely cause, and what to change.

A comment at a limit says how near sound runs come to it: those in `experiments/`, and variants of
`tiny`, whose random model learns its language from nothing.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from ppo_jax.config import Config

QUIET = 20  # iterations from a line to the next one of its kind
IN_A_ROW = 5  # iterations that what may be chance must last
WINDOW = 15  # iterations remembered
RATIO_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # rounding: below 1e-5 and 2e-2
LARGE_UPDATE = 0.05  # policy/approxkl_avg, nats a token: usually 1e-4 to 2e-2
KL_OVER_TARGET = 5.0  # a controller at work swings to 2.2
KL_PER_TOKEN = 1.0  # nats: a model that still speaks its language is a few tenths away
KL_GROWTH = 0.4  # of the first entropy, in IN_A_ROW iterations; learning from nothing: to 0.22
NEGATIVE_KL = 0.5  # nats a sequence
SCORE_JUMP = 4.0  # standard deviations within a batch; learning: to 1.5
RECENT, EARLIER = 3, 8  # iterations that jumped, and how many at least they are held against
ALIKE = 1e-6  # standard deviation of equal scores, over their size: rounding
ENTROPY_LEFT = 0.1  # of the first; having learnt one thing well: 0.15

Row = dict[str, float]  # the finite numbers of an iteration
Faults = Iterator[tuple[str, str]]  # kind, and what there is to say
KL, ENTROPY, LENGTH = "objective/kl", "objective/entropy", "rollout/length_mean"
SCORE, SPREAD = "objective/scores", "objective/scores_std"
A_TOKEN = " a token"  # appended to the name of a sum over a sequence that was divided by its length

# What comes of a number that is not finite is not finite either: the first of these has the fault.
CAUSES = (  # what it is, metrics that tell, what to change
    ("the reward", ("reward/", "objective/scores"), "mend it or set reward.on_error=mask"),
    ("a log-probability", ("objective/entropy", "objective/kl"), "lower hparams.learning_rate"),
    ("the critic", ("value/",), "lower hparams.critic_learning_rate or set hparams.score_clip"),
    ("the policy's loss", ("loss/policy_avg", "loss/kl_avg"), "set hparams.log_ratio_clamp=10"),
    ("the critic's loss", ("loss/value_avg",), "lower hparams.critic_learning_rate"),
    ("only the gradient", ("grad_norm/",), "lower hparams.learning_rate"),
)


class Seen(NamedTuple):
    """What is judged: the numbers of a run up to its newest iteration."""

    config: Config
    rows: list[Row]  # of the last WINDOW iterations, the newest at the end
    first: Row  # each metric's first finite value
    nonfinite: Row  # the other numbers of the newest iteration

    def latest(self, key: str) -> list[float]:
        """The last IN_A_ROW values; none if one of them is missing or not finite."""
        values = [row[key] for row in self.rows[-IN_A_ROW:] if key in row]
        return values if len(values) == IN_A_ROW else []


class Alarms:
    """Looks at one iteration after the other.

    `past`: the rows a resumed run had logged. They count as seen, and their faults as said.
    """

    def __init__(self, config: Config, past: Iterable[Mapping[str, Any]] = ()):
        self._config = config
        self._rows: deque[Row] = deque(maxlen=WINDOW)
        self._first: Row = {}
        self._said: dict[str, int] = {}  # kind -> iteration
        for row in past:
            self.look(int(row["step"]), row)

    def look(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """A line for each fault that iteration `step` shows, its kind not having been said lately.

        A metric that is missing or not finite keeps those kinds silent that would need it.
        """
        numbers = {name: float(x) for name, x in metrics.items() if isinstance(x, int | float)}
        row = {name: x for name, x in numbers.items() if math.isfinite(x)}
        nonfinite = {name: x for name, x in numbers.items() if name not in row}
        if LENGTH in row:
            sums = [name for name in (KL, ENTROPY) if name in row]
            row |= {name + A_TOKEN: row[name] / max(row[LENGTH], 1.0) for name in sums}
        self._rows.append(row)
        self._first = row | self._first
        seen = Seen(self._config, list(self._rows), self._first, nonfinite)
        lines = []
        for faults in (_steps, _kl, _jump, _scores, _responses):
            for kind, fault in faults(seen):
                if step - self._said.get(kind, step - QUIET) >= QUIET:
                    self._said[kind] = step
                    lines.append(f"iteration {step}: {fault}")
        return lines


def _steps(seen: Seen) -> Faults:
    config, row = seen.config, seen.rows[-1]
    skipped = row.get("update/skipped_nonfinite", 0.0)
    if skipped > 0:
        steps, in_row = row.get("update/steps", 0.0), row.get("update/nonfinite_in_row", 1.0)
        yield (
            "skipped",
            f"{skipped:.0f} of {max(steps, skipped):.0f} steps skipped ({in_row:.0f} of "
            f"optim.max_nonfinite={config.optim.max_nonfinite} in a row): {_cause(seen.nonfinite)}",
        )
    deviation = row.get("val/ratio_first_max_dev", 0.0)
    tolerance = RATIO_TOLERANCE.get(config.model.compute_dtype, RATIO_TOLERANCE["bfloat16"])
    if config.rollout.old_logprobs == "recompute" and deviation > tolerance:
        yield (
            "ratio",
            f"val/ratio_first_max_dev {deviation:.2g} before any step, rounding is below "
            f"{tolerance:g}: old and new log-probabilities disagree: try model.attention=xla",
        )


def _cause(nonfinite: Row) -> str:
    for what, prefixes, cure in CAUSES:
        for prefix in prefixes:
            for name, value in nonfinite.items():
                if name.startswith(prefix):
                    return f"{what} is not finite ({name} {value}): {cure}"
    return "only the gradient is not finite: lower hparams.learning_rate"


def _kl(seen: Seen) -> Faults:
    config, target = seen.config, seen.config.hparams.kl_target
    kl, coef = seen.latest(KL), seen.latest("objective/kl_coef")
    if config.reward.kl_controller == "adaptive" and target is not None:
        rising = kl and coef and kl[-1] >= kl[0] and coef[-1] > coef[0]
        if rising and min(kl) > KL_OVER_TARGET * target:
            yield (
                "kl",
                f"KL {kl[-1]:.3g} is {kl[-1] / target:.0f} x hparams.kl_target={target:g}, rising "
                f"though kl_coef does, to {coef[-1]:.2g}: {_slower(seen, 'raise hparams.kl_gain')}",
            )
    elif near := seen.latest(KL + A_TOKEN):
        growth = KL_GROWTH * seen.first.get(ENTROPY + A_TOKEN, math.inf)
        if near[-1] > KL_PER_TOKEN and near[-1] - near[0] > growth:
            coef = f"raise hparams.kl_coef={config.hparams.kl_coef:g}"
            yield (
                "kl",
                f"KL {near[0]:.2g} -> {near[-1]:.2g} nats a token in {IN_A_ROW} iterations: "
                f"{_slower(seen, f'{coef} or set reward.kl_controller=adaptive')}",
            )
    # Near the reference a sequence's log ratio of mean K has the variance 2 K. Whatever K is, the
    # mean of B of them lies sqrt(2 c B) deviations or more above -c: 4 at c = 8 / B.
    if kl and max(kl) < -max(NEGATIVE_KL, 8.0 / config.rollout.batch_size):
        yield (
            "negative kl",
            f"KL {kl[-1]:.3g} nats a sequence, which no policy has: tokens are not drawn as they are"
            f" scored (see rollout/logprob_gap): check hparams.temperature, rollout.weights",
        )


def _slower(seen: Seen, otherwise: str) -> str:
    change = max(row.get("policy/approxkl_avg", 0.0) for row in seen.rows[-IN_A_ROW:])
    if change <= LARGE_UPDATE:
        return otherwise
    fewer = " or ppo.epochs" if seen.config.ppo.epochs > 1 else ""
    return f"steps are large (approxkl {change:.2g}): lower hparams.learning_rate{fewer}"


def _jump(seen: Seen) -> Faults:
    """Scores that no batch was near before, from a policy that moved on the way to them."""
    rows = [row for row in seen.rows if {KL, LENGTH, SCORE, SPREAD} <= row.keys()]
    earlier, recent = rows[:-RECENT], rows[-RECENT:]
    if len(earlier) < EARLIER or recent[-1] is not seen.rows[-1]:
        return
    best, spread = (max(row[key] for row in earlier) for key in (SCORE, SPREAD))
    score = min(row[SCORE] for row in recent)
    kl, length = (fmean(row[key] for row in earlier) for key in (KL, LENGTH))
    new_kl, new_length = (fmean(row[key] for row in recent) for key in (KL, LENGTH))
    moved = abs(new_length - length) > length / 4
    jumped = spread > ALIKE * abs(best) and score - best > SCORE_JUMP * spread
    if jumped and (moved or new_kl > 2 * max(kl, 0.1)):
        lengths = f", length {length:.3g} -> {new_length:.3g}" if moved else ""
        adaptive = seen.config.reward.kl_controller == "adaptive"
        yield (
            "jump",
            f"score {best:.3g} -> {score:.3g}, {(score - best) / spread:.0f} x its spread, KL "
            f"{kl:.2g} -> {new_kl:.2g}{lengths}: reward hacking? see samples.jsonl; "
            f"{'lower hparams.kl_target' if adaptive else 'raise hparams.kl_coef'}",
        )


def _scores(seen: Seen) -> Faults:
    batch, spread, score = seen.config.rollout.batch_size, seen.latest(SPREAD), seen.latest(SCORE)
    alike = [std <= 1e-8 + ALIKE * abs(x) for std, x in zip(spread, score, strict=False)]
    if alike and all(alike) and batch > 1:
        yield (
            "alike",
            f"scores of a batch all alike for {IN_A_ROW} iterations ({score[-1]:.3g}), nothing to "
            f"learn from: the reward is constant, or the task solved or too hard",
        )
    masked = seen.rows[-1].get("reward/masked", 0.0)
    if masked > batch / 2:
        yield (
            "masked",
            f"{masked:.0f} of {batch} responses without a score (reward/masked): the reward fails "
            f"or takes too long: mend it or raise reward.timeout",
        )


def _responses(seen: Seen) -> Faults:
    config, ended = seen.config, seen.latest("rollout/ended")
    # Not policy/entropy_avg, which leaves out rows that give no gradient and is 0 without any.
    entropy, first = seen.latest(ENTROPY + A_TOKEN), seen.first.get(ENTROPY + A_TOKEN, 0.0)
    if entropy and max(entropy) < ENTROPY_LEFT * first:
        yield (
            "entropy",
            f"entropy {first:.2g} -> {entropy[-1]:.2g} nats a token, nothing new is tried: "
            f"{_slower(seen, 'raise hparams.kl_coef or set hparams.entropy_coef')}",
        )
    dropped, penalty = config.reward.drop_truncated, config.hparams.missing_eos_penalty
    if ended and max(ended) == 0 and (dropped or penalty):
        why = "reward.drop_truncated drops all" if dropped else "missing_eos_penalty hits all alike"
        yield (
            "cut",
            f"no response ended for {IN_A_ROW} iterations, {why}: raise rollout.max_new_tokens="
            f"{config.rollout.max_new_tokens} or add rollout.stop_token_ids",
        )

"""What in a run's numbers points to a fault, in one line: its likely cause, and what to change."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from ppo_jax.config import Config

QUIET = 20  # iterations from a line to the next one of its kind
IN_A_ROW = 5  # iterations that what may be chance must last
WINDOW, EARLIER, RECENT = 13, 8, 3  # iterations remembered; the oldest and newest are compared
RATIO_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # rounding: below 1e-5 and 2e-2
LARGE_STEP = 0.05  # policy/approxkl_avg, nats a token: usually 1e-4 to 2e-2
KL_OVER_TARGET = 5.0  # for IN_A_ROW iterations; a controller at work: to 1.6
KL_PER_TOKEN = 1.0  # nats: a model that still speaks its language is a few tenths away
KL_GROWTH = 0.35  # of the first entropy, IN_A_ROW iterations; a random model that learns: to 0.21
NEGATIVE_KL = 0.5  # nats a sequence
SCORE_JUMP = 6.0  # standard deviations within a batch; a random model that learns: to 3
ALIKE = 1e-6  # standard deviation of equal scores, over their size: rounding
ENTROPY_LEFT = 0.05  # of the first; having learnt one thing well: 0.23

KL, ENTROPY, LENGTH = "objective/kl", "objective/entropy", "rollout/length_mean"
SCORE, SPREAD = "objective/scores", "objective/scores_std"
A_TOKEN = " a token"  # after the name of a sum over a sequence: over the length
CAUSES = (  # what, metrics that tell, what to change; the first not finite made the others so
    ("reward", ("reward/", "objective/scores"), "mend it or set reward.on_error=mask"),
    ("log-probability", (ENTROPY, KL), "check the weights, hparams.learning_rate"),
    ("critic", ("value/", "loss/value_avg"), "lower hparams.critic_learning_rate"),
    ("policy loss", ("loss/policy_avg", "loss/kl_avg"), "set hparams.log_ratio_clamp=10"),
    ("loss", ("loss",), "check the weights, lower hparams.learning_rate"),
)

Row = dict[str, float]  # the finite numbers of an iteration
Faults = Iterator[tuple[str, str]]  # kind, and what there is to say


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
    """Looks at one iteration after the other; a resumed run shows it the logged ones first."""

    def __init__(self, config: Config):
        self._config = config
        self._rows: deque[Row] = deque(maxlen=WINDOW)
        self._first: Row = {}
        self._said: dict[str, int] = {}  # kind -> iteration

    def look(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """A line for each fault that iteration `step` shows, unless its kind was said lately."""
        numbers = {name: float(x) for name, x in metrics.items() if isinstance(x, int | float)}
        row = {name: x for name, x in numbers.items() if math.isfinite(x)}
        nonfinite = {name: x for name, x in numbers.items() if name not in row}
        if row.get(LENGTH, 0.0) > 0:
            row |= {key + A_TOKEN: row[key] / row[LENGTH] for key in {KL, ENTROPY} & row.keys()}
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
    row, limit = seen.rows[-1], seen.config.optim.max_nonfinite
    skipped = row.get("update/skipped_nonfinite", 0.0)
    if skipped > 0:
        steps, in_row = row.get("update/steps", 0.0), row.get("update/nonfinite_in_row", 1.0)
        yield (
            "skipped",
            f"{skipped:.0f} of {max(steps, skipped):.0f} steps skipped ({in_row:.0f} of "
            f"optim.max_nonfinite={limit} in a row): {_cause(seen.nonfinite)}",
        )
    deviation = row.get("val/ratio_first_max_dev", 0.0)
    tolerance = RATIO_TOLERANCE.get(seen.config.model.compute_dtype, RATIO_TOLERANCE["bfloat16"])
    if seen.config.rollout.old_logprobs == "recompute" and deviation > tolerance:
        yield (
            "ratio",
            f"val/ratio_first_max_dev {deviation:.2g} before any step, rounding is below "
            f"{tolerance:g}: old and new log-probabilities disagree: try model.attention=xla",
        )


def _cause(nonfinite: Row) -> str:
    for what, prefixes, cure in CAUSES:
        named = [name for start in prefixes for name in nonfinite if name.startswith(start)]
        if named:
            return f"{what} not finite ({named[0]} {nonfinite[named[0]]}): {cure}"
    found = ", ".join(name for name in nonfinite if name.startswith("grad_norm/")) or "unlogged"
    return f"only the gradient not finite ({found}): lower hparams.learning_rate"


def _kl(seen: Seen) -> Faults:
    reward, hparams = seen.config.reward, seen.config.hparams
    kl, coef, near = seen.latest(KL), seen.latest("objective/kl_coef"), seen.latest(KL + A_TOKEN)
    target = hparams.kl_target if reward.kl_controller == "adaptive" else None
    growth = KL_GROWTH * seen.first.get(ENTROPY + A_TOKEN, math.inf)
    rising = kl and coef and kl[-1] >= kl[0] and coef[-1] > coef[0]
    if target is not None and rising and min(kl) > KL_OVER_TARGET * target:
        yield (
            "kl",
            f"KL {kl[-1]:.3g}, {kl[-1] / target:.0f} x hparams.kl_target={target:g}, rises though "
            f"kl_coef does ({coef[-1]:.2g}): {_slower(seen, 'raise hparams.kl_gain')}",
        )
    if target is None and near and near[-1] > KL_PER_TOKEN and near[-1] - near[0] > growth:
        yield (
            "kl",
            f"KL {near[0]:.2g} -> {near[-1]:.2g} nats a token in {IN_A_ROW} iterations: "
            f"{_slower(seen, f'raise hparams.kl_coef={hparams.kl_coef:g}')}",
        )
    # Near the reference a sequence's log ratio of mean K has the variance 2 K. Whatever K is, the
    # mean of B of them lies sqrt(2 c B) deviations or more above -c: 4 at c = 8 / B.
    if kl and max(kl) < -max(NEGATIVE_KL, 8.0 / seen.config.rollout.batch_size):
        yield (
            "negative kl",
            f"KL {kl[-1]:.3g} nats a sequence, below 0: tokens are not drawn as they are scored "
            f"(see rollout/logprob_gap): check hparams.temperature, masks, rollout.weights",
        )


def _slower(seen: Seen, otherwise: str) -> str:
    change = max(row.get("policy/approxkl_avg", 0.0) for row in seen.rows[-IN_A_ROW:])
    if change <= LARGE_STEP:
        return otherwise
    fewer = " or ppo.epochs" if seen.config.ppo.epochs > 1 else ""
    return f"steps are large (approxkl {change:.2g}): lower hparams.learning_rate{fewer}"


def _jump(seen: Seen) -> Faults:
    rows = [row for row in seen.rows if {KL, LENGTH, SCORE, SPREAD} <= row.keys()]
    earlier, recent = rows[:EARLIER], rows[-RECENT:]
    if len(rows) < EARLIER + RECENT:
        return
    best, spread = (max(row[key] for row in earlier) for key in (SCORE, SPREAD))
    score = min(row[SCORE] for row in recent)
    jumped = spread > ALIKE * abs(best) and score - best > SCORE_JUMP * spread
    kl, length = (fmean(row[key] for row in earlier) for key in (KL, LENGTH))
    new_kl, new_length = (fmean(row[key] for row in recent) for key in (KL, LENGTH))
    moved = abs(new_length - length) > length / 4
    if jumped and (moved or new_kl > 2 * max(kl, 0.1)):
        lengths = f", length {length:.3g} -> {new_length:.3g}" if moved else ""
        yield (
            "jump",
            f"score {best:.3g} -> {score:.3g}, {(score - best) / spread:.0f} x its spread, KL "
            f"{kl:.2g} -> {new_kl:.2g}{lengths}: reward hacking? see samples.jsonl; raise "
            f"hparams.kl_coef or lower kl_target",
        )


def _scores(seen: Seen) -> Faults:
    batch, score, spread = seen.config.rollout.batch_size, seen.latest(SCORE), seen.latest(SPREAD)
    alike = [std <= 1e-8 + ALIKE * abs(x) for std, x in zip(spread, score, strict=False)]
    if batch > 1 and alike and all(alike):
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
    # Not policy/entropy_avg, which leaves out rows that give no gradient and is 0 without any.
    entropy, first = seen.latest(ENTROPY + A_TOKEN), seen.first.get(ENTROPY + A_TOKEN, 0.0)
    if entropy and max(entropy) < ENTROPY_LEFT * first:
        yield (
            "entropy",
            f"entropy {first:.2g} -> {entropy[-1]:.2g} nats a token, nothing new is tried: "
            f"{_slower(seen, 'raise hparams.kl_coef or set hparams.entropy_coef')}",
        )
    ended, dropped = seen.latest("rollout/ended"), seen.config.reward.drop_truncated
    if ended and max(ended) == 0 and (dropped or seen.config.hparams.missing_eos_penalty):
        why = "reward.drop_truncated drops all" if dropped else "missing_eos_penalty hits all alike"
        yield (
            "cut",
            f"no response ended for {IN_A_ROW} iterations, {why}: raise rollout.max_new_tokens="
            f"{seen.config.rollout.max_new_tokens} or add rollout.stop_token_ids",
        )

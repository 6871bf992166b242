"""How good the responses to held-out prompts are: the same prompts with the same noise each time.

A run's own evaluations go into its log as `eval/...`; `ppo-jax eval` tells more of a model.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import data, quality
from ppo_jax.agreement import on_first
from ppo_jax.config import RunOptions
from ppo_jax.decoder import Decoder
from ppo_jax.evaluate import make_examination, response_texts
from ppo_jax.experiment import JUDGE
from ppo_jax.host_turns import make_host_examination
from ppo_jax.prepare import Run
from ppo_jax.processes import is_writer
from ppo_jax.programs import call_rewards
from ppo_jax.quality import PerPrompt
from ppo_jax.reward import Scores, combine_scores
from ppo_jax.rewards.base import ROWS
from ppo_jax.sharding import put_batch, put_replicated
from ppo_jax.tokenizer import decode
from ppo_jax.types import Array, Prompts, PyTree, Rollout, TrainState

EVAL_KEY = 2**31 - 6  # folded in for held-out prompts: no iteration has this number
EVAL = "eval/"  # before the name of a held-out metric, in the log
EVAL_SECONDS = "time/eval"  # metric that every line with such ones has
EVAL_FAILED = f"{EVAL}failed"  # 1 in a line that lacks them, for a reward or a judge that failed
WORDS = (1, 2, 3)  # n of distinct-n
DIVERSITY = tuple(f"{EVAL}distinct_{n}" for n in WORDS)  # of which responses may have none

# (prompts on the devices, key) -> (rollout, raw device scores, `evaluate.response_logprobs`)
Ask = Callable[[Prompts, Array], tuple[Rollout, dict[str, Array], dict[str, Array]]]
Raw = dict[str, np.ndarray]  # reward part -> [B] or [B, T]


class Answers(NamedTuple):
    """Responses to the rows of a data set, in its order, the K samples of a row side by side."""

    samples: int  # K
    responses: list[str]  # with an environment the whole dialogues
    written: list[str]  # of them what the model wrote
    ids: list[list[int]]
    ended_N: np.ndarray  # bool
    scores_N: np.ndarray  # by the reward; NaN: none
    verdicts_N: np.ndarray | None  # by the judge, where there is one; NaN: none
    parts: Raw  # [N] of each part, and of each measure of an environment
    sums: Raw  # [N], as `evaluate.response_logprobs` names them

    @property
    def kl_N(self) -> np.ndarray:
        """The k1 estimate of each response, nats."""
        return self.sums["logprob"] - self.sums["ref_logprob"]

    @property
    def decided_PK(self) -> np.ndarray:
        """What decides about each response: the judge where there is one, else the reward."""
        return self.by_prompt(self.scores_N if self.verdicts_N is None else self.verdicts_N)

    def by_prompt(self, x_N: np.ndarray) -> np.ndarray:
        """[N] as [P, K], float64."""
        return x_N.astype(np.float64).reshape(-1, self.samples)


def is_judged(run: RunOptions, step: int) -> bool:
    """Whether the state after `step` iterations is to be evaluated on held-out rows."""
    every = run.eval_every
    return every is not None and (step % every == 0 or step == run.iterations)


def best_is_judged(run: RunOptions) -> bool:
    """Whether the best checkpoint is the one that does best on held-out rows."""
    return run.keep_best is not None and run.keep_best.removeprefix("-").startswith(EVAL)


def make_answers(run: Run) -> Callable[[TrainState, PyTree], Answers | None]:
    """`answer(state, frozen)`: what `answer_all` gives of `run.held_out`, each row continued once.
    It neither alters the state nor draws from its key."""
    held = run.held
    examine = make_examiner(held)

    def answer(state: TrainState, frozen: PyTree) -> Answers | None:
        temperature = run.hparams.temperature
        ask = lambda *asked: examine(state.params, state.ref, frozen, temperature, *asked)
        return answer_all(held, ask, seed=run.config.run.seed)

    return answer


def make_examiner(run: Run, *, greedy: bool = False, reference: Decoder | None = None):
    """`evaluate.make_examination` of this run, turn by turn with an environment in Python."""
    if run.host_env is None:
        return make_examination(run.setup, greedy=greedy, reference=reference)
    return make_host_examination(run, run.host_env, EVAL_KEY, greedy=greedy, reference=reference)


def metrics(answers: Answers) -> dict[str, float]:
    """`eval/...` metrics, for the log. What these responses do not have is left out: n-grams where
    none is as long, and a reward of some rows alone where it is of none of these."""
    found = {name: quality.value(number) for name, number in numbers(answers).items()}
    found = {name: x for name, x in found.items() if found.get(name + ROWS) != 0}
    spread = {f"distinct_{n}": quality.distinct(answers.written, n) for n in WORDS}
    found |= {name: x for name, x in spread.items() if not math.isnan(x)}
    found["unscored"] = float(np.sum(~np.isfinite(answers.scores_N)))
    if answers.verdicts_N is not None:
        found["unjudged"] = float(np.sum(~np.isfinite(answers.verdicts_N)))
    return {EVAL + name: x for name, x in found.items()}


def numbers(answers: Answers) -> dict[str, PerPrompt]:
    """What is said of the responses, over their prompts. A part has the name it has as a reward."""
    over_prompts = lambda x_N: quality.mean_of_samples(answers.by_prompt(x_N))
    tokens_P = answers.by_prompt(answers.sums["tokens"]).sum(axis=1)
    over_tokens = lambda x_N: PerPrompt(answers.by_prompt(x_N).sum(axis=1), tokens_P)
    found = {name: over_prompts(x_N) for name, x_N in answers.parts.items()}
    if answers.verdicts_N is not None:
        found["judge"] = over_prompts(answers.verdicts_N)
    return found | {
        "scores": over_prompts(answers.scores_N),
        "kl": over_prompts(answers.kl_N),  # nats a response
        "entropy": over_tokens(answers.sums["entropy"]),  # nats a token
        # Of the reference as it is, whatever the temperature: of all tokens together.
        "ref_perplexity": over_tokens(-answers.sums["ref_plain"])._replace(log=True),
        "length_mean": over_prompts(answers.sums["tokens"]),  # that it wrote
        "ended": over_prompts(answers.ended_N),
    }


def answer_all(run: Run, ask: Ask, *, samples: int = 1, seed: int) -> Answers | None:
    """All rows of `run.dataset` answered `samples` times and scored, in batches as an iteration's.

    The noise of a sample depends on the seed, its row and its number alone. All processes ask, the
    first one calls rewards in Python, and it alone has the answers; elsewhere None. Raises
    RewardError in all.
    """
    key, pieces = put_replicated(run.setup.mesh, question_key(seed)), []
    for prompts, count in questions(run, samples):
        found = jax.device_get(ask(put_batch(run.setup.mesh, prompts), key))
        pieces.append(answers_of(run, samples, count, prompts, *found))
    return joined(pieces) if is_writer() else None


def question_key(seed: int) -> Array:
    """By which the responses to held-out prompts are drawn."""
    return jax.random.fold_in(jax.random.key(seed), EVAL_KEY)


def questions(run: Run, samples: int) -> Iterator[tuple[Prompts, int]]:
    """All rows of `run.dataset`, `samples` times each, in batches as an iteration's; and how many
    sequences of each count: the last batch is filled up with its last one."""
    size, total = run.config.rollout.batch_size, samples * len(run.dataset.prompts)
    for start in range(0, total, size):
        index_B = np.minimum(np.arange(start, start + size), total - 1)
        prompts = data.prompt_rows(
            run.dataset, index_B // samples, pad_id=run.pad_id, width=run.width
        )
        numbers_B = (index_B % samples).astype(np.int32)
        yield prompts._replace(sample_index_B=numbers_B), min(size, total - start)


def answers_of(
    run: Run, samples: int, count: int, prompts: Prompts, rollout: Rollout, raw: Raw, sums: Raw
) -> Answers | None:
    """The answers of a batch, of which `count` rows count, on the first process."""
    prompts, rollout, raw, sums = jax.tree.map(
        lambda x: np.asarray(x)[:count], (prompts, rollout, raw, sums)
    )
    raw = score_everywhere(run, prompts, rollout, raw, EVAL_KEY)
    if not is_writer():
        return None
    judged = lambda wanted: {k: x for k, x in raw.items() if k.startswith(JUDGE) == wanted}
    scores, verdicts = total(run, judged(False), rollout), total(run, judged(True), rollout)
    ids_BT, mask_BT = np.asarray(rollout.response_ids_BT), np.asarray(rollout.mask_BT)
    parts = scores.parts | verdicts.parts
    parts |= {f"env/{name}": x_B for name, x_B in (rollout.measures or {}).items()}
    return Answers(
        samples,
        response_texts(run.tokenizer, ids_BT, np.asarray(rollout.lengths_B)),
        [decode(run.tokenizer, ids[own > 0]) for ids, own in zip(ids_BT, mask_BT, strict=True)],
        [ids[:n].tolist() for ids, n in zip(ids_BT, rollout.lengths_B, strict=True)],
        np.asarray(rollout.ended_B),
        np.asarray(scores.total_B),
        np.asarray(verdicts.total_B) if judged(True) else None,
        {name: np.asarray(x_B) for name, x_B in parts.items()},
        sums,
    )


def joined(pieces: list[Answers]) -> Answers:
    """The answers of all batches; a part without a name in some of them has no scores there."""
    join = lambda of: np.concatenate([of(piece) for piece in pieces])
    names = dict.fromkeys(name for piece in pieces for name in piece.parts)
    lack = lambda piece: np.full(len(piece.ids), np.nan, np.float32)
    return Answers(
        pieces[0].samples,
        [text for piece in pieces for text in piece.responses],
        [text for piece in pieces for text in piece.written],
        [ids for piece in pieces for ids in piece.ids],
        join(lambda piece: piece.ended_N),
        join(lambda piece: piece.scores_N),
        None if pieces[0].verdicts_N is None else join(lambda piece: piece.verdicts_N),
        {name: join(lambda piece, n=name: piece.parts.get(n, lack(piece))) for name in names},
        {name: join(lambda piece, n=name: piece.sums[n]) for name in pieces[0].sums},
    )


def score_everywhere(run: Run, prompts: Prompts, rollout: Rollout, raw: Raw, number: int) -> Raw:
    """The raw scores of these responses by the rewards of the program, and on the first process
    those by the rewards in Python, which it alone calls; `number` is what they are seeded by.

    RewardError in all processes if one of them fails.
    """
    if not run.has_host_reward:
        return raw

    def call() -> None:
        lengths_B = np.asarray(rollout.lengths_B)
        texts = response_texts(run.tokenizer, np.asarray(rollout.response_ids_BT), lengths_B)
        found = call_rewards(run, prompts, list(range(len(texts))), texts, number)
        nothing = np.full(len(texts), np.nan, np.float32)
        for part, here in found.items():
            raw.update(here.scores or {part: nothing})

    on_first("scored", call)
    return raw


def total(run: Run, raw: Raw, rollout: Rollout) -> Scores:
    """The parts weighed and summed, as in training."""
    raw_here, here = jax.tree.map(jnp.asarray, (raw, rollout))
    on_error = run.config.reward.on_error
    return combine_scores(raw_here, run.setup.weights, here, on_error=on_error)

"""Writing a text token by token as a Gymnasium environment, for ordinary RL code.

    env = gymnasium.make("ppo_jax.text_env:ppo_jax/Text-v0", prompts="prompts.jsonl", reward=...)

The compiled trainer does not run through here: it samples whole responses on the device. The
environment lets any agent that speaks Gymnasium write for the same rewards; `text_policy` drives it
with a model of this project.
"""

import functools
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax import data
from ppo_jax.classifier import open_alone
from ppo_jax.columns import check_texts, numeric_column, text_column
from ppo_jax.config import DataOptions
from ppo_jax.errors import ConfigError
from ppo_jax.responses import as_rollout
from ppo_jax.returned import as_code
from ppo_jax.reward import Scores, combine_scores
from ppo_jax.rewards.base import check_columns, parse_rewards, text_columns
from ppo_jax.rewards.checks import nearest_whole, whole_argument
from ppo_jax.rewards.host import SEEDS, Rows, call
from ppo_jax.text import install_hint, visible
from ppo_jax.tokenizer import character_tokenizer, decode, encode_prompt
from ppo_jax.types import Prompts, Rollout

try:
    import gymnasium  # pyright: ignore
    from gymnasium import spaces  # pyright: ignore
except ImportError:
    hint = install_hint("gymnasium", "gym")
    raise ConfigError(f"ppo_jax.text_env: needs gymnasium: {hint}") from None

NOTHING = -1  # in an observation, where no token stands
ANY_LENGTH = 2**30  # at most; prompts are held against the observation's width instead
OPTIONS = "options of reset"  # in the place of file:line


class Episode(NamedTuple):
    """What one text begins from."""

    dataset: data.Dataset
    row: int
    prompts: Prompts  # that row, for rewards on the device
    seed: int  # of host rewards that draw at random


class PPOTextEnv(gymnasium.Env):
    """State: the tokens so far. Action: the next one. Reward: 0, and at the end the text's score.

    Observations are `Box(-1, vocab_size - 1, (max_prompt_tokens + max_steps,), int32)`: the tokens
    of the prompt, those written, then -1. Actions are `Discrete(vocab_size)`. An episode is
    `terminated` by a text that ends with `stop` (None: by no text) or by an EOS, `truncated` after
    `max_steps` tokens. `info` holds the `text` written so far and at the end `scores`, each part's
    own, unweighted.

    `tokenizer` turns tokens to text; None: one token a character, those of `string.printable`, of
    which the first `vocab_size` (100, unless given) are there. `reward` is any reward that an
    experiment may name, on the device or the host, a reward model by its path, or a weighted list;
    the token that ended the text is its stop token. None: 1 for a text that ends with `stop` or
    reaches `max_steps`, so 0 only after an EOS before that: with a discount, the sooner the
    better.

    `prompts` is a data file, of whose rows one is drawn for each episode by the environment's own
    seed; None: texts begin from nothing, for which a `text_policy` needs its `begin`.
    `reset(options={"prompt": ..., **columns})` sets a prompt and the columns that rewards read;
    without a file, `max_prompt_tokens` is the room for it.

    Raises ConfigError, DataError and RewardError where training would.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 10}

    def __init__(
        self,
        max_steps: int = 100,
        vocab_size: int | None = None,
        *,
        tokenizer: Any = None,
        reward: Any = None,
        prompts: str | None = None,
        max_prompt_tokens: int = 0,
        stop: str | None = ".",
        eos_token_ids: Sequence[int] | None = None,
        render_mode: str | None = None,
    ):
        max_steps = whole_argument("max_steps", max_steps, 1, ANY_LENGTH)
        max_prompt_tokens = whole_argument("max_prompt_tokens", max_prompt_tokens, 0, ANY_LENGTH)
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"render_mode={render_mode}: nearest valid: ansi")
        self.render_mode, self.max_steps, self.stop = render_mode, max_steps, stop
        self.tokenizer, self.vocab_size = _tokens(tokenizer, vocab_size)
        self.by_character = tokenizer is None
        own = frozenset({self.tokenizer.eos_token_id} - {None})
        self.eos_token_ids = own if eos_token_ids is None else _ids(eos_token_ids, self.vocab_size)
        self.parts = [] if reward is None else parse_rewards(reward)
        self._check_rewards()
        self.dataset = None if prompts is None else self._read(prompts)
        if self.dataset is not None:
            max_prompt_tokens = max(max_prompt_tokens, data.prompt_width(self.dataset))
        self.room = max_prompt_tokens
        self._rules, self._tables = self._open_rewards()
        self.action_space = spaces.Discrete(self.vocab_size)
        shape = (self.room + max_steps,)
        self.observation_space = spaces.Box(NOTHING, self.vocab_size - 1, shape, np.int32)
        self.episode: Episode | None = None
        self.ids: list[int] = []
        self.over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """(observation, info) of a new text."""
        super().reset(seed=seed)
        if options:
            dataset, row = self._one_row(dict(options)), 0
        elif self.dataset is not None:
            dataset, row = self.dataset, int(self.np_random.integers(len(self.dataset.lines)))
        else:
            dataset, row = self._one_row({"prompt": ""}), 0
        prompts = data.prompt_rows(dataset, np.array([row]), pad_id=0, width=max(1, self.room))
        draw = int(self.np_random.integers(2**31))
        self.episode = Episode(dataset, row, prompts, draw)
        self.ids, self.over = [], False
        return self._observation(), {"text": ""}

    def step(self, action: Any):
        """(observation, reward, terminated, truncated, info) after one more token."""
        if self.episode is None or self.over:
            raise gymnasium.error.ResetNeeded("the text has ended: call reset() for another one")
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"{action!r} is not in {self.action_space}")
        self.ids.append(int(action))
        text = self._text()
        stopped = self.stop is not None and text.endswith(self.stop)
        terminated = stopped or self.ids[-1] in self.eos_token_ids
        truncated = not terminated and len(self.ids) == self.max_steps
        self.over, reward = terminated or truncated, 0.0
        info: dict[str, Any] = {"text": text}
        if self.over and not self.parts:
            reward = float(stopped or len(self.ids) == self.max_steps)
        elif self.over:
            scores = self._scores(self.episode, text, terminated)
            reward = float(scores.total_B[0])
            info["scores"] = {name: float(score[0]) for name, score in scores.parts.items()}
        return self._observation(), reward, terminated, truncated, info

    def render(self) -> str | None:
        """Prompt and text in one line, what controls or hides escaped."""
        if self.render_mode is None:
            return None
        return visible(decode(self.tokenizer, self._prompt_ids()) + self._text())

    def _text(self) -> str:
        return decode(self.tokenizer, self.ids)

    def _prompt_ids(self) -> list[int]:
        return [] if self.episode is None else self.episode.dataset.prompt_ids[self.episode.row]

    def _observation(self) -> np.ndarray:
        ids = [*self._prompt_ids(), *self.ids]
        row = np.full(self.room + self.max_steps, NOTHING, np.int32)
        row[: len(ids)] = ids
        return row

    def _scores(self, episode: Episode, text: str, ended: bool) -> Scores:
        """Of the whole text, by the rewards as training calls them."""
        rollout = as_rollout(episode.prompts, [self.ids], self.max_steps)
        rollout = rollout._replace(ended_B=np.array([ended]))  # pyright: ignore
        raw = dict(self._device_scores(rollout, episode.prompts.columns, self._tables))
        columns = {SEEDS: [episode.seed]} | data.batch_columns(episode.dataset, episode.prompts)
        rows = Rows([0], data.batch_prompts(episode.dataset, episode.prompts), [text], columns)
        for part in self.parts:
            if part.host is not None:
                raw |= call(part, rows).scores
        weights = {part.name: part.weight for part in self.parts}
        return combine_scores(
            {name: jax.numpy.asarray(x) for name, x in raw.items()}, weights, rollout
        )

    @functools.cached_property
    def _device_scores(self):
        """All rewards on the device as one program, for a single row."""
        rules = self._rules

        def scores(rollout: Rollout, columns: dict[str, Any], tables: dict[str, Any]):
            return {name: rule(rollout, columns, tables[name]) for name, rule in rules.items()}

        return jax.jit(scores)

    def _check_rewards(self) -> None:
        for part in self.parts:
            if part.device is None and part.host is None and part.learned is None:
                raise ConfigError(f"reward {part.name}: not a function that a text can be given to")

    def _open_rewards(self) -> tuple[dict[str, Callable], dict[str, Any]]:
        """What the rewards on the device compute, and what they look up, by name."""
        rules, tables = {}, {}
        for part in self.parts:
            if part.device is not None:
                rules[part.name] = part.device.fn
                tables[part.name] = part.device.make_tables(self.tokenizer, self.vocab_size)
            elif part.learned is not None:
                reward, longest = part.learned._replace(name=part.name), self.room + self.max_steps
                found = open_alone(reward, self.tokenizer, self.vocab_size, longest)
                rules[part.name], tables[part.name] = found
        return rules, tables

    def _read(self, path: str) -> data.Dataset:
        options = DataOptions(path=path, max_prompt_tokens=ANY_LENGTH)
        texts = text_columns(self.parts)
        dataset = data.load_dataset(
            options, self.tokenizer, vocab_size=self.vocab_size, texts=texts
        )
        for part in self.parts:
            check_columns(part, {*dataset.columns, SEEDS})
        for prompt, line in zip(dataset.prompts, dataset.lines, strict=True):
            self._check_characters(prompt, f"{dataset.path}:{line}")
        return dataset

    def _one_row(self, options: dict[str, Any]) -> data.Dataset:
        """What `reset` was told, as a data set of one row."""
        prompt = options.pop("prompt", "")
        self._check_characters(prompt, OPTIONS)
        ids = encode_prompt(self.tokenizer, prompt, where=OPTIONS) if prompt else []
        if len(ids) > self.room:
            raise ConfigError(
                f"{OPTIONS}: the prompt has {len(ids)} tokens; give max_prompt_tokens={len(ids)} "
                f"to the environment, which has room for {self.room}"
            )
        texts = text_columns(self.parts)
        check_texts(options, texts, OPTIONS)
        for part in self.parts:
            check_columns(part, {*options, SEEDS})
        columns = {name: [value] for name, value in options.items()}
        arrays = {name: numeric_column(values) for name, values in columns.items()}
        return data.Dataset(
            prompts=[prompt],
            prompt_ids=[ids],
            columns=columns,
            numeric={name: array for name, array in arrays.items() if array is not None},
            lines=[1],
            dropped=0,
            truncated=0,
            path=OPTIONS,
            texts={
                name: text_column(columns[name], self.tokenizer, self.vocab_size, [OPTIONS])
                for name in texts
            },
        )

    def _check_characters(self, prompt: Any, where: str) -> None:
        """What has no id would be left out of the prompt unseen."""
        if self.by_character and isinstance(prompt, str):
            lacking = sorted(set(prompt) - set(string.printable[: self.vocab_size]))
            if lacking:
                raise ConfigError(
                    f"{where}: the prompt has {lacking[0]!r}, which is none of the "
                    f"{self.vocab_size} characters; give a tokenizer"
                )


def _tokens(tokenizer: Any, vocab_size: int | None) -> tuple[Any, int]:
    """(tokenizer, how many ids there are)"""
    if tokenizer is not None:
        size = len(tokenizer) if vocab_size is None else vocab_size
        return tokenizer, whole_argument("vocab_size", size, 1, ANY_LENGTH)
    most = len(string.printable)
    size = most if vocab_size is None else whole_argument("vocab_size", vocab_size, 1, ANY_LENGTH)
    if size > most:
        why = f"there are {most} characters; nearest valid: {most}, or another tokenizer"
        raise ConfigError(f"vocab_size={size}: {why}")
    return character_tokenizer(string.printable[:size]), size


def _ids(ids: Any, vocab_size: int) -> frozenset[int]:
    if not isinstance(ids, Iterable) or isinstance(ids, str | bytes):
        near = nearest_whole(ids, 0, vocab_size - 1)
        raise ConfigError(
            f"eos_token_ids={as_code(ids)}: must be a list of ids; nearest valid: [{near}]"
        )
    return frozenset(whole_argument("eos_token_ids", i, 0, vocab_size - 1) for i in ids)


gymnasium.register("ppo_jax/Text-v0", entry_point="ppo_jax.text_env:PPOTextEnv")

"""Sampled responses of a run token by token: what its model, its critic and the model it began from
say of each of them."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import manifest
from ppo_jax.config import Config, ModelOptions, ParallelOptions
from ppo_jax.config_io import load_config
from ppo_jax.critics import check_writes, load_critic
from ppo_jax.decoder import make_decoder
from ppo_jax.errors import ConfigError
from ppo_jax.gae import compute_gae
from ppo_jax.loading import Source, load_trunk, open_source
from ppo_jax.metrics import read_metrics
from ppo_jax.report_stats import as_number
from ppo_jax.responses import as_rollout, end_token
from ppo_jax.reward import kl_estimate, shape_rewards
from ppo_jax.run_folder import RunFolder, run_folder
from ppo_jax.scoring import Scorer, forward, read, response_states, values_from
from ppo_jax.sharding import batch_devices, make_mesh, put_batch, put_replicated
from ppo_jax.tokenizer import check_vocabulary, decode, encode_prompt
from ppo_jax.types import Prompts, PyTree, Rollout

COEF = "objective/kl_coef"
LOGPROB, RATIO, KL = "log-probability", "log-ratio to the reference", "KL to the reference"
VALUE, ADVANTAGE = "value", "advantage"
UNITS = {
    LOGPROB: "nats, of the model",
    RATIO: "nats: the model's log-probability minus the reference's",
    KL: "nats, exact: over the whole vocabulary at this place",
    VALUE: "the critic's, before the token",
    ADVANTAGE: "GAE of the KL penalty and the row's whole score at its end, before whitening",
}


class TokenRow(NamedTuple):
    """A response in tokens, with one number a token by the name of what it says."""

    sample: Mapping[str, Any]  # its row of samples.jsonl
    ids: list[int]
    tokens: list[str]
    numbers: dict[str, np.ndarray]


def token_rows(root: Path, samples: Sequence[Mapping[str, Any]], count: int) -> list[TokenRow]:
    """The last `count` samples that have a response, their text in tokens again.

    All numbers are of the run's newest checkpoint at its temperature, over the whole vocabulary;
    the reference is the model that the run began from. A critic's are there where the run has one,
    advantages where the sample also has a score. Raises ConfigError, also where an environment
    wrote a part of a response, CheckpointError or DataError.
    """
    folder = run_folder(root)
    usable = [row for row in samples if isinstance(row.get("response"), str) and row["response"]]
    if not usable:
        raise ConfigError(f"tokens={count}: {folder.samples} holds no response; nearest: 0")
    rows = usable[-count:]
    for row in rows:
        if row.get("written", row.get("tokens")) != row.get("tokens"):
            where = f"{folder.samples}: step {row['step']}"
            raise ConfigError(f"tokens={count}: {where}: an environment wrote in it; nearest: 0")
    config, source = load_config(folder.config), open_source(str(root))
    check_writes(source, "report")
    start = open_source(
        config.model.path,
        config.model.shape,
        seed=config.run.seed,
        base_path=config.model.base_path,
    )
    stops = {*source.config.eos_token_ids, *config.rollout.stop_token_ids}
    ids = [_ids(source, stops, row, f"{folder.samples}: step {row['step']}") for row in rows]
    rollout = _rollout(ids, source.config.pad_token_id)
    found = _look(config, source, start, rollout, with_critic=_has_critic(folder, config))
    if VALUE in found:
        coefs = _coefficients(folder, rows)
        found[ADVANTAGE] = _advantages(config, rows, rollout, found, coefs)
    cut = lambda x_BT, row: np.asarray(x_BT[row, : len(ids[row][1])], np.float64)
    result = []
    for n, row in enumerate(rows):
        numbers = {name: cut(x_BT, n) for name, x_BT in found.items()}
        numbers = {name: x_T for name, x_T in numbers.items() if np.isfinite(x_T).all()}
        texts = [_text(source.tokenizer, token) for token in ids[n][1]]
        result.append(TokenRow(row, ids[n][1], texts, numbers))
    return result


def _ids(
    source: Source, stops: Collection[int], row: Mapping[str, Any], where: str
) -> tuple[list[int], list[int]]:
    """(prompt, response) in tokens; a response that ended has its EOS, if no token of its text is
    what stopped it."""
    prompt = encode_prompt(source.tokenizer, row.get("prompt"), where=where)
    response = list(source.tokenizer.encode(row["response"], add_special_tokens=False))
    eos = end_token(source.tokenizer, source.config.eos_token_ids)
    stopped = bool(response) and response[-1] in stops
    if row.get("ended") is True and eos is not None and not stopped:
        response.append(eos)
    check_vocabulary([*prompt, *response], source.config.vocab_size, where)
    if len(prompt) + len(response) > source.config.max_positions:
        raise ConfigError(f"{where}: more tokens than the model's {source.config.max_positions}")
    return prompt, response


def _rollout(ids: Sequence[tuple[list[int], list[int]]], pad_id: int) -> Rollout:
    width = max(len(prompt) for prompt, _ in ids)
    ids_BP: Any = np.full((len(ids), width), pad_id, np.int32)
    mask_BP: Any = np.zeros((len(ids), width), bool)
    for n, (prompt, _) in enumerate(ids):
        ids_BP[n, width - len(prompt) :], mask_BP[n, width - len(prompt) :] = prompt, True
    index_B: Any = np.arange(len(ids), dtype=np.int32)
    prompts = Prompts(ids_BP, mask_BP, index_B, 0 * index_B, {})
    responses = [response for _, response in ids]
    return as_rollout(prompts, responses, max(map(len, responses)))


def _has_critic(folder: RunFolder, config: Config) -> bool:
    step = manifest.latest_step(folder.checkpoints)
    facts = {} if step is None else manifest.read_record(folder.checkpoints, step)["facts"]
    return config.ppo.advantage == "gae" and facts.get("kind") == "train"


def _look(
    config: Config, source: Source, start: Source, rollout: Rollout, *, with_critic: bool
) -> dict[str, np.ndarray]:
    """{name: [B, T]} by one program over all rows."""
    mesh = make_mesh(ParallelOptions())
    decoder = make_decoder(source.config, ModelOptions(), mesh)
    critic = load_critic(source) if with_critic else None
    other = decoder if critic is None else make_decoder(critic.config, ModelOptions(), mesh)
    scorer = Scorer(decoder, other, (), 0, ModelOptions().logit_chunk * batch_devices(mesh))
    value = None if critic is None else {"head": critic.head, "trunk": critic.trunk}
    models = put_replicated(mesh, (load_trunk(source), load_trunk(start), value))
    rows, devices = len(rollout.lengths_B), batch_devices(mesh)
    filled = np.arange(-(-rows // devices) * devices) % rows  # so that all devices have as many
    batch = put_batch(mesh, jax.tree.map(lambda x: np.asarray(x)[filled], rollout))
    program = jax.jit(functools.partial(_pass, scorer))
    found = jax.device_get(program(models, batch, jnp.float32(config.hparams.temperature)))
    return {name: np.asarray(x_BT)[:rows] for name, x_BT in found.items()}


def _pass(scorer: Scorer, models: PyTree, rollout: Rollout, temperature) -> dict[str, Any]:
    policy, start, value = models
    reading = read(rollout)
    before = forward(scorer, start, reading, temperature)
    reference = start, response_states(reading, before.hidden_ZND)
    out = forward(scorer, policy, reading, temperature, reference=reference)
    found = {
        LOGPROB: out.logprobs_BT,
        RATIO: out.logprobs_BT - before.logprobs_BT,
        KL: out.kl_BT,
    }
    if value is not None:
        found[VALUE] = values_from(value, scorer, reading, out.hidden_ZND)[0]
    return found


def _coefficients(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The KL coefficient [B, 1] of each sample's iteration."""
    logged = {row["step"]: as_number(row.get(COEF)) for row in read_metrics(folder.metrics)}
    return np.asarray([[logged.get(row["step"], np.nan)] for row in rows], np.float32)


def _advantages(
    config: Config,
    rows: Sequence[Mapping[str, Any]],
    rollout: Rollout,
    found: Mapping[str, np.ndarray],
    coefs_B1: np.ndarray,
) -> np.ndarray:
    """GAE [B, T] of the recorded scores, NaN in rows that have none. What a run does with its whole
    batch (normalised scores, whitening) is left out."""
    options = dataclasses.replace(config.reward, whiten_rewards=False)
    kl_BT = jnp.asarray(found[KL])
    if options.kl_estimator != "full":
        kl_BT = kl_estimate(jnp.asarray(found[RATIO]), jnp.zeros_like(kl_BT), options.kl_estimator)
    scores_B = jnp.asarray([as_number(row.get("score")) for row in rows], jnp.float32)
    mask_BT = jnp.asarray(rollout.mask_BT)
    on_device = jax.tree.map(jnp.asarray, rollout)
    rewards_BT = shape_rewards(
        options, scores_B, jnp.zeros_like(mask_BT), kl_BT, jnp.asarray(coefs_B1), on_device, mask_BT
    )
    values_BT, hparams = jnp.asarray(found[VALUE]), config.hparams
    gamma, lam = jnp.float32(hparams.gamma), jnp.float32(hparams.lam)
    return np.asarray(compute_gae(rewards_BT, values_BT, mask_BT, gamma=gamma, lam=lam)[0])


def _text(tokenizer: Any, token: int) -> str:
    """A token's own text; a special one by its name."""
    return decode(tokenizer, [token]) or str(tokenizer.convert_ids_to_tokens(token))

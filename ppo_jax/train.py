"""The training run: open everything, then dispatch step k before reading the metrics of k - 1."""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import checkpoint, console, data
from ppo_jax.config import Config, HParams
from ppo_jax.errors import ConfigError, NumericalError
from ppo_jax.evaluate import make_evaluation, pad_rows, response_texts, score_on_host
from ppo_jax.experiment import Experiment
from ppo_jax.hf_folder import write_model_config
from ppo_jax.kl_control import INITIAL_KL_ERROR
from ppo_jax.loading import Source, load_trunk, open_source, resolve_options
from ppo_jax.metrics import open_metrics, read_metrics, throughput, to_host
from ppo_jax.model import (
    Decoder,
    cast_weights,
    init_value_head,
    make_decoder,
    stack_layers,
)
from ppo_jax.optimizer import make_optimizer
from ppo_jax.rewards.base import Part, check_columns, parse_rewards
from ppo_jax.run_folder import RunFolder, open_run, reconcile, write_env, write_status
from ppo_jax.sharding import make_mesh, put_batch, put_replicated
from ppo_jax.step import Setup, cut_step, train_step
from ppo_jax.types import Prompts, PyTree, Rollout, ScoreMoments, TrainState
from ppo_jax.validate import check_devices, check_model

SHOWN_KEY = 2**31 - 1  # folded in for the shown samples: no iteration has this number


class Run(NamedTuple):
    """What the loop works with; arrays are in `state` and `frozen` alone."""

    config: Config
    setup: Setup
    parts: list[Part]
    dataset: data.Dataset
    tokenizer: Any
    width: int  # prompt columns
    hparams: HParams


class Finished(NamedTuple):
    """An iteration that has been dispatched and not yet been read."""

    step: int
    prompts: Prompts
    metrics: dict
    rollout: Rollout
    scores_B: jax.Array
    times: dict[str, float]


def train(config: Config, experiment: Experiment) -> None:
    """Train to the end, or go on from the run folder's latest checkpoint."""
    began = time.monotonic()
    check_devices(config, len(jax.devices()))
    _use_compile_cache(config.run.compile_cache)
    source = open_source(config.model.path, config.model.shape)
    config = dataclasses.replace(config, model=resolve_options(config.model, source.config))
    dataset = data.load_dataset(
        config.data, source.tokenizer, vocab_size=source.config.vocab_size
    )
    check_model(config, source.config, data.prompt_width(dataset))
    parts = parse_rewards(experiment.reward)
    for part in parts:
        check_columns(part, dataset.columns)
    folder = open_run(config, experiment.name)
    write_env(folder)
    _keep_tokenizer(folder, source, config)
    run, state, frozen = prepare(config, source, dataset, parts)
    console.show_header(_facts(run, folder, experiment, state))
    with ExitStack() as stack:
        keep = config.run.keep
        manager = stack.enter_context(checkpoint.open_manager(folder.checkpoints, keep))
        state, start = _resume(manager, folder, state)
        if start >= config.run.iterations:
            print(f"{folder.root}: already complete at iteration {start}, nothing to do")
            return
        log = stack.enter_context(open_metrics(folder))
        write_status(folder, "running", start)
        try:
            _loop(run, folder, state, frozen, manager, log, start)
        except BaseException as error:
            write_status(folder, "failed", start, error=f"{type(error).__name__}: {error}")
            raise
    write_status(folder, "done", config.run.iterations)
    console.show_summary(read_metrics(folder.metrics), time.monotonic() - began, folder.root)


def prepare(
    config: Config, source: Source, dataset: data.Dataset, parts: list[Part]
) -> tuple[Run, TrainState, PyTree]:
    """Load the weights and build what the loop needs: (run, first state, frozen)."""
    mesh = make_mesh(config.parallel)
    decoder = make_decoder(source.config, config.model)
    layout = stack_layers if config.model.scan_layers == "scan" else lambda params: params
    policy = layout(load_trunk(source, seed=config.run.seed))
    value, critic = _value_tree(config, source, decoder, policy, layout)
    device_parts = [part for part in parts if part.device is not None]
    setup = Setup(
        config,
        mesh,
        decoder,
        critic,
        {part.name: part.device.fn for part in device_parts},
        {part.name: part.weight for part in parts},
    )
    state = init_state(config, {"policy": policy, "value": value})
    fixed = config.reward.reference == "fixed"
    tables = {
        part.name: part.device.make_tables(source.tokenizer, source.config.vocab_size)
        for part in device_parts
    }
    frozen = {"ref": cast_weights(decoder, policy) if fixed else None, "reward": tables}
    hparams = jax.tree.map(jnp.float32, config.hparams)
    width = data.prompt_width(dataset)
    run = Run(config, setup, parts, dataset, source.tokenizer, width, hparams)
    return run, put_replicated(mesh, state), put_replicated(mesh, frozen)


def _value_tree(config: Config, source: Source, decoder: Decoder, policy: PyTree, layout):
    """The value group's parameters and the decoder of its trunk."""
    if config.model.critic == "shared":
        return {"head": init_value_head(source.config)}, decoder
    if config.model.critic_path is None:
        return {"head": init_value_head(source.config), "trunk": policy}, decoder
    critic = open_source(config.model.critic_path)
    if critic.config.vocab_size != source.config.vocab_size:
        raise ConfigError(
            f"model.critic_path={config.model.critic_path}: its vocabulary has "
            f"{critic.config.vocab_size} tokens, the policy's {source.config.vocab_size}"
        )
    value = {"head": init_value_head(critic.config), "trunk": layout(load_trunk(critic))}
    return value, make_decoder(critic.config, config.model)


def init_state(config: Config, params: PyTree) -> TrainState:
    """The state before the first iteration."""
    transform = make_optimizer(config.optim)
    moving = config.reward.reference != "fixed"
    zero = jnp.zeros((), jnp.float32)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={group: transform.init(params[group]) for group in params},
        key=jax.random.key(config.run.seed),
        kl_coef=jnp.asarray(config.hparams.kl_coef, jnp.float32),
        kl_error=jnp.asarray(INITIAL_KL_ERROR, jnp.float32),
        moments=ScoreMoments(zero, zero, zero),
        nonfinite=jnp.zeros((), jnp.int32),
        tokens=zero,
        ref=params["policy"] if moving else None,
    )


def _loop(run: Run, folder: RunFolder, state, frozen, manager, log, start: int) -> None:
    config = run.config.run
    evaluate = make_evaluation(run.setup) if config.show_prompts > 0 else None
    before = _shown(run, evaluate, state, frozen)
    if before:
        console.show_samples("Before training" if start == 0 else "At the start", before)
    step_once = make_step(run)
    with console.show_progress(config.iterations, start=start, bar=config.progress) as progress:
        pending, clock = None, time.monotonic()
        for step in range(start, config.iterations):
            prompts = data.make_batch(
                run.dataset, run.config, step, pad_id=_pad_id(run), width=run.width
            )
            state, finished = step_once(state, frozen, step, prompts)
            if pending is not None:
                clock = _read(run, log, progress, pending, clock)
            pending = finished
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.iterations:
                clock = _read(run, log, progress, pending, clock)
                pending = None
                checkpoint.save(manager, step + 1, state)
                write_status(folder, "running", step + 1)
    if before:
        console.show_comparison(before, _shown(run, evaluate, state, frozen))


def make_step(run: Run) -> Callable:
    """`step(state, frozen, number, prompts) -> (state, Finished)`: dispatches one iteration.

    One program, or three with the host-side rewards between them; `run.time_phases` takes the
    three apart with waits, to time each.
    """
    mesh, timed = run.setup.mesh, run.config.run.time_phases
    host = any(part.host is not None for part in run.parts)
    if not host and not timed:
        program = jax.jit(
            lambda state, frozen, hparams, prompts: train_step(
                run.setup, state, frozen, hparams, prompts
            ),
            donate_argnums=0,
        )

        def fused(state, frozen, step: int, prompts: Prompts):
            state, metrics, rollout, scores_B = program(
                state, frozen, run.hparams, put_batch(mesh, prompts)
            )
            return state, Finished(step, prompts, metrics, rollout, scores_B, {})

        return fused

    sample, score, learn = cut_step(run.setup)

    def cut(state, frozen, step: int, prompts: Prompts):
        times = {}
        on_device = put_batch(mesh, prompts)
        rollout = _timed(times, "time/rollout", timed, sample, state, run.hparams, on_device)
        columns = on_device.columns
        scored, raw = _timed(
            times, "time/score", timed, score, state, frozen, run.hparams, rollout, columns
        )
        if host:
            clock = time.monotonic()
            raw = raw | put_batch(mesh, _host_scores(run, prompts, rollout))
            times["time/reward"] = time.monotonic() - clock
        state, metrics, rollout, scores_B = _timed(
            times, "time/update", timed, learn, state, frozen, run.hparams, rollout, scored, raw
        )
        return state, Finished(step, prompts, metrics, rollout, scores_B, times)

    return cut


def _timed(times: dict, name: str, wait: bool, program, *args):
    clock = time.monotonic()
    result = program(*args)
    if wait:
        jax.block_until_ready(result)
        times[name] = time.monotonic() - clock
    return result


def _host_scores(run: Run, prompts: Prompts, rollout: Rollout) -> dict[str, np.ndarray]:
    return score_on_host(
        run.parts,
        data.batch_prompts(run.dataset, prompts),
        response_texts(run.tokenizer, rollout),
        data.batch_columns(run.dataset, prompts),
    )


def _read(run: Run, log, progress, done: Finished, clock: float) -> float:
    """Wait for an iteration, log it, and stop on too many skipped updates. Returns the time."""
    metrics = to_host(done.metrics)
    now = time.monotonic()
    metrics |= done.times | {"time/iteration": now - clock}
    metrics["eps"] = run.config.rollout.batch_size / max(now - clock, 1e-9)
    metrics |= throughput(metrics, run.config.rollout.batch_size)
    log.write(done.step, metrics)
    log.write_samples(done.step, sample_rows(run, done)[: run.config.run.samples])
    progress(done.step + 1, metrics)
    in_row = metrics["update/nonfinite_in_row"]
    if in_row >= run.config.optim.max_nonfinite:
        raise NumericalError(
            f"iteration {done.step}: {in_row:.0f} updates in a row had a loss or gradient that is "
            f"not finite and were skipped (optim.max_nonfinite={run.config.optim.max_nonfinite}); "
            f"score {metrics['objective/scores']:.4g}, KL {metrics['objective/kl']:.4g}"
        )
    return now


def sample_rows(run: Run, done: Finished) -> list[dict]:
    """One row a sequence for samples.jsonl."""
    prompts = data.batch_prompts(run.dataset, done.prompts)
    lengths_B, ended_B, scores_B = jax.device_get(
        (done.rollout.lengths_B, done.rollout.ended_B, done.scores_B)
    )
    responses = response_texts(run.tokenizer, done.rollout)
    rows = zip(prompts, responses, scores_B, lengths_B, ended_B, strict=True)
    return [
        {
            "prompt": prompt,
            "response": response,
            "score": float(score) if math.isfinite(score) else str(score),
            "tokens": int(tokens),
            "ended": bool(ended),
        }
        for prompt, response, score, tokens, ended in rows
    ]


def _shown(run: Run, evaluate, state: TrainState, frozen: PyTree) -> list[dict]:
    """The fixed prompts continued by the policy as it stands, with their scores."""
    if evaluate is None:
        return []
    count = run.config.run.show_prompts
    prompts = data.fixed_prompts(run.dataset, count, pad_id=_pad_id(run), width=run.width)
    padded = pad_rows(run.setup, prompts)
    key = jax.random.fold_in(jax.random.key(run.config.run.seed), SHOWN_KEY)
    rollout, raw = evaluate(state.params, frozen, run.hparams.temperature, padded, key)
    raw = {name: np.asarray(score) for name, score in raw.items()}
    if any(part.host is not None for part in run.parts):
        raw |= _host_scores(run, jax.device_get(padded), rollout)
    weights = run.setup.weights
    total_B = sum(
        weights.get(name, weights.get(name.split("/")[0])) * score.reshape(len(score), -1).sum(1)
        for name, score in raw.items()
    )
    done = Finished(0, jax.device_get(padded), {}, rollout, total_B, {})
    return sample_rows(run, done)[: prompts.ids_BP.shape[0]]


def _resume(manager, folder: RunFolder, state: TrainState) -> tuple[TrainState, int]:
    step = checkpoint.latest_step(manager)
    if step is None:
        reconcile(folder, 0)
        return state, 0
    state = checkpoint.restore(manager, step, checkpoint.abstract_like(state))
    reconcile(folder, step)
    print(f"{folder.root}: resumed at iteration {step}")
    return state, step


def _keep_tokenizer(folder: RunFolder, source: Source, config: Config) -> None:
    """Tokenizer and model config go with the run, which can then be used without its origin."""
    if folder.tokenizer.is_dir():
        return
    source.tokenizer.save_pretrained(folder.tokenizer)
    write_model_config(folder.tokenizer, source.config, "float32")


def _use_compile_cache(path: str | None) -> None:
    if path is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(path).expanduser()))


def _pad_id(run: Run) -> int:
    return run.setup.decoder.config.pad_token_id


def _facts(run: Run, folder: RunFolder, experiment: Experiment, state: TrainState) -> dict:
    config = run.config
    count = sum(x.size for x in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    return {
        "experiment": f"{experiment.name} ({config.run.cell}, seed {config.run.seed})",
        "model": f"{config.model.path or 'random'}, {count / 1e6:.1f} M parameters, "
        f"{config.model.compute_dtype}, {config.model.critic} critic",
        "reward": ", ".join(f"{part.weight:g} x {part.name}" for part in run.parts),
        "data": f"{run.dataset.path}: {len(run.dataset.prompts)} prompts of at most {run.width} "
        f"tokens, {run.dataset.dropped} dropped, {run.dataset.truncated} truncated",
        "batch": f"{config.rollout.batch_size} sequences, at most "
        f"{config.rollout.max_new_tokens} new tokens",
        "devices": f"{run.setup.mesh.size} x {device.device_kind} ({device.platform})",
        "run folder": str(folder.root),
    }

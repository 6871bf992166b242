"""The training run: open everything, then dispatch step k before reading the metrics of k - 1."""

import dataclasses
import math
import time
from contextlib import ExitStack
from pathlib import Path

import jax

from ppo_jax import attention, checkpoint, console, data, freed_memory
from ppo_jax.config import Config, LoraOptions
from ppo_jax.config_io import load_config
from ppo_jax.errors import NumericalError
from ppo_jax.evaluate import make_evaluation, pad_rows, response_texts
from ppo_jax.experiment import Experiment
from ppo_jax.hf_folder import whole_folder
from ppo_jax.loading import Source
from ppo_jax.metrics import open_metrics, read_metrics, throughput, to_host
from ppo_jax.prepare import Run, open_run_of, prepare, read_dataset
from ppo_jax.profile import peak_memory_bytes, profiled
from ppo_jax.programs import (
    Finished,
    Stepper,
    compile_facts,
    host_scores,
    make_stepper,
    memory_bytes,
)
from ppo_jax.reward import combine_scores
from ppo_jax.run_folder import (
    RunFolder,
    open_run,
    reconcile,
    run_folder,
    run_path,
    write_env,
    write_status,
)
from ppo_jax.types import PyTree, TrainState
from ppo_jax.validate import check_devices
from ppo_jax.weights import save_beside

SHOWN_KEY = 2**31 - 1  # folded in for the shown samples: no iteration has this number


def train(config: Config, experiment: Experiment) -> None:
    """Train to the end, or go on from the run folder's latest checkpoint."""
    began = time.monotonic()
    check_devices(config, len(jax.devices()))
    _use_compile_cache(config.run.compile_cache)
    config = _as_begun(config, experiment.name)
    opened = open_run_of(config, experiment.reward, read_dataset)
    config, source, critic, dataset, parts = opened
    folder = open_run(config, experiment.name)
    weights = {part.name: part.weight for part in parts}
    write_env(folder, {"rewards": weights, "attention": _kernels(config, source, critic)})
    _keep_tokenizer(folder, source, config)
    with ExitStack() as stack:
        keep = config.run.keep
        manager = stack.enter_context(checkpoint.open_manager(folder.checkpoints, keep))
        start = checkpoint.latest_step(manager) or 0
        if start >= config.run.iterations:
            print(f"{folder.root}: already complete at iteration {start}, nothing to do")
            return
        run, state, frozen = prepare(config, source, dataset, parts, critic)
        freed_memory.give_back(caches=True)
        console.show_header(_facts(run, folder, experiment, state))
        state = _resume(manager, folder, state, start)
        log = stack.enter_context(open_metrics(folder))
        write_status(folder, "running", start)
        try:
            _loop(run, folder, state, frozen, manager, log, start)
        except BaseException as error:
            done = sum(1 for _ in read_metrics(folder.metrics))
            write_status(folder, "failed", done, error=f"{type(error).__name__}: {error}")
            raise
    write_status(folder, "done", config.run.iterations)
    console.show_summary(read_metrics(folder.metrics), time.monotonic() - began, folder.root)


def _loop(run: Run, folder: RunFolder, state, frozen, manager, log, start: int) -> None:
    """All iterations from `start`, with the fixed prompts continued before and after."""
    config = run.config.run
    evaluate = make_evaluation(run.setup) if config.show_prompts > 0 else None
    before = _shown(run, evaluate, state, frozen)
    if before:
        console.show_samples("Before training" if start == 0 else "At the start", before)
    stepper = make_stepper(run)
    with console.show_progress(config.iterations, start=start, bar=config.progress) as progress:
        pending, clock = None, time.monotonic()
        for step in range(start, config.iterations):
            prompts = data.make_batch(
                run.dataset, run.config, step, pad_id=run.pad_id, width=run.width
            )
            if config.profile_after > 0 and step == start + config.profile_after:
                if pending is not None:
                    clock = _read(run, log, progress, pending, clock)
                pending, (state, finished) = None, _profiled(stepper, state, frozen, step, prompts)
            else:
                state, finished = stepper.dispatch(state, frozen, step, prompts)
            if step == start:
                finished = finished._replace(times=finished.times | compile_facts(stepper))
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


def _profiled(stepper: Stepper, state, frozen, step: int, prompts):
    """Dispatch one iteration and wait for it, with the seconds of its phases in `times`."""
    programs = [program.as_text() for program in stepper.compiled.values()]
    (state, finished), seconds = profiled(
        lambda: stepper.dispatch(state, frozen, step, prompts), programs
    )
    times = finished.times | seconds | {"memory/program_bytes": memory_bytes(stepper.compiled)}
    return state, finished._replace(times=times)


def _read(run: Run, log, progress, done: Finished, clock: float) -> float:
    """Wait for an iteration, log it, and stop on too many skipped updates. Returns the time."""
    metrics = to_host(done.metrics)
    now = time.monotonic()
    metrics |= done.times | {"time/iteration": now - clock}
    metrics["memory/peak_bytes"] = peak_memory_bytes()
    metrics["eps"] = run.config.rollout.batch_size / max(now - clock, 1e-9)
    metrics |= throughput(metrics, run.config.rollout.batch_size)
    log.write(done.step, metrics)
    log.write_samples(done.step, sample_rows(run, done)[: run.config.run.samples])
    progress(done.step + 1, metrics)
    in_row = metrics["update/nonfinite_in_row"]
    if in_row >= run.config.optim.max_nonfinite:
        raise NumericalError(
            f"iteration {done.step}: {in_row:.0f} iterations in a row had a step with a loss or "
            f"gradient that is not finite; it was not applied (optim.max_nonfinite="
            f"{run.config.optim.max_nonfinite}); "
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
    prompts = data.fixed_prompts(run.dataset, count, pad_id=run.pad_id, width=run.width)
    padded = pad_rows(run.setup, prompts)
    key = jax.random.fold_in(jax.random.key(run.config.run.seed), SHOWN_KEY)
    rollout, raw = evaluate(state.params, frozen, run.hparams.temperature, padded, key)
    if run.has_host_reward:
        raw = raw | jax.device_put(host_scores(run, jax.device_get(padded), rollout))
    scores = combine_scores(raw, run.setup.weights, rollout)
    total_B = scores.sequence_B + scores.token_BT.sum(axis=1)
    done = Finished(0, jax.device_get(padded), {}, rollout, total_B, {})
    return sample_rows(run, done)[: prompts.ids_BP.shape[0]]


def _resume(manager, folder: RunFolder, state: TrainState, start: int) -> TrainState:
    """The state of the checkpoint `start`, and the logs cut back to it; a new run for 0."""
    if start > 0:
        state = checkpoint.restore(manager, start, checkpoint.abstract_like(state))
        print(f"{folder.root}: resumed at iteration {start}")
    reconcile(folder, start)
    return state


def _keep_tokenizer(folder: RunFolder, source: Source, config: Config) -> None:
    """Tokenizer and model config go with the run, which can then be used without its origin."""
    if folder.tokenizer.is_dir():
        return
    with whole_folder(folder.tokenizer) as new:
        save_beside(new, source.config, source.tokenizer, "float32", origin=source.files)


def _as_begun(config: Config, experiment: str) -> Config:
    """A hub id without a revision goes on from the commit that the run in this folder began with,
    wherever its branch stands by now; so does the base of adapters."""
    stored = run_folder(run_path(config.run, experiment)).config
    if not stored.is_file():
        return config
    began, names = load_config(stored).model, {}
    for key in ("path", "critic_path"):
        name, old = getattr(config.model, key), getattr(began, key)
        if name is not None and old is not None and old.partition("@")[0] == name:
            names[key] = old
    if config.model.base_path is None and names.get("path", config.model.path) == began.path:
        names["base_path"] = began.base_path
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **names))


def _kernels(config: Config, source: Source, critic: Source | None) -> dict[str, str]:
    """Which kernel the attention of whole sequences runs on, and why."""
    found = {}
    for name, model in {"policy": source, "critic": critic}.items():
        if model is not None:
            options = config.model.attention, model.config, config.model.compute_dtype
            found[name] = "{} ({})".format(*attention.choose(*options, jax.default_backend()))
    return found


def _use_compile_cache(path: str | None) -> None:
    if path is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(path).expanduser()))


def _adapters(lora: LoraOptions) -> str:
    return "" if lora.rank is None else f" (adapters of rank {lora.rank})"


def _sampler(config: Config) -> str:
    if config.rollout.weights != "int8":
        return ""
    cap = config.hparams.tis_cap
    corrected = "not corrected (hparams.tis_cap)" if cap is None else f"corrected up to {cap:g}"
    return f", sampled from 8-bit weights, their gap {corrected}"


def _facts(run: Run, folder: RunFolder, experiment: Experiment, state: TrainState) -> dict:
    config = run.config
    count = sum(x.size for x in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    return {
        "experiment": f"{experiment.name} ({config.run.cell}, seed {config.run.seed})",
        "model": f"{config.model.path or 'random'}, {count / 1e6:.1f} M parameters train"
        f"{_adapters(config.model.lora)}, {config.model.compute_dtype}, "
        f"{config.model.critic} critic",
        "reward": ", ".join(f"{part.weight:g} x {part.name}" for part in run.parts),
        "data": f"{run.dataset.path}: {len(run.dataset.prompts)} prompts of at most {run.width} "
        f"tokens, {run.dataset.dropped} dropped, {run.dataset.truncated} truncated",
        "batch": f"{config.rollout.batch_size} sequences, at most "
        f"{config.rollout.max_new_tokens} new tokens{_sampler(config)}",
        "devices": f"{run.setup.mesh.size} x {device.device_kind} ({device.platform})",
        "run folder": str(folder.root),
    }

"""The training run: open and check everything, go on from where it stands, close it in any case."""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from ppo_jax import checkpoint, console, freed_memory, lock, manifest, processes, removal, storage
from ppo_jax.agreement import check_alike, exchange, on_first
from ppo_jax.arguments import TrainArgs
from ppo_jax.config import Config
from ppo_jax.config_io import load_config, save_config
from ppo_jax.errors import ConfigError, DataError, PPOJaxError, Preempted, StorageError
from ppo_jax.experiment import Experiment
from ppo_jax.hf_folder import CONFIG, whole_folder
from ppo_jax.kind import PPO, Kind
from ppo_jax.loading import Source
from ppo_jax.loop import iterate
from ppo_jax.metrics import MetricsLog, open_metrics, read_metrics
from ppo_jax.preemption import Preemption
from ppo_jax.prepare import Opened
from ppo_jax.processes import is_writer
from ppo_jax.programs import check_own_rows
from ppo_jax.restore import Unreadable, abstract_like, restore
from ppo_jax.resume import check_nothing_lost, find_start
from ppo_jax.rewards.pool import open_pool
from ppo_jax.run_facts import file_sha256, run_facts
from ppo_jax.run_folder import (
    RunFolder,
    check_shared,
    make_folder,
    read_status,
    reconcile,
    run_folder,
    run_path,
    write_env,
    write_status,
)
from ppo_jax.run_header import header_facts, kernels
from ppo_jax.stages import BEST
from ppo_jax.text import one_line
from ppo_jax.trackers import open_trackers
from ppo_jax.types import TrainState
from ppo_jax.validate import check_devices
from ppo_jax.weights import save_beside


def train(
    config: Config,
    experiment: Experiment,
    args: TrainArgs | None = None,
    preemption: Preemption | None = None,
    kind: Kind = PPO,
) -> None:
    """Train to the end, or go on from the run folder's newest sound checkpoint.

    Raises one of `errors`' kinds; Preempted once what `preemption` has asked for is saved.
    """
    began, args = time.monotonic(), args or TrainArgs()
    preemption = preemption or Preemption()
    preemption.grace = config.run.grace
    _use_compile_cache(config.run.compile_cache)
    folder = run_folder(run_path(config.run, experiment.name))
    preemption.durable = lambda: manifest.latest_step(folder.checkpoints)
    with ExitStack() as stack:
        on_first("folder", lambda: _hold(stack, make_folder(config, experiment.name)))
        check_shared(folder)
        check_devices(config, _device_count(), processes.count())
        config = _as_begun(config, experiment.name)
        opened = kind.open(config, experiment)
        config = opened.config
        models = opened.source, opened.critic, opened.dataset, opened.learned
        facts = run_facts(config, experiment, *models) | {"kind": kind.command}
        if not opened.parts:
            facts["reward"] = None  # which the experiment's file may well define
            if opened.held_out is not None:  # by which the best step and its scores are measured
                facts["eval_data"] = file_sha256(Path(opened.held_out.path))
        check_alike(facts)
        check_own_rows(config.parallel, opened.parts, jax.devices())
        keep = config.run.keep
        saver = stack.enter_context(checkpoint.open_saver(folder.checkpoints, keep, facts))
        preemption.durable = lambda: saver.durable
        preemption.settle = lambda seconds: checkpoint.settle(saver, seconds)
        clock = time.monotonic()
        start = saver.durable = on_first("start", lambda: _find_start(folder, facts, args))
        checking = time.monotonic() - clock
        if start is not None and start >= config.run.iterations:
            _note_complete(folder, start)
            return
        call_host = _host_rewards(stack, experiment, folder, opened)
        _describe(folder, opened)
        run, state, frozen = kind.prepare(opened)
        run = run._replace(call_host=call_host)
        freed_memory.give_back(caches=True)
        console.show_header(header_facts(run, folder, experiment, state))
        if start is not None:
            state, start = _resume(folder, state, start, checking, args, facts)
            saver.durable = start
        reconcile(folder, start or 0)
        trackers = stack.enter_context(open_trackers(config.run, folder))
        log = stack.enter_context(open_metrics(folder, trackers))
        write_status(folder, "running", start or 0, saved=start)
        with _said_in_status(folder, log, saver):
            iterate(kind, run, folder, state, frozen, saver, log, preemption, start or 0)
    write_status(folder, "done", config.run.iterations, saved=saver.durable)
    if is_writer():
        console.show_summary(read_metrics(folder.metrics), time.monotonic() - began, folder.root)


def _hold(stack: ExitStack, folder: RunFolder) -> None:
    """The run folder is this run's, and what it logs is there at the end."""
    stack.enter_context(lock.hold(folder.root))
    for half in folder.root.glob(".*.tmp"):  # of a process that died while it wrote
        with contextlib.suppress(OSError):
            half.unlink()
    stack.enter_context(storage.published(folder.root))
    if storage.on_gcs(folder.root):
        console.warn(f"{folder.root}: nothing keeps a run on another machine out of this folder")


@contextlib.contextmanager
def _said_in_status(folder: RunFolder, log: MetricsLog, saver: checkpoint.Saver):
    """An error on its way out leaves its name in `status.json`; so does the end of another process,
    which ends this one."""
    lost, saying = threading.Event(), threading.Lock()

    def say(error: BaseException) -> None:
        status = "preempted" if isinstance(error, Preempted) else "failed"
        # What cannot be written there is said on the screen all the same.
        with saying, contextlib.suppress(StorageError, DataError):
            log.sync()
            done = sum(1 for _ in read_metrics(folder.metrics)) if is_writer() else 0
            said = f"{type(error).__name__}: {error}"
            write_status(folder, status, done, saved=saver.durable, error=said)

    def say_lost(error: PPOJaxError) -> None:
        lost.set()
        say(error)

    with processes.on_lost(say_lost):
        try:
            yield
        except BaseException as error:
            if not lost.is_set():  # what this process fails with comes of it
                say(error)
            raise


def _find_start(folder: RunFolder, facts: Mapping[str, Any], args: TrainArgs) -> int | None:
    start = find_start(folder.checkpoints, facts, args, console.warn)
    if start is None:
        check_nothing_lost(folder)
    return start


def _device_count() -> int:
    try:
        count = len(jax.devices())
    except RuntimeError as error:  # held by another process, or not there
        raise ConfigError(f"no device can be used: {one_line(error)}") from None
    if jax.process_count() != processes.count():
        raise ConfigError(
            f"{jax.process_count()} processes were joined by jax.distributed.initialize() alone; "
            "`ppo-jax train` has to join them (processes.joined)"
        )
    return count


def _host_rewards(stack: ExitStack, experiment: Experiment, folder: RunFolder, opened: Opened):
    """What calls the rewards that are ordinary Python, in processes of their own that start now;
    None where there are none, or where they are to run in this process."""
    options = opened.config.reward
    if options.workers == 0 or all(part.host is None for part in opened.parts):
        return None
    own = f"-{processes.index()}" if processes.count() > 1 else ""
    if not is_writer():  # which publishes its own
        stack.callback(_publish, folder)
    log = storage.to_append(folder.root / f"reward{own}.log")
    return stack.enter_context(open_pool(experiment.path, log, options)).call


def _publish(folder: RunFolder) -> None:
    with contextlib.suppress(StorageError):  # an error on its way is the one to report
        storage.publish(folder.root)


def _describe(folder: RunFolder, opened: Opened) -> None:
    """`config.json`, `env.json`, and the tokenizer: what the run is, for those who read it."""
    config, source = opened.config, opened.source
    if is_writer():
        save_config(folder.config, config)
    weights = {part.name: part.weight for part in opened.parts}
    write_env(folder, {"rewards": weights, "attention": kernels(config, source, opened.critic)})
    _keep_tokenizer(folder, source, config)


def _note_complete(folder: RunFolder, step: int) -> None:
    """Nothing is left to do, unless the process that did it all had no time to say so."""
    if read_status(folder) != "done":
        write_status(folder, "done", step, saved=step)
    console.say(f"{folder.root}: already complete at iteration {step}, nothing to do")


def _resume(
    folder: RunFolder,
    state: TrainState,
    start: int,
    checking: float,
    args: TrainArgs,
    facts: Mapping[str, Any],
) -> tuple[TrainState, int]:
    """The state of the checkpoint `start`, or of one before it where its files are what was written
    and still cannot be read; `state`, the one before the first iteration, is given up for it."""
    clock = time.monotonic()
    abstract = abstract_like(state)
    for leaf in jax.tree.leaves(state):  # the devices may not have room for two
        leaf.delete()
    unread: dict[int, str] = {}
    while True:
        why = ""
        try:
            state = jax.block_until_ready(restore(folder.checkpoints, start, abstract))
        except Unreadable as error:
            why = str(error)
        read = exchange("restored", why)
        if not any(read):
            break
        if not read[0]:  # the checkpoint is sound, a file system or a network is not
            other = next(process for process, text in enumerate(read) if text)
            raise Unreadable(f"process {other}: {read[other]}; process 0 has read its part")
        unread[start] = read[0]
        before = on_first("start", functools.partial(_before, folder, start, facts, args))
        if before is None:  # nothing is moved: it may be the machine that is at fault
            raise Unreadable("; ".join(unread.values()))
        start = before
    on_first("aside", lambda: _put_aside(folder, unread, start))
    console.say(
        f"{folder.root}: resumed at iteration {start} (files checked in {checking:.1f} s, "
        f"restored in {time.monotonic() - clock:.1f} s)"
    )
    return state, start


def _before(folder: RunFolder, step: int, facts: Mapping[str, Any], args: TrainArgs) -> int | None:
    """The step before one that cannot be read; None: there is none, or may be none."""
    if args.strict_resume:
        return None
    return find_start(folder.checkpoints, facts, args, console.warn, before=step)


def _put_aside(folder: RunFolder, unread: Mapping[int, str], start: int) -> None:
    for step, why in unread.items():
        aside = removal.put_aside(folder.checkpoints, step)
        console.warn(f"{why}; put aside as {aside.name}, going on from step {start}")


def _keep_tokenizer(folder: RunFolder, source: Source, config: Config) -> None:
    """Tokenizer and model config go with the run, which can then be used without its origin."""
    if not is_writer() or (folder.tokenizer / CONFIG).is_file():
        return
    with whole_folder(folder.tokenizer) as new:
        save_beside(new, source.config, source.tokenizer, "float32", origin=source.files)


def _as_begun(config: Config, experiment: str) -> Config:
    """A hub id without a revision goes on from the commit that the run in this folder began with,
    wherever its branch stands by now, and a run's best step from the one it was; so does the base
    of adapters."""
    folder = run_folder(run_path(config.run, experiment))
    if not folder.config.is_file() or manifest.latest_step(folder.checkpoints) is None:
        return config
    began, names = load_config(folder.config).model, {}
    for key in ("path", "critic_path"):
        name, old = getattr(config.model, key), getattr(began, key)
        asked = None if name is None else name.removesuffix(f"@{BEST}")
        if asked is not None and old is not None and old.rpartition("@")[0] == asked:
            names[key] = old
    if config.model.base_path is None and names.get("path", config.model.path) == began.path:
        names["base_path"] = began.base_path
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **names))


def _use_compile_cache(path: str | None) -> None:
    if path is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(path).expanduser()))

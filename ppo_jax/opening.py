"""How a run begins: its folder held, its models, data and rewards open, and where it goes on."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ppo_jax import checkpoint, console, lock, manifest, processes, storage
from ppo_jax.agreement import check_alike, on_first
from ppo_jax.arguments import TrainArgs
from ppo_jax.config import Config
from ppo_jax.config_io import load_config, save_config
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.hf_folder import CONFIG, whole_folder
from ppo_jax.kind import Kind
from ppo_jax.loading import Source
from ppo_jax.preemption import Preemption
from ppo_jax.prepare import Opened
from ppo_jax.processes import is_writer
from ppo_jax.programs import check_own_rows
from ppo_jax.resume import check_nothing_lost, find_start
from ppo_jax.run_facts import file_sha256, run_facts
from ppo_jax.run_folder import RunFolder, check_shared, make_folder, run_folder, run_path, write_env
from ppo_jax.run_header import kernels
from ppo_jax.stages import BEST
from ppo_jax.text import one_line
from ppo_jax.validate import check_devices
from ppo_jax.weights import save_beside


class Begun(NamedTuple):
    """A run of this process: nobody else may begin it."""

    config: Config  # with the model's options resolved
    folder: RunFolder
    opened: Opened
    facts: dict[str, Any]
    saver: checkpoint.Saver
    start: int | None  # step of the checkpoint to go on from
    checking: float  # seconds that its files took

    @property
    def is_complete(self) -> bool:
        return self.start is not None and self.start >= self.config.run.iterations


def begin(
    stack: ExitStack,
    config: Config,
    experiment: Experiment,
    args: TrainArgs,
    preemption: Preemption,
    kind: Kind,
    **more: Any,
) -> Begun:
    """Open and check everything, before any weight is loaded; `stack` closes it. `more` facts go
    into its checkpoints. Raises one of `errors`' kinds."""
    use_compile_cache(config.run.compile_cache)
    folder = run_folder(run_path(config.run, experiment.name))
    preemption.durable = lambda: manifest.latest_step(folder.checkpoints)
    on_first("folder", lambda: _hold(stack, make_folder(config, experiment.name)))
    check_shared(folder)
    check_devices(config, _device_count(), processes.count())
    opened = kind.open(_as_begun(config, experiment.name), experiment)
    config = opened.config
    for key, count in config.warmups.items():
        if count < (asked := attrgetter(key)(config)):
            room = f"run.iterations={config.run.iterations} has no more before its last"
            console.warn(f"{key}={asked}: cut to {count}, {room}")
    facts = _facts(opened, experiment) | {"kind": kind.command} | more
    check_alike(facts)
    check_own_rows(config.parallel, opened.parts, jax.devices())
    keep = config.run.keep
    saver = stack.enter_context(checkpoint.open_saver(folder.checkpoints, keep, facts))
    preemption.durable = lambda: saver.durable
    preemption.settle = lambda seconds: checkpoint.settle(saver, seconds)
    clock = time.monotonic()
    start = saver.durable = on_first("start", lambda: _find_start(folder, facts, args))
    return Begun(config, folder, opened, facts, saver, start, time.monotonic() - clock)


def _facts(opened: Opened, experiment: Experiment) -> dict[str, Any]:
    learned = {part.name: opened.learned[part.name] for part in opened.parts if part.learned}
    models = opened.source, opened.critic, opened.dataset, learned  # a judge alters nothing
    facts = run_facts(opened.config, experiment, *models)
    if not opened.parts:
        facts["reward"] = None  # which the experiment's file may well define
        if opened.held_out is not None:  # by which the best step and its scores are measured
            facts["eval_data"] = file_sha256(Path(opened.held_out.path))
    return facts


def _hold(stack: ExitStack, folder: RunFolder) -> None:
    """The run folder is this run's, and what it logs is there at the end."""
    stack.enter_context(lock.hold(folder.root))
    for half in folder.root.glob(".*.tmp"):  # of a process that died while it wrote
        with contextlib.suppress(OSError):
            half.unlink()
    stack.enter_context(storage.published(folder.root))
    if storage.on_gcs(folder.root):
        console.warn(f"{folder.root}: nothing keeps a run on another machine out of this folder")


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


def describe(folder: RunFolder, opened: Opened) -> None:
    """`config.json`, `env.json`, and the tokenizer: what the run is, for those who read it."""
    config, source = opened.config, opened.source
    if is_writer():
        save_config(folder.config, config)
    weights = {part.name: part.weight for part in opened.parts}
    write_env(folder, {"rewards": weights, "attention": kernels(config, source, opened.critic)})
    _keep_tokenizer(folder, source, config)


def _keep_tokenizer(folder: RunFolder, source: Source, config: Config) -> None:
    """Tokenizer and model config go with the run, which can then be used without its origin."""
    if not is_writer() or (folder.tokenizer / CONFIG).is_file():
        return
    with whole_folder(folder.tokenizer) as new:
        save_beside(new, source.config, source.tokenizer, "float32", origin=source.files)


def use_compile_cache(path: str | None) -> None:
    if path is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(path).expanduser()))

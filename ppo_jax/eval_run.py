"""`ppo-jax eval`: what a model answers to held-out prompts, scored, beside another model's."""

import dataclasses
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax import console, data, manifest, storage
from ppo_jax.arguments import EvalArgs
from ppo_jax.classifier import open_classifiers
from ppo_jax.config import Config, LoraOptions, replace
from ppo_jax.critics import check_writes
from ppo_jax.decoder import Decoder, make_decoder
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.eval_report import MODELS, compare, describe, response_rows, show
from ppo_jax.evaluation import Answers, answer_all, make_examiner
from ppo_jax.experiment import Experiment, judge_parts
from ppo_jax.loading import Source, load_trunk, open_source, resolve_options
from ppo_jax.model import cast_weights, stack_layers
from ppo_jax.model_folder import is_model_name
from ppo_jax.prepare import (
    CallHost,
    Opened,
    Run,
    make_setup,
    open_run_of,
    place_tables,
    read_dataset,
)
from ppo_jax.rewards.base import check_columns, check_values, text_columns
from ppo_jax.rewards.host import SEEDS
from ppo_jax.rewards.pool import open_pool
from ppo_jax.run_facts import file_sha256
from ppo_jax.run_folder import environment
from ppo_jax.sharding import make_mesh, put
from ppo_jax.stages import resolve, run_at
from ppo_jax.types import PyTree
from ppo_jax.validate import check_devices, check_model, check_shared
from ppo_jax.weight_sharding import weight_shardings

REFERENCE = "@reference"  # the model that the experiment begins from
NUMBERS, RESPONSES, LOG = "eval.json", "eval.jsonl", "eval-reward.log"


def run_eval(experiment: Experiment, config: Config, args: EvalArgs) -> None:
    """Answer, score, compare, write and show. Raises ConfigError, DataError, RewardError,
    CheckpointError or StorageError."""
    if args.temperature == 0 and args.samples > 1:
        raise ConfigError(f"samples={args.samples}: all alike at temperature 0; nearest valid: 1")
    asked = {"model": args.model, "against": args.against}
    asked = {which: name for which, name in asked.items() if name is not None}
    stages = experiment.stages
    paths = {which: resolve(_known(name), config, stages) for which, name in asked.items()}
    folder = _folder(args.out, asked["model"], paths["model"])
    if config.data.eval_path is None:
        console.warn(f"data.eval_path=None: these are the prompts of {config.data.path}, the run's")
    if config.run.compile_cache is not None:
        cache = str(Path(config.run.compile_cache).expanduser())
        jax.config.update("jax_compilation_cache_dir", cache)
    check_devices(config, jax.device_count())
    opened = _open(experiment, _as_evaluated(config, args))
    sources = {which: _source(path, which, opened) for which, path in paths.items()}
    with ExitStack() as stack:
        call_host = _host_rewards(stack, experiment, opened, folder)
        ask = _asker(opened, call_host, args)
        found = {which: ask(source) for which, source in sources.items()}
    models = {which: _said(asked[which], source) for which, source in sources.items()}
    report = _report(experiment, opened, config, args, models, found)
    rows = [row for which in found for row in response_rows(opened.dataset, found[which], which)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    storage.write_atomic(folder / RESPONSES, lines)
    storage.write_atomic(folder / NUMBERS, json.dumps(report, indent=1, allow_nan=False) + "\n")
    show(report, rows, count=config.run.show_prompts)
    console.say(f"all numbers in {folder / NUMBERS}, all responses in {folder / RESPONSES}")


def _known(name: str) -> str | None:
    """None for the model that the experiment begins from."""
    return None if name == REFERENCE else name


def _folder(out: str | None, asked: str, model: str | None) -> Path:
    """Where the results go: the run folder of the model, unless `out` says."""
    if out is None:
        folder = None if model is None else run_at(model)[0]
        if folder is not None and not folder.exists() and not is_model_name(asked):
            raise ConfigError(
                f"--model {asked}: does not exist; expected a run folder, or a model's with --out"
            )
        if folder is None or not (folder / "checkpoints").is_dir():
            raise ConfigError(f"--out: {asked} is no run folder, so a folder has to be named")
        return folder
    folder = storage.as_path(out, "out").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror})") from None
    return folder


def _as_evaluated(config: Config, args: EvalArgs) -> Config:
    """The config with the held-out prompts as its own, and without what only training has."""
    temperature = config.hparams.temperature if args.temperature is None else args.temperature
    changes = {
        "data.path": config.data.eval_path or config.data.path,
        "data.eval_path": None,
        "model.lora": LoraOptions(),  # adapters are merged
        "model.critic": "shared",
        "model.critic_path": None,
        "ppo.advantage": "reinforce",
        "ppo.bootstrap_truncated": False,
        "rollout.weights": "compute",
        "rollout.samples_per_prompt": args.samples,  # which meet the same opening
        "parallel.offload": "none",
        "hparams.temperature": temperature or 1.0,  # greedy: that of the log-probabilities
    }
    return replace(config, **changes)


def _open(experiment: Experiment, config: Config) -> Opened:
    """The reference, the prompts, and the parts of reward and judge."""
    judge = judge_parts(experiment.judge)

    def read(config: Config, source: Source, texts: tuple[str, ...]) -> data.Dataset:
        names = tuple(dict.fromkeys((*texts, *text_columns(judge))))
        return data.first_rows(read_dataset(config, source, names), config.data.eval_rows)

    opened = open_run_of(config, experiment.reward, read, experiment.environment)
    dataset, parts = opened.dataset, [*opened.parts, *judge]
    for part in judge:
        check_columns(part, {*dataset.columns, SEEDS})
        check_values(part, dataset.columns, dataset.lines, dataset.path)
    learned = open_classifiers(parts, opened.config, opened.source, experiment.stages)
    for model in learned.values():
        check_shared(opened.config, model.config, jax.device_count())
    return opened._replace(parts=parts, learned=learned)


def _source(path: str | None, which: str, opened: Opened) -> Source:
    """The model at `path`, or the reference; ConfigError where it does not write in its tokens."""
    config, reference = opened.config, opened.source
    if path is None:
        return reference
    source = open_source(path, trust_remote_code=config.model.trust_remote_code)
    check_writes(source, which)
    if source.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise ConfigError(
            f"--{which} {path}: its tokenizer is not that of model.path={config.model.path}, with "
            "which it is compared token by token"
        )
    check_model(config, source.config, opened.width)
    check_shared(config, source.config, jax.device_count())
    return source


def _host_rewards(
    stack: ExitStack, experiment: Experiment, opened: Opened, folder: Path
) -> CallHost | None:
    options = opened.config.reward
    if options.workers == 0 or all(part.host is None for part in opened.parts):
        return None
    log = stack.enter_context(storage.appended(folder / LOG))
    return stack.enter_context(open_pool(experiment.path, log, options)).call


def _asker(
    opened: Opened, call_host: CallHost | None, args: EvalArgs
) -> Callable[[Source], Answers]:
    """`ask(source)`: what a model answers, with the same noise as any other."""
    config, mesh = opened.config, make_mesh(opened.config.parallel)
    hparams = jax.tree.map(jnp.float32, config.hparams)
    reference, first = _loaded(opened.source, config, mesh)
    frozen = {"base": None, "critic": None, "ref": _placed(mesh, cast_weights(reference, first))}
    frozen |= place_tables(opened, mesh)

    def ask(source: Source) -> Answers:
        decoder, trunk = _loaded(source, config, mesh)
        params = {"policy": _placed(mesh, trunk), "value": {}}
        setup = make_setup(opened, mesh, decoder, decoder)
        known = opened.parts, opened.dataset, opened.source.tokenizer, opened.width
        run = Run(config, setup, *known, hparams, call_host=call_host, host_env=opened.host_env)
        examine = make_examiner(run, greedy=args.temperature == 0, reference=reference)
        look = lambda *asked: examine(params, None, frozen, hparams.temperature, *asked)
        answers = answer_all(run, look, samples=args.samples, seed=config.run.seed)
        assert answers is not None
        return answers

    return ask


def _loaded(source: Source, config: Config, mesh) -> tuple[Decoder, PyTree]:
    """A decoder, and its weights on the host as it reads them."""
    options = resolve_options(config.model, source)
    trunk = load_trunk(source)
    layers = stack_layers(trunk) if options.scan_layers == "scan" else trunk
    return make_decoder(source.config, options, mesh), layers


def _placed(mesh, tree: PyTree) -> PyTree:
    return put(tree, weight_shardings(mesh, tree))


def _said(asked: str, source: Source) -> dict[str, Any]:
    """Which model it was."""
    step = source.step
    if source.run is not None and step is None:
        step = manifest.latest_step(source.run.checkpoints)
    return {"asked": asked, "path": source.name, "step": step}


def _report(
    experiment: Experiment,
    opened: Opened,
    config: Config,
    args: EvalArgs,
    models: dict[str, dict[str, Any]],
    found: dict[str, Answers],
) -> dict[str, Any]:
    """What goes into `eval.json`."""
    greedy, seed = args.temperature == 0, config.run.seed
    options = {"seed": seed, "greedy": greedy, "threshold": args.pass_threshold}
    wins = compare(found["model"], found["against"]) if "against" in found else None
    dataset = opened.dataset
    return {
        "experiment": experiment.name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{which: models.get(which) for which in MODELS},
        "reference": opened.source.name,
        "data": {
            "path": dataset.path,
            "sha256": file_sha256(Path(dataset.path)),
            "prompts": len(dataset.prompts),
            "held_out": config.data.eval_path is not None,
        },
        "samples": args.samples,
        "temperature": 0.0 if greedy else opened.config.hparams.temperature,
        "rollout": dataclasses.asdict(opened.config.rollout),
        "seed": seed,
        "weights": {part.name: part.weight for part in opened.parts},
        "metrics": {which: describe(found[which], **options) for which in found},
        "wins": wins,
        "environment": environment(),
    }

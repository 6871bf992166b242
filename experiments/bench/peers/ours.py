"""ppo_jax on a workload, one iteration at a time, as the peers' runners do it.

.venv/bin/python experiments/bench/peers/ours.py --workload w1 --memory [--section.key VALUE ...]
"""

import argparse
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import jax
import optax
from shapes import COMPARED, write_prompts
from worker import iteration_line, make_parser, open_session, start

from ppo_jax.experiment import load_experiment
from ppo_jax.main import parse_config
from ppo_jax.metrics import to_host
from ppo_jax.prepare import Run
from ppo_jax.profile import peak_memory_bytes
from ppo_jax.programs import largest_memory, make_stepper
from ppo_jax.types import PyTree, TrainState
from ppo_jax.workload import Workload, check_workload, load_workload, workload_batch, workload_of
from ppo_jax.xla_flags import set_flags

WORKLOADS = Path(__file__).resolve().parent.parent
PLATFORMS = {"cpu": "cpu", "cuda": "cuda,cpu"}  # the CPU's stay there, as in training


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """(own arguments, flags of the workload's configuration)"""
    parser = make_parser("ppo_jax on a workload; every field of its BASE is a flag, too")
    parser.add_argument("--write-prompts", help="file for the peers: token ids, a JSON list a line")
    return parser.parse_known_args()


def adam_steps(state: TrainState) -> int:
    """Optimiser steps that the policy has seen."""
    leaves = jax.tree.leaves(
        state.opt_state["policy"], is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState)
    )
    return next(int(leaf.count) for leaf in leaves if isinstance(leaf, optax.ScaleByAdamState))


def shape(run: Run) -> dict[str, Any]:
    """What is compared with the peers, read off what runs here."""
    model, config = run.setup.decoder.config, run.config
    lengths = sorted(len(ids) for ids in run.dataset.prompt_ids)
    values = (
        *(model.num_layers, model.embed_dim, model.num_heads, model.num_kv_heads, model.mlp_dim),
        *(model.vocab_size, model.tie_embeddings),
        *(config.rollout.batch_size, [lengths[0], lengths[-1]], config.rollout.max_new_tokens),
        len({*model.eos_token_ids, *config.rollout.stop_token_ids}),
        *(config.ppo.epochs, config.ppo.minibatches),
    )
    return dict(zip(COMPARED, values, strict=True))


def facts(run: Run, state: TrainState) -> dict[str, Any]:
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    return {
        "peer": "ours",
        "versions": {name: importlib.metadata.version(name) for name in ("ppo-jax", "jax")},
        "shape": shape(run),
        "critic": run.config.model.critic,
        "parameters": {name: count(tree) for name, tree in state.params.items()},
        "dtype": run.config.model.compute_dtype,
        "platform": "cuda" if jax.default_backend() == "gpu" else jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "threads": os.cpu_count(),
    }


def serve(run: Run, workload: Workload, state: TrainState, frozen: PyTree, session) -> None:
    stepper, step = make_stepper(run), 0
    while command := session.next_command():
        if command == "memory":
            program = largest_memory(stepper.compiled)
            counts = jax.default_backend() != "cpu"  # of the CPU's memory there is only the RSS
            peak = {"device_peak_bytes": peak_memory_bytes()} if counts else {}
            session.say({"program_bytes": program["total"], "program": program, **peak})
            continue
        before, mark = adam_steps(state), start()
        prompts = workload_batch(run, workload, step)
        state, done = stepper.dispatch(state, frozen, step, prompts)
        to_host(done.metrics)
        jax.block_until_ready(state)
        tokens = int(jax.device_get(done.rollout.lengths_B).sum())
        session.say(iteration_line(mark, tokens=tokens, optimizer_steps=adam_steps(state) - before))
        step += 1


def main() -> None:
    set_flags()  # as the command line does
    arguments, flags = parse_arguments()
    if arguments.device is not None:
        jax.config.update("jax_platforms", PLATFORMS[arguments.device])
    session = open_session(arguments)
    path = Path(arguments.workload)
    if path.suffix != ".py":
        path = WORKLOADS / f"{arguments.workload.lower()}.py"
    experiment = load_experiment(path)
    workload = workload_of(experiment)
    config = parse_config(path.stem, flags, experiment)
    check_workload(config, experiment)
    if config.run.compile_cache is not None:  # as training does
        cache = Path(config.run.compile_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))
    run, state, frozen = load_workload(config, experiment)
    if arguments.write_prompts is not None:
        write_prompts(arguments.write_prompts, run.dataset.prompt_ids)
    session.say(facts(run, state))
    serve(run, workload, state, frozen, session)
    session.finish()


if __name__ == "__main__":
    main()

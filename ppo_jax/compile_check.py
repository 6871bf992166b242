"""The train step of an experiment compiled for chips that need not be here, and held to what it
must be: it fits, a token waits for no other device that it need not, and is drawn without copies.

Nothing runs and nothing is timed but the compilation. The chips' compilers come from PyPI:
`make tpu-check` and `make gpu-check` install them.
"""

import contextlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ppo_jax import data, hlo, hlo_kernels, kv_cache
from ppo_jax.abstract_step import Rewards, count_tokens, lower_step
from ppo_jax.arguments import PlanArgs
from ppo_jax.classifier import classifier_by, reward_function
from ppo_jax.compile_report import Checked, Held, as_json, faults, show_check
from ppo_jax.config import Config
from ppo_jax.cost import item_bytes
from ppo_jax.envs.base import DeviceEnv
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.experiment import Experiment
from ppo_jax.hlo_collectives import collectives
from ppo_jax.memory import memory_of
from ppo_jax.memory_weights import abstract_reward_model, abstract_weights, sampler_bytes
from ppo_jax.offload import HOST
from ppo_jax.planned import Planned, decoder_of, open_planned, reward_decoder
from ppo_jax.profile import PHASES
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.sharding import make_mesh
from ppo_jax.topologies import CUDNN, Target, open_gpus, open_tpu
from ppo_jax.types import PyTree, TrainState

# Without a device nothing can be tuned, and untuned Triton products of float32 do not compile.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


def run_check(experiment: Experiment, config: Config, options: PlanArgs) -> None:
    """The command: compile, show what was seen, write it where asked for.

    Raises ConfigError where the step does not fit, or is not as it must be.
    """
    made = check(experiment, config, options)
    show_check(made)
    if options.out is not None:
        _write(options.out, json.dumps(as_json(made), indent=1) + "\n")
    if found := faults(made):
        raise ConfigError(f"{experiment.name} on {made.target.name}: {'; '.join(found)}")


def check(experiment: Experiment, config: Config, options: PlanArgs) -> Checked:
    """Compile the step and read off what it holds, sends and launches.

    Raises ConfigError or DataError where training would, for devices that cannot be, and where
    their compiler is not installed.
    """
    target = open_target(options)
    planned = open_planned(experiment, config, target.chip.platform, target.count)
    mesh = make_mesh(planned.config.parallel, target.devices)
    rewards, stand_ins = abstract_rewards(experiment, planned, mesh)
    clock = time.monotonic()
    with _cudnn(planned, target):
        critic = planned.case.critic
        lowered = lower_step(
            planned.config,
            planned.case,
            mesh,
            decoder_of(planned.config, planned.case.model, mesh),
            critic=None if critic is None else decoder_of(planned.config, critic, mesh),
            rewards=rewards,
        )
        traced = time.monotonic() - clock
        compiled, refused = _compile(lowered, target)
    made = Checked(
        experiment=experiment.name,
        config=planned.config,
        case=planned.case,
        target=target,
        mesh=dict(mesh.shape),
        stand_ins=stand_ins,
        planned=memory_of(planned.config, planned.case).peak,
        sampler=sampler_bytes(planned.config, planned.case, *_weights(planned)),
        seconds={"trace": traced, "compile": time.monotonic() - clock - traced},
        refused=refused,
    )
    return made if compiled is None else _read(made, lowered, compiled, options)


def open_target(options: PlanArgs) -> Target:
    """The devices that the options name. ConfigError where they name none, or two kinds."""
    if options.accelerator is None and options.gpu is None:
        raise ConfigError(
            "compile: name what for: --accelerator v6e-8 for a TPU slice, --gpu h200 for a GPU"
        )
    if options.accelerator is not None and options.gpu is not None:
        raise ConfigError(
            f"accelerator={options.accelerator} and gpu={options.gpu}: one of them at a time"
        )
    # The devices here, if any, are no part of it: a TPU would be locked by it.
    jax.config.update("jax_platforms", "cpu")
    if options.accelerator is None:
        return open_gpus(str(options.gpu), options.devices)
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no metadata server to wait for
    return open_tpu(options.accelerator)


def abstract_rewards(
    experiment: Experiment, planned: Planned, mesh: Mesh
) -> tuple[Rewards, tuple[str, ...]]:
    """(the experiment's rewards, for shapes alone; names of those that the host computes: in their
    place the step counts tokens)."""
    config, source, dataset = planned.config, planned.source, planned.dataset
    rules, tables = {}, {}
    parts = parse_rewards(experiment.reward)
    vocab_size = planned.case.model.vocab_size
    for part in parts:
        if part.device is not None:
            rules[part.name] = part.device.fn
            tables[part.name] = _shapes(part.device.make_tables(source.tokenizer, vocab_size))
        elif part.host is not None:
            rules[part.name], tables[part.name] = count_tokens, ()
    models = _reward_models(planned, mesh)
    rules |= {name: rule for name, (rule, _) in models.items()}
    pad, width = planned.case.model.pad_token_id, planned.case.width
    batch = data.make_batch(dataset, config, 0, pad_id=pad, width=width)
    found = Rewards(
        {part.name: rules[part.name] for part in parts},
        {part.name: part.weight for part in parts},
        tables,
        _shapes(batch.columns),
        models={name: weights for name, (_, weights) in models.items()},
    )
    if isinstance(experiment.environment, DeviceEnv):
        made = experiment.environment.make_tables(source.tokenizer, vocab_size)
        found = found._replace(environment=experiment.environment, env_tables=_shapes(made))
    return found, tuple(part.name for part in parts if part.host is not None)


def _reward_models(planned: Planned, mesh: Mesh) -> dict[str, tuple[Callable, PyTree]]:
    """Those of the rewards that are models: (as the step calls it, its weights' shapes)."""
    config, found = planned.config, {}
    settled = zip(planned.rewards.items(), planned.case.reward_models, strict=True)
    for (name, source), reward in settled:
        decoder = reward_decoder(config, reward, mesh)
        rule = reward_function(classifier_by(decoder, config, mesh, source))
        found[name] = rule, abstract_reward_model(config, reward)
    return found


def _weights(planned: Planned) -> tuple[TrainState, PyTree]:
    return abstract_weights(planned.config, planned.case.model, planned.case.critic)


def _shapes(tree: PyTree) -> PyTree:
    dtype = lambda x: jax.dtypes.canonicalize_dtype(np.asarray(x).dtype)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), dtype(x)), tree)


@contextlib.contextmanager
def _cudnn(planned: Planned, target: Target) -> Iterator[None]:
    """While the step is lowered: jax asks the device which cuDNN it has, and there is none."""
    own = (reward.attention for reward in planned.case.reward_models)
    if target.chip.platform != "gpu" or "cudnn" not in (planned.config.model.attention, *own):
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as fused

    if importlib.util.find_spec("nvidia") is None or not importlib.util.find_spec("nvidia.cudnn"):
        raise ConfigError(
            "model.attention=cudnn: the package nvidia-cudnn-cu13 is not installed here: run "
            "`make gpu-check`; nearest valid: --model.attention xla"
        )
    asked = fused.check_cudnn_version
    fused.check_cudnn_version = lambda: CUDNN[0] * 10_000 + CUDNN[1] * 100
    try:
        yield
    finally:
        fused.check_cudnn_version = asked


def _compile(lowered: jax.stages.Lowered, target: Target):
    """(the compiled step, None), or (None, why the compiler could not fit it)."""
    options = GPU_OPTIONS if target.chip.platform == "gpu" else None
    try:
        return lowered.compile(compiler_options=options), None
    except Exception as error:  # jaxlib's own, by a private name
        said = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        return None, said[said.index("RESOURCE_EXHAUSTED") :][:300]


def _read(made: Checked, lowered, compiled, options: PlanArgs) -> Checked:
    text = compiled.as_text()
    if options.hlo is not None:
        _write(options.hlo, text)
    program = hlo.parse(text)
    loops = hlo.decode_loops(program)
    least = smallest_array(made.config, made.case, made.mesh)
    return made._replace(
        memory=_held(lowered, compiled),
        host=_share(lowered.args_info[0], compiled.input_shardings[0], HOST),
        collectives=collectives(program, made.mesh, tuple(PHASES)),
        steps=hlo_kernels.decode_steps(program),
        step_calls=[hlo_kernels.custom_calls(program, loop.bodies[0]) for loop in loops],
        calls=hlo_kernels.custom_calls(program),
        phases=hlo_kernels.phase_launches(program, tuple(PHASES)),
        moved=hlo_kernels.moved(program, least),
        copied=sum(one.bytes for one in hlo_kernels.moved_before(program, least)),
    )


def _held(lowered, compiled) -> Held:
    """Bytes of a device by what they are for. Tiles: what a TPU's layouts add to the arguments."""
    infos, shardings = lowered.args_info[0], compiled.input_shardings[0]
    (state, *others), (where, *elsewhere) = infos, shardings
    params = _share((state.params, state.ref), (where.params, where.ref))
    optimiser = _share(state.opt_state, where.opt_state)
    frozen = _share(others[0], elsewhere[0])
    everything = _share(infos, shardings)
    sizes = compiled.memory_analysis()
    arguments = sizes.argument_size_in_bytes
    return Held(
        params=params,
        optimiser=optimiser,
        frozen=frozen,
        batch=everything - params - optimiser - frozen,
        tiles=max(0, arguments - everything),
        outputs=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
    )


def _share(infos: PyTree, shardings: PyTree, memory: str = "device") -> int:
    """Bytes of some arguments on one device, or in its host's memory; what the step never reads is
    not handed to it."""

    def size(info, sharding) -> int:
        if sharding is None or (sharding.memory_kind == HOST) != (memory == HOST):
            return 0
        item = 8 if jnp.issubdtype(info.dtype, jax.dtypes.prng_key) else info.dtype.itemsize
        return int(np.prod(sharding.shard_shape(info.shape))) * item

    return sum(jax.tree.leaves(jax.tree.map(size, infos, shardings)))


def smallest_array(config: Config, case, mesh: dict[str, int]) -> int:
    """Bytes of the smaller of a layer's cache in the smallest of the decode loops and a matrix of
    its MLP, on one device: what a decode step copies beyond that size is a weight or a cache."""
    model, rollout = case.model, config.rollout
    shares = mesh["data"] * mesh["fsdp"]
    slots = (rollout.slots or rollout.batch_size) // shares >> rollout.compactions
    widths = kv_cache.block_widths(case.width, rollout.max_new_tokens, rollout.cache_widths)
    cache = max(1, slots) * model.num_kv_heads * min(widths) * model.head_dim * item_bytes(config)
    item = 1 if rollout.weights == "int8" else item_bytes(config)
    matrix = model.embed_dim * model.mlp_dim * item
    return int(min(cache, matrix)) // mesh["tensor"]


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error}") from None

"""What a run is, said before it begins: the table on the screen, the kernels in `env.json`."""

import jax

from ppo_jax import attention
from ppo_jax.config import Config, LoraOptions
from ppo_jax.experiment import Experiment
from ppo_jax.loading import Source
from ppo_jax.prepare import Run
from ppo_jax.run_folder import RunFolder
from ppo_jax.types import TrainState


def _adapters(lora: LoraOptions) -> str:
    return "" if lora.rank is None else f" (adapters of rank {lora.rank})"


def _sampler(config: Config) -> str:
    if config.rollout.weights != "int8":
        return ""
    cap = config.hparams.tis_cap
    corrected = "not corrected (hparams.tis_cap)" if cap is None else f"corrected up to {cap:g}"
    return f", sampled from 8-bit weights, their gap {corrected}"


def _data(run: Run) -> str:
    """The data set, and what became of rows that are not as they should be."""
    data, wanted = run.dataset, run.config.prompts_per_batch
    counts = {"skipped": data.skipped, "dropped": data.dropped, "truncated": data.truncated}
    said = "".join(f", {count} {name}" for name, count in counts.items())
    again = f"; fewer than the {wanted} of a batch: repeated" if len(data.prompts) < wanted else ""
    return f"{data.path}: {len(data.prompts)} prompts of at most {run.width} tokens{said}{again}"


def header_facts(run: Run, folder: RunFolder, experiment: Experiment, state: TrainState) -> dict:
    config = run.config
    count = sum(x.size for x in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    return {
        "experiment": f"{experiment.name} ({config.run.cell}, seed {config.run.seed})",
        "model": f"{config.model.path or 'random'}, {count / 1e6:.1f} M parameters train"
        f"{_adapters(config.model.lora)}, {config.model.compute_dtype}, "
        f"{config.model.critic} critic",
        "reward": ", ".join(f"{part.weight:g} x {part.name}" for part in run.parts),
        "data": _data(run),
        "batch": f"{config.rollout.batch_size} sequences, at most "
        f"{config.rollout.max_new_tokens} new tokens{_sampler(config)}",
        "devices": f"{run.setup.mesh.size} x {device.device_kind} ({device.platform})",
        "run folder": str(folder.root),
    }


def kernels(config: Config, source: Source, critic: Source | None) -> dict[str, str]:
    """Which kernel the attention of whole sequences runs on, and why."""
    found = {}
    for name, model in {"policy": source, "critic": critic}.items():
        if model is not None:
            options = config.model.attention, model.config, config.model.compute_dtype
            found[name] = "{} ({})".format(*attention.choose(*options, jax.default_backend()))
    return found

"""How far the run of a cell has come, told from its folder alone, with nothing loaded."""

import functools
import platform
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from ppo_jax import manifest
from ppo_jax.config_io import to_dict
from ppo_jax.data import find_file
from ppo_jax.errors import CheckpointError, ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.experiment_code import code_sha256
from ppo_jax.grid import DIGITS, Cell
from ppo_jax.resume import compare
from ppo_jax.run_facts import file_sha256
from ppo_jax.run_folder import RunFolder, read_status, run_folder, run_path

NAMES = ("path", "base_path", "critic_path")  # of models: a run pins them when it opens them


class Standing(NamedTuple):
    """What there is of a run."""

    state: Literal["new", "begun", "done", "changed"]
    said: str  # of it, in words

    @property
    def line(self) -> str:
        return f"{self.state}: {self.said}" if self.said else self.state


def standing(experiment: Experiment, cell: Cell, *, allow_change: bool = False) -> Standing:
    """Whether the cell's run is yet to begin, to go on, or done; `changed`: what lies there was
    made with another configuration, code or data, `allow_change` overlooks what may be gone on
    from. Raises ConfigError or DataError where data or run.dir cannot be read."""
    folder = run_folder(run_path(cell.config.run, experiment.name))
    step = manifest.latest_step(folder.checkpoints)
    if step is None:
        for other in _with_other_hashes(cell, folder):
            if not allow_change:
                return Standing("changed", _why_other(experiment, cell, other))
        return Standing("new", read_status(folder).get("error", ""))
    try:
        facts = manifest.read_record(folder.checkpoints, step)["facts"]
        changes = compare(facts, _facts_now(experiment, cell, facts))
    except (CheckpointError, ConfigError) as error:  # the run itself knows what is to be done
        return Standing("begun", str(error))
    why = changes.structural + ([] if allow_change else changes.harmless)
    if why:
        return Standing("changed", f"{folder.root}: {', '.join(why)}")
    status, last = read_status(folder), cell.config.run.iterations
    if step >= last and status.get("status") == "done":
        return Standing("done", "")
    error = f", {status['error']}" if status.get("error") else ""
    return Standing("begun", f"{step} of {last} iterations{error}")


def _facts_now(experiment: Experiment, cell: Cell, then: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of the run as it would go on now; those that are not known before models are
    loaded, as they were."""
    config, was = to_dict(cell.config), then.get("config")
    if isinstance(was, dict):
        config["run"]["cell"] = was.get("run", {}).get("cell")  # the folder is what it is
        _settle(config["model"], was.get("model", {}))
    versions = {**then.get("versions", {}), "python": platform.python_version()}
    facts = {**then, "config": config, "versions": versions}
    facts["data"] = _sha256(cell.config.data.path)
    if then.get("reward") is not None:
        facts["reward"] = code_sha256(experiment.path, experiment.loaded)
    if "eval_data" in then and cell.config.data.eval_path is not None:
        facts["eval_data"] = _sha256(cell.config.data.eval_path)
    return facts


def _settle(model: dict[str, Any], was: Mapping[str, Any]) -> None:
    """Put in what `loading.resolve_options` made of the options that leave it something."""
    asked_and_pinned = (model["path"] is None) == (was.get("path") is None)
    settled = [*NAMES] if asked_and_pinned else []
    settled += [name for name in ("compute_dtype", "scan_layers") if model[name] == "auto"]
    for name in settled:
        model[name] = was.get(name)
    if model["lora"]["alpha"] is None:
        model["lora"]["alpha"] = was.get("lora", {}).get("alpha")


@functools.cache
def _sha256(path: str) -> str:
    return file_sha256(find_file(path))


def _with_other_hashes(cell: Cell, folder: RunFolder) -> Iterator[RunFolder]:
    """Runs of the same variant and seed that have saved something, in folders of other hashes."""
    runs = folder.root.parent.parent
    for path in sorted(runs.iterdir(), key=str) if cell.hash and runs.is_dir() else ():
        name, _, hashed = path.name.rpartition("-")
        if name == cell.name and len(hashed) == DIGITS and hashed != cell.hash:
            other = run_folder(path / folder.root.name)
            if manifest.latest_step(other.checkpoints) is not None:
                yield other


def _why_other(experiment: Experiment, cell: Cell, other: RunFolder) -> str:
    """In which it differs from the cell."""
    step = manifest.latest_step(other.checkpoints)
    assert step is not None
    try:
        facts = manifest.read_record(other.checkpoints, step)["facts"]
        found = compare(facts, _facts_now(experiment, cell, facts))
        why = [*found.structural, *found.harmless, *found.inexact]
    except (CheckpointError, ConfigError) as error:
        why = [str(error)]
    return f"{other.root}: {', '.join(why) or 'the model, or a stage that it starts from'}"

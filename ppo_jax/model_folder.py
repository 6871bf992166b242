"""From the name a user gives a model to the folder it lies in."""

import difflib
from pathlib import Path
from typing import NamedTuple

from ppo_jax import hub, smollm2
from ppo_jax.errors import ConfigError
from ppo_jax.hf_folder import CONFIG
from ppo_jax.peft_folder import is_adapter_folder

KNOWN_MODELS = {smollm2.NAME: smollm2.ensure_cached}


class ModelFolder(NamedTuple):
    """A Hugging Face or PEFT folder, and the name that leads to it again."""

    path: Path
    name: str  # as given; a hub id with the commit it stood at, as org/name@1234...
    from_hub: bool = False


def is_model_name(name: str) -> bool:
    """Whether the name of a model that is no path may lead to one: known, or formed as a hub id."""
    return name in KNOWN_MODELS or hub.is_hub_id(name.partition("@")[0])


def resolve_model(name_or_path: str | Path) -> ModelFolder:
    """The folder of a known name, of a path or of a hub id (`org/name`, `org/name@revision`).

    ConfigError when it is none of them, or when the hub cannot give it.
    """
    name = str(name_or_path)
    if name in KNOWN_MODELS:
        return ModelFolder(KNOWN_MODELS[name](), name)
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file() or is_adapter_folder(folder):
        return ModelFolder(folder, name)
    hub_id, _, revision = name.partition("@")
    if not folder.exists() and hub.is_hub_id(hub_id):
        snapshot = hub.snapshot(hub_id, revision or None)
        return ModelFolder(snapshot.folder, f"{hub_id}@{snapshot.revision}", from_hub=True)
    problem = f"is a folder without {CONFIG}" if folder.is_dir() else "is no folder and no hub id"
    near = difflib.get_close_matches(name.lower().rsplit("/", 1)[-1], KNOWN_MODELS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known names: {', '.join(KNOWN_MODELS)}"
    raise ConfigError(
        f"model {name!r} {problem}; {hint} (or a folder's path, or a hub id such as org/name)"
    )

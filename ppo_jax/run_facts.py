"""What a run was computed from, as its checkpoints record it: config, hashes, versions, devices."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax

from ppo_jax import manifest
from ppo_jax.config import Config
from ppo_jax.config_io import to_dict
from ppo_jax.data import Dataset
from ppo_jax.errors import DataError
from ppo_jax.experiment import Experiment
from ppo_jax.experiment_code import code_sha256
from ppo_jax.loading import Source
from ppo_jax.run_folder import LIBRARIES, machine

PROBES, PROBE = 64, 1 << 16  # blocks read of a file of weights, spread over it, and their bytes
PACKAGE = Path(__file__).parent


def run_facts(
    config: Config, experiment: Experiment, source: Source, critic: Source | None, dataset: Dataset
) -> dict[str, Any]:
    """The facts of a run as it is started now; JSON holds them."""
    env = machine()
    return {
        "config": to_dict(config),
        "data": _file_sha256(Path(dataset.path)),
        "tokenizer": _tokenizer(source.tokenizer),
        "weights": _weights(source),
        "critic_weights": None if critic is None else _weights(critic),
        "reward": code_sha256(experiment.path),
        "code": _code(),
        "versions": {name: env[name.replace("-", "_")] for name in ("python", *LIBRARIES)},
        "devices": {
            "platform": env["platform"],
            "kind": env["device_kind"],
            "count": math.prod(config.parallel.sizes(jax.device_count())),
            "processes": jax.process_count(),
        },
    }


def _tokenizer(tokenizer: Any) -> str:
    """Of all that turns text to ids and back."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    what = tokenizer.get_vocab() if backend is None else backend.to_str()
    template = getattr(tokenizer, "chat_template", None)
    return _sha256(json.dumps([what, template, tokenizer.all_special_ids], sort_keys=True))


def _weights(source: Source) -> str | None:
    """Of the files a model is read from: the whole of what is small, probes of what is large, so
    that a folder with other weights in it is noticed without reading tens of gigabytes."""
    if source.adapters is not None:
        own = None if source.adapters.folder is None else _folder(source.adapters.folder)
        return _sha256(json.dumps([own, _run(source), _weights(source.adapters.base)]))
    return _run(source) if source.folder is None else _folder(source.folder)


def _run(source: Source) -> str | None:
    """Of the checkpoint that a run would be read from; None for random weights."""
    step = None if source.run is None else manifest.latest_step(source.run.checkpoints)
    if source.run is None or step is None:
        return None
    files = manifest.read_record(source.run.checkpoints, step)["files"]
    return _sha256(json.dumps(files, sort_keys=True))


def _folder(folder: Path) -> str:
    files = [*folder.glob("*.safetensors"), *folder.glob("*config.json")]
    return _sha256(json.dumps([[path.name, _probe(path)] for path in sorted(files)]))


def _probe(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for number in range(PROBES):
            file.seek(number * max(size // PROBES, PROBE))
            digest.update(file.read(PROBE))
        file.seek(max(size - PROBE, 0))
        digest.update(file.read(PROBE))
    return digest.hexdigest()


def _code() -> str:
    """Of this package's own source."""
    files = sorted(PACKAGE.rglob("*.py"))
    return _sha256("".join(f"{p.relative_to(PACKAGE)} {_file_sha256(p)}\n" for p in files))


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""What a run was computed from, as its checkpoints record it: config, hashes, versions, devices,
compilers."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from ppo_jax import manifest
from ppo_jax.agreement import exchange
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
CPUINFO = Path("/proc/cpuinfo")
CPU = (
    "model name",
    "cpu family",
    "model",
    "stepping",
    "CPU implementer",
    "CPU variant",
    "CPU part",
)
# Packages, by how their names begin, that compile for a platform or compute on it.
BACKENDS = {
    "gpu": "jax-cuda jax-rocm nvidia-cublas nvidia-cuda-nvcc nvidia-cudnn nvidia-nccl".split(),
    "tpu": ["libtpu"],
}
# Flags of XLA that alter nothing that is computed, by how they begin; the devices are counted.
IDLE = (
    "--xla_dump_",
    "--xla_force_host_platform_device_count",
    "--xla_cpu_collective_call_",  # how long it waits
)


def run_facts(
    config: Config,
    experiment: Experiment,
    source: Source,
    critic: Source | None,
    dataset: Dataset,
    learned: Mapping[str, Source] = MappingProxyType({}),
) -> dict[str, Any]:
    """The facts of a run as it is started now; JSON holds them. `learned` are rewards' models."""
    env = machine()
    return {
        "config": to_dict(config),
        "data": file_sha256(Path(dataset.path)),
        "tokenizer": _tokenizer(source.tokenizer),
        "weights": _weights(source),
        "critic_weights": None if critic is None else _weights(critic),
        "reward": code_sha256(experiment.path, experiment.loaded),
        "code": _code(),
        "versions": {name: env[name.replace("-", "_")] for name in ("python", *LIBRARIES)},
        "devices": {
            "platform": env["platform"],
            "kind": env["device_kind"],
            "count": math.prod(config.parallel.sizes(jax.device_count())),
            "processes": jax.process_count(),
        },
        "compilers": _compilers(env["platform"]),
        "reward_weights": {name: _weights(model) for name, model in learned.items()},
    }


def _compilers(kind: str) -> dict[str, str | None]:
    """What compiles for the devices, and what else decides how a result is rounded."""
    client = jax.local_devices()[0].client
    found = {
        "compiler": " ".join(client.platform_version.split()),
        "matmul_precision": jax.config.jax_default_matmul_precision,  # pyright: ignore
        "XLA_FLAGS": _flags("XLA_FLAGS"),
    }
    if kind == "cpu":  # machines of one run may differ: each knows of all, in their order
        models = exchange("cpu", _cpu())
        found["cpu"] = models[0] if len(set(models)) == 1 else ", ".join(models)
    if kind == "tpu":
        found["LIBTPU_INIT_ARGS"] = _flags("LIBTPU_INIT_ARGS")
    begins = tuple(BACKENDS.get(kind, ()))
    for package in importlib.metadata.distributions() if begins else ():
        name = (package.name or "").lower().replace("_", "-")
        if name.startswith(begins):
            found[name] = package.version
    return found


def _flags(variable: str) -> str | None:
    """The flags in it that matter, sorted; of several with one name the last one counts."""
    words = [word for word in os.environ.get(variable, "").split() if not word.startswith(IDLE)]
    flags = {word.partition("=")[0]: word for word in words}
    return " ".join(flags[name] for name in sorted(flags)) or None


def _cpu() -> str:
    """Model and stepping of this machine's processor: XLA compiles for what it has."""
    said: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            said.setdefault(name.strip(), value.strip())
    words = [said[name] for name in CPU if said.get(name)]
    return " ".join(words) or platform.processor() or platform.machine()


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
    if source.run is None:
        return None
    step = manifest.latest_step(source.run.checkpoints) if source.step is None else source.step
    if step is None:
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
    return _sha256("".join(f"{p.relative_to(PACKAGE)} {file_sha256(p)}\n" for p in files))


def file_sha256(path: Path) -> str:
    """Of a file's content, hexadecimal. Raises DataError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

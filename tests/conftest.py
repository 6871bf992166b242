"""Settings of every test: four fake CPU devices, no network, arrays of different rank never mix."""

import gc
import os
from pathlib import Path

# Read by jax and transformers when they are first imported, hence before everything else.
from ppo_jax.xla_flags import with_flags

os.environ["XLA_FLAGS"] = with_flags(
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest

from gcs_server import gcs  # noqa: F401  a fixture
from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelOptions,
    PPOOptions,
    RolloutOptions,
    RunOptions,
)
from tpu_cloud import cloud, repository  # noqa: F401  fixtures

# What `make test ARGS=...` was given is not for the makes that tests start.
for name in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS"):
    os.environ.pop(name, None)
# A [B] array must not broadcast against a [B, T] one unseen.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled programs outlive the run, so that the next one starts at once.
CACHE = Path.home() / ".cache" / "ppo_jax" / "xla-tests"
jax.config.update("jax_compilation_cache_dir", str(CACHE))


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Compiled programs hold tens of memory mappings each, and a process may have 65,530: without
    this the suite ends in a segmentation fault. What a module needs again is on the disk."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def tiny_config() -> Config:
    """A random two-layer byte model, eight sequences, one iteration."""
    return Config(
        model=ModelOptions(path=None, remat="none"),
        data=DataOptions(path="experiments/data/tiny.jsonl", max_prompt_tokens=12),
        rollout=RolloutOptions(batch_size=8, max_new_tokens=6),
        ppo=PPOOptions(epochs=2, minibatches=2, token_sizes=2),
        run=RunOptions(iterations=1, progress=False, compile_cache=None),
        hparams=HParams(),
    )

"""Low-rank adapters: a tree of their own beside frozen weights (Hu et al. 2021, arXiv 2106.09685).

A matrix W [in, out] computes x W + (alpha / rank) (x A) B with A [in, rank] and B [rank, out]. The
adapters' tree is the trunk's with only these: {"layers": [{"q": {"lora_a", "lora_b"}, ...}, ...]},
or stacked along L as the trunk is.
"""

import difflib
import fnmatch

import jax
import jax.numpy as jnp

from ppo_jax.config import LoraOptions, ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.hf_tensors import NAMES, matrices
from ppo_jax.types import Array, PyTree


def adapted_modules(config: ModelConfig, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The matrices of a layer, by our names, that the patterns pick.

    A pattern is matched against the family's name of a matrix within its layer
    (`self_attn.q_proj`) and against the last part of it (`q_proj`). ConfigError for one that picks
    nothing, and for no pattern at all.
    """
    names = {NAMES[config.family].modules[module]: module for module in matrices(config)}
    if not patterns:
        raise ConfigError(f"model.lora.targets is empty: expected some of {', '.join(names)}, or *")
    picked = set()
    for pattern in patterns:
        hits = {
            module
            for name, module in names.items()
            if fnmatch.fnmatchcase(name, pattern)
            or fnmatch.fnmatchcase(name.rsplit(".", 1)[-1], pattern)
        }
        if not hits:
            short = [name.rsplit(".", 1)[-1] for name in names]
            near = difflib.get_close_matches(pattern, [*names, *short], n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"model.lora.targets={pattern}: picks none of {', '.join(names)}; nearest: {near}"
            )
        picked |= hits
    return tuple(module for module in names.values() if module in picked)


def init_adapters(config: ModelConfig, lora: LoraOptions, key: Array) -> PyTree:
    """Float32 adapters, layers as a list: A uniform in +-1/sqrt(in) as PEFT draws it, B zero, so
    that the policy starts as the base."""
    modules = adapted_modules(config, lora.targets)
    sizes = matrices(config)

    def adapter(key, module):
        size_in, size_out, _ = sizes[module]
        bound = size_in**-0.5
        a = jax.random.uniform(key, (size_in, lora.rank), jnp.float32, -bound, bound)
        return {"lora_a": a, "lora_b": jnp.zeros((lora.rank, size_out), jnp.float32)}

    def layer(key):
        keys = jax.random.split(key, len(modules))
        return {module: adapter(k, module) for module, k in zip(modules, keys, strict=True)}

    return {"layers": [layer(k) for k in jax.random.split(key, config.num_layers)]}


def attach(base: PyTree | None, trained: PyTree | None) -> PyTree:
    """A whole trunk: the base with adapters beside its kernels, without copying either.

    Without a base the trained tree is the trunk itself; without adapters the base is.
    """
    if base is None or trained is None:
        return base if trained is None else trained
    layers, adapters = base["layers"], trained["layers"]
    if isinstance(layers, list):
        both = [_beside(x, a) for x, a in zip(layers, adapters, strict=True)]
    else:
        both = _beside(layers, adapters)
    return {**base, "layers": both}


def _beside(layer: PyTree, adapters: PyTree) -> PyTree:
    return {**layer, **{module: {**layer[module], **adapters[module]} for module in adapters}}


def merge(trunk: PyTree, scale: float) -> PyTree:
    """The trunk with each adapter's product added to its kernel, and the adapter gone.

    Adapted kernels come out float32 whatever they were: a change smaller than the steps of a
    bfloat16 kernel is not lost before the caller rounds it. Works on layers as a list and stacked
    ones, NumPy and jax arrays alike.
    """

    def merged(module):
        if "lora_a" not in module:
            return module
        rest = {name: x for name, x in module.items() if not name.startswith("lora_")}
        a, b = (jnp.asarray(module[name], jnp.float32) for name in ("lora_a", "lora_b"))
        change = scale * jnp.matmul(a, b, precision="highest")
        return {**rest, "kernel": jnp.asarray(module["kernel"], jnp.float32) + change}

    layers = trunk["layers"]
    merge_layer = lambda layer: {name: merged(module) for name, module in layer.items()}
    done = [merge_layer(x) for x in layers] if isinstance(layers, list) else merge_layer(layers)
    return {**trunk, "layers": done}

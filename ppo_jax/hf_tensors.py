"""Names, shapes and orientation of every tensor of a checkpoint, family by family.

A kernel is [in, out] here. Hugging Face keeps most matrices as [out, in], GPT-2's as [in, out], and
GPT-NeoX's fused one head by head; `Slot` says where a tensor goes and how it is turned on its way.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ppo_jax.config import ModelConfig

Path = tuple[str | int, ...]


class Layout(NamedTuple):
    """How a tensor is turned on its way to the tree, and back."""

    to_tree: Callable[[np.ndarray], np.ndarray]
    to_file: Callable[[np.ndarray], np.ndarray]


class Slot(NamedTuple):
    """Where one Hugging Face tensor lives in the tree, and its shape in the file."""

    path: Path
    shape: tuple[int, ...]
    layout: Layout


class Names(NamedTuple):
    """A family's names: of the trunk, of its parts, and of each module of a layer."""

    trunk: str
    layers: str
    embed: str
    final_norm: str
    lm_head: str
    modules: dict[str, str]  # our module -> theirs
    positions: str | None = None
    conv1d: bool = False  # matrices are stored [in, out]


_MLP = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
_ATTENTION = {name: f"self_attn.{name}_proj" for name in "qkvo"}
_QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_SANDWICH = {
    "attn_norm": "input_layernorm",
    "post_attn_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def _llama_like(modules: dict[str, str]) -> Names:
    return Names("model", "layers", "embed_tokens", "norm", "lm_head", modules)


_LLAMA = _llama_like(_NORMS | _ATTENTION | _MLP)
NAMES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _llama_like(_NORMS | _ATTENTION | _QK_NORMS | _MLP),
    "gemma2": _llama_like(_SANDWICH | _ATTENTION | _MLP),
    "gemma3_text": _llama_like(_SANDWICH | _ATTENTION | _QK_NORMS | _MLP),
    "gpt2": Names(
        "transformer",
        "h",
        "wte",
        "ln_f",
        "lm_head",
        {
            "attn_norm": "ln_1",
            "qkv": "attn.c_attn",
            "o": "attn.c_proj",
            "mlp_norm": "ln_2",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
        positions="wpe",
        conv1d=True,
    ),
    "gpt_neox": Names(
        "gpt_neox",
        "layers",
        "embed_in",
        "final_layer_norm",
        "embed_out",
        {
            "attn_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
            "qkv": "attention.query_key_value",
            "o": "attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        },
    ),
}
SCORE = "score.weight"  # head of a sequence classifier, [labels, D]


def tensor_slots(config: ModelConfig, *, labels: int | None = None) -> dict[str, Slot]:
    """Every tensor of a checkpoint by Hugging Face name, in the order of the network.

    `labels`: of a sequence classifier with so many outputs, which has no language-model head.
    """
    names, D = NAMES[config.family], config.embed_dim
    slots = {
        f"{names.trunk}.{names.embed}.weight": Slot(
            ("embed", "embedding"), (config.vocab_size, D), PLAIN
        )
    }
    if names.positions is not None:
        slots[f"{names.trunk}.{names.positions}.weight"] = Slot(
            ("positions", "embedding"), (config.max_positions, D), PLAIN
        )
    layer = layer_slots(config)
    for i in range(config.num_layers):
        for name, slot in layer.items():
            path = ("layers", i, *slot.path)
            slots[f"{names.trunk}.{names.layers}.{i}.{name}"] = slot._replace(path=path)
    slots |= _norm_slots(config, f"{names.trunk}.{names.final_norm}", "final_norm", D)
    if labels is not None:
        slots[SCORE] = Slot(("score", "kernel"), (labels, D), LINEAR)
    elif not config.tie_embeddings:
        slots[f"{names.lm_head}.weight"] = Slot(
            ("lm_head", "kernel"), (config.vocab_size, D), LINEAR
        )
    return slots


def layer_slots(config: ModelConfig) -> dict[str, Slot]:
    """The tensors of one layer by their name within it."""
    names, slots = NAMES[config.family], {}
    for module, (size_in, size_out, bias) in matrices(config).items():
        name = names.modules[module]
        by_head = config.family == "gpt_neox" and module == "qkv"
        layout = _heads_first(config.num_heads) if by_head else PLAIN if names.conv1d else LINEAR
        shape = (size_in, size_out) if names.conv1d else (size_out, size_in)
        slots[f"{name}.weight"] = Slot((module, "kernel"), shape, layout)
        if bias:
            # Of the two ways to turn a fused tensor only the order of its rows matters to a bias.
            layout = layout if by_head else PLAIN
            slots[f"{name}.bias"] = Slot((module, "bias"), (size_out,), layout)
    for module in norms(config):
        size = config.head_dim if module in ("q_norm", "k_norm") else config.embed_dim
        slots |= _norm_slots(config, names.modules[module], module, size)
    order = list(names.modules.values())
    return dict(sorted(slots.items(), key=lambda item: order.index(item[0].rsplit(".", 1)[0])))


def matrices(config: ModelConfig) -> dict[str, tuple[int, int, bool]]:
    """(inputs, outputs, has a bias) of each matrix of a layer, by our module's name."""
    c, D = config, config.embed_dim
    width, kv_width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    if c.fused_qkv:
        found = {"qkv": (D, 3 * width, c.qkv_bias)}
    else:
        found = {"q": (D, width, c.qkv_bias)}
        found |= {name: (D, kv_width, c.qkv_bias) for name in ("k", "v")}
    found["o"] = (width, D, c.out_bias)
    if c.gated_mlp:
        found["gate"] = (D, c.mlp_dim, c.mlp_bias)
    return found | {"up": (D, c.mlp_dim, c.mlp_bias), "down": (c.mlp_dim, D, c.mlp_bias)}


def norms(config: ModelConfig) -> list[str]:
    """The norms of a layer, by our module's name."""
    found = ["attn_norm", "mlp_norm"]
    found += ["q_norm", "k_norm"] if config.qk_norm else []
    return found + (["post_attn_norm", "post_mlp_norm"] if config.sandwich_norm else [])


def _norm_slots(config: ModelConfig, name: str, module: str, size: int) -> dict[str, Slot]:
    slots = {f"{name}.weight": Slot((module, "scale"), (size,), PLAIN)}
    if config.norm == "layer":
        slots[f"{name}.bias"] = Slot((module, "bias"), (size,), PLAIN)
    return slots


def _same(x):
    return x


def _transposed(x):
    return x.T


PLAIN = Layout(_same, _same)
LINEAR = Layout(_transposed, _transposed)


def _heads_first(heads: int) -> Layout:
    """GPT-NeoX's fused rows are head by head (q, k, v of each); ours are q, k, v of all heads."""

    def to_tree(x):
        grouped = x.reshape(heads, 3, x.shape[0] // (3 * heads), *x.shape[1:])
        return grouped.swapaxes(0, 1).reshape(x.shape).T

    def to_file(x):
        x = x.T
        grouped = x.reshape(3, heads, x.shape[0] // (3 * heads), *x.shape[1:])
        return grouped.swapaxes(0, 1).reshape(x.shape)

    return Layout(to_tree, to_file)

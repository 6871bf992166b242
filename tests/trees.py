"""Parameter trees of two Llamas written out by hand, and how trees are compared."""

import numpy as np
from safetensors.numpy import load_file, save_file

from ppo_jax.config import ModelConfig, RopeScaling

TIED = ModelConfig(
    vocab_size=259, embed_dim=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40
)
UNTIED = ModelConfig(
    vocab_size=261,
    embed_dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=1,
    head_dim=4,
    mlp_dim=24,
    tie_embeddings=False,
    rope_theta=5e5,
    rope_scaling=RopeScaling("llama3", 4.0, 1.5, 3.0, 64),
    bos_token_id=256,
    eos_token_ids=(257, 260),
    max_positions=128,
    norm_eps=1e-6,
)


def random_params(m: ModelConfig, seed: int = 0):
    """Written out by hand, so that the tree's layout has a second statement beside the code's."""
    rng = np.random.default_rng(seed)

    def kernel(rows, columns):
        return {"kernel": rng.normal(size=(rows, columns)).astype(np.float32)}

    def scale():
        return {"scale": rng.normal(size=m.embed_dim).astype(np.float32)}

    q, kv = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    layers = [
        {
            "attn_norm": scale(),
            "q": kernel(m.embed_dim, q),
            "k": kernel(m.embed_dim, kv),
            "v": kernel(m.embed_dim, kv),
            "o": kernel(q, m.embed_dim),
            "mlp_norm": scale(),
            "gate": kernel(m.embed_dim, m.mlp_dim),
            "up": kernel(m.embed_dim, m.mlp_dim),
            "down": kernel(m.mlp_dim, m.embed_dim),
        }
        for _ in range(m.num_layers)
    ]
    embedding = rng.normal(size=(m.vocab_size, m.embed_dim)).astype(np.float32)
    params = {"embed": {"embedding": embedding}, "layers": layers, "final_norm": scale()}
    if not m.tie_embeddings:
        params["lm_head"] = kernel(m.embed_dim, m.vocab_size)
    return params


def assert_same(found, expected):
    """The same keys, dtypes and bits."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")

"""Hugging Face folders: what is written is read back, and every fault is named."""

import json
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ppo_jax import smollm2, weights
from ppo_jax.config import ModelConfig, RopeScaling
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.tokenizer import byte_tokenizer, load_tokenizer
from ppo_jax.weights import load_hf, resolve_model, save_hf

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
    rope_scaling=RopeScaling(4.0, 1.5, 3.0, 64),
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


@pytest.fixture
def folder(tmp_path):
    save_hf(tmp_path / "model", TIED, random_params(TIED), byte_tokenizer())
    return tmp_path / "model"


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("m", [TIED, UNTIED], ids=["tied", "untied-llama3"])
@pytest.mark.parametrize("shard_bytes", [5e9, 9000], ids=["single", "sharded"])
def test_round_trip(tmp_path, m, shard_bytes):
    params = random_params(m)
    save_hf(tmp_path / "m", m, params, byte_tokenizer(), max_shard_bytes=shard_bytes)
    loaded, found = load_hf(tmp_path / "m")
    assert loaded == m
    assert_same(found, params)
    shards = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert (shards == ["model.safetensors"]) == (shard_bytes == 5e9)
    for shard in shards:
        tensors = load_file(tmp_path / "m" / shard)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= shard_bytes
    assert ("lm_head.weight" in str(tensors.keys())) == (not m.tie_embeddings)
    assert load_tokenizer(tmp_path / "m").encode("aé") == [97, 195, 169]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]  # nothing temporary stays behind


def test_file_layout_is_hugging_faces(tmp_path):
    params = random_params(UNTIED)
    save_hf(tmp_path / "m", UNTIED, params, None)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    layer = params["layers"][1]
    expected = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "lm_head.weight": params["lm_head"]["kernel"].T,
        "model.layers.1.self_attn.k_proj.weight": layer["k"]["kernel"].T,
        "model.layers.1.self_attn.o_proj.weight": layer["o"]["kernel"].T,
        "model.layers.1.mlp.down_proj.weight": layer["down"]["kernel"].T,
        "model.layers.1.input_layernorm.weight": layer["attn_norm"]["scale"],
        "model.layers.1.post_attention_layernorm.weight": layer["mlp_norm"]["scale"],
    }
    assert len(tensors) == 3 + 9 * UNTIED.num_layers
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value)
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    assert raw["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 4.0,
        "low_freq_factor": 1.5,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 64,
    }
    assert raw["eos_token_id"] == [257, 260]


def test_jax_arrays_and_lower_precision(tmp_path):
    params = random_params(TIED)
    jax_params = {**params, "layers": [dict(layer) for layer in params["layers"]]}
    jax_params["layers"][0]["q"] = {"kernel": jnp.asarray(params["layers"][0]["q"]["kernel"])}
    save_hf(tmp_path / "m", TIED, jax_params, None, dtype="bfloat16")
    rounded = params["layers"][0]["q"]["kernel"].astype(ml_dtypes.bfloat16)
    _, found = load_hf(tmp_path / "m")
    assert found["layers"][0]["q"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(found["layers"][0]["q"]["kernel"], rounded.astype(np.float32))
    _, found = load_hf(tmp_path / "m", dtype="bfloat16")
    assert found["layers"][0]["q"]["kernel"].dtype == ml_dtypes.bfloat16


def put(name, array):
    return lambda tensors: tensors.__setitem__(name, array)


K1 = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(K1), [K1, "missing", "[16, 24]"]),
        (put("model.layers.3.mlp.up_proj.weight", np.ones(3)), ["unexpected", "layers.3.mlp.up"]),
        (put(K1, np.ones((24, 16), np.float32)), [K1, "[24, 16]", "[16, 24]"]),
        (put(K1, np.ones((16, 24), np.int8)), [K1, "I8", "BF16"]),
        (put("lm_head.weight", np.ones((259, 24), np.float32)), ["lm_head.weight", "differs"]),
        (put("lm_head.weight", np.ones((3, 24), np.float32)), ["lm_head.weight", "[259, 24]"]),
    ],
)
def test_tensor_faults(folder, change, words):
    edit_tensors(folder, change)
    with pytest.raises(ConfigError) as error:
        load_hf(folder)
    assert "\n" not in str(error.value)
    for word in [str(folder / "model.safetensors"), *words]:
        assert word in str(error.value)


def test_tolerated_tensors(folder):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    edit_tensors(folder, change)
    assert_same(load_hf(folder)[1], random_params(TIED))


def test_untied_without_head(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}))
    with pytest.raises(ConfigError, match=r"lm_head\.weight is missing.*tie_word_embeddings"):
        load_hf(folder)


def test_missing_files(folder, tmp_path):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        load_hf(tmp_path / "nowhere")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.safetensors.*pytorch_model\.bin"):
        load_hf(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read as safetensors"):
        load_hf(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read as JSON"):
        load_hf(folder)


def test_shard_faults(tmp_path):
    folder = tmp_path / "m"
    save_hf(folder, TIED, random_params(TIED), None, max_shard_bytes=9000)
    shards = sorted(folder.glob("model-*.safetensors"))
    victim = load_file(shards[1])
    doubled = load_file(shards[2]) | dict([next(iter(victim.items()))])
    save_file(doubled, shards[2])
    with pytest.raises(ConfigError, match=f"{next(iter(victim))} is also in {shards[1].name}"):
        load_hf(folder)
    shards[2].unlink()
    with pytest.raises(ConfigError, match=f"index.json.*{shards[2].name}"):
        load_hf(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p["layers"][1].pop("gate"), "layers.1.gate.kernel.*missing"),
        (lambda p: p.update(value_head=np.ones(3)), "value_head has no place"),
        (
            lambda p: p["layers"][2].update(q={"kernel": np.ones((32, 24))}),
            r"layers.2.q.kernel has shape \[32, 24\], expected \[24, 32\]",
        ),
    ],
)
def test_save_refuses_wrong_trees(tmp_path, spoil, words):
    params = random_params(TIED)
    spoil(params)
    with pytest.raises(ConfigError, match=words):
        save_hf(tmp_path / "m", TIED, params, None)
    assert not list(tmp_path.iterdir())


def test_save_spares_what_is_not_a_model(tmp_path, folder):
    save_hf(folder, UNTIED, random_params(UNTIED), None)  # an older model is replaced
    assert load_hf(folder)[0] == UNTIED
    assert not (folder / "tokenizer.json").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        save_hf(folder, TIED, random_params(TIED), None)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"model": {"path": None}}))
    for target in (run, run / "config.json"):
        with pytest.raises(ConfigError, match=re.escape(str(target))):
            save_hf(target, TIED, random_params(TIED), None)
    with pytest.raises(ConfigError, match="float64.*bfloat16"):
        save_hf(tmp_path / "new", TIED, random_params(TIED), None, dtype="float64")


def test_a_failed_save_leaves_the_old_model(tmp_path, folder):
    class Broken:
        def save_pretrained(self, _):
            raise OSError("No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        save_hf(folder, UNTIED, random_params(UNTIED), Broken())
    assert_same(load_hf(folder)[1], random_params(TIED))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_resolve_model(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(weights.KNOWN_MODELS, smollm2.NAME, lambda: folder)
    assert resolve_model("smollm2-135m") == folder
    assert resolve_model(str(folder)) == folder
    with pytest.raises(ConfigError, match="did you mean smollm2-135m"):
        resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    with pytest.raises(ConfigError, match=r"without config\.json.*smollm2-135m"):
        resolve_model(tmp_path)

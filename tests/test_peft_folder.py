"""Adapters in PEFT's format: what is written is read back, as PEFT has it."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from family_configs import IDS, first_case, model_config
from peft_builders import (
    CONFIG,
    DOWN1,
    LLAMA,
    LORA,
    Q0,
    WEIGHTS,
    assert_same,
    edit_config,
    random_adapters,
    write_llama,
)
from ppo_jax.config import LoraOptions
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.hf_tensors import NAMES
from ppo_jax.lora import adapted_modules
from ppo_jax.peft_folder import base_model, is_adapter_folder, read_adapters, write_adapters


@pytest.fixture
def folder(tmp_path):
    return write_llama(tmp_path / "adapters")


@pytest.mark.parametrize("id_", IDS)
def test_every_family_there_and_back(tmp_path, id_):
    config = model_config(id_)
    for number, targets in enumerate([("*",), ("*[vn]*",)]):
        lora = LoraOptions(2, 3.5, targets)
        adapters = random_adapters(config, lora, seed=number)
        write_adapters(tmp_path / "a", config, lora, jax.tree.map(jnp.asarray, adapters), base="b")
        found, again = read_adapters(tmp_path / "a", config)
        assert (found.rank, found.alpha) == (2, 3.5)
        modules = adapted_modules(config, lora.targets)
        assert adapted_modules(config, found.targets) == modules
        assert found.targets == tuple(NAMES[config.family].modules[m] for m in modules)
        assert_same(again, adapters)


def test_the_files_are_pefts(folder):
    assert sorted(file.name for file in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert json.loads((folder / CONFIG).read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/base",
        "revision": None,
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["self_attn.q_proj", "mlp.down_proj"],
        "fan_in_fan_out": False,
        "bias": "none",
        "inference_mode": True,
    }
    shapes = {name: x.shape for name, x in load_file(folder / WEIGHTS).items()}
    assert len(shapes) == 2 * 2 * LLAMA.num_layers
    assert shapes[f"{Q0}.lora_A.weight"] == (3, 32)
    assert shapes[f"{DOWN1}.lora_A.weight"] == (3, 48)
    assert shapes[f"{DOWN1}.lora_B.weight"] == (32, 3)


def test_gpt_neox_rows_are_head_by_head(tmp_path):
    """q, k and v of one head follow each other in the file; here stand those of all heads."""
    config = model_config(first_case("gpt_neox"))
    lora = LoraOptions(2, None, ("query_key_value",))
    heads, K = config.num_heads, config.head_dim
    kinds = np.arange(3)[:, None, None] * 1000 + np.arange(heads)[None, :, None] * 10
    column = (kinds + np.arange(K)[None, None]).reshape(-1)  # q | k | v, each head by head
    adapters = random_adapters(config, lora)
    adapters["layers"][1]["qkv"]["lora_b"][:] = column
    write_adapters(tmp_path / "a", config, lora, adapters, base=None)
    name = "base_model.model.gpt_neox.layers.1.attention.query_key_value.lora_B.weight"
    rows = load_file(tmp_path / "a" / WEIGHTS)[name]
    expected = [
        kind * 1000 + h * 10 + k for h in range(heads) for kind in range(3) for k in range(K)
    ]
    np.testing.assert_array_equal(rows, np.repeat(np.array(expected)[:, None], 2, axis=1))


def test_gpt2_keeps_pefts_orientation(tmp_path):
    """Conv1D matrices are [in, out] in the file, the adapters beside them are not."""
    config = model_config(first_case("gpt2"))
    lora = LoraOptions(2, None, ("mlp.c_proj",))
    write_adapters(tmp_path / "a", config, lora, random_adapters(config, lora), base=None)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    assert {name.rsplit(".", 2)[0] for name in tensors} == {
        f"base_model.model.transformer.h.{i}.mlp.c_proj" for i in range(2)
    }
    name = "base_model.model.transformer.h.0.mlp.c_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (2, config.mlp_dim)
    assert tensors[f"{name}.lora_B.weight"].shape == (config.embed_dim, 2)
    raw = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert raw["fan_in_fan_out"] is True and raw["target_modules"] == ["mlp.c_proj"]


@pytest.mark.parametrize(("alpha", "stored"), [(None, 6), (16.0, 16), (0.5, 0.5), (0.0, 0)])
def test_alpha(tmp_path, alpha, stored):
    lora = LoraOptions(3, alpha, LORA.targets)
    write_adapters(tmp_path / "a", LLAMA, lora, random_adapters(LLAMA, lora), base=None)
    raw = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert raw["lora_alpha"] == stored and type(raw["lora_alpha"]) is type(stored)
    assert read_adapters(tmp_path / "a", LLAMA)[0].alpha == float(stored)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(tmp_path, dtype):
    adapters = random_adapters(LLAMA, LORA)
    write_adapters(tmp_path / "a", LLAMA, LORA, adapters, base=None, dtype=dtype)
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    assert {x.dtype for x in load_file(tmp_path / "a" / WEIGHTS).values()} == {numpy_dtype}
    rounded = jax.tree.map(lambda x: x.astype(numpy_dtype).astype(np.float32), adapters)
    assert_same(read_adapters(tmp_path / "a", LLAMA)[1], rounded)


def test_base_model(folder):
    assert is_adapter_folder(folder) and is_adapter_folder(str(folder))
    assert not is_adapter_folder(folder.parent)
    assert base_model(folder) == ("org/base", None)
    edit_config(folder, revision="abc")
    assert base_model(folder) == ("org/base", "abc")
    for missing in (None, "", 3):
        edit_config(folder, base_model_name_or_path=missing)
        with pytest.raises(ConfigError, match=f"{CONFIG}: base_model_name_or_path = "):
            base_model(folder)
    edit_config(folder, base_model_name_or_path="b", revision=3)
    with pytest.raises(ConfigError, match="revision = 3"):
        base_model(folder)
    with pytest.raises(ConfigError, match=f"has no {CONFIG}"):
        base_model(folder.parent)


def test_the_tokenizer_goes_along(tmp_path):
    origin = tmp_path / "base"
    origin.mkdir()
    (origin / "tokenizer.json").write_text("{1}")
    (origin / "chat_template.jinja").write_text("{{ x }}")
    (origin / "config.json").write_text("{}")
    adapters = random_adapters(LLAMA, LORA)
    write_adapters(tmp_path / "a", LLAMA, LORA, adapters, base=None, origin=origin)
    names = {"tokenizer.json", "chat_template.jinja", CONFIG, WEIGHTS}
    assert {file.name for file in (tmp_path / "a").iterdir()} == names
    assert (tmp_path / "a" / "tokenizer.json").read_text() == "{1}"


def test_only_a_model_is_replaced(folder, tmp_path):
    other = random_adapters(LLAMA, LORA, seed=2)
    write_adapters(folder, LLAMA, LORA, other, base=None)
    assert_same(read_adapters(folder, LLAMA)[1], other)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        write_adapters(folder, LLAMA, LORA, other, base=None)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "x.safetensors").write_text("")
    with pytest.raises(ConfigError, match="not a model folder"):
        write_adapters(tmp_path / "work", LLAMA, LORA, other, base=None)


def test_a_full_disk_leaves_the_old_folder(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("ppo_jax.peft_folder.save_file", refuse)
    with pytest.raises(StorageError, match="no space left"):
        write_adapters(folder, LLAMA, LORA, random_adapters(LLAMA, LORA, seed=2), base=None)
    assert_same(read_adapters(folder, LLAMA)[1], random_adapters(LLAMA, LORA))
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]

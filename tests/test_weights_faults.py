"""Folders that are not whole models: every fault names its file and tensor, nothing is lost."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from family_configs import FAMILIES, RICH
from family_models import family_model
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.weights import load_classifier, load_hf, save_hf
from trees import TIED, UNTIED, assert_same, edit_tensors, random_params


@pytest.fixture
def folder(tmp_path):
    save_hf(tmp_path / "model", TIED, random_params(TIED), byte_tokenizer())
    return tmp_path / "model"


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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_needed_and_no_other_is_taken(tmp_path, family):
    m, params = family_model(RICH[family])
    save_hf(tmp_path / "m", m, params, None)
    file = tmp_path / "m" / "model.safetensors"
    whole = load_file(file)
    for name in whole:
        save_file({n: t for n, t in whole.items() if n != name}, file)
        with pytest.raises(ConfigError, match=rf"{re.escape(name)} is missing, expected shape"):
            load_hf(tmp_path / "m")
    for name in ("v_head.weight", "transformer.h.0.extra.weight", "score.weight"):
        save_file(whole | {name: np.ones(2, np.float32)}, file)
        with pytest.raises(ConfigError, match=rf"unexpected tensor {name}"):
            load_hf(tmp_path / "m")


def test_a_classifiers_head_must_have_the_labels_of_its_config(tmp_path):
    m, params = family_model("llama-gqa")
    save_hf(tmp_path / "m", m, params, None, head={"kernel": np.ones((32, 3), np.float32)})
    edit_tensors(tmp_path / "m", put("score.weight", np.ones((1, 32), np.float32)))
    with pytest.raises(ConfigError, match=r"score\.weight has shape \[1, 32\].*\[3, 32\]"):
        load_classifier(tmp_path / "m")
    edit_tensors(tmp_path / "m", lambda t: t.pop("score.weight"))
    with pytest.raises(ConfigError, match=r"score\.weight is missing.*\[3, 32\]"):
        load_classifier(tmp_path / "m")


def test_one_tensor_under_two_names(tmp_path):
    m, params = family_model("gpt2-tied")
    save_hf(tmp_path / "m", m, params, None)
    positions = np.asarray(params["positions"]["embedding"])
    edit_tensors(tmp_path / "m", put("wpe.weight", positions))
    with pytest.raises(ConfigError, match=r"wpe\.weight is also there as .*wpe\.weight"):
        load_hf(tmp_path / "m")


def test_a_language_models_head_has_no_place_in_a_classifier(tmp_path):
    m, params = family_model("llama-gqa")
    save_hf(tmp_path / "m", m, params, None, head={"kernel": np.ones((32, 1), np.float32)})
    edit_tensors(tmp_path / "m", put("lm_head.weight", np.ones((101, 32), np.float32)))
    with pytest.raises(ConfigError, match=r"unexpected tensor lm_head\.weight"):
        load_classifier(tmp_path / "m")


def test_a_head_of_another_width_is_not_saved(tmp_path):
    m, params = family_model("llama-gqa")
    with pytest.raises(ConfigError, match=r"score\.kernel has shape \[16, 1\], expected \[32, 1\]"):
        save_hf(tmp_path / "m", m, params, None, head={"kernel": np.ones((16, 1), np.float32)})


@pytest.mark.parametrize("weight_map", [{"a": 1}, {"a": None, "b": "x"}, {"a": ["x"]}, ["x"], {}])
def test_an_index_that_names_no_files(folder, weight_map):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=r"index\.json: expected a weight_map of tensor names to"):
        load_hf(folder)

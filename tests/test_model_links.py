"""Links in model folders: followed within the folder and the hub's cache, not out of them."""

import os
import shutil

import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.hf_folder import check_links
from ppo_jax.loading import open_source
from ppo_jax.peft_folder import base_model
from ppo_jax.stored import stored_tensors
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.weights import load_hf, save_hf
from trees import TIED, assert_same, random_params

REVISION = "a" * 40


@pytest.fixture
def folder(tmp_path):
    save_hf(tmp_path / "model", TIED, random_params(TIED), byte_tokenizer())
    return tmp_path / "model"


def link(file, target):
    """The file's content moves to the target; a link to it takes its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file.rename(target)
    file.symlink_to(os.path.relpath(target, file.parent))


def snapshot(folder, repository):
    """The folder as the hub's library lays it out in its cache."""
    lies = repository / "snapshots" / REVISION
    lies.parent.mkdir(parents=True)
    shutil.copytree(folder, lies)
    for number, file in enumerate(sorted(lies.iterdir())):
        link(file, repository / "blobs" / f"{number:040x}")
    return lies


def refused(folder, name, target):
    with pytest.raises(ConfigError) as error:
        load_hf(folder)
    assert "\n" not in str(error.value)
    assert f"{folder / name}: is a link to {target}, outside" in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_folder(tmp_path, folder, name):
    link(folder / name, tmp_path / "elsewhere" / name)
    refused(folder, name, tmp_path / "elsewhere" / name)
    with pytest.raises(ConfigError, match="outside the model's folder"):
        open_source(str(folder))
    with pytest.raises(ConfigError, match="outside the model's folder"):
        stored_tensors(folder)


def test_shards_templates_and_links_to_nothing(tmp_path, folder):
    save_hf(folder, TIED, random_params(TIED), None, max_shard_bytes=9000)
    shard = min(folder.glob("model-*.safetensors"))
    link(shard, tmp_path / "shard")
    refused(folder, shard.name, tmp_path / "shard")
    (tmp_path / "shard").unlink()
    refused(folder, shard.name, tmp_path / "shard")
    shard.unlink()
    (folder / "additional_chat_templates").mkdir()
    template = folder / "additional_chat_templates" / "tool.jinja"
    template.symlink_to("/etc/passwd")
    refused(folder, f"additional_chat_templates/{template.name}", "/etc/passwd")


def test_links_within_the_folder_and_to_it(tmp_path, folder):
    link(folder / "model.safetensors", folder / "parts" / "one")
    (tmp_path / "newest").symlink_to("model")
    for name in (folder, tmp_path / "newest"):
        assert_same(load_hf(name)[1], random_params(TIED))


def test_the_cache_of_the_hub(tmp_path, folder):
    lies = snapshot(folder, tmp_path / "cache" / "models--org--tiny")
    assert_same(load_hf(lies)[1], random_params(TIED))
    assert open_source(str(lies)).config == TIED
    (tmp_path / "hub").symlink_to("cache")  # as on a cluster with its cache on another disk
    check_links(tmp_path / "hub" / "models--org--tiny" / "snapshots" / REVISION)


@pytest.mark.parametrize(
    "to", ["../../secret", "../../../models--org--other/blobs/0", "/etc/passwd"]
)
def test_out_of_the_cache(tmp_path, folder, to):
    lies = snapshot(folder, tmp_path / "models--org--tiny")
    (lies / "config.json").unlink()
    (lies / "config.json").symlink_to(to)
    refused(lies, "config.json", os.path.realpath(lies / to))


def test_blobs_beside_any_other_folder(tmp_path, folder):
    for repository in ("tiny", "models--org--tiny/nested"):
        lies = snapshot(folder, tmp_path / repository)
        with pytest.raises(ConfigError, match="outside the model's folder"):
            load_hf(lies)
    lies = snapshot(folder, tmp_path / "models--org--linked")
    blobs = lies.parents[1] / "blobs"
    blobs.rename(tmp_path / "blobs")
    blobs.symlink_to(tmp_path / "blobs")
    with pytest.raises(ConfigError, match="outside the model's folder"):
        load_hf(lies)


def test_adapters(tmp_path):
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
    (tmp_path / "adapters" / "adapter_model.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors: is a link to /etc/passwd"):
        base_model(tmp_path / "adapters")

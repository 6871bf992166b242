"""What goes along with the weights from folder to folder, untouched."""

import json
import stat

import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.loading import load_trunk, open_source
from ppo_jax.metrics import read_metrics
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.weights import load_hf, save_hf
from test_lora_runs import launch, same_trees
from tiny_runs import CONFIG

TEMPLATES = {"tool_use": "{{ tools }}", "rag": "{{ documents }}"}


@pytest.fixture
def folder(tmp_path):
    random = open_source(None, CONFIG.model.shape, seed=9)
    save_hf(tmp_path / "model", random.config, load_trunk(random), byte_tokenizer())
    extra = tmp_path / "model" / "additional_chat_templates"
    extra.mkdir()
    for name, text in TEMPLATES.items():
        (extra / f"{name}.jinja").write_text(text)
    return tmp_path / "model"


def save_again(folder, out):
    config, params = load_hf(folder)
    save_hf(out, config, params, None, origin=folder)
    return out


def test_named_chat_templates(folder, tmp_path):
    out = save_again(folder, tmp_path / "out")
    extra = out / "additional_chat_templates"
    assert {path.stem: path.read_text() for path in extra.iterdir()} == TEMPLATES
    assert stat.S_IMODE(extra.stat().st_mode) & 0o111 == 0o111 & stat.S_IMODE(out.stat().st_mode)
    assert stat.S_IMODE((extra / "rag.jinja").stat().st_mode) == 0o644
    save_again(folder, out)  # they belong to a model, which may be replaced


def test_a_tokenizers_own_code_goes_along_only_where_it_is_named(folder, tmp_path):
    (folder / "tokenization_own.py").write_text("raise SystemExit('was run')\n")
    assert not (save_again(folder, tmp_path / "plain") / "tokenization_own.py").exists()
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_own.Own", None]}
    file.write_text(json.dumps(settings))
    out = save_again(folder, tmp_path / "own")
    assert (out / "tokenization_own.py").read_bytes() == (
        folder / "tokenization_own.py"
    ).read_bytes()


def test_a_run_keeps_them_and_says_which_kernel_it_used(folder, tmp_path):
    run = launch(tmp_path, "kept", **{"model.path": str(folder), "run.iterations": 1})
    kept = run.tokenizer / "additional_chat_templates"
    assert {path.stem: path.read_text() for path in kept.iterdir()} == TEMPLATES
    assert json.loads(run.env.read_text())["attention"] == {"policy": "xla (auto on cpu)"}
    assert len(list(read_metrics(run.metrics))) == 1


def test_a_kernel_that_cannot_be_had_ends_the_run_before_its_folder(folder, tmp_path):
    with pytest.raises(ConfigError, match="model.attention=cudnn needs an NVIDIA GPU.*=xla"):
        launch(tmp_path, "fused", **{"model.path": str(folder), "model.attention": "cudnn"})
    with pytest.raises(ConfigError, match="q_prj: picks none of .*nearest: "):
        launch(tmp_path, "typo", **{"model.path": str(folder), "model.lora.targets": ("q_prj",)})
    assert {p.name for p in (tmp_path / "case").rglob("*") if p.is_file()} == {"lock"}


def test_adapters_saved_into_the_folder_of_their_base(folder, tmp_path):
    from ppo_jax.arguments import ExportArgs
    from ppo_jax.commands import export

    run = launch(tmp_path, "inside", **{"model.path": str(folder), "run.iterations": 1})
    export(ExportArgs(str(run.root), str(tmp_path / "adapter"), part="adapter"))
    merged = load_trunk(open_source(str(run.root)))
    for path in (tmp_path / "adapter").glob("adapter_*"):
        (folder / path.name).write_bytes(path.read_bytes())
    source = open_source(str(folder))
    assert source.adapters is not None and source.adapters.base.folder == folder
    same_trees(load_trunk(source), merged, rtol=0)

"""From a model's name to its folder, pinned; a run goes on from the commit it began with."""

import shutil
from pathlib import Path

import jax
import pytest

from ppo_jax import hub, model_folder, smollm2
from ppo_jax.config import replace
from ppo_jax.config_io import load_config
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.loading import load_trunk, open_source
from ppo_jax.lora import init_adapters
from ppo_jax.main import main
from ppo_jax.model_folder import ModelFolder, resolve_model
from ppo_jax.peft_folder import write_adapters
from ppo_jax.run_folder import run_folder
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.train import train
from ppo_jax.weights import save_hf
from tiny_runs import CONFIG, ascii_share, write_prompts

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    random = open_source(None, CONFIG.model.shape, seed=2)
    save_hf(path, random.config, load_trunk(random), byte_tokenizer())
    return path


@pytest.fixture
def asked(monkeypatch, folder) -> list:
    """A hub whose main branch has moved on to NEW; what is asked of it."""
    calls = []

    def snapshot(name, revision=None):
        calls.append((name, revision))
        return hub.Snapshot(folder, {None: NEW, "main": NEW, "v1": OLD}.get(revision, revision))

    monkeypatch.setattr(hub, "snapshot", snapshot)
    return calls


def test_known_names_and_folders(folder, monkeypatch):
    monkeypatch.setitem(model_folder.KNOWN_MODELS, smollm2.NAME, lambda: folder)
    assert resolve_model("smollm2-135m") == ModelFolder(folder, "smollm2-135m")
    assert resolve_model(str(folder)) == ModelFolder(folder, str(folder))
    assert resolve_model(folder) == ModelFolder(folder, str(folder))


@pytest.mark.parametrize(
    "name, revision, pinned",
    [("org/name", None, NEW), ("org/name@v1", "v1", OLD), (f"org/name@{OLD}", OLD, OLD)],
)
def test_hub_ids_are_pinned(asked, folder, name, revision, pinned):
    assert resolve_model(name) == ModelFolder(folder, f"org/name@{pinned}", from_hub=True)
    assert asked == [("org/name", revision)]


@pytest.mark.parametrize(
    "name, said",
    [
        ("smollm2-135", "is no folder and no hub id; did you mean smollm2-135m"),
        ("nothing", "known names: smollm2-135m .*hub id such as org/name"),
        ("./no/such/folder", "is no folder"),
    ],
)
def test_what_is_no_model_is_said(asked, name, said):
    with pytest.raises(ConfigError, match=said):
        resolve_model(name)
    assert asked == []


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder without config\.json"):
        resolve_model(tmp_path)


def launch(home: Path, **changes):
    fixed = {"run.dir": str(home), "data.path": write_prompts(home), "run.iterations": 1}
    config = replace(CONFIG, **(fixed | changes))
    train(config, Experiment("case", config, ascii_share, home, ""))
    return run_folder(home / "case" / "base" / "seed0")


def test_run_keeps_the_commit_and_goes_on_from_it(asked, tmp_path):
    run = launch(tmp_path, **{"model.path": "org/name@v1"})
    assert load_config(run.config).model.path == f"org/name@{OLD}"
    assert open_source(str(run.root)).files == run.tokenizer
    asked.clear()
    launch(tmp_path, **{"model.path": "org/name", "run.iterations": 2})  # main is at NEW by now
    assert asked == [("org/name", OLD)]
    launch(tmp_path, **{"model.path": "org/name@main", "run.iterations": 3})  # of equal weights
    assert load_config(run.config).model.path == f"org/name@{NEW}"


def adapters_on(folder: Path, base: str, **options) -> Path:
    config = replace(CONFIG, **{"model.lora.rank": 2}).model
    adapters = init_adapters(config.shape, config.lora, jax.random.key(0))
    write_adapters(folder, config.shape, config.lora, adapters, base=base, **options)
    return folder


def test_adapters_name_their_base(asked, folder, tmp_path):
    on_hub = adapters_on(tmp_path / "one", "org/name", revision="v1")
    source = open_source(str(on_hub))
    assert asked == [("org/name", "v1")] and source.adapters.base.name == f"org/name@{OLD}"
    beside = adapters_on(tmp_path / "two", "base")
    shutil.copytree(folder, beside / "base")  # as a path from the adapters' own folder
    assert open_source(str(beside)).adapters.base.folder == beside / "base"
    stacked = adapters_on(tmp_path / "three", str(on_hub))
    with pytest.raises(ConfigError, match="adapters too: merge those first"):
        open_source(str(stacked))
    gone = adapters_on(tmp_path / "four", "./gone")
    with pytest.raises(ConfigError, match="four: its base_model_name_or_path: model './gone'"):
        open_source(str(gone))


def test_the_base_of_adapters_is_pinned_with_the_run(asked, folder, tmp_path):
    adapters = str(adapters_on(tmp_path / "adapters", "org/name"))  # whatever main is, that is
    lora = {"model.path": adapters, "model.lora.rank": 2}
    run = launch(tmp_path, **lora)
    assert load_config(run.config).model.base_path == f"org/name@{NEW}"
    for go_on in (
        lambda: launch(tmp_path, **lora, **{"run.iterations": 2}),
        lambda: open_source(str(run.root)),
    ):
        asked.clear()
        go_on()
        assert asked == [("org/name", NEW)]
    source = open_source(adapters, base_path=str(folder))
    assert source.adapters.base.folder == folder
    with pytest.raises(ConfigError, match="model.base_path=x: read for adapters alone"):
        open_source(str(folder), base_path="x")
    with pytest.raises(ConfigError, match="adapters: model.base_path: model './gone'"):
        open_source(adapters, base_path="./gone")


def test_adapters_on_each_other_end(asked, folder, tmp_path):
    one = adapters_on(tmp_path / "one", str(tmp_path / "two"))
    two = adapters_on(tmp_path / "two", str(tmp_path / "one"))
    itself = adapters_on(tmp_path / "itself", str(tmp_path / "itself"))
    for path in (one, two):
        with pytest.raises(ConfigError, match="adapters too: merge those first"):
            open_source(str(path))
    with pytest.raises(ConfigError, match=r"itself has no config\.json|no tokenizer there"):
        open_source(str(itself))


def test_remote_code_needs_a_folder(asked):
    with pytest.raises(ConfigError, match="no code of org/name is fetched.*path of a folder"):
        open_source("org/name", trust_remote_code=True)


def test_remote_code_is_asked_for_by_flag_alone(tmp_path, capsys, monkeypatch):
    experiment = tmp_path / "sly.py"
    experiment.write_text(
        "from ppo_jax.config import Config, ModelOptions\n"
        "BASE = Config(model=ModelOptions(trust_remote_code=True))\n"
        "def REWARD(rollout, columns): return rollout.lengths_B * 1.0\n"
    )
    assert main(["train", str(experiment)]) == 2
    assert "on the command line alone: --model.trust_remote_code True" in capsys.readouterr().err
    experiment.write_text(experiment.read_text().replace("trust_remote_code=True", ""))
    handed = []
    monkeypatch.setattr("ppo_jax.train.train", lambda config, *_: handed.append(config))
    assert main(["train", str(experiment), "--model.trust_remote_code", "True"]) == 0
    assert handed[0].model.trust_remote_code is True


def test_remote_code_flag_reaches_the_tokenizer(folder, monkeypatch):
    import transformers

    seen = []
    load = transformers.AutoTokenizer.from_pretrained

    def watched(*args, **options):
        seen.append(options["trust_remote_code"])
        return load(*args, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", watched)
    open_source(str(folder))
    open_source(str(folder), trust_remote_code=True)
    assert seen == [False, True]

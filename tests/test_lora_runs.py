"""Runs that train adapters: what they save, resume, export, and go on from."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from ppo_jax.arguments import ExportArgs
from ppo_jax.commands import export
from ppo_jax.config import ModelOptions, replace
from ppo_jax.critics import load_critic
from ppo_jax.decoder import Decoder, make_decoder
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.first_weights import initial_weights
from ppo_jax.loading import load_adapters, load_trunk, open_source, resolve_options
from ppo_jax.lora import attach, merge
from ppo_jax.metrics import read_metrics
from ppo_jax.prepare import open_critic
from ppo_jax.restore import restore_params
from ppo_jax.run_folder import RunFolder, run_folder
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.train import train
from ppo_jax.weights import load_classifier, load_hf, save_hf
from tiny_runs import CONFIG, ascii_share, write_prompts

RANK = 3
LORA = {
    "model.lora.rank": RANK,
    "model.lora.alpha": 12.0,
    "model.lora.targets": ("q_proj", "mlp.*"),
    "reward.reference": "fixed",
    "hparams.reference_decay": None,
    "hparams.learning_rate": 1e-2,
    "run.iterations": 4,
    "run.checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with prompts and a base model."""
    folder = tmp_path_factory.mktemp("lora")
    write_prompts(folder)
    random = open_source(None, CONFIG.model.shape, seed=9)
    save_hf(folder / "model", random.config, load_trunk(random), byte_tokenizer())
    return folder


def config_in(home: Path, **changes):
    place = {"run.dir": str(home), "data.path": write_prompts(home)}
    return replace(CONFIG, **({"model.path": str(home / "model")} | place | LORA | changes))


def launch(home: Path, cell: str, **changes) -> RunFolder:
    config = config_in(home, **{"run.cell": cell}, **changes)
    train(config, Experiment("case", config, ascii_share, home, ""))
    return run_folder(home / "case" / cell / "seed0")


@pytest.fixture(scope="module")
def straight(home) -> RunFolder:
    return launch(home, "straight")


@pytest.fixture(scope="module")
def adapter(home, straight) -> Path:
    """The run's adapters as a PEFT folder."""
    export(ExportArgs(str(straight.root), str(home / "adapter"), part="adapter"))
    return home / "adapter"


def same_trees(left, right, **tolerance):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right)


def test_checkpoint_holds_what_trains_alone(straight):
    params = restore_params(straight.checkpoints)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params["policy"])}
    assert names == {"lora_a", "lora_b"} and set(params["value"]) == {"head"}
    modules = set(params["policy"]["layers"][0])
    assert modules == {"q", "gate", "up", "down"}
    assert np.abs(params["policy"]["layers"][0]["q"]["lora_b"]).max() > 0


def test_resumed_run_equals_the_straight_one(home, straight):
    launch(home, "stopped", **{"run.iterations": 2})
    resumed = launch(home, "stopped")
    same_trees(restore_params(resumed.checkpoints), restore_params(straight.checkpoints), rtol=0)
    scores = [
        [row["objective/scores"] for row in read_metrics(run.metrics)]
        for run in (resumed, straight)
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 4


def test_run_reads_as_base_plus_scaled_product(home, straight):
    source = open_source(str(straight.root))
    base, adapters = load_hf(home / "model")[1], load_adapters(source)
    whole = load_trunk(source)
    for i, layer in enumerate(whole["layers"]):
        for name, module in layer.items():
            expected = np.asarray(base["layers"][i][name].get("kernel", 0.0), np.float64)
            if name in adapters["layers"][i]:
                a, b = (np.float64(adapters["layers"][i][name][k]) for k in ("lora_a", "lora_b"))
                expected = expected + 12.0 / RANK * (a @ b)
            if "kernel" in module:
                np.testing.assert_allclose(module["kernel"], expected, atol=1e-6)
    np.testing.assert_array_equal(whole["embed"]["embedding"], base["embed"]["embedding"])


def test_exports_of_policy_and_adapters_are_the_same_model(home, straight, adapter):
    export(ExportArgs(str(straight.root), str(home / "merged")))
    merged = load_hf(home / "merged")[1]
    same_trees(merged, load_trunk(open_source(str(straight.root))), rtol=0)
    same_trees(merged, load_trunk(open_source(str(adapter))), rtol=0)
    tokenizer = (home / "model" / "tokenizer.json").read_bytes()
    assert (home / "merged" / "tokenizer.json").read_bytes() == tokenizer


def test_critic_of_a_shared_trunk_is_exported_with_its_head(home, straight):
    export(ExportArgs(str(straight.root), str(home / "critic"), part="critic"))
    config, trunk, head = load_classifier(home / "critic")
    params = restore_params(straight.checkpoints)
    np.testing.assert_array_equal(head["kernel"], params["value"]["head"]["kernel"])
    same_trees(trunk, load_trunk(open_source(str(straight.root))), rtol=0)
    again = load_critic(open_source(str(home / "critic")))
    same_trees(again.trunk, trunk, rtol=0)
    assert np.abs(again.head["kernel"]).max() > 0 and config.embed_dim == 32


def test_adapters_go_on_with_themselves_as_reference(home, straight, adapter):
    still = {"hparams.learning_rate": 1e-30, "run.iterations": 1, "model.path": str(adapter)}
    usual = {"model.lora.alpha": None, "model.lora.targets": ("*",)}
    run = launch(home, "onward", **(still | usual))
    first, second = (restore_params(folder.checkpoints)["policy"] for folder in (straight, run))
    same_trees(first, second, rtol=0)
    (row,) = read_metrics(run.metrics)
    assert abs(row["objective/kl"]) <= 1e-6 * row["rollout/length_mean"]
    lora = open_source(str(run.root)).adapters.lora
    assert (lora.rank, lora.alpha) == (RANK, 12.0)
    same_trees(load_trunk(open_source(str(run.root))), load_trunk(open_source(str(straight.root))))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model.lora.rank": 8}, r"model\.lora\.rank=8.*have rank 3; nearest valid: 3"),
        ({"model.lora.alpha": 6.0}, r"model\.lora\.alpha=6.*have alpha 12; nearest valid: 12"),
        ({"model.lora.targets": ("q_proj",)}, r"model\.lora\.targets=q_proj.*are on .*mlp"),
    ],
)
def test_other_adapters_than_those_there_are_refused(home, adapter, changes, said):
    config = config_in(home, **{"model.path": str(adapter)}, **changes)
    with pytest.raises(ConfigError, match=said):
        resolve_options(config.model, open_source(str(adapter)))


def test_adapters_without_a_rank_are_merged_and_every_weight_trains(home, adapter):
    source = open_source(str(adapter))
    config = config_in(home, **{"model.lora": ModelOptions().lora})
    decoder = make_decoder(source.config, config.model)
    trained, still = initial_weights(config, source, None, decoder, decoder)
    same_trees(trained["policy"], load_trunk(source), rtol=0)
    assert still["base"] is None
    same_trees(still["ref"], trained["policy"], rtol=0)


def test_separate_critic_trains_adapters_of_its_own(home):
    run = launch(home, "separate", **{"model.critic": "separate", "run.iterations": 2})
    params = restore_params(run.checkpoints)
    policy, value = params["policy"], params["value"]["trunk"]
    assert jax.tree.structure(policy) == jax.tree.structure(value)
    assert not np.array_equal(policy["layers"][0]["q"]["lora_b"], value["layers"][0]["q"]["lora_b"])
    critic = load_critic(open_source(str(run.root)))
    whole = attach(load_hf(home / "model")[1], value)
    same_trees(critic.trunk, merge(whole, 12.0 / RANK), atol=1e-7)
    np.testing.assert_array_equal(critic.head["kernel"], params["value"]["head"]["kernel"])


def test_critic_of_its_own_model_has_it_frozen_below_its_adapters(home):
    """A classifier of another shape: its head goes on, its trunk stays as it is."""
    shape = replace(CONFIG, **{"model.shape.embed_dim": 24}).model.shape
    random = open_source(None, shape, seed=4)
    head = {"kernel": np.arange(24.0, dtype=np.float32)[:, None]}
    save_hf(home / "judge", shape, load_trunk(random), byte_tokenizer(), head=head)
    options = {"model.critic": "separate", "model.critic_path": str(home / "judge")}
    config = config_in(home, **options)
    source = open_source(config.model.path)
    critic = open_critic(config, source)
    model = resolve_options(config.model, source, critic)
    config = replace(config, model=model)
    decoders = [make_decoder(s.config, model) for s in (source, critic)]
    trained, still = initial_weights(config, source, critic, *decoders)
    np.testing.assert_array_equal(trained["value"]["head"]["kernel"], head["kernel"])
    same_trees(still["critic"], load_trunk(random), rtol=0)
    assert trained["value"]["trunk"]["layers"][0]["q"]["lora_a"].shape == (24, RANK)
    assert still["ref"] is None  # the base without adapters serves


def test_a_run_whose_base_is_gone_says_so(home, straight, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(straight.root, copy)
    text = (copy / "config.json").read_text().replace(str(home / "model"), str(tmp_path / "gone"))
    (copy / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="run: the model under its adapters: model .*gone"):
        open_source(str(copy))


def test_parts_that_are_not_there(home, tmp_path):
    model = str(home / "model")
    with pytest.raises(ConfigError, match="part=adapter.*nearest valid: policy"):
        export(ExportArgs(model, str(tmp_path / "out"), part="adapter"))
    with pytest.raises(ConfigError, match="part=critic.*expected a run"):
        export(ExportArgs(model, str(tmp_path / "out"), part="critic"))
    run = launch(home, "criticless", **{"ppo.advantage": "reinforce", "run.iterations": 1})
    with pytest.raises(ConfigError, match="ppo.advantage=reinforce trained no critic"):
        export(ExportArgs(str(run.root), str(tmp_path / "out"), part="critic"))
    assert not (tmp_path / "out").exists()


def test_scale_is_alpha_over_rank():
    shape = CONFIG.model.shape
    scale = lambda **lora: make_decoder(shape, replace(CONFIG, **lora).model).lora_scale
    assert scale(**{"model.lora.rank": 4}) == 2.0
    assert scale(**{"model.lora.rank": 4, "model.lora.alpha": 1.0}) == 0.25
    assert Decoder(shape).lora_scale == 1.0

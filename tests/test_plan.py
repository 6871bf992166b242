"""Plans: what they count, whether it fits, and advice that is worth its name."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from builders import tiny_model
from family_configs import hf_config
from ppo_jax import model as network
from ppo_jax.arguments import PlanArgs, split_words
from ppo_jax.chips import Chip, find_chip
from ppo_jax.config import Config, replace
from ppo_jax.cost import seen_pairs, trunk_flops
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.experiment import Experiment, load_experiment
from ppo_jax.memory import memory_of
from ppo_jax.memory_weights import Case
from ppo_jax.plan import as_json, expected_lengths, plan, run_plan, write_plan
from ppo_jax.plan_report import scaled, show_plan, verdict
from ppo_jax.tokenizer import byte_tokenizer
from tiny_runs import CONFIG, ascii_share

TINY = load_experiment("tiny")
H200 = PlanArgs(device="h200")


def shown(made) -> str:
    console = Console(width=140, record=True, quiet=False, file=open("/dev/null", "w"))
    show_plan(made, console=console)
    return console.export_text()


def test_the_tiny_experiment_fits_an_accelerator():
    made = plan(TINY, TINY.base, H200)
    assert made.fits and not made.advice and made.config.model.compute_dtype == "bfloat16"
    assert set(made.phases) == {"rollout", "score", "update"}
    batch, new = TINY.base.rollout.batch_size, TINY.base.rollout.max_new_tokens
    assert made.phases["rollout"].tokens == batch * new
    whole = made.phases["score"].tokens
    assert made.phases["update"].tokens == TINY.base.ppo.epochs * whole
    whole_B = made.lengths.prompt_B + made.lengths.response_B
    read_B = whole_B - 1  # nothing is drawn after the last token
    trunk = trunk_flops(made.model, float(read_B.sum()), seen_pairs(made.model, read_B))
    assert made.phases["update"].work.flops > 3 * TINY.base.ppo.epochs * trunk
    assert all(phase.floor > 0 for phase in made.phases.values())


def test_the_floor_is_said_to_be_one():
    text = shown(plan(TINY, TINY.base, H200))
    assert "not a prediction" in text and "fits:" in text and "NVIDIA's data sheet" in text
    for name in ("rollout", "score", "update", "kv", "activations", "logits", "optimiser"):
        assert name in text


def big(**changes) -> Config:
    """A model of 1.2 G parameters in random weights, which nobody may allocate."""
    shape = tiny_model(
        vocab_size=128000,
        embed_dim=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        mlp_dim=8192,
        max_positions=4096,
        eos_token_ids=(257,),
        pad_token_id=258,
    )
    fixed = {"model.path": None, "model.shape": shape, "model.remat": "none"}
    return replace(TINY.base, **(fixed | changes))


TIGHT = {
    "activations": {"rollout.batch_size": 256, "rollout.max_new_tokens": 512},
    "caches": {
        "rollout.batch_size": 4096,
        "rollout.max_new_tokens": 1024,
        "ppo.minibatches": 1024,
        "model.remat": "full",
    },
    "everything": {"rollout.batch_size": 64, "rollout.max_new_tokens": 256},
}
DEVICES = {"activations": "h200", "caches": "h200", "everything": "v5e"}


@pytest.mark.parametrize("name", TIGHT)
def test_advice_that_is_taken_makes_it_fit(name):
    options = PlanArgs(device=DEVICES[name])
    made = plan(TINY, big(**TIGHT[name]), options)
    assert not made.fits and made.advice
    for change in made.advice:
        taken = replace(big(**TIGHT[name]), **change.values)
        again = plan(TINY, taken, options)
        assert again.fits and again.memory.peak == change.peak
        assert all(f"--{key} {value}" in shown(made) for key, value in change.values.items())


def test_the_mildest_value_that_fits_is_proposed():
    config = big(**TIGHT["activations"])
    made = plan(TINY, config, H200)
    parts = [c.values["ppo.microbatches"] for c in made.advice if "ppo.microbatches" in c.values]
    rows = config.minibatch_size
    for fewer in range(1, parts[0]):
        if rows % fewer == 0:
            changed = replace(made.config, **{"ppo.microbatches": fewer})
            case = Case(made.model, None, int(made.lengths.prompt_B.max()), 1, "gpu")
            assert memory_of(changed, case).peak > 0.95 * made.chip.memory_bytes


def test_what_cannot_fit_is_said_to_be_so(monkeypatch):
    small = Chip("small", "gpu", 1e5, 1e12, 1e15, "made up")
    monkeypatch.setattr("ppo_jax.chips.find_chip", lambda name: small)
    made = plan(TINY, TINY.base, H200)
    assert not made.fits and made.advice == []
    assert "no change of these options" in "\n".join(verdict(made))


@pytest.mark.parametrize(
    "options,message",
    [
        (PlanArgs(device="h20"), "device=h20: .*nearest: h200"),
        (PlanArgs(device="v4", devices=0), "devices=0: .*nearest valid: 1"),
        (PlanArgs(device="v4", devices=3), "rollout.batch_size=64: 3 devices .*nearest valid"),
        (PlanArgs(device="v4", mean_response=40.0), "mean_response=40: .*nearest valid: 16"),
        (PlanArgs(device="v4", mean_response=0.5), "mean_response=0.5: .*nearest valid: 1"),
    ],
)
def test_what_cannot_be_planned_for(options, message):
    with pytest.raises(ConfigError, match=message):
        plan(TINY, TINY.base, options)


def test_no_weights_are_read(tmp_path, monkeypatch):
    """A folder with a config and a tokenizer is enough, and nothing of a weight's size is made."""
    folder, prompts = tmp_path / "model", tmp_path / "prompts.jsonl"
    folder.mkdir()
    fields = hf_config("llama-gqa") | {"vocab_size": 300}
    (folder / "config.json").write_text(json.dumps(fields))
    byte_tokenizer().save_pretrained(folder)
    prompts.write_text("\n".join(json.dumps({"prompt": "x" * n}) for n in (1, 4, 7)))
    monkeypatch.setattr(network.jax.random, "normal", _refuse)
    monkeypatch.setattr("ppo_jax.loading.load_trunk", _refuse)
    experiment = Experiment("here", Config(), ascii_share, tmp_path / "here.py", "")
    config = replace(
        Config(), **{"model.path": str(folder), "data.path": str(prompts), "rollout.batch_size": 6}
    )
    config = replace(config, **{"rollout.max_new_tokens": 9})
    made = plan(experiment, config, H200)
    assert made.model.vocab_size == 300 and set(made.lengths.prompt_B) <= {1, 4, 7, 2, 5, 8}
    assert made.fits


def _refuse(*arguments, **options):
    import jax

    if any(isinstance(x, jax.core.Tracer) for x in arguments):
        return jax.numpy.zeros(arguments[1])  # shapes alone
    raise AssertionError("a weight was made or read")


@pytest.mark.parametrize("mean", [1.0, 3.0, 8.0])
def test_guessed_lengths_are_geometric_and_cut(mean):
    config = replace(CONFIG, **{"rollout.batch_size": 4096, "rollout.max_new_tokens": 64})
    lengths = expected_lengths(config, np.arange(1, 11), mean)
    assert lengths.response_B.min() == 1 and lengths.response_B.max() <= 64
    assert lengths.response_B.mean() == pytest.approx(mean, rel=0.03)
    assert lengths.prompt_B.mean() == pytest.approx(5.5, rel=0.01)


def test_without_a_guess_responses_are_as_long_as_they_may_be():
    config = replace(CONFIG, **{"rollout.samples_per_prompt": 4})
    lengths = expected_lengths(config, np.array([2, 9]), None)
    assert lengths.prompt_B.tolist() == [2] * 4 + [9] * 4
    assert (lengths.response_B == config.rollout.max_new_tokens).all()


def test_shorter_responses_are_less_work_and_the_same_memory():
    long, short = (
        plan(TINY, TINY.base, dataclasses.replace(H200, mean_response=mean)) for mean in (None, 4.0)
    )
    assert short.memory == long.memory
    assert all(short.phases[p].work.flops < long.phases[p].work.flops for p in long.phases)


@pytest.mark.parametrize(
    "data, says", [(3, "parallel.data=3: must divide the 8"), (4, "has 4 devices.* is for 8")]
)
def test_a_mesh_that_is_not_all_of_the_devices(data, says):
    config = replace(TINY.base, **{"parallel.data": data})
    with pytest.raises(ConfigError, match=says):
        plan(TINY, config, PlanArgs(device="v6e", devices=8))


def test_devices_share_the_work():
    one, four = (plan(TINY, TINY.base, PlanArgs(device="v6e", devices=n)) for n in (1, 4))
    for phase in one.phases:
        assert four.phases[phase].work.flops == pytest.approx(one.phases[phase].work.flops)
        assert four.phases[phase].floor <= one.phases[phase].floor
    assert four.memory.peak < one.memory.peak


def test_the_file_holds_the_plan(tmp_path, capsys):
    out = tmp_path / "plan.json"
    run_plan(TINY, TINY.base, dataclasses.replace(H200, out=str(out)))
    assert "memory of each device" in capsys.readouterr().out
    read, made = json.loads(out.read_text()), plan(TINY, TINY.base, H200)
    assert read == json.loads(json.dumps(as_json(made)))
    assert read["memory"]["peak_bytes"] == made.memory.peak and read["memory"]["fits"] is True
    with pytest.raises(StorageError, match="cannot be written"):
        write_plan(made, str(tmp_path / "no" / "folder.json"))


def test_words_of_the_plan_and_of_the_experiment():
    words = (
        "--device h200 --rollout.stop_token_ids 3 4 --devices=2 --model.path None --out f".split()
    )
    own, rest = split_words(words)
    assert own == ["--device", "h200", "--devices=2", "--out", "f"]
    assert rest == ["--rollout.stop_token_ids", "3", "4", "--model.path", "None"]


def test_numbers_on_the_screen():
    assert [scaled(x, "B") for x in (12, 1.5e3, 2e6, 141e9)] == ["12 B", "1.5 kB", "2 MB", "141 GB"]
    assert find_chip("v5e").memory_bytes == 16e9

"""The step compiled and held to what it must be: on fake CPU devices in the place of chips."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import jax
import pytest
from rich.console import Console

from ppo_jax import compile_check
from ppo_jax.abstract_step import lower_step
from ppo_jax.arguments import PlanArgs, split_words
from ppo_jax.chips import Chip
from ppo_jax.compile_check import abstract_rewards, check, open_target, run_check, smallest_array
from ppo_jax.compile_report import Held, as_json, faults, show_check, verdict
from ppo_jax.config import replace
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.experiment import load_experiment
from ppo_jax.hlo_collectives import Collective
from ppo_jax.hlo_kernels import Moved
from ppo_jax.main import main
from ppo_jax.memory_weights import Case, abstract_reward_model, abstract_weights
from ppo_jax.planned import decoder_of, open_planned
from ppo_jax.sharding import batch_devices, make_mesh
from ppo_jax.topologies import Target

ROOT = Path(__file__).parents[1]
TINY = load_experiment("tiny")
SCALE = [load_experiment(f"experiments/scale/{name}.py") for name in ("qwen05b", "qwen15b")]
SCALE.append(load_experiment("experiments/scale/llama8b.py"))
QUICK = replace(TINY.base, **{"ppo.token_sizes": None, "rollout.compactions": 0})
CHIP = Chip("small", "cpu", 1e9, 1e12, 1e15, "made up")


def on_cpus(monkeypatch, chip=CHIP):
    target = Target("4 x small", chip, 4, 1, jax.devices()[:4])
    monkeypatch.setattr(compile_check, "open_target", lambda options: target)


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patch:
        on_cpus(patch)
        return check(TINY, QUICK, PlanArgs(compile=True))


def test_the_real_step_on_four_devices(made):
    assert faults(made) == [] and made.mesh == {"data": 4, "fsdp": 1, "tensor": 1}
    assert len(made.steps) == 1 and made.steps[0].kernels > 0
    assert made.collectives and not any(one.decoding for one in made.collectives)
    updates = [one for one in made.collectives if one.phase == "update"]
    assert updates[0].kind == "all-reduce" and updates[0].axes == ("data",)
    # Every gradient of an optimiser step is summed over the devices.
    steps = QUICK.ppo.epochs * QUICK.ppo.minibatches
    assert updates[0].bytes >= steps * made.memory.params


def test_shared_weights_are_gathered_before_the_decode_loop(made, monkeypatch):
    """In it nothing but what `tensor` has cut is put together."""
    on_cpus(monkeypatch)
    cut = check(TINY, replace(QUICK, **{"parallel.fsdp": 2, "parallel.tensor": 2}), PlanArgs())
    assert cut.mesh == {"data": 1, "fsdp": 2, "tensor": 2} and faults(cut) == []
    assert {one.axes for one in cut.collectives if one.decoding} == {("tensor",)}
    gathers = [one for one in cut.collectives if one.kind == "all-gather" and not one.decoding]
    assert any("fsdp" in one.axes for one in gathers)
    assert cut.memory.params < 0.3 * made.memory.params
    assert cut.memory.optimiser < 0.3 * made.memory.optimiser


def test_memory_by_what_it_is_for(made):
    held = made.memory
    assert held.optimiser == pytest.approx(2 * held.params, rel=1e-3)  # two moments
    assert held.frozen == pytest.approx(held.params, rel=0.01)  # the reference in float32
    assert held.tiles == 0 and held.temporaries > 0 and 0 < held.batch < 1e5
    assert made.peak == sum(held) == as_json(made)["memory"]["peak"]
    assert made.peak == pytest.approx(made.planned, rel=1.0)


def test_what_is_shown(made):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))
    show_check(made, console=console)
    text = console.export_text()
    for words in ("temporaries", "all-reduce", "data 4 x fsdp 1", "of a token", "ok:", "the exper"):
        assert words in text


HELD = Held(*[10] * 8)


@pytest.mark.parametrize(
    "changes,says",
    [
        ({"memory": Held(*[1e9] * 8)}, r"does not fit: 8 GB of 1 GB on each small"),
        ({"memory": None, "refused": "RESOURCE_EXHAUSTED: hbm"}, "does not fit: RESOURCE_EXH"),
        ({"steps": []}, "no decode loop was found"),
        (
            {"collectives": [Collective("rollout", "all-reduce", ("fsdp",), True, 2, 8.0, False)]},
            "the decode loop holds 2 all-reduce over fsdp, which it need not",
        ),
    ],
)
def test_faults_are_named(made, changes, says):
    (found,) = faults(made._replace(**changes))
    assert found.startswith(says) and verdict(made._replace(**changes)) == [f"FAILED: {found}"]


def test_tensor_shares_may_be_summed_in_the_decode_loop(made):
    one = Collective("rollout", "all-reduce", ("tensor",), True, 2, 8.0, False)
    assert faults(made._replace(collectives=[one])) == []


def test_copies_are_a_fault_on_a_gpu_alone(made):
    copies = made._replace(moved=[Moved("copy.1", "bf16[8]", 5_000_000)])
    assert faults(copies) == []
    gpu = copies._replace(target=copies.target._replace(chip=CHIP._replace(platform="gpu")))
    assert "1 copies of weights or caches (5 MB: 1 x bf16[8])" in faults(gpu)[0]
    twice = gpu._replace(moved=[], sampler=1e6, copied=2_000_000)
    assert "2 MB are copied, more than the sampler's own weights (1 MB)" in faults(twice)[0]
    assert faults(twice._replace(copied=1_000_000)) == []


def test_a_fault_ends_the_command_and_the_file_is_there(made, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made.json"
    monkeypatch.setattr(compile_check, "check", lambda *_: made._replace(memory=None, refused="no"))
    with pytest.raises(ConfigError, match="tiny on 4 x small: does not fit: no"):
        run_check(TINY, QUICK, PlanArgs(compile=True, out=str(out)))
    assert "FAILED: does not fit: no" in capsys.readouterr().out
    assert json.loads(out.read_text())["faults"] == ["does not fit: no"]
    with pytest.raises(StorageError, match="cannot be written"):
        run_check(TINY, QUICK, PlanArgs(compile=True, out=str(tmp_path / "no" / "file")))


@pytest.mark.parametrize(
    "flags,says",
    [
        ("--compile", "compile: name what for: --accelerator v6e-8"),
        ("--compile --accelerator v6e-9", "accelerator=v6e-9: .*nearest: v6e-8"),
        ("--accelerator v6e-8 --gpu h100", "accelerator=v6e-8 and gpu=h100: one of them"),
        ("--compile --gpu h20", "gpu=h20: .*nearest: h200"),
    ],
)
def test_what_cannot_be_compiled_for(flags, says, capsys):
    assert main(["plan", "tiny", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line)


@pytest.mark.parametrize(
    "words,runs",
    [
        ("tpu-check", ".venv-tpu/bin/python -m ppo_jax plan sentiment --compile --accelerator v5l"),
        (
            "tpu-check EXP=tiny ACCEL=v6e-8 ARGS=--hlo\\ x",
            "plan tiny --compile --accelerator v6e-8",
        ),
        ("gpu-check EXP=tiny", ".venv-gpu/bin/python -m ppo_jax plan tiny --compile --gpu h200"),
        ("gpu-check GPU=b200", "--compile --gpu b200"),
    ],
)
def test_the_targets_run_the_command_in_an_environment_of_their_own(words, runs):
    command = ["make", "--dry-run", *shlex.split(words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert runs in done.stdout.splitlines()[-1]
    assert ("--hlo x" in done.stdout) is ("--hlo" in words)


def test_the_switch_needs_no_value():
    assert split_words(["--compile", "--gpu", "h200"])[0] == ["--compile", "True", "--gpu", "h200"]
    assert split_words(["--compile", "False"])[0] == ["--compile", "False"]


def test_rewards_of_the_device_are_the_experiments_own_and_others_count_tokens():
    def judge(prompts, responses):
        return [0.0] * len(prompts)

    experiment = TINY._replace(reward=[TINY.reward, (0.5, judge)])
    planned = open_planned(experiment, TINY.base, "tpu", 4)
    mesh = make_mesh(planned.config.parallel, jax.devices()[:1] * 4)
    rewards, stand_ins = abstract_rewards(experiment, planned, mesh)
    assert stand_ins == ("judge",) and rewards.weights == {"vowels": 1.0, "judge": 0.5}
    assert rewards.rules["judge"] is compile_check.count_tokens
    assert rewards.rules["vowels"] is not compile_check.count_tokens
    shapes = jax.tree.leaves((rewards.tables, rewards.columns))
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in shapes)


def test_a_reward_that_is_a_model_is_in_the_step(tmp_path):
    """Of a run that is not there: the shape is that of the stage it will begin from."""
    dialogue = load_experiment("dialogue")
    quick = {"parallel.fsdp": 2, "run.dir": str(tmp_path), "rollout.batch_size": 16}
    quick |= {"ppo.token_sizes": None, "rollout.compactions": 0}
    planned = open_planned(dialogue, replace(dialogue.base, **quick), "cpu", 4)
    mesh = make_mesh(planned.config.parallel, jax.devices()[:4])
    rewards, stand_ins = abstract_rewards(dialogue, planned, mesh)
    assert stand_ins == () and rewards.rules.keys() == rewards.models.keys() == {"reward_model"}
    decoder = decoder_of(planned.config, planned.case.model, mesh)
    lowered = lower_step(planned.config, planned.case, mesh, decoder, rewards=rewards)
    frozen = lowered.args_info[0][1]["reward"]["reward_model"]
    shapes = abstract_reward_model(planned.config, planned.case.reward_models[0])
    same = lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype)
    assert jax.tree.all(jax.tree.map(same, frozen, shapes))
    model = rewards.rules["reward_model"].args[0]
    assert model.unread is None and model.parts == 4 and model.decoder.attention == "xla"


def test_the_smallest_array_that_counts_as_a_weight_or_a_cache():
    model = TINY.base.model.shape
    case, mesh = Case(model, None, 12, 4, "gpu"), {"data": 4, "fsdp": 1, "tensor": 1}
    config = replace(TINY.base, **{"model.compute_dtype": "bfloat16"})
    slots = config.rollout.batch_size // 4 // 2
    columns = 12 + config.rollout.max_new_tokens
    cache = slots * model.num_kv_heads * columns * model.head_dim * 2
    assert smallest_array(config, case, mesh) == min(cache, 2 * model.embed_dim * model.mlp_dim)


@pytest.mark.parametrize("experiment", SCALE, ids=lambda e: e.name)
def test_published_shapes_can_be_planned_for(experiment):
    """Parameters as their cards count them, and rows that the chips can share."""
    devices = 16 if experiment.name == "llama8b" else 8
    planned = open_planned(experiment, experiment.base, "tpu", devices)
    mesh = make_mesh(planned.config.parallel, jax.devices()[:1] * devices)
    assert batch_devices(mesh) == devices and planned.config.model.attention == "splash"
    state, _ = abstract_weights(planned.config, planned.case.model, None)
    count = sum(x.size for x in jax.tree.leaves(state.params["policy"]))
    published = {"qwen05b": 0.494e9, "qwen15b": 1.544e9, "llama8b": 8.030e9}
    assert count == pytest.approx(published[experiment.name], rel=1e-3)


def test_no_target_and_two_targets():
    for options in (PlanArgs(compile=True), PlanArgs(gpu="h200", accelerator="v6e-8")):
        with pytest.raises(ConfigError):
            open_target(options)

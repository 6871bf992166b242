"""What rests on the host: where it lies, that it changes no bit, and what is refused."""

import types
from pathlib import Path

import jax
import numpy as np
import pytest

import step_builders as builders
from faults.launch import exact
from ppo_jax import offload
from ppo_jax.book import all_finite
from ppo_jax.checkpoint import open_saver, save
from ppo_jax.config import Config, replace
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.memory import memory_of
from ppo_jax.memory_weights import Case, abstract_weights, tree_bytes
from ppo_jax.plan_advice import advise
from ppo_jax.restore import abstract_like, restore, restore_params
from ppo_jax.run_folder import run_folder
from ppo_jax.train import train
from ppo_jax.validate import check_config
from tiny_runs import CONFIG, half_and_half, write_prompts

QUICK = {"rollout.compactions": 0, "rollout.cache_widths": 1, "ppo.epochs": 1}
MOVING = {"reward.reference": "ema", "hparams.reference_decay": 0.9}
CASES = {  # devices of `data`, changes, kinds
    "one": (1, {"model.scan_layers": "scan"}, ("reference", "optimizer")),
    "shared": (2, {"parallel.fsdp": 2, **MOVING}, ("both",)),
}


def case_of(name: str, kind: str) -> builders.Case:
    data, changes, _ = CASES[name]
    config = replace(builders.BASE, **QUICK, **changes, **{"parallel.offload": kind})
    return builders.case(config, data)


def on_host(tree) -> bool:
    """Whether all matrices are; everything else never is."""
    kinds = {(x.ndim > 1, x.sharding.memory_kind) for x in jax.tree.leaves(tree)}
    assert (False, offload.HOST) not in kinds
    found = {kind == offload.HOST for is_matrix, kind in kinds if is_matrix}
    assert len(found) <= 1
    return True in found


@pytest.mark.parametrize("name, kind", [(name, kind) for name in CASES for kind in CASES[name][2]])
def test_where_arrays_rest_and_that_no_bit_changes(name, kind):
    built, plain = case_of(name, kind), case_of(name, "none")
    state, history, rollouts = builders.run(built, 2)
    other, other_history, other_rollouts = builders.run(plain, 2)
    assert builders.same(state, other) and builders.same(rollouts, other_rollouts)
    assert history == other_history
    for now in (built.state, state):
        assert on_host(now.opt_state) == (kind != "reference") and not on_host(now.params)
        reference = built.frozen["ref"] if now.ref is None else now.ref
        assert on_host(reference) == (kind != "optimizer")
        assert bool(all_finite((now.params, now.opt_state)))
    assert not on_host((other.opt_state, other.ref, plain.frozen["ref"]))
    before = jax.tree.map(lambda x: x.sharding, built.state)
    assert jax.tree.map(lambda x: x.sharding, state) == before


def test_under_pmap():
    config = replace(builders.BASE, **QUICK, **{"parallel.offload": "both"})
    built = builders.case(replace(config, **{"parallel.rollout": "pmap"}), 2)
    state, history, _ = builders.run(built, 1)
    assert on_host(state.opt_state) and on_host(built.frozen["ref"])
    assert history[0]["update/skipped_nonfinite"] == 0


@pytest.mark.parametrize("kind, wanted", [("none", "both"), ("both", "none"), ("both", "both")])
def test_checkpoints_are_of_any_memory(kind, wanted, tmp_path):
    def state_of(kind: str):
        config = replace(builders.BASE, **MOVING, **{"parallel.fsdp": 2, "parallel.offload": kind})
        return builders.start(builders.setup_of(config, 2))[0]

    saved, asked = state_of(kind), state_of(wanted)
    with open_saver(tmp_path, keep=1) as saver:
        save(saver, 1, saved)
    found = restore(tmp_path, 1, abstract_like(asked))
    assert builders.same(found, saved)
    assert on_host(found.opt_state) == on_host(found.ref) == (wanted == "both")
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, asked)


def test_a_moment_that_is_not_finite_is_found_where_it_rests():
    state = case_of("one", "optimizer").state
    spoil = lambda x: jax.device_put(np.full(x.shape, np.nan, x.dtype), x.sharding)
    broken = jax.tree.map(lambda x: spoil(x) if offload.rests(x) else x, state.opt_state)
    assert not bool(all_finite(broken))


def test_a_run_goes_on_with_another_value_bit_for_bit(tmp_path):
    """With a reward in Python, whose iterations are three programs."""
    prompts = write_prompts(tmp_path)

    def launch(folder: str, iterations: int, kind: str):
        changes = {"run.dir": str(tmp_path / folder), "data.path": prompts}
        changes |= {"run.checkpoint_every": 1, "ppo.token_sizes": None, **QUICK}
        changes |= {"run.iterations": iterations, "parallel.offload": kind}
        config = replace(CONFIG, **changes)
        train(config, Experiment("case", config, half_and_half(), Path("case.py"), ""))
        return run_folder(tmp_path / folder / "case" / "base" / "seed0")

    straight = launch("straight", 2, "none")
    launch("parts", 1, "both")
    parts = launch("parts", 2, "optimizer")
    assert exact(straight) == exact(parts)
    one, other = (restore_params(folder.checkpoints) for folder in (straight, parts))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("kind, near", [("reference", "none"), ("both", "optimizer")])
def test_the_base_under_adapters_is_not_moved(kind, near):
    config = replace(Config(), **{"model.lora.rank": 4, "parallel.offload": kind})
    says = rf"^parallel.offload={kind}: with model.lora.rank=4 .*nearest valid: {near}$"
    with pytest.raises(ConfigError, match=says) as error:
        check_config(config)
    assert error.value.exit_code == 2
    check_config(replace(config, **{"parallel.offload": near}))


def test_devices_that_do_not_reach_the_host_are_refused():
    memory = types.SimpleNamespace(kind="device")
    bare = types.SimpleNamespace(addressable_memories=lambda: [memory], device_kind="a toy")
    config = replace(Config(), **{"parallel.offload": "both"})
    says = r"^parallel.offload=both: a toy has no memory .*pinned_host.*nearest valid: none$"
    with pytest.raises(ConfigError, match=says):
        offload.check_memories(config, [bare])
    offload.check_memories(Config(), [bare])
    offload.check_memories(config, jax.devices())


def planned(kind: str, **changes):
    settled = {"model.compute_dtype": "bfloat16", "model.scan_layers": "scan"}
    config = replace(Config(), **settled, **changes, **{"parallel.offload": kind})
    return config, Case(config.model.shape, None, 16, 1, "gpu")


@pytest.mark.parametrize("moving", [{}, MOVING])
def test_the_plan_counts_what_rests_on_the_host(moving):
    config, case = planned("none", **moving)
    state, frozen = abstract_weights(config, case.model, None)
    sizes = {"ref": tree_bytes((state.ref, frozen["ref"])), "opt": tree_bytes(state.opt_state)}
    usual = memory_of(config, case)
    assert usual.host == 0
    at = lambda made, phase: sum(made.phases[phase].values())
    for kind, names in {"reference": ["ref"], "optimizer": ["opt"], "both": ["ref", "opt"]}.items():
        made = memory_of(*planned(kind, **moving))
        assert made.host == sum(sizes[name] for name in names)
        missing = {phase: at(usual, phase) - at(made, phase) for phase in usual.phases}
        here = {"score": sizes["ref"] * ("ref" in names)}
        here["optimiser"] = sizes["opt"] * ("opt" in names)
        for phase, bytes_ in missing.items():
            assert bytes_ == pytest.approx(made.host - here.get(phase, 0.0))
        early = memory_of(config, case._replace(platform="tpu")).phases["rollout"]["params"]
        other, tpu = planned(kind, **moving)[0], case._replace(platform="tpu")
        assert memory_of(other, tpu).phases["rollout"]["params"] == pytest.approx(early)


def test_it_is_proposed_where_there_is_such_memory():
    config, case = planned("none")
    room = 1.02 * max(memory_of(*planned(kind)).peak for kind in ("reference", "both")) / 0.95
    found = {}
    for platform in ("cpu", "gpu", "tpu"):
        changes = advise(config, case._replace(platform=platform), room)
        found[platform] = [c.values for c in changes if "parallel.offload" in c.values]
    assert found["cpu"] == [] and found["gpu"] and found["tpu"]
    adapters = [c.values for c in advise(planned("both")[0], case, room / 2)]
    assert all(
        values["parallel.offload"] == "none" for values in adapters if "model.lora.rank" in values
    )

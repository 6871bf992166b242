"""Any mesh of eight devices gives one device's tokens, losses and gradients."""

import fcntl
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mesh_runs
from ppo_jax.errors import ConfigError
from ppo_jax.validate import check_shared

TESTS = Path(__file__).parent
OWN = ("rollout/slot_use", "rollout/slot_steps", "update/padding")  # what a mesh may make its own
ROUNDING = ("rollout/logprob_gap", "ratio", "approxkl")  # metrics that are rounding alone
FULL = "data 2, fsdp 2, tensor 2"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """`runs(kind)` -> {(kind, mesh, rollout): {name: array}}, made once for all workers."""
    several = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    of_group = functools.cache(functools.partial(_runs, base.parent if several else base))
    return lambda kind: of_group(mesh_runs.group_of(kind))


def _runs(folder: Path, group: str):
    out, found = folder / f"meshes-{group}.npz", {}
    with open(folder / f"meshes-{group}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the file is closed
        if not out.exists():
            _make(group, out)
    with np.load(out, allow_pickle=False) as arrays:
        for name, array in arrays.items():
            *case, key = name.split("/", 3)
            found.setdefault(tuple(case), {})[key] = array
    return found


def _make(group: str, out: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, str(TESTS / "mesh_runs.py"), group, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


CASES = [case for case in mesh_runs.cases() if case[1] != "one"]
every_case = pytest.mark.parametrize("case", CASES, ids=" ".join)


@every_case
def test_a_mesh_agrees_with_one_device(runs, case):
    of_kind = runs(case[0])
    one, other = of_kind[case[0], "one", "shard_map"], of_kind[case]
    assert one.keys() == other.keys()
    compared = 0
    for name, array in other.items():
        if name.startswith("ids "):
            np.testing.assert_array_equal(array, one[name], err_msg=name)
            compared += 1
        elif name.startswith("gradient "):
            largest = np.abs(one[_in_scale_with(case[0], name)]).max()
            np.testing.assert_allclose(array, one[name], rtol=0, atol=1e-5 * largest, err_msg=name)
            assert largest > 1e-4, name
            compared += 1
        elif name.startswith("metric ") and not name.endswith(OWN):
            near = 1e-5 if any(word in name for word in ROUNDING) else 2e-6
            np.testing.assert_allclose(array, one[name], rtol=1e-5, atol=near, err_msg=name)
            compared += 1
    assert compared > 50


def _in_scale_with(kind: str, name: str) -> str:
    """The gradient whose size this one's errors have: its own, but where it is zero. The softmax
    does not see what a key's bias adds to all scores alike, unless the keys are rotated."""
    return name.replace("['k']['bias']", "['v']['bias']") if kind == "gpt" else name


@every_case
def test_the_decode_loop_speaks_to_no_other_rows(runs, case):
    facts = runs(case[0])[case]
    assert facts["needless collectives"] == 0
    assert (facts["decode collectives"] > 0) == ("tensor" in case[1])


@every_case
def test_the_collectives_counted_are_those_written(runs, case):
    """What finds none in the decode loop finds them where they are."""
    facts = runs(case[0])[case]
    assert facts["kinds"].tolist() == facts["kinds written"].tolist()
    sizes = zip(("data", "fsdp", "tensor"), mesh_runs.MESHES[case[1]], strict=True)
    assert facts["update axes"].tolist() == [axis for axis, size in sizes if size > 1]


@every_case
def test_the_cache_is_split_by_rows_and_heads(runs, case):
    data, fsdp, tensor = mesh_runs.MESHES[case[1]]
    config = mesh_runs.config_of(*case)
    model, rows = config.model.shape, config.rollout.batch_size
    shape = [rows // (data * fsdp), model.num_kv_heads // tensor]
    shape += [6 + config.rollout.max_new_tokens, model.head_dim]  # after a prompt of 6 columns
    assert runs(case[0])[case]["caches"].tolist() == [shape] * (2 * model.num_layers)


@pytest.mark.parametrize("mesh, shares", [("data 8", 8), ("fsdp 8", 8), ("data 4, tensor 2", 4)])
def test_devices_stop_at_their_own_longest_row(runs, mesh, shares):
    steps_B = runs("unrolled")["unrolled", mesh, "shard_map"]["slot steps 0"]
    per_device = steps_B.reshape(shares, -1)
    np.testing.assert_array_equal(per_device, per_device[:, :1] + 0 * per_device)
    assert len(set(per_device[:, 0].tolist())) > 1


@every_case
def test_a_device_holds_its_share_of_every_weight(runs, case):
    """Of the weights and of their moments, after two iterations."""
    facts = runs(case[0])[case]
    held = {name: array for name, array in facts.items() if name.startswith("share ")}
    for name, share in held.items():
        assert share * _shares(name, *mesh_runs.MESHES[case[1]][1:]) == 1, name
    assert case[1] == "data 8" or sum(share < 1 for share in held.values()) > 15


def _shares(name: str, fsdp: int, tensor: int) -> int:
    """In how many shares a weight lies, by the last two names of its path."""
    module, leaf = (["", ""] + re.findall(r"'(\w+)'", name))[-2:]
    reads, writes = module in ("q", "k", "v", "qkv", "up", "gate"), module in ("o", "down")
    if leaf in ("kernel", "embedding") and module != "head":
        return fsdp if module == "positions" else fsdp * tensor
    if leaf in ("lora_a", "lora_b") and (reads or writes):
        return fsdp if (leaf == "lora_a") == reads else tensor
    return tensor if leaf == "bias" and reads else 1


@pytest.mark.parametrize("kind", mesh_runs.FAMILIES)
def test_tensor_shares_a_family_or_refuses_it(kind):
    config = mesh_runs.config_of(kind, FULL)
    if kind not in mesh_runs.FUSED:
        check_shared(config, config.model.shape, 8)
        return
    line = f"parallel.tensor=2: the models of family {kind} .* nearest valid: 1"
    with pytest.raises(ConfigError, match=line):
        check_shared(config, config.model.shape, 8)
    assert (kind, "fsdp 8", "shard_map") in CASES

"""Runs that share a program are the runs that they would be alone."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import Mesh

from faults.launch import CLOCK, differences, experiment, here
from ppo_jax import vmapped, vmapped_train
from ppo_jax.arguments import TrainArgs
from ppo_jax.baseline import FILE
from ppo_jax.config import HParams, replace
from ppo_jax.errors import Preempted
from ppo_jax.experiment import load_experiment
from ppo_jax.grid import read_grid
from ppo_jax.kind import PPO
from ppo_jax.metrics import read_metrics, read_samples
from ppo_jax.preemption import Preemption
from ppo_jax.run_folder import run_folder
from ppo_jax.sharding import make_runs_mesh
from ppo_jax.step import train_step

# In the program of all of them, with other values than in `OTHERS`.
ON = {
    "critic_lam": 0.9,
    "log_ratio_clamp": 5.0,
    "dual_clip": 3.0,
    "entropy_coef": 0.01,
    "target_kl": 10.0,
    "score_clip": 5.0,
    "missing_eos_penalty": 0.1,
    "length_penalty": 0.01,
}
# Those that this model and this sampler have no use for.
IDLE = {"critic_learning_rate", "tis_cap", "overlong_penalty"}
OTHERS = {
    "learning_rate": 3e-4,
    "lam": 0.5,
    "critic_lam": 0.6,
    "gamma": 0.9,
    "temperature": 0.7,
    "clip_low": 0.1,
    "clip_high": math.inf,
    "dual_clip": 2.0,
    "log_ratio_clamp": 0.5,
    "value_clip": 0.1,
    "vf_coef": 0.3,
    "entropy_coef": 0.05,
    "target_kl": 1e-3,
    "max_grad_norm": 0.3,
    "kl_coef": 0.2,
    "kl_target": 0.5,
    "kl_gain": 0.4,
    "kl_max_step": 0.3,
    "kl_damping": 1.0,
    "score_clip": 0.5,
    "missing_eos_penalty": 0.7,
    "length_penalty": 0.05,
    "reference_decay": 0.7,
}
assert {*OTHERS} | IDLE == {field.name for field in dataclasses.fields(HParams)}
RUNS = {
    "plain": {},
    "lam": {"hparams.lam": 0.5},
    "temperature": {"hparams.temperature": 0.7},
    "all": {f"hparams.{name}": value for name, value in OTHERS.items()},
}
SWEEP = (
    f"inf = float('inf')\nRUNS = {RUNS!r}\nREWARD = ascii_share\nSEEDS = (3, 4)\n"
    "def JUDGE(rollout, columns):\n    return rollout.lengths_B - ascii_share(rollout, columns)\n"
)
FLAGS = ["--run.iterations", "4", "--run.checkpoint_every", "2", "--run.eval_every", "2"]
OTHERWISE = ("update/padding",)  # parts by tokens have less of it, and none share a program
# What rounding may do to values of about 1 in four iterations; entropies and KLs are sums.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vmapped")
    on = {f"hparams__{name}": value for name, value in ON.items()}
    path = experiment(folder, reward=SWEEP)
    held_out = str(path.parent / "prompts.jsonl")
    return experiment(folder, reward=SWEEP, data__eval_path=held_out, **on)


def sweep(path, runs, *flags):
    return here("sweep", str(path), "--run.dir", str(runs), *FLAGS, *flags)


def cells(runs):
    found = json.loads((runs / "case" / "sweep.json").read_text())["cells"]
    return {f"{c['name']}/seed{c['seed']}": run_folder(runs / "case" / c["dir"]) for c in found}


@pytest.fixture(scope="module", params=["at once", "one by one"])
def together(file, request):
    """Of four devices, on each at once, or one by one as on a processor."""
    runs = file.parent / request.param
    with pytest.MonkeyPatch.context() as patched:
        as_in(runs, patched)
        assert sweep(file, runs, "--vmap") == (0, "")
    return runs


def as_in(runs, patched):
    """In the way in which these runs shared a program."""
    patched.setattr(vmapped, "in_turn", lambda: runs.name == "one by one")


def assert_alike(left, right):
    one, other = (list(read_metrics(folder.metrics)) for folder in (left, right))
    assert len(one) == len(other) == 4
    judged = {"eval/judge", "eval/judge.JUDGE", "eval/win_rate"}
    assert [judged <= row.keys() for row in one] == [False, True, False, True]
    kept = lambda folder: json.loads((folder.root / FILE).read_text())
    assert kept(left)["responses"] == kept(right)["responses"]
    for mine, theirs in zip(one, other, strict=True):
        plain = lambda row: {
            name: value
            for name, value in row.items()
            if not name.startswith(CLOCK) and name not in OTHERWISE
        }
        assert plain(mine) == pytest.approx(plain(theirs), rel=TOLERANCE, abs=TOLERANCE)
    texts = lambda folder: [row["response"] for row in read_samples(folder.samples)]
    assert texts(left) == texts(right) and len(texts(left)) == 8


def test_each_run_is_the_one_that_it_would_be_alone(file, together):
    found = cells(together)
    assert len(found) == 8
    alone = file.parent / "alone"
    for name in ("plain/seed3", "all/seed4"):
        assert sweep(file, alone, "--parallel.data", "1", "--only", name)[0] == 0
        assert_alike(found[name], cells(alone)[name])
        assert json.loads(found[name].status.read_text())["status"] == "done"
    first = [next(iter(read_samples(folder.samples)))["response"] for folder in found.values()]
    assert len(set(first)) > 2  # runs are not copies of each other


def test_on_one_device_each_is_what_it_would_be_alone_bit_for_bit(file, monkeypatch):
    monkeypatch.setattr(vmapped, "make_runs_mesh", lambda runs: Mesh(jax.devices()[:1], ("runs",)))
    one, names = file.parent / "one", ("plain/seed3", "all/seed4")
    assert sweep(file, one, "--vmap", "--only", *names) == (0, "")
    for name in names:
        alone = file.parent / "alone"
        assert sweep(file, alone, "--parallel.data", "1", "--only", name)[0] == 0
        assert not differences(cells(one)[name], cells(alone)[name])


def test_a_signal_saves_all_and_they_go_on_bit_for_bit(file, together, monkeypatch):
    runs, asked = file.parent / f"halves {together.name}", Preemption()
    as_in(together, monkeypatch)
    make_batch = vmapped.make_batch

    def ended_in_the_third(group, step):
        if step == 2:
            asked.asked.set()
        return make_batch(group, step)

    grid = read_grid(load_experiment(file), ["--run.dir", str(runs), *FLAGS])
    configs = [cell.config for cell in grid.cells]
    with monkeypatch.context() as patched, pytest.raises(Preempted, match="saved step 3"):
        patched.setattr(vmapped, "make_batch", ended_in_the_third)
        vmapped_train.train_together(configs, grid.experiment, TrainArgs(), asked)
    assert sweep(file, runs, "--vmap") == (0, "")
    for name, folder in cells(runs).items():
        assert json.loads(folder.status.read_text())["status"] == "done"
        assert not differences(folder, cells(together)[name])


def test_a_run_that_is_no_longer_finite_ends_alone(file):
    runs = file.parent / "diverging"
    rates = 'GRID = {"hparams.learning_rate": (1e-3, 1e38), "hparams.lam": (0.5, 1.0)}\n'
    path = file.with_name("case2.py")
    path.write_text(file.read_text().replace("RUNS = ", "OTHER = ") + rates)
    code, err = here("sweep", str(path), "--run.dir", str(runs), *FLAGS, "--vmap")
    assert code == 3 and "not finite" in err
    found = json.loads((runs / "case2" / "sweep.json").read_text())["cells"]
    states = {
        cell["name"]: json.loads(run_folder(runs / "case2" / cell["dir"]).status.read_text())
        for cell in found
    }
    for name, status in states.items():
        assert status["status"] == ("failed" if "1e+38" in name else "done"), name
        assert ("not finite" in status.get("error", "")) == ("1e+38" in name)


@pytest.mark.parametrize(
    ("text", "flags", "line"),
    [
        ("", ["--parallel.fsdp", "2"], "parallel.fsdp=2: runs that share a program"),
        ("", ["--index", "1"], "--index: beside --vmap"),
        ("REWARD = ascii_text\n", [], "--vmap: ascii_text is ordinary Python"),
        ("JUDGE = ascii_text\n", [], "--vmap: judge.ascii_text is ordinary Python"),
    ],
)
def test_what_cannot_share_a_program_is_refused(file, text, flags, line):
    path = file.with_name("case3.py")
    path.write_text(file.read_text() + text)
    runs = file.parent / "refused"
    code, err = here("sweep", str(path), "--run.dir", str(runs), *FLAGS, "--vmap", *flags)
    assert code == 2 and line in err and err.count("\n") == 1


def test_cells_of_one_shape_differ_in_seeds_and_hyper_parameters_alone():
    tiny = load_experiment("tiny").base
    shape = lambda **changes: vmapped.shape_of(replace(tiny, **changes))
    same = shape()
    assert same == shape(**{"run.seed": 7, "run.cell": "x", "hparams.lam": 0.0})
    assert same == shape(**{"hparams.clip_low": float("inf")})
    assert same != shape(**{"hparams.value_clip": None})  # which is not in the program
    assert same != shape(**{"ppo.epochs": 1})
    assert same != shape(**{"rollout.batch_size": 32})


def test_runs_that_devices_do_not_share_evenly(file):
    """Five on four devices: three devices with two each, of which one is there twice."""
    grid, prepared = read_grid(load_experiment(file), FLAGS), []
    for cell in grid.cells[:5]:
        opened = PPO.open(vmapped.config_of(cell.config), grid.experiment)
        prepared.append(PPO.prepare(opened))
    expected = [jax.device_get((state.params, run.hparams)) for run, state, _ in prepared]
    group = vmapped.join(opened, prepared)
    assert len(group.runs) == 5 and group.mesh.size == 3
    prompts, states = vmapped.make_batch(group, 0), (group.states.params, group.hparams)
    for leaf in jax.tree.leaves((prompts, states)):
        assert leaf.shape[0] == 6 and bool((leaf[4] == leaf[5]).all())
    for index, own in enumerate(expected):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), vmapped.run_of(states, index), own)
        assert all(jax.tree.leaves(same)), index


@pytest.mark.parametrize("said", [None, 3])
def test_each_core_is_a_device_unless_their_number_was_said(said):
    flags = "" if said is None else f"--xla_force_host_platform_device_count={said}"
    code = "import jax; from ppo_jax import vmapped; vmapped.use_cores(); print(jax.device_count())"
    code += "; vmapped.use_cores()"  # too late: nothing
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE)
    assert ran.returncode == 0 and int(ran.stdout) == (said or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("runs", "devices"), [(1, 1), (3, 3), (4, 4), (5, 3), (7, 4), (8, 4), (9, 3), (11, 4), (12, 4)]
)
def test_no_device_has_more_runs_than_it_must(runs, devices):
    assert make_runs_mesh(runs).size == devices  # of four


def test_a_loop_of_all_runs_has_one_exit(file, monkeypatch):
    """A predicate of each run would have XLA select between old and new caches at every token."""
    grid = read_grid(load_experiment(file), FLAGS)
    prepared = []
    for cell in grid.cells[:2]:
        opened = PPO.open(vmapped.config_of(cell.config), grid.experiment)
        prepared.append(PPO.prepare(opened))
    monkeypatch.setattr(vmapped, "in_turn", lambda: False)
    group = vmapped.join(opened, prepared)
    step = functools.partial(train_step, group.setup)
    step = vmapped.over_runs(group, step, (0, group.axes, 0, 0))
    prompts = vmapped.make_batch(group, 0)
    program = jax.make_jaxpr(step)(group.states, group.frozen, group.hparams, prompts)
    loops = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name == "while"]
    exits = [eqn.params["cond_jaxpr"].out_avals[0].shape for eqn in loops]
    assert exits and set(exits) == {()}


def equations(jaxpr):
    """All of a program, those inside of others too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)

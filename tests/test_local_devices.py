"""Which GPUs of its machine are a process's own, and what JAX is told."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from ppo_jax import clusters, processes
from ppo_jax.arguments import ProcessArgs
from ppo_jax.errors import ConfigError
from ppo_jax.preemption import Preemption
from test_clusters import SLURM, set_variables

NODE = {"SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "1", "SLURM_LOCALID": "3"}
EIGHT = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
FOUR = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
RANK = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


@pytest.mark.parametrize(
    "environ, devices",
    [
        ({}, None),
        (EIGHT, None),
        (SLURM | EIGHT, None),
        (SLURM | EIGHT | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, None),
        (SLURM | FOUR | NODE, [3]),
        (SLURM | EIGHT | NODE, [6, 7]),
        (SLURM | FOUR | NODE | {"SLURM_NODEID": "2", "SLURM_LOCALID": "1"}, [2, 3]),
        (SLURM | FOUR | {"SLURM_NTASKS_PER_NODE": "4", "SLURM_LOCALID": "2"}, [2]),
        (SLURM | NODE, [3]),  # it says nothing of GPUs
        (SLURM | NODE | {"CUDA_VISIBLE_DEVICES": "0"}, None),  # each task is shown its own
        (SLURM | NODE | FOUR | {"SLURM_GPUS_PER_TASK": "4"}, None),
        (RANK | EIGHT, [4, 5, 6, 7]),
        (RANK, [1]),
        (RANK | {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, None),
        (RANK | {"JAX_LOCAL_DEVICE_IDS": "0,2"}, [0, 2]),
    ],
)
def test_which_gpus_are_a_process_s_own(environ, devices, monkeypatch):
    monkeypatch.setattr(clusters.glob, "glob", lambda pattern: [])
    assert clusters.local_devices(environ) == devices


def test_gpus_are_counted_where_nobody_says_how_many(monkeypatch):
    monkeypatch.setattr(clusters.glob, "glob", lambda pattern: list("01234567"))
    assert clusters.local_devices(RANK) == [4, 5, 6, 7]


@pytest.mark.parametrize(
    "environ, name, value",
    [
        (RANK, "OMPI_COMM_WORLD_LOCAL_RANK", "x"),
        (RANK, "OMPI_COMM_WORLD_LOCAL_SIZE", "x"),
        (SLURM | NODE, "SLURM_NODEID", "x"),
        (SLURM | NODE, "SLURM_STEP_TASKS_PER_NODE", "many"),
        (RANK, "JAX_LOCAL_DEVICE_IDS", "all"),
    ],
)
def test_gpus_that_cannot_be_told_are_an_error(environ, name, value):
    with pytest.raises(ConfigError, match=f"^{name}={value}: "):
        clusters.local_devices(environ | {name: value})


@pytest.mark.parametrize("tasks, devices", [("1(x2)", None), ("2", [2, 3])])
@pytest.mark.parametrize("own", [0, 1])
def test_jax_is_told_all_that_it_would_find_otherwise(monkeypatch, tasks, devices, own):
    """It would give each process of Slurm a single GPU."""
    local = {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": tasks}
    set_variables(monkeypatch, SLURM | FOUR | local | {"SLURM_PROCID": str(own)})
    told = []
    links: Any = SimpleNamespace(post=lambda *_: None, collect=lambda _: [1234], part=lambda: None)

    def link(address, total, own, preemption, seconds):
        group = processes.Group(own, total, address[0], preemption)
        group.links = links
        return group

    monkeypatch.setattr(processes, "_group", None)
    monkeypatch.setattr(processes, "_link", link)
    monkeypatch.setattr(processes.relay, "relay", lambda host, port, _: f"relay of {host}:{port}")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **o: told.append((a, o)))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    with processes.joined(ProcessArgs(), Preemption()):
        pass
    options = {"local_device_ids": devices, "cluster_detection_method": "deactivate"}
    options["coordinator_bind_address"] = "[::]:1234"
    assert told == [((("localhost:1234", "relay of n1:1234")[own], 2, own), options)]

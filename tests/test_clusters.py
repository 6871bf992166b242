"""Which flags and environments say that a process is one of several, and which are refused."""

import dataclasses
import http.server
import os
import re
import threading
import time

import pytest

from ppo_jax import clusters, processes
from ppo_jax.arguments import ProcessArgs, take_values
from ppo_jax.errors import ConfigError
from ppo_jax.main import main
from process_runs import free_port

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}
MPI6 = MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp6://[fd00::2,fd00::3]:43370"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
TPU = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
THREE = {"coordinator": "host:1234", "processes": 2, "process": 1}


def set_variables(monkeypatch, environ):
    """Of this process: those of clusters to these alone."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "CUDA_", "JAX_COORDINATOR")):
            monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_values_are_taken_out_of_the_words():
    words = "--run.dir x --coordinator host:1 --processes=4 --process 3 --strict_resume".split()
    args, rest = take_values(ProcessArgs, words)
    assert (args.coordinator, args.processes, args.process) == ("host:1", 4, 3)
    assert rest == ["--run.dir", "x", "--strict_resume"]
    assert take_values(ProcessArgs, ["--join-seconds", "20"])[0].join_seconds == 20.0


@pytest.mark.parametrize(
    "words, said",
    [
        (["--processes", "two"], "--processes=two: must be a number"),
        (["--process"], "--process: a value is missing"),
        (["--process", "--run.dir", "x"], "--process: a value is missing"),
        (["--distributed", "on"], "--distributed=on: must be one of auto, off"),
    ],
)
def test_a_flag_without_its_value_is_named(words, said):
    with pytest.raises(ConfigError, match=said):
        take_values(ProcessArgs, words)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"coordinator": None}, "--coordinator: needed beside --processes, --process"),
        ({"processes": None, "process": None}, "--processes, --process: needed beside --coord"),
        ({"distributed": "off"}, "--coordinator: does not go with --distributed off"),
        ({"coordinator": "host"}, "--coordinator=host: must be HOST:PORT"),
        ({"coordinator": "host:99999"}, "must be HOST:PORT"),
        ({"coordinator": ":1"}, "must be HOST:PORT"),
        ({"coordinator": "fd00::2"}, "--coordinator=fd00::2: must be HOST:PORT.* in brackets"),
        ({"coordinator": "fd00::2:1234"}, "in brackets"),
        ({"processes": 0}, "--processes=0: must be at least 1"),
        ({"process": 2}, "--process=2: must be 0 to 1, with --processes 2"),
        ({"process": -1}, "--process=-1: must be 0 to 1"),
    ],
)
def test_flags_that_do_not_go_together_are_named(changes, said):
    processes.check(ProcessArgs(**THREE))
    with pytest.raises(ConfigError, match=said):
        processes.check(dataclasses.replace(ProcessArgs(**THREE), **changes))


def test_an_ipv6_address_stands_in_brackets():
    processes.check(ProcessArgs("[fd00::2]:1234", 2, 1))


def test_wrong_flags_end_with_code_2_before_anything_is_loaded(capsys):
    began = time.monotonic()
    assert main(["train", "tiny", "--coordinator", "host:1"]) == 2
    assert "--processes, --process: needed" in capsys.readouterr().err
    assert main(["train", "tiny", "--join_seconds", "0"]) == 2
    assert "join_seconds" in capsys.readouterr().err and time.monotonic() - began < 20


@pytest.mark.parametrize(
    "environ, found",
    [
        ({}, None),
        (SLURM, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        # Within salloc, or a batch script without srun.
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),
        (MPI, "Open MPI"),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (POD, None),
    ],
)
def test_what_a_cluster_says(environ, found):
    assert clusters.detect(environ) == found


WRONG = [
    (SLURM, "SLURM_NTASKS", "two"),
    (SLURM, "SLURM_PROCID", "abc"),
    (SLURM, "SLURM_PROCID", "-1"),
    (SLURM, "SLURM_JOB_ID", "7_1"),
    (SLURM, "JAX_COORDINATOR_ADDRESS", "host"),
    (SLURM, "JAX_COORDINATOR_PORT", "http"),
    (SLURM, "JAX_COORDINATOR_PORT", "65536"),
    (MPI, "OMPI_COMM_WORLD_SIZE", "4.0"),
    (MPI, "OMPI_COMM_WORLD_RANK", "abc"),
    (MPI, "OMPI_MCA_orte_hnp_uri", "x;tcp://10.0.0.1:1"),
    (MPI, "OMPI_MCA_orte_hnp_uri", "1.0;usock"),
    (POD, "JOB_COMPLETION_INDEX", "first"),
    (TPU, "TPU_WORKER_ID", "None"),
    (TPU, "MEGASCALE_NUM_SLICES", "two"),
    (TPU, "MEGASCALE_SLICE_ID", "-1"),
]


@pytest.mark.parametrize("environ, name, value", WRONG)
def test_what_no_cluster_says_is_named(environ, name, value, monkeypatch):
    monkeypatch.setattr(clusters, "_has_tpus", lambda: environ is TPU)
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: name == "kubernetes")
    with pytest.raises(ConfigError, match=f"^{name}={re.escape(value)}: "):
        clusters.detect(environ | {name: value})


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"SLURM_PROCID": "abc"}, "SLURM_PROCID=abc: must be a number"),
        ({"SLURM_PROCID": "2"}, "Slurm: .* did not find each other .*process 2 of 2"),
        ({"SLURM_LOCALID": "x"}, "SLURM_LOCALID=x: must be a number"),
        ({"SLURM_STEP_NODELIST": ""}, "Slurm: .* did not find each other .*the first at ':"),
    ],
)
def test_a_wrong_variable_ends_with_code_2(monkeypatch, capsys, changes, said):
    set_variables(monkeypatch, SLURM | changes)
    assert main(["train", "tiny", "--join_seconds", "1"]) == 2
    err = capsys.readouterr().err
    assert re.search(said, err) and len(err.splitlines()) == 1, err


def test_processes_of_a_cluster_that_do_not_come_may_come_later(monkeypatch, capsys):
    """Another start cures that: it is no mistake in the command, which would be code 2."""
    set_variables(monkeypatch, SLURM | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"})
    assert main(["train", "tiny", "--join_seconds", "1"]) == 1
    err = capsys.readouterr().err
    assert "Slurm: the processes of this run did not find each other" in err
    assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    "environ, cluster, expected",
    [
        (SLURM, "Slurm", (("n1", 61447), 2, 1)),
        (SLURM | {"JAX_COORDINATOR_PORT": "5"}, "Slurm", (("n1", 5), 2, 1)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "[::1]:9"}, "Slurm", (("::1", 9), 2, 1)),
        (MPI | {"OMPI_COMM_WORLD_RANK": "3"}, "Open MPI", (("10.0.0.1", 61440), 4, 3)),
        (MPI6 | {"OMPI_COMM_WORLD_RANK": "0"}, "Open MPI", (("fd00::2", 61440), 4, 0)),
    ],
)
def test_the_place_of_a_process_is_what_jax_says(monkeypatch, environ, cluster, expected):
    set_variables(monkeypatch, environ)
    assert clusters.detect(environ) == cluster
    assert clusters.place(environ, cluster, 1) == expected


def test_what_jax_raises_on_a_cluster_is_an_error_of_joining(monkeypatch):
    set_variables(monkeypatch, MPI)  # which does not say which one this is
    with pytest.raises(OSError, match="KeyError: 'OMPI_COMM_WORLD_RANK'"):
        clusters.place(MPI, "Open MPI", 1)


def test_an_indexed_job_needs_the_package(monkeypatch):
    job = POD | {"JOB_COMPLETION_INDEX": "0"}
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"jax\[k8s\].*--distributed off"):
        clusters.detect(job)
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: name == "kubernetes")
    assert clusters.detect(job) == "Kubernetes"


def test_an_mpi_without_an_address_is_refused():
    with pytest.raises(ConfigError, match="OMPI_COMM_WORLD_SIZE.*--coordinator"):
        clusters.detect({"OMPI_COMM_WORLD_SIZE": "4"})


@pytest.fixture
def metadata():
    """A metadata server, and the attributes that it has."""
    has, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            asked.append((name, self.headers["Metadata-Flavor"]))
            self.send_response(200 if name in has else 404)
            self.end_headers()
            self.wfile.write(has.get(name, "").encode())

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield has, {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}, asked
    server.shutdown()
    server.server_close()


def test_without_tpus_nobody_is_asked(metadata):
    _, environ, asked = metadata
    assert clusters.tpu_workers(environ) == 0 and asked == []


@pytest.mark.parametrize(
    "names, slices, workers",
    [(None, "", 1), ("a", "", 1), ("x:0:10.0.0.2,y:1:10.0.0.3", "", 2), ("a,b", "'2'", 4)],
)
def test_the_metadata_server_says_how_many_workers_a_slice_has(
    metadata, monkeypatch, names, slices, workers
):
    has, environ, asked = metadata
    monkeypatch.setattr(clusters, "_has_tpus", lambda: True)
    has |= {} if names is None else {"worker-network-endpoints": names}
    has |= {"tpu-env": f"ACCELERATOR_TYPE: 'v4-16'\nMEGASCALE_NUM_SLICES: {slices}\n"}
    assert clusters.tpu_workers(environ) == workers
    assert clusters.detect(environ) == ("Cloud TPU" if workers > 1 else None)
    assert asked and {flavor for _, flavor in asked} == {"Google"}
    asked.clear()
    assert clusters.tpu_workers(environ | {"TPU_SKIP_MDS_QUERY": "1"}) == 1
    assert clusters.tpu_workers(environ | {"JAX_PLATFORMS": "cpu"}) == 0
    assert clusters.tpu_workers(environ | {"TPU_WORKER_HOSTNAMES": "a,b,c"}) == 3
    assert {name for name, _ in asked} <= {"worker-network-endpoints", "tpu-env"}

"""What decides how a result is rounded, beside the code: recorded, and said where it is another."""

import importlib.metadata
import platform
from types import SimpleNamespace

import jax
import numpy
import pytest
import tokenizers

from faults.launch import experiment, launch
from ppo_jax import agreement, run_facts
from ppo_jax.errors import ConfigError
from test_resume import facts_of
from test_run_facts import Case

OURS = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
XEON = """processor\t: 0
cpu family\t: 6
model\t\t: 167
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 1

processor\t: 1
model name\t: another
"""
ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\n"


@pytest.fixture
def compilers(tmp_path, monkeypatch):
    """What is recorded of them, on a platform with such a client."""

    def record(kind="cpu", version="cpu"):
        device = SimpleNamespace(client=SimpleNamespace(platform_version=version))
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
        return run_facts._compilers(kind)

    return record


def test_facts_have_them(tmp_path):
    facts = Case(tmp_path / "case").facts()
    assert facts["versions"]["numpy"] == numpy.__version__
    assert facts["versions"]["tokenizers"] == tokenizers.__version__
    assert list(facts["compilers"]) == ["compiler", "matmul_precision", "XLA_FLAGS", "cpu"]
    assert OURS in facts["compilers"]["XLA_FLAGS"].split()


@pytest.mark.parametrize(
    "given, recorded",
    [
        ("", None),
        ("  --b=2 --a=1 --c ", "--a=1 --b=2 --c"),
        ("--a=1 --b=2 --a=3", "--a=3 --b=2"),  # the last one counts
        ("--xla_dump_to=/x --xla_dump_hlo_as_text --a=1", "--a=1"),
        ("--xla_force_host_platform_device_count=8", None),  # devices are counted
        ("--xla_cpu_collective_call_terminate_timeout_seconds=300", None),
        ("/some/file", "/some/file"),  # that holds them
    ],
)
def test_flags_are_those_that_matter(compilers, monkeypatch, given, recorded):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
    assert compilers()["XLA_FLAGS"] == recorded and "LIBTPU_INIT_ARGS" not in compilers()
    assert compilers("tpu")["LIBTPU_INIT_ARGS"] == recorded


@pytest.mark.parametrize(
    "text, said",
    [(XEON, "Intel(R) Xeon(R) Processor 6 167 1"), (ARM, "0x41 0x3 0xd0c"), (None, "other")],
)
def test_the_processor_counts_where_it_computes(compilers, tmp_path, monkeypatch, text, said):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(run_facts, "CPUINFO", path)
    monkeypatch.setattr(platform, "processor", lambda: "other")
    if text is not None:
        path.write_text(text)
    assert compilers()["cpu"] == said
    assert "cpu" not in compilers("gpu") and "cpu" not in compilers("tpu")


def test_the_compiler_of_a_plugin_counts(compilers, monkeypatch):
    packages = {
        "jax_cuda12_plugin": "0.10.2",
        "nvidia-cudnn-cu12": "9.8",
        "libtpu": "0.0.40",
        "flask": "3",
    }
    there = [SimpleNamespace(name=name, version=of) for name, of in packages.items()]
    there.append(SimpleNamespace(name=None, version=None))  # half removed
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: there)
    gpu, tpu = compilers("gpu", "PJRT C API\ncuda 12090"), compilers("tpu", "PJRT C API\nTFRT\n")
    assert gpu["compiler"] == "PJRT C API cuda 12090" and tpu["compiler"] == "PJRT C API TFRT"
    assert gpu["jax-cuda12-plugin"] == "0.10.2" and gpu["nvidia-cudnn-cu12"] == "9.8"
    assert tpu["libtpu"] == "0.0.40" and "libtpu" not in gpu and "flask" not in gpu
    assert not {"jax-cuda12-plugin", "nvidia-cudnn-cu12"} & {*tpu, *compilers()}


def test_processes_may_have_other_processors(compilers, monkeypatch):
    """All of them know of each other's: as the run goes on, each is compared."""
    for models, said in ((["A", "A"], "A"), (["A", "B", "A"], "A, B, A")):
        monkeypatch.setattr(run_facts, "exchange", lambda name, value, models=models: models)
        assert compilers()["cpu"] == said


def test_processes_may_not_have_other_flags(monkeypatch):
    own, other = facts_of(), facts_of(data="d1")
    other["compilers"]["XLA_FLAGS"] = "--a=1"
    monkeypatch.setattr(agreement, "exchange", lambda name, value: [own, other])
    with pytest.raises(ConfigError, match="process 0 and process 1 differ: data, XLA_FLAGS; all"):
        agreement.check_alike(own)


def test_a_run_that_goes_on_with_other_flags_says_so(tmp_path):
    path = experiment(tmp_path, run__iterations=1)
    assert launch(path, tmp_path / "runs").code == 0
    flags = OURS.replace("false", "true")
    done = launch(path, tmp_path / "runs", "--run.iterations", "2", XLA_FLAGS=flags)
    assert done.code == 0 and "not bit for bit: XLA_FLAGS " in done.err, done.err
    assert f"-> {flags}" in done.err
    done = launch(path, tmp_path / "runs", "--run.iterations", "3", XLA_FLAGS=flags)
    assert (done.code, done.err) == (0, "")

"""A workload timed end to end, its result kept and compared, and what the command refuses."""

import json
import math
import re
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppo_jax import bench, bench_report, ceilings, main
from ppo_jax.errors import PPOJaxError
from ppo_jax.phase_times import PHASES

WORKLOAD = """'''Tiny: one layer.

    ppo-jax bench tiny'''
from ppo_jax.config import *
from ppo_jax.workload import Workload, constant
BASE = Config(
    model=ModelOptions(
        path=None,
        shape=ModelConfig(vocab_size=24, num_layers=1, embed_dim=32, mlp_dim=64,
                          eos_token_ids=(1,), pad_token_id=0),
        compute_dtype="float32", remat="none"),
    data=DataOptions(max_prompt_tokens=6),
    rollout=RolloutOptions(batch_size=8, max_new_tokens=12),
    ppo=PPOOptions(epochs=2, minibatches=2),
    parallel=ParallelOptions(data=1),
)
REWARD = constant
WORKLOAD = Workload(prompt_tokens=(3, 6))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "experiments" / "bench").mkdir(parents=True)
    (folder / "experiments" / "bench" / "tiny.py").write_text(WORKLOAD)
    return folder


@pytest.fixture(scope="module")
def small_ceilings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ceilings.SIDES, "cpu", 64)
        patch.setitem(ceilings.MOVED, "cpu", 2**22)
        yield patch


@pytest.fixture(scope="module")
def finished(folder, small_ceilings):
    """(path, result) of the command, run in `folder` by the workload's bare name."""
    words = "bench tiny --iterations 3 --warmup 1 --hparams.kl_coef 0.2".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main.main(words) == 0
    (path,) = (folder / "experiments" / "bench" / "results").iterdir()
    return path, json.loads(path.read_text())


def numbers(node):
    if isinstance(node, dict | list):
        for part in node.values() if isinstance(node, dict) else node:
            yield from numbers(part)
    elif isinstance(node, int | float):
        yield node


def test_the_result_is_whole(finished):
    path, result = finished
    assert path.name.startswith("tiny-cpu-2") and path.suffix == ".json"
    assert set(result) == {
        *("schema", "kind", "workload", "title", "time", "environment", "config_digest"),
        *("overrides", "batch", "compile", "iteration", "profiled", "phases", "ceilings"),
        *("memory", "metrics"),
    }
    assert all(math.isfinite(number) for number in numbers(result))
    assert (result["schema"], result["kind"]) == (2, "timed")
    assert result["workload"] == "tiny" and result["title"] == "Tiny: one layer."
    assert result["overrides"] == ["hparams.kl_coef: 0.05 -> 0.2"]
    assert result["compile"]["programs"] == {"train_step": 1}
    assert 0 < result["compile"]["seconds"]["train_step"] < 300
    assert result["environment"]["platform"] == "cpu" and "git" in result["environment"]
    batch = result["batch"]
    assert batch["sequences"] == 8 and batch["prompt_width"] == 6
    assert batch["prompt_tokens"] == 36  # 8 lengths spread over 3 to 6: 4.5 each
    assert 8 <= batch["response_tokens"] <= 96 and batch["response_max"] <= 12


def test_seconds_and_memory_add_up(finished):
    _, result = finished
    for key in ("wall_s", "cpu_s"):
        times = result["iteration"][key]
        assert len(times["all"]) == 3
        assert times["min"] <= times["median"] <= times["max"]
        assert (times["min"], times["max"]) == (min(times["all"]), max(times["all"]))
    assert result["iteration"]["tokens_per_s"] > 0
    assert tuple(result["phases"]) == PHASES
    whole = sum(phase["seconds"] for phase in result["phases"].values())
    assert whole == pytest.approx(result["profiled"]["wall_s"])
    for phase in ("rollout", "score", "update"):
        facts = result["phases"][phase]
        assert facts["seconds"] > 0 and facts["flops"] > 0 and facts["bytes"] > 0
        assert 0 < facts["floor_fraction"] < 1 and 0 < facts["matmul_fraction"] < 1
        assert facts["busy_s"] <= facts["seconds"] * (1 + 1e-9)
    program = result["memory"]["program"]
    assert program["total"] == sum(program[k] for k in ("arguments", "outputs", "temporaries"))
    assert result["memory"]["peak_bytes"] > program["total"] > 0


def test_the_step_reports_its_padding_and_slots(finished):
    _, result = finished
    assert 0 < result["metrics"]["rollout/slot_use"] <= 1
    assert 0 <= result["metrics"]["update/padding"] < 1


def test_the_tables_hold_the_figures(finished, capsys):
    path, result = finished
    bench_report.show_result(result, path)
    shown = capsys.readouterr().out
    for text in ("rollout", "host_gap", "of floor", "train_step", result["config_digest"]):
        assert text in shown


def test_compared_with_itself_and_with_another(finished, tmp_path, capsys):
    path, result = finished
    same = bench_report.comparison(result, bench_report.load_result(str(path)))
    assert len(same) > 10 and all(ratio == 1.0 for *_, ratio in same)
    assert bench_report.differences(result, result) == []
    slower = json.loads(path.read_text())
    slower["iteration"]["wall_s"]["median"] *= 2
    slower["config_digest"] = "other"
    rows = {label: ratio for label, *_, ratio in bench_report.comparison(slower, result)}
    assert rows["iteration, wall s"] == 2.0
    assert rows["iteration, CPU s"] == 1.0
    assert len(bench_report.differences(slower, result)) == 1
    bench_report.show_comparison(slower, result)
    shown = capsys.readouterr().out
    assert "2.000" in shown and "differs: config_digest" in shown


def test_the_name_says_what_and_where_and_when():
    result = {"workload": "g1", "time": "2026-11-21T10:00:00Z"}
    result["environment"] = {"device_kind": "NVIDIA H200 (x2)"}
    assert bench_report.result_name(result) == "g1-nvidia-h200-x2-2026-11-21T10-00-00Z.json"


def test_history_is_kept(finished, tmp_path):
    _, result = finished
    later = {**result, "time": "2031-01-01T00:00:00Z"}
    paths = [bench_report.save_result(tmp_path / "new", one) for one in (result, later)]
    assert len(set(paths)) == 2 and [json.loads(p.read_text()) for p in paths] == [result, later]


def test_a_second_compilation_is_an_error():
    stepper = SimpleNamespace(compiled={"sample": None, "update": None})
    once = Counter({"jit(sample)": 1, "jit_update": 1, "jit(sample_other)": 3})
    assert bench.check_compilations(stepper, once, Counter()) == {"sample": 1, "update": 1}
    with pytest.raises(PPOJaxError, match="programs compiled {'sample': 2, 'update': 1}"):
        bench.check_compilations(stepper, once + Counter({"sample": 1}), Counter())
    with pytest.raises(PPOJaxError, match=r"in the timed iterations: jit\(add\) x2"):
        bench.check_compilations(stepper, once, Counter({"jit(add)": 2}))


def test_compilations_are_seen():
    import jax

    with bench.compilations() as counts:
        jax.jit(lambda x: x * 3 + 1).lower(2.0).compile()
        jax.jit(lambda x: x * 3 + 1).lower(3.0).compile()
    assert sum(counts.values()) == 2
    jax.jit(lambda x: x - 7).lower(2.0).compile()
    assert sum(counts.values()) == 2


def test_several_run_in_processes_of_their_own(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    commands = []

    def run(command, **_):
        commands.append(command[3:])
        return SimpleNamespace(returncode=7 if len(commands) == 1 else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert main.main("bench w1 tiny --iterations 2 --rollout.batch_size 16".split()) == 1
    assert [command[0] for command in commands] == ["bench"] * 2
    assert commands[0][1].endswith("w1.py") and commands[1][1].endswith("tiny.py")
    flags = ["--iterations", "2", "--rollout.batch_size", "16"]
    assert all(command[2:] == flags for command in commands)
    assert "bench: w1 (exit code 7) failed" in capsys.readouterr().err


def test_without_a_name_those_of_the_device(monkeypatch):
    for platform, letter in (("cpu", "w"), ("gpu", "g"), ("tpu", "g")):
        answer = SimpleNamespace(returncode=0, stdout=f"{platform}\n", stderr="")
        monkeypatch.setattr(subprocess, "run", lambda *a, answer=answer, **k: answer)
        names = [path.rsplit("/", 1)[1] for path in bench.workloads_here()]
        assert names and all(name.startswith(letter) for name in names)


@pytest.mark.parametrize(
    "words, says",
    [
        (["w9"], "no experiments/bench/w9.py; nearest: w"),
        (["tiny", "--iterations", "0"], "iterations=0: must be in [1, inf); nearest valid: 1"),
        (["tiny", "--warmup", "0"], "warmup=0"),
        (["tiny", "--iteratoins", "3"], "--iterations"),
        (["tiny", "--hparams.kl_coeff", "1"], "--hparams.kl_coef "),
        (["tiny", "--ppo.minibatches", "3"], "ppo.minibatches=3: must divide"),
        (["tiny", "w1", "--compare", "x.json"], "--compare takes one workload"),
        (["tiny", "--compare", "experiments/bench/results/x.json"], "nearest: experiments/bench"),
        (["tiny", "--compare", "experiments/bench/tiny.py"], "not JSON"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_words_end_with_2_before_anything_runs(
    words, says, finished, folder, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it ran"))
    try:
        code = main.main(["bench", *words])
    except SystemExit as end:
        code = end.code
    assert code == 2 and says in capsys.readouterr().err


def test_results_of_another_layout_are_refused(tmp_path, finished):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(finished[1] | {"schema": 0}))
    with pytest.raises(PPOJaxError, match="schema is 0; expected 2"):
        bench_report.load_result(str(path))


RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "bench" / "results"
KEPT = sorted(RESULTS.glob("*.json"))
TIMINGS = [path for path in KEPT if re.match(r"w\d[a-z]?-cpu-", path.name)]


@pytest.mark.parametrize("path", TIMINGS, ids=lambda path: path.name)
def test_the_timings_kept_from_earlier_can_be_compared_with(path, finished):
    rows = bench_report.comparison(finished[1], bench_report.load_result(str(path)))
    assert {"iteration, wall s", "update, CPU s"} <= {label for label, *_ in rows}


def test_a_first_timing_is_compared_and_said_to_count_otherwise(tmp_path, finished):
    first = {key: value for key, value in finished[1].items() if key != "kind"} | {"schema": 1}
    path = bench_report.save_result(tmp_path, first)
    assert bench_report.load_result(str(path)) == first
    assert bench_report.differences(finished[1], first) == ["schema: 1 -> 2"]
    labels = [label for label, *_ in bench_report.comparison(finished[1], first)]
    assert "iteration, CPU s" in labels and "update, of matmul" not in labels


COMPILED = {"schema": 2, "kind": "compiled", "memory": {"total": 1}, "phases": {"update": {}}}
EARLIER = {key: value for key, value in COMPILED.items() if key != "kind"} | {"schema": 1}


@pytest.mark.parametrize("result", [COMPILED, EARLIER], ids=["now", "before kinds"])
def test_a_program_that_never_ran_is_not_compared_with(
    result, tmp_path, finished, folder, monkeypatch, capsys
):
    (tmp_path / "g1-compiled.json").write_text(json.dumps(result))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it ran"))
    assert main.main(["bench", "tiny", "--compare", str(tmp_path / "g1-compiled.json")]) == 2
    said = capsys.readouterr().err.strip()
    assert "kind is compiled, without times; expected timed" in said and "\n" not in said


@pytest.mark.parametrize(
    "path", [path for path in KEPT if "-compiled-" in path.name], ids=lambda path: path.name
)
def test_no_kept_reading_of_a_compiled_program_passes_for_a_timing(path):
    with pytest.raises(PPOJaxError, match="kind is compiled"):
        bench_report.load_result(str(path))


def test_help_lists_the_workloads(capsys):
    assert main.main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "  w1  " in shown and "  g3  " in shown and "--compare FILE" in shown

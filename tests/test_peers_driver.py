"""The driver of the comparison with the peers: its protocol with small scripts as workers, and its
statistics. The peers themselves are not installed here."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[1] / "experiments" / "bench" / "peers"
sys.path.insert(0, str(PEERS))  # its files are scripts, which import each other by bare names
NAMES = ("figures", "run", "shapes", "worker")
figures, run, shapes, worker = map(importlib.import_module, NAMES)

FACTS = {
    "shape": shapes.compared(shapes.SHAPES["W1"]),
    "critic": "separate",
    "parameters": {"policy": 1000, "value": 900},
    "dtype": "float32",
    "platform": "cpu",
    "versions": {},
    "threads": 2,
}
# A worker that answers `iterate` with the seconds in SECONDS, one after the other, and keeps a
# journal in which the order of all sides' work can be read.
WORKER = """
import json, sys, time
name, facts, seconds, journal = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
print(json.dumps({"peer": name, **facts}), flush=True)
for line in sys.stdin:
    command = line.strip()
    with open(journal, "a") as file:
        file.write(f"{name} {command}\\n")
    if command == "memory":
        print(json.dumps({"program_bytes": 70} if name == "ours" else {"peak_tensor_bytes": 100}), flush=True)
        continue
    s = seconds.pop(0)
    if s == "die":
        raise RuntimeError("out of tensors")
    if s == "babble":
        print("hello", flush=True)
    if s == "sleep":
        time.sleep(30)
    steps = 15 if s == "lazy" else 16
    cpu = 1.0 if isinstance(s, str) else s
    print(json.dumps({"wall_s": cpu / 2, "cpu_s": cpu, "others_cpu": 0.0, "phases": {}, "tokens": 64,
                      "optimizer_steps": steps, "rss_bytes": int(1000 * cpu)}), flush=True)
"""  # noqa: E501


@pytest.fixture(name="make")
def make_worker(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    journal = tmp_path / "journal"

    def command(name, seconds, **changes):
        facts = json.dumps({**FACTS, **changes})
        return [sys.executable, str(script), name, facts, json.dumps(seconds), str(journal)]

    command.journal = journal
    return command


def measured(sides, *, rounds=1, warmup=0, memory=False, timeout_s=20.0):
    return run.measure(sides, rounds=rounds, warmup=warmup, memory=memory, timeout_s=timeout_s)


def test_sides_alternate_and_only_one_works_at_a_time(make):
    sides = {name: make(name, [9, 1, 2]) for name in ("ours", "trl", "tunix")}
    result = measured(sides, rounds=2, warmup=1, memory=True)
    said = make.journal.read_text().split("\n")[:-1]
    commands = ["iterate"] * 3 + ["memory"]
    assert said == [f"{name} {command}" for command in commands for name in sides]
    assert [row["cpu_s"] for row in result["rows"]["trl"]] == [1, 2]
    assert [row["cpu_s"] for row in result["warmup_rows"]["trl"]] == [9]
    assert result["memory"]["trl"] == {"peak_tensor_bytes": 100}


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (["die"], "trl: ended (iterate): exit code 1: RuntimeError: out of tensors"),
        (["babble"], "trl: answered no JSON (iterate): hello"),
        (["sleep"], "trl: no answer in 2 s (iterate)"),
        (["lazy"], "not the same work: optimiser steps an iteration: ours 16, trl 15"),
    ],
)
def test_a_faulty_side_gives_one_line(make, seconds, message):
    sides = {"ours": make("ours", [1]), "trl": make("trl", seconds)}
    with pytest.raises(run.BenchError) as raised:
        measured(sides, timeout_s=2.0)
    assert str(raised.value) == message


def test_a_side_that_cannot_start_says_why(tmp_path):
    sides = {"ours": [sys.executable, "-c", "import no_such_library"]}
    with pytest.raises(run.BenchError, match="ours: ended .starting.: .*no_such_library"):
        measured(sides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype: ours float32, trl bfloat16"),
        ({"platform": "cuda"}, "platform: ours cpu, trl cuda"),
        ({"parameters": {"policy": 1011}}, "parameters of the policy: ours 1000, trl 1011"),
        ({"shape": {**FACTS["shape"], "epochs": 3}}, "epochs: ours 4, trl 3"),
        ({"shape": {**FACTS["shape"], "prompt_tokens": [1, 32]}}, "prompt_tokens: ours"),
    ],
)
def test_other_work_is_refused_before_anything_is_timed(make, changes, message):
    sides = {"ours": make("ours", [1]), "trl": make("trl", [1], **changes)}
    with pytest.raises(run.BenchError) as raised:
        measured(sides)
    assert str(raised.value).startswith("not the same work: ") and message in str(raised.value)
    assert not make.journal.exists()


def test_biases_of_a_peer_are_within_the_tolerance():
    facts = {**FACTS, "peer": "tunix", "parameters": {"policy": 1009, "value": 5}}
    assert figures.disagreements({**FACTS, "peer": "ours"}, facts) == []


def test_ratios_by_hand():
    row = lambda cpu, wall, tokens: {"cpu_s": cpu, "wall_s": wall, "tokens": tokens}
    ours = [row(1.0, 1.0, 10), row(2.0, 1.0, 20), row(4.0, 1.0, 40)]
    peer = [row(6.0, 2.0, 30), row(4.0, 3.0, 20), row(4.0, 7.0, 20)]
    pads = {"phases": {}, "rss_bytes": None, "others_cpu": 0.0}
    rows = [r | pads for r in ours], [r | pads for r in peer]
    found = figures.ratios(*rows, in_turn=True)
    assert found["cpu_s"] == {"of_medians": 2.0, "paired": 2.0, "lowest": 1.0, "highest": 6.0}
    assert found["wall_s"] == {"of_medians": 3.0, "paired": 3.0, "lowest": 2.0, "highest": 7.0}
    assert found["tokens_per_cpu_s"] == 2.0  # 10 against 5
    apart = figures.ratios(*rows, in_turn=False)
    assert apart == found | {"cpu_s": {"of_medians": 2.0}, "wall_s": {"of_medians": 3.0}}


def test_only_rounds_quiet_on_all_sides_count_as_undisturbed():
    rows = {
        "ours": [{"others_cpu": 0.0}, {"others_cpu": 0.5}, {"others_cpu": 0.1}],
        "trl": [{"others_cpu": 0.1}, {"others_cpu": 0.0}, {"others_cpu": None}],
    }
    assert figures.undisturbed(rows) == 1


def test_main_writes_every_figure_and_a_table(make, monkeypatch, tmp_path, capsys):
    sides = {"ours": make("ours", [9, 2, 3, 4]), "tunix": make("tunix", [9, 4, 6, 9])}
    monkeypatch.setattr(run, "commands", lambda arguments, prompts: sides)
    out = tmp_path / "folder" / "result.json"
    assert run.main(["--rounds", "3", "--warmup", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["figures"]["speed"]["tunix"]["cpu_s"]["of_medians"] == 2.0
    memory = {"tensor_bytes": 0.7, "device_bytes": None, "rss_bytes": 4 / 9}
    assert result["figures"]["memory"]["tunix"] == memory
    assert result["figures"]["compared"] == "cpu_s"
    assert result["figures"]["identical_arithmetic"] == {"tunix": True}
    assert len(result["rows"]["tunix"]) == 3 and result["machine"]["cpu_count"] == os.cpu_count()
    shown = capsys.readouterr().out.splitlines()
    speed = next(line for line in shown if line.startswith("speed-up, own CPU"))
    assert speed.split()[-1] == "2.00" and shown[-1] == str(out)


def test_a_worker_that_dies_is_exit_code_one(make, monkeypatch, tmp_path, capsys):
    sides = {"ours": make("ours", [1, 1]), "trl": make("trl", ["die"])}
    monkeypatch.setattr(run, "commands", lambda arguments, prompts: sides)
    out = tmp_path / "result.json"
    assert run.main(["--rounds", "1", "--warmup", "0", "--out", str(out)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(errors) == 1 and "out of tensors" in errors[0] and not out.exists()


def test_a_missing_environment_is_named(tmp_path, capsys):
    missing = str(tmp_path / "none")
    assert run.main(["--peers", "trl", "--trl-python", missing]) == 1
    assert f"trl: no {missing}" in capsys.readouterr().err


def test_a_workload_that_a_peer_lacks_is_left_out(tmp_path):
    arguments = run.parse_arguments(["--workload", "W4", "--trl-python", sys.executable])
    assert list(run.commands(arguments, tmp_path)) == ["ours", "trl"]


def test_results_are_named_by_their_time():
    arguments = run.parse_arguments(["--workload", "W1", "--ours", "w1s"])
    path = run.result_path(arguments, "2026-11-21T16:11:39Z")
    assert path == PEERS.parent / "results" / "peers-w1-w1s-2026-11-21T16-11-39Z.json"


def test_a_session_without_a_driver_gives_itself_the_commands():
    """In a process of its own: a session takes stdout over."""
    code = """
import sys; sys.path.insert(0, sys.argv[1])
from worker import *
arguments = make_parser("x").parse_args(["--iterations", "2", "--warmup", "1", "--memory"])
session = open_session(arguments)
session.say({"peer": "x"})
print("a library's chatter")
count = 0
while command := session.next_command():
    count += 1
    if command == "memory":
        session.say({"peak_tensor_bytes": 5})
    else:
        mark = start()
        sum(range(100_000 * count))
        phases = {"update": count}
        session.say(iteration_line(mark, tokens=count, optimizer_steps=16, phases=phases))
session.finish()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(PEERS)], capture_output=True, text=True, check=True
    )
    line = json.loads(done.stdout)
    assert "chatter" in done.stderr and len(line["iterations"]) == 3
    assert line["tokens"] == 2.5 and line["phases"] == {"update": 2.5}
    assert line["peak_tensor_bytes"] == 5 and 0 < line["cpu_s"] < 5


def test_own_cpu_counts_all_threads_and_not_sleep():
    import threading
    import time

    mark = worker.start()
    time.sleep(0.1)
    slept = worker.iteration_line(mark, tokens=0, optimizer_steps=0)
    thread = threading.Thread(target=lambda: sum(range(3_000_000)))
    thread.start()
    thread.join()
    worked = worker.iteration_line(mark, tokens=0, optimizer_steps=0)
    assert slept["wall_s"] >= 0.1 > slept["cpu_s"]
    assert worked["cpu_s"] > slept["cpu_s"] + 0.005


@pytest.mark.parametrize("name", ["W1", "W2", "W3", "W4", "G1"])
def test_our_workload_files_say_what_the_peers_run(name):
    from ppo_jax.experiment import load_experiment
    from ppo_jax.hf_config import read_model_config

    shape = shapes.SHAPES[name]
    assert shape.steps == 16
    experiment = load_experiment(PEERS.parent / f"{name.lower()}.py")
    config, model = experiment.base, experiment.base.model.shape
    if shape.folder is not None:
        folder = Path(shape.folder).expanduser()
        if not folder.is_dir():
            pytest.skip("the model is not on this machine")
        model = read_model_config(folder)
    found = shapes.Shape(
        *(model.num_layers, model.embed_dim, model.num_heads, model.num_kv_heads),
        *(model.mlp_dim, model.vocab_size, config.rollout.batch_size),
        prompt_tokens=experiment.workload.prompt_tokens,
        new_tokens=config.rollout.max_new_tokens,
        epochs=config.ppo.epochs,
        minibatches=config.ppo.minibatches,
        tied=model.tie_embeddings,
        stop_ids=(*model.eos_token_ids, *config.rollout.stop_token_ids),
    )
    assert shapes.compared(found) == shapes.compared(shape)
    assert found.stop_ids == shape.stop_ids
    assert config.model.compute_dtype in ("auto", shape.dtype)
    assert config.hparams.learning_rate == shape.learning_rate


def test_prompts_survive_the_file_and_keep_their_lengths(tmp_path):
    shape = shapes.SHAPES["W4"]
    prompts = shapes.make_prompts(shape, 50)
    assert {len(ids) for ids in prompts} == set(range(8, 33))
    assert all(3 <= i < shape.vocab for ids in prompts for i in ids)
    shapes.write_prompts(tmp_path / "p", prompts)
    assert shapes.read_prompts(tmp_path / "p", shape) == prompts


def test_live_tensor_bytes_by_hand():
    torch = pytest.importorskip("torch")
    from torch_memory import LiveBytes

    weight = torch.ones(256, 256, requires_grad=True)
    held = weight.numel() * 4
    with LiveBytes() as live:
        before = live.start
        doubled = torch.exp(weight)  # 1: its result is saved for the backward pass
        seen = doubled.view(-1)[:10]  # a view: nothing new
        doubled.sum().backward()  # 2: the gradient; 3: the one handed down to exp at most
        after = live.now
    assert held <= after - before - held <= held + 64  # the result and the gradient
    assert 2 * held <= live.peak - before <= 3 * held + 64
    del seen, doubled
    weight.grad = None
    assert live.now <= before + 64

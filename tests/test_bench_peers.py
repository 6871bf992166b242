"""The comparison on a CUDA device, which is not here: what is asked of it, and by whom."""

import importlib
import json
import subprocess
import sys

import pytest

from test_peers_driver import PEERS, figures, make_worker, run, shapes  # noqa: F401  a fixture

device = importlib.import_module("device")
ON_CUDA = {"platform": "cuda", "device": "a chip"}


def test_sides_that_need_the_device_alone_work_one_after_the_other(make):
    sides = {name: make(name, [9, 1, 2], **ON_CUDA) for name in ("ours", "trl")}
    options = dict(rounds=2, warmup=1, memory=True, timeout_s=20.0)
    result = run.measure(sides, **options, alone=True)
    said = make.journal.read_text().split("\n")[:-1]
    commands = ["iterate"] * 3 + ["memory"]
    assert said == [f"{name} {command}" for name in sides for command in commands]
    assert result.keys() == run.measure(sides, **options).keys()
    assert [row["cpu_s"] for row in result["rows"]["trl"]] == [1, 2]


def test_other_work_is_refused_when_the_second_side_starts(make):
    sides = {"ours": make("ours", [1], **ON_CUDA), "trl": make("trl", [1])}
    with pytest.raises(run.BenchError, match="platform: ours cuda, trl cpu"):
        run.measure(sides, rounds=1, warmup=0, memory=False, timeout_s=20.0, alone=True)


def test_without_a_cuda_device_it_ends_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(device, "cuda_devices", lambda: 0)
    missing = str(tmp_path / "none")  # not looked for: there is nothing to run it on
    assert run.main(["--workload", "G1", "--trl-python", missing]) == 2
    error = "bench-peers: error: G1 on a CUDA device: there is none here (or --device cpu)\n"
    assert capsys.readouterr().err == error


def test_an_environment_that_cannot_use_the_device_is_named_first(monkeypatch):
    monkeypatch.setitem(device.PROBES, "ours", ("raise RuntimeError('no plugin')", ".[cuda]"))
    with pytest.raises(device.NoDevice, match=r"ours: .* install \.\[cuda\]: .*no plugin"):
        device.require_environments({"ours": sys.executable})


def test_no_driver_is_no_device():
    """In a process of its own: the driver may be asked once."""
    code = """
import ctypes, sys; sys.path.insert(0, sys.argv[1])
import device
def missing(name): raise OSError(name)
ctypes.CDLL = missing
print(device.cuda_devices())
"""
    command = [sys.executable, "-c", code, str(PEERS)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "0\n"


def test_commands_say_the_device_and_hand_our_flags_on(capsys, tmp_path):
    words = ["--workload", "G1", "--trl-python", sys.executable, "--model.critic", "separate"]
    made = run.commands(run.parse_arguments(words), tmp_path)
    assert list(made) == ["ours", "trl"]
    assert "tunix: n/a for G1 on cuda" in capsys.readouterr().err
    assert all(line[line.index("--device") + 1] == "cuda" for line in made.values())
    assert made["ours"][-2:] == ["--model.critic", "separate"]
    assert "--model.critic" not in made["trl"]


@pytest.mark.parametrize(
    "words", [["--oops", "1"], ["oops"], ["--model.critic", "shared", "--other"]]
)
def test_a_word_that_is_no_flag_is_refused(words, capsys):
    with pytest.raises(SystemExit) as raised:
        run.parse_arguments(words)
    assert raised.value.code == 2 and "unrecognized" in capsys.readouterr().err


def test_the_device_is_the_workloads_own_unless_named():
    asked = lambda *words: run.parse_arguments(words).device
    assert asked("--workload", "G1") == "cuda" and asked("--workload", "W3") == "cpu"
    assert asked("--workload", "G1", "--device", "cpu") == "cpu"


def test_both_critics_of_g1_are_a_flag_apart():
    from ppo_jax.experiment import load_experiment
    from ppo_jax.flags import parse_config

    experiment = load_experiment(PEERS.parent / "g1.py")
    critic = lambda *words: parse_config("g1", list(words), experiment).model.critic
    assert critic() == "shared" and critic("--model.critic", "separate") == "separate"


def test_on_a_device_wall_seconds_and_device_bytes_are_compared(
    make, monkeypatch, tmp_path, capsys
):
    sides = {name: make(name, [9, s], **ON_CUDA) for name, s in (("ours", 2), ("trl", 5))}
    monkeypatch.setattr(run, "commands", lambda arguments, prompts: sides)
    monkeypatch.setattr(run, "require_cuda", lambda workload: None)
    monkeypatch.setattr(run, "require_environments", lambda pythons: None)
    out = tmp_path / "result.json"
    words = ["--workload", "G1", "--rounds", "1", "--warmup", "1", "--out", str(out)]
    assert run.main(words) == 0
    result = json.loads(out.read_text())
    assert result["device"] == "cuda" and result["figures"]["compared"] == "wall_s"
    shown = capsys.readouterr().out
    assert "a chip" in shown and "own CPU" not in shown and "round by round" not in shown
    line = next(line for line in shown.splitlines() if line.startswith("speed-up, wall"))
    assert line.split()[-1] == "2.50"
    mine = {"program_bytes": 60, "device_peak_bytes": 80}
    found = figures.memory_ratios(mine, {"peak_tensor_bytes": 100}, None, None)
    assert found == {"tensor_bytes": 0.6, "device_bytes": 0.8, "rss_bytes": None}


def test_g1s_lengths_are_geometric_with_mean_100():
    shape = shapes.SHAPES["G1"]
    assert round(shape.vocab / shape.stops) == 100 and shape.stop_ids[-1] == shape.vocab - 1


def test_a_response_ends_with_any_of_the_stop_ids():
    torch = pytest.importorskip("torch")
    stops = importlib.import_module("stops")
    rows = [[5, 8, 5, 9], [9, 8, 8, 8], [5, 5, 5, 5], [5, 5, 5, 8]]
    responses_BT = torch.tensor(rows)
    assert stops.real_tokens(responses_BT, (8, 9)).sum(dim=1).tolist() == [2, 1, 4, 4]
    cut = [[5, 8, 0, 0], [9, 0, 0, 0], [5, 5, 5, 5], [5, 5, 5, 8]]
    assert stops.truncate(responses_BT, (8, 9), 0).tolist() == cut
    assert stops.real_tokens(responses_BT, ()).all()

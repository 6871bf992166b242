"""Model folders that mean harm or do not fit (F23, F28, F29)."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from faults.damage import rewrite
from faults.inputs import refuse, row
from faults.launch import experiment, finish, here, of
from faults.table import fault
from ppo_jax import manifest
from ppo_jax.metrics import read_metrics
from ppo_jax.run_folder import run_folder

SPECIAL_IDS = ("eos_token_id", "pad_token_id")
OF_FOLDER = """
from ppo_jax.config import ModelConfig
BASE = replace(BASE, **{{"model.shape": ModelConfig(), "model.path": {path!r}}})
REWARD = ascii_share
"""


def hf_folder(folder: Path) -> Path:
    """A tiny run exported as a Hugging Face folder."""
    path = experiment(folder, run__iterations=1)
    run = finish(path, folder / "runs")
    out = folder / "model"
    code, err = here("export", "--model", str(run.root), "--out", str(out))
    assert code == 0, err
    return out


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def generate(folder: Path, model: Path) -> tuple[int, str]:
    (folder / "p.jsonl").write_bytes(row("a"))
    words = ["generate", "--model", str(model), "--prompts", str(folder / "p.jsonl")]
    words += ["--out", str(folder / "o.jsonl"), "--max_new_tokens", "2"]
    code, err = here(*words)
    return code, (err.strip().splitlines() or [""])[-1]


@fault(
    "F23",
    "a tokenizer of another model",
    injected="a model of fewer ids than its tokenizer; eos gone, pad id gone, pad = eos",
    expected="code 2 with the numbers, of generate and train; without eos or a pad id, or with eos "
    "as pad, both work, and what needs an eos is refused",
)
def other_tokenizer(folder: Path) -> str:
    model = hf_folder(folder)
    config = json.loads((model / "config.json").read_text())
    weights = load_file(model / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    save_file(
        weights | {"model.embed_tokens.weight": table[:64].copy()}, model / "model.safetensors"
    )
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 64}))
    code, said = generate(folder, model)
    assert code == 2 and "64" in said, f"{code} {said}"
    of_folder = OF_FOLDER.format(path=str(model))
    path = experiment(folder, name="tuned", reward=of_folder, run__iterations=2)
    runs = folder / "tuned"
    assert "a vocabulary of 64" in refuse(path, runs)
    save_file(weights, model / "model.safetensors")
    edit(model / "config.json", vocab_size=config["vocab_size"])
    for name, ids in {
        "eos gone": {"eos_token_id": None},
        "pad id gone": {"pad_token_id": None},
        "pad = eos": {"pad_token_id": config["eos_token_id"]},
    }.items():
        for file in ("config.json", "generation_config.json"):
            edit(model / file, **{key: config[key] for key in SPECIAL_IDS} | ids)
        code, err = generate(folder, model)
        assert code == 0, f"{name}: {err}"
        finish(path, runs, "--run.cell", name)
        run = run_folder(runs / path.stem / name / "seed0")
        rows = read_metrics(run.metrics)
        assert all(np.isfinite(list(row.values())).all() for row in rows), rows
        if name == "eos gone":
            assert [row["rollout/ended"] for row in rows] == [0, 0], rows
            assert "eos" in refuse(path, runs, "--reward.drop_truncated", "True")
    return f"{said}; eos gone, pad id gone, pad = eos: generate and train work"


@fault(
    "F28",
    "model folders that mean harm",
    injected="pickles, headers that lie on sizes, 10 GB headers, ../, links out of the folder to "
    "files as sound as those they replace; in a checkpoint and its sound record ../, a link, an "
    "array of objects (.npy and .npz files are read nowhere)",
    expected="code 2, of a checkpoint 4, naming the file; nothing is run, nothing outside is read",
)
def hostile_folders(folder: Path) -> str:
    model, canary, seen = hf_folder(folder), folder / "canary", []
    tensors = model / "model.safetensors"
    sound = tensors.read_bytes()
    size = struct.unpack("<Q", sound[:8])[0]
    header = json.loads(sound[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    lying = {**header, name: header[name] | {"data_offsets": [0, 10**12]}}
    text = json.dumps(lying).encode()
    index = json.dumps({"weight_map": {key: "../secret.safetensors" for key in header}})
    pickled = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()

    def attempt(kind: str, says: str = "") -> None:
        code, said = generate(folder, model)
        assert code == 2 and "Traceback" not in said and says in said, f"{kind}: {code} {said}"
        seen.append(kind)

    tensors.write_bytes(struct.pack("<Q", len(text)) + text + sound[8 + size :])
    attempt("a header that lies on sizes")
    tensors.write_bytes(struct.pack("<Q", 10 << 30) + sound[8:])
    attempt("a header of 10 GB")
    tensors.write_bytes(sound[: len(sound) // 2])
    attempt("half a file")
    tensors.unlink()
    for pickle in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        (model / pickle).write_bytes(pickled)
    attempt("pickles alone")
    (folder / "secret.safetensors").write_bytes(sound)
    (model / "model.safetensors.index.json").write_text(index)
    attempt("an index that leads to ../")
    (model / "model.safetensors.index.json").unlink()
    tensors.write_bytes(sound)
    for file in (tensors, model / "config.json", model / "tokenizer.json"):
        outside = file.rename(folder / file.name)
        file.symlink_to(outside)
        attempt(f"{file.name} a link out", f"{file}: is a link to {outside}, outside")
        file.unlink()
        outside.rename(file)
    code, said = generate(folder, model)
    assert code == 0, f"the same without links: {code} {said}"
    seen += hostile_checkpoints(folder, pickled)
    assert not canary.exists(), "a pickle was run"
    return ", ".join(seen)


def hostile_checkpoints(folder: Path, pickled: bytes) -> list[str]:
    """In the run that `hf_folder` made; each record is of the checkpoint as it then stands."""
    run, seen = of(folder / "case.py", folder / "runs"), []
    record = manifest.record_path(run.checkpoints, 1)
    (run.checkpoints / "secret").write_bytes(b"")
    files = json.loads(record.read_text())["files"]
    step = run.checkpoints / "1"
    array = next(p for p in step.glob("state/params*/.zarray") if "embedding" in p.parent.name)
    (folder / "chunk").write_bytes((array.parent / "0.0").read_bytes())

    def attempt(kind: str, word: str, **more: Any) -> None:
        seen_now = {p: sums(step / p) for p in files}
        rewrite(record, files=seen_now | more)
        code, said = generate(folder, run.root)
        assert code == 4 and word in said, f"{kind}: {code} {said}"
        seen.append(f"{kind} in a checkpoint")

    attempt("../", "1/../secret: is gone", **{"../secret": sums(run.checkpoints / "secret")})
    (array.parent / "0.0").write_bytes(pickled)
    edit(array, dtype="|O")
    attempt("an array of objects", "step 1")
    (array.parent / "0.0").unlink()
    (array.parent / "0.0").symlink_to(folder / "chunk")
    attempt("a link", "0.0: cannot be read (is a link)")
    return seen


def sums(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@fault(
    "F29",
    "a model's own code; the hub",
    injected="trust_remote_code in an experiment; a tokenizer with code; a hub id, no network",
    expected="refused with code 2; the canary does not appear",
)
def remote_code(folder: Path) -> str:
    path = experiment(folder, model__trust_remote_code=True)
    said = refuse(path, folder / "runs")
    assert "command line alone" in said, said
    model, canary = hf_folder(folder), folder / "canary"
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass T: pass\n")
    code, last = generate(folder, model)
    assert code == 2 and "custom code" in last, f"{code} {last}"
    assert not canary.exists(), "the tokenizer's code was run"
    code, last = generate(folder, Path("no-such-organisation/no-such-model"))
    assert code == 2, last
    return f"{said} / {last}"

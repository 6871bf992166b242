"""Model folders that mean harm or do not fit (F23, F28, F29)."""

import json
import struct
from pathlib import Path

from safetensors.numpy import load_file, save_file

from faults.inputs import refuse, row
from faults.launch import experiment, finish, here
from faults.table import fault


def hf_folder(folder: Path) -> Path:
    """A tiny run exported as a Hugging Face folder."""
    path = experiment(folder, run__iterations=1)
    run = finish(path, folder / "runs")
    out = folder / "model"
    code, err = here("export", "--model", str(run.root), "--out", str(out))
    assert code == 0, err
    return out


def generate(folder: Path, model: Path) -> tuple[int, str]:
    (folder / "p.jsonl").write_bytes(row("a"))
    words = ["generate", "--model", str(model), "--prompts", str(folder / "p.jsonl")]
    words += ["--out", str(folder / "o.jsonl"), "--max_new_tokens", "2"]
    code, err = here(*words)
    return code, (err.strip().splitlines() or [""])[-1]


@fault(
    "F23",
    "a tokenizer of another model",
    injected="a model of fewer ids than its tokenizer; pad id gone, pad = eos",
    expected="code 2 with the numbers; without a pad id, or with eos as pad, it generates",
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
    save_file(weights, model / "model.safetensors")
    for pad in (None, config["eos_token_id"]):
        (model / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
        code, err = generate(folder, model)
        assert code == 0, f"pad_token_id={pad}: {err}"
    return said


@fault(
    "F28",
    "model folders that mean harm",
    injected="pickles, headers that lie on sizes, 10 GB headers, ../ and links out of the folder",
    expected="code 2 naming the file; nothing is run, nothing outside is read",
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

    def attempt(kind: str) -> None:
        code, said = generate(folder, model)
        assert code == 2 and "Traceback" not in said, f"{kind}: {code} {said}"
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
    tensors.symlink_to("/etc/passwd")
    attempt("a link to /etc/passwd")
    assert not canary.exists(), "a pickle was run"
    return ", ".join(seen)


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
    generate(folder, model)
    assert not canary.exists(), "the tokenizer's code was run"
    code, last = generate(folder, Path("no-such-organisation/no-such-model"))
    assert code == 2, last
    return f"{said} / {last}"

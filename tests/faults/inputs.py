"""Input nobody vouches for: prompts, configurations, generated text (F21, F22, F24, F30 to F32)."""

import gzip
import json
from pathlib import Path

import numpy as np

from faults.launch import experiment, finish, here, launch, of
from faults.table import fault
from ppo_jax.metrics import read_metrics, read_samples
from ppo_jax.rewards.arithmetic import evaluate
from ppo_jax.text import visible

LONG = "abcdefghijkl"  # data.max_prompt_tokens of the tiny runs, in bytes


def refuse(path: Path, runs: Path, *flags: str, code: int = 2) -> str:
    """The one line with which a start ends that goes no further than its checks."""
    got, err = here("train", str(path), "--run.dir", str(runs), *flags)
    said = err.strip().splitlines()
    assert got == code and "Traceback" not in err, f"{flags}: exit code {got}: {err}"
    return said[-1].removeprefix("ppo-jax: error: ")


def with_rows(folder: Path, name: str, content: bytes, suffix: str = ".jsonl") -> Path:
    data = folder / f"{name}{suffix}"
    data.write_bytes(content)
    return experiment(folder, name=name, data__path=str(data), run__iterations=2)


def row(prompt: str) -> bytes:
    return json.dumps({"prompt": prompt, "boost": 1.0}).encode() + b"\n"


@fault(
    "F21",
    "prompts at the borders",
    injected="empty, blank, longest, one too long, one token, one prompt, fewer than a batch",
    expected="refused with file and line, or trained on without a NaN; dropped, cut ones counted",
)
def border_prompts(folder: Path) -> str:
    runs = folder / "runs"
    assert ":2: prompt is empty" in refuse(with_rows(folder, "empty", row("a") + row("")), runs)
    overlong = row("a") + row(LONG + "m")
    assert "13 tokens" in refuse(with_rows(folder, "long", overlong), runs)
    few = row(" ") + row(LONG) + row("b") + row("\n\t")
    for name, content, flags in (
        ("few", few, ()),
        ("one", row("a"), ()),
        ("cut", overlong, ("--data.overlong", "truncate")),
    ):
        ended = launch(with_rows(folder, name, content), runs, *flags)
        assert ended.code == 0, f"{name}: {ended.err}"
        rows = read_metrics(of(folder / f"{name}.py", runs).metrics)
        assert all(np.isfinite(r["objective/kl"]) for r in rows), rows
        assert name != "cut" or "1 truncated" in ended.out, ended.out
    return "empty and too long refused with their lines; blank, longest, single, few train"


BAD_ROWS = {
    "not UTF-8": b'{"prompt": "\xff"}\n',
    "NUL": b'{"prompt": "\x00"}\n',
    "lone surrogate": b'{"prompt": "\\ud800", "boost": 1.0}\n',
    "not JSON": b'{"prompt": "a"\n',
    "a list": b'["a"]\n',
    "no prompt": b'{"text": "a"}\n',
    "a number as prompt": b'{"prompt": 3, "boost": 1.0}\n',
    "null": b'{"prompt": null, "boost": 1.0}\n',
    "NaN": b'{"prompt": "a", "boost": NaN}\n',
    "twice the same key": b'{"prompt": "a", "prompt": "b", "boost": 1.0}\n',
    "another column": b'{"prompt": "a", "boast": 1.0}\n',
    "deep": b'{"prompt": "a", "boost": ' + b"[" * 100_000 + b"\n",
    "10 MB": b'{"prompt": "' + b"a" * 10_000_000 + b'", "boost": 1.0}\n',
}


@fault(
    "F22",
    "data files nobody has read",
    injected=", ".join(BAD_ROWS) + "; byte order mark, CRLF, blank line, gz, half a gz",
    expected="file:line: reason, code 2, before it compiles; data.bad_rows=skip counts them",
)
def bad_rows(folder: Path) -> str:
    runs = folder / "runs"
    for number, (kind, bad) in enumerate(BAD_ROWS.items()):
        path = with_rows(folder, f"bad{number}", row("a") + bad + row("b"))
        said = refuse(path, runs)
        assert f"bad{number}.jsonl:2: " in said and len(said) < 1000, f"{kind}: {said[:300]}"
    fine = b"\xef\xbb\xbf" + (row("a") + row("b") + row("é😀")).replace(b"\n", b"\r\n") + b"\r\n"
    finish(with_rows(folder, "fine", gzip.compress(fine), ".jsonl.gz"), runs)
    half = gzip.compress(b"".join(row(str(n)) for n in range(10_000)))[:-2000]
    assert "half.jsonl.gz:" in refuse(with_rows(folder, "half", half, ".jsonl.gz"), runs)
    some = b"".join(row("a") + bad for bad in list(BAD_ROWS.values())[:-1])
    ended = launch(with_rows(folder, "some", some), runs, "--data.bad_rows", "skip")
    assert ended.code == 0 and f"left out: {len(BAD_ROWS) - 1}" in ended.err, ended.err
    return f"{len(BAD_ROWS)} kinds refused with file and line; skipped and counted on demand"


@fault(
    "F24",
    "a configuration that cannot be",
    injected="unknown key, typo, wrong types, numbers and choices out of range",
    expected="code 2, the dotted key, the nearest valid; nothing is ignored",
    fast=True,
)
def bad_config(folder: Path) -> str:
    path, cases = (
        experiment(folder),
        (
            ("--hparams.kl_coeff 0.1", "kl_coef"),
            ("--kl_coef 0.1", "hparams.kl_coef"),
            ("--hparams.learning_rate fast", "learning_rate"),
            ("--hparams.learning_rate -1", "hparams.learning_rate=-1.0"),
            ("--hparams.clip_low 0", "hparams.clip_low=0.0"),
            ("--hparams.lam 1.5", "hparams.lam=1.5"),
            ("--rollout.batch_size 1.5", "batch_size"),
            ("--run.seed None", "seed"),
            ("--reward.kl_estimator k4", "k4"),
            ("--ppo.minibatches 16", "ppo.minibatches=16"),
            ("--run.grace 0", "run.grace=0.0"),
            ("--reward.workers -1", "reward.workers=-1"),
        ),
    )
    for flags, word in cases:
        code, err = here("train", str(path), "--run.dir", str(folder / "runs"), *flags.split())
        assert code == 2 and word in err and "Traceback" not in err, f"{flags}: {code} {err}"
    assert not (folder / "runs").exists(), "something was made"
    return f"{len(cases)} kinds, each code 2 with its key"


@fault(
    "F30",
    "generated text given to a grader",
    injected="code, huge powers, 10^5 digits, deep brackets, 1/0, digits of other scripts",
    expected="no value (a reward of 0), at once; nothing is run",
    fast=True,
)
def generated_text(folder: Path) -> str:
    canary = folder / "canary"
    texts = [
        f"__import__('os').system('touch {canary}')", "9**9**9", "9" * 100_000, "(" * 5000 + "1",
        "1/0", "\u0663 + 1", "1e999999", "0x10", "1_000", "a", "", "\x00", "\ud800", "lambda: 1",
    ]  # fmt: skip
    assert all(evaluate(text) is None for text in texts)
    assert not canary.exists()
    from fractions import Fraction

    assert evaluate("(1 + 2) * 3 / 7 - -1.5") == Fraction(9, 7) + Fraction(3, 2)
    return f"{len(texts)} texts without a value"


@fault(
    "F31",
    "names of folders",
    injected="../, a slash, spaces, other scripts, a leading dash, 300 characters",
    expected="within the output's root, or code 2",
)
def names(folder: Path) -> str:
    path = experiment(folder, run__iterations=1)
    for cell in ("../out", "a/b", "..", "x" * 300):
        said = refuse(path, folder / "runs", "--run.cell", cell)
        assert "run.cell" in said or "too long" in said, said
    odd = folder / "Läufe mit Leerzeichen 走"
    odd.mkdir()
    copied = odd / "-fall α.py"
    copied.write_text(path.read_text())
    ended = launch(copied, odd / "runs", "--run.cell=-a b")
    assert ended.code == 0, ended.err
    assert (odd / "runs" / "-fall α" / "-a b" / "seed0" / "metrics.jsonl").is_file()
    assert not list(folder.glob("out*"))
    return "4 refused; spaces, other scripts and a leading dash work"


@fault(
    "F32",
    "control characters in what a model writes",
    injected="prompts with escape sequences and line ends; random bytes as responses",
    expected="escaped on the screen; each line of samples.jsonl is JSON",
)
def control_characters(folder: Path) -> str:
    rows = row("\x1b[31m\x07") + row("a\u202eb\r\n") + row("\u2028[/red]")
    path = with_rows(folder, "control", rows)
    ended = launch(path, folder / "runs", "--run.show_prompts", "3", "--run.samples", "8")
    assert ended.code == 0, ended.err
    shown = ended.out.replace("\n", "")
    assert visible(shown) == shown, "control characters reached the screen"
    assert "\\x1b[31m" in shown, "the prompts are not shown"
    samples = read_samples(of(path, folder / "runs").samples)
    assert len(samples) == 16 and {s["prompt"] for s in samples} <= {
        "\x1b[31m\x07", "a\u202eb\r\n", "\u2028[/red]"
    }  # fmt: skip
    return f"{len(samples)} samples, no control character on the screen"

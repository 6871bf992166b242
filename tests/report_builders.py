"""Run folders and sweeps as `ppo-jax train` and `ppo-jax sweep` leave them, from a few numbers."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

from ppo_jax.main import main

ENV = {
    "argv": ["ppo-jax", "train", "case", "--run.seed", "0"],
    "git": {"sha": "0123456789abcdef", "dirty": True},
    "python": "3.11.2",
    "jax": "0.10.2",
    "device_kind": "cpu",
    "device_count": 2,
    "cpu_count": 8,
}


def write_run(folder, scores, *, status="done", error=None, **extra):
    """A run whose iterations scored so; `extra` metrics by name, "/" written as "__"."""
    folder.mkdir(parents=True)
    rows = []
    for step, score in enumerate(scores):
        row = {"step": step, "objective/scores": score, "objective/kl": 0.5 * step}
        row |= {name.replace("__", "/"): values[step] for name, values in extra.items()}
        rows.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(rows))
    if status is not None:
        content = {"status": status, "step": len(scores)}
        content |= {} if error is None else {"error": error}
        (folder / "status.json").write_text(json.dumps(content))
    (folder / "env.json").write_text(json.dumps(ENV))
    (folder / "config.json").write_text(json.dumps({"run": {"iterations": len(scores)}}))
    return folder


def write_sweep(
    root, variants, seeds, *, metrics=("objective/scores",), doc="", path="case.py", **more
):
    """sweep.json of variants {name: changes}; a cell's folder is <name>-0/seed<k>."""
    root.mkdir(parents=True, exist_ok=True)
    cells = [
        {
            "name": name,
            "hash": "0",
            "changes": changes,
            "seed": seed,
            "dir": f"/elsewhere/runs/case/{folder_of(name)}/seed{seed}",
        }
        for name, changes in variants.items()
        for seed in seeds
    ]
    content = {"experiment": root.name, "path": path, "metrics": list(metrics), "doc": doc} | more
    (root / "sweep.json").write_text(json.dumps({**content, "seeds": list(seeds), "cells": cells}))
    return root


def folder_of(variant):
    return "".join(c if c.isalnum() or c in "=._" else "-" for c in variant) + "-0"


def report(*words) -> Path:
    """The folder of the report on the study `ab`."""
    assert main(["report", *words]) == 0
    return Path("experiments/results/ab")


def summary(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "summary.csv").open(encoding="utf-8")))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


class Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def assert_self_contained(text: str) -> Page:
    """Nothing in the page runs, and nothing of it lies elsewhere."""
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "img", "object", "embed", "link", "base", "form", "a"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href", "src", "action", "data"):
                assert str(value).startswith("#"), (tag, name, value)
    return page

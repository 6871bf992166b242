"""The table of model families in the documentation: every tick is a test that exists."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from family_configs import CASES, FAMILIES
from ppo_jax.hf_keys import FAMILIES as SUPPORTED

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "experiments" / "README.md").read_text(encoding="utf-8")
TABLE = PAGE[PAGE.index("## Model families") :]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and "`test_" in line]
TICK = re.compile(r"`(test_\w+)\[(\w+?)-(\*|full|lora)\]`")


def files_by_test() -> dict[str, Path]:
    """Test function -> its file."""
    return {
        node.name: path
        for path in (*TESTS.glob("test_*.py"), *TESTS.glob("oracle/test_*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_supported_family_has_its_row():
    assert set(FAMILIES) == set(SUPPORTED) == set(CASES)
    assert [{family for _, family, _ in TICK.findall(row)} for row in ROWS] == [
        {family} for family in SUPPORTED
    ]


def test_every_cell_is_a_tick():
    for row in ROWS:
        cells = row.strip("|").split("|")[1:]
        assert len(cells) == 5 and all(cell.strip().startswith("✓ `") for cell in cells)
        assert row.count("`") == 2 * len(TICK.findall(row))


def test_every_tick_is_a_test_that_pytest_finds():
    files = files_by_test()
    named = {tick[0] for row in ROWS for tick in TICK.findall(row)}
    assert named <= files.keys()
    if not all(map(importlib.util.find_spec, ("torch", "peft"))):
        named = {name for name in named if files[name].parent == TESTS}
    assert len(named) >= 2
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
    command += [f"{files[name]}::{name}" for name in sorted(named)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TESTS.parent)
    ids = re.findall(r"::(\w+\[.*\])$", found.stdout, re.M)
    for row in ROWS:
        for name, family, case in TICK.findall(row):
            ends = ("-", "]") if case == "*" else (f"-{case}]",)
            starts = tuple(f"{name}[{family}{end}" for end in ends)
            exists = any(id_.startswith(starts) for id_ in ids)
            assert exists or name not in named, starts

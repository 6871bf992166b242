"""The table of model families in the documentation: every tick is a test that exists."""

import ast
import re
from pathlib import Path

from family_configs import CASES, FAMILIES
from ppo_jax.hf_keys import FAMILIES as SUPPORTED

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "experiments" / "README.md").read_text(encoding="utf-8")
TABLE = PAGE[PAGE.index("## Model families") :]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and "`test_" in line]
TICK = re.compile(r"`(test_\w+)\[(\w+?)-(\*|full|lora)\]`")


def functions_by_name() -> dict[str, str]:
    """Test function -> source of its file."""
    found = {}
    for path in (*TESTS.glob("test_*.py"), *TESTS.glob("oracle/test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = text
    return found


def test_every_supported_family_has_its_row():
    assert set(FAMILIES) == set(SUPPORTED) == set(CASES)
    assert [{family for _, family, _ in TICK.findall(row)} for row in ROWS] == [
        {family} for family in SUPPORTED
    ]


def test_every_tick_is_a_test_over_the_families():
    functions = functions_by_name()
    for row in ROWS:
        cells = row.strip("|").split("|")[1:]
        assert len(cells) == 5 and all(cell.strip().startswith("✓ `") for cell in cells)
        assert row.count("`") == 2 * len(TICK.findall(row))
        for name, _, _ in TICK.findall(row):
            assert name in functions, name
            # Its file runs over the very list of families or cases that this one is held to.
            assert "family_configs" in functions[name] or "torch_families" in functions[name], name

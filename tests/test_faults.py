"""The fast rows of the table of faults; `make faults` runs all of them."""

import pytest

from faults.table import find, run, table

FAST = [case.number for case in table() if case.fast]


@pytest.mark.parametrize("number", FAST)
def test_fault(number, tmp_path):
    seen = run(number, tmp_path / "case")
    assert seen.passed, f"{find(number).name}: {seen.seen}"


def test_the_whole_table_is_there():
    numbers = {int("".join(c for c in case.number if c.isdigit())) for case in table()}
    assert numbers == set(range(1, 38))

"""What is shown: hints that name a command which works."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from ppo_jax.text import install_hint

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ASKS = {"install_hint": slice(0, 2), "need_package": slice(1, 3)}  # function -> package, extra
SOURCES = {path: path.read_text() for path in sorted((ROOT / "ppo_jax").rglob("*.py"))}


def asked():
    """(file, package, extra) of every call that names them."""
    for path, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = node.args[ASKS.get(node.func.id, slice(0))]
                if given and all(isinstance(one, ast.Constant) for one in given):
                    yield path.name, *(one.value for one in given)


def same_name(requirement):
    """As an index compares the names of packages."""
    name = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name.group() if name else "").lower()


def test_a_package_that_is_hinted_at_is_one_of_its_extra_s():
    found = list(asked())
    assert {"gymnasium", "matplotlib", "sacrebleu", "gcsfs"} <= {package for _, package, _ in found}
    for file, package, extra in found:
        assert same_name(package) in map(same_name, EXTRAS[extra]), (file, package, extra)


def test_no_hint_names_this_package_which_is_on_no_index():
    install = re.compile(r"pip install[^\n]*ppo[-_]jax")
    assert [path.name for path, text in SOURCES.items() if install.search(text)] == []


def test_the_hint_s_command_is_of_the_python_that_lacks_the_package():
    alone, _, whole = install_hint("gymnasium", "gym").partition(" (or ")
    python, *words = shlex.split(alone)
    assert words == ["-m", "pip", "install", "gymnasium"]
    assert whole == "-e '.[gym]' in the repository)"
    said = subprocess.run(
        [python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == sys.prefix

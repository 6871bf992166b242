"""The hash of an experiment's code covers the modules of one's own that it imports."""

import sys

import pytest

from ppo_jax.experiment_code import code_sha256, imported


@pytest.fixture
def write(tmp_path):
    def write(**files):
        for name, text in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "experiment.py"

    return write


WAYS = {
    "import": "import rules\n",
    "import as": "import rules as r\n",
    "from": "from rules import WORDS\n",
    "from all": "from rules import *\n",
    "in a function": "def score():\n    import rules\n",
    "in a try": "try:\n    import rules\nexcept ImportError:\n    pass\n",
    "by another": "import other\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_module_counts_however_it_is_imported(write, way):
    path = write(experiment=WAYS[way], rules="WORDS = 'a'\n", other="import rules\n")
    before = code_sha256(path)
    assert "rules" in imported(path)
    write(rules="WORDS = 'a'  # all\n")
    assert code_sha256(path) == before  # a comment
    write(rules="WORDS = 'b'\n")
    assert code_sha256(path) != before


@pytest.mark.parametrize(
    "line", ["import pack.deep.rules", "from pack.deep import rules", "from pack import deep"]
)
def test_a_package_counts_with_what_it_imports_of_itself(write, line):
    files = {
        "pack/__init__": "",
        "pack/deep/__init__": "from . import rules\n",
        "pack/deep/rules": "from ..near import WORDS\n",
        "pack/near": "WORDS = 'a'\n",
        "pack/far": "",
    }
    path = write(experiment=line + "\n", **files)
    names = {str(p.relative_to(path.parent)) for p in imported(path).values()}
    assert names == {
        "pack/__init__.py",
        "pack/deep/__init__.py",
        "pack/deep/rules.py",
        "pack/near.py",
    }


def test_modules_that_import_each_other_end(write):
    path = write(experiment="import a", a="import b", b="import a")
    assert set(imported(path)) == {"a", "b"}


def test_what_is_installed_and_this_package_do_not_count(write):
    text = "import json, jax, numpy.linalg\nfrom ppo_jax.config import Config\nimport no_such\n"
    assert imported(write(experiment=text)) == {}


def test_a_module_elsewhere_on_the_path_counts(write, tmp_path, monkeypatch):
    path = write(experiment="import rules\n", **{"elsewhere/rules": "WORDS = 'a'\n"})
    assert imported(path) == {}
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "elsewhere")])
    before = code_sha256(path)
    write(**{"elsewhere/rules": "WORDS = 'b'\n"})
    assert code_sha256(path) != before


def test_a_module_that_does_not_parse_is_left_to_its_import(write):
    path = write(
        experiment="try:\n    import rules\nexcept SyntaxError:\n    pass\n", rules="a b\n"
    )
    assert len(code_sha256(path)) == 64

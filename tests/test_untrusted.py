"""Nothing here runs or unpickles what came from outside: no file of the project could."""

from pathlib import Path

import pytest

from untrusted_calls import findings

ROOT = Path(__file__).parents[1]
FOLDERS = ("ppo_jax", "experiments", "tests")

# (file, name): why it may.
EXCEPTIONS = {
    ("ppo_jax/experiment.py", "exec_module"): "an experiment is the user's own program",
    ("tests/test_model_folder.py", "trust_remote_code"): "that it is refused, or handed on",
}

BAD = {
    "pickle": ["import pickle", "import pickle as p", "from pickle import loads"],
    "_pickle": ["import _pickle", "__import__('_pickle')"],
    "cPickle": ["import cPickle"],
    "dill": ["def f():\n    import dill", "import os, dill"],
    "cloudpickle": ["from cloudpickle import load", "importlib.import_module('cloudpickle')"],
    "marshal": ["import marshal", "from importlib import import_module\nimport_module('marshal')"],
    "shelve": ["import shelve"],
    "joblib": ["import joblib"],
    "joblib.numpy_pickle": ["from joblib.numpy_pickle import load", "import joblib.numpy_pickle"],
    "eval": ["eval(x)", "map(eval, xs)", "import builtins as b\nb.eval(x)", "run = eval"],
    "exec": ["exec(x)", "from builtins import exec as run\nrun(x)"],
    "compile": ["compile(x, '', 'eval')", "f(compile)"],
    "yaml.load": [
        "yaml.load(f)",
        "yaml.load(f, yaml.Loader)",
        "yaml.load(f, Loader=yaml.FullLoader)",
        "from yaml import load, Loader\nload(f, Loader=Loader)",
        "import yaml as y\ny.load(f, loader)",
    ],
    "yaml.load_all": ["yaml.load_all(f)"],
    "yaml.unsafe_load": ["yaml.unsafe_load(f)"],
    "torch.load": [
        "torch.load(f)",
        "torch = pytest.importorskip('torch')\ntorch.load(f, weights_only=True)",
        "from torch import load as read\nread(f)",
        "partial(torch.load, f)",
    ],
    "numpy.load": [
        "import numpy as np\nnp.load(f)",
        "numpy.load(f)",
        "from numpy import load\nload(f)",
    ],
    "jax.numpy.load": ["import jax.numpy as jnp\njnp.load(f)", "import jax\njax.numpy.load(f)"],
    "allow_pickle": [
        "numpy.load(f, allow_pickle=True)",
        "numpy.load(f, allow_pickle=allowed)",
        "numpy.lib.format.read_array(f, allow_pickle=True)",
    ],
    "shell": ["subprocess.run('ls', shell=True)", "Popen(x, shell=asked)", "f(shell=1)"],
    "os.system": [
        "os.system('ls')",
        "from os import system\nsystem('ls')",
        "import os as o\no.system(x)",
    ],
    "os.popen": ["os.popen('ls')"],
    "subprocess.getoutput": ["subprocess.getoutput('ls')"],
    "subprocess.getstatusoutput": ["subprocess.getstatusoutput('ls')"],
    "pandas.read_pickle": ["import pandas as pd\npd.read_pickle(f)"],
    "yaml.full_load": ["yaml.full_load(f)"],
    "trust_remote_code": [
        "load(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, local=1, trust_remote_code=True)",
        "def load(x, trust_remote_code=True, y=1): pass",
        "def load(x, *, trust_remote_code: bool = True): pass",
        "class Options:\n    trust_remote_code: bool = True",
        "options.trust_remote_code = True",
    ],
    "exec_module": ["spec.loader.exec_module(module)", "run = loader.exec_module"],
    "load_module": ["SourceFileLoader('name', path).load_module()"],
    "runpy.run_path": ["runpy.run_path(path)", "from runpy import run_path\nrun_path(path)"],
}

GOOD = [
    "import re\nre.compile('a')",
    "from re import compile\ncompile('a')",
    "jax.jit(f).lower(x).compile()",
    "program.lower(x).compile().as_text()",
    "model.eval()",
    "get_model(x)[0].eval()",
    "compile = 3",
    "def compile_for(compile_cache): return compile_cache",
    "import yaml\nyaml.safe_load(f)",
    "yaml.load(f, Loader=yaml.SafeLoader)",
    "yaml.load(f, yaml.CSafeLoader)",
    "from yaml import SafeLoader, load\nload(f, SafeLoader)",
    "import numpy as np\nnp.load(f, allow_pickle=False)",
    "json.load(f)",
    "from json import load\nload(f)",
    "safetensors.numpy.load(f)",
    "from safetensors.torch import load\nload(f)",
    "torch.save(x, f)",
    "subprocess.run(['ls'])",
    "subprocess.run(['ls'], shell=False)",
    "import platform\nplatform.system()",
    "load(x, trust_remote_code=False)",
    "load(x, trust_remote_code=args.trust_remote_code)",
    "def load(x, trust_remote_code: bool = False, local=True): pass",
    "def load(x=True, *, trust_remote_code): pass",
    "importlib.import_module('json')",
    "importlib.import_module(name)",
    "import pickletools_of_ours",
    "text = 'import pickle; eval(x)'  # eval(x)",
]


@pytest.mark.parametrize("name, source", [(name, bad) for name in BAD for bad in BAD[name]])
def test_what_runs_or_unpickles_is_found(name, source):
    lines_before = "import jax\n\n"
    (finding,) = findings(lines_before + source)
    assert finding.name == name
    assert name.split(".")[-1] in source
    assert 3 <= finding.line <= 3 + source.count("\n")
    assert finding.why


@pytest.mark.parametrize("source", GOOD)
def test_what_does_not_is_let_through(source):
    assert findings(source) == []


def test_findings_come_by_line():
    source = "import pickle, os\nos.system(eval(x))\n\n\nload(a,\n  shell=True)\n"
    assert [(f.line, f.name) for f in findings(source)] == [
        *[(1, "pickle"), (2, "eval"), (2, "os.system"), (5, "shell")]
    ]


@pytest.fixture(scope="module")
def found():
    """All findings, as {(file, name): [what to print]}."""
    by_name = {}
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for line, name, why in findings(path.read_text(encoding="utf-8")):
            by_name.setdefault((file, name), []).append(f"{file}:{line}: {name}: {why}")
    return by_name


def test_no_file_runs_or_unpickles_what_came_from_outside(found):
    assert all(any((ROOT / folder).rglob("*.py")) for folder in FOLDERS)
    refused = [line for key in found.keys() - EXCEPTIONS.keys() for line in found[key]]
    assert refused == [], "\n" + "\n".join(sorted(refused))


def test_every_exception_is_needed(found):
    assert EXCEPTIONS.keys() - found.keys() == set()

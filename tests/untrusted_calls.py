"""Finds code that would run, or unpickle, what came from outside: by reading the tree of a file."""

import ast
from collections.abc import Iterator
from typing import NamedTuple

PICKLES = set("pickle _pickle cPickle dill cloudpickle marshal shelve joblib".split())
BUILTINS = {"eval", "exec", "compile"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
# By their full names, with what to do instead.
REFUSED = {
    "torch.load": "it unpickles: read safetensors",
    "pandas.read_pickle": "it unpickles",
    "yaml.unsafe_load": "it makes any object: yaml.safe_load",
    "yaml.full_load": "it makes objects: yaml.safe_load",
    "os.system": "it asks a shell: subprocess.run of a list",
    "os.popen": "it asks a shell: subprocess.run of a list",
    "subprocess.getoutput": "it asks a shell: subprocess.run of a list",
    "subprocess.getstatusoutput": "it asks a shell: subprocess.run of a list",
    "runpy.run_path": "it runs a file",
}
# Keywords that may have one literal value alone, if given at all.
LITERALS = {"shell": False, "allow_pickle": False}
LOADS_ARRAYS = {"numpy.load", "jax.numpy.load"}


class Finding(NamedTuple):
    """One refused thing: its line, its name (exceptions go by it) and why it is refused."""

    line: int
    name: str
    why: str


def findings(source: str) -> list[Finding]:
    """All that is refused in the source of a module, in the order of its lines.

    Names are followed through imports (`from os import system as run`), not through assignments.
    """
    tree = ast.parse(source)
    names = _imported_names(tree)
    found = {finding for node in ast.walk(tree) for finding in _in_node(node, names)}
    return sorted(found)


def _in_node(node: ast.AST, names: dict[str, str]) -> Iterator[Finding]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from _in_import(node)
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield from _in_reference(node, names)
    elif isinstance(node, ast.Call):
        yield from _in_call(node, names)
    elif isinstance(node, ast.AnnAssign | ast.Assign | ast.arguments):
        yield from _in_defaults(node)


def _in_import(node: ast.Import | ast.ImportFrom) -> Iterator[Finding]:
    for module in _modules(node):
        if module.split(".")[0] in PICKLES:
            yield Finding(node.lineno, module, "unpickling runs code")


def _in_reference(node: ast.Name | ast.Attribute, names: dict[str, str]) -> Iterator[Finding]:
    """Called or handed on (`map(eval, lines)`)."""
    name = _full_name(node, names)
    if name in REFUSED:
        yield Finding(node.lineno, name, REFUSED[name])
    if name.removeprefix("builtins.") in BUILTINS:
        yield Finding(node.lineno, name.removeprefix("builtins."), "it runs text")
    if isinstance(node, ast.Attribute) and node.attr in ("exec_module", "load_module"):
        yield Finding(node.lineno, node.attr, "it runs a file")


def _in_call(node: ast.Call, names: dict[str, str]) -> Iterator[Finding]:
    name = _full_name(node.func, names)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    for keyword, wanted in LITERALS.items():
        if keyword in keywords and not _is_literal(keywords[keyword], wanted):
            yield Finding(node.lineno, keyword, f"only {keyword}={wanted} may stand here")
    if _is_literal(keywords.get("trust_remote_code"), True):
        yield Finding(node.lineno, "trust_remote_code", "only the user may say so")
    if name in LOADS_ARRAYS and "allow_pickle" not in keywords:
        yield Finding(node.lineno, name, "say allow_pickle=False")
    if name in ("yaml.load", "yaml.load_all"):
        loader = keywords.get("Loader", node.args[1] if len(node.args) > 1 else None)
        if loader is None or _full_name(loader, names) not in SAFE_LOADERS:
            yield Finding(node.lineno, name, "say Loader=yaml.SafeLoader")
    if name in ("__import__", "importlib.import_module"):
        for argument in node.args[:1]:
            if isinstance(argument, ast.Constant) and argument.value in PICKLES:
                yield Finding(node.lineno, argument.value, "unpickling runs code")


def _in_defaults(node: ast.AnnAssign | ast.Assign | ast.arguments) -> Iterator[Finding]:
    """`trust_remote_code` must not be true by itself: as a parameter, a field or a variable."""
    if isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        pairs = list(zip(reversed(positional), reversed(node.defaults), strict=False))
        pairs += zip(node.kwonlyargs, node.kw_defaults, strict=True)
        named = [(parameter.arg, default) for parameter, default in pairs]
    else:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        named = [(_full_name(target, {}).split(".")[-1], node.value) for target in targets]
    for name, value in named:
        if name == "trust_remote_code" and _is_literal(value, True):
            yield Finding(value.lineno, name, "only the user may say so")


def _imported_names(tree: ast.AST) -> dict[str, str]:
    """What the names that imports make in a file stand for: {"np": "numpy"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # `import os.path` makes the name os; `import os.path as p` makes p.
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names]


def _full_name(node: ast.AST, names: dict[str, str]) -> str:
    """`np.load` as numpy.load; "" for what is no chain of names, as `jit(f).lower().compile`."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = _full_name(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _is_literal(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value

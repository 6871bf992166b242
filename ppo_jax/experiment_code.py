"""What an experiment's code is: its file, and the modules of one's own that it imports."""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from ppo_jax.experiment import SWEEP

PACKAGE = Path(__file__).parent


def code_sha256(path: Path, loaded: Iterable[Path] = ()) -> str | None:
    """Of an experiment's code without its comments, its docstring, what the sweep alone reads (see
    `experiment.SWEEP`), and BASE, whose fields are compared one by one; of every module that it
    imports, by whatever way, from beside it or from elsewhere on `sys.path`; and the same of the
    experiment files that it has `loaded`. Installed packages have versions instead. None where it
    came from no file."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    for file in (path, *loaded):
        digest.update(b"" if file == path else file.name.encode())
        for node in _computing(ast.parse(file.read_text(encoding="utf-8"))):
            digest.update(_dump(node))
        for name, module in sorted(imported(file).items()):
            digest.update(name.encode() + _dump(_parsed(module)))
    return digest.hexdigest()


def _computing(tree: ast.Module) -> list[ast.stmt]:
    """The statements that a run depends on. GRID and the like are none, nor is what they alone are
    made of: another cell leaves those that are there as they were."""
    is_text = lambda node: isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    kept = [node for node in tree.body if not is_text(node) and "BASE" not in _targets(node)]
    names = set(SWEEP)
    while True:
        read = {name for node in kept for name in _read(node)}
        apart = [node for node in kept if _targets(node) and _targets(node) <= names - read]
        if not apart:
            return kept
        kept = [node for node in kept if node not in apart]
        names |= {name for node in apart for name in _read(node)}


def _targets(node: ast.stmt) -> set[str]:
    """The names that an assignment gives a value."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return set()
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _read(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def imported(path: Path) -> dict[str, Path]:
    """Names and files of the modules of one's own that `path` imports, and those in turn."""
    roots = [path.parent, *_own_roots()]
    found: dict[str, Path] = {}
    waiting = [("", path)]
    while waiting:
        package, file = waiting.pop()
        for name in _imports(_parsed(file), package):
            if name in found or name.split(".")[0] == PACKAGE.name:
                continue
            module = _file_of(name, roots)
            if module is not None:
                found[name] = module
                inside = name if module.name == "__init__.py" else name.rpartition(".")[0]
                waiting.append((inside, module))
    return found


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Every name that may be a module's, with the packages it lies in: `a`, `a.b` for `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join(part for part in [*above, node.module] if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.strip(".").split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _file_of(name: str, roots: list[Path]) -> Path | None:
    below = Path(*name.split("."))
    for root in roots:
        for file in (root / below / "__init__.py", root / below.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _own_roots() -> list[Path]:
    """Folders of `sys.path` that hold neither Python's own modules nor installed packages."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    is_own = lambda root: (
        not (root.is_relative_to(library) or {"site-packages", "dist-packages"} & {*root.parts})
    )
    roots = [Path(entry).resolve() for entry in sys.path]
    return [root for root in roots if root.is_dir() and is_own(root)]


def _parsed(path: Path) -> ast.Module:
    """Empty where it does not parse: whatever imports it says so when it runs."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _dump(node: ast.AST) -> bytes:
    return ast.dump(node).encode("utf-8", "surrogatepass")

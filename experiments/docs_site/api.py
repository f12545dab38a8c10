"""One page for every public module: an order to mkdocstrings, which reads the docstrings without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("graphs", "patching", "circuits", "experiments")
FOLDER = "reference"
HEAD = "---\nsearch:\n  boost: 0.5\n---\n\n"
"""Pages that explain come before these in the search."""
LEFT_OUT = ("experiments.benchmarks", "experiments.docs_site")
"""Packages that nobody calls from Python: scripts with a command line."""


@cache
def modules() -> tuple[str, ...]:
    """Dotted names of all modules with a page, packages before what is in them.

    Example:
        >>> {"graphs", "graphs.circuit", "patching.atp"} <= set(modules())
        True
    """
    return tuple(name for package in PACKAGES for name in _below(ROOT / package, package))


def _below(folder: Path, name: str) -> Iterator[str]:
    if name in LEFT_OUT:
        return
    yield name
    files = {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}
    packages = {path.parent.name: path.parent for path in folder.glob("*/__init__.py")}
    for part in sorted(files | packages):
        if part in packages:
            yield from _below(packages[part], f"{name}.{part}")
        else:
            yield f"{name}.{part}"


def source(module: str) -> Path:
    """The file of a module."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def uri(module: str) -> str:
    """Where its page is, below `docs`.

    Example:
        >>> uri("graphs"), uri("patching.atp")
        ('reference/graphs/index.md', 'reference/patching/atp.md')
    """
    path = "/".join((FOLDER, *module.split(".")))
    return f"{path}/index.md" if source(module).name == "__init__.py" else f"{path}.md"


def page(module: str) -> str:
    """The page of a module: its docstrings; for a package also a table of the names it offers."""
    if source(module).name != "__init__.py":
        return f"{HEAD}::: {module}\n"
    own = ", ".join(_own(module)) or "false"
    text = f"{HEAD}::: {module}\n    options:\n      members: {f'[{own}]' if own != 'false' else own}\n"
    names = exported(module)
    if not names:
        return text
    rows = [f"| [`{name}`][{target}] | {summary} |" for name, target, summary in names]
    return text + "\n".join(["", f"## Names of `{module}`", "", "| name | what it is |", "|---|---|", *rows, ""])


def exported(module: str) -> list[tuple[str, str, str]]:
    """What a package offers under its own name but defines elsewhere: (name, where it is defined, first line).

    Example:
        >>> next(row for row in exported("graphs") if row[0] == "Circuit")[1]
        'graphs.circuit.Circuit'
    """
    path = source(module)
    if path.name != "__init__.py":
        return []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    offered = _all(tree)
    homes = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    return [(name, homes[name], _first_line(homes[name])) for name in offered if name in homes]


def _own(module: str) -> list[str]:
    """Public functions, classes and documented constants that a file itself defines."""
    body = ast.parse(source(module).read_text(encoding="utf-8")).body
    found = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node, after in pairwise(body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_text(after):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in found if not name.startswith("_")]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _all(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets
        ):
            return list(ast.literal_eval(node.value))
    return []


def _first_line(name: str) -> str:
    """The first line of a docstring."""
    if name in modules():
        return _line_of(ast.parse(source(name).read_text(encoding="utf-8")))
    module, _, last = name.rpartition(".")
    tree = ast.parse(source(module).read_text(encoding="utf-8"))
    for node, after in zip_longest(tree.body, tree.body[1:]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == last:
            return _line_of(node)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr) and _is_text(after):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id == last for one in targets):
                return str(ast.literal_eval(after.value)).strip().splitlines()[0]
    return ""


def _line_of(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    text = (ast.get_docstring(node) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def navigation() -> list[dict[str, object]]:
    """The menu of all module pages, nested as packages are."""
    return [{package: _menu(package)} for package in PACKAGES]


def _menu(package: str) -> list[object]:
    entries: list[object] = [uri(package)]
    inside = [name for name in modules() if name.rpartition(".")[0] == package]
    for name in inside:
        last = name.rpartition(".")[2]
        entries.append({last: _menu(name) if source(name).name == "__init__.py" else uri(name)})
    return entries

"""The import arrows: notebooks -> experiments -> circuits -> patching -> graphs -> networkx.

Read from the source by `ast`, so that an import inside a function or under `TYPE_CHECKING` counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("graphs", "patching", "circuits", "experiments", "notebooks")  # each may import those before it
SHIPPED = LAYERS[:-1]
LENS_FILE = "patching/lens.py"
PEER_FILE = (
    "experiments/benchmarks/patching_rows.py"  # TransformerLens's own patching loop is what ours is timed against
)
FIGURE_FILES = {"graphs/export/canvas.py", "graphs/export/figure.py", "graphs/plots.py", "graphs/trace.py"}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "types", "core", "misc"}
HEAVY = ("torch", "numpy", "matplotlib", "pandas", "transformers", "transformer_lens")

SOURCES = [path for layer in LAYERS for path in sorted(ROOT.glob(f"{layer}/**/*.py"))]
FILES = {path.relative_to(ROOT).as_posix(): path for path in SOURCES}
MODULES = sorted(FILES)


@cache
def syntax(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"), filename=name)


def imported(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Every module imported anywhere in a file, absolute, however it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{stem}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import_function(node.func) and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield ".".join(package) + argument.value if argument.value.startswith(".") else argument.value


def _is_import_function(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        return function.attr == "import_module"
    return isinstance(function, ast.Name) and function.id in {"import_module", "__import__"}


def imports_of(name: str) -> set[str]:
    return set(imported(syntax(name), tuple(name.split("/")[:-1])))


def layer_of(module: str) -> str:
    return module.replace("/", ".").split(".")[0]


def words_outside_docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names, attributes, imports and string constants of a file, with their lines."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if _has_docstring(node, documented)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node.lineno, " ".join([getattr(node, "module", "") or "", *(a.name for a in node.names)])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def _has_docstring(node: ast.AST, kinds: tuple[type[ast.AST], ...]) -> bool:
    return isinstance(node, kinds) and bool(node.body) and isinstance(node.body[0], ast.Expr)


def test_the_layers_are_here():
    assert {layer_of(name) for name in MODULES} >= set(SHIPPED)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    above = LAYERS[LAYERS.index(layer_of(name)) + 1 :]
    wrong = {module for module in imports_of(name) if layer_of(module) in {*above, "tests"}}
    assert not wrong, f"{name} imports {sorted(wrong)}: a layer may import only the layers below it"


@pytest.mark.parametrize("name", [name for name in MODULES if layer_of(name) == "graphs"])
def test_graphs_need_only_networkx(name):
    drawing = {"matplotlib"} if name in FIGURE_FILES else set()
    allowed = {"graphs", "networkx", *drawing, *sys.stdlib_module_names}
    wrong = {module for module in imports_of(name) if layer_of(module) not in allowed}
    assert not wrong, f"{name} imports {sorted(wrong)}: a figure must not need torch"


@pytest.mark.parametrize("name", [name for name in MODULES if name not in (LENS_FILE, PEER_FILE)])
def test_only_the_lens_names_transformer_lens(name):
    words = words_outside_docstrings(syntax(name))
    found = [(line, word) for line, word in words if "transformer_lens" in word]
    assert not found, f"{name} names transformer_lens at {found}: only {LENS_FILE} may"


@pytest.mark.parametrize("name", MODULES)
def test_file_names_say_what_is_inside(name):
    assert Path(name).stem not in VAGUE_NAMES, f"{name}: name the concept, not the drawer"


@pytest.mark.parametrize("statement", ["import graphs", "from graphs import Circuit, ComponentGraph, Edge, export"])
def test_graphs_load_nothing_heavy(statement):
    program = f"import sys; {statement}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.split() == []


def test_relative_and_dynamic_imports_are_seen():
    source = "from . import a\nfrom ..torch_side import b\nimport_module('torch.nn')\n__import__('numpy')\n"
    seen = set(imported(ast.parse(source), ("graphs", "export")))
    assert seen == {"graphs.export.a", "graphs.torch_side.b", "torch.nn", "numpy"}

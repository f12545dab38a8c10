"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from graphs.atomic import replacing
from graphs.circuit import Circuit
from graphs.compare import compare
from graphs.components import Architecture, ComponentGraph
from graphs.layout import in_order
from graphs.nodes import Edge, Node, head, kv, mlp

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "graphs").rglob("*.py")
)
SILENT = "compare"  # its example shows a call and no output


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path):
    names = {item.__name__: item for item in (Architecture, ComponentGraph, Edge, Node, Circuit)}
    names |= {item.__name__: item for item in (head, kv, mlp, compare, in_order, replacing)}
    names |= {"folder": tmp_path, "circuit": Circuit(Architecture(2, 2), [Edge.parse("m0->logits")])}
    finder, runner, said = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(), []
    for test in finder.find(importlib.import_module(name), extraglobs=names):
        if test.name.split(".")[-1] != SILENT:
            runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)

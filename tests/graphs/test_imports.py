"""What is loaded when, read from `sys.modules` in a fresh process (a clock would measure the machine)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "matplotlib", "transformer_lens", "transformers", "pandas", "scipy")


def loaded_by(code: str) -> set[str]:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "also_unwanted"),
    [
        ("import graphs", ("networkx",)),
        ("import graphs.layout, graphs.atomic, graphs.export.figure, graphs.export.graphml", ("networkx",)),
        ("from graphs import *; Circuit(Architecture(2, 2), [Edge.parse('m0->logits')]).to_json()", ("networkx",)),
        ("import graphs; from graphs.export import csv, cytoscape, dot, gexf, neuronpedia, node_link", ("networkx",)),
        (
            "from graphs import *; from graphs.export import tikz; tikz.dumps(Circuit(Architecture(2, 2), []))",
            ("networkx",),
        ),
        ("from graphs import *; Circuit(Architecture(2, 2), [Edge.parse('m0->logits')]).prune().to_networkx()", ()),
        ("from graphs import *; from graphs.layout import layout; layout(Circuit(Architecture(2, 2), []))", ()),
    ],
)
def test_nothing_heavy_is_loaded(code, also_unwanted):
    loaded = loaded_by(code)
    assert "graphs" in loaded
    assert not loaded & {*HEAVY, *also_unwanted}


def test_a_figure_needs_no_torch_and_no_pyplot():
    code = "from graphs import *; from graphs.export import figure; figure.svg(Circuit(Architecture(2, 2), []))"
    loaded = loaded_by(code)
    assert "matplotlib" in loaded
    assert not loaded & {"torch", "transformer_lens", "transformers", "matplotlib.pyplot"}


def test_functions_win_over_the_modules_of_the_same_name():
    loaded_by("import graphs.compare, graphs.export.figure, graphs; assert callable(graphs.compare)")
    loaded_by("from graphs.export import figure; from graphs import export; assert callable(export)")
    loaded_by("from graphs.compare import Comparison; from graphs import compare; assert callable(compare)")

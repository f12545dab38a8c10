"""Circuits that try a format hard, for the tests of formats."""

from __future__ import annotations

from pathlib import Path

from graphs import Architecture, Circuit, ComponentGraph, Edge
from graphs.export import FORMATS
from graphs.importing import READERS

EXACT = [name for name in READERS if name != "mib"]  # tests/graphs/test_export_mib.py has mib
SHAPES = [
    Architecture(2, 4),
    Architecture(2, 4, 2),
    Architecture(3, 2, has_mlp=False),
    Architecture(2, 2, parallel=True),
]
HOSTILE = "</gexf>]]>\x00\x1f\ud800 \"'&<>\\\\\" \u202e\n\t=cmd|' /C calc'!A0,@x;+1 -- /* # é 中 😀"


def some_circuit(shape: Architecture = SHAPES[1], *, n: int = 20) -> Circuit:
    edges = ComponentGraph(shape).edges
    chosen = [edges[7 * number % len(edges)] for number in range(n)]
    chosen += [Edge(edge.source, edge.target, edge.port, 3) for edge in chosen[::4]]
    scores = {edge: (-1.0) ** number * number / 7 for number, edge in enumerate(dict.fromkeys(chosen)) if number % 5}
    return Circuit(shape, chosen, scores, {"model": HOSTILE, "options": {HOSTILE: [1, None, -0.5, {"a": True}]}})


def path_of(folder: Path, name: str) -> Path:
    return folder / f"circuit{FORMATS[name]}"

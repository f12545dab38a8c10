"""Every format writes whole files that read back, and refuses what it cannot hold or trust."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import Architecture, Circuit, ComponentGraph, export
from graphs.errors import BadCircuit, BadFile, UnknownFormat
from graphs.export import EXPORTS, graphml

SHAPES = [
    Architecture(2, 4),
    Architecture(2, 4, 2),
    Architecture(3, 2, has_mlp=False),
    Architecture(2, 2, parallel=True),
]
HOSTILE = "</graphml>\x00\x1f\ud800 \"'&<>\u202e\n\t"


def some_circuit(shape: Architecture, *, n: int, seed: int = 0, provenance: dict[str, object] | None = None) -> Circuit:
    edges = ComponentGraph(shape).edges
    chosen = [edges[(7 * number * (seed + 1) + seed) % len(edges)] for number in range(n)]
    return Circuit(
        shape, chosen, {edge: (-1.0) ** i * i / 7 for i, edge in enumerate(dict.fromkeys(chosen))}, provenance
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("suffix", EXPORTS)
def test_every_format_writes_a_file(suffix: str, shape: Architecture, tmp_path: Path) -> None:
    path = tmp_path / f"circuit{suffix}"
    if suffix == ".mib.json" and not shape.has_mlp:
        with pytest.raises(BadCircuit):
            export(some_circuit(shape, n=12), path, d_model=8)
        return
    export(some_circuit(shape, n=12), path, **({"d_model": 8} if suffix == ".mib.json" else {}))
    assert path.stat().st_size > 100
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_unknown_suffix_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match=r"\.graphml"):
        export(some_circuit(SHAPES[0], n=3), tmp_path / "circuit.docx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_graphml_reads_back(shape: Architecture, tmp_path: Path) -> None:
    circuit = some_circuit(shape, n=20, provenance={"model": HOSTILE, "options": {"tau": 0.1, "list": [1, None]}})
    graphml.write(circuit, tmp_path / "c.graphml")
    assert graphml.read(tmp_path / "c.graphml") == circuit


@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet=st.characters(), max_size=30))
def test_graphml_holds_any_text(text: str) -> None:
    circuit = some_circuit(SHAPES[1], n=5, provenance={"note": text})
    root = ElementTree.fromstring(graphml.dumps(circuit))
    assert root.tag.endswith("graphml")


def test_networkx_reads_the_graphml(tmp_path: Path) -> None:
    circuit = some_circuit(SHAPES[1], n=20)
    graphml.write(circuit, tmp_path / "c.graphml")
    graph = nx.read_graphml(tmp_path / "c.graphml", force_multigraph=True)
    structural = [data for *_ends, data in graph.edges(data=True) if data["structural"]]
    assert graph.number_of_edges() - len(structural) == circuit.n_edges
    assert {str(node) for node in circuit.nodes} == set(graph.nodes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not xml",
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><graphml/>',
        "<graphml></graphml>",
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="directed"/></graphml>',
    ],
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.graphml").write_text(text)
    with pytest.raises(BadFile, match=r"c\.graphml"):
        graphml.read(tmp_path / "c.graphml")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = graphml.dumps(some_circuit(SHAPES[0], n=10))
    for length in range(0, len(whole) - 12, 97):
        (tmp_path / "c.graphml").write_bytes(whole[:length])
        with pytest.raises(BadFile):
            graphml.read(tmp_path / "c.graphml")

"""The JSON graph file of EAP-IG and MIB: a file in their layout reads as it should, and what is written reads back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphs import Architecture, Circuit, ComponentGraph, Edge
from graphs.errors import BadCircuit, BadFile, UnknownEdge, UnknownNode
from graphs.export import mib
from graphs.nodes import Node
from tests.graphs import strategies

# One layer of one head, written by hand as `Graph.to_json` lays it out.
BY_HAND: dict[str, Any] = {
    "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 4},
    "nodes": {
        "input": {"in_graph": True, "score": 0.25},
        "a0.h0": {"in_graph": True, "score": math.nan},
        "m0": {"in_graph": False, "score": -1.0},
        "logits": {"in_graph": True},
    },
    "edges": {
        "input->a0.h0<q>": {"score": 0.5, "in_graph": False},
        "input->a0.h0<k>": {"score": 0.0, "in_graph": False},
        "input->a0.h0<v>": {"score": -2.0, "in_graph": True},
        "input->m0": {"score": 0.125, "in_graph": False},
        "a0.h0->m0": {"score": 1.5, "in_graph": False},
        "input->logits": {"score": -0.75, "in_graph": False},
        "a0.h0->logits": {"score": -3.0, "in_graph": True},
        "m0->logits": {"score": 4.0, "in_graph": False},
    },
}
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def changed(**parts: Any) -> dict[str, Any]:
    """The file by hand with other parts; a nested key is spelled with two underscores."""
    record = json.loads(json.dumps(BY_HAND))
    for path, value in parts.items():
        *outer, last = path.split("__")
        place = record
        for key in outer:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return record


def stored(record: object, folder: Path) -> Path:
    path = folder / "graph.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def test_a_file_in_their_layout(tmp_path: Path) -> None:
    read = mib.read(stored(BY_HAND, tmp_path))
    assert read.circuit.architecture == Architecture(1, 1)
    assert [str(edge) for edge in read.circuit.edges] == ["input->a0.h0<v>", "a0.h0->logits"]
    assert list(read.circuit.scores.values()) == [-2.0, -3.0]
    assert len(read.edges) == 8
    assert read.edges[Edge.parse("m0->logits")] == 4.0
    assert read.nodes == {Node.parse("input"): 0.25, Node.parse("m0"): -1.0}  # NaN says that there is none
    assert read.d_model == 4


def test_what_is_written_has_their_layout() -> None:
    edges = [Edge.parse("input->a0.h0<v>"), Edge.parse("a0.h0->logits")]
    scores = {Edge.parse(name): entry["score"] for name, entry in BY_HAND["edges"].items()}
    circuit = Circuit(Architecture(1, 1), edges, {edge: scores[edge] for edge in edges})
    nodes = {Node.parse("input"): 0.25, Node.parse("m0"): -1.0}
    record = json.loads(mib.dumps(mib.checked(circuit, d_model=4, edges=scores, nodes=nodes)))
    assert record["cfg"] == BY_HAND["cfg"]
    assert record["edges"] == BY_HAND["edges"]
    assert {name: entry["in_graph"] for name, entry in record["nodes"].items()} == {
        name: entry["in_graph"] for name, entry in BY_HAND["nodes"].items()
    }
    assert list(record["nodes"]) == list(BY_HAND["nodes"])
    assert record["nodes"]["m0"]["score"] == -1.0
    assert "score" not in record["nodes"]["a0.h0"]


def test_every_edge_of_gpt2_small_is_named_once() -> None:
    """Their graph of this shape has 32,491 edges and 12 · 13 + 2 nodes."""
    circuit = Circuit(Architecture(12, 12), [Edge.parse("m3->a9.h6<q>")])
    record = json.loads(mib.dumps(mib.checked(circuit, d_model=768)))
    assert len(record["edges"]) == 32491
    assert len(record["nodes"]) == 158
    assert [name for name, entry in record["edges"].items() if entry["in_graph"]] == ["m3->a9.h6<q>"]


def test_a_loss_turns_the_sign(tmp_path: Path) -> None:
    path = stored(BY_HAND, tmp_path)
    plain, turned = mib.read(path), mib.read(path, of_loss=True)
    assert {edge: -score for edge, score in plain.edges.items()} == turned.edges
    assert turned.nodes[Node.parse("m0")] == 1.0
    again = tmp_path / "again.json"
    mib.write(turned.circuit, again, d_model=4, edges=turned.edges, nodes=turned.nodes, of_loss=True)
    assert json.loads(again.read_text())["edges"] == BY_HAND["edges"]


@settings(max_examples=60, deadline=None)
@given(circuit=strategies.circuits(positions=False), data=st.data())
def test_what_is_written_reads_back(circuit: Circuit, data: st.DataObject, tmp_path_factory: Any) -> None:
    assume(circuit.architecture.has_mlp)
    assume(all(abs(score) < 1e300 for score in circuit.scores.values()))  # shares of more may add up to infinity
    graph = circuit.graph
    shape = circuit.architecture
    more = data.draw(st.dictionaries(st.sampled_from(graph.edges), FLOATS, max_size=5))
    nodes = data.draw(st.dictionaries(st.sampled_from(graph.sources), FLOATS, max_size=3))
    path = tmp_path_factory.mktemp("mib") / "graph.json"
    mib.write(circuit, path, d_model=8, edges=more, nodes=nodes)
    read = mib.read(path)
    assert read.circuit.architecture == shape
    assert read.circuit.edges == circuit.edges
    assert dict(read.circuit.provenance) == dict(circuit.provenance)
    assert read.nodes == nodes
    expected = {**circuit.scores, **more}
    assert set(read.edges) == set(expected)
    for edge, score in expected.items():  # a group's score is divided and added up again
        assert read.edges[edge] == pytest.approx(score, rel=1e-15, abs=1e-320)


def test_a_group_is_written_for_each_of_its_heads(tmp_path: Path) -> None:
    shape = Architecture(1, 4, 2)
    key, query = Edge.parse("input->a0.kv1<k>"), Edge.parse("input->a0.h0<q>")
    path = tmp_path / "graph.json"
    mib.write(Circuit(shape, [key, query], {key: -0.5, query: -1.0}), path, d_model=8)
    record = json.loads(path.read_text())
    kept = {name: entry["score"] for name, entry in record["edges"].items() if entry["in_graph"]}
    assert kept == {"input->a0.h0<q>": -1.0, "input->a0.h2<k>": -0.25, "input->a0.h3<k>": -0.25}
    assert mib.read(path).circuit.scores == {query: -1.0, key: -0.5}
    del record[mib.OURS]  # theirs does not say how keys are grouped
    theirs = stored(record, tmp_path)
    assert mib.read(theirs).circuit.architecture == Architecture(1, 4)
    assert mib.read(theirs, n_kv_heads=2).circuit.scores == {query: -1.0, key: -0.5}
    record["edges"]["input->a0.h3<k>"]["in_graph"] = False
    with pytest.raises(BadFile, match=r"some heads of a0\.kv1 only"):
        mib.read(stored(record, tmp_path), n_kv_heads=2)
    del record["edges"]["input->a0.h3<k>"]
    with pytest.raises(BadFile, match=r"some heads of a0\.kv1 only"):
        mib.read(stored(record, tmp_path), n_kv_heads=2)


EDGE = {"score": 0.0, "in_graph": True}
WRONG = {
    "no edges": (changed(edges=None), "'edges'"),
    "no nodes": (changed(nodes=None), "'nodes'"),
    "no cfg": (changed(cfg=None), "'cfg'"),
    "a list": ([1, 2], "object"),
    "no heads": (changed(cfg__n_heads=None), "lacks n_heads"),
    "heads in words": (changed(cfg__n_heads="two"), "whole number"),
    "absurd size": (changed(cfg__n_layers=10**9), "1 to 10,000"),
    "huge size": (changed(cfg__n_layers=10_000, cfg__n_heads=90), "names 4 nodes, and a model of its cfg has 910,002"),
    "other size": (changed(cfg__n_layers=2), "names 4 nodes, and a model of its cfg has 6"),
    "node left out": (changed(nodes__m0=None), "names 3 nodes"),
    "unknown edge": (changed(**{"edges__m7->logits": EDGE}), "no node m7"),
    "backward edge": (changed(**{"edges__m0->a0.h0<q>": EDGE}), "reads only what is written before"),
    "misspelled edge": (changed(**{"edges__blocks.0->logits": EDGE}), "blocks.0"),
    "unknown node": (changed(nodes__m7={"in_graph": True}, nodes__m0=None), "no node m7"),
    "edge without score": (changed(**{"edges__m0->logits__score": None}), "lacks score"),
    "edge without in_graph": (changed(**{"edges__m0->logits__in_graph": None}), "lacks in_graph"),
    "edge is a number": (changed(**{"edges__m0->logits": 3.0}), "lacks score and in_graph"),
    "NaN": (changed(**{"edges__m0->logits__score": math.nan}), "m0->logits must be a finite number"),
    "infinity": (changed(**{"edges__m0->logits__score": math.inf}), "finite"),
    "score in words": (changed(**{"edges__m0->logits__score": "high"}), "finite number"),
    "infinite node": (changed(nodes__m0__score=math.inf), "m0 must be a finite number"),
    "flag in numbers": (changed(**{"edges__m0->logits__in_graph": 1}), "true or false"),
    "half a node": (changed(nodes__m0__neurons=[True, False, True, True]), "some dimensions of m0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_says_what_is_wrong(case: str, tmp_path: Path) -> None:
    record, said = WRONG[case]
    with pytest.raises(BadFile, match=said) as caught:
        mib.read(stored(record, tmp_path))
    assert "graph.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not an EAP-IG graph file"),
        ('{"cfg": {"n_layers"', "not an EAP-IG graph file"),
        ("[" * 100_000, "nested too deep"),
        ('{"cfg": {}, "cfg": {}}', "twice"),
    ],
)
def test_no_json(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(BadFile, match=said):
        mib.read(path)


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    with path.open("wb") as file:
        file.truncate(100_000_001)  # sparse: takes no room
    with pytest.raises(BadFile, match="larger than 100 MB"):
        mib.read(path)
    with pytest.raises(BadFile, match="no file"):
        mib.read(tmp_path / "missing.json")


def test_whole_nodes_and_scores_of_their_dimensions_are_read(tmp_path: Path) -> None:
    record = changed(nodes__m0__neurons=[True] * 4, nodes__m0__neurons_scores=[0.1] * 4)
    assert mib.read(stored(record, tmp_path)).circuit == mib.read(stored(BY_HAND, tmp_path)).circuit


def test_what_the_format_cannot_hold(tmp_path: Path) -> None:
    path, shape = tmp_path / "graph.json", Architecture(1, 1)
    cases: list[tuple[Circuit, dict[str, Any], type[Exception], str]] = [
        (Circuit(shape, [Edge.parse("m0->logits@3")]), {}, BadCircuit, "no positions"),
        (Circuit(Architecture(1, 1, has_mlp=False), []), {}, BadCircuit, "attention-only"),
        (Circuit(shape, []), {"d_model": 0}, BadCircuit, "d_model"),
        (Circuit(shape, []), {"edges": {Edge.parse("m0->logits"): math.nan}}, BadCircuit, "finite"),
        (Circuit(shape, []), {"edges": {Edge.parse("m7->logits"): 1.0}}, UnknownEdge, "m7"),
        (Circuit(shape, []), {"nodes": {Node.parse("m7"): 1.0}}, UnknownNode, "m7"),
        (Circuit(shape, []), {"nodes": {Node.parse("logits"): 1.0}}, BadCircuit, "nodes that write"),
        (Circuit(shape, []), {"nodes": {Node.parse("m0"): math.inf}}, BadCircuit, "finite"),
    ]
    for circuit, options, kind, said in cases:
        with pytest.raises(kind, match=said):
            mib.write(circuit, path, **{"d_model": 4, **options})
    assert not list(tmp_path.iterdir())


def test_node_flags_are_what_their_pruning_leaves_of_a_pruned_circuit() -> None:
    """There, a node is in the graph iff something reads it and it reads something; the input needs no reader's edge."""
    names = ["input->a0.kv0<v>", "a0.h1->m1", "m1->logits", "a1.h0->logits"]
    circuit = Circuit(Architecture(2, 2, 1), [Edge.parse(name) for name in names])
    flags = mib.node_flags(circuit)
    assert [str(node) for node, kept in flags.items() if kept] == ["input", "a0.h1", "m1", "logits"]
    assert len(flags) == len(ComponentGraph(circuit.architecture).sources) + 1

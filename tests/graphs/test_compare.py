from __future__ import annotations

import pytest
from hypothesis import given

from graphs.circuit import Circuit
from graphs.compare import compare
from graphs.components import Architecture
from graphs.errors import BadCircuit
from graphs.nodes import Edge
from tests.graphs.strategies import circuits

SHAPE = Architecture(2, 2)


def made(*names):
    return Circuit(SHAPE, map(Edge.parse, names))


def test_by_hand():
    a = made("input->m0", "m0->logits", "input->logits")
    b = made("m0->logits", "m0->m1", "m1->logits", "m0->logits@2")
    found = compare(a, b)
    assert list(map(str, found.only_a)) == ["input->m0", "input->logits"]
    assert list(map(str, found.both)) == ["m0->logits"]
    assert list(map(str, found.only_b)) == ["m0->m1", "m0->logits@2", "m1->logits"]
    assert list(map(str, found.nodes_only_a)) == ["input"]
    assert list(map(str, found.nodes_both)) == ["m0", "logits"]
    assert list(map(str, found.nodes_only_b)) == ["m1"]
    assert found.edge_jaccard == 1 / 6
    assert found.node_jaccard == 2 / 4
    assert str(found).splitlines() == [
        "          both   only a   only b  jaccard",
        "edges        1        2        3    0.167",
        "nodes        2        1        1    0.500",
        "only a: input->m0, input->logits",
        "only b: m0->m1, m0->logits@2, m1->logits",
    ]


def test_long_lists_are_cut():
    circuit = Circuit(SHAPE, made().graph.edges)
    assert str(compare(circuit, made())).splitlines()[-1].endswith(", and 38 more")


def test_empty_circuits_agree():
    assert compare(made(), made()).edge_jaccard == 1.0
    assert compare(made(), made()).node_jaccard == 1.0
    assert compare(made(), made("m0->logits")).edge_jaccard == 0.0


@given(circuits(provenance={}))
def test_the_groups_are_set_operations(circuit):
    part = circuit.prune()
    found, mirrored = compare(circuit, part), compare(part, circuit)
    assert found.both == part.edges
    assert found.only_b == ()
    assert set(found.only_a) == set(circuit.edges) - set(part.edges)
    assert (found.only_a, found.nodes_only_a) == (mirrored.only_b, mirrored.nodes_only_b)
    assert found.edge_jaccard == mirrored.edge_jaccard
    assert compare(circuit, circuit).edge_jaccard == compare(circuit, circuit).node_jaccard == 1.0


def test_circuits_of_different_shapes_are_refused():
    with pytest.raises(BadCircuit, match="one shape; got 2 layers, 2 heads, MLPs and 2 layers, 3 heads, MLPs"):
        compare(made(), Circuit(Architecture(2, 3), []))


def scored(scores):
    scores = {Edge.parse(name): score for name, score in scores.items()}
    return Circuit(SHAPE, scores, {edge: score for edge, score in scores.items() if score is not None})


A = scored({"input->m0": -1.0, "m0->m1": 2.0, "m0->logits": 0.25, "m1->logits": None})
B = scored({"input->m0": -3.5, "m0->logits": 0.125, "m1->logits": -1e-9, "input->logits": 1234.5678})


def test_rows_by_hand():
    assert [(str(edge), *others) for edge, *others in compare(A, B).to_rows()] == [
        ("input->m0", True, True, -1.0, -3.5),
        ("m0->logits", True, True, 0.25, 0.125),
        ("m1->logits", True, True, None, -1e-9),
        ("m0->m1", True, False, 2.0, None),
        ("input->logits", False, True, None, 1234.5678),
    ]
    assert [row.difference for row in compare(A, B).to_rows()] == [-2.5, -0.125, None, None, None]


def test_the_table_by_hand():
    assert compare(A, B).table().splitlines() == [
        "edge                   a          b      b - a",
        "input->m0             -1       -3.5       -2.5",
        "m0->logits         +0.25     +0.125     -0.125",
        "m1->logits          kept     -1e-09",
        "m0->m1                +2    no edge",
        "input->logits    no edge  +1.23e+03",
    ]
    assert compare(B, A).table(most=1).splitlines()[1:] == [
        "input->m0       -3.5         -1       +2.5",
        "and 4 more",
    ]


def test_a_table_of_nothing_is_its_head():
    assert compare(made(), made()).table().split() == ["edge", "a", "b", "b", "-", "a"]


@given(circuits(provenance={}))
def test_rows_are_the_edges_of_either(circuit):
    part = circuit.prune()
    rows = compare(circuit, part).to_rows()
    assert sorted(str(row.edge) for row in rows) == sorted(map(str, circuit.edges))
    assert {row.edge for row in rows if row.in_b} == set(part.edges)
    assert {row.edge: row.score_a for row in rows if row.score_a is not None} == circuit.scores
    assert {row.difference for row in rows} <= {0.0, None}
    mirrored = {row.edge: (row.in_b, row.in_a, row.score_b, row.score_a) for row in compare(part, circuit).to_rows()}
    assert mirrored == {row.edge: tuple(row[1:]) for row in rows}

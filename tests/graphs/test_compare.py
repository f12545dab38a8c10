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

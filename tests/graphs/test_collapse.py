from __future__ import annotations

import json
import math
from fractions import Fraction

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.circuit import Circuit
from graphs.collapse import collapse
from graphs.components import Architecture
from graphs.errors import BadOption, UnknownNode
from graphs.nodes import Edge, head, kv, mlp
from tests.graphs.strategies import circuits
from tests.graphs.test_paths import scored

SHAPE = Architecture(2, 2)
WHOLE = st.integers(-1000, 1000).map(float)  # sums of these are exact in any order


def made(scores, *, shape=SHAPE):
    scores = {Edge.parse(name): score for name, score in scores.items()}
    return Circuit(shape, scores, {edge: score for edge, score in scores.items() if score is not None})


EXAMPLE = made(
    {
        "input->a0.h1<q>": -1.0,
        "input->a0.h1<v>": 3.0,
        "input->a0.h1<v>@2": -4.0,
        "a0.h1->m0": None,
        "m0->a1.h0<k>": 0.5,
        "a0.h1->a1.h0<v>": 0.25,
        "a1.h0->logits": -2.0,
    }
)


def edges(graph, *names):
    return {(s, t): tuple(data.get(name) for name in names) for s, t, data in graph.edges(data=True)}


def test_by_node_by_hand():
    graph = collapse(EXAMPLE)
    assert edges(graph, "score", "importance", "edges") == {
        ("input", "a0.h1"): (-2.0, 8.0, 3),
        ("a0.h1", "m0"): (None, None, 1),
        ("m0", "a1.h0"): (0.5, 0.5, 1),
        ("a0.h1", "a1.h0"): (0.25, 0.25, 1),
        ("a1.h0", "logits"): (-2.0, 2.0, 1),
    }
    assert graph.edges["input", "a0.h1"]["members"] == ["input->a0.h1<q>", "input->a0.h1<v>", "input->a0.h1<v>@2"]
    assert dict(graph.nodes(data=True)) == {
        "input": {"members": ["input"]},
        "a0.h1": {"members": ["a0.h1"], "layer": 0},
        "m0": {"members": ["m0"], "layer": 0},
        "a1.h0": {"members": ["a1.h0"], "layer": 1},
        "logits": {"members": ["logits"]},
    }
    assert graph.graph == {"by": "node", "reduce": "sum"}
    assert edges(collapse(EXAMPLE, reduce="largest"), "score", "importance")["input", "a0.h1"] == (-4.0, 4.0)


def test_by_layer_by_hand():
    graph = collapse(EXAMPLE, by="layer")
    assert edges(graph, "score", "importance", "edges") == {
        ("input", "layer 0"): (-2.0, 8.0, 3),
        ("layer 0", "layer 0"): (None, None, 1),
        ("layer 0", "layer 1"): (0.75, 0.75, 2),
        ("layer 1", "logits"): (-2.0, 2.0, 1),
    }
    assert graph.nodes["layer 0"] == {"members": ["a0.h1", "m0"], "layer": 0}


def test_by_groups_by_hand():
    graph = collapse(EXAMPLE, by={"early": [head(0, 0), head(0, 1)], "rest": (mlp(0), head(1, 0))})
    assert edges(graph, "score", "edges") == {
        ("input", "early"): (-2.0, 3),
        ("early", "rest"): (0.25, 2),
        ("rest", "rest"): (0.5, 1),
        ("rest", "logits"): (-2.0, 1),
    }
    assert graph.nodes["rest"] == {"members": ["m0", "a1.h0"]}
    assert graph.graph["by"] == "groups"


def test_heads_stay_joined_to_their_keys_and_values():
    circuit = made({"input->a0.kv0<k>": 1.0, "a0.h1->logits": 2.0}, shape=Architecture(2, 4, 2))
    graph = collapse(circuit)
    assert nx.shortest_path(graph, "input", "logits") == ["input", "a0.kv0", "a0.h1", "logits"]
    assert graph.edges["a0.kv0", "a0.h1"] == {"edges": 0, "members": [], "structural": True}
    assert not any(data["structural"] for *_, data in collapse(circuit, by="layer").edges(data=True))
    grouped = collapse(circuit, by={"keys": [kv(0, 0)], "head": [head(0, 1)]})
    assert [edge for edge in grouped.edges if grouped.edges[edge]["structural"]] == [("keys", "head")]


@given(scored(values=WHOLE, positions=True), st.data())
def test_nothing_is_lost(circuit, data):
    """Counts and sums add up; every edge is in one bundle, whose ends hold the edge's ends."""
    names = st.sampled_from(["one", "two", "alone"])
    chosen = {node: data.draw(names) for node in circuit.nodes}
    groups = {name: [node for node, of in chosen.items() if of == name] for name in ("one", "two")}
    for by in ("node", "layer", groups):
        graph = collapse(circuit, by=by)
        bundles = [data for *_, data in graph.edges(data=True)]
        assert sum(each["edges"] for each in bundles) == circuit.n_edges
        assert math.fsum(each.get("score", 0) for each in bundles) == sum(circuit.scores.values())
        assert math.fsum(each.get("importance", 0) for each in bundles) == sum(map(abs, circuit.scores.values()))
        assert sorted(name for each in bundles for name in each["members"]) == sorted(map(str, circuit.edges))
        assert sorted(name for _, members in graph.nodes(data="members") for name in members) == sorted(
            map(str, circuit.nodes)
        )
        for start, end, inside in graph.edges(data="members"):
            for edge in map(Edge.parse, inside):
                assert str(edge.source) in graph.nodes[start]["members"]
                assert str(edge.target) in graph.nodes[end]["members"]
        peak = max((abs(score) for score in circuit.scores.values()), default=0)
        largest = collapse(circuit, by=by, reduce="largest")
        assert max(value for *_, value in largest.edges(data="importance", default=0)) == peak


@given(scored(values=WHOLE, positions=True))
def test_layers_are_bundles_of_nodes(circuit):
    """Collapsing by node, then summing by layer, is collapsing by layer."""
    layer = {name: name if at is None else f"layer {at}" for name, at in collapse(circuit).nodes(data="layer")}
    sums = {}
    for start, end, data in collapse(circuit).edges(data=True):
        if not data["structural"]:
            pair = layer[start], layer[end]
            sums[pair] = sums.get(pair, Fraction(0)) + Fraction(data["score"])
    assert sums == {(s, t): Fraction(score) for s, t, score in collapse(circuit, by="layer").edges(data="score")}


@given(circuits(provenance={}))
def test_by_node_is_the_circuit_without_ports(circuit):
    graph, ports = collapse(circuit, reduce="largest"), circuit.to_networkx()
    assert list(graph) == list(ports)
    assert set(graph.edges) == set(nx.DiGraph(ports).edges)
    assert nx.is_directed_acyclic_graph(graph)
    json.dumps(nx.node_link_data(graph, edges="edges"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "head"}, "by to be node, layer, or names"),
        ({"by": 3}, "got 3"),
        ({"reduce": "mean"}, "sum or largest; got 'mean'"),
        ({"by": {"a": [mlp(0)], "b": [mlp(0)]}}, "m0 is in two groups, 'a' and 'b'"),
        ({"by": {"": [mlp(0)]}}, "needs a name"),
        ({"by": {"a": mlp(0)}}, "several nodes"),
        ({"by": {"a": ["m0"]}}, "Node.parse"),
        ({"by": {"m0": [head(1, 0)]}}, "name of a node that is not in it"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(BadOption) as error:
        collapse(EXAMPLE, **options)
    assert said in str(error.value)


def test_a_node_that_the_model_lacks_is_refused():
    with pytest.raises(UnknownNode, match="no node m7"):
        collapse(EXAMPLE, by={"late": [mlp(7)]})
    assert list(collapse(EXAMPLE, by={"late": [mlp(1)]})) == list(collapse(EXAMPLE))

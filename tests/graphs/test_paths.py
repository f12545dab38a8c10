from __future__ import annotations

import math
from fractions import Fraction

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.errors import BadCircuit, BadOption, UnknownNode
from graphs.nodes import INPUT, LOGITS, Edge, Node, head, kv, mlp
from graphs.paths import Path, paths

SHAPE = Architecture(2, 2)
GROUPED = Architecture(2, 4, 2)
SMALL = (SHAPE, Architecture(2, 2, 1), Architecture(1, 4, 2), Architecture(2, 2, parallel=True))


def made(scores, *, shape=SHAPE):
    scores = {Edge.parse(name): score for name, score in scores.items()}
    return Circuit(shape, scores, scores)


def shown(found):
    return [str(path) for path in found]


@st.composite
def scored(draw, *, values, positions):
    """A circuit small enough to list every path, dense enough to have some."""
    graph = ComponentGraph(draw(st.sampled_from(SMALL)))
    at = st.sampled_from([None, None, 0, 1, 3]) if positions else st.none()
    numbers = draw(st.lists(st.integers(0, graph.n_edges - 1), min_size=6, max_size=22))
    edges = [graph.edge_at(number) for number in numbers]
    edges = [Edge(edge.source, edge.target, edge.port, draw(at)) for edge in edges]
    return Circuit(graph.architecture, edges, {edge: draw(values) for edge in edges})


def every_path(circuit, source, target):
    """Oracle: all simple paths of networkx in the graph unrolled over positions, as sets of rows of edges."""
    last = max((edge.position or 0 for edge in circuit.edges), default=0) + 2
    g = nx.DiGraph()
    g.add_nodes_from(["start", "end"])

    def ends(node):
        return circuit.graph.query_heads(node) if node.kind == "kv" else (node,)

    for edge in circuit.edges:
        for here in range(last) if edge.position is None else (edge.position,):
            g.add_edge((edge.source, here), (edge, here))
            for there in range(here, last) if edge.port in ("k", "v") else (here,):
                g.add_edges_from(((edge, here), (end, there)) for end in ends(edge.target))
                if edge.target == target or target in ends(edge.target):
                    g.add_edge((edge, here), "end")
    g.add_edges_from(("start", (node, here)) for node in ends(source) for here in range(last))
    found = nx.all_simple_paths(g, "start", "end")
    return {tuple(step[0] for step in path[1:-1] if isinstance(step[0], Edge)) for path in found}


def order(circuit, by):
    """Oracle: the order that the docstring states, of whole paths."""

    def key(path):
        weights = sorted(abs(circuit.scores[edge]) for edge in path)
        places = [circuit.edges.index(edge) for edge in path]
        if by == "bottleneck":
            return [*(-weight for weight in weights), -math.inf], places
        return sum(not weight for weight in weights), -product(weights, skip_zeros=True), len(path), places

    return key


def product(weights, *, skip_zeros=False):
    result = Fraction(1)
    for weight in weights:
        result *= Fraction(weight) if weight or not skip_zeros else 1
    return result


@pytest.mark.parametrize("by", ["bottleneck", "product"])
@settings(max_examples=150)
@given(st.data())
def test_the_best_of_all_paths(by, data):
    few = st.sampled_from([0, 0.5, -0.5, 1, 2, -3, 0.1, -0.3])
    values = data.draw(st.sampled_from([few, st.floats(-10, 10)]))
    circuit = data.draw(scored(values=values, positions=data.draw(st.booleans())))
    source = data.draw(st.sampled_from([INPUT, INPUT, *circuit.nodes]))
    target = data.draw(st.sampled_from([LOGITS, LOGITS, *circuit.nodes]))
    k = data.draw(st.sampled_from([1, 2, 5, 10_000]))
    expected = sorted(every_path(circuit, source, target), key=order(circuit, by))[:k]
    found = paths(circuit, k=k, by=by, source=source, target=target)
    assert [path.edges for path in found] == expected
    for path in found:
        weights = [abs(circuit.scores[edge]) for edge in path.edges]
        assert path.value == (min(weights) if by == "bottleneck" else float(product(weights)))


@settings(max_examples=100)
@given(scored(values=st.floats(-1, 1), positions=True))
def test_the_edges_of_all_paths_are_those_that_pruning_keeps(circuit):
    found = paths(circuit, k=10_000)
    assert {edge for path in found for edge in path.edges} == set(circuit.prune().edges)


def test_by_hand():
    circuit = made(
        {
            "input->a0.h1<v>": -0.9,
            "input->a0.h1<q>": 0.1,
            "a0.h1->a1.h0<q>": 0.83,
            "a1.h0->logits": -2,
            "input->logits": 0.5,
            "m0->logits": 7,
        }
    )
    assert shown(paths(circuit)) == [
        "input -> a0.h1<v> -> a1.h0<q> -> logits  0.83",
        "input -> logits  0.5",
        "input -> a0.h1<q> -> a1.h0<q> -> logits  0.1",
    ]
    assert shown(paths(circuit, by="product", k=1)) == ["input -> a0.h1<v> -> a1.h0<q> -> logits  1.49"]
    assert shown(paths(circuit, source=mlp(0))) == ["m0 -> logits  7"]
    assert paths(circuit)[0].nodes == (INPUT, head(0, 1), head(1, 0), LOGITS)


def test_a_path_through_a_group_names_the_head_it_goes_on_in():
    circuit = made({"input->a0.kv0<k>": 3, "a0.h1->logits": 2, "a0.h0->logits@4": 1}, shape=GROUPED)
    assert shown(paths(circuit)) == [
        "input -> a0.kv0<k> -> a0.h1 -> logits  2",
        "input -> a0.kv0<k> -> a0.h0 -> logits@4  1",
    ]
    assert paths(circuit)[0].nodes == (INPUT, kv(0, 0), head(0, 1), LOGITS)
    assert shown(paths(circuit, target=kv(0, 0))) == ["input -> a0.kv0<k>  3"]
    assert shown(paths(circuit, target=head(0, 1))) == ["input -> a0.kv0<k>  3"]
    assert shown(paths(circuit, source=kv(0, 0))) == ["a0.h1 -> logits  2", "a0.h0 -> logits@4  1"]
    assert paths(circuit, source=kv(0, 0), target=head(0, 1)) == ()


def test_positions_are_followed():
    edges = {"input->a0.h0<k>@2": 1, "a0.h0->logits@1": 1, "a0.h0->logits@3": 1}
    assert shown(paths(made(edges))) == ["input -> a0.h0<k>@2 -> logits@3  1"]
    assert paths(made({"input->a0.h0<q>@1": 1, "a0.h0->logits@2": 1})) == ()


def test_equal_paths_stand_in_the_order_of_the_edges():
    circuit = made({f"input->a0.h{n}<{port}>": 1 for n in (1, 0) for port in "vkq"} | {"a0.h0->m0": 1, "a0.h1->m0": 1})
    found = paths(circuit, target=mlp(0), by="product")
    ports = ["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>"]
    assert [str(path.edges[0].reads) for path in found] == ports
    assert found[:3] == paths(circuit, target=mlp(0), by="product", k=3)


def test_rounding_does_not_change_the_order():
    """Products that are 0 or infinite as floats are still compared."""
    tiny = {"input->a0.h0<q>": 1e-300, "input->a0.h1<q>": 2e-300, "a0.h0->m0": 1e-300, "a0.h1->m0": 1e-300}
    found = paths(made(tiny | {"m0->logits": 1.0}), by="product", k=1)[0]
    assert (found.edges[0].source, found.edges[0].target, found.value) == (INPUT, head(0, 1), 0.0)
    huge = {"input->m0": 1e300, "m0->logits": -1e300}
    assert paths(made(huge), by="product")[0].value == math.inf


def test_paths_of_product_0_are_ranked_by_their_other_factors():
    edges = {"input->logits": 0, "input->m0": 3, "m0->logits": 0, "input->m1": 0, "m1->logits": 0, "m0->m1": 100}
    assert shown(paths(made(edges), by="product")) == [
        "input -> m0 -> m1 -> logits  0",
        "input -> m0 -> logits  0",
        "input -> logits  0",
        "input -> m1 -> logits  0",
    ]


def test_a_circuit_without_scores_is_ranked_by_length():
    circuit = Circuit(SHAPE, ComponentGraph(SHAPE).edges)
    for by in ("bottleneck", "product"):
        found = paths(circuit, by=by, k=2000)
        lengths = [len(path.edges) for path in found]
        assert lengths == sorted(lengths)
        assert {path.value for path in found} == {1.0}
        assert str(found[0]) == "input -> logits  1"


def test_how_many_paths_a_full_model_has():
    """By counting: a node is reached from each node before it, through each of its ports."""
    shape = Architecture(2, 2)
    counts: dict[Node, int] = {INPUT: 1}
    for edge in ComponentGraph(shape).edges:
        counts[edge.target] = counts.get(edge.target, 0) + counts[edge.source]
    assert len(paths(Circuit(shape, ComponentGraph(shape).edges), k=10**6)) == counts[LOGITS]


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", True, None])
def test_a_wrong_number_of_paths_is_refused(k):
    with pytest.raises(BadOption, match="whole number of paths from 1"):
        paths(made({}), k=k)


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(BadOption, match="by bottleneck or product; got 'sum'"):
        paths(made({}), by="sum")
    with pytest.raises(BadOption, match="expected a Node"):
        paths(made({}), source="m0")
    with pytest.raises(UnknownNode, match="no node m7"):
        paths(made({}), target=mlp(7))
    edges = [Edge.parse(name) for name in ("input->m0", "m0->logits")]
    with pytest.raises(BadCircuit, match=r"1 of the circuit's 2 edges have no score, such as m0->logits"):
        paths(Circuit(SHAPE, edges, {edges[0]: 1.0}))


def test_a_path_cannot_be_changed():
    path = paths(made({"input->logits": -1}))[0]
    assert path == Path((Edge.parse("input->logits"),), 1.0)
    with pytest.raises(AttributeError):
        path.value = 2.0
    assert paths(made({})) == ()

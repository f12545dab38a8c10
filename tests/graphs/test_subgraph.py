from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.circuit import Circuit
from graphs.components import Architecture
from graphs.errors import BadOption, UnknownNode
from graphs.nodes import INPUT, LOGITS, Edge, head, kv, mlp
from graphs.paths import paths
from graphs.subgraph import around, between, only
from tests.graphs.strategies import circuits
from tests.graphs.test_paths import scored

SHAPE = Architecture(2, 2)
GROUPED = Architecture(2, 4, 2)
PROVENANCE = {"method": "acdc", "tau": 0.02}


def made(*names, shape=SHAPE):
    edges = [Edge.parse(name) for name in names]
    return Circuit(shape, edges, {edge: -number for number, edge in enumerate(edges)}, PROVENANCE)


def names(circuit):
    return [str(edge) for edge in circuit.edges]


CHAIN = made("input->m0", "m0->a1.h0<q>", "a1.h0->m1", "m1->logits", "m0->logits", "input->a1.h1<v>")


def test_around_by_hand():
    assert names(around(CHAIN, head(1, 0))) == ["m0->a1.h0<q>", "a1.h0->m1"]
    assert names(around(CHAIN, head(1, 0), hops=2)) == ["input->m0", "m0->a1.h0<q>", "a1.h0->m1", "m1->logits"]
    assert names(around(CHAIN, INPUT)) == ["input->m0", "input->a1.h1<v>"]
    assert names(around(CHAIN, head(0, 1))) == []
    assert around(CHAIN, mlp(0), hops=10**9).n_edges == 5


def test_around_a_head_takes_what_its_group_reads():
    circuit = made("input->a0.kv0<k>", "input->a0.kv1<v>", "a0.h1->m0", "a0.h2->m0", shape=GROUPED)
    assert names(around(circuit, head(0, 1))) == ["input->a0.kv0<k>", "a0.h1->m0"]
    assert names(around(circuit, kv(0, 0))) == ["input->a0.kv0<k>", "a0.h1->m0"]


def test_around_follows_positions():
    circuit = made("input->m0@1", "m0->m1@2", "m0->logits@1")
    assert names(around(circuit, INPUT, hops=2)) == ["input->m0@1", "m0->logits@1"]
    assert names(around(circuit, mlp(0))) == names(circuit)


@settings(max_examples=150)
@given(st.data())
def test_around_takes_the_edges_of_short_paths(data):
    """Oracle: an edge is downstream iff a path of at most so many edges starts at the node and ends with it."""
    circuit = data.draw(scored(values=st.just(1.0), positions=True))
    node, hops = data.draw(st.sampled_from(circuit.nodes)), data.draw(st.integers(1, 3))
    expected = set()
    for other in circuit.nodes:
        down, up = paths(circuit, k=5000, source=node, target=other), paths(circuit, k=5000, source=other, target=node)
        expected |= {path.edges[-1] for path in down if len(path.edges) <= hops}
        expected |= {path.edges[0] for path in up if len(path.edges) <= hops}
    assert set(around(circuit, node, hops=hops).edges) == expected


@settings(max_examples=150)
@given(st.data())
def test_between_takes_the_edges_of_all_paths(data):
    circuit = data.draw(scored(values=st.just(1.0), positions=True))
    a, b = data.draw(st.sampled_from(circuit.nodes)), data.draw(st.sampled_from(circuit.nodes))
    found = {edge for path in paths(circuit, k=10_000, source=a, target=b) for edge in path.edges}
    assert set(between(circuit, a, b).edges) == found


@given(circuits())
def test_between_the_ends_is_pruning(circuit):
    pruned, part = circuit.prune(), between(circuit, INPUT, LOGITS)
    assert (part.edges, part.scores) == (pruned.edges, pruned.scores)


@given(circuits(), st.data())
def test_only_is_the_induced_subgraph(circuit, data):
    """Oracle: networkx's, where heads that share keys and values are seen to."""
    chosen = data.draw(st.lists(st.sampled_from(circuit.nodes), unique=True)) if circuit.nodes else []
    owners = {circuit.graph.key_value_node(node) for node in chosen if node.kind == "head"}
    induced = circuit.to_networkx().subgraph(str(node) for node in {*chosen, *owners})
    expected = {(s, t, key) for s, t, key, structural in induced.edges(keys=True, data="structural") if not structural}
    part = only(circuit, chosen)
    assert {(s, t, key) for s, t, key in part.to_networkx().edges(keys=True) if key != "structural"} == expected
    assert part.scores == {edge: score for edge, score in circuit.scores.items() if edge in set(part.edges)}


def test_only_by_hand():
    assert names(only(CHAIN, [mlp(0), LOGITS, head(0, 0)])) == ["m0->logits"]
    circuit = made("input->a0.kv0<k>", "input->a0.h1<q>", "a0.h1->m0", shape=GROUPED)
    assert names(only(circuit, [INPUT, head(0, 1)])) == ["input->a0.h1<q>", "input->a0.kv0<k>"]
    assert names(only(circuit, [INPUT, kv(0, 0)])) == ["input->a0.kv0<k>"]


def test_scores_stay_and_the_provenance_says_what_was_cut():
    part = between(around(CHAIN, head(1, 0), hops=2), mlp(0), LOGITS)
    assert part.provenance == {
        **PROVENANCE,
        "subgraph": [
            {"around": "a1.h0", "hops": 2, "edges_before": 6},
            {"between": ["m0", "logits"], "edges_before": 4},
        ],
    }
    assert part.scores == {edge: CHAIN.scores[edge] for edge in part.edges}
    foreign = Circuit(SHAPE, CHAIN.edges, None, {"subgraph": "theirs"})
    assert only(foreign, []).provenance["subgraph"] == ["theirs", {"only": [], "edges_before": 6}]
    assert Circuit.from_json(part.to_json()) == part


@pytest.mark.parametrize("hops", [0, -1, 1.5, "1", True])
def test_wrong_hops_are_refused(hops):
    with pytest.raises(BadOption, match="whole number of hops from 1"):
        around(CHAIN, INPUT, hops=hops)


def test_what_is_no_node_is_refused():
    for cut in (lambda node: around(CHAIN, node), lambda node: between(CHAIN, INPUT, node)):
        with pytest.raises(UnknownNode, match="no node m5"):
            cut(mlp(5))
        with pytest.raises(BadOption, match="expected a Node; got 'm0'"):
            cut("m0")
    with pytest.raises(BadOption, match="got one, m0"):
        only(CHAIN, mlp(0))

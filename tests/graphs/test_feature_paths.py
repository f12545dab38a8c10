"""Pruning, paths, cuts and coarser views of circuits over features, against networkx."""

from __future__ import annotations

import math

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphs import (
    INPUT,
    LOGITS,
    Architecture,
    Circuit,
    Edge,
    Node,
    around,
    between,
    collapse,
    compare,
    consensus,
    only,
    paths,
)
from tests.graphs.strategies import feature_circuits

SHAPE = Architecture(2, 2)
UNMIXED = feature_circuits(mixed=False, provenance={})
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def plain(circuit: Circuit) -> nx.DiGraph:
    """Oracle: the circuit as a graph with one edge for each of its edges, by names."""
    g = nx.DiGraph()
    g.add_nodes_from(map(str, circuit.nodes))
    g.add_edges_from((str(edge.source), str(edge.target)) for edge in circuit.edges)
    return g


def names(circuit: Circuit) -> set[tuple[str, str]]:
    return {(str(edge.source), str(edge.target)) for edge in circuit.edges}


@QUICK
@given(UNMIXED)
def test_pruning_keeps_what_leads_to_the_logits(circuit: Circuit) -> None:
    g = plain(circuit)
    useful = nx.ancestors(g, "logits") | {"logits"} if "logits" in g else set()
    pruned = circuit.prune()
    assert names(pruned) == {(source, target) for source, target in g.edges if target in useful}
    ends = {end for edge in pruned.edges for end in (edge.source, edge.target)}
    assert pruned.node_scores == {node: score for node, score in circuit.node_scores.items() if node in ends}
    assert pruned.prune() == pruned
    assert between(circuit, INPUT, LOGITS).edges == pruned.edges


@QUICK
@given(feature_circuits(mixed=True))
def test_components_and_features_of_one_circuit_are_pruned_each_by_themselves(circuit: Circuit) -> None:
    kinds = [[edge for edge in circuit.edges if edge.of_features == which] for which in (False, True)]
    apart = [Circuit(circuit.architecture, edges).prune().edges for edges in kinds]
    assert circuit.prune().edges == (*apart[0], *apart[1])


@QUICK
@given(UNMIXED, st.data())
def test_paths_are_all_simple_paths_of_networkx(circuit: Circuit, data: st.DataObject) -> None:
    circuit = Circuit(circuit.architecture, circuit.edges)
    g = plain(circuit)
    ends = [node for node in circuit.nodes if node != LOGITS]
    source = data.draw(st.sampled_from([None, *ends]))
    starts = [str(source)] if source else [node for node in g if not g.in_degree(node)]
    expected = {tuple(path) for node in starts if "logits" in g for path in nx.all_simple_paths(g, node, "logits")}
    found = paths(circuit, k=10_000, source=source)
    assert {tuple(map(str, path.nodes)) for path in found} == {path for path in expected if len(path) > 1}
    assert len(found) == len({path.edges for path in found})
    lengths = [len(path.edges) for path in found]
    assert lengths == sorted(lengths)  # without scores the shortest come first


def test_the_strongest_path_over_features() -> None:
    scores = {"r0.f1@1->a1.f2@4": -3.0, "a1.f2@4->logits": 2.0, "m1.f3@4->logits": -0.5, "r0.f1@1->m1.f3@4": 9.0}
    found = {Edge.parse(name): score for name, score in scores.items()}
    best = paths(Circuit(SHAPE, found, found), k=1)
    assert str(best[0]) == "r0.f1@1 -> a1.f2@4 -> logits  2"


@QUICK
@given(UNMIXED, st.data())
def test_what_is_near_a_feature(circuit: Circuit, data: st.DataObject) -> None:
    if not circuit.features:
        return
    g, node = plain(circuit), data.draw(st.sampled_from(circuit.features))
    hops = data.draw(st.integers(1, 3))
    here = around(circuit, node, hops=hops)
    down = nx.single_source_shortest_path_length(g, str(node), cutoff=hops - 1)
    expected = set()
    for graph, turned in ((g, False), (g.reverse(), True)):
        reach, found = {str(node)}, set()
        for _ in range(hops):
            found |= {(a, b) for a in reach for b in graph[a]}
            reach = {b for a in reach for b in graph[a]}
        expected |= {(b, a) for a, b in found} if turned else found
    assert names(here) == expected
    assert (
        all(str(edge.source) in down for edge in here.edges if nx.has_path(g, str(node), str(edge.source))) or hops > 1
    )
    assert set(here.node_scores) <= set(circuit.node_scores)


@QUICK
@given(UNMIXED, st.data())
def test_what_is_between_two_features(circuit: Circuit, data: st.DataObject) -> None:
    if not circuit.features:
        return
    a, b = data.draw(st.sampled_from(circuit.features)), data.draw(st.sampled_from(circuit.nodes))
    g = plain(circuit)
    downstream, upstream = nx.descendants(g, str(a)) | {str(a)}, nx.ancestors(g, str(b)) | {str(b)}
    expected = {(s, t) for s, t in g.edges if s in downstream and t in upstream}
    assert names(between(circuit, a, b)) == expected


@QUICK
@given(feature_circuits(), st.data())
def test_what_is_among_some_nodes(circuit: Circuit, data: st.DataObject) -> None:
    wanted = [node for node in circuit.nodes if node.kind != "kv" and data.draw(st.booleans())]
    part = only(circuit, wanted)
    assert names(part) >= {ends for ends in names(circuit) if set(ends) <= set(map(str, wanted))}
    assert part.node_scores == {node: score for node, score in circuit.node_scores.items() if node in wanted}


# ------------------------------------------------------------------------------------------------- coarser views


@QUICK
@given(UNMIXED)
def test_a_collapsed_view_sums_over_positions(circuit: Circuit) -> None:
    circuit = Circuit(
        circuit.architecture,
        circuit.edges,
        {edge: number / 8 - 1 for number, edge in enumerate(circuit.edges)},
        None,
        {node: number / 8 - 1 for number, node in enumerate(circuit.nodes)},
    )
    small = collapse(circuit)
    assert not any("@" in name for name in small)
    assert sum(data["edges"] for *_, data in small.edges(data=True)) == circuit.n_edges
    for name, data in small.nodes(data=True):
        members = [node for node in circuit.nodes if str(node.everywhere()) == name]
        assert data["members"] == [str(node) for node in members]
        assert data["score"] == math.fsum(circuit.node_scores[node] for node in members)
    for source, target, data in small.edges(data=True):
        same = [
            e for e in circuit.edges if (str(e.source.everywhere()), str(e.target.everywhere())) == (source, target)
        ]
        assert data["score"] == math.fsum(circuit.scores[edge] for edge in same)
    layers = collapse(circuit, by="layer")
    assert set(layers) <= {"input", "logits", *(f"layer {n}" for n in range(circuit.architecture.n_layers))}
    assert sum(data["edges"] for *_, data in layers.edges(data=True)) == circuit.n_edges


def test_groups_may_hold_features() -> None:
    edges = [Edge.parse(name) for name in ("r0.f1@1->m1.f2@1", "r0.f3@1->m1.f2@1", "m1.f2@1->logits")]
    circuit = Circuit(SHAPE, edges, node_scores={edges[0].source: -1.0, edges[1].source: 3.0})
    groups = {"plural": [edges[0].source, edges[1].source]}
    small = collapse(circuit, by=groups, reduce="largest")
    assert small.nodes["plural"] == {"members": ["r0.f1@1", "r0.f3@1"], "layer": 0, "score": 3.0}
    assert small.edges["plural", "m1.f2@1"]["edges"] == 2


@QUICK
@given(feature_circuits(), st.data())
def test_circuits_are_compared_by_edges_and_nodes(circuit: Circuit, data: st.DataObject) -> None:
    part = only(circuit, [node for node in circuit.nodes if node.kind != "kv" and data.draw(st.booleans())])
    found = compare(circuit, part)
    assert set(found.both) == set(part.edges)
    assert found.only_b == found.nodes_only_b == ()
    assert {row.node: row.score_b for row in found.node_rows() if row.score_b is not None} == part.node_scores
    assert {row.node: row.score_a for row in found.node_rows() if row.score_a is not None} == circuit.node_scores
    assert {row.node for row in found.node_rows() if row.in_b} == set(part.nodes)


@pytest.mark.parametrize(("share", "kept"), [(1.0, {"m0.f1": -2.0}), (0.5, {"m0.f1": -2.0, "a0.h1": 0.5})])
def test_a_consensus_has_the_mean_scores_of_nodes(share: float, kept: dict[str, float]) -> None:
    edge, head = Edge.parse("m0.f1->logits"), Node.parse("a0.h1")
    one = Circuit(SHAPE, [edge], node_scores={edge.source: -1.0, head: 0.5})
    other = Circuit(SHAPE, [edge], node_scores={edge.source: -3.0})
    found = consensus([one, other], at_least=share).circuit
    assert {str(node): score for node, score in found.node_scores.items()} == kept
    assert found.edges == (edge,)

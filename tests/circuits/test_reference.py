"""The circuits of the literature: counts that their sources give, what they say of ports and groups, comparisons."""

from __future__ import annotations

import json

import pytest
import torch

from circuits import reference
from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.nodes import Edge, Port
from patching.errors import InvalidOption
from patching.scores import Scores


def ports_in_use(circuit) -> set[Port]:
    return {edge.reads for edge in circuit.edges if edge.target.kind == "head"}


@pytest.mark.parametrize(
    ("name", "published", "heads", "edges", "possible"),
    [("ioi", 1041, 26, 963, 32_491), ("greater_than", 262, 9, 235, 32_491), ("docstring", 37, 6, 24, 1_377 - 96)],
)
def test_counts(name: str, published: int, heads: int, edges: int, possible: int) -> None:
    """The papers' code also counts an edge from each port that is read to its head."""
    found = reference.load(name)
    assert (found.circuit.n_edges, len(found.heads), found.circuit.n_possible) == (edges, heads, possible)
    assert found.circuit.n_edges + len(ports_in_use(found.circuit)) == published == found.published_edges


def test_ioi_without_mlps() -> None:
    """183 edges have no MLP at either end."""
    edges = reference.load("ioi").circuit.edges
    assert sum("mlp" not in (edge.source.kind, edge.target.kind) for edge in edges) == 183


@pytest.mark.parametrize("name", sorted(reference.REFERENCES))
def test_every_node_is_in_a_group_or_everywhere(name: str) -> None:
    found = reference.load(name)
    grouped = {node for nodes in found.groups.values() for node in nodes}
    assert {node for node in found.circuit.nodes if node.kind == "head"} == set(found.heads) <= grouped
    assert set(found.positions) <= set(found.groups)
    assert len(found.heads) == len(set(found.heads))


@pytest.mark.parametrize("name", sorted(reference.REFERENCES))
def test_no_edge_is_a_dead_end_unless_it_starts_at_a_head_that_reads_nothing(name: str) -> None:
    circuit = reference.load(name).circuit
    assert circuit.prune().edges == circuit.edges


def test_s_inhibition_reaches_queries_alone() -> None:
    found = reference.load("ioi")
    movers = {node for name, nodes in found.groups.items() if name.endswith("name mover") for node in nodes}
    letters = {
        edge.port
        for edge in found.circuit.edges
        if edge.source in found.groups["S-inhibition"] and edge.target in movers
    }
    assert letters == {"q"}


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(InvalidOption, match=r"Did you mean greater_than\?"):
        reference.load("greaterthan")


def test_every_name_is_offered_and_loads() -> None:
    with pytest.raises(InvalidOption, match=r"ioi, .*reverse_trained.*Did you mean reverse_trained"):
        reference.load("reverse_traind")
    assert [reference.load(name).name for name in reference.names()] == list(reference.names())


# --- comparison -------------------------------------------------------------------------------------------------------

SHAPE = Architecture(1, 1)
TRUE = Circuit(SHAPE, map(Edge.parse, ("input->a0.h0<v>", "a0.h0->logits")))
FOUND = Circuit(SHAPE, map(Edge.parse, ("a0.h0->logits@3", "m0->logits@3")))


def test_a_comparison_by_hand() -> None:
    """One of two edges and one more of eight; nodes a0.h0 and m0 against input and a0.h0."""
    found = reference.compare(FOUND, TRUE)
    for overlap in (found.edges, found.nodes):
        assert (overlap.precision, overlap.recall, overlap.jaccard) == (0.5, 0.5, 1 / 3)
    assert found.edge_roc is found.node_roc is None
    assert found.reference == "a circuit"


def test_a_comparison_with_scores_by_hand() -> None:
    """The first true edge leads; the second ties with m0->logits, through which m0 and the input enter together.

    Edges, 2 against 6: (0, 1/2), (1/6, 1). Straight 1/6 · 3/4 + 5/6, stairs 1/6 · 1/2 + 5/6. Nodes, 2 against 1:
    (0, 1/2), (1, 1).
    """
    effects = {"a0.h0->logits": -4.0, "m0->logits": 2.0, "input->a0.h0<v>": -2.0}
    values = [effects.get(str(edge), 0.0) for edge in ComponentGraph(SHAPE).edges]
    found = reference.compare(FOUND, TRUE, scores=Scores(SHAPE, "edge", torch.tensor(values)))
    assert found.edge_roc is not None and found.node_roc is not None  # noqa: PT018
    assert (found.edge_roc.auc, found.edge_roc.pessimistic_auc) == pytest.approx((23 / 24, 11 / 12))
    assert (found.node_roc.auc, found.node_roc.pessimistic_auc) == pytest.approx((0.75, 0.5))
    assert "Jaccard: edges 0.333, nodes 0.333\nROC of edges: AUC 0.958, pessimistic 0.917" in str(found)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (record["edges"]["jaccard"], record["node_roc"]["pessimistic_auc"]) == pytest.approx((1 / 3, 0.5))
    signed = reference.compare(FOUND, TRUE, scores=Scores(SHAPE, "edge", torch.tensor(values)), signed=True)
    assert signed.edge_roc is not None
    assert signed.edge_roc.auc == 1.0


def test_a_reference_says_nothing_of_positions() -> None:
    """The paper's 963 edges between 39 nodes that write: 26 heads, 12 MLPs and the input."""
    known = reference.load("ioi")
    found = reference.compare(Circuit(known.circuit.architecture, [Edge.parse("a9.h9->logits@14")]), known)
    assert (found.edges.found_and_true, found.edges.precision, found.edges.jaccard) == (1, 1.0, 1 / 963)
    assert (found.nodes.found_and_true, found.nodes.recall, found.nodes.jaccard) == (1, 1 / 39, 1 / 39)
    assert found.reference == "ioi"


def test_circuits_at_several_thresholds_and_scores_of_nodes_are_scores_too() -> None:
    sweep = reference.compare(FOUND, TRUE, scores=[FOUND, TRUE])
    assert sweep.edge_roc is not None
    assert sweep.edge_roc.pessimistic_auc == 1.0
    nodes = reference.compare(FOUND, TRUE, scores=Scores(SHAPE, "node", torch.tensor([3.0, 2.0, 1.0])))
    assert nodes.edge_roc is None
    assert nodes.node_roc is not None
    assert nodes.node_roc.auc == 1.0


def test_a_level_on_which_everything_is_true_has_no_curve() -> None:
    every = Circuit(SHAPE, map(Edge.parse, ("input->a0.h0<v>", "a0.h0->m0", "m0->logits")))
    found = reference.compare(FOUND, every, scores=[FOUND])
    assert found.node_roc is None
    assert found.edge_roc is not None


def test_another_shape_and_scores_that_cannot_rank_are_refused() -> None:
    with pytest.raises(InvalidOption, match="own model only"):
        reference.compare(FOUND, reference.load("ioi"))
    with pytest.raises(InvalidOption, match=r"1 of 8 are not numbers"):
        reference.compare(FOUND, TRUE, scores=Scores(SHAPE, "edge", torch.tensor([float("nan"), *[0.0] * 7])))

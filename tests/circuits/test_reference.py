"""The circuits of the literature: counts that their sources give, and what they say of ports and groups."""

from __future__ import annotations

import pytest

from circuits import reference
from graphs.nodes import Port
from patching.errors import InvalidOption


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

"""How far two circuits agree: which edges and nodes they share."""

from __future__ import annotations

from dataclasses import dataclass

from graphs.circuit import Circuit
from graphs.errors import BadCircuit
from graphs.nodes import Edge, Node


@dataclass(frozen=True)
class Comparison:
    """The edges and nodes of two circuits, sorted into three groups each.

    Attributes:
        only_a: Edges of the first circuit alone, in the order of its `ComponentGraph`, as in all groups.
        only_b: Edges of the second alone.
        both: Edges of both.
        nodes_only_a: Nodes of the first alone, in topological order.
        nodes_only_b: Nodes of the second alone.
        nodes_both: Nodes of both.
    """

    only_a: tuple[Edge, ...]
    only_b: tuple[Edge, ...]
    both: tuple[Edge, ...]
    nodes_only_a: tuple[Node, ...]
    nodes_only_b: tuple[Node, ...]
    nodes_both: tuple[Node, ...]

    @property
    def edge_jaccard(self) -> float:
        """Shared edges over all edges of either circuit, from 0 to 1; 1 for two empty circuits."""
        return _jaccard(len(self.both), len(self.only_a), len(self.only_b))

    @property
    def node_jaccard(self) -> float:
        """Shared nodes over all nodes of either circuit, from 0 to 1; 1 for two empty circuits."""
        return _jaccard(len(self.nodes_both), len(self.nodes_only_a), len(self.nodes_only_b))

    def __str__(self) -> str:
        rows = [
            ("", "both", "only a", "only b", "jaccard"),
            ("edges", *_counts(self.both, self.only_a, self.only_b), f"{self.edge_jaccard:.3f}"),
            (
                "nodes",
                *_counts(self.nodes_both, self.nodes_only_a, self.nodes_only_b),
                f"{self.node_jaccard:.3f}",
            ),
        ]
        lines = ["".join([f"{row[0]:<5}", *(f"{cell:>9}" for cell in row[1:])]) for row in rows]
        for name, group in (("only a", self.only_a), ("only b", self.only_b)):
            if group:
                more = f", and {len(group) - 8:,} more" if len(group) > 8 else ""
                lines.append(f"{name}: {', '.join(str(edge) for edge in group[:8])}{more}")
        return "\n".join(lines)


def compare(a: Circuit, b: Circuit) -> Comparison:
    """Sort the edges and nodes of two circuits of one architecture into shared and not shared.

    Scores and provenance play no part. An edge at one position and the same edge at every position are two edges.

    Args:
        a: The first circuit.
        b: The second.

    Raises:
        BadCircuit: If the two belong to models of different shape.

    Example:
        >>> print(compare(circuit, circuit.prune()))  # what pruning took away stands under "only a"
    """
    if a.architecture != b.architecture:
        raise BadCircuit(f"circuits can be compared if their models have one shape; got {a.graph} and {b.graph}")
    edges_a, edges_b, nodes_a, nodes_b = set(a.edges), set(b.edges), set(a.nodes), set(b.nodes)
    return Comparison(
        only_a=tuple(edge for edge in a.edges if edge not in edges_b),
        only_b=tuple(edge for edge in b.edges if edge not in edges_a),
        both=tuple(edge for edge in a.edges if edge in edges_b),
        nodes_only_a=tuple(node for node in a.nodes if node not in nodes_b),
        nodes_only_b=tuple(node for node in b.nodes if node not in nodes_a),
        nodes_both=tuple(node for node in a.nodes if node in nodes_b),
    )


def _jaccard(both: int, only_a: int, only_b: int) -> float:
    every = both + only_a + only_b
    return both / every if every else 1.0


def _counts(*groups: tuple[object, ...]) -> list[str]:
    return [f"{len(group):,}" for group in groups]

"""How far two circuits agree: which edges and nodes they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from graphs.circuit import Circuit
from graphs.errors import BadCircuit
from graphs.nodes import Edge, Node


class NodeRow(NamedTuple):
    """One node in two circuits.

    Attributes:
        node: The node.
        in_a: Whether the first circuit has it.
        in_b: Whether the second has it.
        score_a: Its own signed effect in the first; None if it has none there.
        score_b: The same of the second.
    """

    node: Node
    in_a: bool
    in_b: bool
    score_a: float | None
    score_b: float | None


class Row(NamedTuple):
    """One edge in two circuits.

    Attributes:
        edge: The edge.
        in_a: Whether the first circuit has it.
        in_b: Whether the second has it.
        score_a: Its signed effect in the first; None if the first lacks it or has no score for it.
        score_b: The same of the second.
    """

    edge: Edge
    in_a: bool
    in_b: bool
    score_a: float | None
    score_b: float | None

    @property
    def difference(self) -> float | None:
        """The second score less the first; None unless there are both. It means little in different units."""
        return None if self.score_a is None or self.score_b is None else self.score_b - self.score_a


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
        scores_a: The scores of the first.
        scores_b: The scores of the second.
        node_scores_a: Those of the first's nodes.
        node_scores_b: Those of the second's.
    """

    only_a: tuple[Edge, ...]
    only_b: tuple[Edge, ...]
    both: tuple[Edge, ...]
    nodes_only_a: tuple[Node, ...]
    nodes_only_b: tuple[Node, ...]
    nodes_both: tuple[Node, ...]
    scores_a: Mapping[Edge, float] = field(default_factory=dict, hash=False, repr=False)
    scores_b: Mapping[Edge, float] = field(default_factory=dict, hash=False, repr=False)
    node_scores_a: Mapping[Node, float] = field(default_factory=dict, hash=False, repr=False)
    node_scores_b: Mapping[Node, float] = field(default_factory=dict, hash=False, repr=False)

    @property
    def edge_jaccard(self) -> float:
        """Shared edges over all edges of either circuit, from 0 to 1; 1 for two empty circuits."""
        return _jaccard(len(self.both), len(self.only_a), len(self.only_b))

    @property
    def node_jaccard(self) -> float:
        """Shared nodes over all nodes of either circuit, from 0 to 1; 1 for two empty circuits."""
        return _jaccard(len(self.nodes_both), len(self.nodes_only_a), len(self.nodes_only_b))

    def to_rows(self) -> list[Row]:
        """One row per edge of either circuit: those of both, of the first alone, of the second alone.

        `pandas.DataFrame(comparison.to_rows())` is a table of them.

        Example:
            >>> edges = [Edge.parse("input->m0"), Edge.parse("m0->logits")]
            >>> a = Circuit(Architecture(1, 1), edges, {edges[1]: -1.5})
            >>> for row in compare(a, Circuit(Architecture(1, 1), edges[1:], {edges[1]: -2.0})).to_rows():
            ...     print(row.edge, row.in_a, row.in_b, row.score_a, row.score_b, row.difference)
            m0->logits True True -1.5 -2.0 -0.5
            input->m0 True False None None None
        """
        groups = ((self.both, True, True), (self.only_a, True, False), (self.only_b, False, True))
        return [
            Row(edge, in_a, in_b, self.scores_a.get(edge), self.scores_b.get(edge))
            for edges, in_a, in_b in groups
            for edge in edges
        ]

    def node_rows(self) -> list[NodeRow]:
        """One row per node of either circuit: those of both, of the first alone, of the second alone.

        Example:
            >>> shape, node = Architecture(1, 1), Node.parse("m0.f7@3")
            >>> a, b = (Circuit(shape, [], node_scores={node: score}) for score in (-1.0, -2.0))
            >>> for row in compare(a, b).node_rows():
            ...     print(row.node, row.in_a, row.in_b, row.score_a, row.score_b)
            m0.f7@3 True True -1.0 -2.0
        """
        groups = ((self.nodes_both, True, True), (self.nodes_only_a, True, False), (self.nodes_only_b, False, True))
        return [
            NodeRow(node, in_a, in_b, self.node_scores_a.get(node), self.node_scores_b.get(node))
            for nodes, in_a, in_b in groups
            for node in nodes
        ]

    def table(self, *, most: int = 20) -> str:
        """The edges of both circuits with their scores, those first that differ most, then the others in order.

        Args:
            most: How many rows at most; the last line says how many more there are.

        Example:
            >>> edges = [Edge.parse("input->m0"), Edge.parse("m0->logits")]
            >>> a = Circuit(Architecture(1, 1), edges, {edges[1]: -1.5})
            >>> print(compare(a, Circuit(Architecture(1, 1), edges[1:], {edges[1]: -2.0})).table())
            edge                a          b      b - a
            m0->logits       -1.5         -2       -0.5
            input->m0        kept    no edge
        """
        rows = sorted(self.to_rows(), key=lambda row: -abs(row.difference or 0.0))
        width = max((len(str(row.edge)) for row in rows[:most]), default=4)
        lines = [f"{'edge':<{width}}{'a':>11}{'b':>11}{'b - a':>11}"]
        for row in rows[:most]:
            cells = [_cell(row.in_a, row.score_a), _cell(row.in_b, row.score_b)]
            difference = "" if row.difference is None else f"{row.difference:+.3g}"
            lines.append(f"{row.edge!s:<{width}}{cells[0]:>11}{cells[1]:>11}{difference:>11}".rstrip())
        more = len(rows) - most
        return "\n".join([*lines, f"and {more:,} more"] if more > 0 else lines)

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

    Scores are taken along for `to_rows` and `table`, provenance plays no part. An edge at one position and the same
    edge at every position are two edges.

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
        scores_a=dict(a.scores),
        scores_b=dict(b.scores),
        node_scores_a=dict(a.node_scores),
        node_scores_b=dict(b.node_scores),
    )


def _jaccard(both: int, only_a: int, only_b: int) -> float:
    every = both + only_a + only_b
    return both / every if every else 1.0


def _cell(present: bool, score: float | None) -> str:
    if not present:
        return "no edge"
    return "kept" if score is None else f"{score:+.3g}"


def _counts(*groups: tuple[object, ...]) -> list[str]:
    return [f"{len(group):,}" for group in groups]

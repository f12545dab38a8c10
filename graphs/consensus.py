"""What several circuits agree on: circuits of other seeds, prompts, methods, or of other models of one shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphs.circuit import Circuit
from graphs.errors import BadCircuit, BadOption
from graphs.nodes import Edge, Node


@dataclass(frozen=True)
class Consensus:
    """What several circuits agree on.

    Attributes:
        circuit: The edges that are in enough of the circuits. Scores are means over the circuits that hold the edge
            with a score. So are those of nodes, of nodes at such an edge or with a score in enough of the circuits.
        frequencies: The share of the circuits that hold each edge, for edges that are in some: most frequent first,
            then in order.
    """

    circuit: Circuit
    frequencies: Mapping[Edge, float] = field(hash=False)

    def __str__(self) -> str:
        always = sum(share == 1 for share in self.frequencies.values())
        return f"{self.circuit}; {always:,} edges in all circuits, {len(self.frequencies):,} in some"


def consensus(circuits: Iterable[Circuit], *, at_least: float = 0.5) -> Consensus:
    """The edges that are in at least a share of some circuits.

    An edge at one position and the same edge at every position are two edges. Dead ends are not removed: a path may
    lose an edge that not enough circuits agree on. `Circuit.prune` does that.

    Cost: linear in the number of edges of all circuits.

    Args:
        circuits: Of one architecture; at least one.
        at_least: The share, above 0 and at most 1: 1 keeps what all hold, a tiny share what any holds.

    Returns:
        The circuit and the share that each edge has. Its provenance has what the circuits' provenances have in common,
        and under `consensus` how many there were and the share asked for.

    Raises:
        BadCircuit: If there are no circuits, or they belong to models of different shape.
        BadOption: If the share is out of range.

    Example:
        >>> names = ["input->m0", "m0->logits", "input->logits"]
        >>> found = [Circuit(Architecture(1, 1), [Edge.parse(name) for name in names[:n]]) for n in (3, 2, 1)]
        >>> print(*consensus(found).circuit.edges)
        input->m0 m0->logits
        >>> print(consensus(found, at_least=1))
        1 of 8 edges between 2 nodes (1 layers, 1 heads, MLPs); 1 edges in all circuits, 3 in some
    """
    if isinstance(at_least, bool) or not isinstance(at_least, int | float) or not 0 < at_least <= 1:
        raise BadOption(f"expected a share above 0 and at most 1 as at_least; got {at_least!r}")
    every = list(circuits)
    if not every:
        raise BadCircuit("a consensus needs at least one circuit; got none")
    shares = inclusion(every)
    kept = [edge for edge, share in shares.items() if share >= at_least - 1e-12]
    known: dict[Edge, list[float]] = {}
    for circuit in every:
        for edge, score in circuit.scores.items():
            known.setdefault(edge, []).append(score)
    scores = {edge: math.fsum(known[edge]) / len(known[edge]) for edge in kept if edge in known}
    of_nodes = _node_means(every, at_least=at_least, ends={end for edge in kept for end in (edge.source, edge.target)})
    provenance = _in_common(every) | {"consensus": {"circuits": len(every), "at_least": at_least}}
    return Consensus(Circuit(every[0].architecture, kept, scores, provenance, of_nodes), shares)


def _node_means(circuits: Sequence[Circuit], *, at_least: float, ends: set[Node]) -> dict[Node, float]:
    known: dict[Node, list[float]] = {}
    for circuit in circuits:
        for node, score in circuit.node_scores.items():
            known.setdefault(node, []).append(score)
    return {
        node: math.fsum(scores) / len(scores)
        for node, scores in known.items()
        if node in ends or len(scores) / len(circuits) >= at_least - 1e-12
    }


def inclusion(circuits: Sequence[Circuit]) -> dict[Edge, float]:
    """The share of circuits that hold each edge, for edges that are in some: most frequent first, then in order.

    Raises:
        BadCircuit: If the circuits belong to models of different shape.

    Example:
        >>> edges = [Edge.parse("input->m0"), Edge.parse("m0->logits")]
        >>> inclusion([Circuit(Architecture(1, 1), edges), Circuit(Architecture(1, 1), edges[:1])])
        {Edge('input->m0'): 1.0, Edge('m0->logits'): 0.5}
    """
    counts: dict[Edge, int] = {}
    for circuit in circuits:
        if circuit.architecture != circuits[0].architecture:
            raise BadCircuit(
                f"circuits can agree if their models have one shape; got {circuits[0].graph} and {circuit.graph}"
            )
        for edge in circuit.edges:
            counts[edge] = counts.get(edge, 0) + 1
    if not counts:
        return {}
    ordered = Circuit(circuits[0].architecture, counts).edges
    return {edge: counts[edge] / len(circuits) for edge in sorted(ordered, key=lambda edge: -counts[edge])}


def _in_common(circuits: Sequence[Circuit]) -> dict[str, Any]:
    first, *others = (circuit.provenance for circuit in circuits)
    return {
        name: value for name, value in first.items() if all(name in each and each[name] == value for each in others)
    }

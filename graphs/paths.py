"""The best paths through a circuit, from the input to the logits or between any two nodes.

`paths` ranks them by their weakest edge or by the product of their edges' importances, exactly and without listing all
paths, of which there can be more than atoms: a node keeps its k best ways of being reached at each set of positions,
since no worse one can be the beginning of one of the k best paths.
"""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, SupportsIndex

from graphs.circuit import Circuit
from graphs.errors import BadCircuit, BadOption
from graphs.nodes import INPUT, LOGITS, Edge, Node
from graphs.reach import Reach, beginnings

By = Literal["bottleneck", "product"]
Rank = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Path:
    """A way through a circuit.

    Attributes:
        edges: From the first to the last. Where an edge enters a group of keys and values, the next one leaves one of
            the group's query heads.
        value: What the path is ranked by: its smallest importance, or the product of all. Infinite if a product is
            too large for a float.

    Example:
        >>> edges = [Edge.parse(name) for name in ("input->a0.h1<v>", "a0.h1->a1.h0<q>", "a1.h0->logits")]
        >>> print(Path(tuple(edges), 0.83))
        input -> a0.h1<v> -> a1.h0<q> -> logits  0.83
    """

    edges: tuple[Edge, ...]
    value: float

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What the path goes through, its ends included; a group of keys and values, then the head it goes on in."""
        found = [self.edges[0].source]
        for edge in self.edges:
            if edge.source != found[-1]:
                found.append(edge.source)
            found.append(edge.target)
        return tuple(found)

    @property
    def route(self) -> str:
        """The path without its value: `input -> a0.h1<v> -> logits`; a position stands behind the port: `m0@3`."""
        said = [str(self.edges[0].source)]
        for number, edge in enumerate(self.edges):
            if number and edge.source != self.edges[number - 1].target:
                said.append(str(edge.source))
            said.append(str(edge.reads) if edge.position is None else f"{edge.reads}@{edge.position}")
        return " -> ".join(said)

    def __str__(self) -> str:
        return f"{self.route}  {self.value:.3g}"


class _Partial(NamedTuple):
    """The beginning of a path. Less is better: first by rank, then by the places of its edges in the circuit."""

    rank: Rank
    places: tuple[int, ...]


class _Ranking(NamedTuple):
    """An order of paths that a further edge does not change: if one beginning is better, so is all that goes on alike.

    Attributes:
        start: The rank of a path without edges.
        longer: The rank with one more edge, from the rank so far and the edge's importance.
        value: What is said of a rank.
    """

    start: Rank
    longer: Callable[[Rank, float], Rank]
    value: Callable[[Rank], float]


def paths(
    circuit: Circuit, *, k: int = 10, by: By = "bottleneck", source: Node | None = None, target: Node | None = None
) -> tuple[Path, ...]:
    """The k best paths of a circuit, best first.

    A path is a row of edges along which something gets from the source to the target, at some position: it goes
    through a head if it enters at any of its ports, an edge into a group of keys and values leads to each of the
    group's query heads, and positions are followed as `Circuit.prune` follows them. Paths that differ in a port or a
    position are two; a path that is open at several positions is one.

    By `bottleneck`, a path is worth its smallest importance; of paths with the same smallest, the one with the larger
    next smallest comes first, and so on, so a part of a path before the whole. By `product`, it is worth the product
    of its importances, compared exactly; of paths with an importance of 0, the one with fewer such edges and then the
    larger product of the others comes first, and of equal ones the shorter. What is still equal stands in the order
    of the circuit's edges, first edge first.

    If no edge of the circuit has a score, each counts 1, and the shortest paths come first.

    Cost: each node keeps k beginnings for each set of positions at which it can be reached: one without positions, at
    most 2 more per position named. Time is edges times these sets, plus k times nodes times these sets.

    Args:
        circuit: Its scores are signed effects; importance = abs(score).
        k: How many at most.
        by: `bottleneck` or `product`.
        source: Where paths start, at any position; None for the input, and with it every feature or error term that no
            edge of the circuit leads to. From a group, they start in its query heads.
        target: Where they end; None for the logits.

    Returns:
        At most k paths with at least one edge; none if nothing leads from source to target.

    Raises:
        BadOption: If k is not a whole number from 1, or there is no such ranking.
        BadCircuit: If some edges have scores and others have none, which have no common ranking.
        UnknownNode: If the model has no such source or target.

    Example:
        >>> scores = {"input->m0": -3.0, "m0->logits": 0.5, "input->logits": -0.2, "m0->m1": -1.0, "m1->logits": 2.0}
        >>> scores = {Edge.parse(name): score for name, score in scores.items()}
        >>> for path in paths(Circuit(Architecture(2, 2), scores, scores), k=2, by="product"):
        ...     print(path)
        input -> m0 -> m1 -> logits  6
        input -> m0 -> logits  1.5
    """
    most, ranking = _count(k), _ranking(by)
    start, end = INPUT if source is None else source, LOGITS if target is None else target
    for node in (start, end):
        if not isinstance(node, Node):
            raise BadOption(f"expected a Node as source and target; got {node!r} (Node.parse reads a name)")
        circuit.graph.check_node(node)
    importances = _importances(circuit)
    found = _best(circuit, importances, ranking, starts=beginnings(circuit, start), end=end, most=most)
    edges = circuit.edges
    return tuple(Path(tuple(edges[place] for place in each.places), ranking.value(each.rank)) for each in found)


def _best(
    circuit: Circuit, importances: list[float], ranking: _Ranking, *, starts: tuple[Node, ...], end: Node, most: int
) -> list[_Partial]:
    """The best paths, in one pass over the nodes in topological order."""
    reach = Reach(circuit)
    entering: dict[Node, list[int]] = {node: [] for node in circuit.nodes}
    for place, edge in enumerate(circuit.edges):
        for node in reach.feeds[edge.target]:
            entering.setdefault(node, []).append(place)
    best: dict[Node, dict[int, list[_Partial]]] = {
        node: {reach.everywhere: [_Partial(ranking.start, ())]} for node in starts
    }
    for node in circuit.nodes:
        if node in best:
            continue
        streams: dict[int, list[Iterator[_Partial]]] = {}
        for place in entering[node]:
            edge = circuit.edges[place]
            for here, partials in best.get(edge.source, {}).items():
                if there := reach.after(edge, here):
                    longer = _longer(partials, place, importances[place], ranking)
                    streams.setdefault(there, []).append(longer)
        best[node] = {there: list(islice(heapq.merge(*each), most)) for there, each in streams.items()}
    if end in starts:
        return []
    return list(islice(heapq.merge(*best.get(end, {}).values()), most))


def _longer(partials: Iterable[_Partial], place: int, importance: float, ranking: _Ranking) -> Iterator[_Partial]:
    """Beginnings with one more edge, as far as asked for; best first if they come best first."""
    return (_Partial(ranking.longer(rank, importance), (*places, place)) for rank, places in partials)


def _importances(circuit: Circuit) -> list[float]:
    if not circuit.scores:
        return [1.0] * circuit.n_edges
    unscored = [edge for edge in circuit.edges if edge not in circuit.scores]
    if unscored:
        raise BadCircuit(
            f"{len(unscored):,} of the circuit's {circuit.n_edges:,} edges have no score, such as {unscored[0]}, so "
            "paths through them cannot be ranked: score them, leave them out, or make the circuit without any scores "
            "to rank by length"
        )
    return [abs(circuit.scores[edge]) for edge in circuit.edges]


def _with_weakest(rank: Rank, importance: float) -> Rank:
    """Negated importances from the smallest on, with minus infinity behind the last, so that a part comes first."""
    return tuple(sorted((*rank, -importance), reverse=True))


def _with_factor(rank: Rank, importance: float) -> Rank:
    """How many factors are 0, the product of the others, negated, and the length.

    The product is a fraction: floats round, so two beginnings that differ could be equal once they are longer.
    """
    zeros, product, length = rank
    return (zeros, product * Fraction(importance), length + 1) if importance else (zeros + 1, product, length + 1)


def _product(rank: Rank) -> float:
    zeros, negated, _ = rank
    try:
        return 0.0 if zeros else float(-negated)
    except OverflowError:
        return math.inf


_RANKINGS: Final[dict[str, _Ranking]] = {
    "bottleneck": _Ranking((-math.inf,), _with_weakest, lambda rank: abs(rank[0])),
    "product": _Ranking((0, Fraction(-1), 0), _with_factor, _product),
}


def _ranking(by: object) -> _Ranking:
    if not isinstance(by, str) or by not in _RANKINGS:
        raise BadOption(f"expected a ranking of paths by {' or '.join(_RANKINGS)}; got {by!r}")
    return _RANKINGS[by]


def _count(k: SupportsIndex) -> int:
    try:
        count = 0 if isinstance(k, bool) else operator.index(k)
    except TypeError:
        count = 0
    if count < 1:
        raise BadOption(f"expected a whole number of paths from 1 as k; got {k!r}")
    return count

"""How what an edge carries goes on: through which nodes, and at which token positions.

A path goes through a head if it enters at any of its ports; keys and values of a group lead to each of the group's
heads. A head's query and an MLP carry what they read at one position to the same position, keys and values carry it to
that position and all later ones.

An edge between features leads from one to the other and no further: their positions are part of them. What a feature
depends on beside the features that lead to it is not in the circuit, so one that nothing leads to is a beginning.

Positions are bits of an integer: one bit for each position that an edge names and one for each stretch of positions in
between, which need not be told apart. So a set of positions is one number, and following an edge is a few operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from graphs.nodes import INPUT, LOGITS, Edge, Node

if TYPE_CHECKING:
    from graphs.circuit import Circuit


class Reach:
    """Where the edges of a circuit lead.

    Attributes:
        everywhere: All positions.
        feeds: For each node that reads, the nodes that are reached by reaching it: itself, and a group's query heads.

    Args:
        circuit: Whose positions are told apart.
    """

    def __init__(self, circuit: Circuit) -> None:
        self._bits = _position_bits(edge.position for edge in circuit.edges)
        self.everywhere = self._bits[None]
        self.feeds = {node: led_to(circuit, node) for node in circuit.nodes}

    def after(self, edge: Edge, bits: int) -> int:
        """The positions at which something arrives that an edge takes on from these positions of its source."""
        bits &= self._bits[edge.position]
        if edge.port in ("k", "v") and bits:
            return self.everywhere & ~((bits & -bits) - 1)  # the first position and all later ones
        return bits

    def before(self, edge: Edge, bits: int) -> int:
        """The positions of its source from which an edge leads to some of these positions of its target."""
        if edge.port in ("k", "v"):
            bits = (1 << bits.bit_length()) - 1  # the last position and all earlier ones
        return bits & self._bits[edge.position]


def led_to(circuit: Circuit, node: Node) -> tuple[Node, ...]:
    """The nodes that are reached by reaching one: itself, and the query heads if it is a group of keys and values."""
    return (node, *circuit.graph.query_heads(node)) if node.kind == "kv" else (node,)


def beginnings(circuit: Circuit, node: Node) -> tuple[Node, ...]:
    """Where ways from a node begin: there and in the heads of a group; from the input, also in unfed features."""
    if node != INPUT:
        return led_to(circuit, node)
    fed = {edge.target for edge in circuit.edges}
    return (INPUT, *(feature for feature in circuit.features if feature not in fed))


def on_a_path(circuit: Circuit, *, source: Node = INPUT, target: Node = LOGITS) -> tuple[Edge, ...]:
    """The edges of a circuit on a path from one node to another, in their order.

    An edge is alive at the positions where something from the source arrives and useful at those from which something
    leads to the target; it is on a path iff at some position it is both.

    Cost: linear in the number of edges.
    """
    reach = Reach(circuit)
    reached = dict.fromkeys(beginnings(circuit, source), reach.everywhere)
    alive: dict[Edge, int] = {}
    for edge in circuit.edges:  # in topological order of targets, so `reached` is final for every source
        alive[edge] = reach.after(edge, reached.get(edge.source, 0))
        for node in reach.feeds[edge.target]:
            reached[node] = reached.get(node, 0) | alive[edge]
    return _useful(circuit, reach, alive=alive, target=target)


def _useful(circuit: Circuit, reach: Reach, *, alive: dict[Edge, int], target: Node) -> tuple[Edge, ...]:
    wanted = {target: reach.everywhere}
    kept: list[Edge] = []
    for edge in reversed(circuit.edges):
        there = 0
        for node in reach.feeds[edge.target]:
            there |= wanted.get(node, 0)
        wanted[edge.source] = wanted.get(edge.source, 0) | reach.before(edge, there)
        if there & alive[edge]:
            kept.append(edge)
    return tuple(reversed(kept))


def _position_bits(positions: Iterable[int | None]) -> dict[int | None, int]:
    """The bit of each named position, and under None all bits together, in the order of the positions."""
    bits: dict[int | None, int] = {}
    count, last = 0, -1
    for position in sorted({position for position in positions if position is not None}):
        count += position > last + 1  # a stretch of unnamed positions before this one
        bits[position] = 1 << count
        count, last = count + 1, position
    bits[None] = (1 << (count + 1)) - 1  # and the stretch after the last
    return bits

"""Parts of a circuit that are circuits themselves: around a node, between two nodes, or among some nodes.

Scores stay, those of nodes where the node stays: at an edge that stays, or named in the cut. The provenance says under
`subgraph`, as a list of one table per cut, what was cut and from how many edges.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from graphs.circuit import Circuit
from graphs.errors import BadOption
from graphs.nodes import Edge, Node
from graphs.reach import Reach, led_to, on_a_path


def around(circuit: Circuit, node: Node, *, hops: int = 1) -> Circuit:
    """The edges that lead to a node, and those that it leads to, at most so many edges away.

    One hop takes what the node reads and what reads it. Upstream and downstream are followed by themselves, as paths
    go: two nodes that read the same third one are not near each other. Groups of keys and values and positions are
    followed as `Circuit.prune` follows them.

    Cost: edges times hops.

    Args:
        circuit: To cut from.
        node: In the middle. If the circuit has no edge at it, the result is empty.
        hops: How far, from 1.

    Raises:
        BadOption: If hops is not a whole number from 1.
        UnknownNode: If the model has no such node.

    Example:
        >>> edges = ["input->m0", "m0->a1.h0<q>", "a1.h0->m1", "m1->logits", "m0->logits"]
        >>> whole = Circuit(Architecture(2, 2), map(Edge.parse, edges))
        >>> print(*around(whole, head(1, 0)).edges)
        m0->a1.h0<q> a1.h0->m1
    """
    _check(circuit, [node])
    try:
        far = 0 if isinstance(hops, bool) else operator.index(hops)
    except TypeError:
        far = 0
    if far < 1:
        raise BadOption(f"expected a whole number of hops from 1; got {hops!r}")
    kept = _downstream(circuit, node, far) | _upstream(circuit, node, far)
    return _part(circuit, kept, {"around": str(node), "hops": far}, named=[node])


def between(circuit: Circuit, a: Node, b: Node) -> Circuit:
    """The edges on a path from one node to another; `between(circuit, INPUT, LOGITS)` is what `prune` keeps.

    Cost: linear in the number of edges.

    Args:
        circuit: To cut from.
        a: Where paths start, at any position. From a group of keys and values, they start in its query heads; from the
            input, also in features that no edge of the circuit leads to.
        b: Where they end. Nothing leads back, so the order matters.

    Raises:
        UnknownNode: If the model has no such node.

    Example:
        >>> edges = ["input->m0", "m0->a1.h0<q>", "a1.h0->m1", "m1->logits", "m0->logits"]
        >>> whole = Circuit(Architecture(2, 2), map(Edge.parse, edges))
        >>> print(*between(whole, mlp(0), mlp(1)).edges)
        m0->a1.h0<q> a1.h0->m1
    """
    _check(circuit, [a, b])
    kept = set(on_a_path(circuit, source=a, target=b))
    return _part(circuit, kept, {"between": [str(a), str(b)]}, named=[a, b])


def only(circuit: Circuit, nodes: Iterable[Node]) -> Circuit:
    """The edges among some nodes: both ends are of them.

    An edge into a group of keys and values leads to each of its query heads, so it stays if the group or one of those
    heads is of them.

    Cost: linear in the number of edges.

    Args:
        circuit: To cut from.
        nodes: To keep. Some may have no edge in the circuit.

    Raises:
        UnknownNode: If the model has no such node.

    Example:
        >>> edges = ["input->m0", "m0->a1.h0<q>", "a1.h0->m1", "m1->logits", "m0->logits"]
        >>> whole = Circuit(Architecture(2, 2), map(Edge.parse, edges))
        >>> part = only(whole, [mlp(0), mlp(1), head(1, 0)])
        >>> print(*part.edges)
        m0->a1.h0<q> a1.h0->m1
        >>> part.provenance["subgraph"]
        [{'only': ['m0', 'a1.h0', 'm1'], 'edges_before': 5}]
    """
    if isinstance(nodes, Node):
        raise BadOption(f"expected several nodes; got one, {nodes}: write [{nodes}]")
    wanted = set(_check(circuit, nodes))
    kept = {
        edge for edge in circuit.edges if edge.source in wanted and wanted.intersection(led_to(circuit, edge.target))
    }
    here = [node for node in circuit.nodes if node in wanted]
    return _part(circuit, kept, {"only": [str(node) for node in here]}, named=here)


def _downstream(circuit: Circuit, node: Node, hops: int) -> set[Edge]:
    reach = Reach(circuit)
    reached: dict[Node, int] = dict.fromkeys(led_to(circuit, node), reach.everywhere)
    found: set[Edge] = set()
    for _ in range(hops):
        further: dict[Node, int] = {}
        for edge in circuit.edges:
            if there := reach.after(edge, reached.get(edge.source, 0)):
                found.add(edge)
                for end in reach.feeds[edge.target]:
                    further[end] = further.get(end, 0) | there
        if not further:  # the end of every way
            break
        reached = further
    return found


def _upstream(circuit: Circuit, node: Node, hops: int) -> set[Edge]:
    reach = Reach(circuit)
    wanted: dict[Node, int] = {node: reach.everywhere}
    found: set[Edge] = set()
    for _ in range(hops):
        further: dict[Node, int] = {}
        for edge in circuit.edges:
            there = 0
            for end in reach.feeds[edge.target]:
                there |= wanted.get(end, 0)
            if here := reach.before(edge, there):
                found.add(edge)
                further[edge.source] = further.get(edge.source, 0) | here
        if not further:
            break
        wanted = further
    return found


def _check(circuit: Circuit, nodes: Iterable[Node]) -> list[Node]:
    checked = list(nodes)
    for node in checked:
        if not isinstance(node, Node):
            raise BadOption(f"expected a Node; got {node!r} (Node.parse reads a name)")
        circuit.graph.check_node(node)
    return checked


def _part(circuit: Circuit, kept: Collection[Edge], cut: Mapping[str, Any], *, named: Iterable[Node]) -> Circuit:
    earlier = circuit.provenance.get("subgraph", [])
    cuts = [*(earlier if isinstance(earlier, list) else [earlier]), {**cut, "edges_before": circuit.n_edges}]
    scores = {edge: score for edge, score in circuit.scores.items() if edge in kept}
    there = {end for edge in kept for end in (edge.source, edge.target)}.union(named)
    of_nodes = {node: score for node, score in circuit.node_scores.items() if node in there}
    return Circuit(circuit.architecture, kept, scores, {**circuit.provenance, "subgraph": cuts}, of_nodes)

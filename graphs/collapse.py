"""A circuit seen from further away: ports merged into nodes, nodes into layers, or nodes into groups with names.

`collapse` gives a plain `nx.DiGraph` with one edge for all edges from one place to another:

===== ============ ========== =======================================================================================
of    attribute    type       meaning and unit
===== ============ ========== =======================================================================================
graph `by`         str        node, layer or groups
graph `reduce`     str        sum or largest
node  (name)       str        a node's name, "layer 3", or a group's; "input" and "logits" are no layer's
node  `members`    list[str]  the circuit's nodes that it stands for, in topological order
node  `layer`      int        the block of all members; absent if they have none in common
node  `score`      float      the sum of the members' own scores, or that of the largest; absent if none has one
edge  `edges`      int        how many edges of the circuit it stands for
edge  `members`    list[str]  their names, in the circuit's order
edge  `score`      float      the sum of their scores, or the score of the largest importance; absent if none is scored
edge  `importance` float      the sum of their importances, or the largest; absent if none is scored
edge  `structural` bool       True if it stands for no edge of the circuit and only says that heads use the keys and
                              values of a group, so that paths stay whole
===== ============ ========== =======================================================================================

Edges within one place are an edge from it to itself, so nothing is lost: `edges`, and sums of scores and importances,
add up to those of the circuit. `graph.remove_edges_from(list(nx.selfloop_edges(graph)))` takes those out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from graphs.circuit import Circuit
from graphs.errors import BadOption
from graphs.nodes import Edge, Node

if TYPE_CHECKING:
    import networkx as nx

Groups = Mapping[str, Iterable[Node]]
Reduce = Literal["sum", "largest"]

_REDUCTIONS: Final = ("sum", "largest")


def collapse(
    circuit: Circuit, *, by: Literal["node", "layer"] | Groups = "node", reduce: Reduce = "sum"
) -> nx.DiGraph[Any]:
    """A circuit with one node for several of its nodes, and one edge for all edges between two of those.

    Scores are signed effects and may cancel in a sum; importances, abs(score), cannot. An effect of several edges
    together is not the sum of their effects: measure it if it matters.

    Cost: linear in the number of edges.

    Args:
        circuit: To collapse.
        by: `node` (ports and positions merged, those of features too), `layer` (heads, groups of keys and values, MLP
            and features of a block merged, those at the embeddings with the input), or names with the nodes of each;
            nodes of no group stay by themselves. A group may name nodes that the circuit does not have.
        reduce: `sum`, or `largest`: the score of the largest importance, the first of equals.

    Returns:
        A graph with the attributes that the head of this module lists, nodes and edges in topological order of their
        first members. Layers and groups may lead to themselves and back to each other.

    Raises:
        BadOption: If `by` or `reduce` is none of these, a node is in two groups, or a group has the name of another
            node of the result.
        UnknownNode: If the model has no such node.

    Example:
        >>> scores = {"input->a0.h1<q>": -1.0, "input->a0.h1<v>": 3.0, "a0.h1->m0": -0.5, "m0->logits": -2.0}
        >>> scores = {Edge.parse(name): score for name, score in scores.items()}
        >>> small = collapse(Circuit(Architecture(2, 2), scores, scores), by="layer")
        >>> for source, target, data in small.edges(data=True):
        ...     print(source, "->", target, data["score"], data["importance"], data["edges"])
        input -> layer 0 2.0 4.0 2
        layer 0 -> layer 0 -0.5 0.5 1
        layer 0 -> logits -2.0 2.0 1
    """
    import networkx as nx

    if reduce not in _REDUCTIONS:
        raise BadOption(f"expected reduce to be sum or largest; got {reduce!r}")
    place = _places(circuit, by)
    kind = by if isinstance(by, str) else "groups"
    graph: nx.DiGraph[Any] = nx.DiGraph(by=kind, reduce=reduce)
    members: dict[str, list[Node]] = {}
    for node in circuit.nodes:
        members.setdefault(place[node], []).append(node)
    for name, nodes in members.items():
        layers = {node.layer for node in nodes}
        common = {"layer": layers.pop()} if len(layers) == 1 and None not in layers else {}
        own = [circuit.node_scores[node] for node in nodes if node in circuit.node_scores]
        known = {"score": math.fsum(own) if reduce == "sum" else max(own, key=abs)} if own else {}
        graph.add_node(name, members=[str(node) for node in nodes], **common, **known)
    bundles: dict[tuple[str, str], list[Edge]] = {}
    for edge in circuit.edges:
        bundles.setdefault((place[edge.source], place[edge.target]), []).append(edge)
    for group, member in circuit.structural_edges():
        if place[group] != place[member]:
            bundles.setdefault((place[group], place[member]), [])
    for (start, end), edges in bundles.items():
        graph.add_edge(start, end, **_bundle(circuit, edges, reduce))
    return graph


def _bundle(circuit: Circuit, edges: list[Edge], reduce: Reduce) -> dict[str, Any]:
    """The attributes of one edge that stands for these."""
    found: dict[str, Any] = {
        "edges": len(edges),
        "members": [str(edge) for edge in edges],
        "structural": not edges,
    }
    scores = [circuit.scores[edge] for edge in edges if edge in circuit.scores]
    if scores and reduce == "sum":
        found |= {"score": math.fsum(scores), "importance": math.fsum(map(abs, scores))}
    elif scores:
        largest = max(scores, key=abs)
        found |= {"score": largest, "importance": abs(largest)}
    return found


def _places(circuit: Circuit, by: str | Groups) -> dict[Node, str]:
    """The name of the place in the result that each node of the circuit goes to."""
    if isinstance(by, Mapping):
        return _grouped(circuit, by)
    if by == "node":
        return {node: str(node.everywhere()) for node in circuit.nodes}
    if by == "layer":
        return {node: _layer(node) for node in circuit.nodes}
    raise BadOption(f"expected by to be node, layer, or names with nodes such as {{'movers': [...]}}; got {by!r}")


def _layer(node: Node) -> str:
    if node.layer is not None:
        return f"layer {node.layer}"
    return "input" if node.site == "input" else str(node)


def _grouped(circuit: Circuit, groups: Groups) -> dict[Node, str]:
    group_of: dict[Node, str] = {}
    for name, nodes in groups.items():
        if not isinstance(name, str) or not name:
            raise BadOption(f"a group needs a name; got {name!r}")
        if isinstance(nodes, Node | str):
            raise BadOption(f"expected several nodes in the group {name!r}; got {nodes!r}: write [{nodes}]")
        for node in nodes:
            if not isinstance(node, Node):
                raise BadOption(f"expected Nodes in the group {name!r}; got {node!r} (Node.parse reads a name)")
            circuit.graph.check_node(node)
            if group_of.setdefault(node, name) != name:
                raise BadOption(f"{node} is in two groups, {group_of[node]!r} and {name!r}; it can be in one")
    alone = {str(node) for node in circuit.nodes if node not in group_of}
    if taken := sorted(alone & set(groups)):
        raise BadOption(f"the group {taken[0]!r} has the name of a node that is not in it; give it another name")
    return {node: group_of.get(node, str(node)) for node in circuit.nodes}

"""From the parts of a circuit to the attributes of a graph's rows, and back; `graphs.schema` says what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from graphs.components import ComponentGraph
from graphs.errors import BadCircuit
from graphs.nodes import Edge, Letter, Node
from graphs.provenance import shown
from graphs.strict_json import parsed


def node_attributes(node: Node, score: float | None) -> dict[str, Any]:
    """What a graph holds of a node, what is absent left out.

    Example:
        >>> node_attributes(Node.parse("m3.f7@5"), -0.5)
        {'kind': 'mlp_feature', 'layer': 3, 'index': 7, 'position': 5, 'score': -0.5}
    """
    found = {"layer": node.layer, "index": node.index, "position": node.position, "score": score}
    return {"kind": node.kind, **{name: value for name, value in found.items() if value is not None}}


def edge_attributes(edge: Edge, score: float | None) -> dict[str, Any]:
    """What a graph holds of an edge, what is absent left out."""
    known = {"score": score, "position": edge.position}
    said = {"port": edge.port or "", "structural": False}
    return said | {name: value for name, value in known.items() if value is not None}


def edge_key(edge: Edge) -> str:
    """What tells an edge from others between the same two nodes: its port and position, such as "q@7"."""
    return f"{edge.port or ''}{'' if edge.position is None else f'@{edge.position}'}"


def unpacked(value: Any, *, name: str) -> Any:
    """A graph attribute that may be a table or the JSON text of one."""
    if not isinstance(value, str):
        return value
    try:
        return parsed(value)
    except BadCircuit as error:
        raise BadCircuit(f"the graph attribute {name!r} must be a table or its JSON text; {error}") from None


def check_node(graph: ComponentGraph, name: object, attributes: Mapping[str, Any]) -> Node:
    """The node of a name, if the architecture has it and its attributes do not contradict the name."""
    node = Node.parse(cast("str", name))
    graph.check_node(node)
    for attribute in ("kind", "layer", "index", "position"):
        true = getattr(node, attribute)
        if attribute == "position" and node.site is None:
            continue  # other programs note there where a node stands in their drawing
        if attributes.get(attribute, true) != true:
            raise BadCircuit(
                f"node {node}: its attribute {attribute!r} says {str(attributes[attribute])[:40]!a}, its name {true!r}"
            )
    return node


def edge_from(graph: ComponentGraph, start: str, end: str, attributes: Mapping[str, Any]) -> Edge | None:
    """The edge that a row of a networkx graph describes; None for a structural one."""
    source, target = Node.parse(start), Node.parse(end)
    structural, port = attributes.get("structural", False), attributes.get("port", "")
    if not isinstance(structural, bool):
        raise BadCircuit(f"edge {source}->{target}: 'structural' must be True or False; got {shown(structural)}")
    if structural:
        if source.kind != "kv" or target not in graph.query_heads(source):
            raise BadCircuit(f"edge {source}->{target}: only a group and one of its heads are joined structurally")
        return None
    if port not in ("q", "k", "v", "", None):
        raise BadCircuit(f"edge {source}->{target}: 'port' must be q, k, v or empty; got {str(port)[:40]!a}")
    return Edge(source, target, cast("Letter | None", port or None), attributes.get("position"))

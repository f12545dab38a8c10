"""The attributes of a circuit's networkx graph, said once, and the one way from foreign rows to a circuit.

`Circuit.to_networkx` gives a plain `nx.MultiDiGraph`; every format in `graphs.export` that holds a graph holds these
attributes, and every reader builds its circuit with `circuit_of`.

===== ============== ========== =====================================================================================
of    attribute      type       meaning and unit
===== ============== ========== =====================================================================================
graph `schema`       str        "wiretrace-circuit/1": the name and version of all this
graph `architecture` dict       `n_layers`, `n_heads`, `n_kv_heads` (counts), `has_mlp`, `parallel` (bool)
graph `provenance`   dict       how the circuit was made: any JSON; may be missing
node  (name)         str        `input`, `a9.h6`, `a3.kv1`, `m3`, `m3.f7@5`, `m3.err`, `logits`; what `graphs.nodes`
                                spells
node  `kind`         str        input, head, kv, mlp or logits; of dictionaries attn_feature, attn_error, and so with
                                input, mlp and resid; follows from the name
node  `layer`        int        the block, from 0; absent for input, what a dictionary finds there, and logits; follows
                                from the name
node  `index`        int        the head or group within the block, or the feature within its dictionary, from 0; absent
                                for others; follows from the name
node  `position`     int        of features and error terms: the token position, from 0; absent if it is all of them
                                together; follows from the name
node  `score`        float      effect of ablating the node, with the sign and unit of edges' scores; finite; absent if
                                the node has no score of its own
edge  (key)          str        the port and position, such as "q", "", "q@7", or "structural"; readers pass over it
edge  `port`         str        "q", "k" or "v": where a head or group reads; "" where the target reads once
edge  `structural`   bool       True for a group's edge to one of its query heads, which is no edge of the circuit
edge  `score`        float      effect of ablating the edge, metric(ablated) - metric(clean), in the unit of the
                                metric, so negative helps; finite; absent if the edge is unscored
edge  `position`     int        the token position, from 0; absent if the edge holds at every position
===== ============== ========== =====================================================================================

Two nodes may be joined by several edges (ports, positions), so a graph class or format with one edge per pair of
nodes cannot hold a circuit. Formats without nested attributes hold `architecture` and `provenance` as JSON text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from graphs.circuit import Circuit, visible
from graphs.errors import BadCircuit, BadFile, WiretraceError

if TYPE_CHECKING:
    import networkx as nx

Type = Literal["string", "integer", "double", "boolean"]

NODE_TYPES: Final[dict[str, Type]] = {
    "kind": "string",
    "layer": "integer",
    "index": "integer",
    "position": "integer",
    "score": "double",
}
"""The attributes of nodes with their types, as XML formats call them."""

EDGE_TYPES: Final[dict[str, Type]] = {
    "port": "string",
    "structural": "boolean",
    "score": "double",
    "position": "integer",
}
"""The attributes of edges, likewise."""

NESTED: Final = ("architecture", "provenance")
"""The graph attributes that are tables."""

_NUMBERS: Final = {
    "integer": re.compile(r"[0-9]{1,10}"),
    "double": re.compile(r"[-+]?[0-9.]{1,400}([eE][-+]?[0-9]{1,4})?"),
}

Row = tuple[str, dict[str, Any]]
Link = tuple[str, str, dict[str, Any]]


def flat(circuit: Circuit) -> nx.MultiDiGraph[Any]:
    """The circuit's graph with its tables as JSON text, pure ASCII, for formats without nested attributes."""
    graph: nx.MultiDiGraph[Any] = circuit.to_networkx()
    for name in NESTED:
        graph.graph[name] = json.dumps(graph.graph[name], allow_nan=False)
    return graph


def circuit_of(
    attributes: Mapping[str, Any],
    nodes: Iterable[Row] | None,
    edges: Iterable[Link],
    *,
    node_scores: Mapping[str, Any] | None = None,
) -> Circuit:
    """The circuit that the rows of a graph describe; every reader ends here.

    Args:
        attributes: Of the graph.
        nodes: Names and attributes; None for formats that list edges only.
        edges: Source, target and attributes.
        node_scores: Scores of nodes by name, of formats that list edges only.

    Raises:
        BadCircuit: If a node is listed twice, an edge joins a node that is not listed, or `Circuit.from_networkx`
            refuses the graph: attributes that are missing, wrong or contradict a name, edges that come twice.
        BadName, UnknownNode, UnknownEdge: If a name is none, or none of this architecture's. An edge against the
            order of the model, and so every cycle, is such a one.

    Example:
        >>> attributes = {"schema": "wiretrace-circuit/1", "architecture": {"n_layers": 1, "n_heads": 2}}
        >>> print(circuit_of(attributes, None, [("m0", "logits", {"score": -0.5})]))
        1 of 13 edges between 2 nodes (1 layers, 2 heads, MLPs)
    """
    import networkx as nx

    graph: nx.MultiDiGraph[Any] = nx.MultiDiGraph()
    graph.graph.update(attributes)
    for name, found in nodes or ():
        _check_text(name, noun="a node's name")
        if name in graph:
            raise BadCircuit(f"the node {name[:40]!a} is listed twice; every node has a name of its own")
        graph.add_nodes_from([(name, found)])
    for source, target, found in edges:
        for end in (source, target):
            _check_text(end, noun="an edge's end")
            if nodes is not None and end not in graph:
                raise BadCircuit(f"an edge joins {end[:40]!a}, which is not among the nodes")
        graph.add_edges_from([(source, target, found)])
    for name, score in (node_scores or {}).items():
        graph.add_node(name, score=score)
    return Circuit.from_networkx(graph)


def _check_text(name: object, *, noun: str) -> None:
    if not isinstance(name, str):
        raise BadCircuit(f"{noun} must be text such as 'a9.h6'; got {type(name).__name__}")


def typed(texts: Mapping[str, str], types: Mapping[str, Type]) -> dict[str, Any]:
    """Attributes that a format holds as text, as the types that they have; others than those of `types` are left out.

    Raises:
        BadCircuit: If a text is not of its type.

    Example:
        >>> typed({"score": "-0.5", "position": "7", "colour": "red"}, EDGE_TYPES)
        {'score': -0.5, 'position': 7}
    """
    return {name: _value(text, types[name], name=name) for name, text in texts.items() if name in types}


def _value(text: str, kind: Type, *, name: str) -> Any:
    if kind == "string":
        return text
    if kind == "boolean":
        if text not in ("true", "false"):
            raise BadCircuit(f"{name!r} must be true or false; got {text[:40]!a}")
        return text == "true"
    try:
        if not _NUMBERS[kind].fullmatch(text):
            raise ValueError
        return int(text) if kind == "integer" else float(text)
    except ValueError:
        noun = "a whole number from 0" if kind == "integer" else "a finite number"
        raise BadCircuit(f"{name!r} must be {noun}; got {text[:40]!a}") from None


def table(value: Any, *, noun: str) -> dict[str, Any]:
    """The value itself if it is a JSON object.

    Raises:
        BadCircuit: If it is something else.
    """
    if not isinstance(value, dict):
        raise BadCircuit(f"{noun} must be a JSON object; got {_named(value)}")
    return value


def rows(value: Any, *, noun: str) -> list[dict[str, Any]]:
    """The value itself if it is a JSON list of objects.

    Raises:
        BadCircuit: If it is something else.
    """
    if not isinstance(value, list):
        raise BadCircuit(f"{noun} must be a JSON list; got {_named(value)}")
    for item in value:
        table(item, noun=f"each of {noun}")
    return value


def _named(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


@contextmanager
def reading(path: str | os.PathLike[str], *, noun: str) -> Iterator[None]:
    """Turn what is wrong with the content of a file into a `BadFile` that names the file.

    Args:
        path: The file.
        noun: What it should be, such as "a GEXF file of a circuit".
    """
    try:
        yield
    except BadFile:
        raise
    except WiretraceError as error:
        raise BadFile(f"{visible(os.fspath(path))} is not {noun} that can be read: {error}") from error

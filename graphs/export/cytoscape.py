"""Cytoscape JSON (.cyjs), which Cytoscape, Cytoscape.js and networkx read.

The ids of nodes are their names, the ids of edges theirs (`m3->a9.h6<q>@7`), with a place for each node from
`graphs.export.grid` and the attributes of `graphs.schema` as data; `value`, the name once more, is what networkx looks
for. Cytoscape's tables hold no nested values, so `architecture` and `provenance` are JSON text in the network's data.

Everything round-trips. Cytoscape gives nodes numbers for ids when it saves; `read` takes a node's `name` where it has
one, so such a file can be read as long as the columns are there. Where nodes stand is passed over.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

from graphs.atomic import read_text, write_text
from graphs.circuit import Circuit
from graphs.errors import BadCircuit
from graphs.export.grid import places
from graphs.labels import labels_of
from graphs.nodes import Node
from graphs.schema import Link, Row, circuit_of, flat, reading, rows, table
from graphs.strict_json import parsed

_HEADER: Final = {"format_version": "1.0", "generated_by": "wiretrace", "target_cytoscapejs_version": "~2.1"}


def dumps(circuit: Circuit) -> str:
    """The circuit as Cytoscape JSON: pure ASCII, a node or edge on a line."""
    graph, place, labels = flat(circuit), places(circuit), labels_of(circuit)
    header = {**_HEADER, "directed": True, "multigraph": True, "data": {"name": "circuit", **graph.graph}}
    nodes = []
    for name, found in graph.nodes(data=True):
        node = Node.parse(name)
        (x, y), label = place[node], {"label": labels[node]} if node in labels else {}
        data = {"id": name, "value": name, "name": name, **found, **label}
        nodes.append({"data": data, "position": {"x": x, "y": -y}})
    edges = [
        {"data": {"id": edge_id(source, target, key), "source": source, "target": target, "key": key, **found}}
        for source, target, key, found in graph.edges(data=True, keys=True)
    ]
    lines = [f'"{name}": {json.dumps(value, allow_nan=False)},' for name, value in header.items()]
    return "\n".join(["{", *lines, f'"elements": {{"nodes": {_lines(nodes)}, "edges": {_lines(edges)}}}', "}", ""])


def edge_id(source: str, target: str, key: str) -> str:
    """A name for an edge of the graph that no other has: `m3->a9.h6<q>@7`, `a3.kv1->a3.h2 (structural)`.

    Example:
        >>> edge_id("m3", "a9.h6", "q@7"), edge_id("m3", "logits", "")
        ('m3->a9.h6<q>@7', 'm3->logits')
    """
    if key == "structural":
        return f"{source}->{target} (structural)"
    port, mark, position = key.partition("@")
    return f"{source}->{target}{f'<{port}>' if port else ''}{mark}{position}"


def _lines(items: list[dict[str, Any]]) -> str:
    if not items:
        return "[]"
    return "[\n" + ",\n".join(f"  {json.dumps(item, allow_nan=False)}" for item in items) + "\n]"


def write(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write the circuit as Cytoscape JSON, whole or not at all.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    write_text(path, dumps(circuit))


def read(path: str | os.PathLike[str]) -> Circuit:
    """Read what `write` wrote, or Cytoscape from it.

    Raises:
        BadFile: If the file is not Cytoscape JSON of a circuit: a column missing, two nodes of one name, an edge twice.
    """
    text = read_text(path)
    with reading(path, noun="Cytoscape JSON of a circuit"):
        record = table(parsed(text), noun="the file")
        elements = table(record.get("elements"), noun="'elements'")
        nodes: dict[str, Row] = {}
        for item in rows(elements.get("nodes", []), noun="'nodes'"):
            key, row = _node(table(item.get("data"), noun="a node's 'data'"))
            if key in nodes:
                raise BadCircuit(f"the id {key[:40]!a} belongs to two nodes")
            nodes[key] = row
        edges = [_edge(item, nodes) for item in rows(elements.get("edges", []), noun="'edges'")]
        return circuit_of(table(record.get("data"), noun="'data'"), nodes.values(), edges)


def _node(data: dict[str, Any]) -> tuple[str, Row]:
    key = data.get("id")
    if not isinstance(key, str):
        raise BadCircuit("a node's 'data' lacks an 'id', which is text")
    return key, (data.get("name", key), data)


def _edge(item: dict[str, Any], nodes: dict[str, Row]) -> Link:
    data = table(item.get("data"), noun="an edge's 'data'")
    ends = []
    for name in ("source", "target"):
        end = data.get(name)
        if not isinstance(end, str) or end not in nodes:
            raise BadCircuit(f"an edge's {name!r} must be the id of a node; got {str(end)[:40]!a}")
        ends.append(nodes[end][0])
    return ends[0], ends[1], data

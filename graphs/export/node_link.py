"""Node-link JSON, as `networkx.node_link_data` writes it and D3 reads it.

    {"directed": true, "multigraph": true,
     "graph": {"schema": ..., "architecture": {...}, "provenance": {...}},
     "nodes": [{"kind": "head", "layer": 0, "index": 1, "id": "a0.h1"}, ...],
     "edges": [{"port": "q", "structural": false, "source": "input", "target": "a0.h1", "key": "q"}, ...]}

Everything round-trips: edges, scores to the last bit, positions, provenance. Files of networkx before 3.4 and of D3,
which call the edges "links", are read too. Attributes are those of `graphs.schema`; others are passed over.
"""

from __future__ import annotations

import json
import os
from typing import Any

from graphs.atomic import read_text, write_text
from graphs.circuit import Circuit
from graphs.errors import BadCircuit
from graphs.schema import Link, Row, circuit_of, reading, rows, table
from graphs.strict_json import parsed


def dumps(circuit: Circuit) -> str:
    """The circuit as node-link JSON: pure ASCII, a node or edge on a line."""
    import networkx as nx

    data = nx.node_link_data(circuit.to_networkx(), edges="edges")
    lines = [f'"{name}": {json.dumps(data[name], allow_nan=False)},' for name in ("directed", "multigraph", "graph")]
    for name, end in (("nodes", ","), ("edges", "")):
        items = ",\n".join(f"  {json.dumps(item, allow_nan=False)}" for item in data[name])
        lines.append(f'"{name}": [\n{items}\n]{end}' if items else f'"{name}": []{end}')
    return "\n".join(["{", *lines, "}", ""])


def write(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write the circuit as node-link JSON, whole or not at all.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    write_text(path, dumps(circuit))


def read(path: str | os.PathLike[str]) -> Circuit:
    """Read what `write` wrote, or another program from a graph with the attributes of `graphs.schema`.

    Raises:
        BadFile: If the file is not node-link JSON of a circuit: undirected, an attribute missing, an edge twice.
    """
    text = read_text(path)
    with reading(path, noun="node-link JSON of a circuit"):
        record = table(parsed(text), noun="the file")
        if record.get("directed") is not True:
            raise BadCircuit("'directed' must be true, since the edges of a circuit have a source and a target")
        if "edges" in record and "links" in record:
            raise BadCircuit("it has both 'edges' and 'links'; one of them should go")
        links = record.get("edges", record.get("links"))
        return circuit_of(
            table(record.get("graph"), noun="'graph'"),
            [_row(item) for item in rows(record.get("nodes"), noun="'nodes'")],
            [_link(item) for item in rows(links, noun="'edges'")],
        )


def _row(item: dict[str, Any]) -> Row:
    _require(item, "id", owner="a node")
    return item["id"], {name: value for name, value in item.items() if name != "id"}


def _link(item: dict[str, Any]) -> Link:
    for name in ("source", "target"):
        _require(item, name, owner="an edge")
    found = {name: value for name, value in item.items() if name not in ("source", "target", "key")}
    return item["source"], item["target"], found


def _require(item: dict[str, Any], name: str, *, owner: str) -> None:
    if name not in item:
        raise BadCircuit(f"{owner} lacks {name!r}; got {', '.join(map(repr, item))[:80] or 'an empty object'}")

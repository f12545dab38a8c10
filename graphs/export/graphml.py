"""GraphML, which Gephi, Cytoscape, yEd and networkx read.

Nodes, edges and their attributes are those of `Circuit.to_networkx`. GraphML has no nested attributes, so
`architecture` and `provenance` are JSON text (pure ASCII, which keeps every character that XML cannot hold).
"""

from __future__ import annotations

import io
import json
import os
import re
from typing import Any

from graphs.atomic import read_text, write_bytes
from graphs.circuit import Circuit
from graphs.errors import BadFile, WiretraceError

_NESTED = ("architecture", "provenance")


def dumps(circuit: Circuit) -> bytes:
    """The circuit as a GraphML document."""
    import networkx as nx

    graph: nx.MultiDiGraph[Any] = circuit.to_networkx()
    for name in _NESTED:
        graph.graph[name] = json.dumps(graph.graph[name], allow_nan=False)
    buffer = io.BytesIO()
    nx.write_graphml_xml(graph, buffer)
    return buffer.getvalue()


def write(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write the circuit as GraphML, whole or not at all.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    write_bytes(path, dumps(circuit))


def read(path: str | os.PathLike[str]) -> Circuit:
    """Read what `write` wrote.

    Raises:
        BadFile: If the file is not GraphML of a circuit, or declares entities or a document type.
    """
    import networkx as nx

    text = read_text(path)
    if re.search(r"<!(DOCTYPE|ENTITY)", text, flags=re.IGNORECASE):
        raise BadFile(f"{os.fspath(path)} declares a document type or entities, which circuits never need; refused")
    try:
        graph = nx.parse_graphml(text, force_multigraph=True)
        return Circuit.from_networkx(graph)
    except WiretraceError as error:
        raise BadFile(f"{os.fspath(path)} is not a circuit that can be read: {error}") from error
    except Exception as error:  # the XML and GraphML parsers raise many kinds
        raise BadFile(f"expected GraphML of a circuit in {os.fspath(path)}; it cannot be parsed: {error}") from error

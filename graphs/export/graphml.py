"""GraphML, which Gephi, Cytoscape, yEd and networkx read.

Nodes, edges and their attributes are those of `Circuit.to_networkx`. GraphML has no nested attributes, so
`architecture` and `provenance` are JSON text (pure ASCII, which keeps every character that XML cannot hold). Everything
round-trips; of a file that another program has saved, what `graphs.schema` does not name is passed over.
"""

from __future__ import annotations

import io
import os
from typing import Any

from graphs.atomic import read_text, write_bytes
from graphs.circuit import Circuit
from graphs.errors import BadCircuit
from graphs.export.strict_xml import parsed
from graphs.schema import flat, reading


def dumps(circuit: Circuit) -> bytes:
    """The circuit as a GraphML document."""
    import networkx as nx

    buffer = io.BytesIO()
    nx.write_graphml_xml(flat(circuit), buffer)
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
    with reading(path, noun="GraphML of a circuit"):
        names = [element.get("id") for element in parsed(text).iter() if element.tag.rpartition("}")[2] == "node"]
        if len(set(names)) < len(names):
            raise BadCircuit("two nodes have the same id, so their edges cannot be told apart")
        try:
            graph: nx.Graph[Any] = nx.parse_graphml(text, force_multigraph=True)
        except Exception as error:  # the parser raises many kinds
            raise BadCircuit(f"it cannot be parsed as GraphML: {error}") from error
        return Circuit.from_networkx(graph)

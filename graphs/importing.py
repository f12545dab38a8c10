"""Circuits from the files of other programs: the inverse of `graphs.export`.

Every file is read whole and checked before anything is made of it: files of more than 100 MB are refused unread
(`graphs.atomic`), XML that declares entities too (`graphs.export.strict_xml`), and what is left goes through
`graphs.schema.circuit_of`, whatever the format.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Final

from graphs.circuit import Circuit
from graphs.errors import BadFile, UnknownFormat
from graphs.export import format_of, known_format

READERS: Final[dict[str, str]] = {
    "json": "graphs.export.json:read",
    "graphml": "graphs.export.graphml:read",
    "gexf": "graphs.export.gexf:read",
    "dot": "graphs.export.dot:read",
    "cytoscape": "graphs.export.cytoscape:read",
    "csv": "graphs.export.csv:read",
    "node-link": "graphs.export.node_link:read",
    "neuronpedia": "graphs.export.neuronpedia:read",
    "mib": "graphs.export.mib:read",
}
"""The formats that can be read, to ``module:function``. The others are for the eye."""

_MARKS: Final = {  # what the other formats in .json files have, and this project's own has not
    "cytoscape": '"target_cytoscapejs_version"',
    "neuronpedia": '"qParams"',
    "node-link": '"multigraph"',
    "mib": '"cfg"',
}


def load(path: str | os.PathLike[str], *, format: str | None = None) -> Circuit:
    """The circuit in a file.

    Of a MIB file, the edges that it keeps, with their scores; `graphs.export.mib.read` gives the other scores too.

    Args:
        path: The file. Its suffix says the format if `format` does not.
        format: One of `READERS`, such as "node-link", for a file of another name.

    Raises:
        UnknownFormat: If there is no reader for the suffix or the format.
        BadFile: If the file cannot be read or is not a circuit in that format; the message says why.

    Example:
        >>> from graphs.export import export
        >>> export(circuit, folder / "circuit.gexf")
        >>> load(folder / "circuit.gexf") == circuit
        True
    """
    name = format_of(path) if format is None else known_format(format)
    if name not in READERS:
        raise UnknownFormat(f"files in {name} are only written; those in {', '.join(READERS)} are read")
    module, function = READERS[name].split(":")
    try:
        found: Any = getattr(importlib.import_module(module), function)(path)
    except BadFile as error:
        other = _other(path) if name == "json" and format is None else None
        if other is None:
            raise
        raise BadFile(f"{error}. It looks like {other}: load it with format={other!r}") from error
    return found if isinstance(found, Circuit) else found.circuit


def _other(path: str | os.PathLike[str]) -> str | None:
    """Which other format in JSON a file may be, by a word that only that one has near its beginning."""
    try:
        with open(path, "rb") as file:
            start = file.read(100_000)
    except OSError:
        return None
    return next((name for name, mark in _MARKS.items() if mark.encode() in start), None)

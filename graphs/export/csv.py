r"""A list of edges as comma-separated values, for spreadsheets, pandas and R.

    # schema: wiretrace-circuit/1
    # architecture: {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "has_mlp": true, "parallel": false}
    # provenance: {"method": "acdc"}
    source,target,port,position,score
    input,a0.h1,q,,-0.31
    a0.h1,logits,,,-1.5

One row per edge, in the order of the circuit; `port`, `position` and `score` are empty where there is none. The comment
lines come first: `pandas.read_csv(path, comment="#", keep_default_na=False)` and `read.csv(path, comment.char="#")`
pass over them.

If nodes have scores of their own, one more comment line, `# node_scores:`, holds a JSON table of them.

Everything round-trips, also through a spreadsheet that keeps the comment lines as rows and all digits of the scores.
Rows may be taken out, so a list that was cut short between two rows reads as a smaller circuit.

No cell can be taken for a formula: names are made of letters, digits and dots, numbers are numbers, and within the JSON
of the comment lines commas, semicolons, tabs and `= + @` are written as `\u` escapes, so that a cell to which such a
character from the provenance is first does not arise.
"""

from __future__ import annotations

import csv
import io
import os
from typing import Any, Final

from graphs.atomic import read_text, write_text
from graphs.circuit import SCHEMA, Circuit
from graphs.errors import BadCircuit
from graphs.schema import EDGE_TYPES, NESTED, Link, circuit_of, reading, table, typed
from graphs.strict_json import guarded, parsed

COLUMNS: Final = ("source", "target", "port", "position", "score")
"""The head of the table."""

_FORMULA: Final = ",;=+@"
_OF_NODES: Final = "node_scores"


def dumps(circuit: Circuit) -> str:
    """The circuit as CSV."""
    tables = {"architecture": circuit.architecture.to_dict(), "provenance": dict(circuit.provenance)}
    lines = [f"# schema: {SCHEMA}", *(f"# {name}: {guarded(tables[name], guard=_FORMULA)}" for name in NESTED)]
    if circuit.node_scores:
        of_nodes = {str(node): score for node, score in circuit.node_scores.items()}
        lines.append(f"# {_OF_NODES}: {guarded(of_nodes, guard=_FORMULA)}")
    lines.append(",".join(COLUMNS))
    for edge in circuit.edges:
        score = repr(circuit.scores[edge]) if edge in circuit.scores else ""
        position = "" if edge.position is None else edge.position
        lines.append(f"{edge.source},{edge.target},{edge.port or ''},{position},{score}")
    return "\n".join([*lines, ""])


def write(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write the circuit as CSV, whole or not at all.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    write_text(path, dumps(circuit))


def read(path: str | os.PathLike[str]) -> Circuit:
    """Read what `write` wrote.

    Raises:
        BadFile: If the file lacks a comment line or column, or a row is not an edge of the architecture.
    """
    text = read_text(path)
    with reading(path, noun="a CSV file of a circuit"):
        lines = text.splitlines()
        first = next((number for number, line in enumerate(lines) if not _is_comment(line)), len(lines))
        attributes = _comments(lines[:first])
        of_nodes = table(attributes.pop(_OF_NODES, {}), noun=f"the comment {_OF_NODES!r}")
        if not lines[first:] or tuple(_cells(lines[first])) != COLUMNS:
            raise BadCircuit(f"the first line that is no comment must be {','.join(COLUMNS)}")
        edges = [_link(line, number) for number, line in enumerate(lines[first + 1 :], start=first + 2) if line]
        return circuit_of(attributes, None, edges, node_scores=of_nodes)


def _is_comment(line: str) -> bool:
    return line.startswith(("#", '"#'))


def _cells(line: str) -> list[str]:
    """The cells of a line, without empty ones that a spreadsheet has added."""
    try:
        cells = next(csv.reader(io.StringIO(line), strict=True), [])
    except csv.Error as error:
        raise BadCircuit(f"the line {line[:60]!a} is not CSV: {error}") from None
    while len(cells) > len(COLUMNS) and not cells[-1]:
        cells.pop()
    return cells


def _comments(lines: list[str]) -> dict[str, Any]:
    """The graph's attributes; a spreadsheet may have cut a comment into cells, quoted some and added empty ones."""
    found: dict[str, Any] = {}
    for line in lines:
        whole = line
        if line.startswith('"') or line.endswith(","):
            try:
                whole = ",".join(next(csv.reader(io.StringIO(line))))
            except csv.Error as error:
                raise BadCircuit(f"the comment {line[:60]!a} cannot be read: {error}") from None
        name, colon, value = whole.rstrip(",").removeprefix("#").partition(":")
        name, value = name.strip(), value.strip()
        if colon and name in ("schema", *NESTED, _OF_NODES):
            if name in found:
                raise BadCircuit(f"the comment {name!r} comes twice")
            found[name] = value if name == "schema" else parsed(value)
    return found


def _link(line: str, number: int) -> Link:
    cells = _cells(line)
    if len(cells) != len(COLUMNS):
        raise BadCircuit(f"line {number}: expected {len(COLUMNS)} cells; got {len(cells)}")
    row = dict(zip(COLUMNS, cells, strict=True))
    found = {name: value for name in ("port", "position", "score") if (value := row[name])}
    return row["source"], row["target"], typed(found, EDGE_TYPES)

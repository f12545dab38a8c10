r"""DOT, the language of Graphviz: `dot -Tpdf circuit.dot -o circuit.pdf`.

Layers are ranks, from the input at the bottom to the logits at the top; colours and line widths are those of the figure
(`graphs.export.figure`). Nodes and edges carry the attributes of `graphs.schema`, which Graphviz passes over; `schema`,
`architecture` and `provenance` are attributes of the graph, the latter two as JSON text.

Everything round-trips from `write` to `read`. The reader knows the part of the language in which edges are written one
by one: quoted and plain names, attributes, comments, subgraphs. It refuses chains (`a -> b -> c`), edges of
subgraphs, undirected graphs and HTML labels. Graphviz's own output adds positions and keeps the rest, so it can be
read back too.

In DOT a backslash before a quote cannot be told from an escaped quote, so within JSON both are written as `\u` escapes.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from graphs.atomic import read_text, write_text
from graphs.circuit import Circuit
from graphs.errors import BadCircuit
from graphs.export.figure import LOOK, PORT_COLOURS, largest_importance, line_width, share_of_largest
from graphs.export.grid import rows
from graphs.labels import labels_of
from graphs.nodes import SITES
from graphs.schema import EDGE_TYPES, NESTED, NODE_TYPES, Link, circuit_of, reading, typed
from graphs.strict_json import guarded

_STYLES: Final = {"mlp": ', style="filled"'} | {
    f"{site}_error": ', style="filled,rounded,dashed"' for site in SITES
}  # others are those of all nodes
_DEEPEST: Final = 20
_LINK: Final = 'color="#7A808C", penwidth=0.6, style=dashed, arrowhead=none'


def dumps(circuit: Circuit) -> str:
    """The circuit as DOT."""
    return "\n".join(_lines(circuit))


def write(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write the circuit as DOT, whole or not at all.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    write_text(path, dumps(circuit))


def _lines(circuit: Circuit) -> Iterator[str]:
    graph, largest = circuit.to_networkx(), largest_importance(circuit)
    labels = {str(node): label for node, label in labels_of(circuit).items()}
    yield "digraph circuit {"
    yield f'graph [schema="{graph.graph["schema"]}"];'
    for name in NESTED:
        text = guarded(graph.graph[name], guard="").replace('"', '\\"')
        yield f'graph [{name}="{text}"];'
    yield "graph [rankdir=BT, newrank=true, splines=true];"
    yield 'node [style="filled,rounded", fontname="Helvetica", fontsize=10, height=0.25, margin="0.08,0.03"];'
    yield "edge [arrowsize=0.5];"
    for name, found in graph.nodes(data=True):
        fill, outline, ink = LOOK[found["kind"]]
        shape, style = "hexagon" if found["kind"] == "mlp" else "box", _STYLES.get(found["kind"], "")
        looks = f'shape={shape}, fillcolor="{fill}", color="{outline}", fontcolor="{ink}"{style}'
        if name in labels:
            looks += f", label={_label(name, labels[name])}"
        yield f'"{name}" [{_attributes(found)}, {looks}];'
    for source, target, key, found in graph.edges(data=True, keys=True):
        width = line_width(share_of_largest(found.get("score"), largest))
        looks = _LINK if found["structural"] else f'color="{PORT_COLOURS[found["port"] or None]}", penwidth={width:.3f}'
        yield f'"{source}" -> "{target}" [key="{key}", {_attributes(found)}, {looks}];'
    for row in rows(circuit):
        rank = {"input": "min", "logits": "max"}.get(row[0].kind, "same")
        yield f"{{ rank={rank}; {' '.join(f'{_quoted(str(node))};' for node in row)} }}"
    yield "}\n"


def _attributes(found: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_said(value)}" for name, value in found.items())


def _said(value: str | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(str(value) if isinstance(value, str) else repr(value))


def _label(name: str, label: str) -> str:
    r"""The text of a box: the name, and what people call the node below it. A backslash would start an escape."""
    text = html.escape(label.replace("\\", "/").replace('"', "'"), quote=False)
    text = text.encode("ascii", "xmlcharrefreplace").decode("ascii")  # Graphviz reads them as HTML's
    return f'"{name}\\n{text}"'


def _quoted(plain: str) -> str:
    """Text without quotes and backslashes as DOT's quoted string."""
    return f'"{plain}"'


# ------------------------------------------------------------------------------------------------------- reading

_TOKEN: Final = re.compile(
    r"""
    (?P<space> \s+ | //[^\n]* | /\*.*?\*/ | (?:^|(?<=\n))\#[^\n]* )
    | (?P<text> "(?:[^"\\]|\\.)*" )
    | (?P<mark> -> | -- | [{}\[\]=;,:+] )
    | (?P<name> [A-Za-z_\x80-\uffff][A-Za-z0-9_\x80-\uffff]* | -?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?) )
    """,
    re.VERBOSE | re.DOTALL,
)


def read(path: str | os.PathLike[str]) -> Circuit:
    """Read what `write` wrote, or Graphviz from it.

    Raises:
        BadFile: If the file is not DOT of a circuit, or uses a part of the language that circuits do not need.
    """
    text = read_text(path)
    with reading(path, noun="a DOT file of a circuit"):
        found = _Parser(_tokens(text)).whole()
        return circuit_of(found.attributes, found.nodes.items(), found.edges)


@dataclass
class _Found:
    attributes: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    edges: list[Link] = field(default_factory=list)


def _tokens(text: str) -> list[tuple[str, str]]:
    """Kind (text, mark, name) and value of each token, strings without their quotes."""
    tokens: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            line = text.count("\n", 0, place) + 1
            raise BadCircuit(f"line {line} cannot be read as DOT from {text[place : place + 20]!a} on")
        place = match.end()
        kind, value = match.lastgroup or "", match.group()
        if kind == "text":
            tokens.append(("text", value[1:-1].replace("\\\n", "").replace('\\"', '"')))
        elif kind != "space":
            tokens.append((kind, value))
    return tokens


class _Parser:
    """Reads statements one after the other; `place` is the next token."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = [*tokens, ("end", "")]
        self._place = 0
        self._found = _Found()

    def whole(self) -> _Found:
        opening = [self._next()[1].lower()]
        while opening[-1] != "{":
            if len(opening) > 3 or self._tokens[self._place][0] == "end":
                raise BadCircuit("it must begin with 'digraph {'")
            opening.append(self._next()[1].lower())
        if opening[0] == "strict":
            raise BadCircuit("a strict graph has one edge between two nodes; circuits have one for each port")
        if opening[0] != "digraph":
            raise BadCircuit(f"expected a digraph, since edges have a source and a target; got {opening[0][:40]!a}")
        self._block()
        if self._tokens[self._place][0] != "end":
            raise BadCircuit("something follows the end of the graph; one graph is one circuit")
        return self._found

    def _next(self) -> tuple[str, str]:
        token = self._tokens[self._place]
        if token[0] == "end":
            raise BadCircuit("it ends early, so it may be cut short")
        self._place += 1
        return token

    def _take(self, mark: str) -> bool:
        """Pass over a mark if it is next."""
        taken = self._tokens[self._place] == ("mark", mark)
        self._place += taken
        return taken

    def _block(self, *, depth: int = 0) -> None:
        """Statements up to the closing brace of the graph, or of a subgraph within it."""
        if depth > _DEEPEST:
            raise BadCircuit(f"subgraphs are nested more than {_DEEPEST} deep; circuits need one level")
        while not self._take("}"):
            if self._take(";"):
                continue
            if self._take("{"):
                self._block(depth=depth + 1)
                self._refuse_edge()
            else:
                self._statement(depth=depth)

    def _statement(self, *, depth: int) -> None:
        kind, name = self._name()
        word = name.lower() if kind == "name" else ""
        if word == "subgraph":
            if not self._take("{"):
                self._name()
                self._expect("{")
            self._block(depth=depth + 1)
            self._refuse_edge()
        elif word in ("graph", "node", "edge"):
            self._note(self._attributes() if word == "graph" else {}, depth=depth)
            self._attributes()  # the looks of nodes and edges to come
        elif self._take("="):
            self._note({name: self._name()[1]}, depth=depth)
        elif self._take("->"):
            target = self._name()[1]
            self._refuse_edge()
            self._found.edges.append((name, target, typed(self._attributes(), EDGE_TYPES)))
        else:
            self._refuse_edge()
            found = typed(self._attributes(), NODE_TYPES)
            self._found.nodes[name] = self._found.nodes.get(name, {}) | found

    def _note(self, attributes: dict[str, str], *, depth: int) -> None:
        """Keep attributes of the graph; those of subgraphs say how nodes are ranked."""
        if depth == 0:
            self._found.attributes |= attributes

    def _refuse_edge(self) -> None:
        kind, mark = self._tokens[self._place]
        if kind == "mark" and mark in ("->", "--", ":"):
            raise BadCircuit("edges must be written one by one, as SOURCE -> TARGET [...], without compass points")

    def _name(self) -> tuple[str, str]:
        kind, value = self._next()
        if kind == "mark":
            raise BadCircuit(f"expected a name; got {value!r}")
        while kind == "text" and self._take("+"):  # strings may be written in pieces
            value += self._next()[1]
        return kind, value

    def _attributes(self) -> dict[str, str]:
        """All lists of attributes that follow."""
        found: dict[str, str] = {}
        while self._take("["):
            while not self._take("]"):
                name = self._name()[1]
                self._expect("=")
                found[name] = self._name()[1]
                if not self._take(","):
                    self._take(";")
        return found

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise BadCircuit(f"expected {mark!r}; got {self._tokens[self._place][1][:40]!a}")

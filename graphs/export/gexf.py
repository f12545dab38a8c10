"""GEXF 1.3, which Gephi and networkx read.

Nodes and edges carry the attributes of `graphs.schema`, and for Gephi colours as in the figure, a thickness, a
position (`graphs.export.grid`) and a weight, abs(score). Edges of one pair of nodes differ in `kind`, their port and
position, which keeps Gephi from merging them. GEXF has no attributes of graphs: `schema`, `architecture` and
`provenance` stand as JSON text in the description of the file.

Everything round-trips from `write` to `read`. networkx reads all nodes and edges, but passes over the description; its
own writer dates the file and leaves the graph's attributes out, so it is not used. A program that saves the file
without the description makes it unreadable here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Final
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape, quoteattr

from graphs.atomic import read_text, write_text
from graphs.circuit import Circuit
from graphs.errors import BadCircuit
from graphs.export.cytoscape import edge_id
from graphs.export.figure import LOOK, PORT_COLOURS, largest_importance, line_width, share_of_largest
from graphs.export.grid import places
from graphs.export.strict_xml import parsed as parsed_xml
from graphs.labels import labels_of
from graphs.nodes import Node
from graphs.schema import EDGE_TYPES, NESTED, NODE_TYPES, Link, Row, Type, circuit_of, reading, table, typed
from graphs.strict_json import parsed

_NAMESPACE: Final = "http://gexf.net/1.3"
_LINK_COLOUR: Final = "#7A808C"


def dumps(circuit: Circuit) -> str:
    """The circuit as a GEXF document."""
    return "\n".join(_lines(circuit))


def write(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write the circuit as GEXF, whole or not at all.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    write_text(path, dumps(circuit))


def _lines(circuit: Circuit) -> Iterator[str]:
    graph, place, largest = circuit.to_networkx(), places(circuit), largest_importance(circuit)
    labels = labels_of(circuit)
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield f'<gexf xmlns="{_NAMESPACE}" xmlns:viz="{_NAMESPACE}/viz" version="1.3">'
    about = json.dumps(graph.graph, allow_nan=False)
    yield f"<meta><creator>Wiretrace</creator><description>{escape(about)}</description></meta>"
    yield '<graph defaultedgetype="directed" mode="static">'
    used = {"kind", "layer", "index"}.union(*(found for _, found in graph.nodes(data=True)))
    yield from _declared("node", {name: kind for name, kind in NODE_TYPES.items() if name in used})
    yield from _declared("edge", EDGE_TYPES)
    yield "<nodes>"
    for name, found in graph.nodes(data=True):
        x, y = place[Node.parse(name)]
        looks = f'{_colour(LOOK[found["kind"]][1])}<viz:position x="{x}" y="{y}" z="0.0"/>'
        called = quoteattr(f"{name} {labels[node]}" if (node := Node.parse(name)) in labels else name)
        yield f'<node id="{name}" label={called}>{_values(found)}{looks}</node>'
    yield "</nodes>\n<edges>"
    for source, target, key, found in graph.edges(data=True, keys=True):
        score = found.get("score")
        share = share_of_largest(score, largest)
        weight = f' weight="{abs(score)!r}"' if score else ""
        colour = _LINK_COLOUR if found["structural"] else PORT_COLOURS[found["port"] or None]
        looks = f'{_colour(colour)}<viz:thickness value="{line_width(share):.3f}"/>'
        identity = quoteattr(edge_id(source, target, key))
        ends = f'source="{source}" target="{target}" kind={quoteattr(key or "residual")}{weight}'
        yield f"<edge id={identity} {ends}>{_values(found)}{looks}</edge>"
    yield "</edges>\n</graph>\n</gexf>\n"


def _declared(noun: str, types: dict[str, Type]) -> Iterator[str]:
    columns = "".join(f'<attribute id="{name}" title="{name}" type="{kind}"/>' for name, kind in types.items())
    yield f'<attributes class="{noun}" mode="static">{columns}</attributes>'


def _values(found: dict[str, Any]) -> str:
    values = "".join(f'<attvalue for="{name}" value="{_said(value)}"/>' for name, value in found.items())
    return f"<attvalues>{values}</attvalues>"


def _said(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


def _colour(code: str) -> str:
    red, green, blue = (int(code[start : start + 2], 16) for start in (1, 3, 5))
    return f'<viz:color r="{red}" g="{green}" b="{blue}"/>'


# ------------------------------------------------------------------------------------------------------- reading


def read(path: str | os.PathLike[str]) -> Circuit:
    """Read what `write` wrote.

    Raises:
        BadFile: If the file is not GEXF of a circuit, lacks the description, or declares entities or a document type.
    """
    text = read_text(path)
    with reading(path, noun="a GEXF file of a circuit"):
        root = parsed_xml(text)
        if _local(root) != "gexf":
            raise BadCircuit(f"the outermost element must be gexf; got {_local(root)[:40]!a}")
        graph = _one(root, "graph")
        if graph.get("defaultedgetype") != "directed":
            raise BadCircuit("its edges must be directed by default, since they have a source and a target")
        titles = {noun: _titles(graph, noun) for noun in ("node", "edge")}
        nodes = [_row(element, titles["node"]) for element in _members(graph, "nodes", "node")]
        edges = [_link(element, titles["edge"]) for element in _members(graph, "edges", "edge")]
        return circuit_of(_about(root), nodes, edges)


def _about(root: Element) -> dict[str, Any]:
    texts = [element.text or "" for element in root.iter() if _local(element) == "description"]
    if not texts:
        raise BadCircuit("the description, which holds schema and architecture as JSON, is missing")
    about = table(parsed(texts[0]), noun="the description")
    return {name: about[name] for name in ("schema", *NESTED) if name in about}


def _titles(graph: Element, noun: str) -> dict[str, str]:
    """What the columns of nodes or edges are called, by their ids."""
    found: dict[str, str] = {}
    for group in graph:
        if _local(group) == "attributes" and group.get("class") == noun:
            found |= {column.get("id", ""): column.get("title", "") for column in group}
    return found


def _members(graph: Element, group: str, noun: str) -> Iterator[Element]:
    for element in _one(graph, group):
        if _local(element) == noun:
            yield element


def _one(parent: Element, name: str) -> Element:
    found = [element for element in parent if _local(element) == name]
    if len(found) != 1:
        raise BadCircuit(f"expected one element {name!r} in {_local(parent)!r}; got {len(found)}")
    return found[0]


def _row(element: Element, titles: dict[str, str]) -> Row:
    return _attribute(element, "id"), _attributes(element, titles, NODE_TYPES)


def _link(element: Element, titles: dict[str, str]) -> Link:
    if element.get("type", "directed") != "directed":
        raise BadCircuit(f"an edge is {element.get('type', '')[:40]!a}; those of circuits are directed")
    ends = _attribute(element, "source"), _attribute(element, "target")
    return *ends, _attributes(element, titles, EDGE_TYPES)


def _attributes(element: Element, titles: dict[str, str], types: dict[str, Type]) -> dict[str, Any]:
    found: dict[str, str] = {}
    for group in element:
        if _local(group) == "attvalues":
            found |= {titles.get(value.get("for", ""), ""): value.get("value", "") for value in group}
    return typed(found, types)


def _attribute(element: Element, name: str) -> str:
    value = element.get(name)
    if value is None:
        raise BadCircuit(f"an element {_local(element)!r} lacks {name!r}")
    return value


def _local(element: Element) -> str:
    """The name of an element without its namespace, which differs between versions of GEXF."""
    return element.tag.rpartition("}")[2]

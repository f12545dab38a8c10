"""A circuit: the edges of a model that carry a behaviour, their scores, and where they came from.

A circuit is a plain, frozen record. Methods make one, everything else (evaluation, figures, comparison, files) reads
it. Edges are kept in the order of the architecture's `ComponentGraph` and once each, so two circuits with the same
content are equal, print the same and save to the same bytes.

Files hold JSON of this form, one edge on a line:

    {
      "schema": "wiretrace-circuit/1",
      "architecture": {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "has_mlp": true, "parallel": false},
      "provenance": {"method": "acdc", "tau": 0.02},
      "edges": [
        {"edge": "input->a0.h1<q>", "score": -0.31},
        {"edge": "a0.h1->logits", "score": -1.5}
      ]
    }
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, SupportsFloat, cast

from graphs.atomic import read_text, write_text
from graphs.components import Architecture, ComponentGraph
from graphs.errors import BadCircuit, BadFile, WiretraceError
from graphs.nodes import Edge, Letter, Node
from graphs.reach import on_a_path
from graphs.strict_json import parsed

if TYPE_CHECKING:
    import networkx as nx

SCHEMA: Final = "wiretrace-circuit/1"
"""The name and version of the format, in files and in graph attributes."""

_DEEPEST: Final = 64
_FILE_KEYS: Final = ("schema", "architecture", "provenance", "edges")


@dataclass(frozen=True, init=False, repr=False)
class Circuit:
    """Kept edges of a model, with scores and provenance.

    Args:
        architecture: The shape of the model that the edges belong to.
        edges: The edges kept. Any order and repeats are accepted; stored in `ComponentGraph` order, once each (an edge
            at a position comes after the same edge at every position).
        scores: The signed effect of each scored edge, in the unit that the provenance names:
            effect = metric(edge ablated) - metric(clean), so a negative one means that the edge helps, and
            importance = abs(effect). Edges may lack a score, but only kept edges can have one.
        provenance: How the circuit was made, as JSON: model, task, method, options, seed, versions. Tuples become
            lists; two surrogates that form one character become that character.

    Raises:
        UnknownEdge: If the architecture has no such edge.
        BadCircuit: If a score is not a finite number or the provenance is not JSON.

    Example:
        >>> from graphs import Architecture, Circuit, Edge
        >>> names = ["a0.h1->logits", "input->a0.h1<v>"]
        >>> circuit = Circuit(Architecture(2, 2), [Edge.parse(name) for name in names])
        >>> print(circuit)
        2 of 46 edges between 3 nodes (2 layers, 2 heads, MLPs)
    """

    architecture: Architecture
    edges: tuple[Edge, ...]
    scores: Mapping[Edge, float] = field(default_factory=dict, hash=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __init__(
        self,
        architecture: Architecture,
        edges: Iterable[Edge],
        scores: Mapping[Edge, SupportsFloat] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(architecture, Architecture):
            raise BadCircuit(f"expected an Architecture; got {type(architecture).__name__}")
        ordered = _in_order(ComponentGraph(architecture), edges)
        kept_scores = _checked_scores({} if scores is None else scores, edges=ordered)
        object.__setattr__(self, "architecture", architecture)
        object.__setattr__(self, "edges", ordered)
        object.__setattr__(self, "scores", MappingProxyType(kept_scores))
        object.__setattr__(self, "provenance", MappingProxyType(_checked_provenance(provenance)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Circuit, (self.architecture, self.edges, dict(self.scores), dict(self.provenance))

    @property
    def graph(self) -> ComponentGraph:
        """Every node and edge that a circuit of this architecture can have."""
        return ComponentGraph(self.architecture)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes at either end of an edge, in topological order: groups before heads before the layer's MLP."""
        ends = {end for edge in self.edges for end in (edge.source, edge.target)}
        return tuple(sorted(ends, key=_depth))

    @property
    def n_edges(self) -> int:
        """How many edges are kept; an edge at two positions counts twice."""
        return len(self.edges)

    @property
    def n_possible(self) -> int:
        """How many edges the model has, positions not counted."""
        return self.graph.n_edges

    def prune(self) -> Circuit:
        """This circuit without its dead ends: only edges on a path from the input to the logits remain.

        A path goes through a head if it enters at any of its ports; keys and values of a group lead to each of the
        group's heads. Positions are followed: a head's query and an MLP carry what they read at one position to the
        same position, keys and values carry it to that position and all later ones (`graphs.reach`).

        Cost: linear in the number of edges.
        """
        return replace(self, edges=(kept := on_a_path(self)), scores=_restricted(self.scores, kept))

    def to_networkx(self) -> nx.MultiDiGraph[str]:
        """The circuit as a plain networkx graph, for networkx's own algorithms and other tools.

        Nodes are the names of the circuit's nodes, in topological order. `graphs.schema` lists the attributes of the
        graph, its nodes and its edges, with their types and units.

        Edge keys are the port, with the position if there is one: "q", "", "q@7", "@7". In grouped-query attention
        each group in the circuit is joined to those of its query heads that are in it by an edge with
        `structural=True` and the key "structural": they say how a path goes on, are no edges of the circuit and
        are never counted.

        Example:
            >>> g = circuit.to_networkx()
            >>> sum(not structural for *_, structural in g.edges(data="structural")) == circuit.n_edges
            True
        """
        import networkx as nx

        g: nx.MultiDiGraph[str] = nx.MultiDiGraph(
            schema=SCHEMA, architecture=self.architecture.to_dict(), provenance=_thawed(self.provenance)
        )
        for node in self.nodes:
            numbers = {"layer": node.layer, "index": node.index}
            g.add_node(str(node), kind=node.kind, **{name: n for name, n in numbers.items() if n is not None})
        for edge in self.edges:
            known = {"score": self.scores.get(edge), "position": edge.position}
            at = "" if edge.position is None else f"@{edge.position}"
            g.add_edge(
                str(edge.source),
                str(edge.target),
                key=f"{edge.port or ''}{at}",
                port=edge.port or "",
                structural=False,
                **{name: value for name, value in known.items() if value is not None},
            )
        for group, member in self.structural_edges():
            g.add_edge(str(group), str(member), key="structural", port="", structural=True)
        return g

    def structural_edges(self) -> list[tuple[Node, Node]]:
        """Each key/value group of the circuit with each of its query heads that is in the circuit too."""
        present = set(self.nodes)
        groups = (node for node in self.nodes if node.kind == "kv")
        return [(group, member) for group in groups for member in self.graph.query_heads(group) if member in present]

    @staticmethod
    def from_networkx(g: nx.Graph[Any]) -> Circuit:
        """The circuit that a graph with the attributes of `to_networkx` describes.

        Attributes decide, edge keys do not matter; `architecture` and `provenance` may be JSON text, as formats
        without nested attributes hold them. Nodes without edges and structural edges are checked, then left out,
        since a circuit is its edges.

        Raises:
            BadCircuit: If an attribute is missing, wrong or contradicts a name, or an edge comes twice.
            BadName, UnknownNode, UnknownEdge: If a name is not one or not one of this architecture's.
        """
        if not g.is_directed():
            raise BadCircuit("a circuit is a directed graph; got an undirected one, whose edges have no source")
        _check_schema(g.graph.get("schema"), where="the graph attribute 'schema'")
        if "architecture" not in g.graph:
            raise BadCircuit("the graph attribute 'architecture' is missing, so no node can be checked")
        shape = Architecture.from_dict(_unpacked(g.graph["architecture"], name="architecture"))
        graph = ComponentGraph(shape)
        for name, attributes in g.nodes(data=True):
            _check_node(graph, name, attributes)
        edges: dict[Edge, Any] = {}
        for start, end, attributes in g.edges(data=True):
            edge = _edge_from(graph, start, end, attributes)
            if edge in edges:
                raise BadCircuit(f"the edge {edge} comes twice; every edge can be in a circuit once")
            if edge is not None:
                edges[edge] = attributes.get("score")
        scores = {edge: score for edge, score in edges.items() if score is not None}
        return Circuit(shape, edges, scores, _unpacked(g.graph.get("provenance", {}), name="provenance"))

    def to_json(self) -> str:
        """The circuit as JSON text (see the head of this module); pure ASCII, the same bytes for equal circuits."""
        header = {
            "schema": SCHEMA,
            "architecture": self.architecture.to_dict(),
            "provenance": dict(self.provenance),
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}," for key, value in header.items()]
        rows = [{"edge": str(edge)} | _score_of(self.scores, edge) for edge in self.edges]
        edges = ",\n    ".join(json.dumps(row, allow_nan=False) for row in rows)
        return "\n".join(["{", *lines, f'  "edges": [\n    {edges}\n  ]' if rows else '  "edges": []', "}", ""])

    @staticmethod
    def from_json(text: str) -> Circuit:
        """The inverse of `to_json`.

        Raises:
            BadCircuit: If the text is not JSON of this schema, or an edge comes twice.
            BadName, UnknownEdge: If an edge is not one or not one of this architecture's.
        """
        record = parsed(text)
        if not isinstance(record, dict):
            raise BadCircuit(f"expected a JSON object with the keys {', '.join(_FILE_KEYS)}; got {_kind(record)}")
        _check_schema(record.get("schema"), where="the key 'schema'")
        _check_keys(record, required=_FILE_KEYS, owner="a circuit")
        if not isinstance(record["edges"], list):
            raise BadCircuit(f"'edges' must be a list; got {_kind(record['edges'])}")
        scores: dict[Edge, Any] = {}
        for row in record["edges"]:
            if not isinstance(row, dict):
                raise BadCircuit(f'an edge must be an object such as {{"edge": "m0->logits"}}; got {_kind(row)}')
            _check_keys(row, required=("edge",), optional=("score",), owner="an edge")
            edge = Edge.parse(row["edge"])
            if edge in scores:
                raise BadCircuit(f"the edge {edge} comes twice; every edge can be in a circuit once")
            scores[edge] = row.get("score")
        known = {edge: score for edge, score in scores.items() if score is not None}
        return Circuit(Architecture.from_dict(record["architecture"]), scores, known, record["provenance"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, whole or not at all.

        Raises:
            WriteFailed: If the system refuses; whatever stood there is untouched then.
        """
        write_text(path, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Circuit:
        """The circuit that `save` wrote to `path`.

        Raises:
            BadFile: If the file cannot be read or is not a circuit; the message says why.
        """
        text = read_text(path)
        try:
            return Circuit.from_json(text)
        except WiretraceError as error:
            raise BadFile(f"{os.fspath(path)} is not a circuit that can be read: {error}") from error

    def __str__(self) -> str:
        said = [self.provenance.get(name) for name in ("model", "task", "method")]
        made = " · ".join(visible(name) for name in said if isinstance(name, str) and name)
        what = f"{self.n_edges:,} of {self.n_possible:,} edges between {len(self.nodes):,} nodes ({self.graph})"
        return f"{made}: {what}" if made else what

    def __repr__(self) -> str:
        return f"<Circuit: {self}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a small table and the figure, of the strongest edges if there are many."""
        from graphs.export.notebook import shown

        return shown(self)

    def view(self, **options: Any) -> Any:
        """The circuit as an interactive page inside a notebook.

        Args:
            **options: Those of `graphs.export.html.inline`.
        """
        from graphs.export.html import inline

        return inline(self, **options)


def visible(text: str) -> str:
    r"""The text with every character that cannot be shown or stored as markup written as an escape, e.g. `\x00`.

    Control characters, lone surrogates, marks that reverse the direction of text and code points without a meaning
    are replaced; letters of every script, accents and emoji are kept.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _in_order(graph: ComponentGraph, edges: Iterable[Edge]) -> tuple[Edge, ...]:
    numbered: dict[Edge, tuple[int, int]] = {}
    for edge in edges:
        if not isinstance(edge, Edge):
            raise BadCircuit(f"expected an Edge; got {_kind(edge)} (Edge.parse reads a name)")
        numbered[edge] = (graph.number(edge), -1 if edge.position is None else edge.position)
    return tuple(sorted(numbered, key=numbered.__getitem__))


def _checked_scores(scores: Mapping[Edge, SupportsFloat], *, edges: tuple[Edge, ...]) -> dict[Edge, float]:
    """Finite floats in the order of the edges."""
    strangers = scores.keys() - set(edges)
    if strangers:
        first = min(map(str, strangers))
        raise BadCircuit(f"{len(strangers):,} scores belong to edges that are not in the circuit, such as {first}")
    return {edge: _finite(scores[edge], edge=edge) for edge in edges if edge in scores}


def _finite(value: SupportsFloat, *, edge: Edge) -> float:
    if isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat):
        raise BadCircuit(f"the score of {edge} must be a number; got {_kind(value)}")
    try:
        number = float(value)
    except (ValueError, OverflowError, TypeError) as error:
        raise BadCircuit(f"the score of {edge} must be a number; {error}") from error
    if not math.isfinite(number):
        raise BadCircuit(f"the score of {edge} must be finite; got {number}, so the run that made it went wrong")
    return number


def _checked_provenance(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    if provenance is not None and not isinstance(provenance, Mapping):
        raise BadCircuit(f"the provenance is a table of names and values; got {_kind(provenance)}")
    return _as_json(provenance or {}, where="provenance", depth=0)


def _as_json(value: Any, *, where: str, depth: int) -> Any:
    """A deep copy as JSON would give it back: dicts with string keys, lists, strings, numbers, booleans and None."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _joined_surrogates(str(value))
    if isinstance(value, int):
        return _short_int(int(value), where=where)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadCircuit(f"{where} must be finite; got {value}")
        return float(value)
    if depth >= _DEEPEST:
        raise BadCircuit(f"{where[:200]} is nested more than {_DEEPEST} deep; keep provenance flat")
    if isinstance(value, Mapping):
        return _as_object(value, where=where, depth=depth)
    if isinstance(value, list | tuple):
        return [_as_json(item, where=f"{where}[{n}]", depth=depth + 1) for n, item in enumerate(value)]
    raise BadCircuit(
        f"{where} must be JSON (a string, number, boolean, None, list or table of these); got {_kind(value)}: "
        f"convert it first, for example with str() or .tolist()"
    )


def _as_object(value: Mapping[Any, Any], *, where: str, depth: int) -> dict[str, Any]:
    copy: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise BadCircuit(f"the keys of {where} must be strings; got {_kind(key)}")
        copy[_joined_surrogates(key)] = _as_json(item, where=f"{where}.{key[:40]!a}", depth=depth + 1)
    if len(copy) < len(value):
        raise BadCircuit(f"two keys of {where} are the same text once surrogates are joined; rename one")
    return copy


def _short_int(value: int, *, where: str) -> int:
    if value.bit_length() > 1024:
        raise BadCircuit(f"{where} is an integer of {value.bit_length():,} bits; write it as a string")
    return value


def _joined_surrogates(text: str) -> str:
    """Text in which two surrogates that form a character are that character, as JSON and UTF-16 read them."""
    if text.isprintable():  # the common case; no surrogate is printable
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list) else value


def _restricted(scores: Mapping[Edge, float], kept: Iterable[Edge]) -> dict[Edge, float]:
    return {edge: scores[edge] for edge in kept if edge in scores}


def _score_of(scores: Mapping[Edge, float], edge: Edge) -> dict[str, float]:
    return {"score": scores[edge]} if edge in scores else {}


def _depth(node: Node) -> tuple[float, int, int]:
    """Sort key of the topological order; a group's keys and values come before the heads that use them."""
    if node.layer is None:
        return (-math.inf if node.kind == "input" else math.inf, 0, 0)
    return (node.layer, ("kv", "head", "mlp").index(node.kind), node.index or 0)


def _check_schema(schema: object, *, where: str) -> None:
    if schema == SCHEMA:
        return
    if isinstance(schema, str) and schema.startswith("wiretrace-circuit/"):
        raise BadCircuit(f"expected schema {SCHEMA!r}; got {schema[:60]!a}, which another version of Wiretrace wrote")
    came = "nothing" if schema is None else f"{str(schema)[:60]!a}"
    raise BadCircuit(f"expected {where} to be {SCHEMA!r}; got {came}: this is not a Wiretrace circuit")


def _check_keys(
    record: dict[str, Any], *, required: tuple[str, ...], optional: tuple[str, ...] = (), owner: str
) -> None:
    missing = [name for name in required if name not in record]
    unknown = [name for name in record if name not in required and name not in optional]
    if missing or unknown:
        said = [f"no {name!r}" for name in missing] + [f"an unknown {name[:40]!a}" for name in unknown[:3]]
        expected = ", ".join([*required, *(f"{name} (optional)" for name in optional)])
        raise BadCircuit(f"{owner} has the keys {expected}; got {' and '.join(said)}")


def _unpacked(value: Any, *, name: str) -> Any:
    """A graph attribute that may be a table or the JSON text of one."""
    if not isinstance(value, str):
        return value
    try:
        return parsed(value)
    except BadCircuit as error:
        raise BadCircuit(f"the graph attribute {name!r} must be a table or its JSON text; {error}") from None


def _check_node(graph: ComponentGraph, name: object, attributes: Mapping[str, Any]) -> None:
    node = Node.parse(cast("str", name))
    graph.check_node(node)
    for attribute, true in (("kind", node.kind), ("layer", node.layer), ("index", node.index)):
        if attributes.get(attribute, true) != true:
            raise BadCircuit(
                f"node {node}: its attribute {attribute!r} says {str(attributes[attribute])[:40]!a}, its name {true!r}"
            )


def _edge_from(graph: ComponentGraph, start: str, end: str, attributes: Mapping[str, Any]) -> Edge | None:
    """The edge that a row of a networkx graph describes; None for a structural one."""
    source, target = Node.parse(start), Node.parse(end)
    structural, port = attributes.get("structural", False), attributes.get("port", "")
    if not isinstance(structural, bool):
        raise BadCircuit(f"edge {source}->{target}: 'structural' must be True or False; got {_kind(structural)}")
    if structural:
        if source.kind != "kv" or target not in graph.query_heads(source):
            raise BadCircuit(f"edge {source}->{target}: only a group and one of its heads are joined structurally")
        return None
    if port not in ("q", "k", "v", "", None):
        raise BadCircuit(f"edge {source}->{target}: 'port' must be q, k, v or empty; got {str(port)[:40]!a}")
    return Edge(source, target, cast("Letter | None", port or None), attributes.get("position"))


def _kind(value: object) -> str:
    """A short word for what came, for messages."""
    shown = ascii(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return shown if len(shown) <= 60 else f"{shown[:57]}..."

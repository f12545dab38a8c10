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

If nodes have scores of their own, they stand before the edges, in order:

      "nodes": [
        {"node": "m0.f7@3", "score": -0.2}
      ],
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, SupportsFloat, TypeVar

from graphs.atomic import read_text, write_text
from graphs.attributes import check_node, edge_attributes, edge_from, edge_key, node_attributes, unpacked
from graphs.components import Architecture, ComponentGraph
from graphs.errors import BadCircuit, BadFile, WiretraceError
from graphs.features import depth, order
from graphs.nodes import LOGITS, Edge, Node
from graphs.provenance import checked, shown, thawed
from graphs.reach import on_a_path
from graphs.strict_json import parsed

if TYPE_CHECKING:
    import networkx as nx

_Part = TypeVar("_Part", Edge, Node)

SCHEMA: Final = "wiretrace-circuit/1"
"""The name and version of the format, in files and in graph attributes."""

_FILE_KEYS: Final = ("schema", "architecture", "provenance", "edges")
_ROWS: Final = {  # a row of the file: what it is called, an example, the keys that it must and may have
    "edge": ("an edge", '{"edge": "m0->logits"}', ("edge",), ("score",)),
    "node": ("a node", '{"node": "m0", "score": -0.2}', ("node", "score"), ()),
}


@dataclass(frozen=True, init=False, repr=False)
class Circuit:
    """Kept edges of a model, with scores and provenance.

    Edges join components (heads, MLPs), or features and error terms of dictionaries; a circuit may have both kinds.

    Args:
        architecture: The shape of the model that the edges belong to.
        edges: The edges kept. Any order and repeats are accepted; stored in `ComponentGraph` order, once each (an edge
            at a position comes after the same edge at every position). Edges between features follow, in the order of
            `graphs.features`: by target, then by source.
        scores: The signed effect of each scored edge, in the unit that the provenance names:
            effect = metric(edge ablated) - metric(clean), so a negative one means that the edge helps, and
            importance = abs(effect). Edges may lack a score, but only kept edges can have one.
        provenance: How the circuit was made, as JSON: model, task, method, options, seed, versions. Tuples become
            lists; two surrogates that form one character become that character. Two keys are known to drawings:
            `labels`, a table from names of nodes to what people call them, and `tokens`, the prompt as a list.
        node_scores: The signed effect of nodes themselves, with the same sign as those of edges. A node with a score is
            in the circuit even if no edge touches it.

    Raises:
        UnknownEdge: If the architecture has no such edge.
        UnknownNode: If a score belongs to a node that it does not have.
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
    node_scores: Mapping[Node, float] = field(default_factory=dict, hash=False)

    def __init__(
        self,
        architecture: Architecture,
        edges: Iterable[Edge],
        scores: Mapping[Edge, SupportsFloat] | None = None,
        provenance: Mapping[str, Any] | None = None,
        node_scores: Mapping[Node, SupportsFloat] | None = None,
    ) -> None:
        if not isinstance(architecture, Architecture):
            raise BadCircuit(f"expected an Architecture; got {type(architecture).__name__}")
        ordered = _in_order(ComponentGraph(architecture), edges)
        kept_scores = _checked_scores({} if scores is None else scores, edges=ordered)
        of_nodes = _checked_node_scores(ComponentGraph(architecture), {} if node_scores is None else node_scores)
        object.__setattr__(self, "architecture", architecture)
        object.__setattr__(self, "edges", ordered)
        object.__setattr__(self, "scores", MappingProxyType(kept_scores))
        object.__setattr__(self, "provenance", MappingProxyType(checked(provenance)))
        object.__setattr__(self, "node_scores", MappingProxyType(of_nodes))

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.architecture, self.edges, dict(self.scores), dict(self.provenance), dict(self.node_scores))
        return Circuit, parts

    @property
    def graph(self) -> ComponentGraph:
        """Every node and edge that a circuit of this architecture can have."""
        return ComponentGraph(self.architecture)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes at either end of an edge and those with a score of their own, in topological order.

        Within a layer: groups, heads, features of the attention output and its error term, the MLP, and so on.
        """
        ends = {end for edge in self.edges for end in (edge.source, edge.target)}
        return tuple(sorted(ends.union(self.node_scores), key=depth))

    @cached_property
    def features(self) -> tuple[Node, ...]:
        """Those nodes that are features or error terms of dictionaries."""
        return tuple(node for node in self.nodes if node.site is not None)

    @property
    def n_edges(self) -> int:
        """How many edges are kept; an edge at two positions counts twice."""
        return len(self.edges)

    @property
    def n_possible(self) -> int:
        """How many edges the model's components have, positions not counted.

        Edges between features are not among them: how many there could be depends on the sizes of dictionaries, which
        an architecture does not know.
        """
        return self.graph.n_edges

    def prune(self) -> Circuit:
        """This circuit without its dead ends: only edges on a path from the input to the logits remain.

        A path goes through a head if it enters at any of its ports; keys and values of a group lead to each of the
        group's heads. Positions are followed: a head's query and an MLP carry what they read at one position to the
        same position, keys and values carry it to that position and all later ones (`graphs.reach`). A feature or
        error term that no edge of the circuit leads to is a beginning like the input: it is computed from the whole
        model before it, dictionaries or not, so only features that do not lead to the logits are dead ends. Scores of
        nodes stay where an edge of the node stays.

        Cost: linear in the number of edges.
        """
        kept = on_a_path(self)
        ends = {end for edge in kept for end in (edge.source, edge.target)}
        of_nodes = {node: score for node, score in self.node_scores.items() if node in ends}
        return replace(self, edges=kept, scores=_restricted(self.scores, kept), node_scores=of_nodes)

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
            schema=SCHEMA, architecture=self.architecture.to_dict(), provenance=thawed(self.provenance)
        )
        for node in self.nodes:
            g.add_node(str(node), **node_attributes(node, self.node_scores.get(node)))
        for edge in self.edges:
            ends = str(edge.source), str(edge.target)
            g.add_edge(*ends, key=edge_key(edge), **edge_attributes(edge, self.scores.get(edge)))
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
        without nested attributes hold them. Structural edges and nodes without edges and scores are checked, then left
        out.

        Raises:
            BadCircuit: If an attribute is missing, wrong or contradicts a name, or an edge comes twice.
            BadName, UnknownNode, UnknownEdge: If a name is not one or not one of this architecture's.
        """
        if not g.is_directed():
            raise BadCircuit("a circuit is a directed graph; got an undirected one, whose edges have no source")
        _check_schema(g.graph.get("schema"), where="the graph attribute 'schema'")
        if "architecture" not in g.graph:
            raise BadCircuit("the graph attribute 'architecture' is missing, so no node can be checked")
        shape = Architecture.from_dict(unpacked(g.graph["architecture"], name="architecture"))
        graph = ComponentGraph(shape)
        found = {check_node(graph, name, attributes): attributes for name, attributes in g.nodes(data=True)}
        edges: dict[Edge, Any] = {}
        for start, end, attributes in g.edges(data=True):
            edge = edge_from(graph, start, end, attributes)
            if edge in edges:
                raise BadCircuit(f"the edge {edge} comes twice; every edge can be in a circuit once")
            if edge is not None:
                edges[edge] = attributes.get("score")
        scores = {edge: score for edge, score in edges.items() if score is not None}
        of_nodes = {node: row["score"] for node, row in found.items() if row.get("score") is not None}
        return Circuit(shape, edges, scores, unpacked(g.graph.get("provenance", {}), name="provenance"), of_nodes)

    def to_json(self) -> str:
        """The circuit as JSON text (see the head of this module); pure ASCII, the same bytes for equal circuits."""
        header = {
            "schema": SCHEMA,
            "architecture": self.architecture.to_dict(),
            "provenance": dict(self.provenance),
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}," for key, value in header.items()]
        if self.node_scores:
            nodes = [{"node": str(node), "score": score} for node, score in self.node_scores.items()]
            lines.append(_listed("nodes", nodes, ","))
        rows = [{"edge": str(edge)} | _score_of(self.scores, edge) for edge in self.edges]
        return "\n".join(["{", *lines, _listed("edges", rows, ""), "}", ""])

    @staticmethod
    def from_json(text: str) -> Circuit:
        """The inverse of `to_json`.

        Raises:
            BadCircuit: If the text is not JSON of this schema, or an edge comes twice.
            BadName, UnknownEdge: If an edge is not one or not one of this architecture's.
        """
        record = parsed(text)
        if not isinstance(record, dict):
            raise BadCircuit(f"expected a JSON object with the keys {', '.join(_FILE_KEYS)}; got {shown(record)}")
        _check_schema(record.get("schema"), where="the key 'schema'")
        _check_keys(record, required=_FILE_KEYS, optional=("nodes",), owner="a circuit")
        scores = {edge: row.get("score") for edge, row in _rows(record["edges"], "edge", Edge.parse).items()}
        nodes = _rows(record.get("nodes", []), "node", Node.parse)
        known = {edge: score for edge, score in scores.items() if score is not None}
        of_nodes = {node: row["score"] for node, row in nodes.items()}
        shape = Architecture.from_dict(record["architecture"])
        return Circuit(shape, scores, known, record["provenance"], of_nodes)

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
        what = f"{self.size} ({self.graph})"
        return f"{made}: {what}" if made else what

    @property
    def size(self) -> str:
        """The circuit's size in words; of edges between features no total, since there is none.

        Example:
            >>> edges = [Edge.parse("m0.f7->logits"), Edge.parse("m0.err->logits")]
            >>> Circuit(Architecture(1, 1), edges).size
            '2 edges of 1 feature and 1 error term'
        """
        of_features = sum(edge.of_features for edge in self.edges)
        components = len(self.nodes) - len(self.features)
        said = []
        if of_features < self.n_edges or components > (LOGITS in self.nodes) or not self.features:
            said.append(f"{self.n_edges - of_features:,} of {self.n_possible:,} edges between {components:,} nodes")
        if self.features:
            errors = sum(node.is_error for node in self.features)
            parts = ((len(self.features) - errors, "feature"), (errors, "error term"))
            counts = [_counted(number, noun) for number, noun in parts if number]
            said.append(f"{_counted(of_features, 'edge')} of {' and '.join(counts)}")
        return "; ".join(said)

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
    of_features: set[Edge] = set()
    for edge in edges:
        if not isinstance(edge, Edge):
            raise BadCircuit(f"expected an Edge; got {shown(edge)} (Edge.parse reads a name)")
        if edge.of_features:
            graph.check_edge(edge)
            of_features.add(edge)
        else:
            numbered[edge] = (graph.number(edge), -1 if edge.position is None else edge.position)
    return (*sorted(numbered, key=numbered.__getitem__), *sorted(of_features, key=order))


def _checked_scores(scores: Mapping[Edge, SupportsFloat], *, edges: tuple[Edge, ...]) -> dict[Edge, float]:
    """Finite floats in the order of the edges."""
    strangers = scores.keys() - set(edges)
    if strangers:
        first = min(map(str, strangers))
        raise BadCircuit(f"{len(strangers):,} scores belong to edges that are not in the circuit, such as {first}")
    return {edge: _finite(scores[edge], owner=edge) for edge in edges if edge in scores}


def _checked_node_scores(graph: ComponentGraph, scores: Mapping[Node, SupportsFloat]) -> dict[Node, float]:
    """Finite floats in the order of the nodes."""
    for node in scores:
        if not isinstance(node, Node):
            raise BadCircuit(f"node_scores belong to Nodes; got one of {shown(node)} (Node.parse reads a name)")
        graph.check_node(node)
    return {node: _finite(scores[node], owner=node) for node in sorted(scores, key=depth)}


def _finite(value: SupportsFloat, *, owner: Edge | Node) -> float:
    if isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat):
        raise BadCircuit(f"the score of {owner} must be a number; got {shown(value)}")
    try:
        number = float(value)
    except (ValueError, OverflowError, TypeError) as error:
        raise BadCircuit(f"the score of {owner} must be a number; {error}") from error
    if not math.isfinite(number):
        raise BadCircuit(f"the score of {owner} must be finite; got {number}, so the run that made it went wrong")
    return number


def _restricted(scores: Mapping[Edge, float], kept: Iterable[Edge]) -> dict[Edge, float]:
    return {edge: scores[edge] for edge in kept if edge in scores}


def _score_of(scores: Mapping[Edge, float], edge: Edge) -> dict[str, float]:
    return {"score": scores[edge]} if edge in scores else {}


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(name: str, rows: list[dict[str, Any]], end: str) -> str:
    """A list of the file, a row on a line."""
    text = ",\n    ".join(json.dumps(row, allow_nan=False) for row in rows)
    return f'  "{name}": [\n    {text}\n  ]{end}' if rows else f'  "{name}": []{end}'


def _rows(found: Any, noun: str, parse: Callable[[str], _Part]) -> dict[_Part, dict[str, Any]]:
    """The rows of a list of the file, by the edges or nodes that they are of."""
    if not isinstance(found, list):
        raise BadCircuit(f"'{noun}s' must be a list; got {shown(found)}")
    owner, example, required, optional = _ROWS[noun]
    rows: dict[_Part, dict[str, Any]] = {}
    for row in found:
        if not isinstance(row, dict):
            raise BadCircuit(f"{owner} must be an object such as {example}; got {shown(row)}")
        _check_keys(row, required=required, optional=optional, owner=owner)
        part = parse(row[noun])
        if part in rows:
            raise BadCircuit(f"the {noun} {part} comes twice; every {noun} can be in a circuit once")
        rows[part] = row
    return rows


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

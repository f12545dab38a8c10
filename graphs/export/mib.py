"""The JSON graph file of EAP-IG (version 2), which the Mechanistic Interpretability Benchmark (MIB) evaluates.

    {
      "cfg": {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": false, "d_model": 768},
      "nodes": {"input": {"in_graph": true, "score": -0.2}, "a0.h0": {"in_graph": false}, ..., "logits": {...}},
      "edges": {"input->a0.h0<q>": {"score": -0.01, "in_graph": true}, ...}
    }

Names of nodes and edges are the same as here. What differs:

* Theirs has a score for every edge, in the circuit or not; one without is written as 0 and marked ``"scored": false``,
  which their reader passes over. A node without a score lacks the key or has NaN; an edge must have a finite one.
* Only edges decide what a circuit is: they recompute the flags of nodes from the edges before they evaluate.
* Every head has keys and values of its own. A grouped model's edge into a group is written as one edge per head of
  the group, with an equal share of its score; read back, heads of a group must agree, and their scores are added up.
  That loses nothing of what this project writes; a file that keeps the key of some heads of a group only is refused.
* There are no positions, no features of dictionaries and no attention-only models; such circuits are refused. So are
  files that keep some of a node's dimensions only (``neurons``); scores of dimensions are passed over.
* ``cfg`` does not say how keys are grouped: that, the provenance and which scores of nodes are the circuit's own stand
  under ``"wiretrace"``, which they pass over.

The sign. Their score is (corrupt - clean) · gradient of the metric: the metric's predicted change when the edge is
corrupted, as an effect here. But their scripts hand the *loss* to the method (minus the logit difference), so in files
made that way positive scores help; ``of_loss=True`` reads and writes those. Where their metric is a mean over prompts,
their scores are moreover divided by the batch's size once too often, which no reader can undo.

Source: hannamw/EAP-IG, `Graph.to_json` and `Graph.from_json`; arXiv 2504.13151 (MIB). Only the layout is theirs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, SupportsFloat

from graphs.atomic import read_text, write_text
from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.errors import BadCircuit, BadFile, WiretraceError
from graphs.nodes import LOGITS, Edge, Node

OURS = "wiretrace"
"""The key under which this project adds what the format has no place for."""


@dataclass(frozen=True)
class Scored:
    """What one file holds.

    Attributes:
        circuit: the edges kept, with the scores that they have.
        edges: the score of every edge that has one, kept or not, as an effect (negative helps).
        nodes: the score of every node that has one, likewise.
        d_model: width of the residual stream; None if the file does not say.
    """

    circuit: Circuit
    edges: Mapping[Edge, float] = field(default_factory=dict)
    nodes: Mapping[Node, float] = field(default_factory=dict)
    d_model: int | None = None


class Row(NamedTuple):
    """What a file says of one edge between single heads; the score is None where there is none."""

    score: float | None
    kept: bool


def write(
    circuit: Circuit,
    path: str | os.PathLike[str],
    *,
    d_model: int,
    edges: Mapping[Edge, SupportsFloat] | None = None,
    nodes: Mapping[Node, SupportsFloat] | None = None,
    of_loss: bool = False,
) -> None:
    """Write a circuit, and scores of edges and nodes outside it, as an EAP-IG / MIB graph file.

    Args:
        circuit: What is in the graph. For importances alone, a circuit without edges.
        path: Of any name; theirs end in .json.
        d_model: Width of the model's residual stream, which their reader needs.
        edges: Effects of any edges; for those of the circuit, they come before the circuit's own scores.
        nodes: Effects of any nodes that write.
        of_loss: Write minus the effects, as their scripts do, so that positive scores help.

    Raises:
        BadCircuit: The format cannot hold it: positions, an attention-only model, scores that are not finite.
        UnknownEdge, UnknownNode: The architecture has no such edge or node.
        WriteFailed: The file cannot be written; whatever stood there is untouched.

    Example:
        >>> from graphs import Architecture, Circuit, Edge
        >>> edge = Edge.parse("m0->logits")
        >>> circuit = Circuit(Architecture(1, 2), [edge], {edge: -0.5})
        >>> write(circuit, folder / "m.json", d_model=16)
        >>> read(folder / "m.json").circuit == circuit
        True
    """
    scored = checked(circuit, d_model=d_model, edges=edges, nodes=nodes)
    write_text(path, dumps(scored, of_loss=of_loss))


def read(path: str | os.PathLike[str], *, n_kv_heads: int | None = None, of_loss: bool = False) -> Scored:
    """Read a graph file that EAP-IG, MIB or `write` wrote.

    Args:
        path: The file. One of more than 100 MB is refused.
        n_kv_heads: Key/value groups per layer; by default as many as the file says, or one per head if it does not.
        of_loss: The scores are of a loss, so that positive ones help; they change their sign.

    Raises:
        BadFile: It cannot be read, lacks a key, has edges or nodes that its architecture does not have, scores of
            edges that are not finite, or keeps what circuits here cannot.
    """
    text = read_text(path)
    try:
        record = json.loads(text, object_pairs_hook=_once)
        return _from_record(record, n_kv_heads=n_kv_heads, sign=-1.0 if of_loss else 1.0)
    except RecursionError:
        raise BadFile(f"{os.fspath(path)} is nested too deep for a graph file; is it the right file?") from None
    except (WiretraceError, ValueError) as error:
        raise BadFile(f"{os.fspath(path)} is not an EAP-IG graph file that can be read: {error}") from error


def checked(
    circuit: Circuit,
    *,
    d_model: int,
    edges: Mapping[Edge, SupportsFloat] | None = None,
    nodes: Mapping[Node, SupportsFloat] | None = None,
) -> Scored:
    """What a file of this format can hold of a circuit and scores.

    Raises:
        BadCircuit, UnknownEdge, UnknownNode: See `write`.
    """
    shape = circuit.architecture
    if not shape.has_mlp:
        raise BadCircuit("the EAP-IG format has MLPs in every layer; got an attention-only model. Save it as .json.")
    if circuit.features:
        raise BadCircuit(
            f"the EAP-IG format has heads and MLPs, no features of dictionaries; got {circuit.features[0]}. Save the "
            f"circuit as .json."
        )
    placed = next((edge for edge in circuit.edges if edge.position is not None), None)
    if placed is not None:
        raise BadCircuit(f"the EAP-IG format has no positions; got the edge {placed}. Save the circuit as .json.")
    if isinstance(d_model, bool) or not isinstance(d_model, int) or d_model < 1:
        raise BadCircuit(f"d_model must be the width of the residual stream, a whole number; got {d_model!r}")
    # A circuit of all scored edges checks names and numbers as any circuit does.
    every = Circuit(shape, edges or (), edges).scores if edges else {}
    graph = ComponentGraph(shape)
    values: dict[Node, float] = {}
    for node, score in {**circuit.node_scores, **(nodes or {})}.items():
        graph.check_node(node)
        if node not in graph.source_index:
            raise BadCircuit(f"only nodes that write have scores; got one of {node}")
        values[node] = _finite(score, owner=str(node))
    return Scored(circuit, {**circuit.scores, **every}, values, d_model)


def dumps(scored: Scored, *, of_loss: bool = False) -> str:
    """The text of a graph file."""
    shape, sign = scored.circuit.architecture, -1.0 if of_loss else 1.0
    flags = node_flags(scored.circuit)
    nodes = {
        str(node): {"in_graph": flags[node]} | ({"score": sign * scored.nodes[node]} if node in scored.nodes else {})
        for node in flags
    }
    edges = {
        str(edge): {"score": 0.0 if row.score is None else sign * row.score, "in_graph": row.kept}
        | ({"scored": False} if row.score is None else {})
        for edge, row in ungrouped(scored)
    }
    extra: dict[str, Any] = {"n_kv_heads": shape.n_kv_heads, "provenance": dict(scored.circuit.provenance)}
    if scored.circuit.node_scores:
        extra["nodes"] = [str(node) for node in scored.circuit.node_scores]
    record = {"cfg": config(scored), "nodes": nodes, "edges": edges, OURS: extra}
    return json.dumps(record, allow_nan=False) + "\n"


def config(scored: Scored) -> dict[str, Any]:
    """The ``cfg`` of a graph file."""
    shape = scored.circuit.architecture
    return {
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "parallel_attn_mlp": shape.parallel,
        "d_model": scored.d_model,
    }


def node_flags(circuit: Circuit) -> dict[Node, bool]:
    """For every node of theirs whether it is in the graph: it is read from, and it reads or is the input."""
    graph = circuit.graph
    feeding = {edge.source for edge in circuit.edges}
    fed = {writer for edge in circuit.edges for writer in _writers(graph, edge.target)}
    flags = {node: node in feeding and (node in fed or node.kind == "input") for node in graph.sources}
    return flags | {LOGITS: True}


def ungrouped(scored: Scored) -> Iterator[tuple[Edge, Row]]:
    """Every edge between single heads with its score and whether it is kept, in the order of `ComponentGraph`."""
    circuit = scored.circuit
    graph, kept = circuit.graph, set(circuit.edges)
    for edge in _single_heads(circuit.architecture).edges:
        target = edge.target if edge.port == "q" else graph.key_value_node(edge.target)
        own = Edge(edge.source, target, edge.port)
        share = circuit.architecture.heads_per_group if target.kind == "kv" else 1
        score = scored.edges.get(own)
        yield edge, Row(None if score is None else score / share, own in kept)


def regrouped(
    rows: Mapping[Edge, Row], nodes: Mapping[Node, float], *, cfg: Any, extra: Any, n_kv_heads: int | None
) -> Scored:
    """What rows of edges between single heads say, for a model of the given grouping.

    Args:
        rows: Any of the edges; those not named are not kept and have no score.
        nodes: Scores of nodes.
        cfg: Of the file.
        extra: What this project added to the file, if it did.
        n_kv_heads: Overrides what ``extra`` says.

    Raises:
        BadArchitecture, BadCircuit, UnknownEdge, UnknownNode: The parts do not make a circuit.
    """
    extra = extra if isinstance(extra, Mapping) else {}
    shape = architecture(cfg, n_kv_heads=extra.get("n_kv_heads") if n_kv_heads is None else n_kv_heads)
    graph, single = ComponentGraph(shape), _single_heads(shape)
    members: dict[Edge, list[Row]] = {}
    for edge, row in rows.items():
        single.number(edge)  # raises for edges that are none, those between features among them
        target = graph.key_value_node(edge.target) if edge.port in ("k", "v") else edge.target
        members.setdefault(Edge(edge.source, target, edge.port), []).append(row)
    kept: list[Edge] = []
    scores: dict[Edge, float] = {}
    for edge, group in members.items():
        expected = shape.heads_per_group if edge.target.kind == "kv" else 1
        if len({row.kept for row in group}) + (len(group) < expected and group[0].kept) > 1:
            raise BadCircuit(
                f"it keeps {edge.source}->…<{edge.port}> for some heads of {edge.target} only; heads of a group share "
                "their keys and values here, so the edge is kept for all of them or none"
            )
        if group[0].kept:
            kept.append(edge)
        known = [row.score for row in group if row.score is not None]
        if known:
            scores[edge] = _finite(sum(known), owner=str(edge))
    for node in nodes:
        if node not in graph.source_index:
            graph.check_node(node)
            raise BadCircuit(f"only nodes that write have scores; it has one of {node}")
    provenance = extra.get("provenance", {"method": "read from an EAP-IG graph file"})
    own = extra.get("nodes", [])
    if not isinstance(own, list) or not {str(node) for node in nodes}.issuperset(map(str, own)):
        raise BadCircuit(f"'nodes' under {OURS!r} must list nodes that have a score in the file")
    of_nodes = {node: score for node, score in nodes.items() if str(node) in own}
    circuit = Circuit(shape, kept, {edge: scores[edge] for edge in kept if edge in scores}, provenance, of_nodes)
    ordered = {edge: scores[edge] for edge in sorted(scores, key=graph.number)}
    return Scored(circuit, ordered, dict(nodes), cfg.get("d_model"))


def architecture(cfg: Any, *, n_kv_heads: int | None = None) -> Architecture:
    """The shape that a file's ``cfg`` names.

    Raises:
        BadCircuit: A key is missing.
        BadArchitecture: A size makes no sense.
    """
    if not isinstance(cfg, Mapping):
        raise BadCircuit(f"'cfg' must be a table with n_layers and n_heads; got {type(cfg).__name__}")
    missing = [name for name in ("n_layers", "n_heads") if name not in cfg]
    if missing:
        raise BadCircuit(f"'cfg' must have n_layers and n_heads; it lacks {' and '.join(missing)}")
    n_layers, n_heads = cfg["n_layers"], cfg["n_heads"]
    groups = n_heads if n_kv_heads is None else n_kv_heads
    return Architecture(n_layers, n_heads, groups, parallel=cfg.get("parallel_attn_mlp", False))


def n_sources(shape: Architecture) -> int:
    """How many nodes write, without making them."""
    return 1 + shape.n_layers * (shape.n_heads + 1)


def _single_heads(shape: Architecture) -> ComponentGraph:
    """The graph of the same model with keys and values for every head."""
    return ComponentGraph(Architecture(shape.n_layers, shape.n_heads, shape.n_heads, True, shape.parallel))


def _writers(graph: ComponentGraph, target: Node) -> tuple[Node, ...]:
    return graph.query_heads(target) if target.kind == "kv" else (target,)


def _from_record(record: Any, *, n_kv_heads: int | None, sign: float) -> Scored:
    for key in ("cfg", "nodes", "edges"):
        if not isinstance(record, dict) or not isinstance(record.get(key), dict):
            raise BadCircuit("it must be an object with the objects 'cfg', 'nodes' and 'edges'; look for a key " + key)
    rows: dict[Edge, Row] = {}
    for name, entry in record["edges"].items():
        missing = [key for key in ("score", "in_graph") if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise BadCircuit(f"the edge {name[:60]!a} lacks {' and '.join(missing)}")
        score = None if entry.get("scored") is False else sign * _finite(entry["score"], owner=name)
        rows[Edge.parse(name)] = Row(score, _flag(entry["in_graph"], owner=name))
    nodes: dict[Node, float] = {}
    for name, entry in record["nodes"].items():
        node = Node.parse(name)
        if not isinstance(entry, dict) or "in_graph" not in entry:
            raise BadCircuit(f"the node {name[:60]!a} lacks in_graph")
        _flag(entry["in_graph"], owner=name)
        if not all(entry.get("neurons", ())):
            raise BadCircuit(f"it keeps some dimensions of {name} only; circuits here hold whole nodes")
        score = entry.get("score")
        if score is not None and node != LOGITS and not (isinstance(score, float) and math.isnan(score)):
            nodes[node] = sign * _finite(score, owner=name)
    shape = architecture(record["cfg"])
    count = n_sources(shape) + 1
    if len(record["nodes"]) != count:  # before a graph of absurd size is built
        raise BadCircuit(f"it names {len(record['nodes']):,} nodes, and a model of its cfg has {count:,}")
    graph = ComponentGraph(shape)
    for name in record["nodes"]:
        graph.check_node(Node.parse(name))
    return regrouped(rows, nodes, cfg=record["cfg"], extra=record.get(OURS), n_kv_heads=n_kv_heads)


def _flag(value: Any, *, owner: str) -> bool:
    if not isinstance(value, bool):
        raise BadCircuit(f"in_graph of {owner[:60]!a} must be true or false; got {str(value)[:40]!a}")
    return value


def _finite(value: Any, *, owner: str) -> float:
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadCircuit(f"the score of {owner[:60]} must be a finite number; got {str(value)[:40]!a}")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise BadCircuit("a key comes twice in one object, so one of the two would be lost")
    return record

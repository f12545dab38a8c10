"""The .pt graph file of EAP-IG (version 2) and MIB, without running what is in it, and scores from either format.

A .pt file is a table saved by torch: ``cfg`` as in `graphs.export.mib`, ``src_nodes`` and ``dst_nodes`` (names),
``edges_scores`` and ``edges_in_graph`` ``[source, target]``, ``nodes_in_graph`` ``[source]``, and where there are node
scores ``nodes_scores`` ``[source]`` with NaN for a node that has none. Sources and targets stand in the order of
`ComponentGraph`, that of a model with keys and values for every head; entries of the matrices that are no edges are
passed over.

torch saves with pickle, which can run any program when it is read. `read_pt` lets torch rebuild tensors and plain
values alone; a file that asks for more is refused, and nothing of it is run.

What the two formats cannot hold, and the sign of scores, is said in `graphs.export.mib`.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import torch
from torch import Tensor

from graphs.atomic import LARGEST_FILE, write_bytes
from graphs.circuit import Circuit
from graphs.components import ComponentGraph
from graphs.errors import BadCircuit, BadFile, WiretraceError
from graphs.export import mib
from graphs.export.mib import OURS, Row, Scored
from graphs.nodes import Edge, Node
from patching.errors import InvalidOption
from patching.scores import Scores

KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")


def write_pt(
    circuit: Circuit,
    path: str | os.PathLike[str],
    *,
    d_model: int,
    edges: Mapping[Edge, SupportsFloat] | None = None,
    nodes: Mapping[Node, SupportsFloat] | None = None,
    of_loss: bool = False,
) -> None:
    """Write a circuit, and scores of edges and nodes outside it, as an EAP-IG / MIB .pt file.

    Scores are stored in float64; their reader makes float32 of them. An edge without a score has 0 there.

    Args:
        circuit: What is in the graph. For importances alone, a circuit without edges.
        path: Of any name; theirs end in .pt.
        d_model: Width of the model's residual stream.
        edges: Effects of any edges; for those of the circuit, they come before the circuit's own scores.
        nodes: Effects of any nodes that write.
        of_loss: Write minus the effects, as their scripts do, so that positive scores help.

    Raises:
        BadCircuit: The format cannot hold it: positions, an attention-only model, scores that are not finite.
        UnknownEdge, UnknownNode: The architecture has no such edge or node.
        WriteFailed: The file cannot be written; whatever stood there is untouched.

    Source: hannamw/EAP-IG, `Graph.to_pt` (arXiv 2504.13151). Theirs has no ``wiretrace`` key, which holds the
    provenance, the grouping and which edges have no score.

    Example:
        >>> from graphs import Architecture, Circuit, Edge
        >>> edge = Edge.parse("m0->logits")
        >>> circuit = Circuit(Architecture(1, 2), [edge], {edge: -0.5})
        >>> write_pt(circuit, "circuit.pt", d_model=16)
        >>> read_pt("circuit.pt").circuit == circuit
        True
    """
    scored = mib.checked(circuit, d_model=d_model, edges=edges, nodes=nodes)
    sign = -1.0 if of_loss else 1.0
    rows = list(mib.ungrouped(scored))
    graph = ComponentGraph(mib.architecture(mib.config(scored)))
    places = _places(graph, [edge for edge, _ in rows])
    shape = len(graph.sources), len(graph.targets)
    flags = mib.node_flags(circuit)
    extra = {
        "n_kv_heads": circuit.architecture.n_kv_heads,
        "provenance": dict(circuit.provenance),
        "scored": _matrix(shape, places, [row.score is not None for _, row in rows]),
    }
    record: dict[str, Any] = {
        "cfg": mib.config(scored),
        "src_nodes": [str(node) for node in graph.sources],
        "dst_nodes": [str(port) for port in graph.targets],
        "edges_scores": _matrix(shape, places, [sign * (row.score or 0.0) for _, row in rows]),
        "edges_in_graph": _matrix(shape, places, [row.kept for _, row in rows]),
        "nodes_in_graph": torch.tensor([flags[node] for node in graph.sources]),
        OURS: extra,
    }
    if scored.nodes:
        values = [sign * scored.nodes.get(node, math.nan) for node in graph.sources]
        record["nodes_scores"] = torch.tensor(values, dtype=torch.float64)
    buffer = io.BytesIO()
    torch.save(record, buffer)
    write_bytes(path, buffer.getvalue())


def read_pt(path: str | os.PathLike[str], *, n_kv_heads: int | None = None, of_loss: bool = False) -> Scored:
    """Read a .pt file that EAP-IG, MIB or `write_pt` wrote; nothing in it is run.

    Args:
        path: The file. One of more than 100 MB is refused.
        n_kv_heads: Key/value groups per layer; by default as many as the file says, or one per head if it does not.
        of_loss: The scores are of a loss, so that positive ones help; they change their sign.

    Raises:
        BadFile: It cannot be read, would run code, lacks a key, is of another architecture than it says, has scores
            that are not finite, or keeps what circuits here cannot.
    """
    name = os.fspath(path)
    record = _loaded(Path(path))
    try:
        return _from_record(record, n_kv_heads=n_kv_heads, sign=-1.0 if of_loss else 1.0)
    except WiretraceError as error:
        raise BadFile(f"{name} is not an EAP-IG graph file that can be read: {error}") from error


def scores_from(scored: Scored, *, level: Literal["edge", "node"] = "edge") -> Scores:
    """Scores as this project's methods give them, from either format.

    Args:
        scored: What `read_pt` or `graphs.export.mib.read` read.
        level: Of edges, or of nodes.

    Returns:
        Effects (negative helps) in the order of the architecture's edges or sources, in the unit of the metric that
        the file's scores are of; files of EAP-IG do not name it.

    Raises:
        InvalidOption: The file has no score for some of them.

    Example:
        >>> from graphs import Architecture, Circuit, ComponentGraph
        >>> shape = Architecture(1, 2)
        >>> effects = {edge: -float(number) for number, edge in enumerate(ComponentGraph(shape).edges)}
        >>> write_pt(Circuit(shape, []), "scores.pt", d_model=16, edges=effects)
        >>> scores = scores_from(read_pt("scores.pt"))
        >>> scores["a0.h1->m0"]
        -8.0
    """
    if level not in ("edge", "node"):
        raise InvalidOption(f"expected the level edge or node, which these files have; got {level!r}.")
    circuit = scored.circuit
    units = circuit.graph.edges if level == "edge" else circuit.graph.sources
    known: Mapping[Any, float] = scored.edges if level == "edge" else scored.nodes
    missing = [unit for unit in units if unit not in known]
    if missing:
        raise InvalidOption(
            f"expected a score for every {level}; {len(missing):,} of {len(units):,} have none, such as {missing[0]}. "
            "A circuit's own scores are in its .scores."
        )
    values = torch.tensor([known[unit] for unit in units], dtype=torch.float64)
    return Scores(circuit.architecture, level, values, provenance=dict(circuit.provenance))


def _places(graph: ComponentGraph, edges: list[Edge]) -> Tensor:
    """Row and column of each edge in the matrices."""
    pairs = [(graph.source_index[edge.source], graph.target_index[edge.reads]) for edge in edges]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T


def _matrix(shape: tuple[int, int], places: Tensor, values: list[Any]) -> Tensor:
    column = torch.tensor(values, dtype=torch.bool if isinstance(values[0], bool) else torch.float64)
    matrix = torch.zeros(shape, dtype=column.dtype)
    matrix[places[0], places[1]] = column
    return matrix


def _loaded(path: Path) -> dict[str, Any]:
    """The table in a file.

    Raises:
        BadFile: There is none, or torch would have to run code to read it.
    """
    try:
        if not path.is_file():
            raise BadFile(f"there is no file {path}; check the path")
        if path.stat().st_size > LARGEST_FILE:
            raise BadFile(
                f"{path} is larger than {LARGEST_FILE / 1e6:,.0f} MB, the most that is read; is it the right file?"
            )
        record = torch.load(path, map_location="cpu", weights_only=True)
    except BadFile:
        raise
    except Exception as error:  # a damaged archive raises many kinds
        said = (str(error).splitlines() or [""])[0][:200]
        if type(error).__name__ == "UnpicklingError":
            raise BadFile(
                f"{path} holds more than tensors and plain values, or is no file of torch.save. Reading it could run "
                f"code, so it is refused; if you trust its author, ask for the JSON form. ({said})"
            ) from error
        raise BadFile(f"{path} cannot be read as a file of torch.save: {type(error).__name__}: {said}") from error
    if not isinstance(record, dict):
        raise BadFile(f"{path} must hold a table with the keys {', '.join(KEYS)}; it holds a {type(record).__name__}")
    return record


def _from_record(record: dict[str, Any], *, n_kv_heads: int | None, sign: float) -> Scored:
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise BadCircuit(f"it must have the keys {', '.join(KEYS)}; it lacks {', '.join(missing)}")
    shape = mib.architecture(record["cfg"])
    size = mib.n_sources(shape), shape.n_layers * (3 * shape.n_heads + 1) + 1
    values = _tensor(record, "edges_scores", size)
    kept = _tensor(record, "edges_in_graph", size) != 0
    _tensor(record, "nodes_in_graph", size[:1])
    graph = ComponentGraph(shape)  # only now, when its size is known to be that of the file
    for key, names in (("src_nodes", graph.sources), ("dst_nodes", graph.targets)):
        if not isinstance(record[key], list) or record[key] != [str(name) for name in names]:
            raise BadCircuit(f"{key} must be {names[0]}, {names[1]}, …, {names[-1]}, as its cfg says; got other names")
    if record.get("neurons_in_graph") is not None and not bool(torch.as_tensor(record["neurons_in_graph"]).all()):
        raise BadCircuit("it keeps some dimensions of nodes only; circuits here hold whole nodes")
    extra = record.get(OURS)
    known = torch.ones(size, dtype=torch.bool)
    if isinstance(extra, Mapping) and "scored" in extra:
        known = _tensor(extra, "scored", size) != 0
    edges = graph.edges
    rows, columns = _places(graph, list(edges))
    if not bool(torch.isfinite(values[rows, columns][known[rows, columns]]).all()):
        raise BadCircuit("the scores of edges must be finite; some are not, so the run that made them went wrong")
    columns_of = (values[rows, columns].tolist(), known[rows, columns].tolist(), kept[rows, columns].tolist())
    table = {
        edge: Row(sign * score if has else None, keeps)
        for edge, score, has, keeps in zip(edges, *columns_of, strict=True)
    }
    nodes: dict[Node, float] = {}
    if record.get("nodes_scores") is not None:
        scores = _tensor(record, "nodes_scores", size[:1])
        if bool(torch.isinf(scores).any()):
            raise BadCircuit(
                "the scores of nodes must be finite or NaN, which says that there is none; some are infinite"
            )
        nodes = {
            node: sign * score for node, score in zip(graph.sources, scores.tolist(), strict=True) if score == score
        }
    return mib.regrouped(table, nodes, cfg=record["cfg"], extra=extra, n_kv_heads=n_kv_heads)


def _tensor(record: Mapping[str, Any], key: str, size: tuple[int, ...]) -> Tensor:
    value = record[key]
    if not isinstance(value, Tensor) or tuple(value.shape) != size:
        came = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise BadCircuit(f"{key} must be a tensor of shape {list(size)}, as its cfg says; got {came}")
    return value.double() if value.dtype != torch.bool else value

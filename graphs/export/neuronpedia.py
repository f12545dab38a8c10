"""Attribution graph JSON, as circuit-tracer writes it and Neuronpedia and its local server show it.

    {"metadata": {"slug": "circuit", "scan": "gpt2", "transcoder_list": [], "prompt_tokens": [...], "prompt": ...},
     "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
     "nodes": [{"node_id": "a0.h1", "feature": 1, "layer": "0", "ctx_idx": 0, "feature_type": "attention head", ...}],
     "links": [{"source": "input", "target": "a0.h1", "weight": 0.3, "port": "q", "structural": false, "score": -0.3}],
     "wiretrace": {"schema": "wiretrace-circuit/1", "architecture": {...}, "provenance": {...}}}

Theirs is a graph of dictionary features, each at one token. So features and error terms stand there as they do here:

* A feature's `node_id` is `LAYER_NUMBER_COLUMN` as theirs; at other sites than the MLP's output the layer is written
  a3, r3 or e, since theirs has one dictionary in a layer. `feature` pairs layer and number (Cantor).
* An error term's is `ERR_LAYER_COLUMN` with the same layers. Theirs is `0_LAYER_COLUMN`, which is also the name of a
  feature of layer 0, so that links of one may be drawn at the other (circuit-tracer, issue 78).
* One without a position stands in the last column, which its id calls `all`.
* `clerp`, the label, is what `graphs.labels` finds, or the node's name.

A circuit of heads and MLPs holds them mostly at all positions. So:

* A node is a head, group, MLP, the embeddings or the logits as a whole, all in the column of the last token. Its
  `clerp` is its name. It has no activation, no influence, and no feature page.
* `layer` is the block as text, "E" for the embeddings, and one more than the number of blocks for the logits, as there.
  `feature` pairs layer and number, heads counted first, then the MLP, then groups.
* `weight` is minus the score, so that positive supports, as there; but there it is a direct effect on the target, here
  how much the metric falls when the edge is ablated. Edges without a score weigh 0, or 1 if no edge has one. A group's
  edges to its heads weigh 0.
* Ports and positions of edges are additional keys of links, scores of nodes and names of features of nodes; those
  programs pass over them. Parallel links of one pair of nodes may be drawn as one.

By default everything round-trips from `write` to `read`, by the additional keys. With ``strict=True`` ids are of their
form (`LAYER_NUMBER_COLUMN`, `E_0_COLUMN`, `0_LAYER_COLUMN` for error terms), types of nodes are theirs ("cross layer
transcoder" for heads and MLPs), a pair of nodes has one link, whose weight is the sum, and nothing is added: ports,
sites of features, positions of edges, single scores, architecture and provenance are lost, and `read` refuses the file,
as it does graphs that other programs have made. A circuit in which two nodes would get one id is refused.

Source: safety-research/circuit-tracer, `frontend/graph_models.py`, and the JSON schema of hijohnnylin/neuronpedia
(`api/graph/graph-schema.json`, version 1.0.0). Only the layout is theirs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any, Final

from graphs.atomic import read_text, write_text
from graphs.circuit import Circuit, visible
from graphs.components import Architecture
from graphs.errors import BadCircuit, BadOption
from graphs.labels import labels_of, tokens_of
from graphs.nodes import Node
from graphs.schema import NESTED, Link, Row, circuit_of, reading, rows, table
from graphs.strict_json import parsed

OURS: Final = "wiretrace"
"""The key under which this project adds what the format has no place for."""

_TYPES: Final = {
    "input": "embedding",
    "logits": "logit",
    "head": "attention head",
    "kv": "keys and values",
    "mlp": "mlp",
}
_THEIRS: Final = "cross layer transcoder"
_ERROR: Final = "mlp reconstruction error"
_SITES: Final = {"input": "e", "attn": "a", "mlp": "", "resid": "r"}
_MOST_COLUMNS: Final = 100_000
_EXTRA: Final = ("port", "structural", "score", "position")


def dumps(
    circuit: Circuit, *, strict: bool = False, slug: str = "circuit", prompt: str = "", tokens: Sequence[str] = ()
) -> str:
    """The circuit as attribution graph JSON: pure ASCII, a node or link on a line. Options as of `write`."""
    _check_options(strict=strict, slug=slug, prompt=prompt, tokens=tokens)
    columns = _columns(circuit, tokens)
    model = circuit.provenance.get("model")
    metadata = {
        "slug": slug,
        "scan": visible(model) if isinstance(model, str) and model else "unknown",
        "transcoder_list": [],
        "prompt_tokens": columns,
        "prompt": prompt or "".join(tokens),
        "schema_version": 1,
        "info": {"generator": {"name": "Wiretrace"}, "description": visible(str(circuit))},
    }
    last = len(columns) - 1
    ids = {node: _id(node, circuit.architecture, column=last, strict=strict) for node in circuit.nodes}
    _check_ids(ids)
    labels = labels_of(circuit)
    nodes = [
        _node(node, circuit.architecture, ids[node], last, strict=strict, label=labels.get(node))
        | ({} if strict else _added(circuit, node))
        for node in circuit.nodes
    ]
    links = _summed(circuit, ids) if strict else _links(circuit, ids)
    view = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    lines = [f'"metadata": {json.dumps(metadata)}', f'"qParams": {json.dumps(view)}']
    lines += [f'"nodes": {_lines(nodes)}', f'"links": {_lines(links)}']
    if not strict:
        lines.append(f'"{OURS}": {json.dumps(circuit.to_networkx().graph, allow_nan=False)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(
    circuit: Circuit,
    path: str | os.PathLike[str],
    *,
    strict: bool = False,
    slug: str = "circuit",
    prompt: str = "",
    tokens: Sequence[str] = (),
) -> None:
    """Write the circuit as attribution graph JSON, whole or not at all.

    Args:
        circuit: What to write.
        path: The file.
        strict: Ids and types of nodes as circuit-tracer makes them, and nothing that it does not know; cannot be read
            back.
        slug: The name of the graph, there part of its address.
        prompt: The text that the viewer shows above the graph; by default the tokens joined.
        tokens: The prompt's tokens, the columns of the viewer; by default those of the provenance, or one for each
            position of a feature, or one that stands for all.

    Raises:
        BadOption: If an option is not of its type, or there are fewer tokens than positions of features.
        BadCircuit: If scores are so large that their sum is not finite, or two nodes would have one id (with `strict`).
        WriteFailed: If the file cannot be written.

    Example:
        >>> write(circuit, folder / "graph.json", tokens=["When", " Mary"])
        >>> read(folder / "graph.json") == circuit
        True
    """
    write_text(path, dumps(circuit, strict=strict, slug=slug, prompt=prompt, tokens=tokens))


def _check_options(*, strict: object, slug: object, prompt: object, tokens: object) -> None:
    if not isinstance(strict, bool):
        raise BadOption(f"strict must be True or False; got {strict!r}")
    for name, value in (("slug", slug), ("prompt", prompt)):
        if not isinstance(value, str):
            raise BadOption(f"{name} must be text; got {type(value).__name__}")
    if not isinstance(tokens, list | tuple) or not all(isinstance(token, str) for token in tokens):
        raise BadOption("tokens must be a list of text, one for each token of the prompt")


def _columns(circuit: Circuit, tokens: Sequence[str]) -> list[str]:
    """What the columns of the viewer are called: the tokens, or the positions of features, or one for all."""
    last = max((node.position for node in circuit.features if node.position is not None), default=-1)
    if tokens and len(tokens) <= last:
        raise BadOption(f"tokens must be one for each position; got {len(tokens):,}, and a feature is at {last:,}")
    if tokens:
        return list(tokens)
    if last > _MOST_COLUMNS:
        raise BadCircuit(
            f"a feature is at position {last:,}; this format has a column for each up to {_MOST_COLUMNS:,}"
        )
    known = tokens_of(circuit)
    return list(known) or [f"(position {position})" for position in range(last + 1)] or ["(every position)"]


def _check_ids(ids: dict[Node, str]) -> None:
    owner: dict[str, Node] = {}
    for node, identity in ids.items():
        other = owner.setdefault(identity, node)
        if other != node:
            raise BadCircuit(
                f"{other} and {node} would both be called {identity!r}, since this form has one dictionary in a layer "
                f"and names error terms like features of layer 0; write it without strict=True"
            )


def _added(circuit: Circuit, node: Node) -> dict[str, Any]:
    """What this project adds to a node."""
    name = {"name": str(node)} if node.site is not None else {}
    return name | ({"score": circuit.node_scores[node]} if node in circuit.node_scores else {})


def _number(node: Node, shape: Architecture) -> int:
    """A number within the layer that no other of its nodes has."""
    if node.kind == "mlp":
        return shape.n_heads
    return (node.index or 0) + (shape.n_heads + 1 if node.kind == "kv" else 0)


def _id(node: Node, shape: Architecture, *, column: int, strict: bool) -> str:
    if node.site is not None:
        return _feature_id(node, column=column, strict=strict)
    if not strict:
        return str(node)
    return f"{_layer(node, shape)}_{_number(node, shape)}_{column}"


def _feature_id(node: Node, *, column: int, strict: bool) -> str:
    layer = "" if node.layer is None else str(node.layer)
    if strict:
        at = column if node.position is None else node.position
        return f"0_{layer or 'E'}_{at}" if node.is_error else f"{layer or 'E'}_{node.index}_{at}"
    site = "" if node.site is None else _SITES[node.site]
    at = "all" if node.position is None else str(node.position)
    return f"ERR_{site}{layer}_{at}" if node.is_error else f"{site}{layer}_{node.index}_{at}"


def _layer(node: Node, shape: Architecture) -> str:
    if node.site == "input":
        return "E"
    return {"input": "E", "logits": str(shape.n_layers + 1)}.get(node.kind, str(node.layer))


def _node(
    node: Node, shape: Architecture, identity: str, last: int, *, strict: bool, label: str | None
) -> dict[str, Any]:
    number, layer = _number(node, shape), node.layer or 0
    whole = node.layer is not None
    total = layer + number
    column = last if node.position is None else node.position
    first = {"input": "E", "logits": "L"}.get(node.kind, _layer(node, shape))
    paired = total * (total + 1) // 2 + number if whole else column if node.kind == "input" else number
    kind = _ERROR if node.is_error else _THEIRS if node.site else _THEIRS if strict and whole else _TYPES[node.kind]
    return {
        "node_id": identity,
        "feature": -1 if node.is_error else paired,
        "layer": _layer(node, shape),
        "ctx_idx": column,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": node.kind == "logits",
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{first}_{number}-{0 if whole else column}" if strict else identity,
        "clerp": label or str(node),
        "influence": None,
        "activation": None,
    }


def _weight(circuit: Circuit, score: float | None) -> float:
    if score is not None:
        return -score
    return 0.0 if circuit.scores else 1.0


def _links(circuit: Circuit, ids: dict[Node, str]) -> list[dict[str, Any]]:
    links = []
    called = {str(node): identity for node, identity in ids.items()}
    for source, target, found in circuit.to_networkx().edges(data=True):
        weight = 0.0 if found["structural"] else _weight(circuit, found.get("score"))
        links.append({"source": called[source], "target": called[target], "weight": weight, **found})
    return links


def _summed(circuit: Circuit, ids: dict[Node, str]) -> list[dict[str, Any]]:
    """One link for each pair of nodes."""
    weights: dict[tuple[Node, Node], list[float]] = {}
    for edge in circuit.edges:
        weights.setdefault((edge.source, edge.target), []).append(_weight(circuit, circuit.scores.get(edge)))
    weights |= {pair: [0.0] for pair in circuit.structural_edges()}
    links = []
    for (source, target), parts in weights.items():
        try:
            total = math.fsum(parts)
        except OverflowError:
            raise BadCircuit(f"the scores of the edges from {source} to {target} are too large to add up") from None
        links.append({"source": ids[source], "target": ids[target], "weight": total})
    return links


def _lines(items: list[dict[str, Any]]) -> str:
    if not items:
        return "[]"
    return "[\n" + ",\n".join(f"  {json.dumps(item, allow_nan=False)}" for item in items) + "\n]"


def read(path: str | os.PathLike[str]) -> Circuit:
    """Read what `write` wrote, not ``strict``.

    Raises:
        BadFile: If the file is not such JSON, or a graph without the key "wiretrace": of features, or strict.
    """
    text = read_text(path)
    with reading(path, noun="attribution graph JSON of a circuit"):
        record = table(parsed(text), noun="the file")
        if OURS not in record:
            raise BadCircuit(
                f"it has no key {OURS!r}: a graph that another program has made, or written with strict=True, which "
                f"does not say of which architecture it is"
            )
        about = table(record[OURS], noun=f"{OURS!r}")
        nodes = rows(record.get("nodes"), noun="'nodes'")
        names = _names(nodes)
        return circuit_of(
            {name: about[name] for name in ("schema", *NESTED) if name in about},
            [_row(item) for item in nodes],
            [_link(item, names) for item in rows(record.get("links"), noun="'links'")],
        )


def _names(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The name of the node of each id."""
    names: dict[str, Any] = {}
    for item in nodes:
        identity = _required(item, "node_id", owner="a node")
        if not isinstance(identity, str):
            raise BadCircuit(f"a node's 'node_id' must be text; got {type(identity).__name__}")
        if identity in names:
            raise BadCircuit(f"the node {identity[:40]!a} is listed twice; every node has an id of its own")
        names[identity] = item.get("name", identity)
    return names


def _row(item: dict[str, Any]) -> Row:
    return item.get("name", item["node_id"]), {"score": item["score"]} if "score" in item else {}


def _link(item: dict[str, Any], names: dict[str, Any]) -> Link:
    source, target = (_required(item, end, owner="a link") for end in ("source", "target"))
    for end in (source, target):
        if not isinstance(end, str) or end not in names:
            raise BadCircuit(f"an edge joins {str(end)[:40]!a}, which is not among the nodes")
    return names[source], names[target], {name: item[name] for name in _EXTRA if name in item}


def _required(item: dict[str, Any], name: str, *, owner: str) -> Any:
    if name not in item:
        raise BadCircuit(f"{owner} lacks {name!r}; got {', '.join(map(repr, item))[:80] or 'an empty object'}")
    return item[name]

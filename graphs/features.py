"""Where features stand in a model, which edges between them there can be, and in which order.

A dictionary splits what flows at one place of a model into features and an error term. The places are computed one
after another, and a feature can depend on those of earlier places alone:

    embeddings, then for each layer: attention output, MLP output, residual stream; then the logits

In a parallel block attention and MLP read the same residual stream, so an MLP's features do not depend on those of its
own block's attention. Where both ends of an edge stand at a token position, the source's must not be the later one:
nothing flows back.

How many features there are is not part of an architecture, so neither the features nor the edges between them can be
counted or numbered as those of components are.

Example:
    >>> from graphs.components import Architecture
    >>> why_not(Edge.parse("r0.f3@1->a1.f7@4"), Architecture(2, 4)) is None
    True
    >>> print(why_not(Edge.parse("m0.f3->a0.f7"), Architecture(2, 4)))
    no edge m0.f3->a0.f7: a0.f7 depends only on what is computed before it, and m0.f3 comes after it
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from graphs.nodes import SITES, Edge, Node, Site

if TYPE_CHECKING:
    from graphs.components import Architecture

NAMES: Final[dict[Site, str]] = {
    "input": "embeddings",
    "attn": "attention output",
    "mlp": "MLP output",
    "resid": "residual stream",
}
"""What the sites of dictionaries are called in full."""

_ORDER: Final = (  # within the input and within a layer; a group's keys and values come before the heads that use them
    *("input", "input_feature", "input_error"),
    *(
        "kv",
        "head",
        "attn_feature",
        "attn_error",
        "neuron",
        "mlp",
        "mlp_feature",
        "mlp_error",
        "resid_feature",
        "resid_error",
    ),
    "logits",
)
_RANK: Final = {kind: rank for rank, kind in enumerate(_ORDER)}

Depth = tuple[float, int, int, int]


def depth(node: Node) -> Depth:
    """Sort key of the topological order of nodes, those of components and of features.

    Within a layer: groups, heads, features of the attention output, its error term, MLP, and so on. Within a place by
    index, then by position, all positions together first.
    """
    layer = -math.inf if node.kind.startswith("input") else math.inf if node.layer is None else node.layer
    return (layer, _RANK[node.kind], node.index or 0, -1 if node.position is None else node.position)


def order(edge: Edge) -> tuple[Depth, Depth]:
    """Sort key of edges between features: by target, then by source."""
    return depth(edge.target), depth(edge.source)


def why_no_node(node: Node, shape: Architecture) -> str | None:
    """Why a model of this shape has no place for a feature or error term; None if it has."""
    if node.site == "mlp" and not shape.has_mlp:
        return "it is attention-only, so no dictionary can stand at the output of an MLP"
    if node.layer is not None and node.layer >= shape.n_layers:
        return f"its layers are 0 to {shape.n_layers - 1}" if shape.n_layers > 1 else "its only layer is 0"
    return None


def why_not(edge: Edge, shape: Architecture) -> str | None:
    """Why there is no such edge between features in a model of this shape; None if there is."""
    for end in (edge.source, edge.target):
        if end.site is not None and (reason := why_no_node(end, shape)):
            return f"no edge {edge}: this model has no place for {end}: {reason}"
    return _against_order(edge, shape) or _against_time(edge)


def _against_order(edge: Edge, shape: Architecture) -> str | None:
    source, target = edge.source, edge.target
    before = f"{target} depends only on what is computed before it"
    if _place(source) == _place(target):
        return f"no edge {edge}: {before}, and {source} is read at the same place"
    if _place(source) > _place(target):
        return f"no edge {edge}: {before}, and {source} comes after it"
    if shape.parallel and source.layer == target.layer and (source.site, target.site) == ("attn", "mlp"):
        return f"no edge {edge}: attention and MLP of a block run in parallel here, so {target} does not see {source}"
    return None


def _against_time(edge: Edge) -> str | None:
    here, there = edge.source.position, edge.target.position
    if here is None or there is None or here <= there:
        return None
    return f"no edge {edge}: what stands at position {here} cannot reach the earlier position {there}"


def _place(node: Node) -> tuple[float, int]:
    """When the model computes what a dictionary reads there."""
    if node.site is None:  # the logits
        return (math.inf, 0)
    return (-1 if node.layer is None else node.layer, SITES.index(node.site))

"""Effects of edges between features: how much of a feature's effect comes through which earlier feature.

    E(u -> d) = ḡ_d · (∂d/∂u with every other site between them held fixed) · (u_patch - u_clean)

ḡ_d is the gradient of the metric with respect to d that `node_effects` took. Every site with a dictionary gets its
value from a leaf of its own, so that the value that the model computes there depends on the leaves that reach it
directly, and on nothing else: one graph holds every edge, right for sequential and parallel blocks and for any choice
of sites. A feature d is read through its encoder, the error term as ``x - decode(encode(x))``.

=======  =====================================================================================================
`clean`  the Jacobian at the clean run. A feature that is off there has no incoming edges.
`ig`     the Jacobian averaged while all leaves move together from their clean to their patched values. Edges into
         a node then add up to ``ḡ_d · (d_patch - d_clean)``, its own effect, up to the quadrature, if dictionaries
         stand at every place from which something reaches it, patches carry a run, and its encoder is continuous
         (ReLU, tied, identity). Where encoders jump (TopK, JumpReLU, gated), no derivative sees the jumps, and edges
         leave that share over.
=======  =====================================================================================================

Edges into the logits are effects of what reaches them directly; of all sites that is the last residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.features.edge_graph import EdgeWork, Group, Pair
from circuits.features.feature_run import FeatureRun
from circuits.features.node_effects import NodeEffects, check_threshold
from graphs.nodes import LOGITS, Edge, Node
from patching.errors import InvalidOption
from patching.gradients import quadrature
from patching.progress import Progress, silent
from patching.sites import Site

METHODS = ("ig", "clean")
MOST_EDGES = 20_000_000
"""How many pairs of nodes are taken on without being asked to."""


@dataclass(frozen=True)
class EdgeEffects:
    """An effect for every pair of nodes that an edge can join.

    Attributes:
        nodes: of each site, those that were asked for, in the order of the axes below.
        values: for each pair of sites, means over prompts [downstream, upstream]; one row for the logits.
        largest: likewise, the largest absolute effect on any prompt.
        provenance: method, options, model, task, ablation, metric, versions.
    """

    nodes: Mapping[Site, tuple[Node, ...]]
    values: Mapping[Pair, Float[Tensor, "downstream upstream"]]
    largest: Mapping[Pair, Float[Tensor, "downstream upstream"]]
    provenance: Mapping[str, Any] = field(repr=False)

    @property
    def n_pairs(self) -> int:
        """How many pairs have a value."""
        return sum(values.numel() for values in self.values.values())

    def edges(self, threshold: float, *, threshold_on: str = "mean") -> dict[Edge, float]:
        """Edges whose effects exceed a threshold, with their mean effects.

        Args:
            threshold: an absolute effect; what equals it is out.
            threshold_on: ``mean``: averages over prompts must exceed it; ``example``: the effect on any one prompt.

        Raises:
            InvalidOption: a threshold below 0, or an unknown order.
        """
        check_threshold(threshold, threshold_on)
        judged = self.values if threshold_on == "mean" else self.largest
        found = {}
        for (source, target), effects in judged.items():
            targets = (LOGITS,) if target is None else self.nodes[target]
            for row, column in (effects.abs() > threshold).nonzero().tolist():
                edge = Edge(self.nodes[source][column], targets[row])
                found[edge] = float(self.values[source, target][row, column])
        return found

    def into(self, site: Site | None) -> Float[Tensor, " downstream"]:
        """The sum of all edges into each node of a site, or into the logits."""
        columns = [values.sum(1) for (_, target), values in self.values.items() if target == site]
        if columns:
            return torch.stack(columns).sum(0)
        return torch.zeros(1 if site is None else len(self.nodes[site]), dtype=torch.float64)

    def __repr__(self) -> str:
        return (
            f"EdgeEffects({self.provenance.get('method')}, {self.n_pairs:,} pairs of nodes at {len(self.nodes)} sites)"
        )


def edge_effects(
    run: FeatureRun,
    effects: NodeEffects,
    *,
    nodes: Collection[Node],
    method: str = "ig",
    steps: int = 10,
    rule: str = "midpoint",
    most_edges: int = MOST_EDGES,
    progress: Progress = silent,
    say: Callable[[str], None] | None = None,
) -> EdgeEffects:
    """The effect of every edge between some nodes, and from them to the logits.

    Args:
        run: model, task and dictionaries.
        effects: of nodes on the same run, with gradients; its aggregation is that of the edges: ``none``, between
            positions, or ``sum`` over the positions at both ends.
        nodes: the ends of edges, such as ``effects.nodes(threshold)``.
        method: ``ig`` or ``clean``, the paper's.
        steps: of the average; edges into the logits take them too, wherever node effects do.
        rule: as in `node_effects`.
        most_edges: more pairs than these are refused, with what they would cost.
        progress: called with the number of vector-Jacobian products done and to do.
        say: told, before anything is computed, how many edges, bytes and products there will be.

    Returns:
        Effects in the metric's unit.

    Raises:
        InvalidOption: effects of another run or without gradients, nodes that do not fit their aggregation, an unknown
            method or rule, or too many edges.

    Cost: one forward, and one vector-Jacobian product through the layer for each downstream node and step, of several
    nodes at a time. Where nothing between two sites mixes positions, all positions of a feature share one.

    Source: arXiv 2403.19647. Ours differs in stop-gradients in place of subtracted products (which take
    the path through attention and MLP of a sequential block off twice), in the averaged Jacobians, and in edges into
    the logits from any site.

    Example:
        >>> from circuits.features import agreement_toy as toy
        >>> from circuits.features.node_effects import node_effects
        >>> run = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
        >>> effects = node_effects(run, steps=20)
        >>> edges = edge_effects(run, effects, nodes=effects.nodes(0.1), method="clean")
        >>> {str(edge): round(effect, 3) for edge, effect in edges.edges(0.1).items()}  # doctest: +NORMALIZE_WHITESPACE
        {'input.f0@1->a0.f5@4': -3.0, 'input.f1@1->a0.f5@4': -3.0, 'a0.f5@4->m0.f6@4': -4.0,
         'a0.f13@4->m0.f6@4': -4.0, 'm0.f6@4->r0.f6@4': -6.0, 'r0.f6@4->logits': -6.0}
    """
    if method not in METHODS:
        raise InvalidOption(f"expected a method out of {', '.join(METHODS)}; got {method!r}.")
    if effects.run is not run:
        raise InvalidOption("expected effects of the same run; got those of another one.")
    if not effects.gradients:
        raise InvalidOption("expected effects with gradients ('ig' or 'atp'); exact ones have none.")
    averaged = quadrature(rule, steps)
    points = averaged if method == "ig" else [(0.0, 1.0)]
    smooth = effects.method == "ig"
    subject = (effects, grouped(run, effects, nodes), points, averaged if smooth else points)
    work = EdgeWork(run, *subject)
    work.require_room(most_edges)
    if say is not None:
        say(f"{work.cost()}.")

    def gone(size: int) -> EdgeWork:
        own = work
        if size < run.largest_batch:
            own = EdgeWork(run.in_batches_of(size), *subject)
            own.require_room(most_edges)
        own.go(progress)
        return own

    work = run.prompt_chunks.fit(run.largest_batch, gone)
    values = {pair: total / len(run.task) for pair, total in work.sums.items()}
    options = {"method": method, "aggregation": effects.aggregation, "nodes": len(set(nodes))}
    if method == "ig" or smooth:
        options |= {"steps": steps, "rule": rule}
    named = {site: group.nodes for site, group in work.groups.items()}
    return EdgeEffects(named, values, work.tops, run.provenance("feature edges", options))


def grouped(run: FeatureRun, effects: NodeEffects, nodes: Collection[Node]) -> dict[Site, Group]:
    """Nodes by site, in the order of the axes of their effects.

    Raises:
        InvalidOption: nodes that do not fit the effects.
    """
    found: dict[Site, list[tuple[int, int, Node]]] = {}
    for node in set(nodes):
        effects.values_at(node)  # raises where the node does not fit
        site, unit = run.place(node)
        found.setdefault(site, []).append((node.position or 0, unit, node))
    groups = {}
    for site in run.sites:
        if site in found:
            rows = sorted(found[site], key=lambda row: row[:2])
            positions, units = (torch.tensor([row[which] for row in rows], device=run.model.device) for which in (0, 1))
            groups[site] = Group(tuple(row[2] for row in rows), units, positions)
    return groups

"""Effects of features and error terms: exact, by attribution patching, or by integrated gradients.

    effect(a) = metric(a patched, everything after it running freely) - metric(clean)

==========  ===============================================================  ===========================
`exact`     one patched run for each feature that differs                    a forward per node
`atp`       ``(a_patch - a_clean) · dm/da`` at the clean run                 one forward and backward
`ig`        the same with dm/da averaged while the whole site moves          steps forwards and backwards
            from its clean to its patched value, everything before it clean  for each site
==========  ===============================================================  ===========================

Integrated gradients are complete: over a site, features and error term at all positions add up to the effect of
patching the site as a whole (of a residual stream: the whole effect of the other prompts), up to the quadrature. The
gradients are those of the model itself, at the site; see `feature_run`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.features.feature_run import (
    FeatureRun,
    Part,
    decoder_rows,
    feature_gradients,
    fitting,
    in_chunks,
)
from graphs.nodes import Node
from patching.chunks import with_fewer_prompts
from patching.errors import InvalidOption
from patching.gradients import quadrature
from patching.progress import Progress, silent
from patching.sites import Site

METHODS = ("ig", "atp", "exact")
AGGREGATIONS = ("none", "sum")
THRESHOLDS = ("mean", "example")


@dataclass(frozen=True)
class NodeEffects:
    """An effect for every feature and error term.

    Attributes:
        run: what they were taken on; it names the units.
        values: for each site, means over prompts: [pos, unit], or [unit] where positions are summed. The last unit is
            the error term.
        largest: likewise, the largest absolute effect on any prompt.
        prompts: likewise with an example axis in front, for every prompt; empty unless asked for.
        gradients: the gradients of the metric at each site [example, pos, d_model], averaged for integrated gradients;
            empty for exact effects.
        method: ``ig``, ``atp`` or ``exact``.
        aggregation: ``none`` or ``sum``.
        provenance: method, options, model, task, ablation, metric, versions.
    """

    run: FeatureRun
    values: Mapping[Site, Float[Tensor, "*pos unit"]]
    largest: Mapping[Site, Float[Tensor, "*pos unit"]]
    prompts: Mapping[Site, Float[Tensor, "example *pos unit"]] = field(repr=False)
    gradients: Mapping[Site, Float[Tensor, "example pos d_model"]] = field(repr=False)
    method: str
    aggregation: str
    provenance: Mapping[str, Any]

    def __getitem__(self, node: str | Node) -> float:
        """The mean effect of one node.

        Raises:
            InvalidOption: there is none here; a position is given or missing against the aggregation.
        """
        return float(self.values_at(Node.parse(node) if isinstance(node, str) else node))

    def values_at(self, node: Node) -> Float[Tensor, ""]:
        """The mean effect of one node, as a tensor."""
        site, unit = self.run.place(node)
        if (node.position is None) != (self.aggregation == "sum"):
            wanted = "no position, for they are summed" if self.aggregation == "sum" else "a position, such as @3"
            raise InvalidOption(f"expected a node with {wanted}; got {node}.")
        return self.values[site][unit] if node.position is None else self.values[site][node.position, unit]

    def total(self, site: Site) -> float:
        """The sum over a site: the effect of patching it as a whole, if effects are integrated gradients."""
        return float(self.values[site].sum())

    @property
    def strongest(self) -> float:
        """The largest absolute mean effect of all."""
        return max(float(values.abs().max()) for values in self.values.values())

    def threshold_for(self, count: int) -> float:
        """The lowest threshold on means that keeps at most so many nodes.

        Raises:
            InvalidOption: a count that is no whole number of 0 or more.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidOption(f"expected a number of nodes, 0 or more; got {count!r}.")
        ordered = torch.cat([values.abs().flatten() for values in self.values.values()]).sort(descending=True).values
        return float(ordered[count]) if count < len(ordered) else 0.0

    def kept(self, threshold: float, *, threshold_on: str = "mean") -> dict[Site, Tensor]:
        """Where effects exceed a threshold: for each site a boolean tensor of the shape of its values.

        Args:
            threshold: an absolute effect; what equals it is out.
            threshold_on: ``mean``: averages over prompts must exceed it; ``example``: the effect on any one prompt. So
                with the same threshold ``example`` keeps all that ``mean`` keeps, and what cancels over prompts too.

        Raises:
            InvalidOption: a threshold below 0 or not a number, or an unknown order.
        """
        check_threshold(threshold, threshold_on)
        judged = self.values if threshold_on == "mean" else self.largest
        return {site: values.abs() > threshold for site, values in judged.items()}

    def nodes(self, threshold: float, *, threshold_on: str = "mean") -> dict[Node, float]:
        """Nodes whose effects exceed a threshold, with their mean effects; see `kept`."""
        found = {}
        for site, kept in self.kept(threshold, threshold_on=threshold_on).items():
            for *position, unit in kept.nonzero().tolist():
                node = self.run.node(site, unit, *position)
                found[node] = float(self.values[site][(*position, unit)])
        return found

    def __repr__(self) -> str:
        counts = sum(int((values != 0).sum()) for values in self.values.values())
        return (
            f"NodeEffects({self.method}, {counts:,} nodes with an effect at {len(self.values)} "
            f"sites, strongest {self.strongest:.3g})"
        )


def node_effects(
    run: FeatureRun,
    *,
    method: str = "ig",
    steps: int = 10,
    rule: str = "midpoint",
    aggregation: str = "none",
    only: Collection[Node] | None = None,
    keep_prompts: bool = False,
    progress: Progress = silent,
) -> NodeEffects:
    """The effect of every feature and error term at every position.

    Args:
        run: model, task and dictionaries.
        method: ``ig``, ``atp`` or ``exact``.
        steps: of integrated gradients.
        rule: ``midpoint`` (error falls as 1/steps²), ``trapezoid``, ``right``, or ``left``, that of the paper's code.
        aggregation: ``none``, each position by itself, for prompts whose positions mean the same; ``sum`` over
            positions, for prompts in which they do not. An exact effect is then that of all positions at once.
        only: of exact effects: the nodes to take; all others get 0.
        keep_prompts: keep the effects on every prompt too.
        progress: called with the number of sites done and to do, once for each batch of prompts.

    Returns:
        Effects in the metric's unit.

    Raises:
        InvalidOption: an unknown method, rule or aggregation, or attribution patching of a metric whose gradient
            vanishes at the clean run (KL).

    Cost: see the head of this module.

    Source: arXiv 2403.19647. Its code takes the left rule with ten steps, with gradients through a model
    with the dictionaries in it; ours takes midpoints, at the sites of the model itself, which gives the same gradients.

    Example:
        >>> from circuits.features import agreement_toy as toy
        >>> run = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
        >>> effects = node_effects(run, steps=20)
        >>> {str(node): round(effect, 3) for node, effect in effects.nodes(0.1).items()}
        {'input.f0@1': -3.0, 'input.f1@1': -3.0, 'a0.f5@4': -3.0, 'a0.f13@4': -3.0, 'm0.f6@4': -6.0, 'r0.f6@4': -6.0}
    """
    if method not in METHODS:
        raise InvalidOption(f"expected a method out of {', '.join(METHODS)}; got {method!r}.")
    if aggregation not in AGGREGATIONS:
        raise InvalidOption(f"expected an aggregation out of {', '.join(AGGREGATIONS)}; got {aggregation!r}.")
    if only is not None and method != "exact":
        raise InvalidOption(f"expected `only` with exact effects alone; {method} takes all at once.")
    if method == "atp" and run.metric.zero_gradient_when_clean:
        raise InvalidOption(
            f"expected a metric with a gradient at the clean run; that of {run.metric.name} is 0 there, so every "
            "effect would be. Use method='ig', or another metric."
        )
    points = quadrature(rule, steps)
    wanted = None if only is None else _by_site(run, only)
    tally, gradients = _tallied(
        run, method, points, wanted, keep_prompts=keep_prompts, summed=aggregation == "sum", progress=progress
    )
    options: dict[str, Any] = {"aggregation": aggregation}
    if method == "ig":
        options |= {"steps": steps, "rule": rule}
    joined = {} if method == "exact" else {site: torch.cat(rows) for site, rows in gradients.items()}
    provenance = run.provenance(f"feature effects ({method})", options)
    return NodeEffects(run, *tally.results(len(run.task)), joined, method, aggregation, provenance)


@with_fewer_prompts
def _tallied(
    run: FeatureRun,
    method: str,
    points: list[tuple[float, float]],
    wanted: Mapping[Site, set[tuple[int, ...]]] | None,
    *,
    keep_prompts: bool,
    summed: bool,
    progress: Progress,
) -> tuple[_Tally, dict[Site, list[Tensor]]]:
    """Effects on all prompts, and the gradients that they were made with."""
    tally = _Tally(keep_prompts)
    gradients: dict[Site, list[Tensor]] = {site: [] for site in run.sites}
    for number, part in enumerate(run.parts):
        at_once = _gradients_at_clean(part) if method == "atp" else {}
        for place, site in enumerate(run.sites):
            if method == "exact":
                tally.add(site, _exact(run, part, site, summed=summed, only=wanted))
            else:
                slope = at_once[site] if method == "atp" else averaged_gradient(run, part, site, points)
                gradients[site].append(slope)
                effects = products(part, site, slope)
                tally.add(site, effects.sum(1) if summed else effects)
            progress(number * len(run.sites) + place + 1, len(run.parts) * len(run.sites))
    return tally, gradients


def check_threshold(threshold: float, threshold_on: str) -> None:
    """Raise unless a threshold is a number of 0 or more, and the order of averaging known."""
    if threshold_on not in THRESHOLDS:
        raise InvalidOption(f"expected threshold_on out of {', '.join(THRESHOLDS)}; got {threshold_on!r}.")
    if not threshold >= 0:
        raise InvalidOption(f"expected a threshold of 0 or more, an absolute effect; got {threshold!r}.")


def averaged_gradient(
    run: FeatureRun, part: Part, site: Site, points: list[tuple[float, float]]
) -> Float[Tensor, "example pos d_model"]:
    """``Σ_k w_k dm/dx`` at ``x = clean + α_k (patched - clean)`` of one site, of several steps at a time."""
    start, step = part.base[site], part.step(site)
    total = torch.zeros_like(start)
    for chunk in in_chunks(len(points), fitting(run.memory, run.step_bytes(len(part)))):
        alphas, weights = (start.new_tensor(column)[:, None, None, None] for column in zip(*points[chunk], strict=True))
        value = (start + alphas * step).requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(part.patched(site, value).sum(), value)
        total += (weights * slope).sum(0)
    return total


@torch.no_grad()
def products(
    part: Part, site: Site, gradient: Float[Tensor, "example pos d_model"]
) -> Float[Tensor, "example pos unit"]:
    """First-order effects of a site's features and, last, of its error term."""
    features, rest = part.change(site)
    slopes = feature_gradients(part.dictionaries[site], gradient)
    return torch.cat((slopes * features, (gradient * rest).sum(-1, keepdim=True)), dim=-1)


def _gradients_at_clean(part: Part) -> dict[Site, Tensor]:
    """The gradients of the summed metric at every site, from one backward pass."""
    seen: dict[Site, Tensor] = {}

    def visit(kind: str, layer: int, value: Tensor, _narrow: bool) -> Tensor:
        if (site := Site(kind, layer)) in part.dictionaries:
            seen[site] = value
        return value

    with torch.enable_grad():
        final = part.run(visit, part.embedded.detach().requires_grad_(True), trim=False)
        found = torch.autograd.grad(part.measure(final).sum(), list(seen.values()), allow_unused=True)
    return {
        site: torch.zeros_like(value) if slope is None else slope
        for (site, value), slope in zip(seen.items(), found, strict=True)
    }


@torch.no_grad()
def _exact(
    run: FeatureRun, part: Part, site: Site, *, summed: bool, only: Mapping[Site, set[tuple[int, ...]]] | None
) -> Float[Tensor, "example *pos unit"]:
    """The metric with each node patched in turn, minus the clean metric."""
    features, rest = part.change(site)
    different = torch.cat(((features != 0).any(0), (rest != 0).any(-1).any(0)[:, None]), dim=-1)
    places = (different.any(0) if summed else different).nonzero()
    if only is not None:
        chosen = [row for row, place in enumerate(places.tolist()) if tuple(place) in only.get(site, set())]
        places = places[chosen]
    shape = (len(part), features.shape[-1] + 1) if summed else (*features.shape[:2], features.shape[-1] + 1)
    result = torch.zeros(shape, dtype=torch.float64, device=features.device)
    for chunk in in_chunks(len(places), fitting(run.memory, run.step_bytes(len(part)))):
        rows = places[chunk]
        value = part.base[site] + _moved(part, site, features, rest, rows)
        effect = part.patched(site, value) - part.base_metric
        result[(slice(None), *rows.T)] = effect.T
    return result


def _moved(part: Part, site: Site, features: Tensor, rest: Tensor, rows: Tensor) -> Float[Tensor, "row example pos d"]:
    """What patching each node adds to x: its direction times its change, or the change of the error term."""
    units, last = rows[:, -1], features.shape[-1]
    directions = decoder_rows(part.dictionaries[site], units.clamp(max=last - 1))
    change = features[..., units.clamp(max=last - 1)].movedim(-1, 0)
    moved = torch.where((units == last)[:, None, None, None], rest, change[..., None] * directions[:, None, None])
    if rows.shape[-1] == 1:
        return moved
    here = torch.nn.functional.one_hot(rows[:, 0], features.shape[1]).to(moved)
    return moved * here[:, None, :, None]


def _by_site(run: FeatureRun, nodes: Collection[Node]) -> dict[Site, set[tuple[int, ...]]]:
    found: dict[Site, set[tuple[int, ...]]] = {}
    for node in nodes:
        site, unit = run.place(node)
        found.setdefault(site, set()).add((unit,) if node.position is None else (node.position, unit))
    return found


class _Tally:
    """Means and largest absolute values over prompts that come in batches."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.sums: dict[Site, Tensor] = {}
        self.tops: dict[Site, Tensor] = {}
        self.rows: dict[Site, list[Tensor]] = {}

    def add(self, site: Site, effects: Float[Tensor, "example *pos unit"]) -> None:
        """Count some prompts' effects at a site."""
        effects = effects.detach()
        total, top = effects.double().sum(0), effects.double().abs().amax(0)
        self.sums[site] = self.sums[site] + total if site in self.sums else total
        self.tops[site] = torch.maximum(self.tops[site], top) if site in self.tops else top
        if self.keep:
            self.rows.setdefault(site, []).append(effects)

    def results(self, count: int) -> tuple[dict[Site, Tensor], dict[Site, Tensor], dict[Site, Tensor]]:
        """Means, largest, and all."""
        means = {site: total / count for site, total in self.sums.items()}
        return means, self.tops, {site: torch.cat(rows) for site, rows in self.rows.items()}

"""What the nodes of a feature circuit are worth: faithfulness and completeness.

    faithfulness(C) = (m(C) - m(none)) / (m(all) - m(none))        completeness(C) = faithfulness(all nodes not in C)

m(C) is the metric, averaged over prompts, when every feature and error term outside C carries its mean over the corrupt
prompts at its position (or another replacement), at all sites from a layer on. m(all) is the model itself. A faithful
circuit is near 1; a complete one leaves nothing behind, so its completeness is near 0. Neither is monotone in the size
of the circuit.

Means are taken position by position, which makes sense where prompts are aligned: then what all of them share stays.
Where they are not, a mean over prompts destroys what no effect speaks of (where a sentence stands, which template it
is), and faithfulness is near 0 until nearly all nodes are in. So nodes that are summed over positions are judged with
the values of each prompt's own corrupt prompt, unless another ablation is asked for.

Error terms hold what dictionaries miss. They count as nodes (``errors="circuit"``), or are all kept, all ablated, or
ablated at attention and MLPs alone; m(none) treats them likewise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.features.dictionary import Dictionary
from circuits.features.feature_run import FeatureRun
from circuits.features.node_effects import NodeEffects
from graphs.circuit import Circuit
from graphs.nodes import Node
from patching.ablations import Ablation
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES
from patching.metrics import Metric
from patching.progress import Progress, silent
from patching.sites import Site
from patching.task import Task

ERRORS = ("circuit", "keep", "ablate", "ablate-attn-mlp")


@dataclass(frozen=True)
class Worth:
    """What some nodes are worth.

    Attributes:
        nodes: how many nodes that can be ablated are in the circuit.
        faithfulness, completeness: see the head of this module; nan where nothing can be lost.
        metric: m(C).
    """

    nodes: int
    faithfulness: float
    completeness: float
    metric: float


@dataclass(frozen=True)
class FaithfulnessCurve:
    """What circuits of several sizes are worth.

    Attributes:
        thresholds: node thresholds, ascending.
        worth: of the circuit at each.
        full, empty: m(all) and m(none).
        possible: how many nodes can be ablated.
        provenance: of the effects, with the task and the options of the judgement.
    """

    thresholds: tuple[float, ...]
    worth: tuple[Worth, ...]
    full: float
    empty: float
    possible: int
    provenance: Mapping[str, Any] = field(repr=False)

    def points(self, what: str = "faithfulness") -> list[tuple[float, float]]:
        """Sizes above 0 and ``faithfulness`` or ``completeness``, ascending in size; once each, undefined ones not."""
        if what not in ("faithfulness", "completeness"):
            raise InvalidOption(f"expected faithfulness or completeness; got {what!r}.")
        found = {one.nodes: getattr(one, what) for one in reversed(self.worth)}
        return [(float(nodes), value) for nodes, value in sorted(found.items()) if nodes and math.isfinite(value)]

    def size_for(self, faithfulness: float) -> int | None:
        """The fewest nodes, of the sizes here, with at least such a faithfulness; None where there are none."""
        sizes = [one.nodes for one in self.worth if one.faithfulness >= faithfulness]
        return min(sizes, default=None)


class Judge:
    """Nodes of a feature circuit, run with everything else ablated.

    Args:
        run: the dictionaries, and the model.
        task: prompts to judge on; best ones that the circuit was not found on.
        positions: whether nodes have positions.
        errors: ``circuit`` (error terms are nodes like others), ``keep`` (all of them), ``ablate`` (all of them) or
            ``ablate-attn-mlp`` (those, and the others are nodes).
        start_layer: sites of earlier layers, the embeddings with them, are never ablated; 0 ablates everywhere.
        ablation: what nodes outside the circuit carry; by default ``mean-positional`` for nodes with positions and
            ``corrupt`` for others.
        metric: the task's own by default.
        memory: bytes that one call may use beyond what is stored.

    Raises:
        InvalidOption: an unknown treatment of errors, or a layer that is not there.
    """

    def __init__(
        self,
        run: FeatureRun,
        task: Task,
        *,
        positions: bool,
        errors: str = "circuit",
        start_layer: int = 0,
        ablation: str | Ablation | None = None,
        metric: str | Metric | None = None,
        memory: int = DEFAULT_BYTES,
    ) -> None:
        if errors not in ERRORS:
            raise InvalidOption(f"expected errors out of {', '.join(ERRORS)}; got {errors!r}.")
        layers = len(run.model.blocks)
        if isinstance(start_layer, bool) or not isinstance(start_layer, int) or not 0 <= start_layer < layers:
            raise InvalidOption(f"expected a start layer from 0 to {layers - 1}; got {start_layer!r}.")
        if positions and task.clean.shape[1] != run.length:
            raise InvalidOption(
                f"expected prompts of {run.length} tokens, as those on which the nodes were found; got "
                f"{task.clean.shape[1]}. Sum over positions for prompts that are not aligned."
            )
        self.run, self.errors, self.start_layer = run, errors, start_layer
        dictionaries = list(run.dictionaries.values())
        if ablation is None:
            ablation = "mean-positional" if positions else "corrupt"
        made = ComponentRun(
            run.model, task, components=("features",), dictionaries=dictionaries, ablation=ablation, metric=metric,
            memory=memory,
        )  # fmt: skip
        self.components = made.positions() if positions else made
        self.full = float(made.clean_metric.mean())
        nothing = {site: torch.zeros(self._shape(site), dtype=torch.bool) for site in run.sites}
        self.empty = self._metric([self._mask(nothing)])[0]

    @property
    def possible(self) -> int:
        """How many nodes can be ablated."""
        return sum(
            math.prod(self._shape(site)) - self._fixed_errors(site) for site in self.run.sites if self._open(site)
        )

    def __call__(self, kept: Mapping[Site, Bool[Tensor, "*pos unit"]]) -> Worth:
        """The worth of some nodes: for each site which are in."""
        circuit, rest = self._mask(kept), self._mask({site: ~inside for site, inside in kept.items()})
        inside, outside = self._metric([circuit, rest])
        nodes = 0
        for site, chosen in kept.items():
            if self._open(site):
                counted = chosen[..., :-1] if self._fixed_errors(site) else chosen
                nodes += int(counted.sum())
        return Worth(nodes, self._share(inside), self._share(outside), inside)

    def of(self, nodes: Iterable[Node]) -> Worth:
        """The worth of some nodes, by name."""
        kept = {site: torch.zeros(self._shape(site), dtype=torch.bool) for site in self.run.sites}
        for node in nodes:
            site, unit = self.run.place(node)
            if (node.position is not None) != ("pos" in self.components.axes):
                raise InvalidOption(f"expected nodes that all have a position, or none that has; {node} is different.")
            kept[site][(unit,) if node.position is None else (node.position, unit)] = True
        return self(kept)

    def _share(self, metric: float) -> float:
        whole = self.full - self.empty
        return (metric - self.empty) / whole if abs(whole) > 1e-12 * max(1.0, abs(self.full)) else math.nan

    def _shape(self, site: Site) -> tuple[int, ...]:
        units = self.run.dictionaries[site].n_features + 1
        return (self.components.mask_shape[0], units) if "pos" in self.components.axes else (units,)

    def _open(self, site: Site) -> bool:
        """Whether a site is ablated at all."""
        return self.start_layer == 0 or (site.kind != "resid_pre" and site.layer >= self.start_layer)

    def _fixed_errors(self, site: Site) -> int:
        """How many error terms of a site are no nodes."""
        inner = site.kind in ("attn_out", "mlp_out")
        fixed = self.errors in ("keep", "ablate") or (self.errors == "ablate-attn-mlp" and inner)
        return math.prod(self._shape(site)[:-1]) if fixed else 0

    def _mask(self, kept: Mapping[Site, Bool[Tensor, "*pos unit"]]) -> Tensor:
        columns = []
        for site in self.run.sites:
            inside = kept[site].to(self.components.ones().dtype).cpu()
            if not self._open(site):
                inside = torch.ones_like(inside)
            elif self._fixed_errors(site):
                inside[..., -1] = float(self.errors == "keep")
            columns.append(inside)
        return torch.cat(columns, dim=-1)

    def _metric(self, masks: Sequence[Tensor]) -> list[float]:
        return self.components(torch.stack(list(masks))).mean(-1).tolist()


def faithfulness_curve(
    effects: NodeEffects,
    *,
    task: Task | None = None,
    thresholds: Sequence[float] | None = None,
    threshold_on: str = "mean",
    errors: str = "circuit",
    start_layer: int = 0,
    ablation: str | Ablation | None = None,
    metric: str | Metric | None = None,
    memory: int = DEFAULT_BYTES,
    progress: Progress = silent,
) -> FaithfulnessCurve:
    """Faithfulness and completeness of the nodes above each of several thresholds.

    Args:
        effects: of nodes.
        task: prompts to judge on; by default those of the effects.
        thresholds: 0 or more; by default 15 from a ten-thousandth of the strongest effect up to it, evenly in their
            logarithms.
        threshold_on: ``mean`` or ``example``, as in `NodeEffects.kept`.
        errors: ``circuit``, ``keep``, ``ablate`` or ``ablate-attn-mlp``; see `Judge`.
        start_layer: the first layer whose sites are ablated; the paper leaves a few layers as they are.
        ablation: what nodes outside the circuit carry; see `Judge` for the default.
        metric: the task's own by default.
        memory: bytes that one step may use beyond what is stored.
        progress: called with the number of thresholds done and to do.

    Returns:
        A point for each threshold. Effects of an identity dictionary give the curve of neurons.

    Raises:
        InvalidOption: an option out of its range, prompts of another length where nodes have positions, or no effects.

    Cost: two forwards for each threshold, three runs more.

    Source: arXiv 2403.19647, whose code ablates errors in m(none) whatever it does with them in the circuit
    in places; ours never does.

    Example:
        >>> from circuits.features import agreement_toy as toy
        >>> from circuits.features.node_effects import node_effects
        >>> run = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
        >>> curve = faithfulness_curve(node_effects(run), thresholds=[0.1, 10.0])
        >>> [(one.nodes, round(one.faithfulness, 3)) for one in curve.worth]
        [(6, 1.0), (0, 0.0)]
    """
    run = effects.run
    if thresholds is None:
        if not effects.strongest > 0:
            raise InvalidOption("expected nodes with effects; all are 0. Do clean and corrupt prompts differ?")
        thresholds = [effects.strongest * 10 ** (-4 + 4 * step / 14) for step in range(15)]
    if not thresholds:
        raise InvalidOption("expected at least one threshold; got none.")
    judged_on = run.task if task is None else task
    judge = Judge(
        run, judged_on, positions=effects.aggregation == "none", errors=errors, start_layer=start_layer,
        ablation=ablation, metric=metric, memory=memory,
    )  # fmt: skip
    ascending, worth = sorted(float(threshold) for threshold in thresholds), []
    for number, threshold in enumerate(ascending):
        worth.append(judge(effects.kept(threshold, threshold_on=threshold_on)))
        progress(number + 1, len(ascending))
    options = {
        "errors": errors, "start_layer": start_layer, "threshold_on": threshold_on,
        "judged on": judged_on.name, "judged with": judge.components.ablation.name, "prompts": len(judged_on),
    }  # fmt: skip
    provenance = {**effects.provenance, "judgement": options}
    return FaithfulnessCurve(tuple(ascending), tuple(worth), judge.full, judge.empty, judge.possible, provenance)


def faithfulness(
    circuit: Circuit,
    model: LensModel,
    task: Task,
    dictionaries: Sequence[Dictionary],
    *,
    errors: str = "circuit",
    start_layer: int = 0,
    ablation: str | Ablation | None = None,
    metric: str | Metric | None = None,
    memory: int = DEFAULT_BYTES,
) -> Worth:
    """Faithfulness and completeness of the nodes of a feature circuit; see `faithfulness_curve` for the options.

    Raises:
        InvalidOption: nodes that the dictionaries do not have, or some with a position and some without.

    Cost: five forwards.

    Example:
        >>> from circuits.features import agreement_toy as toy
        >>> round(faithfulness(toy.truth(), toy.model(), toy.task(), toy.dictionaries()).faithfulness, 6)
        1.0
    """
    run = FeatureRun(model, task, dictionaries, metric=metric, memory=memory)
    nodes = [node for node in circuit.nodes if node.kind != "logits"]
    positions = any(node.position is not None for node in nodes)
    judge = Judge(
        run, task, positions=positions, errors=errors, start_layer=start_layer, ablation=ablation, metric=metric,
        memory=memory,
    )  # fmt: skip
    return judge.of(nodes)

"""Faithfulness over circuit size, and its area: the CPR and CMD of the MIB benchmark.

One circuit says little about a method: how faithful it is depends on how many edges one asks for. The curve asks for
a series of sizes and sums up: CPR is the area under the faithfulness (more is better), CMD the area between it and 1
(less is better).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.bootstrap import Interval, Scale, percentiles
from circuits.knockout import mean_and_spread
from circuits.select import top_edges, top_nodes
from graphs.circuit import Circuit
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The sizes of MIB, as shares of the units; areas start at the first."""

Selection = Callable[..., Circuit]
"""Called as ``selection(scores, n=..., signed=...)``; `top_edges`, `greedy_edges` and `top_nodes` are some."""


@dataclass(frozen=True)
class Curve:
    """How faithful the circuits of one method are, by size.

    Attributes:
        method: that made the scores.
        metric: name of the metric.
        prompts: how many.
        level: of the scores: ``edge``, ``node`` or ``neuron``.
        selection: name of the function that made circuits.
        signed: whether units were ranked by how much they help, instead of by absolute effect.
        fractions: shares of the units asked for.
        asked: the same as numbers of units, rounded down.
        edges: edges of each circuit, after dead ends went.
        weighted_edges: the same, each edge out of an MLP weighted by the share of its neurons that were chosen; so that
            circuits of edges, nodes and neurons can be compared.
        faithfulness: (circuit - ablated) / (clean - ablated) at each fraction; not clipped, None without a gap.
        intervals: 95 % bootstrap intervals of those over prompts.
        cpr: area under the faithfulness, by trapezoids, from the first fraction to the last.
        cmd: area of abs(1 - faithfulness), likewise.
        cpr_interval: 95 % bootstrap interval.
        cmd_interval: likewise; near 0 the absolute value makes it lean upwards.
        random_cpr: mean CPR of random rankings put through the same selection.
        random_cpr_spread: its standard deviation over rankings.
        random_cmd: mean CMD of them.
        random_cmd_spread: its standard deviation.
        notes: what a reader should know before believing the figures.
    """

    method: str
    metric: str
    prompts: int
    level: str
    selection: str
    signed: bool
    fractions: tuple[float, ...]
    asked: tuple[int, ...]
    edges: tuple[int, ...]
    weighted_edges: tuple[float, ...]
    faithfulness: tuple[float | None, ...]
    intervals: tuple[Interval | None, ...]
    cpr: float | None
    cmd: float | None
    cpr_interval: Interval | None
    cmd_interval: Interval | None
    random_cpr: float | None
    random_cpr_spread: float | None
    random_cmd: float | None
    random_cmd_spread: float | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per fraction."""
        import pandas as pd

        names = ("asked", "edges", "weighted_edges", "faithfulness")
        columns: dict[str, Any] = {"fraction": self.fractions} | {name: getattr(self, name) for name in names}
        columns["low"] = [None if each is None else each[0] for each in self.intervals]
        columns["high"] = [None if each is None else each[1] for each in self.intervals]
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        ranking = "signed" if self.signed else "absolute"
        lines = [
            f"{self.method}, {self.selection}, {ranking} ranking; {self.metric}, {self.prompts} prompts",
            f"CPR {_figure(self.cpr, self.cpr_interval)}; random {_figure(self.random_cpr)}",
            f"CMD {_figure(self.cmd, self.cmd_interval)}; random {_figure(self.random_cmd)}",
            "share of units  edges  faithfulness",
        ]
        for fraction, edges, value in zip(self.fractions, self.edges, self.faithfulness, strict=True):
            lines.append(f"{fraction:>14.1%}  {edges:>5,}  {'undefined' if value is None else format(value, '.3f')}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def curve(
    run: MaskedRun,
    scores: Scores,
    *,
    selection: Selection | None = None,
    signed: bool = False,
    fractions: Sequence[float] = FRACTIONS,
    random_rankings: int = 3,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Curve:
    """Circuits of growing size from one ranking, each run alone, and the areas that sum them up.

    ``f(C) = (m(C) - m(ablated)) / (m(clean) - m(ablated))``,
    ``CPR = sum over neighbouring fractions x of (x2 - x1) (f1 + f2) / 2``, CMD the same of ``abs(1 - f)``.

    CPR is defined for the signed ranking and CMD for the absolute one; both are given for either.

    Cost: one masked run per distinct fraction, and as many per random ranking, all in one call of the run.

    Args:
        run: prompts (not those of the scores), ablation and metric.
        scores: of edges, nodes or neurons.
        selection: how a circuit of n units is made; `top_edges` by default, `top_nodes` for nodes and neurons.
        signed: rank by how much a unit helps instead of by absolute effect.
        fractions: ascending, above 0 and at most 1; at least two.
        random_rankings: how many random rankings to compare with; they go through the same selection.
        resamples: of prompts, for the intervals.
        seed: of rankings and resamples.
        progress: called with how many of the two stages, making and running circuits, are done.

    Raises:
        InvalidMask: scores of a model of another shape.
        InvalidOption: fractions out of order or range, or a negative count.

    Source: arXiv 2504.13151 (MIB), sections 3 and 4: n is rounded down, areas start at the first fraction and are
    taken over the fraction itself, not its logarithm. There, node circuits count edges; neurons are dimensions of a
    node's output, here those of MLPs.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> found = curve(run, atp.scores(run), fractions=(0.2, 0.4, 1.0), random_rankings=0)
        >>> found.asked, [round(value, 3) for value in found.faithfulness], round(found.cpr, 3)
        ((1, 3, 9), [0.0, 1.0, 1.0], 0.7)
    """
    _check(fractions, random_rankings)
    choose = selection or (top_edges if scores.level == "edge" else top_nodes)
    generator = torch.Generator().manual_seed(seed)
    asked = [math.floor(fraction * len(scores) + 1e-9) for fraction in fractions]
    rankings = [scores, *(_shuffled(scores, generator) for _ in range(random_rankings))]
    circuits = [choose(ranking, n=n, signed=signed) for ranking in rankings for n in asked]
    progress(1, 2)
    run = run.edges()
    values = run(torch.stack([run.mask_of(circuit) for circuit in circuits])).cpu()
    progress(2, 2)
    scale = Scale.of(run, resamples=resamples, generator=generator)
    shares = [scale.share(row) for row in values]
    own, own_circuits = values[: len(asked)], circuits[: len(asked)]
    areas = [_areas(shares[start : start + len(asked)], fractions) for start in range(0, len(shares), len(asked))]
    random_cpr, random_cpr_spread = mean_and_spread([cpr for cpr, _ in areas[1:]])
    random_cmd, random_cmd_spread = mean_and_spread([cmd for _, cmd in areas[1:]])
    cpr_interval, cmd_interval = _area_intervals(scale, own, fractions)
    return Curve(
        method=str(scores.provenance.get("method", "?")),
        metric=run.metric.name,
        prompts=len(run.task),
        level=scores.level,
        selection=getattr(choose, "__name__", type(choose).__name__),
        signed=signed,
        fractions=tuple(fractions),
        asked=tuple(asked),
        edges=tuple(circuit.n_edges for circuit in own_circuits),
        weighted_edges=tuple(weighted_edges(circuit) for circuit in own_circuits),
        faithfulness=tuple(shares[: len(asked)]),
        intervals=tuple(scale.share_interval(row) for row in own),
        cpr=areas[0][0],
        cmd=areas[0][1],
        cpr_interval=cpr_interval,
        cmd_interval=cmd_interval,
        random_cpr=random_cpr,
        random_cpr_spread=random_cpr_spread,
        random_cmd=random_cmd,
        random_cmd_spread=random_cmd_spread,
        notes=_notes(scale, own_circuits),
    )


def trapezoid(values: Sequence[float], fractions: Sequence[float]) -> float:
    """The area under a line through points, by trapezoids.

    Example:
        >>> trapezoid([0.0, 1.0, 1.0], [0.0, 0.5, 1.0])
        0.75
    """
    if len(values) != len(fractions):
        raise InvalidOption(f"expected as many values as fractions; got {len(values)} and {len(fractions)}.")
    steps = zip(pairwise(fractions), pairwise(values), strict=True)
    return math.fsum((right - left) * (a + b) / 2 for (left, right), (a, b) in steps)


def weighted_edges(circuit: Circuit) -> float:
    """How many edges a circuit has, those out of an MLP counted by the share of its neurons that were chosen.

    Without a choice of neurons in its provenance, the number of edges.
    """
    selection = circuit.provenance.get("selection", {})
    chosen, width = selection.get("neurons"), selection.get("neurons_per_mlp")
    if not chosen:
        return float(circuit.n_edges)
    return math.fsum(
        chosen.get(str(edge.source), 0) / width if edge.source.kind == "mlp" else 1.0 for edge in circuit.edges
    )


def _areas(shares: Sequence[float | None], fractions: Sequence[float]) -> tuple[float | None, float | None]:
    known = [share for share in shares if share is not None]
    if len(known) < len(fractions):
        return None, None
    return trapezoid(known, fractions), trapezoid([abs(1 - share) for share in known], fractions)


def _area_intervals(
    scale: Scale, values: Float[Tensor, "fraction example"], fractions: Sequence[float]
) -> tuple[Interval | None, Interval | None]:
    """The whole curve is made anew from each resample of the prompts."""
    if scale.gap is None:
        return None, None
    shares = scale.shares(values)
    places = torch.tensor(fractions, dtype=shares.dtype)
    cpr, cmd = (torch.trapezoid(each, places, dim=0) for each in (shares, (1 - shares).abs()))
    return percentiles(cpr), percentiles(cmd)


def _shuffled(scores: Scores, generator: torch.Generator) -> Scores:
    """Scores of the same units that rank them at random; all help, so that signed rankings use them all."""
    values = -torch.rand(len(scores), generator=generator, dtype=torch.float64)
    return replace(scores, values=values, standard_error=None, provenance={"method": "random"})


def _notes(scale: Scale, circuits: Sequence[Circuit]) -> tuple[str, ...]:
    notes = list(scale.doubts)
    empty = sum(not circuit.n_edges for circuit in circuits)
    if empty:
        notes.append(f"the {empty} smallest of {len(circuits)} circuits have no edges.")
    return tuple(notes)


def _check(fractions: Sequence[float], random_rankings: int) -> None:
    ascending = all(left < right for left, right in pairwise(fractions))
    if len(fractions) < 2 or not ascending or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise InvalidOption(f"expected two or more ascending fractions above 0 and at most 1; got {list(fractions)}.")
    if random_rankings < 0:
        raise InvalidOption(f"expected counts of 0 or more; got {random_rankings=}.")


def _figure(value: float | None, interval: Interval | None = None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})" if interval else "")

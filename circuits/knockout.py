"""What a circuit's edges are good for, one by one and taken away together.

Minimality asks what the circuit loses with each edge: an edge whose loss changes nothing need not be there. The
knock-out curve asks what the whole model loses as the circuit's edges go, the most important first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.bootstrap import Interval, Scale, percentiles
from graphs.circuit import Circuit
from graphs.nodes import Edge
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

BLOCK = 64
"""Masks made at a time, so that many of them need not be held at once."""


@dataclass(frozen=True)
class EdgeEffect:
    """What taking one edge out of a circuit does.

    Attributes:
        edge: its name.
        effect: metric(circuit without it) - metric(circuit), mean over prompts; negative where the edge helps.
        interval: 95 % bootstrap interval of that over prompts.
        share: the effect over the gap between clean and ablated; None without a gap.
        share_interval: its interval.
    """

    edge: str
    effect: float
    interval: Interval | None
    share: float | None
    share_interval: Interval | None


@dataclass(frozen=True)
class Minimality:
    """The effect of each edge within its circuit, most important first.

    Attributes:
        rows: one per edge.
    """

    rows: tuple[EdgeEffect, ...]

    @property
    def unproven(self) -> tuple[str, ...]:
        """Edges whose interval holds 0: on these prompts nothing shows that they matter."""
        return tuple(row.edge for row in self.rows if row.interval and row.interval[0] <= 0 <= row.interval[1])

    def to_frame(self) -> pd.DataFrame:
        """One row per edge."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(EdgeEffect.__dataclass_fields__))

    def __str__(self) -> str:
        if not self.rows:
            return "no edges"
        weakest = self.rows[-1]
        return (
            f"each of {len(self.rows):,} edges taken out alone: effects from {self.rows[0].effect:+.3g} "
            f"({self.rows[0].edge}) to {weakest.effect:+.3g} ({weakest.edge}); "
            f"{len(self.unproven):,} not told apart from 0"
        )


@dataclass(frozen=True)
class KnockOut:
    """What the model still does as more and more edges of a circuit are ablated.

    Attributes:
        order: the edges in the order in which they go.
        ranked_by: ``scores`` of the circuit, or ``minimality`` where edges lack scores.
        removed: how many are gone, at each point; the last is all of them.
        left: share of the gap that is left, at each point: 1 with none gone; None without a gap.
        intervals: 95 % bootstrap intervals of those.
        random: the same for edges drawn from the whole model, mean over several draws; None if none were asked for.
        random_spread: standard deviation over the draws.
    """

    order: tuple[str, ...]
    ranked_by: str
    removed: tuple[int, ...]
    left: tuple[float | None, ...]
    intervals: tuple[Interval | None, ...]
    random: tuple[float | None, ...] | None
    random_spread: tuple[float | None, ...] | None

    def to_frame(self) -> pd.DataFrame:
        """One row per point."""
        import pandas as pd

        columns: dict[str, Any] = {"removed": self.removed, "left": self.left, "interval": self.intervals}
        if self.random is not None:
            columns |= {"random": self.random, "random_spread": self.random_spread}
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        half = next((k for k, left in zip(self.removed, self.left, strict=True) if left is not None and left < 0.5), 0)
        if not half:
            return f"with all {len(self.order):,} edges gone, no point at which less than half was left"
        return f"less than half is left once {half:,} of {len(self.order):,} edges are gone (by {self.ranked_by})"


def minimality(
    run: MaskedRun, circuit: Circuit, *, resamples: int = 1000, seed: int = 0, progress: Progress = silent
) -> Minimality:
    """Take each edge out of the circuit alone.

    ``effect = metric(circuit without the edge) - metric(circuit)``, everything outside the circuit ablated throughout.

    Cost: one masked run per edge and one for the circuit.

    Args:
        run: prompts (preferably not those of the search), ablation and metric.
        circuit: of this model.
        resamples: of prompts, for the intervals.
        seed: of the resamples.
        progress: called with the number of edges done and in all.

    Returns:
        One row per edge, by importance.

    Raises:
        InvalidMask: the circuit is of a model of another shape, or of positions that the prompts lack.
        InvalidOption: a negative number of resamples.

    Source: minimality as in arXiv 2211.00593 (section 4), of edges instead of heads, and without its choice of a
    set to take out first.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> found = minimality(run, top_edges(atp.scores(run), n=3))
        >>> [(row.edge, row.effect) for row in found.rows]
        [('input->a0.h1<v>', -0.75), ('a0.h1->logits', -0.75), ('input->logits', -0.5)]
    """
    run = edge_run(run, circuit)
    scale = Scale.of(run, resamples=resamples, generator=torch.Generator().manual_seed(seed))
    whole = run(run.mask_of(circuit)).cpu()
    places = [_places(run, edge) for edge in circuit.edges]
    cover = _cover(run, places)

    def mask(number: int) -> Tensor:
        without = cover.index_add(0, places[number], torch.full((len(places[number]),), -1.0, dtype=cover.dtype))
        return (without > 0).to(cover.dtype).reshape(run.mask_shape)

    values = in_blocks(run, circuit.n_edges, mask, progress=progress)
    rows = [_effect(scale, str(edge), without - whole) for edge, without in zip(circuit.edges, values, strict=True)]
    return Minimality(tuple(sorted(rows, key=lambda row: -abs(row.effect))))


def knock_out(
    run: MaskedRun,
    circuit: Circuit,
    *,
    points: int = 20,
    random_orders: int = 5,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> KnockOut:
    """Ablate the circuit's edges in the whole model, the most important first, and see what is left.

    ``left = (metric - ablated) / (clean - ablated)`` with k edges ablated and all others kept. With every edge of the
    circuit gone it is the completeness gap of `evaluate`.

    Cost: ``points + 1`` masked runs, as many per random order, and one per edge if the circuit has edges without
    scores.

    Args:
        run: prompts (preferably not those of the search), ablation and metric.
        circuit: of this model. Importance is the absolute score; if an edge has none, its absolute effect within the
            circuit (`minimality`).
        points: at most so many sizes after 0, evenly spaced.
        random_orders: how many times as many edges are drawn from the whole model, to compare with.
        resamples: of prompts, for the intervals.
        seed: of draws and resamples.
        progress: called with the number of runs done and in all.

    Raises:
        InvalidMask: the circuit is of a model of another shape, or of positions that the prompts lack.
        InvalidOption: a count is out of range.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> knock_out(run, top_edges(atp.scores(run), n=3), random_orders=0).left
        (1.0, 0.4, 0.4, 0.0)
    """
    if points < 1 or random_orders < 0:
        raise InvalidOption(f"expected points of at least 1 and random_orders of at least 0; got {points=}, "
                            f"{random_orders=}.")  # fmt: skip
    run = edge_run(run, circuit)
    generator = torch.Generator().manual_seed(seed)
    order, ranked_by = _order(run, circuit, seed=seed)
    size = len(order)
    removed = sorted({round(size * step / min(points, size)) for step in range(min(points, size) + 1)} if size else {0})
    orders = [[_places(run, edge) for edge in order]]
    orders += [_random_places(run, orders[0], generator) for _ in range(random_orders)]

    def mask(number: int) -> Tensor:
        draw, point = divmod(number, len(removed))
        kept = run.ones().flatten()
        for places in orders[draw][: removed[point]]:
            kept[places] = 0
        return kept.reshape(run.mask_shape)

    values = in_blocks(run, len(removed) * (1 + random_orders), mask, progress=progress)
    scale = Scale.of(run, resamples=resamples, generator=generator)
    shares = [scale.share(row) for row in values]
    by_draw = [shares[start : start + len(removed)] for start in range(0, len(shares), len(removed))]
    columns = [mean_and_spread(column) for column in zip(*by_draw[1:], strict=True)]
    return KnockOut(
        order=tuple(map(str, order)),
        ranked_by=ranked_by,
        removed=tuple(removed),
        left=tuple(by_draw[0]),
        intervals=tuple(scale.share_interval(row) for row in values[: len(removed)]),
        random=tuple(mean for mean, _ in columns) if random_orders else None,
        random_spread=tuple(spread for _, spread in columns) if random_orders else None,
    )


def edge_run(run: MaskedRun, circuit: Circuit) -> MaskedRun:
    """The view of a run that a circuit's edges need: by position if an edge has one."""
    run = run.edges()
    return run.positions() if any(edge.position is not None for edge in circuit.edges) else run


def in_blocks(
    run: MaskedRun, count: int, mask: Callable[[int], Tensor], *, progress: Progress = silent
) -> Float[Tensor, "sample example"]:
    """The metric under masks that are made when they are needed, on the CPU."""
    parts = [torch.zeros(0, len(run.task), dtype=torch.float64)]
    for start in range(0, count, BLOCK):
        numbers = range(start, min(count, start + BLOCK))
        parts.append(run(torch.stack([mask(number) for number in numbers])).detach().cpu())
        progress(numbers.stop, count)
    return torch.cat(parts)


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1); None where there is nothing to take them of."""
    there = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if not len(there):
        return None, None
    return float(there.mean()), float(there.std()) if len(there) > 1 else None


def _places(run: MaskedRun, edge: Edge) -> Int[Tensor, " entry"]:
    """The entries of a flat mask that an edge holds: one, or one for each position."""
    number = run.graph.number(edge.everywhere())
    if not run.per_position:
        return torch.tensor([number])
    positions = torch.arange(run.mask_shape[0]) if edge.position is None else torch.tensor([edge.position])
    return positions * run.n_units + number


def _cover(run: MaskedRun, places: Sequence[Int[Tensor, " entry"]]) -> Float[Tensor, " entry"]:
    """How many edges hold each entry: an edge at every position may cover one at a position."""
    cover = run.zeros().flatten()
    for each in places:
        cover[each] += 1
    return cover


def _random_places(
    run: MaskedRun, own: Sequence[Int[Tensor, " entry"]], generator: torch.Generator
) -> list[Int[Tensor, " entry"]]:
    """The entries of as many random edges; at one position each if all of the circuit's are."""
    if run.per_position and all(len(each) == 1 for each in own):
        return list(torch.randperm(run.ones().numel(), generator=generator)[: len(own)].split(1))
    numbers = torch.randperm(run.n_units, generator=generator)[: len(own)].tolist()
    return [_places(run, run.graph.edge_at(number)) for number in numbers]


def _order(run: MaskedRun, circuit: Circuit, *, seed: int) -> tuple[list[Edge], str]:
    """Edges by importance, ties in the order of the graph."""
    if len(circuit.scores) == circuit.n_edges:
        return sorted(circuit.edges, key=lambda edge: -abs(circuit.scores[edge])), "scores"
    effects = {row.edge: row.effect for row in minimality(run, circuit, resamples=0, seed=seed).rows}
    return sorted(circuit.edges, key=lambda edge: -abs(effects[str(edge)])), "minimality"


def _effect(scale: Scale, edge: str, change: Float[Tensor, " example"]) -> EdgeEffect:
    shares = scale.shares(change + scale.ablated)
    gap = scale.gap
    return EdgeEffect(
        edge=edge,
        effect=float(change.mean()),
        interval=scale.mean_interval(change),
        share=None if gap is None else float(change.mean()) / gap,
        share_interval=None if gap is None else percentiles(shares),
    )

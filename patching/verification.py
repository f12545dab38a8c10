"""How much checking finds the true top nodes: the comparison of the AtP* paper, on any units.

A cheap estimate is worth what it saves: units are patched one by one in the order of the estimate until all the true
top K are found, and the runs spent are set against an oracle's K (`cost_of_verified_recall`, `compare`). Beside AtP
stand estimates that need no gradient (`iterative`, `subsampling`, `blocks`, `hierarchical`), and a bound on what
checking may still have missed (`SubsetStatistics.bound`).

All of it needs one callable only, which patches sets of units jointly, so it holds for heads, neurons, positions and
features alike. Costs are in forward passes per prompt pair, a backward counting as two; the clean pass, which every
method needs, is not counted.

Source: arXiv 2403.00745, section 4 and its diagnostic. The paper publishes no code: the formulas here are stated in
full where they are used, and are what to compare with.

Example:
    >>> import torch
    >>> from patching import atp, exact, toy
    >>> from patching.masked import MaskedRun
    >>> run = MaskedRun(toy.model(), toy.task()).nodes()
    >>> def patched(chosen):
    ...     return run((~chosen).to(run.ones())) - run.clean_metric
    >>> statistics = subsampling(patched, run.n_units, samples=200, share=0.2)
    >>> cheap = Estimate("AtP", atp.scores(run).importance, cost=4.0)
    >>> table = compare([cheap, statistics.estimate(), iterative(run.n_units)], exact.scores(run).values).to_frame()
    >>> table["method"].tolist()
    ['AtP', 'subsampling', 'iterative']
"""

from __future__ import annotations

import heapq
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphs.atomic import write_bytes
from graphs.export.figure import METADATA
from patching.errors import InvalidOption, NotFinite
from patching.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Patched = Callable[[Bool[Tensor, "subset unit"]], Float[Tensor, "subset example"]]
"""Effect of jointly patching each subset of units, per prompt: metric(patched) - metric(base). Masks are on the CPU."""


@dataclass(frozen=True)
class Estimate:
    """What a method says of every unit, and what that cost.

    Attributes:
        name: of the method; what tables and figures show.
        importance: of every unit, at least 0; kept as float64 on the CPU. Only its order matters here.
        cost: forward passes spent per prompt pair (1 backward = 2 forwards).
        provenance: method, options, seed.

    Raises:
        InvalidOption: an importance or the cost is negative or not finite.

    Example:
        >>> Estimate("AtP", torch.tensor([-0.5, 2.0]).abs(), cost=4.0).order()
        tensor([1, 0])
    """

    name: str
    importance: Float[Tensor, " unit"]
    cost: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        importance = self.importance.detach().double().cpu()
        object.__setattr__(self, "importance", importance)
        if importance.ndim != 1 or not len(importance) or not bool((importance.isfinite() & (importance >= 0)).all()):
            raise InvalidOption(
                f"expected one finite importance of at least 0 per unit for {self.name!r}; got shape "
                f"{tuple(importance.shape)} with values that are empty, negative, infinite or NaN. "
                "Pass effects.abs(), and look at what made effects that are not finite."
            )
        if not 0 <= self.cost < math.inf:
            raise InvalidOption(
                f"expected a cost of at least 0 forward passes for {self.name!r}; got {self.cost}. "
                "Count the forward passes, and two for each backward."
            )

    def order(self) -> Int[Tensor, " unit"]:
        """Unit numbers from most to least important; ties go to the lower number."""
        return _order(self.importance)


# ------------------------------------------------------------------------------------------------------ estimates


def iterative(n_units: int, *, seed: int = 0) -> Estimate:
    """An uninformed order: random importances, all different, for free.

    Verifying in this order is brute force; it finds the true first unit after ``(n_units + 1) / 2`` runs on average.

    Args:
        n_units: how many units there are.
        seed: of the order.

    Raises:
        InvalidOption: there are no units.

    Example:
        >>> iterative(4).importance.sort().values.tolist()
        [0.25, 0.5, 0.75, 1.0]
    """
    _check_at_least(1, n_units=n_units)
    ranks = torch.randperm(n_units, generator=torch.Generator().manual_seed(seed))
    return Estimate("iterative", (ranks + 1).double() / n_units, 0.0, {"method": "iterative", "seed": seed})


def subsampling(
    patched: Patched,
    n_units: int,
    *,
    samples: int,
    share: float = 0.05,
    seed: int = 0,
    chunk: int = 64,
    progress: Progress = silent,
) -> SubsetStatistics:
    """What patching random subsets says of each unit in them.

    Each subset S holds each unit independently with probability ``share``. With e(S) the effect averaged over prompts,
    ``effect(u) = mean of e(S) with u in S - mean of e(S) with u not in S``.

    Its expectation is the effect of also patching u when each other unit is patched with probability ``share``: the
    effect of u alone only if units do not interact, or as ``share`` goes to 0.

    Cost: ``samples`` forward passes, whatever the number of units.

    Args:
        patched: joint effects of subsets.
        n_units: how many units there are.
        samples: number of subsets.
        share: probability of a unit to be in a subset.
        seed: of the subsets. They do not depend on ``chunk``.
        chunk: subsets per call of ``patched``.
        progress: called with the number of subsets done and to do.

    Raises:
        InvalidOption: an option is out of range, or some unit is in, or out of, fewer than two subsets. Nothing has
            been run then.
        NotFinite: an effect is NaN or infinite.

    Source: arXiv 2403.00745, section 4 ("subsampling").

    Example:
        >>> weights = torch.tensor([0.0, 3.0, 0.0, -1.0])
        >>> found = subsampling(lambda chosen: (chosen.float() @ weights)[:, None], 4, samples=500, share=0.5)
        >>> found.estimate().order()[:2]
        tensor([1, 3])
    """
    _check_at_least(1, n_units=n_units, samples=samples, chunk=chunk)
    if not 0 < share < 1:
        raise InvalidOption(f"expected a share between 0 and 1, such as 0.05; got {share}.")

    def subsets() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, samples, chunk):
            yield torch.rand(min(chunk, samples - start), n_units, generator=generator, dtype=torch.float64) < share

    counts = torch.stack([chosen.sum(0) for chosen in subsets()]).sum(0)
    rarest = int(torch.minimum(counts, samples - counts).min())
    if rarest < 2:
        raise InvalidOption(
            f"expected every one of {n_units:,} units in at least 2 subsets and out of at least 2; got a unit with "
            f"{rarest} at samples={samples:,}. At share={share:g} take samples={_enough(n_units, samples, share):,}."
        )
    inside, outside = _Moments(n_units), _Moments(n_units)
    done = 0
    for chosen in subsets():
        effects = _effects(patched, chosen)
        inside.add(chosen, effects)
        outside.add(~chosen, effects)
        done += len(chosen)
        progress(done, samples)
    return SubsetStatistics(
        count_in=inside.count,
        count_out=outside.count,
        mean_in=inside.mean,
        mean_out=outside.mean,
        variance_in=inside.variance,
        variance_out=outside.variance,
        share=share,
        samples=samples,
        seed=seed,
    )


def blocks(patched: Patched, n_units: int, *, size: int, seed: int = 0, chunk: int = 64) -> Estimate:
    """Patch the blocks of a random partition; each unit gets ``abs(effect of its block)``.

    Cost: ``ceil(n_units / size)`` forward passes, one per block.

    Args:
        patched: joint effects of subsets.
        n_units: how many units there are.
        size: units in a block; the last block may be smaller.
        seed: of the partition.
        chunk: blocks per call of ``patched``.

    Raises:
        InvalidOption: an option is out of range.
        NotFinite: an effect is NaN or infinite.

    Source: arXiv 2403.00745, section 4 ("blocks").

    Example:
        >>> weights = torch.tensor([0.0, 3.0, 0.0, 0.0])
        >>> found = blocks(lambda chosen: (chosen.float() @ weights)[:, None], 4, size=2)
        >>> found.importance.tolist().count(3.0), found.cost
        (2, 2.0)
    """
    _check_at_least(1, n_units=n_units, size=size, chunk=chunk)
    parts = _shuffled(n_units, seed).split(size)
    importance = torch.zeros(n_units, dtype=torch.float64)
    for start in range(0, len(parts), chunk):
        some = parts[start : start + chunk]
        for part, effect in zip(some, _effects(patched, _masks(some, n_units)).abs(), strict=True):
            importance[part] = effect
    return Estimate("blocks", importance, float(len(parts)), {"method": "blocks", "size": size, "seed": seed})


def hierarchical(patched: Patched, n_units: int, *, budget: int, branching: int = 2, seed: int = 0) -> Estimate:
    """Split a random partition further where it matters: always the block of largest ``abs(effect)`` next.

    1. Split all units, in random order, into ``branching`` blocks of nearly equal size; patch each.
    2. Split the block of largest ``abs(effect)`` that has more than one unit into as many (the earlier block on ties).
    3. Stop when the runs for the next split would exceed the budget, or every block is a single unit.

    A unit that became a block of its own gets its ``abs(effect)``, exactly. Members of a block that was not split get
    ``abs(effect) / size``: the mean of what they would have if they all pushed the same way and did not interact, so
    that a large block with a middling effect does not overtake a single unit that is known to have one. Opposite
    effects that cancel within a block are missed, as by `blocks`.

    Cost: the evaluations spent, at most ``budget``.

    Args:
        patched: joint effects of subsets; called with ``branching`` subsets at most.
        n_units: how many units there are.
        budget: the most subsets to evaluate.
        branching: parts of a split.
        seed: of the order of units.

    Raises:
        InvalidOption: an option is out of range, or the budget does not pay for the first split.
        NotFinite: an effect is NaN or infinite.

    Source: arXiv 2403.00745, section 4 ("hierarchical"); the two rules for members are this module's.

    Example:
        >>> weights = torch.zeros(64)
        >>> weights[37] = 3.0
        >>> found = hierarchical(lambda chosen: (chosen.float() @ weights)[:, None], 64, budget=12)
        >>> int(found.order()[0]), found.cost
        (37, 12.0)
    """
    _check_at_least(1, n_units=n_units)
    _check_at_least(2, branching=branching)
    _check_at_least(min(branching, n_units), budget=budget)
    importance = torch.zeros(n_units, dtype=torch.float64)
    waiting: list[tuple[float, int, Tensor]] = [(-math.inf, 0, _shuffled(n_units, seed))]
    spent = 0
    while waiting and spent + min(branching, len(waiting[0][2])) <= budget:
        _, _, block = heapq.heappop(waiting)
        parts = [part for part in block.tensor_split(branching) if len(part)]
        for part, effect in zip(parts, _effects(patched, _masks(parts, n_units)).abs().tolist(), strict=True):
            importance[part] = effect / len(part)
            spent += 1
            if len(part) > 1:
                heapq.heappush(waiting, (-effect, spent, part))
    options = {"method": "hierarchical", "budget": budget, "branching": branching, "seed": seed}
    return Estimate("hierarchical", importance, float(spent), options)


# ---------------------------------------------------------------------------------- subset statistics and the bound


@dataclass(frozen=True)
class FalseNegativeBound:
    """How large an effect may still hide among the units that were not verified.

    Attributes:
        bound: on the absolute subset-averaged effect.
        confidence: that no unit that is not verified has a larger one.
        unit: the number of the unit whose own bound this is.
        statement: all of it in words, with what it does not say.
    """

    bound: float
    confidence: float
    unit: int
    statement: str


@dataclass(frozen=True)
class SubsetStatistics:
    """For each unit, the effects of the random subsets with it and without it; made by `subsampling`.

    Attributes:
        count_in: subsets that held the unit.
        count_out: subsets that did not.
        mean_in: mean effect of those with it.
        mean_out: mean effect of those without it.
        variance_in: variance (n - 1) of the effects with it.
        variance_out: variance (n - 1) of the effects without it.
        share: probability of a unit to be in a subset.
        samples: number of subsets.
        seed: of the subsets.
    """

    count_in: Float[Tensor, " unit"]
    count_out: Float[Tensor, " unit"]
    mean_in: Float[Tensor, " unit"]
    mean_out: Float[Tensor, " unit"]
    variance_in: Float[Tensor, " unit"]
    variance_out: Float[Tensor, " unit"]
    share: float
    samples: int
    seed: int

    @property
    def effects(self) -> Float[Tensor, " unit"]:
        """Subset-averaged effect of each unit, with its sign: mean in - mean out."""
        return self.mean_in - self.mean_out

    @property
    def standard_error(self) -> Float[Tensor, " unit"]:
        """Of the effects, over subsets: ``sqrt(variance_in / count_in + variance_out / count_out)``."""
        return (self.variance_in / self.count_in + self.variance_out / self.count_out).sqrt()

    @property
    def freedom(self) -> Float[Tensor, " unit"]:
        """Degrees of freedom of that error after Welch and Satterthwaite; at least 1."""
        a, b = self.variance_in / self.count_in, self.variance_out / self.count_out
        spread = a**2 / (self.count_in - 1) + b**2 / (self.count_out - 1)
        return torch.where(spread > 0, (a + b) ** 2 / spread, self.count_in + self.count_out - 2).clamp(min=1)

    def estimate(self) -> Estimate:
        """Absolute effects, at the cost of one forward per subset."""
        options = {"method": "subsampling", "samples": self.samples, "share": self.share, "seed": self.seed}
        return Estimate("subsampling", self.effects.abs(), float(self.samples), options)

    def bound(self, *, confidence: float = 0.9, verified: Sequence[int] = ()) -> FalseNegativeBound:
        """What no unverified unit's effect exceeds, with the given confidence.

        ``bound = max over u not verified of  abs(effect(u)) + t(nu(u), confidence) * SE(u)``

        with the one-sided t quantile at Welch and Satterthwaite's degrees of freedom. No correction for many units is
        due: the bound fails only if it lies below the largest true effect, so only if that one unit's own bound does.

        It bounds the *subset-averaged* effect, that of also patching u when each other unit is patched with
        probability ``share``. This equals the effect of patching u alone only without interactions between units.
        The t quantile is exact for normal effects, and approximate for others; prompts count as given. The confidence
        holds for units verified for another reason than these same statistics (AtP, or another seed): leaving out
        those that look largest here leaves units whose noise made them look small.

        Args:
            confidence: between 0.5 and 1.
            verified: numbers of the units whose effect was measured.

        Raises:
            InvalidOption: confidence or a number is out of range, or every unit is verified.

        Source: arXiv 2403.00745, its diagnostic for false negatives, as a Welch test for each unit.

        Example:
            >>> weights = torch.tensor([0.0, 3.0, 0.0, -1.0])
            >>> found = subsampling(lambda chosen: (chosen.float() @ weights)[:, None], 4, samples=500, share=0.5)
            >>> found.bound(verified=[1]).unit
            3
        """
        n_units = len(self.mean_in)
        wrong = [number for number in verified if not 0 <= number < n_units]
        if wrong:
            raise InvalidOption(f"expected verified units from 0 to {n_units - 1:,}; got {wrong[0]}.")
        remaining = torch.ones(n_units, dtype=torch.bool)
        remaining[list(verified)] = False
        if not remaining.any():
            raise InvalidOption(
                f"expected a unit that is not verified; got all {n_units:,} as verified. Nothing can be missed then."
            )
        margin = t_quantile(confidence, self.freedom) * self.standard_error
        upper = torch.where(remaining, self.effects.abs() + margin, -math.inf)
        unit = int(upper.argmax())
        bound = float(upper[unit])
        statement = (
            f"With {100 * confidence:g}% confidence, none of the {int(remaining.sum()):,} units that were not verified "
            f"has an absolute effect above {bound:.4g} (unit {unit}), where effect means the average over random "
            f"subsets in which each other unit is patched with probability {self.share:g}. It equals the effect of "
            "patching the unit alone only if units do not interact."
        )
        return FalseNegativeBound(bound, confidence, unit, statement)


def t_quantile(confidence: float, freedom: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The quantile of Student's t distribution: what a t variable stays below with the given probability.

    With ``t = sqrt(nu) tan(a)``, ``P(0 < T < t) = C(nu) * integral from 0 to a of cos(x)**(nu - 1) dx``: an integral
    of a smooth function, by Gauss and Legendre's rule, solved for the angle a by Newton's method. The integral is
    concave in a, so the steps from 0 never overshoot.

    Args:
        confidence: from 0.5 to below 1; to 0.9999 the relative error is below 1e-9.
        freedom: degrees of freedom nu, at least 1; taken as 1e7 if they are more.

    Raises:
        InvalidOption: confidence or freedom is out of range.

    Example:
        >>> [round(value, 4) for value in t_quantile(0.95, torch.tensor([1.0, 10.0])).tolist()]
        [6.3138, 1.8125]
    """
    if not 0.5 <= confidence < 1:
        raise InvalidOption(f"expected a confidence from 0.5 to below 1, such as 0.9; got {confidence}.")
    if not bool((freedom >= 1).all()):
        raise InvalidOption("expected at least 1 degree of freedom; got fewer. Take more samples.")
    flat = freedom.double().flatten().clamp(max=1e7)
    return torch.cat([_t_quantile(confidence, part) for part in flat.split(_PART)]).reshape(freedom.shape)


_PART: Final = 1 << 14  # values at a time, so that their quadrature fits in a few MB
_NEWTON_STEPS: Final = 100


def _t_quantile(confidence: float, freedom: Float[Tensor, " value"]) -> Float[Tensor, " value"]:
    knots, weights = (torch.from_numpy(part)[:, None] for part in np.polynomial.legendre.leggauss(64))
    left = (1 - knots) / 2  # x = a (1 - left**4): knots crowd towards a, near which cos(x)**(nu - 1) may be steep
    places, weights = 1 - left**4, 2 * weights * left**3
    target = (confidence - 0.5) * math.sqrt(math.pi) * torch.exp(-_log_gamma_ratio(freedom))

    def density(angle: Tensor) -> Tensor:
        return torch.exp((freedom - 1) / 2 * torch.log1p(-(angle.sin() ** 2)))

    angle = torch.zeros_like(freedom)
    for _ in range(_NEWTON_STEPS):
        reached = angle * (weights * density(angle * places)).sum(0)
        step = (target - reached) / density(angle)
        angle = angle + step
        if bool((step.abs() <= 1e-11 * angle).all()):
            break
    return freedom.sqrt() * angle.tan()


def _log_gamma_ratio(freedom: Float[Tensor, " value"]) -> Float[Tensor, " value"]:
    """log(Gamma((nu + 1) / 2) / Gamma(nu / 2)); of many degrees of freedom by its series, where the two cancel."""
    series = (freedom / 2).log() / 2 - 1 / (4 * freedom) + 1 / (24 * freedom**3)
    return torch.where(freedom > 200, series, torch.lgamma((freedom + 1) / 2) - torch.lgamma(freedom / 2))


# ---------------------------------------------------------------------------------------- cost of verified recall


@dataclass(frozen=True)
class Recall:
    """What finding the true top K costs with one estimate, for every K.

    Attributes:
        name: of the estimate.
        estimate_cost: forward passes that the estimate took.
        cost: of estimating and verifying until the true top K are found, in forward passes; K = 1 comes first.
        relative: ``cost / K``; 1 for an oracle.
        aggregate: mean of the relative cost, geometric and weighted by 1 / K.
    """

    name: str
    estimate_cost: float
    cost: Float[Tensor, " k"]
    relative: Float[Tensor, " k"]
    aggregate: float


def cost_of_verified_recall(estimate: Estimate, true: Float[Tensor, " unit"], *, k: int | None = None) -> Recall:
    """The runs until patching in the order of the estimate has met all the true top K units.

    ``cost_K = estimate.cost + max over j <= K of (rank by the estimate of the true j-th unit)``, ranks from 1,
    ``relative_K = cost_K / K``, ``aggregate = exp(sum_K log(relative_K) / K  /  sum_K 1 / K)``.

    The true top K are those of largest ``abs(true)``. Ties go to the lower unit number in both orders.

    Args:
        estimate: whose order is followed.
        true: effects of patching each unit alone, as of `exact.scores`; signs do not matter.
        k: the largest K, also for the aggregate; all units by default.

    Raises:
        InvalidOption: the lengths differ, a true effect is not finite, or k is out of range.

    Source: arXiv 2403.00745, section 4 ("cost of verified recall").

    Example:
        >>> cheap = Estimate("cheap", torch.tensor([0.5, 0.9, 0.1]), cost=2.0)
        >>> cost_of_verified_recall(cheap, torch.tensor([-3.0, 2.0, 1.0])).cost.tolist()
        [4.0, 4.0, 5.0]
    """
    n_units = len(estimate.importance)
    if len(true) != n_units or not bool(true.isfinite().all()):
        raise InvalidOption(
            f"expected {n_units:,} finite true effects, one per unit of {estimate.name!r}; got {len(true):,}"
            f"{'' if bool(true.isfinite().all()) else ' with NaN or infinity'}."
        )
    if k is not None and not 1 <= k <= n_units:
        raise InvalidOption(f"expected k from 1 to {n_units:,}, the number of units; got {k}.")
    rank = torch.empty(n_units, dtype=torch.float64)
    rank[estimate.order()] = torch.arange(1, n_units + 1, dtype=torch.float64)
    found = rank[_order(true.detach().double().cpu().abs())[:k]]
    cost = estimate.cost + found.cummax(0).values
    sizes = torch.arange(1, len(cost) + 1, dtype=torch.float64)
    relative = cost / sizes
    aggregate = math.exp(float((relative.log() / sizes).sum() / (1 / sizes).sum()))
    return Recall(estimate.name, estimate.cost, cost, relative, aggregate)


def compare(estimates: Sequence[Estimate], true: Float[Tensor, " unit"], *, k: int | None = None) -> Comparison:
    """The cost of verified recall of several estimates against the same true effects.

    Args:
        estimates: of the same units, each under its own name.
        true: effects of patching each unit alone.
        k: the largest K; all units by default.

    Raises:
        InvalidOption: there is no estimate, a name comes twice, or as in `cost_of_verified_recall`.

    Example:
        >>> true = torch.tensor([3.0, -2.0, 1.0])
        >>> compare([Estimate("oracle", true.abs()), iterative(3)], true).recalls[0].aggregate
        1.0
    """
    names = [estimate.name for estimate in estimates]
    if not names:
        raise InvalidOption("expected at least one estimate to compare; got none.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidOption(f"expected a different name for each estimate; got {twice!r} twice. Rename one.")
    return Comparison(tuple(cost_of_verified_recall(estimate, true, k=k) for estimate in estimates))


@dataclass(frozen=True)
class Comparison:
    """Several estimates side by side.

    Attributes:
        recalls: one per estimate, in the order given.
    """

    recalls: tuple[Recall, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per method: cost of the estimate, aggregate, and the relative cost at K = 1, 10 and 100."""
        import pandas as pd

        rows = [
            {"method": recall.name, "estimate_cost": recall.estimate_cost, "aggregate": recall.aggregate}
            | {f"relative@{k}": float(recall.relative[k - 1]) for k in (1, 10, 100) if k <= len(recall.relative)}
            for recall in self.recalls
        ]
        return pd.DataFrame(rows)

    def plot(self, path: str | os.PathLike[str], *, dpi: int = 300) -> None:
        """Write the relative cost over K, both logarithmic, with the oracle's line at 1; whole or not at all.

        Args:
            path: ends in .svg, .pdf or .png.
            dpi: pixels per inch of a PNG.

        Raises:
            InvalidOption: the suffix is another one.
            WriteFailed: the file cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in METADATA:
            raise InvalidOption(f"expected a figure's path to end in {', '.join(METADATA)}; got {str(path)!r}.")
        write_bytes(path, _rendered(self.recalls, suffix, dpi=dpi))

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


# --------------------------------------------------------------------------------------------------------- figure

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
_DASHES: Final = ("-", "--", "-.", ":")  # the next round of colours, and a second way to tell lines apart
_FAINT: Final = "#666B73"


def _rendered(recalls: Sequence[Recall], suffix: str, *, dpi: int) -> bytes:
    """The bytes of the figure, under matplotlib's own settings whatever the user's are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "wiretrace", "pdf.fonttype": 42, "font.size": 8.0}
        )
        buffer = io.BytesIO()
        _figure(recalls).savefig(buffer, format=suffix[1:], dpi=dpi, metadata=METADATA[suffix], facecolor="white")
    return buffer.getvalue()


def _figure(recalls: Sequence[Recall]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for number, recall in sorted(enumerate(recalls), key=lambda pair: -pair[1].aggregate):
        axes.plot(
            range(1, len(recall.relative) + 1),
            recall.relative.tolist(),
            label=f"{recall.aggregate:.3g}  {recall.name}",
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_DASHES[(number + number // len(_COLOURS)) % len(_DASHES)],
            linewidth=1.4,
            marker="o" if len(recall.relative) <= 10 else None,
            markersize=3.0,
        )
    axes.axhline(1.0, color=_FAINT, linewidth=0.8, label="1  oracle")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("K, of the true top K units to find")
    axes.set_ylabel("forward passes / K")
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside right upper", frameon=False, title="relative cost", alignment="left")
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


# --------------------------------------------------------------------------------------------------------- parts


class _Moments:
    """Mean and variance of the effects of those subsets that count for a unit, for all units, chunk by chunk.

    Chunks are joined as Chan, Golub and LeVeque do, so that a large common effect costs no digits.
    """

    def __init__(self, n_units: int) -> None:
        self.count, self.mean, self._squares = torch.zeros(3, n_units, dtype=torch.float64)

    def add(self, counts: Bool[Tensor, "subset unit"], effects: Float[Tensor, " subset"]) -> None:
        """Take a chunk in."""
        weights = counts.double()
        count = weights.sum(0)
        mean = (effects @ weights) / count.clamp(min=1)
        squares = (weights * (effects[:, None] - mean) ** 2).sum(0)
        total = (self.count + count).clamp(min=1)
        apart = mean - self.mean
        self._squares = self._squares + squares + apart**2 * self.count * count / total
        self.mean = self.mean + apart * count / total
        self.count = self.count + count

    @property
    def variance(self) -> Float[Tensor, " unit"]:
        """With n - 1."""
        return self._squares / (self.count - 1)


def _effects(patched: Patched, chosen: Bool[Tensor, "subset unit"]) -> Float[Tensor, " subset"]:
    """Joint effects, averaged over prompts."""
    effects = patched(chosen)
    if effects.ndim != 2 or len(effects) != len(chosen) or not effects.numel():
        raise InvalidOption(
            f"expected patched to return effects of shape (subset, example), ({len(chosen)}, …); got "
            f"{tuple(effects.shape)}. For a single prompt add a last axis of length 1."
        )
    effects = effects.detach().double().cpu().mean(1)
    if not bool(effects.isfinite().all()):
        raise NotFinite(
            "expected finite effects of joint patching; got NaN or infinity. Look at the metric of the patched model."
        )
    return effects


def _masks(parts: Sequence[Tensor], n_units: int) -> Bool[Tensor, "subset unit"]:
    """Each part as a row that is true at its members."""
    masks = torch.zeros(len(parts), n_units, dtype=torch.bool)
    for row, part in zip(masks, parts, strict=True):
        row[part] = True
    return masks


def _shuffled(n_units: int, seed: int) -> Int[Tensor, " unit"]:
    return torch.randperm(n_units, generator=torch.Generator().manual_seed(seed))


def _order(importance: Float[Tensor, " unit"]) -> Int[Tensor, " unit"]:
    """Most important first; ties go to the lower number."""
    return torch.argsort(-importance, stable=True)


def _enough(n_units: int, samples: int, share: float) -> int:
    """More samples, so many that every unit is in and out of two subsets with a probability of 99 %."""

    def too_few(samples: int) -> bool:
        once = sum((1 - p) ** samples + samples * p * (1 - p) ** (samples - 1) for p in (share, 1 - share))
        return n_units * once > 0.01

    high = samples + 1
    while too_few(high):
        high *= 2
    low = samples
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if too_few(middle) else (low, middle)
    return high


def _check_at_least(least: int, **options: int) -> None:
    for name, value in options.items():
        if value < least:
            raise InvalidOption(f"expected {name} of at least {least:,}; got {value:,}.")

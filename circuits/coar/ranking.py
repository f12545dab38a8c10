"""Which components to edit, and how many: COAR-Edit's ranking, and the scan over k.

    tau_i = (mean_T w_i - mean_R w_i) / sqrt(var_T w_i / |T| + var_R w_i / |R|)

compares a component's weights on target prompts T with those on reference prompts R. A weight is what keeping the
component adds to the output, so ablating the components of lowest tau raises the targets and leaves the references
alone, and ablating those of highest tau lowers them. `rank` orders, `choose` tries every prefix of the order on
validation prompts.

Source: arXiv 2404.11534 (COAR-Edit). It names neither what happens where a denominator is zero nor how k
is chosen; both are said at the functions here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from graphs.nodes import Node
from patching.errors import InvalidOption
from patching.metrics import Metric
from patching.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["raise", "lower"]
Rows = Sequence[int] | slice | Tensor

TRIED = 100
"""How many components `choose` ablates at most, unless told."""


class HasWeights(Protocol):
    """All that a ranking needs of an attribution."""

    @property
    def units(self) -> tuple[Node, ...]:
        """What each column belongs to."""
        ...

    @property
    def weights(self) -> Tensor:
        """What keeping each unit adds to the output of each prompt: [example, unit]."""
        ...


class Runs(Protocol):
    """All that a scan needs of a run: `patching.component_run.ComponentRun`, or anything that can stand for it."""

    @property
    def units(self) -> tuple[Node, ...]:
        """What each entry of a mask belongs to."""
        ...

    @property
    def metric(self) -> Metric:
        """What each prompt is judged by."""
        ...

    def __call__(self, mask: Tensor) -> Tensor:
        """[*sample, unit] -> [*sample, example]."""
        ...


def welch_t(
    targets: Float[Tensor, "target unit"], references: Float[Tensor, "reference unit"]
) -> Float[Tensor, " unit"]:
    """Welch's t of every column, with population variances.

    A single row has variance 0. Where the denominator is 0 the result is the sign of the difference times infinity,
    and 0 where the difference is 0 too.

    Args:
        targets: weights of the target prompts.
        references: weights of the reference prompts, for the same units.

    Returns:
        tau, in float64, without unit.

    Example:
        >>> welch_t(torch.tensor([[1.0]]), torch.tensor([[0.0], [2.0], [4.0]])).tolist()  # (1 - 2) / sqrt(8 / 9)
        [-1.0606601717798212]
    """
    targets, references = targets.double(), references.double()
    difference = targets.mean(0) - references.mean(0)
    spread = _variance(targets) / len(targets) + _variance(references) / len(references)
    unspread = torch.where(difference == 0, 0.0, difference.sign() * torch.inf)
    return torch.where(spread > 0, difference / spread.sqrt(), unspread)


def _variance(rows: Float[Tensor, "row unit"]) -> Float[Tensor, " unit"]:
    """Of the population; exactly 0 where all rows agree, which subtracting a rounded mean would not give."""
    constant = (rows == rows[:1]).all(0)
    return rows.var(0, unbiased=False).masked_fill(constant, 0.0)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Components in the order in which an edit takes them.

    Attributes:
        units: all of them, first to ablate first.
        tau: of each, in the same order.
        change: what ablating each alone is predicted to change on the mean target, ``-mean_T w``, in that order.
        reference_change: the same on the mean reference.
        direction: ``raise`` or ``lower``.
    """

    units: tuple[Node, ...]
    tau: Float[Tensor, " unit"]
    change: Float[Tensor, " unit"]
    reference_change: Float[Tensor, " unit"]
    direction: Direction

    def __len__(self) -> int:
        return len(self.units)

    def first(self, k: int) -> tuple[Node, ...]:
        """The k units to ablate.

        Raises:
            InvalidOption: there are not so many.
        """
        if not 0 <= k <= len(self):
            raise InvalidOption(f"expected k from 0 to {len(self):,}, the number of ranked units; got {k}.")
        return self.units[:k]

    def predicted(self, k: int) -> tuple[float, float]:
        """Predicted change of the mean target and of the mean reference when the first k are ablated."""
        self.first(k)
        return float(self.change[:k].sum()), float(self.reference_change[:k].sum())

    def to_frame(self) -> pd.DataFrame:
        """One row per unit, first to ablate first."""
        import pandas as pd

        columns: dict[str, Any] = {
            "unit": [str(unit) for unit in self.units],
            "tau": self.tau.numpy(),
            "target_change": self.change.numpy(),
            "reference_change": self.reference_change.numpy(),
        }
        return pd.DataFrame(columns)


def rank(
    attribution: HasWeights,
    *,
    targets: Rows,
    references: Rows | HasWeights,
    direction: Direction = "raise",
    among: Sequence[Node] | None = None,
) -> Ranking:
    """Order components by how differently they matter to target and to reference prompts.

    By tau (see the module), lowest first to ``raise`` the targets' output, highest first to ``lower`` it. Units of the
    same tau go by the difference of means (so a single target against a single reference is ranked by the difference),
    then in the attribution's order.

    Cost: no run of the model.

    Args:
        attribution: weights [example, unit], one row per prompt.
        targets: rows of the prompts to change.
        references: rows of the prompts to leave alone, or a second attribution of the same units, of which all rows
            are references.
        direction: which way the output of the targets shall go.
        among: rank only these units.

    Raises:
        InvalidOption: no targets or references, rows out of range or in both, other units, weights that are not finite.

    Example:
        >>> from types import SimpleNamespace
        >>> weights = torch.tensor([[-2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.2, 1.2, 3.0]])  # one target, two references
        >>> names = tuple(map(Node.parse, ("a0.h0", "a0.h1", "m0")))
        >>> found = rank(SimpleNamespace(units=names, weights=weights), targets=[0], references=[1, 2])
        >>> [str(unit) for unit in found.first(2)], found.predicted(1)[0]
        (['a0.h0', 'm0'], 2.0)

    Source: arXiv 2404.11534; code of the authors (population variances, a single target has variance 0).
    """
    if direction not in get_args(Direction):
        raise InvalidOption(f"expected direction to be raise or lower; got {direction!r}.")
    if isinstance(references, Sequence | slice | Tensor):
        _require_apart(attribution.weights, targets, references)
        reference = _rows(attribution.weights, references, "references")
    else:
        if tuple(references.units) != tuple(attribution.units):
            raise InvalidOption("expected references with the same units in the same order as the targets.")
        reference = _rows(references.weights, slice(None), "references")
    target = _rows(attribution.weights, targets, "targets")
    columns = _columns(attribution.units, among)
    target, reference = target[:, columns], reference[:, columns]
    tau = welch_t(target, reference)
    difference = target.mean(0) - reference.mean(0)
    sign = 1.0 if direction == "raise" else -1.0
    keys = [(sign * float(t), sign * float(d), i) for i, (t, d) in enumerate(zip(tau, difference, strict=True))]
    order = [i for _, _, i in sorted(keys)]
    units = tuple(attribution.units[columns[i]] for i in order)
    return Ranking(units, tau[order], -target.mean(0)[order], -reference.mean(0)[order], direction)


def _columns(units: Sequence[Node], among: Sequence[Node] | None) -> list[int]:
    if among is None:
        return list(range(len(units)))
    index = {unit: column for column, unit in enumerate(units)}
    unknown = [str(unit) for unit in among if unit not in index]
    if unknown or not among:
        raise InvalidOption(
            f"expected `among` to hold attributed units; {', '.join(unknown[:5]) or 'it is empty'}. "
            "Leave it out to rank all of them."
        )
    return sorted({index[unit] for unit in among})


def _rows(weights: Tensor, rows: Rows, what: str) -> Float[Tensor, "row unit"]:
    numbers = _numbers(weights, rows, what)
    if not numbers:
        raise InvalidOption(f"expected at least one row of {what}; got none.")
    chosen = weights[numbers].double().cpu()
    bad = [numbers[row] for row in (~torch.isfinite(chosen)).any(1).nonzero().flatten().tolist()]
    if bad:
        raise InvalidOption(f"expected finite weights; those of {what} {bad[:10]} are not. Attribute those again.")
    return chosen


def _numbers(weights: Tensor, rows: Rows, what: str) -> list[int]:
    count = len(weights)
    if isinstance(rows, slice):
        return list(range(count))[rows]
    if isinstance(rows, Tensor):
        if rows.dtype == torch.bool:
            if len(rows) != count:
                raise InvalidOption(f"expected {count} flags for {what}, one per prompt; got {len(rows)}.")
            rows = rows.nonzero().flatten()
        rows = rows.tolist()
    outside = [row for row in rows if not -count <= row < count]
    if outside:
        raise InvalidOption(f"expected rows of {what} from 0 to {count - 1}; got {outside[:10]}.")
    return [row % count for row in rows]


def _require_apart(weights: Tensor, targets: Rows, references: Rows) -> None:
    both = set(_numbers(weights, targets, "targets")) & set(_numbers(weights, references, "references"))
    if both:
        raise InvalidOption(f"expected targets and references to be apart; rows {sorted(both)[:10]} are in both.")


# --- how many -------------------------------------------------------------------------------------------------------


def _above_zero(values: Tensor) -> Tensor:
    return (values > 0).double().mean(-1)


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda values: values.double().mean(-1),
    "above-zero": _above_zero,
}
"""From one output per prompt to one number: its mean, or the share of prompts above 0 (the accuracy, of a margin)."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What every k did on validation prompts, and the k that was taken.

    Attributes:
        k: the chosen number of units.
        ranking: what they are the first k of.
        ks: every k that was tried; 0 is the model as it is.
        target: measure of the validation targets for each of ``ks``.
        reference: measure of the validation references, likewise.
        damage: how much worse the references are than at k = 0, likewise.
        measure: ``mean`` or ``above-zero``.
        rule: why this k, in words.
    """

    k: int
    ranking: Ranking
    ks: tuple[int, ...]
    target: Float[Tensor, " k"]
    reference: Float[Tensor, " k"]
    damage: Float[Tensor, " k"]
    measure: str
    rule: str

    @property
    def units(self) -> tuple[Node, ...]:
        """The units to ablate."""
        return self.ranking.first(self.k)

    def to_frame(self) -> pd.DataFrame:
        """One row per k."""
        import pandas as pd

        columns: dict[str, Any] = {
            "k": self.ks,
            "target": self.target.numpy(),
            "reference": self.reference.numpy(),
            "damage": self.damage.numpy(),
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        place = self.ks.index(self.k)
        return (
            f"Choice(k={self.k}, target {self.target[0]:.3g} to {self.target[place]:.3g}, "
            f"reference {self.reference[0]:.3g} to {self.reference[place]:.3g}, {self.rule})"
        )


def choose(
    run: Runs,
    ranking: Ranking,
    *,
    references: Runs,
    max_damage: float,
    ks: Sequence[int] | None = None,
    goal: float | None = None,
    measure: str = "mean",
    progress: Progress = silent,
) -> Choice:
    """Ablate the first k of a ranking for every k, and take the best that leaves the references alone.

    Of the ks at which the references are at most ``max_damage`` worse than unedited, the one whose targets are highest
    (lowest, for a ranking to ``lower``); with a ``goal``, the smallest at which the targets reach it, and the best
    where none does. Ties go to the smaller k. 0 is always tried, so an edit that only does harm is not made.

    Cost: as many forwards of each run as there are ks.

    Args:
        run: over validation targets; its units must hold all that are ranked.
        ranking: from `rank`, on other prompts.
        references: a run over validation references, with the same units.
        max_damage: how much worse the references may become, in the measure's unit; 0 or more.
        ks: numbers of units to try; 0 to 100 (or all, if fewer) by default.
        goal: a value of the targets' measure that is enough.
        measure: ``mean`` of the outputs, or ``above-zero``, the share of prompts whose output is above 0.
        progress: called with the ks done and to do.

    Returns:
        The chosen k with the whole curve.

    Raises:
        InvalidOption: a negative limit, a k out of range, an unknown measure, units that a run lacks.

    Source: arXiv 2404.11534, which scans k on held-out examples; the rule is ours.

    Example:
        >>> from types import SimpleNamespace
        >>> from patching import ComponentRun, toy
        >>> on = lambda task: ComponentRun(toy.model(), task, components=("heads",), ablation="zero")
        >>> run = on(toy.task())
        >>> alone = run(torch.stack([run.mask_without([unit]) for unit in run.units]))
        >>> found = SimpleNamespace(units=run.units, weights=(run.clean_metric - alone).T)  # exact here: it is additive
        >>> ranking = rank(found, targets=[3], references=[2], direction="lower")
        >>> target, reference = on(toy.task().subset(slice(3, 4))), on(toy.task().subset(slice(2, 3)))
        >>> choose(target, ranking, references=reference, max_damage=0.1)
        Choice(k=1, target 2 to 0, reference 3 to 3, lowest target mean with reference damage of at most 0.1)
    """
    if not max_damage >= 0:
        raise InvalidOption(f"expected max_damage of 0 or more, in the unit of the {measure}; got {max_damage}.")
    if measure not in MEASURES:
        raise InvalidOption(f"expected a measure out of {', '.join(MEASURES)}; got {measure!r}.")
    if measure == "above-zero" and not (run.metric.higher_is_better and references.metric.higher_is_better):
        raise InvalidOption("expected a metric that is higher where the model is right, for the measure above-zero.")
    tried = sorted({0, *(range(min(len(ranking), TRIED) + 1) if ks is None else ks)})
    units = ranking.first(max(tried))
    if tried[0] < 0:
        raise InvalidOption(f"expected every k to be 0 or more; got {tried[0]}.")
    columns = [_places(each, units) for each in (run, references)]
    target, reference = [], []
    for number, k in enumerate(tried):
        for each, places, kept in ((run, columns[0], target), (references, columns[1], reference)):
            mask = torch.ones(len(each.units))
            mask[places[:k]] = 0.0
            kept.append(MEASURES[measure](each(mask)).cpu())
        progress(number + 1, len(tried))
    return _chosen(
        ranking, tried, torch.stack(target), torch.stack(reference), references.metric, max_damage, goal, measure
    )


def _places(run: Runs, units: Sequence[Node]) -> list[int]:
    index = {unit: place for place, unit in enumerate(run.units)}
    missing = [str(unit) for unit in units if unit not in index]
    if missing:
        raise InvalidOption(
            f"expected a run over all ranked units; it has no {', '.join(missing[:5])}. "
            "Make it with the components that were attributed."
        )
    return [index[unit] for unit in units]


def _chosen(
    ranking: Ranking,
    tried: list[int],
    target: Tensor,
    reference: Tensor,
    metric: Metric,
    max_damage: float,
    goal: float | None,
    measure: str,
) -> Choice:
    damage = metric.damage(reference, reference[0])
    sign = 1.0 if ranking.direction == "raise" else -1.0
    allowed = [i for i in range(len(tried)) if float(damage[i]) <= max_damage]
    reached = [] if goal is None else [i for i in allowed if sign * float(target[i]) >= sign * goal]
    best = reached[0] if reached else max(allowed, key=lambda i: (sign * float(target[i]), -i))
    what = f"{'highest' if sign > 0 else 'lowest'} target {measure}"
    rule = f"smallest k that reaches {goal:g}" if reached else what
    rule += f" with reference damage of at most {max_damage:g}"
    return Choice(tried[best], ranking, tuple(tried), target, reference, damage, measure, rule)

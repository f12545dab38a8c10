"""How much of a circuit that is known to be true a method finds again.

Where the truth is known (a compiled model, a circuit worked out by hand), a found circuit is a classification of edges
or nodes. One circuit gives precision and recall; scores, or circuits at several thresholds, give a curve of true over
false positive rate. `circuits.reference.compare` does all of it at once, and knows published circuits. Agreement with
a reference is not faithfulness: see `circuits.evaluation` for that.

Edges count once, at whichever positions they are. Nodes are those that write: input, heads and MLPs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.nodes import Node
from patching.errors import InvalidOption
from patching.scores import Scores

Level = Literal["edge", "node"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Overlap:
    """Units of a found circuit against those of a true one; rates are None where they would divide by zero.

    Attributes:
        found_and_true: true positives.
        found_only: false positives.
        true_only: false negatives.
        neither: true negatives.
    """

    found_and_true: int
    found_only: int
    true_only: int
    neither: int

    @property
    def precision(self) -> float | None:
        """Share of what was found that is true."""
        return _ratio(self.found_and_true, self.found_and_true + self.found_only)

    @property
    def recall(self) -> float | None:
        """Share of what is true that was found: the true positive rate."""
        return _ratio(self.found_and_true, self.found_and_true + self.true_only)

    @property
    def false_positive_rate(self) -> float | None:
        """Share of what is not true that was found."""
        return _ratio(self.found_only, self.found_only + self.neither)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.found_and_true, 2 * self.found_and_true + self.found_only + self.true_only)

    @property
    def jaccard(self) -> float:
        """Shared units over all units of either circuit; 1 for two empty circuits, as in `graphs.compare`."""
        share = _ratio(self.found_and_true, self.found_and_true + self.found_only + self.true_only)
        return 1.0 if share is None else share


@dataclass(frozen=True)
class Recovery:
    """How much of a true circuit a found one holds.

    Attributes:
        edges: by edges.
        nodes: by nodes that write.
    """

    edges: Overlap
    nodes: Overlap

    def to_dict(self) -> dict[str, Any]:
        """As plain data, counts and rates."""
        rates = ("precision", "recall", "false_positive_rate", "f1", "jaccard")
        return {
            name: asdict(overlap) | {rate: getattr(overlap, rate) for rate in rates}
            for name, overlap in (("edges", self.edges), ("nodes", self.nodes))
        }

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: {each.found_and_true:,} of {each.found_and_true + each.true_only:,} found, {each.found_only:,} "
            f"more; precision {_percent(each.precision)}, recall {_percent(each.recall)}, F1 {_percent(each.f1)}"
            for name, each in (("edges", self.edges), ("nodes", self.nodes))
        )


@dataclass(frozen=True)
class Roc:
    """True over false positive rate, and the area under it.

    Attributes:
        level: ``edge`` or ``node``.
        points: (false positive rate, true positive rate), ascending, with (0, 0) and (1, 1). For several circuits
            the Pareto front: those that no other beats in both.
        auc: area under straight lines between the points. For scores it is the probability that a true unit
            scores above another, ties counting half (Mann and Whitney's U over its largest value).
        pessimistic_auc: area under stairs that rise only where there is a point: the smallest the area can be.
        positives: units of the true circuit.
        negatives: all others.
    """

    level: Level
    points: tuple[Point, ...]
    auc: float
    pessimistic_auc: float
    positives: int
    negatives: int

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.level}s: AUC {self.auc:.3f}, pessimistic {self.pessimistic_auc:.3f} "
            f"({self.positives:,} of {self.positives + self.negatives:,} are true, {len(self.points)} points)"
        )


def recover(found: Circuit, true: Circuit) -> Recovery:
    """Count what a circuit shares with the true one.

    Args:
        found: the circuit of a method.
        true: the reference, of the same architecture.

    Raises:
        InvalidOption: the two belong to models of different shape.

    Source: edges and nodes as in arXiv 2304.14997 (section 4.2), without edges that join a head to its own ports, and
    with key/value groups left out of the nodes, since they write nothing.

    Example:
        >>> from graphs import Architecture, Circuit, Edge
        >>> true = Circuit(Architecture(1, 2), [Edge.parse("input->a0.h1<v>"), Edge.parse("a0.h1->logits")])
        >>> found = Circuit(Architecture(1, 2), [Edge.parse("input->m0"), Edge.parse("a0.h1->logits")])
        >>> recover(found, true).edges.precision, recover(found, true).nodes.recall
        (0.5, 1.0)
    """
    _check_same(found.architecture, true.architecture)
    return Recovery(
        edges=_overlap(_members(found, "edge"), _members(true, "edge")),
        nodes=_overlap(_members(found, "node"), _members(true, "node")),
    )


def roc(
    found: Scores | Circuit | Sequence[Circuit], true: Circuit, *, level: Level = "edge", signed: bool = False
) -> Roc:
    """How well scores, or circuits at several thresholds, tell the true units from the others.

    Scores are cut at each of their values; units with equal scores enter together. Scores of edges also rank nodes: a
    node enters with the first edge at either end of it, as it would in circuits of growing size.

    Args:
        found: scores of edges or nodes, a circuit, or circuits such as those of a sweep over tau.
        true: the reference, of the same architecture.
        level: what to tell apart, ``edge`` or ``node``.
        signed: rank scores by how much a unit helps instead of by absolute effect.

    Raises:
        InvalidOption: models of different shape, scores of another level or that are NaN, no circuits, or a reference
            that holds every unit or none, so that nothing can be told apart.

    Source: arXiv 2304.14997 (section 4.2 and appendix): Pareto front with (0, 0) and (1, 1), pessimistic area.

    Example:
        >>> from graphs import Architecture, Circuit, Edge
        >>> from patching import MaskedRun, atp, toy
        >>> edges = [Edge.parse("input->a0.h1<v>"), Edge.parse("a0.h1->logits")]
        >>> true = Circuit(Architecture(1, 2, has_mlp=False), edges)
        >>> found = roc(atp.scores(MaskedRun(toy.model(), toy.task())), true)
        >>> found.auc, found.points
        (1.0, ((0.0, 0.0), (0.0, 1.0), (0.14285714285714285, 1.0), (1.0, 1.0)))
    """
    if level not in ("edge", "node"):
        raise InvalidOption(f"expected level 'edge' or 'node'; got {level!r}.")
    positive = _members(true, level)
    if not bool(positive.any()) or bool(positive.all()):
        raise InvalidOption(
            f"expected a reference with some of the model's {len(positive):,} {level}s and not all; got "
            f"{int(positive.sum()):,}, so nothing can be told apart."
        )
    points = _of_scores(found, true, level, signed) if isinstance(found, Scores) else _of_circuits(found, true, level)
    return Roc(
        level=level,
        points=points,
        auc=_area(points, lambda low, high: (low + high) / 2),
        pessimistic_auc=pessimistic_auc(points),
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
    )


def rocs(found: Scores | Circuit | Sequence[Circuit], true: Circuit, *, signed: bool = False) -> dict[Level, Roc]:
    """`roc` on each level on which the reference tells units apart: where it holds some of them and not all.

    Scores of nodes give no curve of edges.

    Args:
        found: as for `roc`.
        true: the reference, of the same architecture.
        signed: as for `roc`.

    Raises:
        InvalidOption: as `roc`, but for a reference of every unit or none.

    Example:
        >>> from patching import compiled
        >>> true = compiled.truth("and_gate")  # every node is in it
        >>> list(rocs(true, true))
        ['edge']
    """
    levels: tuple[Level, ...] = ("node",) if isinstance(found, Scores) and found.level == "node" else ("edge", "node")
    curves: dict[Level, Roc] = {}
    for level in levels:
        positive = _members(true, level)
        if bool(positive.any()) and not bool(positive.all()):
            curves[level] = roc(found, true, level=level, signed=signed)
    return curves


def auroc(values: Float[Tensor, " unit"], positive: Bool[Tensor, " unit"]) -> float:
    """The probability that a positive unit has a larger value than another; ties count half.

    Raises:
        InvalidOption: there are no positive units, or only those; the two are not equally long; a value is NaN.

    Example:
        >>> auroc(torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False]))
        0.625
    """
    if values.shape != positive.shape:
        raise InvalidOption(
            f"expected a value and a flag for each unit; got {tuple(values.shape)} values and {tuple(positive.shape)} "
            "flags."
        )
    if not bool(positive.any()) or bool(positive.all()):
        raise InvalidOption(f"expected some positive units and some others; got {int(positive.sum())} of "
                            f"{len(positive)}.")  # fmt: skip
    return _area(_curve(values, positive), lambda low, high: (low + high) / 2)


def pessimistic_auc(points: Iterable[Point]) -> float:
    """The area under stairs through the Pareto front of some points: a rate is only as high as a point shows.

    ``integral over x from 0 to 1 of max(y of points with false positive rate at most x)``, with (0, 0) and (1, 1)
    among the points.

    Source: arXiv 2304.14997; its code asserts 0, 1/4, 3/16, 5/16 and 1/4 for the five cases of the tests.

    Example:
        >>> pessimistic_auc([(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
        0.25
    """
    return _area(pareto(points), lambda low, high: low)


def pareto(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other beats in both rates, ascending, with (0, 0) and (1, 1).

    Raises:
        InvalidOption: a rate is not from 0 to 1.
    """
    ordered = sorted({(0.0, 0.0), (1.0, 1.0), *((float(x), float(y)) for x, y in points)}, key=lambda p: (p[0], -p[1]))
    if any(not (0 <= x <= 1 and 0 <= y <= 1) for x, y in ordered):
        raise InvalidOption("expected rates from 0 to 1 as (false positive rate, true positive rate).")
    front = [(0.0, 0.0)]
    for point in ordered:
        if point[1] > front[-1][1]:
            front.append(point)
    return (*front, (1.0, 1.0)) if front[-1] != (1.0, 1.0) else tuple(front)


def _area(points: Sequence[Point], height: Callable[[float, float], float]) -> float:
    return sum((right - left) * height(low, high) for (left, low), (right, high) in pairwise(points))


def _of_scores(scores: Scores, true: Circuit, level: Level, signed: bool) -> tuple[Point, ...]:
    _check_same(scores.architecture, true.architecture)
    if scores.level not in ("edge", level):
        raise InvalidOption(f"expected scores of {level}s; got scores of {scores.level}s.")
    values = (-scores.values if signed else scores.importance).double().cpu()
    if scores.level != level:
        values = _by_node(values, scores.graph)
    return _curve(values, _members(true, level))


def _of_circuits(found: Circuit | Sequence[Circuit], true: Circuit, level: Level) -> tuple[Point, ...]:
    circuits = (found,) if isinstance(found, Circuit) else found
    if not circuits:
        raise InvalidOption("expected at least one circuit; got none.")
    points = []
    for circuit in circuits:
        _check_same(circuit.architecture, true.architecture)
        overlap = _overlap(_members(circuit, level), _members(true, level))
        points.append((overlap.false_positive_rate or 0.0, overlap.recall or 0.0))
    return pareto(points)


def _curve(values: Float[Tensor, " unit"], positive: Bool[Tensor, " unit"]) -> tuple[Point, ...]:
    """Rates at every cut, equal values together."""
    if bool(values.isnan().any()):
        raise InvalidOption(
            f"expected values that can be ranked; {int(values.isnan().sum())} of {len(values)} are not numbers (NaN)."
        )
    order = torch.argsort(values, descending=True, stable=True)
    ordered = values[order]
    last = torch.cat((ordered[1:] != ordered[:-1], torch.tensor([True])))
    hits = positive[order].double().cumsum(0)[last]
    misses = (~positive[order]).double().cumsum(0)[last]
    rates = zip((misses / misses[-1]).tolist(), (hits / hits[-1]).tolist(), strict=True)
    return ((0.0, 0.0), *rates)


def _by_node(values: Float[Tensor, " edge"], graph: ComponentGraph) -> Float[Tensor, " node"]:
    """The largest value of an edge at either end of each node."""
    best = torch.full((len(graph.sources),), -torch.inf, dtype=values.dtype)
    for number, edge in enumerate(graph.edges):
        for node in (edge.source, edge.target):
            place = graph.source_index.get(node)
            if place is not None:
                best[place] = torch.maximum(best[place], values[number])
    return best


def _members(circuit: Circuit, level: Level) -> Bool[Tensor, " unit"]:
    graph = circuit.graph
    if level == "edge":
        member = torch.zeros(graph.n_edges, dtype=torch.bool)
        member[[graph.number(edge) for edge in circuit.edges]] = True
        return member
    nodes: set[Node] = set(circuit.nodes)
    return torch.tensor([node in nodes for node in graph.sources])


def _overlap(found: Bool[Tensor, " unit"], true: Bool[Tensor, " unit"]) -> Overlap:
    cells = ((found & true), (found & ~true), (~found & true), (~found & ~true))
    return Overlap(*(int(cell.sum()) for cell in cells))


def _check_same(found: Architecture, true: Architecture) -> None:
    if found != true:
        raise InvalidOption(
            f"expected a reference for the same model shape; what was found has {ComponentGraph(found)}, the reference "
            f"{ComponentGraph(true)}. A circuit is a reference for its own model only."
        )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"

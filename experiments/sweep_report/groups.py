"""Runs in groups: the same question (task, model, ablation, metric), the same method, the same size, several seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from experiments.store.rows import HEAD, RESULTS, TAIL, Row, Scalar
from graphs.circuit import Circuit
from graphs.errors import WiretraceError

QUESTION: Final = ("task", "model", "ablation", "metric", "level", "prompts", "held_out", "positions")
"""Runs that agree in these are held against one another."""

SIZES: Final = ("n", "options.tau", "options.regularisation", "options.sparsity", "options.beta")
"""Settings that decide how large a circuit is: they make the points of one curve."""

GOOD: Final = 0.9
"""A faithfulness that is good enough for the smallest circuit to be called the best."""

MOST_SEEDS: Final = 30
"""So many circuits of a group are compared pair by pair."""


@dataclass(frozen=True)
class Point:
    """Runs that differ in their seed alone.

    Attributes:
        rows: The runs.
        size: The settings that decide the size, in words.
        share: Mean share of the model's edges.
        faithfulness: Mean over seeds.
        low, high: The lowest and the highest.
    """

    rows: tuple[Row, ...]
    size: str
    share: float
    faithfulness: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How far the circuits of several seeds agree.

    Attributes:
        seeds: How many circuits.
        edges: Their mean number of edges.
        jaccard: Mean over pairs of shared edges over all edges of the two.
        lowest: Of the pair that agrees least.
        always: Edges of all of them.
        ever: Edges of any.
    """

    seeds: int
    edges: float
    jaccard: float
    lowest: float
    always: int
    ever: int


def questions(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Finished searches by what they were asked, in words; what is the same everywhere is left out of the words."""
    found = [row for row in rows if row["state"] == "finished" and row.get("command") == "discover"]
    keys = [tuple(row.get(name) for name in QUESTION) for row in found]
    telling = [place for place in range(len(QUESTION)) if place < 3 or len({key[place] for key in keys}) > 1]
    groups: dict[str, list[Row]] = {}
    for row, key in zip(found, keys, strict=True):
        said = [_said(QUESTION[place], key[place]) for place in telling if key[place] is not None]
        groups.setdefault(", ".join(said), []).append(row)
    return groups


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Runs of one question by method, and by whatever else differs but sizes and seeds."""
    names = dict.fromkeys(name for row in rows for name in row)
    other = [name for name in names if name not in (*HEAD, *QUESTION, *SIZES, *RESULTS, *TAIL, "seed")]
    mates: dict[Scalar, list[Row]] = {}
    for row in rows:
        mates.setdefault(row["method"], []).append(row)
    telling = {
        method: [name for name in other if len({each.get(name) for each in found}) > 1]
        for method, found in mates.items()
    }
    groups: dict[str, list[Row]] = {}
    for row in rows:
        told = (name for name in telling[row["method"]] if row.get(name) is not None)
        said = [str(row["method"]), *(_said(name, row.get(name)) for name in told)]
        groups.setdefault(", ".join(said), []).append(row)
    return groups


def points(rows: Sequence[Row]) -> list[Point]:
    """The points of one curve, by share of edges; circuits without a faithfulness are left out."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(row.get("faithfulness"), float) and isinstance(row.get("share"), float):
            size = ", ".join(_said(name, row[name]) for name in SIZES if row.get(name) is not None)
            groups.setdefault(size, []).append(row)
    found = []
    for size, mates in groups.items():
        values = [_number(row, "faithfulness") for row in mates]
        share = fmean(_number(row, "share") for row in mates)
        found.append(Point(tuple(mates), size, share, fmean(values), min(values), max(values)))
    return sorted(found, key=lambda point: point.share)


def best(rows: Sequence[Row]) -> Row | None:
    """The smallest circuit of at least 90 % faithfulness; the most faithful where there is none."""
    known = [row for row in rows if isinstance(row.get("faithfulness"), float)]
    good = [row for row in known if _number(row, "faithfulness") >= GOOD]
    if good:
        return min(good, key=lambda row: (_number(row, "edges"), -_number(row, "faithfulness")))
    return max(known, key=lambda row: _number(row, "faithfulness"), default=None)


def mean_and_spread(values: Sequence[float]) -> str:
    """A mean with the standard deviation, where there are two values or more.

    Example:
        >>> mean_and_spread([1.0, 3.0]), mean_and_spread([0.5]), mean_and_spread([])
        ('2.000 ± 1.414', '0.500', '')
    """
    if not values:
        return ""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def agreement(root: Path, rows: Sequence[Row]) -> Agreement | None:
    """How far the circuits of runs agree; None where there are not two that can be compared."""
    circuits = []
    for row in rows[:MOST_SEEDS]:
        try:
            circuits.append(frozenset(Circuit.load(root / str(row["run"]) / "circuit.json").edges))
        except (WiretraceError, OSError):
            continue
    if len(circuits) < 2:
        return None
    pairs = [len(a & b) / (len(a | b) or 1) if a | b else 1.0 for a, b in itertools.combinations(circuits, 2)]
    always, ever = frozenset.intersection(*circuits), frozenset.union(*circuits)
    return Agreement(len(circuits), fmean(map(len, circuits)), fmean(pairs), min(pairs), len(always), len(ever))


def mean_curve(curves: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, float, float]]:
    """Share, mean, lowest and highest faithfulness of curves over the same shares; without points that any lacks."""
    shares = curves[0]["fractions"]
    found = []
    for place, share in enumerate(shares):
        values = [curve["faithfulness"][place] for curve in curves if curve["fractions"] == shares]
        if len(values) == len(curves) and all(isinstance(value, float) for value in values):
            found.append((share, fmean(values), min(values), max(values)))
    return found


def _number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float)
    return float(value)


def _said(name: str, value: Scalar) -> str:
    if name in ("task", "model", "ablation", "metric", "level"):
        return str(value)
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    shown = text.lower() if isinstance(value, bool) else text
    return f"{name.removeprefix('options.')} = {shown}"

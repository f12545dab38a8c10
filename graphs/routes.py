"""How edges run from box to box: the gaps they pass through, their lanes there, and their curves.

An edge that passes rows picks a gap between boxes in each, by dynamic programming over bends and crowding, is pulled
tight like a string, takes a lane of its own in each gap, and becomes one smooth curve through its lanes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from graphs.boxes import Box, Point, Row, Sizes, in_order
from graphs.circuit import Circuit
from graphs.nodes import INPUT, LOGITS, Edge, Node


@dataclass
class Route:
    """An edge on its way: where it starts and ends and where it passes each row in between."""

    edge: Edge
    rows: range
    start: float
    end: float
    gaps: list[int] = field(default_factory=list)
    lanes: list[float] = field(default_factory=list)


def choose_gaps(
    circuit: Circuit, rows: Sequence[Row], x_of: Mapping[Node, float], *, width: float, sizes: Sizes
) -> list[Route]:
    """Choose for each edge the gap by which it passes each row between its ends; strong edges choose first."""
    row_of = {node: number for number, row in enumerate(rows) for node in row.nodes}
    routes = []
    for edge in circuit.edges:
        start, end = x_of.get(edge.source), x_of.get(edge.target)
        if end is not None:
            end += sizes.port_offset(edge)
        start = start if start is not None else end if end is not None else width / 2
        between = range(row_of[edge.source] + 1, row_of[edge.target])
        routes.append(Route(edge, between, start, end if end is not None else start))
    used: list[list[int]] = [[0] * (len(row.sides) + 1) for row in rows]
    importance = {edge: abs(score) for edge, score in circuit.scores.items()}
    for route in sorted(routes, key=lambda route: -importance.get(route.edge, math.inf)):
        route.gaps = _cheapest_gaps(route, rows, used, width=width, sizes=sizes)
        for row, gap in zip(route.rows, route.gaps, strict=True):
            used[row][gap] += 1
    return routes


def _gap(row: Row, number: int, *, width: float, sizes: Sizes) -> tuple[float, float]:
    """From where to where an edge may pass through gap `number` of a row, the outermost ones reaching to the edge."""
    left = row.sides[number - 1][1] + sizes.clearance if number else 0.0
    right = row.sides[number][0] - sizes.clearance if number < len(row.sides) else width
    middle = (left + right) / 2
    return (left, right) if left <= right else (middle, middle)


def _cheapest_gaps(
    route: Route, rows: Sequence[Row], used: Sequence[Sequence[int]], *, width: float, sizes: Sizes
) -> list[int]:
    """One gap per row passed: least sideways movement, with a price for crowded gaps."""
    total = len(route.rows) + 1
    costs: dict[int, tuple[float, float]] = {0: (0.0, route.start)}  # gap -> cost so far, x there
    history: list[dict[int, int]] = []
    for step, number in enumerate(route.rows, start=1):
        row = rows[number]
        ideal = route.start + (route.end - route.start) * step / total
        near = bisect_left(row.sides, (ideal, ideal))
        choices: dict[int, tuple[float, float]] = {}
        origin: dict[int, int] = {}
        for gap in range(max(0, near - 3), min(len(row.sides), near + 3) + 1):
            low, high = _gap(row, gap, width=width, sizes=sizes)
            x = min(max(ideal, low), high)
            room = max(1.0, (min(high, x + 60) - max(low, x - 60)) / sizes.lane)
            price = 220.0 * max(0.0, (used[number][gap] + 1) / room - 0.6) ** 2
            cost, before = min((cost + abs(x - x_before) ** 1.5, gap) for gap, (cost, x_before) in costs.items())
            choices[gap] = (cost + price, x)
            origin[gap] = before
        history.append(origin)
        costs = choices
    _, gap = min((cost + abs(route.end - x) ** 1.5, gap) for gap, (cost, x) in costs.items())
    gaps: list[int] = []
    for origin in reversed(history):
        gaps.append(gap)
        gap = origin[gap]
    return gaps[::-1]


def pull_tight(routes: Iterable[Route], rows: Sequence[Row], *, width: float, sizes: Sizes) -> None:
    """Straighten each route within its gaps, as a string that is pulled at both ends."""
    for route in routes:
        limits = [
            _gap(rows[row], gap, width=width, sizes=sizes) for row, gap in zip(route.rows, route.gaps, strict=True)
        ]
        heights = [rows[row].y for row in range(route.rows.start - 1, route.rows.stop + 1)]
        x = [route.start, *(min(max(route.start, low), high) for low, high in limits), route.end]
        free_start, free_end = route.edge.source == INPUT, route.edge.target == LOGITS
        for _ in range(30):
            before = list(x)
            for place, (low, high) in enumerate(limits, start=1):
                below, above = heights[place] - heights[place - 1], heights[place + 1] - heights[place]
                straight = (x[place - 1] * above + x[place + 1] * below) / (below + above)
                x[place] = min(max(straight, low), high)
            if free_start:
                x[0] = x[1]
            if free_end:
                x[-1] = x[-2]
            if x == before:  # so that further rounds would change nothing
                break
        route.start, *route.lanes, route.end = x


def spread(routes: Sequence[Route], rows: Sequence[Row], *, width: float, sizes: Sizes) -> None:
    """Give edges that pass through one gap a lane each, as far apart as the gap allows and no further than needed."""
    passing: dict[tuple[int, int], list[tuple[float, float, int, int]]] = {}
    for number, route in enumerate(routes):
        course = [route.start, *route.lanes, route.end]
        for place, (row, gap) in enumerate(zip(route.rows, route.gaps, strict=True)):
            turn = course[place] + course[place + 2]
            passing.setdefault((row, gap), []).append((course[place + 1], turn, number, place))
    for (row, gap), members in passing.items():
        members.sort()
        low, high = _gap(rows[row], gap, width=width, sizes=sizes)
        lane = min(sizes.lane, (high - low) / max(1, len(members) - 1))
        places = in_order([x for x, *_ in members], [lane] * (len(members) - 1))
        shift = max(0.0, low - places[0]) - max(0.0, places[-1] - high)
        for x, (_, _, number, place) in zip(places, members, strict=True):
            routes[number].lanes[place] = min(max(x + shift, low), high)


# -------------------------------------------------------------------------------------------------------- curves


def curve(route: Route, rows: Sequence[Row], boxes: Mapping[Node, Box], *, sizes: Sizes) -> tuple[Point, ...]:
    """A smooth curve through the lanes of a route: cubic Hermite pieces in y, written as Bezier control points."""
    heights = [rows[row].y for row in route.rows]
    y = [boxes[route.edge.source].top, *heights, boxes[route.edge.target].bottom]
    x = [route.start, *route.lanes, route.end]
    if route.edge.source == INPUT and route.lanes:
        x[0] = x[1]
    if route.edge.target == LOGITS and route.lanes:
        x[-1] = x[-2]
    slopes = [0.0, *(_slope(x, y, place) for place in range(1, len(x) - 1)), 0.0]
    for place, (row, gap) in enumerate(zip(route.rows, route.gaps, strict=True), start=1):
        low, high = _gap(rows[row], gap, width=math.inf, sizes=sizes)
        room = max(0.0, min(x[place] - low, high - x[place])) + sizes.clearance * 0.75
        steepest = room / (sizes.box / 2)
        slopes[place] = min(max(slopes[place], -steepest), steepest)
    path: list[Point] = [(x[0], y[0])]
    for place in range(len(x) - 1):
        third = (y[place + 1] - y[place]) / 3
        path.append((x[place] + slopes[place] * third, y[place] + third))
        path.append((x[place + 1] - slopes[place + 1] * third, y[place + 1] - third))
        path.append((x[place + 1], y[place + 1]))
    return tuple(path)


def _slope(x: Sequence[float], y: Sequence[float], place: int) -> float:
    """dx/dy of a curve through the points that does not overshoot (weighted harmonic mean, Fritsch and Butland)."""
    below, above = y[place] - y[place - 1], y[place + 1] - y[place]
    before, after = (x[place] - x[place - 1]) / below, (x[place + 1] - x[place]) / above
    if before * after <= 0.0:
        return 0.0
    weight = (1 + above / (below + above)) / 3
    return before * after / (weight * after + (1 - weight) * before)

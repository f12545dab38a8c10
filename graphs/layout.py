"""Where everything stands in the drawing of a circuit.

Depth goes upward: the input is a bar at the bottom, the logits a bar at the top, and each layer that has a node in the
circuit is a band in between, with its heads side by side and its MLP slightly above them, in a column of its own, so
that every edge runs upward. Four steps:

1. *Rows.* Nodes of one depth form a row (a band holds up to three: key/value groups, heads, MLP; more when a layer has
   too many heads for one row).
2. *Places.* Each node wants to stand at the mean of its neighbours (barycentre). Rows are sorted by that wish and
   moved apart no further than boxes need (isotonic regression); a few sweeps up and down, the best one is kept.
3. *Routes.* An edge that passes rows picks a gap between boxes in each, by dynamic programming over bends and
   crowding, is pulled tight like a string, and takes a lane of its own in each gap.
4. *Curves.* One smooth curve through those lanes, vertical at both ends, never steeper than the gap allows.

Positions are in points (1/72 inch), y upward. The same circuit gives the same layout, to the last bit.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from graphs.circuit import Circuit
from graphs.nodes import INPUT, LOGITS, Edge, Node

BOX_HEIGHT: Final = 14.0
"""Height of a node's box, in points."""

_CHARACTER: Final = 4.3  # width of a label's character, for boxes that hold their label
_PADDING: Final = 8.0
_GAP: Final = 13.0  # least distance between two boxes of a row
_MOST_IN_ROW: Final = 18
_WITHIN_BAND: Final = 10.0  # height between the rows of one band
_BAND_PADDING: Final = 4.0
_LANE: Final = 2.2  # distance between two edges in one gap, where there is room
_CLEARANCE: Final = 2.0  # least distance of an edge from a box it passes
_SWEEPS: Final = 24

Point = tuple[float, float]


class Box(NamedTuple):
    """The rectangle of a node: its centre, width and height in points."""

    node: Node
    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> float:
        """The y of the upper side."""
        return self.y + self.height / 2

    @property
    def bottom(self) -> float:
        """The y of the lower side."""
        return self.y - self.height / 2


class Band(NamedTuple):
    """The strip of one layer, from `bottom` to `top`."""

    layer: int
    bottom: float
    top: float


class Wire(NamedTuple):
    """The curve of an edge: a point, then three control points for each cubic Bezier piece, from source to target."""

    edge: Edge
    path: tuple[Point, ...]


@dataclass(frozen=True)
class Layout:
    """A drawing of a circuit, as geometry.

    Attributes:
        boxes: One per node, input and logits included.
        wires: One per edge, in the order of the circuit.
        links: The structural edges, from a key/value group to a query head, as straight pieces.
        bands: The layers that have a node, from the bottom up.
        width: Of the whole drawing, in points; boxes lie within 0 and `width`.
        height: Likewise.
    """

    boxes: Mapping[Node, Box]
    wires: tuple[Wire, ...]
    links: tuple[tuple[Point, Point], ...]
    bands: tuple[Band, ...]
    width: float
    height: float


@dataclass
class _Row:
    """Nodes of one depth, from left to right."""

    layer: int | None
    nodes: list[Node]
    y: float = 0.0
    sides: list[tuple[float, float]] = field(default_factory=list)  # left and right of each box, ascending


@dataclass
class _Route:
    """An edge on its way: where it starts and ends and where it passes each row in between."""

    edge: Edge
    rows: range
    start: float
    end: float
    gaps: list[int] = field(default_factory=list)
    lanes: list[float] = field(default_factory=list)


def layout(circuit: Circuit) -> Layout:
    """Lay out a circuit; see the head of this module for how.

    Cost: about linear in the number of edges times the number of rows they pass; a few tenths of a second for 300
    edges of a 12-layer model.
    """
    rows = _rows(circuit)
    x_of = _places(rows, _pulls(circuit), _with_groups(circuit))
    width = _shift_into_view(rows, x_of)
    routes = _routes(circuit, rows, x_of, width=width)
    bands, height = _stack(rows, routes)
    boxes = _boxes(rows, x_of, width=width)
    _pull_tight(routes, rows)
    _spread(routes, rows, width=width)
    wires = tuple(Wire(route.edge, _curve(route, rows, boxes)) for route in routes)
    links = tuple(
        ((boxes[group].x, boxes[group].top), (boxes[member].x, boxes[member].bottom))
        for group, member in circuit.structural_edges()
    )
    return Layout(boxes=boxes, wires=wires, links=links, bands=bands, width=width, height=height)


def box_width(node: Node) -> float:
    """How wide the box of a node must be for its label, in points."""
    return max(24.0, len(str(node)) * _CHARACTER + _PADDING)


# ---------------------------------------------------------------------------------------------------------- rows


def _rows(circuit: Circuit) -> list[_Row]:
    """Input, then for each layer groups, heads and MLP, then logits; from the bottom up."""
    depth: dict[tuple[int, int, int], list[Node]] = {}
    for node in circuit.nodes:
        if node.layer is not None:
            tier = ("kv", "head", "mlp").index(node.kind)
            if circuit.architecture.parallel and tier == 2:
                tier = 1  # reads what the heads read, so it stands beside them
            depth.setdefault((node.layer, tier, 0), []).append(node)
    rows = [_Row(None, [INPUT])]
    for (layer, _, _), nodes in sorted(depth.items()):
        pieces = math.ceil(len(nodes) / _MOST_IN_ROW)
        rows.extend(_Row(layer, nodes[piece::pieces]) for piece in range(pieces))
    return [*rows, _Row(None, [LOGITS])]


def _pulls(circuit: Circuit) -> dict[Node, dict[Node, float]]:
    """How strongly each node is drawn to each neighbour. The bars reach everywhere, so they draw nothing."""
    largest = max(map(abs, circuit.scores.values()), default=0.0) or 1.0
    pulls: dict[Node, dict[Node, float]] = {node: {} for node in circuit.nodes}

    def join(one: Node, other: Node, strength: float) -> None:
        for here, there in ((one, other), (other, one)):
            pulls[here][there] = pulls[here].get(there, 0.0) + strength

    for edge in circuit.edges:
        if edge.source != INPUT and edge.target != LOGITS:
            join(edge.source, edge.target, 0.2 + math.sqrt(abs(circuit.scores.get(edge, largest)) / largest))
    for group, member in circuit.structural_edges():
        join(group, member, 2.0)
    return pulls


def _with_groups(circuit: Circuit) -> dict[int, list[Node]]:
    """The MLP of each layer whose heads stand in another row: they shall not stand above one another."""
    if circuit.architecture.parallel:
        return {}
    return {node.layer: [node] for node in circuit.nodes if node.kind == "mlp" and node.layer is not None}


# -------------------------------------------------------------------------------------------------------- places


def _places(
    rows: Sequence[_Row], pulls: Mapping[Node, Mapping[Node, float]], mlps: Mapping[int, list[Node]]
) -> dict[Node, float]:
    """The x of every node but the bars; sorts `rows` from left to right as it goes."""
    inner = _slots(rows, mlps)
    x_of: dict[Node, float] = {}
    for slot in inner:
        _settle(slot, dict.fromkeys(slot, 0.0), x_of)
    best, best_cost = dict(x_of), _stretch(x_of, pulls)
    for sweep in range(_SWEEPS):
        upward = sweep % 2 == 0
        both_sides = sweep >= _SWEEPS // 3
        done: set[Node] = set()
        for slot in inner if upward else reversed(inner):
            wishes = {node: _barycentre(node, x_of, pulls[node], None if both_sides else done) for node in slot}
            slot.sort(key=lambda node: wishes[node])  # stable: ties keep their order
            _settle(slot, wishes, x_of)
            done.update(slot)
        cost = _stretch(x_of, pulls)
        if cost < best_cost:
            best, best_cost = dict(x_of), cost
    for row in rows[1:-1]:
        row.nodes.sort(key=lambda node: best[node])
    return best


def _slots(rows: Sequence[_Row], mlps: Mapping[int, list[Node]]) -> list[list[Node]]:
    """Rows as they are placed: an MLP takes its place among the heads of the row below, to keep its column free."""
    slots: list[list[Node]] = []
    for below, row in pairwise(rows[:-1]):
        if row.layer is not None and row.nodes == mlps.get(row.layer) and below.layer == row.layer:
            slots[-1].extend(row.nodes)
        else:
            slots.append(list(row.nodes))
    return slots


def _barycentre(node: Node, x_of: Mapping[Node, float], pulls: Mapping[Node, float], only: set[Node] | None) -> float:
    """The mean x of a node's neighbours, or where it is now if it has none."""
    total = weight = 0.0
    for neighbour, strength in pulls.items():
        if only is None or neighbour in only:
            total += strength * x_of[neighbour]
            weight += strength
    return total / weight if weight else x_of[node]


def _settle(nodes: Sequence[Node], wishes: Mapping[Node, float], x_of: dict[Node, float]) -> None:
    """Put nodes, in this order, as near to their wishes as boxes that do not overlap allow."""
    widths = [box_width(node) for node in nodes]
    apart = [(left + right) / 2 + _GAP for left, right in pairwise(widths)]
    x_of.update(zip(nodes, in_order([wishes[node] for node in nodes], apart), strict=True))


def in_order(wishes: Sequence[float], apart: Sequence[float]) -> list[float]:
    """The positions nearest to `wishes` (least squares) that ascend by at least `apart` from one to the next.

    Pool-adjacent-violators: take the distances out, average neighbours that are out of order, put them back in.

    Example:
        >>> in_order([0.0, 0.0, 10.0], [2.0, 2.0])
        [-1.0, 1.0, 10.0]
    """
    offsets = [0.0]
    for distance in apart:
        offsets.append(offsets[-1] + distance)
    pools: list[tuple[float, int]] = []  # sum and number of members
    for wish, offset in zip(wishes, offsets, strict=True):
        total, count = wish - offset, 1
        while pools and pools[-1][0] * count >= total * pools[-1][1]:
            before, members = pools.pop()
            total, count = total + before, count + members
        pools.append((total, count))
    levels = [total / count for total, count in pools for _ in range(count)]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]


def _stretch(x_of: Mapping[Node, float], pulls: Mapping[Node, Mapping[Node, float]]) -> float:
    return sum(
        strength * abs(x_of[node] - x_of[neighbour])
        for node, neighbours in pulls.items()
        for neighbour, strength in neighbours.items()
    )


def _shift_into_view(rows: Sequence[_Row], x_of: dict[Node, float]) -> float:
    """Move everything so that the leftmost box starts at the margin; note the boxes' sides; return the width."""
    margin = _GAP
    left = min((x_of[node] - box_width(node) / 2 for node in x_of), default=0.0)
    right = max((x_of[node] + box_width(node) / 2 for node in x_of), default=0.0)
    width = max(right - left + 2 * margin, 150.0)
    shift = (width - (left + right)) / 2
    for node in x_of:
        x_of[node] += shift
    for row in rows[1:-1]:
        row.sides = [(x_of[node] - box_width(node) / 2, x_of[node] + box_width(node) / 2) for node in row.nodes]
    return width


# -------------------------------------------------------------------------------------------------------- routes


def _routes(circuit: Circuit, rows: Sequence[_Row], x_of: Mapping[Node, float], *, width: float) -> list[_Route]:
    """Choose for each edge the gap by which it passes each row between its ends; strong edges choose first."""
    row_of = {node: number for number, row in enumerate(rows) for node in row.nodes}
    routes = []
    for edge in circuit.edges:
        start, end = x_of.get(edge.source), x_of.get(edge.target)
        if end is not None:
            end += port_offset(edge)
        start = start if start is not None else end if end is not None else width / 2
        between = range(row_of[edge.source] + 1, row_of[edge.target])
        routes.append(_Route(edge, between, start, end if end is not None else start))
    used: list[list[int]] = [[0] * (len(row.sides) + 1) for row in rows]
    importance = {edge: abs(score) for edge, score in circuit.scores.items()}
    for route in sorted(routes, key=lambda route: -importance.get(route.edge, math.inf)):
        route.gaps = _cheapest_gaps(route, rows, used, width=width)
        for row, gap in zip(route.rows, route.gaps, strict=True):
            used[row][gap] += 1
    return routes


def port_offset(edge: Edge) -> float:
    """How far from the middle of its target an edge arrives, in points: queries left, values right."""
    if edge.port is None:
        return 0.0
    return (-0.28, 0.0, 0.28)["qkv".index(edge.port)] * box_width(edge.target)


def _gap(row: _Row, number: int, *, width: float) -> tuple[float, float]:
    """From where to where an edge may pass through gap `number` of a row, the outermost ones reaching to the edge."""
    left = row.sides[number - 1][1] + _CLEARANCE if number else 0.0
    right = row.sides[number][0] - _CLEARANCE if number < len(row.sides) else width
    middle = (left + right) / 2
    return (left, right) if left <= right else (middle, middle)


def _cheapest_gaps(route: _Route, rows: Sequence[_Row], used: Sequence[Sequence[int]], *, width: float) -> list[int]:
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
            low, high = _gap(row, gap, width=width)
            x = min(max(ideal, low), high)
            room = max(1.0, (min(high, x + 60) - max(low, x - 60)) / _LANE)
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


def _stack(rows: Sequence[_Row], routes: Iterable[_Route]) -> tuple[tuple[Band, ...], float]:
    """Give every row its height, more room where many edges move sideways, and return the bands and the height."""
    moves = [0.0] * len(rows)
    for route in routes:
        for step in range(route.rows.start - 1, route.rows.stop):
            moves[step] += 1
    bands: list[Band] = []
    y = BOX_HEIGHT / 2
    rows[0].y = y
    for number, row in enumerate(rows[1:], start=1):
        if row.layer is not None and bands and row.layer == bands[-1].layer:
            y += BOX_HEIGHT + _WITHIN_BAND
            bands[-1] = bands[-1]._replace(top=y + BOX_HEIGHT / 2 + _BAND_PADDING)
        else:
            y += BOX_HEIGHT + 24.0 + min(26.0, 0.35 * moves[number - 1])
            if row.layer is not None:
                half = BOX_HEIGHT / 2 + _BAND_PADDING
                bands.append(Band(row.layer, y - half, y + half))
        row.y = y
    return tuple(bands), y + BOX_HEIGHT / 2


def _boxes(rows: Sequence[_Row], x_of: Mapping[Node, float], *, width: float) -> dict[Node, Box]:
    boxes = {}
    for row in rows:
        for node in row.nodes:
            wide = box_width(node) if node in x_of else width
            boxes[node] = Box(node, x_of.get(node, width / 2), row.y, wide, BOX_HEIGHT)
    return boxes


def _pull_tight(routes: Iterable[_Route], rows: Sequence[_Row], *, width: float = math.inf) -> None:
    """Straighten each route within its gaps, as a string that is pulled at both ends."""
    for route in routes:
        limits = [_gap(rows[row], gap, width=width) for row, gap in zip(route.rows, route.gaps, strict=True)]
        heights = [rows[row].y for row in range(route.rows.start - 1, route.rows.stop + 1)]
        x = [route.start, *(min(max(route.start, low), high) for low, high in limits), route.end]
        free_start, free_end = route.edge.source == INPUT, route.edge.target == LOGITS
        for _ in range(30):
            for place, (low, high) in enumerate(limits, start=1):
                below, above = heights[place] - heights[place - 1], heights[place + 1] - heights[place]
                straight = (x[place - 1] * above + x[place + 1] * below) / (below + above)
                x[place] = min(max(straight, low), high)
            if free_start:
                x[0] = x[1]
            if free_end:
                x[-1] = x[-2]
        route.start, *route.lanes, route.end = x


def _spread(routes: Sequence[_Route], rows: Sequence[_Row], *, width: float) -> None:
    """Give edges that pass through one gap a lane each, as far apart as the gap allows and no further than needed."""
    passing: dict[tuple[int, int], list[tuple[float, float, int, int]]] = {}
    for number, route in enumerate(routes):
        course = [route.start, *route.lanes, route.end]
        for place, (row, gap) in enumerate(zip(route.rows, route.gaps, strict=True)):
            turn = course[place] + course[place + 2]
            passing.setdefault((row, gap), []).append((course[place + 1], turn, number, place))
    for (row, gap), members in passing.items():
        members.sort()
        low, high = _gap(rows[row], gap, width=width)
        lane = min(_LANE, (high - low) / max(1, len(members) - 1))
        places = in_order([x for x, *_ in members], [lane] * (len(members) - 1))
        shift = max(0.0, low - places[0]) - max(0.0, places[-1] - high)
        for x, (_, _, number, place) in zip(places, members, strict=True):
            routes[number].lanes[place] = min(max(x + shift, low), high)


# -------------------------------------------------------------------------------------------------------- curves


def _curve(route: _Route, rows: Sequence[_Row], boxes: Mapping[Node, Box]) -> tuple[Point, ...]:
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
        low, high = _gap(rows[row], gap, width=math.inf)
        room = max(0.0, min(x[place] - low, high - x[place])) + _CLEARANCE * 0.75
        steepest = room / (BOX_HEIGHT / 2)
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

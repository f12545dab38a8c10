"""Where everything stands in the drawing of a circuit.

Depth goes upward: the input is a bar at the bottom, the logits a bar at the top, and each layer that has a node in the
circuit is a band in between, with its heads side by side and its MLP slightly above them, in a column of its own, so
that every edge runs upward. Features of dictionaries follow in the same band, a row or more for each site, with error
terms at the right; if they have positions, each position is a column (`graphs.columns`). Four steps:

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from graphs.boxes import BOX_HEIGHT as BOX_HEIGHT
from graphs.boxes import ROOMY, Box, Point, Row, Sizes, in_order
from graphs.circuit import Circuit
from graphs.columns import Column, Floors, columns, floors, rows_of, settled
from graphs.errors import BadOption
from graphs.labels import labels_of, tokens_of
from graphs.nodes import INPUT, LOGITS, SITES, Edge, Node, Site
from graphs.routes import Route, choose_gaps, curve, pull_tight, spread

_MOST_IN_ROW: Final = 18
_SWEEPS: Final = 24


class Band(NamedTuple):
    """The strip of one layer, from `bottom` to `top`."""

    layer: int
    bottom: float
    top: float


class Shelf(NamedTuple):
    """The rows of one site of dictionaries within a layer, from `bottom` to `top`."""

    layer: int | None
    site: Site
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
        shelves: The sites of dictionaries that have a node, from the bottom up.
        columns: The positions of features, from left to right; none if they have no positions.
    """

    boxes: Mapping[Node, Box]
    wires: tuple[Wire, ...]
    links: tuple[tuple[Point, Point], ...]
    bands: tuple[Band, ...]
    width: float
    height: float
    shelves: tuple[Shelf, ...] = ()
    columns: tuple[Column, ...] = ()


def layout(circuit: Circuit, *, width: float | None = None, sizes: Sizes = ROOMY) -> Layout:
    """Lay out a circuit; see the head of this module for how.

    Cost: about linear in the number of edges times the number of rows they pass; a tenth of a second for 300 edges of
    a 12-layer model.

    Args:
        circuit: What to lay out.
        width: The width of the whole, in points; layers get as many rows as that needs. None: as wide as it likes.
        sizes: Of boxes and gaps, such as `graphs.boxes.COMPACT` for a given width.

    Raises:
        BadOption: The width has no room for the widest box.

    Example:
        >>> plan = layout(circuit, width=200.0)
        >>> plan.width
        200.0
    """
    sizes = sizes._replace(labels=sizes.labels or labels_of(circuit))
    grid, most = columns(floors(circuit.features), tokens_of(circuit), width=width, sizes=sizes)
    rows = _rows(circuit, width=width, sizes=sizes, in_cell=most)
    x_of = _places(rows, _pulls(circuit), _with_groups(circuit), width=width, sizes=sizes, grid=grid)
    wide, grid = _shift_into_view(rows, x_of, width=width, sizes=sizes, grid=grid)
    routes = choose_gaps(circuit, rows, x_of, width=wide, sizes=sizes)
    bands, height = _stack(rows, routes, sizes=sizes)
    shelves = _shelves(rows, sizes=sizes)
    boxes = _boxes(rows, x_of, width=wide, sizes=sizes)
    pull_tight(routes, rows, width=math.inf if width is None else wide, sizes=sizes)
    spread(routes, rows, width=wide, sizes=sizes)
    wires = tuple(Wire(route.edge, curve(route, rows, boxes, sizes=sizes)) for route in routes)
    links = tuple(
        ((boxes[group].x, boxes[group].top), (boxes[member].x, boxes[member].bottom))
        for group, member in circuit.structural_edges()
    )
    return Layout(
        boxes=boxes, wires=wires, links=links, bands=bands, width=wide, height=height, shelves=shelves, columns=grid
    )


# ---------------------------------------------------------------------------------------------------------- rows


def _rows(circuit: Circuit, *, width: float | None, sizes: Sizes, in_cell: int) -> list[Row]:
    """Input, then for each layer groups, heads, MLP and the sites of features, then logits; from the bottom up."""
    mlps = _with_groups(circuit)
    depth: dict[tuple[int, int], list[Node]] = {}
    for node in circuit.nodes:
        if node.layer is not None and node.site is None:
            tier = ("kv", "head", "mlp").index(node.kind)
            if circuit.architecture.parallel and tier == 2:
                tier = 1  # reads what the heads read, so it stands beside them
            depth.setdefault((node.layer, tier), []).append(node)
    features = floors(circuit.features)
    rows = [Row(None, [INPUT]), *_feature_rows(None, features, width=width, sizes=sizes, in_cell=in_cell)]
    layers = {layer for layer, _ in features if layer is not None}
    for layer in sorted(layers.union(layer for layer, _ in depth)):
        rows.extend(_component_rows(layer, depth, mlps, width=width, sizes=sizes))
        rows.extend(_feature_rows(layer, features, width=width, sizes=sizes, in_cell=in_cell))
    return [*rows, Row(None, [LOGITS])]


def _component_rows(
    layer: int,
    depth: Mapping[tuple[int, int], list[Node]],
    mlps: Mapping[int, list[Node]],
    *,
    width: float | None,
    sizes: Sizes,
) -> Iterator[Row]:
    """The rows of a layer's groups, heads and MLP."""
    for tier, nodes in ((tier, depth[layer, tier]) for tier in range(3) if (layer, tier) in depth):
        beside = mlps.get(layer, []) if tier < 2 else []  # takes its place in the row below it
        pieces = _pieces(nodes, beside, width=width, sizes=sizes)
        for piece in range(pieces):
            yield Row(layer, nodes[piece::pieces])


def _feature_rows(
    layer: int | None, found: Floors, *, width: float | None, sizes: Sizes, in_cell: int
) -> Iterator[Row]:
    """The rows of each site of a layer; with columns, `in_cell` features at most beside each other at a position."""
    for site in SITES:
        cells = found.get((layer, site), {})
        if not cells:
            continue
        if not in_cell:
            nodes = cells[None]
            pieces = _pieces(nodes, [], width=width, sizes=sizes)
            for piece in range(pieces):
                yield Row(layer, nodes[piece::pieces], site)
            continue
        split = [rows_of(cell, in_cell) for cell in cells.values()]
        for piece in range(max(map(len, split))):
            yield Row(layer, [node for cell in split if piece < len(cell) for node in cell[piece]], site)


def _pieces(nodes: Sequence[Node], beside: Sequence[Node], *, width: float | None, sizes: Sizes) -> int:
    """Into how many rows the nodes of one depth go."""
    least = math.ceil(len(nodes) / _MOST_IN_ROW)
    if width is None:
        return least
    for pieces in range(least, len(nodes) + 1):
        room = (_width([*nodes[piece::pieces], *beside], sizes) for piece in range(pieces))
        if max(room) + 2 * sizes.margin <= width:
            return pieces
    need = _width([max(nodes, key=sizes.box_width), *beside], sizes) + 2 * sizes.margin
    raise BadOption(f"expected room for the boxes, at least {need:.0f} points; got {width:.0f}. Choose a larger width.")


def _width(nodes: Sequence[Node], sizes: Sizes) -> float:
    return sum(map(sizes.box_width, nodes)) + _gap(nodes, sizes) * (len(nodes) - 1)


def _gap(nodes: Sequence[Node], sizes: Sizes) -> float:
    return sizes.gap if nodes[0].site is None else sizes.near


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
    rows: Sequence[Row],
    pulls: Mapping[Node, Mapping[Node, float]],
    mlps: Mapping[int, list[Node]],
    *,
    width: float | None,
    sizes: Sizes,
    grid: Sequence[Column],
) -> dict[Node, float]:
    """The x of every node but the bars; sorts `rows` from left to right as it goes."""
    inner = _slots(rows, mlps)
    x_of: dict[Node, float] = {}
    for slot in inner:
        _settle(slot, dict.fromkeys(slot, 0.0), x_of, width=width, sizes=sizes, grid=grid)
    best, best_cost = dict(x_of), _stretch(x_of, pulls)
    for sweep in range(_SWEEPS):
        upward = sweep % 2 == 0
        both_sides = sweep >= _SWEEPS // 3
        done: set[Node] = set()
        for slot in inner if upward else reversed(inner):
            wishes = {node: _barycentre(node, x_of, pulls[node], None if both_sides else done) for node in slot}
            slot.sort(key=lambda node: (node.is_error, wishes[node]))  # stable: ties keep their order
            _settle(slot, wishes, x_of, width=width, sizes=sizes, grid=grid)
            done.update(slot)
        cost = _stretch(x_of, pulls)
        if cost < best_cost:
            best, best_cost = dict(x_of), cost
    for row in rows[1:-1]:
        row.nodes.sort(key=lambda node: best[node])
    return best


def _slots(rows: Sequence[Row], mlps: Mapping[int, list[Node]]) -> list[list[Node]]:
    """Rows as they are placed: an MLP takes its place among the heads of the row below, to keep its column free."""
    slots: list[list[Node]] = []
    for below, row in pairwise(rows[:-1]):
        alone = row.layer is not None and row.nodes == mlps.get(row.layer)
        if alone and below.layer == row.layer and below.site is None:
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


def _settle(
    nodes: Sequence[Node],
    wishes: Mapping[Node, float],
    x_of: dict[Node, float],
    *,
    width: float | None,
    sizes: Sizes,
    grid: Sequence[Column],
) -> None:
    """Put nodes, in this order, as near to their wishes as boxes that do not overlap, and the width, allow.

    With a width the middle of the drawing is at 0. Features with positions stay in their columns.
    """
    if grid and nodes[0].site is not None:
        for column in grid:
            if here := [node for node in nodes if node.position == column.position]:
                x_of.update(settled(here, wishes, column, sizes))
        return
    widths = [sizes.box_width(node) for node in nodes]
    apart = [(left + right) / 2 + _gap(nodes, sizes) for left, right in pairwise(widths)]
    x = in_order([wishes[node] for node in nodes], apart)
    if width is not None:
        # Least squares within bounds: clip what is left of each place once the distances are taken out.
        low, high = sizes.margin + (widths[0] - width) / 2, (width - widths[-1]) / 2 - sizes.margin - sum(apart)
        offset = 0.0
        for place, distance in enumerate([0.0, *apart]):
            offset += distance
            x[place] = min(max(x[place] - offset, low), max(low, high)) + offset
    x_of.update(zip(nodes, x, strict=True))


def _stretch(x_of: Mapping[Node, float], pulls: Mapping[Node, Mapping[Node, float]]) -> float:
    return sum(
        strength * abs(x_of[node] - x_of[neighbour])
        for node, neighbours in pulls.items()
        for neighbour, strength in neighbours.items()
    )


def _shift_into_view(
    rows: Sequence[Row], x_of: dict[Node, float], *, width: float | None, sizes: Sizes, grid: Sequence[Column]
) -> tuple[float, tuple[Column, ...]]:
    """Move everything so that the leftmost box starts at the margin; note the boxes' sides; give width and columns."""
    half = {node: sizes.box_width(node) / 2 for node in x_of}
    left = min((x_of[node] - half[node] for node in x_of), default=0.0)
    right = max((x_of[node] + half[node] for node in x_of), default=0.0)
    if grid:
        left, right = min(left, grid[0].left), max(right, grid[-1].right)
    wide = max(right - left + 2 * sizes.margin, 150.0) if width is None else width
    shift = (wide - (left + right)) / 2
    for node in x_of:
        x_of[node] += shift
    for row in rows[1:-1]:
        row.sides = [(x_of[node] - half[node], x_of[node] + half[node]) for node in row.nodes]
    return wide, tuple(each._replace(left=each.left + shift, right=each.right + shift) for each in grid)


# -------------------------------------------------------------------------------------------------------- routes


def _stack(rows: Sequence[Row], routes: Iterable[Route], *, sizes: Sizes) -> tuple[tuple[Band, ...], float]:
    """Give every row its height, more room where many edges move sideways, and return the bands and the height."""
    moves = [0.0] * len(rows)
    for route in routes:
        for step in range(route.rows.start - 1, route.rows.stop):
            moves[step] += 1
    bands: list[Band] = []
    y = sizes.box / 2
    rows[0].y = y
    for number, row in enumerate(rows[1:], start=1):
        below = rows[number - 1]
        if row.site is not None and (row.layer, row.site) == (below.layer, below.site):
            y += sizes.box + sizes.within
            if row.layer is not None:
                bands[-1] = bands[-1]._replace(top=y + sizes.box / 2 + sizes.band)
        elif row.layer is not None and bands and row.layer == bands[-1].layer:
            shelf = sizes.shelf + min(sizes.crowd / 2, 0.35 * moves[number - 1])
            y += sizes.box + (sizes.within if row.site is None else shelf)
            bands[-1] = bands[-1]._replace(top=y + sizes.box / 2 + sizes.band)
        else:
            y += sizes.box + sizes.between + min(sizes.crowd, 0.35 * moves[number - 1])
            if row.layer is not None:
                half = sizes.box / 2 + sizes.band
                bands.append(Band(row.layer, y - half, y + half))
        row.y = y
    return tuple(bands), y + sizes.box / 2


def _shelves(rows: Sequence[Row], *, sizes: Sizes) -> tuple[Shelf, ...]:
    found: list[Shelf] = []
    for row in rows:
        if row.site is None:
            continue
        bottom, top = row.y - sizes.box / 2, row.y + sizes.box / 2
        if found and (found[-1].layer, found[-1].site) == (row.layer, row.site):
            found[-1] = found[-1]._replace(top=top)
        else:
            found.append(Shelf(row.layer, row.site, bottom, top))
    return tuple(found)


def _boxes(rows: Sequence[Row], x_of: Mapping[Node, float], *, width: float, sizes: Sizes) -> dict[Node, Box]:
    boxes = {}
    for row in rows:
        for node in row.nodes:
            wide = sizes.box_width(node) if node in x_of else width
            boxes[node] = Box(node, x_of.get(node, width / 2), row.y, wide, sizes.box)
    return boxes

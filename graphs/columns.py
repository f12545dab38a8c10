"""Token positions as columns of a drawing: where each begins and ends, and how many rows its features need.

A feature at a position stands in its column, in the rows of its site and layer. Features without a position have a
column of their own, the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from graphs.boxes import Sizes, in_order, text_width
from graphs.errors import BadOption
from graphs.nodes import Node, Site

_WIDE: Final = 620.0  # points; a drawing of any width gets no wider than this for the sake of fewer rows,
_EACH: Final = 46.0  # or than this for each feature along the side of a square of all of them
_MOST: Final = 12
_LEAST: Final = 2

Cell = list[Node]
Floors = Mapping[tuple[int | None, Site], Mapping[int | None, Cell]]


class Column(NamedTuple):
    """The column of a position, or of all of them; `left` and `right` in points."""

    position: int | None
    left: float
    right: float
    heading: str


def floors(nodes: Sequence[Node]) -> dict[tuple[int | None, Site], dict[int | None, Cell]]:
    """The features of a circuit by layer and site, and there by position; error terms last."""
    found: dict[tuple[int | None, Site], dict[int | None, Cell]] = {}
    for node in sorted(nodes, key=lambda node: node.is_error):
        if node.site is not None:
            found.setdefault((node.layer, node.site), {}).setdefault(node.position, []).append(node)
    return found


def columns(
    found: Floors, tokens: Sequence[str], *, width: float | None, sizes: Sizes
) -> tuple[tuple[Column, ...], int]:
    """The columns, around 0, and how many features stand beside each other in one; no columns without positions.

    Raises:
        BadOption: The width has no room for one feature beside the other positions.
    """
    positions = sorted({at for cells in found.values() for at in cells if at is not None})
    if not positions:
        return (), 0
    everywhere = [None] if any(None in cells for cells in found.values()) else []
    count = sum(len(cell) for cells in found.values() for cell in cells.values())
    room = max(_WIDE, _EACH * math.sqrt(count)) if width is None else width - 2 * sizes.margin
    most = _MOST
    while True:
        placed = _placed([*everywhere, *positions], found, tokens, most, sizes)
        need = placed[-1].right - placed[0].left
        if need <= room and width is not None:
            return _spread(placed, room - need), most
        if need <= room or (width is None and most == _LEAST):
            return placed, most
        if most == 1:
            raise BadOption(
                f"expected room for {len(placed)} columns of positions, at least {need + 2 * sizes.margin:.0f} points; "
                f"got {room + 2 * sizes.margin:.0f}. Choose a larger width, or a circuit without positions."
            )
        most -= 1


def _placed(
    positions: Sequence[int | None], found: Floors, tokens: Sequence[str], most: int, sizes: Sizes
) -> tuple[Column, ...]:
    x, placed = 0.0, []
    for position in positions:
        heading = heading_of(position, tokens)
        wide = text_width(heading, sizes.small) + 2
        for cells in found.values():
            for row in rows_of(cells.get(position, []), most):
                wide = max(wide, row_width(row, sizes))
        placed.append(Column(position, x, x + wide, heading))
        x += wide + sizes.apart
    middle = (x - sizes.apart) / 2
    return tuple(each._replace(left=each.left - middle, right=each.right - middle) for each in placed)


def _spread(placed: Sequence[Column], rest: float) -> tuple[Column, ...]:
    """The columns wider by equal parts of the room that is left."""
    more = rest / len(placed)
    return tuple(
        column._replace(left=column.left + place * more - rest / 2, right=column.right + (place + 1) * more - rest / 2)
        for place, column in enumerate(placed)
    )


def heading_of(position: int | None, tokens: Sequence[str]) -> str:
    """What stands at the foot of a column.

    Example:
        >>> heading_of(2, ["The", " keys", " on"]), heading_of(2, []), heading_of(None, [])
        ('2: on', 'position 2', 'all positions')
    """
    if position is None:
        return "all positions"
    if position < len(tokens):
        token = tokens[position].strip() or repr(tokens[position])
        return f"{position}: {token if len(token) <= 12 else f'{token[:11]}…'}"
    return f"position {position}"


def rows_of(cell: Sequence[Node], most: int) -> list[list[Node]]:
    """The nodes of one cell in as few rows as `most` beside each other allow, alike in length."""
    pieces = math.ceil(len(cell) / most)
    return [list(cell[piece::pieces]) for piece in range(pieces)]


def row_width(nodes: Sequence[Node], sizes: Sizes) -> float:
    """How much room features beside each other take."""
    return sum(map(sizes.box_width, nodes)) + sizes.near * (len(nodes) - 1)


def settled(nodes: Sequence[Node], wishes: Mapping[Node, float], column: Column, sizes: Sizes) -> dict[Node, float]:
    """The x of nodes, in this order, as near to their wishes as boxes that do not overlap, and the column, allow."""
    widths = [sizes.box_width(node) for node in nodes]
    apart = [(left + right) / 2 + sizes.near for left, right in pairwise(widths)]
    x = in_order([wishes[node] for node in nodes], apart)
    low, high = column.left + widths[0] / 2, column.right - widths[-1] / 2 - sum(apart)
    offset = 0.0
    for place, distance in enumerate([0.0, *apart]):
        offset += distance
        x[place] = min(max(x[place] - offset, low), max(low, high)) + offset
    return dict(zip(nodes, x, strict=True))

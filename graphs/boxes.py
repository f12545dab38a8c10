"""The boxes of a drawing: how large they are, what is written in them, and where edges arrive at them.

Lengths are in points (1/72 inch), y upward.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from graphs.nodes import Edge, Node, Site

BOX_HEIGHT: Final = 14.0
"""Height of a node's box where there is no lack of space, in points."""

Point = tuple[float, float]


def text_width(text: str, size: float) -> float:
    """About how wide a text is, in points; never too little for Latin letters in DejaVu Sans."""
    return size * sum(map(_width_of, text))


def _width_of(letter: str) -> float:
    if letter in "@%mMW…":
        return 1.0
    if letter in "ijlrtfI.,:;'|!()[] ":
        return 0.45
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.05
    return 0.65 if (letter.islower() and letter != "w") or letter in "0123456789-_" else 0.86


def cut(text: str, room: float, size: float) -> str:
    """The text, with its end left out where it is wider than the room."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(f"{text}…", size) > room:
        text = text[:-1]
    return f"{text}…"


class Sizes(NamedTuple):
    """The lengths that a drawing is made with, in points.

    Attributes:
        font: Size of the text in boxes.
        small: Size of all other text.
        character: Width of a label's character, for boxes that hold their label.
        padding: Width of a box beyond its label.
        narrowest: Least width of a box.
        box: Height of a box.
        gap: Least distance between two boxes of a row.
        margin: Distance of the outermost boxes from the edge, where edges pass too.
        within: Height between the rows of one band.
        band: Height by which a band is larger than its boxes, above and below.
        between: Least height between the boxes of two bands.
        crowd: By how much more where many edges move sideways, at most.
        lane: Distance between two edges in one gap, where there is room.
        clearance: Least distance of an edge from a box it passes.
        short: Whether labels leave out the letters of heads: 9.6 for a9.h6.
        feature: Width of the box of a feature or error term beyond its label.
        near: Least distance between two boxes of features.
        apart: Least distance between the boxes of two positions.
        shelf: Least height between the boxes of two sites of dictionaries in one layer.
        words: Most width of what people call a node, as far as it is written in its box.
        labels: What people call nodes.
    """

    font: float = 6.5
    small: float = 6.0
    character: float = 4.3
    padding: float = 8.0
    narrowest: float = 24.0
    box: float = BOX_HEIGHT
    gap: float = 13.0
    margin: float = 13.0
    within: float = 10.0
    band: float = 4.0
    between: float = 24.0
    crowd: float = 26.0
    lane: float = 2.2
    clearance: float = 2.0
    short: bool = False
    feature: float = 5.0
    near: float = 9.0
    apart: float = 18.0
    shelf: float = 20.0
    words: float = 78.0
    labels: Mapping[Node, str] = MappingProxyType({})

    def label(self, node: Node) -> str:
        """What is written in the box of a node, and what people call it, as far as there is room.

        Of a feature, the number alone: its row tells the site and the layer, its column the position.
        """
        called = self.labels.get(node)
        name = self._name(node)
        return name if called is None else f"{name} {cut(called, self.words, self.font)}"

    def _name(self, node: Node) -> str:
        if node.site is not None:
            return "err" if node.is_error else f"f{node.index}"
        if self.short and node.kind in ("head", "kv"):
            return f"{node.layer}.{'kv' if node.kind == 'kv' else ''}{node.index}"
        return str(node)

    def box_width(self, node: Node) -> float:
        """How wide the box of a node must be for its label."""
        if node.site is not None or node in self.labels:
            return max(0.6 * self.narrowest, text_width(self.label(node), self.font) + self.feature)
        return max(self.narrowest, len(self.label(node)) * self.character + self.padding)

    def port_offset(self, edge: Edge) -> float:
        """How far from the middle of its target an edge arrives: queries left, values right."""
        if edge.port is None:
            return 0.0
        return PORT_PLACES[edge.port] * self.box_width(edge.target)


PORT_PLACES: Final = {"q": -0.28, "k": 0.0, "v": 0.28}
"""Where the ports of a head or group are, in widths of its box from the middle."""

ROOMY: Final = Sizes()
"""For screens, and for figures of any width."""

COMPACT: Final = Sizes(
    font=5.0, small=5.0, character=3.3, padding=4.0, narrowest=19.0, box=10.0, gap=8.0, margin=9.0,
    within=9.0, band=2.5, between=12.0, crowd=14.0, lane=1.6, clearance=2.0, short=True,
    feature=3.0, near=6.0, apart=9.0, shelf=11.0, words=40.0,
)  # fmt: skip
"""For a figure of a given width, such as a column of a paper: text of 5 points, the least that journals take."""


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


@dataclass
class Row:
    """Nodes of one depth, from left to right; of a dictionary at `site`, or components."""

    layer: int | None
    nodes: list[Node]
    site: Site | None = None
    y: float = 0.0
    sides: list[tuple[float, float]] = field(default_factory=list)  # left and right of each box, ascending


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

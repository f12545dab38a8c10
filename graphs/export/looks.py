"""How nodes and edges look in a drawing: colours, widths, dashes and the fills of groups.

Colours are Okabe and Ito's for lines and Paul Tol's light ones for fills: colour-blind readers can tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from graphs.boxes import Point
from graphs.circuit import Circuit
from graphs.errors import BadOption
from graphs.nodes import Edge, Node

Colouring = Literal["effect", "port"]
Groups = Mapping[str, Iterable[str | Node]]

PORT_COLOURS: Final = {"q": "#0072B2", "k": "#D55E00", "v": "#009E73", None: "#666B73"}
"""Okabe and Ito's blue, vermillion and bluish green, which colour-blind readers can tell apart, and a grey."""

HELPS: Final = "#0072B2"
"""Of an edge whose effect is negative: the metric falls when it is ablated."""

HURTS: Final = "#D55E00"
"""Of an edge whose effect is positive."""

UNKNOWN: Final = "#868C97"
"""Of an edge without a score, and of one whose effect is 0."""

MARKS: Final = {"q": "#CC79A7", "k": "#E69F00", "v": "#009E73"}
"""The marks of the ports at the lower side of a box, from left to right: where an edge arrives."""

INK: Final = "#1F2430"
FAINT: Final = "#7A808C"
BAND: Final = "#F4F5F8"
WALL: Final = "#C4C9D3"
LOOK: Final = {
    "head": ("#E6EEF7", "#5E7FA6", INK),
    "kv": ("#F3EAF4", "#9A6FA0", INK),
    "mlp": ("#FBF0D5", "#B58A2C", INK),
    "input": ("#3A4150", "#3A4150", "#FFFFFF"),
    "logits": ("#3A4150", "#3A4150", "#FFFFFF"),
    "input_feature": ("#EFF0F3", "#7A808C", INK),
    "attn_feature": ("#E6EEF7", "#5E7FA6", INK),
    "mlp_feature": ("#FBF0D5", "#B58A2C", INK),
    "resid_feature": ("#E4F1EC", "#4F8F78", INK),
    "input_error": ("#FFFFFF", "#7A808C", INK),
    "attn_error": ("#FFFFFF", "#5E7FA6", INK),
    "mlp_error": ("#FFFFFF", "#B58A2C", INK),
    "resid_error": ("#FFFFFF", "#4F8F78", INK),
}
"""How a kind of node looks: fill, outline, text."""

PLAIN: Final = ("#FFFFFF", "#8A909C", INK)  # of a node in no group, where there are groups
GROUP_LOOKS: Final = (
    ("#77AADD", "#2F6CA8"),
    ("#EE8866", "#B4502C"),
    ("#EEDD88", "#A8922C"),
    ("#FFAABB", "#C05A72"),
    ("#44BB99", "#1F7F65"),
    ("#BBCC33", "#7A881A"),
    ("#99DDFF", "#3F9CC4"),
    ("#DDDDDD", "#6E6E6E"),
)
MOST_GROUPS: Final = len(GROUP_LOOKS)
"""More fills than this nobody could tell apart."""

DASHES: Final = (2.4, 1.6)
SITE_NAMES: Final = {"input": "embed", "attn": "attn", "mlp": "MLP", "resid": "resid"}
"""What the rows of dictionaries' features are called."""

BOX_DASHES: Final = (1.6, 1.1)
"""Of the outline of an error term."""


class Line(NamedTuple):
    """How an edge looks: its colour, width in points, opacity, and the lengths of its dashes in points.

    `share` orders the lines: larger ones lie above.
    """

    colour: str
    width: float
    opacity: float = 1.0
    dashes: tuple[float, ...] | None = None
    share: float = 0.0


class Look(NamedTuple):
    """How a box looks; dashes are those of its outline, in points."""

    kind: str
    fill: str
    outline: str
    ink: str
    dashes: tuple[float, ...] | None = None


def effect_line(edge: Edge, score: float | None, largest: float, *, colour: Colouring) -> Line:
    """The look of an edge: by its sign or port, and its share of the largest effect."""
    if score is None:
        shown = UNKNOWN if colour == "effect" else PORT_COLOURS[edge.port]
        return Line(shown, line_width(0.0), 0.8, DASHES)
    share = share_of_largest(score, largest)
    by_sign = HELPS if score < 0 else HURTS if score > 0 else UNKNOWN
    return Line(
        by_sign if colour == "effect" else PORT_COLOURS[edge.port], line_width(share), line_opacity(share), share=share
    )


def largest_effect(circuit: Circuit) -> float:
    """The largest abs(score) of a node itself; 0 if no node has a score."""
    return max(map(abs, circuit.node_scores.values()), default=0.0)


def largest_importance(circuit: Circuit) -> float:
    """The largest abs(score); 0 if nothing is scored."""
    return max(map(abs, circuit.scores.values()), default=0.0)


def share_of_largest(score: float | None, largest: float) -> float:
    """An edge's importance relative to the largest, 0 to 1; without scores all edges are alike."""
    return 0.3 if score is None or not largest else abs(score) / largest


def line_width(share: float) -> float:
    """How wide the line of an edge is, in points, by its `share_of_largest`."""
    return 0.45 + 2.3 * share**0.7


def line_opacity(share: float) -> float:
    """How opaque the line of an edge is, 0 to 1, by its `share_of_largest`."""
    return 0.35 + 0.6 * math.sqrt(share)


def arrow(width: float) -> tuple[float, float]:
    """Length and half the breadth of the arrow head of a line, in points."""
    return 2.6 + 0.9 * width, 1.1 + 0.55 * width


def shortened(path: Sequence[Point], *, by: float) -> list[Point]:
    """The curve with its end, which is vertical, pulled down to leave room for the arrow head."""
    x, y = path[-1]
    return [*path[:-2], (path[-2][0], min(path[-2][1], y - by)), (x, y - by)]


def members_of(circuit: Circuit, groups: Groups) -> dict[Node, int]:
    """The number of the group of each node that is in one."""
    if len(groups) > MOST_GROUPS:
        raise BadOption(f"expected at most {MOST_GROUPS} groups, whose fills can be told apart; got {len(groups)}")
    found: dict[Node, int] = {}
    names = list(groups)
    for number, (name, nodes) in enumerate(groups.items()):
        if not isinstance(name, str) or not name.strip() or isinstance(nodes, str):
            raise BadOption(f'expected groups as {{"name": ["a9.h6", ...]}}; got {name!r}: {str(nodes)[:40]!r}')
        for each in nodes:
            node = each if isinstance(each, Node) else Node.parse(each)
            circuit.graph.check_node(node)
            if found.setdefault(node, number) != number:
                raise BadOption(
                    f"expected each node in one group; got {node} in {names[found[node]]!r} and {name!r}. Leave it out "
                    f"of one."
                )
    return found


def look_of(node: Node, members: Mapping[Node, int], *, grouped: bool) -> Look:
    """The look of a node: its group's, or a plain one where others are in groups, or that of its kind."""
    dashes = BOX_DASHES if node.is_error else None
    if node in members:
        return Look(node.kind, *GROUP_LOOKS[members[node]], INK, dashes)
    if grouped and node.kind not in ("input", "logits"):
        return Look(node.kind, *PLAIN, dashes)
    return Look(node.kind, *LOOK[node.kind], dashes)


def tinted(look: Look, score: float | None, largest: float) -> Look:
    """The same look, filled by the node's own effect: white without one, the deeper the larger."""
    if look.kind in ("input", "logits"):
        return look
    if not score or not largest:
        return look._replace(fill="#FFFFFF")
    return look._replace(fill=paler(HELPS if score < 0 else HURTS, 0.12 + 0.43 * math.sqrt(abs(score) / largest)))


def paler(colour: str, share: float) -> str:
    """So much of a colour in white.

    Example:
        >>> paler("#0072B2", 0.5)
        '#80B9D9'
    """
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{int(255 + (part - 255) * share + 0.5):02X}" for part in parts)

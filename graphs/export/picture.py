"""What a drawing of a circuit shows, before any program draws it: lines, fills, labels and the legend.

`graphs.layout` says where everything stands, this module how it looks and what is written beside it. The figure
(`graphs.export.figure`), the comparison of two circuits (`graphs.export.comparison`) and TikZ draw the same picture.

An edge that a circuit has at several positions is one line with their number, as wide as the strongest of them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from graphs.boxes import COMPACT, ROOMY, Point, Sizes, cut
from graphs.boxes import text_width as text_width
from graphs.circuit import Circuit, visible
from graphs.errors import BadOption
from graphs.export.looks import (
    BOX_DASHES,
    DASHES,
    GROUP_LOOKS,
    HELPS,
    HURTS,
    INK,
    LOOK,
    MARKS,
    PLAIN,
    PORT_COLOURS,
    SITE_NAMES,
    UNKNOWN,
    Colouring,
    Groups,
    Line,
    Look,
    effect_line,
    largest_effect,
    largest_importance,
    line_width,
    look_of,
    members_of,
    tinted,
)
from graphs.features import depth
from graphs.labels import labels_of
from graphs.layout import Layout, layout
from graphs.nodes import INPUT, Edge, Node

MOST_EDGES: Final = 1_500
"""Of a larger circuit the strongest edges are drawn, and the figure says so."""

MOST_ALONE: Final = 150
"""Of more nodes that have a score and no edge the strongest are drawn, likewise."""

_PORT_NAMES: Final = {"q": "query", "k": "key", "v": "value", None: "MLP or logits"}
_WIDE: Final = 0.62  # width of a character on average, in font sizes


class Entry(NamedTuple):
    """Words of the legend with a sample of what they explain: a line, a box, a port's letter, or nothing."""

    text: str
    sample: Line | Look | str | None = None
    x: float = 0.0
    row: int = 0


class Words(NamedTuple):
    """A text and the point at its middle."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Picture:
    """A drawing, ready to be drawn.

    Attributes:
        plan: Where everything stands; a wire for each line.
        sizes: The lengths it was laid out with.
        lines: How each edge looks; edges are without positions.
        names: What each edge is called, with its positions.
        looks: How each node looks.
        ports: The ports that are marked.
        labels: The positions of edges, where there is room.
        legend: Its entries, placed.
        title: Its lines.
        left: Width to the left of the plan, for the names of layers and sites of dictionaries.
        right: Width to the right.
        headings: The positions of features, at the feet of their columns.
    """

    plan: Layout
    sizes: Sizes
    lines: Mapping[Edge, Line]
    names: Mapping[Edge, str]
    looks: Mapping[Node, Look]
    ports: tuple[tuple[Node, str], ...]
    labels: tuple[Words, ...]
    legend: tuple[Entry, ...]
    title: tuple[str, ...]
    left: float
    right: float
    headings: tuple[Words, ...] = ()

    def text(self, node: Node) -> str:
        """What is written in the box of a node; where there are columns, the input's box holds their headings."""
        return "" if self.headings and node == INPUT else self.sizes.label(node)

    @property
    def walls(self) -> tuple[float, ...]:
        """The x of the lines between columns."""
        return tuple((one.right + other.left) / 2 for one, other in pairwise(self.plan.columns))

    def margin_texts(self) -> Iterator[Words]:
        """The names of layers, then those of sites of dictionaries, by the left end of each."""
        compact = self.sizes.short
        x = (4 if compact else 7) - self.left
        for band in self.plan.bands:
            name = f"L{band.layer}" if compact else f"layer {band.layer}"
            yield Words(name, x, (band.bottom + band.top) / 2)
        for shelf in self.plan.shelves:
            yield Words(SITE_NAMES[shelf.site], x + (13 if compact else 33), (shelf.bottom + shelf.top) / 2)
        if self.headings:
            yield Words("in" if compact else "input", x, self.headings[0].y)

    @property
    def row_height(self) -> float:
        """Height of a row of the legend, in points."""
        return 2 * self.sizes.small

    @property
    def sample_width(self) -> float:
        """Width of a sample of the legend, in points."""
        return _sample(self.sizes)


def picture(
    circuit: Circuit,
    *,
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
    colour: Colouring = "effect",
    most: int = MOST_EDGES,
) -> Picture:
    """The picture of one circuit; `graphs.export.figure.write` explains the options.

    Raises:
        BadOption: An option has a wrong value.
        BadName, UnknownNode: A group names something that is no node of the model.
    """
    if colour not in ("effect", "port"):
        raise BadOption(f"expected colour='effect' or 'port'; got {colour!r}")
    drawn = strongest(circuit, n=most)
    once, names = merged(drawn)
    largest = largest_importance(once)
    lines = {edge: effect_line(edge, once.scores.get(edge), largest, colour=colour) for edge in once.edges}
    legend = [*_colour_entries(once, colour=colour), *_width_entries(once)]
    notes = []
    if drawn.n_edges < circuit.n_edges:
        notes.append(f"The strongest {drawn.n_edges:,} of {circuit.n_edges:,} edges are drawn.")
    if drawn is not circuit and len(circuit.node_scores) > len(drawn.node_scores):
        notes.append(f"{len(drawn.nodes):,} of {len(circuit.nodes):,} nodes are drawn.")
    return assembled(
        once, names, lines, legend=legend, notes=notes, title=title, groups=groups, width=width, marks=colour != "port"
    )


def assembled(
    circuit: Circuit,
    names: Mapping[Edge, str],
    lines: Mapping[Edge, Line],
    *,
    legend: Sequence[Entry],
    notes: Sequence[str] = (),
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
    marks: bool = True,
) -> Picture:
    """Lay out a circuit whose edges are without positions, and put legend and labels to it."""
    sizes, left, right = (ROOMY, 40.0, 10.0) if width is None else (COMPACT, 17.0, 5.0)
    sizes = sizes._replace(labels=labels_of(circuit))
    if circuit.features:
        left += 20.0 if sizes.short else 32.0
    members = members_of(circuit, groups or {})
    plan = layout(circuit, width=None if width is None else _inches(width) * 72 - left - right, sizes=sizes)
    ports = tuple(
        sorted({(edge.target, edge.port) for edge in circuit.edges if edge.port and marks}, key=lambda at: str(at))
    )
    labels = _placed_labels({edge: at for edge, name in names.items() if (at := _at(edge, name))}, plan, sizes)
    tints = marks and not groups and bool(circuit.node_scores)
    entries = [*legend, *_mark_entries(ports), *_node_entries(circuit, groups or {}, sizes, tints=tints)]
    entries += _at_entries(names)
    if missing := sum(bool(_at(edge, name)) for edge, name in names.items()) - len(labels):
        entries.append(Entry(f"{missing:,} such labels have no room."))
    entries += [Entry(note) for note in notes]
    characters = max(12, int((plan.width + left) / (_WIDE * (sizes.small + 2))))
    foot = plan.boxes[INPUT].y
    return Picture(
        plan=plan,
        sizes=sizes,
        lines=lines,
        names=names,
        looks=_looks(circuit, plan, members, grouped=bool(groups), tints=tints),
        ports=ports,
        labels=labels,
        legend=tuple(_in_rows(entries, plan.width, sizes)),
        title=tuple(textwrap.wrap(visible(title), characters)) if title else (),
        left=left,
        right=right,
        headings=tuple(Words(each.heading, (each.left + each.right) / 2, foot) for each in plan.columns),
    )


def _looks(
    circuit: Circuit, plan: Layout, members: Mapping[Node, int], *, grouped: bool, tints: bool
) -> dict[Node, Look]:
    looks = {node: look_of(node, members, grouped=grouped) for node in plan.boxes}
    if not tints:
        return looks
    largest = largest_effect(circuit)
    return {node: tinted(look, circuit.node_scores.get(node), largest) for node, look in looks.items()}


# ------------------------------------------------------------------------------------------------------- edges


def strongest(circuit: Circuit, *, n: int) -> Circuit:
    """The circuit itself if it has at most `n` edges, else its `n` most important ones.

    Importance is abs(score); edges without a score come last, ties are broken by the order of the edges. Of nodes that
    have a score and no edge, the `MOST_ALONE` strongest stay.
    """
    ends = {end for edge in circuit.edges for end in (edge.source, edge.target)}
    if circuit.n_edges <= n and len(ends.union(circuit.node_scores)) <= len(ends) + MOST_ALONE:
        return circuit
    ranked = sorted(circuit.edges, key=lambda edge: -abs(circuit.scores[edge]) if edge in circuit.scores else 1.0)[:n]
    scores = {edge: circuit.scores[edge] for edge in ranked if edge in circuit.scores}
    alone = sorted(circuit.node_scores.keys() - ends, key=lambda node: (-abs(circuit.node_scores[node]), depth(node)))
    there = {end for edge in ranked for end in (edge.source, edge.target)}.union(alone[:MOST_ALONE])
    of_nodes = {node: score for node, score in circuit.node_scores.items() if node in there}
    return Circuit(circuit.architecture, ranked, scores, circuit.provenance, of_nodes)


def merged(circuit: Circuit) -> tuple[Circuit, dict[Edge, str]]:
    """The circuit without positions, each edge with the score of its strongest position, and the edges' names.

    Example:
        >>> edges = [Edge.parse("m0->logits@3"), Edge.parse("m0->logits@7")]
        >>> once, names = merged(Circuit(Architecture(1, 1), edges, {edges[0]: -1.0, edges[1]: 2.0}))
        >>> once.scores, names
        (mappingproxy({Edge('m0->logits'): 2.0}), {Edge('m0->logits'): 'm0->logits@3,7'})
    """
    at: dict[Edge, list[int]] = {}
    scores: dict[Edge, float] = {}
    for edge in circuit.edges:
        here = edge.everywhere()
        at.setdefault(here, []).extend([] if edge.position is None else [edge.position])
        score = circuit.scores.get(edge)
        if score is not None and abs(score) >= abs(scores.get(here, 0.0)):
            scores[here] = score
    names = {edge: str(edge) + (f"@{','.join(map(str, places))}" if places else "") for edge, places in at.items()}
    return Circuit(circuit.architecture, at, scores, circuit.provenance, circuit.node_scores), names


def _inches(width: object) -> float:
    if isinstance(width, bool) or not isinstance(width, int | float) or not 1.5 <= width <= 50:
        raise BadOption(f"expected width in inches, from 1.5 to 50, such as 3.3 for a column; got {width!r}")
    return float(width)


# ------------------------------------------------------------------------------------------------------- labels


def _at(edge: Edge, name: str) -> str:
    """The label of an edge with positions of its own: @7, or ×3 for three of them."""
    places = name.removeprefix(str(edge)).removeprefix("@")
    return "" if not places else f"×{places.count(',') + 1}" if "," in places else f"@{places}"


def _placed_labels(texts: Mapping[Edge, str], plan: Layout, sizes: Sizes) -> tuple[Words, ...]:
    """Each label at the first place along its edge where it touches no box and no other label, if there is one."""
    taken: dict[int, list[tuple[float, float, float, float]]] = {}

    def strips(low: float, high: float) -> range:
        return range(int(low // 16), int(high // 16) + 1)

    def take(left: float, low: float, right: float, high: float) -> None:
        for strip in strips(low, high):
            taken.setdefault(strip, []).append((left, low, right, high))

    def free(left: float, low: float, right: float, high: float) -> bool:
        near = (other for strip in strips(low, high) for other in taken.get(strip, ()))
        return all(left >= r or right <= lft or low >= top or high <= bot for lft, bot, r, top in near)

    for box in plan.boxes.values():
        take(box.x - box.width / 2, box.bottom, box.x + box.width / 2, box.top)
    found: list[Words] = []
    high = sizes.small * 0.6
    for wire in plan.wires:
        text = texts.get(wire.edge, "")
        wide = text_width(text, sizes.small) / 2 + 0.5
        for x, y in _along(wire.path) if text else ():
            rectangle = (x - wide, y - high, x + wide, y + high)
            if rectangle[0] >= 0 and rectangle[2] <= plan.width and free(*rectangle):
                take(*rectangle)
                found.append(Words(text, x, y))
                break
    return tuple(found)


def _along(path: Sequence[Point]) -> list[Point]:
    """Points along a curve, those near its middle first."""
    points = []
    for start in range(0, len(path) - 3, 3):
        a, b, c, d = path[start : start + 4]
        for t in (0.35, 0.5, 0.65):
            s = 1 - t
            weights = (s**3, 3 * s * s * t, 3 * s * t * t, t**3)
            points.append(
                (
                    sum(w * p[0] for w, p in zip(weights, (a, b, c, d), strict=True)),
                    sum(w * p[1] for w, p in zip(weights, (a, b, c, d), strict=True)),
                )
            )
    middle = (len(points) - 1) / 2
    return [points[place] for place in sorted(range(len(points)), key=lambda place: abs(place - middle))]


# ------------------------------------------------------------------------------------------------------- legend


def _colour_entries(circuit: Circuit, *, colour: Colouring) -> list[Entry]:
    scores = circuit.scores
    entries = []
    if colour == "port":
        ports = {edge.port for edge in circuit.edges}
        entries = [Entry(_PORT_NAMES[port], Line(shown, 1.4)) for port, shown in PORT_COLOURS.items() if port in ports]
    else:
        said = (("helps", HELPS, lambda score: score < 0), ("hurts", HURTS, lambda score: score > 0),
                ("no effect", UNKNOWN, lambda score: score == 0))  # fmt: skip
        entries = [Entry(name, Line(shown, 1.4)) for name, shown, holds in said if any(map(holds, scores.values()))]
    if len(scores) < circuit.n_edges:
        entries.append(Entry("not scored", Line(UNKNOWN, 0.7, 1.0, DASHES)))
    return entries


def _width_entries(circuit: Circuit) -> list[Entry]:
    largest = largest_importance(circuit)
    if not largest:
        return []
    return [Entry(f"effect ±{share * largest:.2g}", Line(INK, line_width(share))) for share in (1.0, 0.3, 0.1)]


def _mark_entries(ports: Iterable[tuple[Node, str]]) -> list[Entry]:
    there = {port for _, port in ports}
    return [Entry(f"read as {_PORT_NAMES[port]}", port) for port in MARKS if port in there]


def _node_entries(circuit: Circuit, groups: Groups, sizes: Sizes, *, tints: bool) -> list[Entry]:
    kinds = {node.kind for node in circuit.nodes}
    short = " (layer.head)" if sizes.short else ""
    names = {"head": f"head{short}", "kv": "keys and values of a group", "mlp": "MLP"}
    plain = bool(groups) or tints
    looks = {kind: Look(kind, *(PLAIN if plain else LOOK[kind])) for kind in names}
    entries = [Entry(name, looks[kind]) for kind, name in names.items() if kind in kinds]
    entries += _feature_entries(circuit, plain=plain)
    if tints:
        entries += _effect_entries(circuit)
    here = set(circuit.nodes)
    for (name, nodes), colours in zip(groups.items(), GROUP_LOOKS, strict=False):
        wanted = {node if isinstance(node, Node) else Node.parse(node) for node in nodes}
        missing = len(wanted - here)
        part = f" ({len(wanted) - missing} of {len(wanted)} here)" if missing else ""
        entries.append(Entry(f"{visible(name)}{part}", Look("head", *colours, INK)))
    return entries


def _feature_entries(circuit: Circuit, *, plain: bool) -> list[Entry]:
    """Features and error terms; rows tell their sites, so those of several have one sample."""
    entries = []
    for is_error, name in ((False, "feature"), (True, "err: what the dictionary misses")):
        kinds = {node.kind for node in circuit.features if node.is_error == is_error}
        if kinds:
            colours = LOOK[kinds.pop()] if len(kinds) == 1 and not plain else PLAIN
            entries.append(Entry(name, Look("head", *colours, BOX_DASHES if is_error else None)))
    return entries


def _effect_entries(circuit: Circuit) -> list[Entry]:
    largest = largest_effect(circuit)
    said = (("node helps", HELPS, min), ("node hurts", HURTS, max))
    entries = []
    for name, colour, farthest in said:
        score = farthest(circuit.node_scores.values())
        if score and (score < 0) == (colour == HELPS):
            entries.append(
                Entry(f"{name} (to {score:+.2g})".replace("-", "\u2212"), tinted(Look("head", *PLAIN), score, largest))
            )
    return entries


def _at_entries(names: Mapping[Edge, str]) -> list[Entry]:
    said = {_at(edge, name)[:1] for edge, name in names.items()}
    words = {"@": "@7: at position 7 alone", "×": "×3: at 3 positions, the strongest drawn"}
    return [Entry(text) for sign, text in words.items() if sign in said]


def _sample(sizes: Sizes) -> float:
    return 2.6 * sizes.small


def _in_rows(entries: Iterable[Entry], width: float, sizes: Sizes) -> list[Entry]:
    """Put the entries beside each other, in as many rows as that takes; break words alone that are wider than a row.

    What stands beside a sample is cut, not broken.
    """
    placed: list[Entry] = []
    x, row = 0.0, 0
    for entry in (part for whole in entries for part in _broken(whole, width, sizes)):
        before = 0.0 if entry.sample is None else _sample(sizes) + 4
        text = cut(entry.text, width - before, sizes.small)
        space = before + text_width(text, sizes.small) + 8
        if x and x + space - 8 > width:
            x, row = 0.0, row + 1
        placed.append(entry._replace(text=text, x=x, row=row))
        x += space
    return placed


def _broken(entry: Entry, width: float, sizes: Sizes) -> list[Entry]:
    if entry.sample is not None:
        return [entry]
    lines: list[str] = []
    for word in entry.text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, sizes.small) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [Entry(line) for line in lines]

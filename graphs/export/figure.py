"""The drawing of a circuit, for papers and notebooks: SVG, PDF or PNG.

Boxes with round corners are heads, boxes with pointed ends MLPs, the bars at the bottom and the top the input and the
logits; `graphs.layout` says where they stand. Features are small boxes in a row for each site of a dictionary, with a
column for each position; the outlines of error terms are dashed. Nodes with scores of their own are filled by them.

An edge's colour tells whether it helps or hurts, its width how important it is, abs(score); a mark where it arrives
tells the port at which it is read. Edges without a score are thin, grey and dashed. Text stays text (selectable in SVG,
embedded TrueType in PDF), colours can be told apart by colour-blind readers, the background is white, and the same
circuit gives the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphs.atomic import write_bytes
from graphs.boxes import PORT_PLACES, Box, Point
from graphs.circuit import Circuit
from graphs.export.canvas import METADATA as METADATA
from graphs.export.canvas import Canvas, known_suffix, pointed_box, rendered, round_box
from graphs.export.canvas import own_settings as own_settings
from graphs.export.looks import BAND, FAINT, INK, MARKS, WALL, Colouring, Groups, Line, Look
from graphs.export.looks import LOOK as LOOK
from graphs.export.looks import PORT_COLOURS as PORT_COLOURS
from graphs.export.looks import arrow as arrow
from graphs.export.looks import largest_importance as largest_importance
from graphs.export.looks import line_opacity as line_opacity
from graphs.export.looks import line_width as line_width
from graphs.export.looks import share_of_largest as share_of_largest
from graphs.export.looks import shortened as shortened
from graphs.export.picture import MOST_EDGES as MOST_EDGES
from graphs.export.picture import Entry, Picture, picture, text_width
from graphs.export.picture import strongest as strongest
from graphs.nodes import INPUT, LOGITS

if TYPE_CHECKING:
    from matplotlib.path import Path


def svg(
    circuit: Circuit,
    *,
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
    colour: Colouring = "effect",
) -> str:
    """The figure as the text of an SVG file; the options are those of `write`.

    Example:
        >>> svg(circuit, groups={"early": ["m0"]}).count("early")
        1
    """
    shown = picture(circuit, title=title, groups=groups, width=width, colour=colour)
    return drawn(shown, suffix=".svg").decode("utf-8")


def inline_svg(circuit: Circuit, **options: Any) -> str:
    """The figure as an `<svg>` element for a web page: no prologue, no style that would leak, at most page-wide."""
    text = svg(circuit, **options)
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text[text.index("<svg") :], count=1, flags=re.S)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.S)
    text = re.sub(r'(?<=<path d=")[^"]*', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), text)
    look = "max-width:100%;height:auto;background:#fff;stroke-linejoin:round;stroke-linecap:butt"
    return text.replace("<svg", f'<svg style="{look}"', 1)


def write(
    circuit: Circuit,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
    colour: Colouring = "effect",
    dpi: float = 300,
) -> None:
    """Write the figure to a file, whole or not at all.

    Cost: no model is run; half a second for 300 edges of a 12-layer model, two for 1,500.

    Args:
        circuit: What to draw; of more than `MOST_EDGES` edges the strongest. An edge at several positions is one line
            with their number (×3), drawn as the strongest of them.
        path: Ends in .svg, .pdf or .png.
        title: A line above the drawing; shown as it is, never read as markup or mathematics.
        groups: Name to nodes, such as ``{"name movers": ["a9.h6", "a9.h9"]}``: fills with a legend, at most 8, a node
            in one of them at most. Nodes that the model has and the circuit has not are counted in the legend.
        width: Of the whole figure, in inches; None for as wide as it likes. With a width, text has 5 points, heads are
            called 9.6 instead of a9.h6, and a layer takes as many rows as it needs. A column (3.3) suits up to some 50
            edges; for 300 take the width of a page (6.9).
        colour: "effect": blue edges help (ablating them lowers the metric), vermillion ones hurt, and marks at the
            boxes tell the ports. "port": colours tell the ports, and no sign is shown.
        dpi: Pixels per inch of a PNG.

    Raises:
        UnknownFormat: If the suffix is another one.
        BadOption: If an option has a wrong value.
        BadName, UnknownNode: If a group names something that is no node of the model.
        WriteFailed: If the file cannot be written.

    Example:
        >>> write(circuit, folder / "column.pdf", width=3.3, groups={"the MLP": ["m0"]})
    """
    suffix = known_suffix(path)
    shown = picture(circuit, title=title, groups=groups, width=width, colour=colour)
    write_bytes(path, drawn(shown, suffix=suffix, dpi=dpi))


def drawn(shown: Picture, *, suffix: str, dpi: float = 300) -> bytes:
    """A picture as the content of a file with this suffix."""
    with own_settings():
        return rendered(_canvas(shown).figure, suffix=suffix, dpi=dpi)


def _canvas(shown: Picture) -> Canvas:
    plan, sizes = shown.plan, shown.sizes
    below = 8.0 + shown.row_height * (1 + max((entry.row for entry in shown.legend), default=-1)) + 6
    line = (sizes.small + 2) * 1.3
    above = 8.0 + line * len(shown.title)
    canvas = Canvas(shown.left + plan.width + shown.right, below + plan.height + above, origin=(shown.left, below))
    _draw_bands(canvas, shown)
    _draw_wires(canvas, shown)
    for box in plan.boxes.values():
        _draw_box(canvas, box, shown)
    for node, port in shown.ports:
        _draw_mark(canvas, plan.boxes[node], port)
    for words in shown.headings:
        canvas.text(words.text, words.x, words.y, size=sizes.small, colour=shown.looks[INPUT].ink)
    for label in shown.labels:
        wide = text_width(label.text, sizes.small) / 2
        halo = round_box((label.x - wide, label.y - 3), (label.x + wide, label.y + 3), radius=1.0)
        canvas.shape(halo, fill="#FFFFFF", outline="none", order=3.5, opacity=0.85)
        canvas.text(label.text, label.x, label.y, size=sizes.small, colour=INK)
    for entry in shown.legend:
        _draw_entry(canvas, entry, shown)
    for number, text in enumerate(reversed(shown.title)):
        middle = (plan.width + shown.right - shown.left) / 2
        canvas.text(text, middle, plan.height + 8 + line * (number + 0.3), size=sizes.small + 2, colour=INK)
    return canvas


def _draw_bands(canvas: Canvas, shown: Picture) -> None:
    for number, band in enumerate(shown.plan.bands):
        if number % 2 == 0:
            corners = ((2 - shown.left, band.bottom), (shown.plan.width + 0.6 * shown.right, band.top))
            canvas.shape(round_box(*corners, radius=3.0), fill=BAND, outline="none", order=0)
    for words in shown.margin_texts():
        canvas.text(words.text, words.x, words.y, size=shown.sizes.small, colour=FAINT, align="left")
    low, high = shown.plan.boxes[INPUT].top, shown.plan.boxes[LOGITS].bottom
    for x in shown.walls:
        canvas.line(((x, low), (x, high)), colour=WALL, width=0.5, order=0.5, dashes=(1.0, 1.6))


def _draw_wires(canvas: Canvas, shown: Picture) -> None:
    for link in shown.plan.links:
        canvas.line(link, colour=FAINT, width=0.6, order=1, dashes=(0.9, 0.9))
    ranked = sorted(shown.plan.wires, key=lambda wire: shown.lines[wire.edge].share)
    for order, wire in enumerate(ranked):
        line, depth = shown.lines[wire.edge], 2 + order / len(ranked)
        path = shortened(wire.path, by=arrow(line.width)[0])
        if line.dashes is None:
            canvas.curve(path, colour="#FFFFFF", width=line.width + 1.1, opacity=0.75, order=depth)
        canvas.curve(
            path,
            colour=line.colour,
            width=line.width,
            opacity=line.opacity,
            order=depth,
            dashes=line.dashes,
            name=shown.names[wire.edge],
        )
        tip = _arrow_head(wire.path, line.width)
        canvas.shape(tip, fill=line.colour, outline="none", order=depth, opacity=min(1.0, line.opacity + 0.1))


def _arrow_head(path: Sequence[Point], width: float) -> Path:
    from matplotlib.path import Path

    (x, y), (long, half) = path[-1], arrow(width)
    return Path([(x, y), (x - half, y - long), (x + half, y - long), (x, y)], closed=True)


def _draw_box(canvas: Canvas, box: Box, shown: Picture) -> None:
    look, text = shown.looks[box.node], shown.text(box.node)
    left, right = box.x - box.width / 2, box.x + box.width / 2
    canvas.shape(
        _outline(look, (left, box.bottom), (right, box.top), cut=0.3 * box.height),
        fill=look.fill,
        outline=look.outline,
        order=4,
        dashes=look.dashes,
        name=str(box.node),
    )
    if not text:
        return
    canvas.text(text, box.x, box.y, size=shown.sizes.font, colour=look.ink)


def _outline(look: Look, low: Point, high: Point, *, cut: float) -> Path:
    if look.kind == "mlp":
        return pointed_box(low, high, point=cut)
    return round_box(low, high, radius=cut if look.kind != "kv" else 0.45 * cut)


def _draw_mark(canvas: Canvas, box: Box, port: str) -> None:
    """The mark of a port: a small bar in the lower side of the box."""
    x, half, high = box.x + PORT_PLACES[port] * box.width, 0.09 * box.width, 0.17 * box.height
    shape = round_box((x - half, box.bottom), (x + half, box.bottom + high), radius=0.5)
    canvas.shape(shape, fill=MARKS[port], outline="none", order=4.5)


def _draw_entry(canvas: Canvas, entry: Entry, shown: Picture) -> None:
    wide, size = shown.sample_width, shown.sizes.small
    x, y = entry.x, -2.0 * size - shown.row_height * entry.row
    low, high = (x, y - 0.58 * size), (x + wide, y + 0.58 * size)
    sample = entry.sample
    if isinstance(sample, Look):
        shape = _outline(sample, low, high, cut=0.36 * size)
        canvas.shape(shape, fill=sample.fill, outline=sample.outline, order=4, dashes=sample.dashes)
    elif isinstance(sample, Line):
        ends = ((x, y), (x + wide, y))
        canvas.line(
            ends, colour=sample.colour, width=sample.width, opacity=sample.opacity, order=4, dashes=sample.dashes
        )
    elif sample is not None:
        canvas.shape(round_box(low, high, radius=0.36 * size), fill="#FFFFFF", outline=FAINT, order=4)
        _draw_mark(canvas, Box(next(iter(shown.plan.boxes)), x + wide / 2, y, wide, 1.16 * size), sample)
    canvas.text(entry.text, x + (0 if sample is None else wide + 4), y, size=size, colour=INK, align="left")

r"""TikZ, for papers: a .tex file that compiles by itself or is taken in with `\includestandalone` or copied out.

The drawing is the figure's (`graphs.layout`, `graphs.export.figure`): same places, curves, colours, line widths and
legend, the strongest edges of a circuit that is too large. It needs the class `standalone` and TikZ, and is pure ASCII,
so any engine compiles it: of a title, what TeX treats specially is escaped, accents are TeX's, and characters that its
first fonts lack are written as U+4E2D.

A drawing only: scores, positions and provenance are not in it, so there is no reader.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

from graphs.atomic import write_text
from graphs.circuit import Circuit, visible
from graphs.export.figure import (
    LINE,
    LOOK,
    MOST_EDGES,
    PORT_COLOURS,
    arrow,
    largest_importance,
    legend_entries,
    line_opacity,
    line_width,
    share_of_largest,
    shortened,
    strongest,
)
from graphs.layout import Box, Layout, Point, layout

_PREAMBLE: Final = r"""\RequirePackage{fix-cm}
\documentclass[tikz,border=4bp]{standalone}
\renewcommand*{\familydefault}{\sfdefault}
"""
_SPECIAL: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\char36{}",  # those of other encodings may need fonts that are not there
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "'": r"\char39{}",
    "`": r"\char96{}",
    "-": "{-}",  # two would join into a dash
    "?": "{?}",  # two of them and an accent join too
    "!": "{!}",
    ",": "{,}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "œ": r"\oe{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "–": "{--}",
    "—": "{---}",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "→": r"$\to$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
}
_ACCENTS: Final = {  # combining character -> TeX's accent
    "\u0300": r"\`",
    "\u0301": r"\'",
    "\u0302": r"\^",
    "\u0303": r"\~",
    "\u0304": r"\=",
    "\u0308": r"\"",
    "\u030a": r"\r",
    "\u030c": r"\v",
    "\u0327": r"\c",
}


def dumps(circuit: Circuit, *, title: str | None = None) -> str:
    """The drawing as the text of a .tex file.

    Args:
        circuit: What to draw; of more than `MOST_EDGES` edges the strongest.
        title: A line above the drawing; shown as it is, never read as TeX.
    """
    return "\n".join([*_lines(circuit, title=title), ""])


def write(circuit: Circuit, path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Write the drawing as TikZ, whole or not at all.

    Args:
        circuit: What to draw; of more than `MOST_EDGES` edges the strongest.
        path: The file.
        title: A line above the drawing.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    write_text(path, dumps(circuit, title=title))


def escaped(text: str) -> str:
    r"""Text as TeX shows it, in ASCII.

    Example:
        >>> print(escaped("50 % of a_b"), escaped("café"), escaped("中"))
        50 \% of a\_b caf\'{e} U+4E2D
    """
    return "".join(_escaped(character) for character in visible(unicodedata.normalize("NFC", text)))


def _escaped(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii():
        return character
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _ACCENTS:
        base = {"i": r"\i", "j": r"\j"}.get(parts[0], parts[0])
        return f"{_ACCENTS[parts[1]]}{{{base}}}"
    return f"U+{ord(character):04X}"


def _lines(circuit: Circuit, *, title: str | None) -> Iterator[str]:
    drawn = strongest(circuit, n=MOST_EDGES)
    plan = layout(drawn)
    colours = {colour for look in LOOK.values() for colour in look} | {*PORT_COLOURS.values(), _BAND, _FAINT}
    yield _PREAMBLE.rstrip()
    yield from (rf"\definecolor{{{_name(colour)}}}{{HTML}}{{{colour[1:]}}}" for colour in sorted(colours))
    yield r"\begin{document}"
    yield r"\begin{tikzpicture}[x=1bp, y=1bp, line join=round, inner sep=0pt]"
    yield from _bands(plan)
    yield from _wires(drawn, plan)
    for box in plan.boxes.values():
        yield from _box(box)
    notes = [f"The strongest {drawn.n_edges:,} of {circuit.n_edges:,} edges are drawn."] if drawn is not circuit else []
    yield from _legend(drawn, plan, notes=notes)
    if title:
        yield _text(escaped(title), (plan.width / 2, plan.height + 14), size=8.0, colour=_INK)
    yield "\\end{tikzpicture}\n\\end{document}"


_INK: Final = LOOK["head"][2]
_BAND: Final = "#F4F5F8"
_FAINT: Final = "#7A808C"


def _name(colour: str) -> str:
    return f"c{colour[1:]}"


def _point(point: Point) -> str:
    return f"({point[0]:.2f},{point[1]:.2f})"


def _text(text: str, place: Point, *, size: float, colour: str, anchor: str = "center") -> str:
    font = rf"\fontsize{{{size}bp}}{{{size + 1.5}bp}}\selectfont"
    return rf"\node[anchor={anchor}, text={_name(colour)}, font={font}] at {_point(place)} {{{text}}};"


def _bands(plan: Layout) -> Iterator[str]:
    for number, band in enumerate(plan.bands):
        if number % 2 == 0:
            corners = f"{_point((-38, band.bottom))} rectangle {_point((plan.width + 6, band.top))}"
            yield rf"\fill[{_name(_BAND)}, rounded corners=3bp] {corners};"
        place = (-33, (band.bottom + band.top) / 2)
        yield _text(f"layer {band.layer}", place, size=6.0, colour=_FAINT, anchor="west")


def _wires(circuit: Circuit, plan: Layout) -> Iterator[str]:
    for low, high in plan.links:
        yield rf"\draw[{_name(_FAINT)}, line width=0.6bp, densely dotted] {_point(low)} -- {_point(high)};"
    largest = largest_importance(circuit)
    shares = {wire.edge: share_of_largest(circuit.scores.get(wire.edge), largest) for wire in plan.wires}
    for wire in sorted(plan.wires, key=lambda wire: shares[wire.edge]):
        share = shares[wire.edge]
        width, colour = line_width(share), _name(PORT_COLOURS[wire.edge.port])
        (x, y), (long, half) = wire.path[-1], arrow(width)
        curve = _curve(shortened(wire.path, by=long))
        yield rf"\draw[white, line width={width + 1.1:.2f}bp, opacity=0.75] {curve};"
        yield rf"\draw[{colour}, line width={width:.2f}bp, opacity={line_opacity(share):.2f}] {curve}; % {wire.edge}"
        tip = " -- ".join(map(_point, [(x, y), (x - half, y - long), (x + half, y - long)]))
        yield rf"\fill[{colour}, opacity={line_opacity(share):.2f}] {tip} -- cycle;"


def _curve(path: Sequence[Point]) -> str:
    pieces = (path[start : start + 3] for start in range(1, len(path), 3))
    return _point(path[0]) + "".join(
        f" .. controls {_point(first)} and {_point(second)} .. {_point(end)}" for first, second, end in pieces
    )


def _box(box: Box) -> Iterator[str]:
    fill, outline, ink = LOOK[box.node.kind]
    left, right = box.x - box.width / 2, box.x + box.width / 2
    look = f"fill={_name(fill)}, draw={_name(outline)}, line width=0.7bp"
    yield _shape(box.node.kind, (left, box.bottom), (right, box.top), look=look, cut=4.0)
    yield _text(str(box.node), (box.x, box.y), size=6.5, colour=ink)


def _shape(kind: str, low: Point, high: Point, *, look: str, cut: float) -> str:
    (left, bottom), (right, top) = low, high
    if kind != "mlp":
        rounded = 2.0 if kind == "kv" else cut
        return rf"\path[{look}, rounded corners={rounded}bp] {_point(low)} rectangle {_point(high)};"
    middle = (bottom + top) / 2
    corners = [(left + cut, bottom), (right - cut, bottom), (right, middle)]
    corners += [(right - cut, top), (left + cut, top), (left, middle)]
    return rf"\path[{look}] {' -- '.join(map(_point, corners))} -- cycle;"


def _legend(circuit: Circuit, plan: Layout, *, notes: Sequence[str]) -> Iterator[str]:
    for entry in legend_entries(circuit, plan, notes=notes):
        x, y = entry.x, -12.0 - LINE * entry.line
        if entry.kind in LOOK:
            fill, outline, _ = LOOK[entry.kind]
            look = f"fill={_name(fill)}, draw={_name(outline)}, line width=0.7bp"
            yield _shape(entry.kind, (x, y - 3.5), (x + 16, y + 3.5), look=look, cut=2.0)
        elif entry.kind:
            ends = f"{_point((x, y))} -- {_point((x + 16, y))}"
            yield rf"\draw[{_name(entry.kind)}, line width={entry.width:.2f}bp] {ends};"
        yield _text(escaped(entry.text), (x + 20, y), size=6.0, colour=_INK, anchor="west")

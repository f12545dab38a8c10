r"""TikZ, for papers: a .tex file that compiles by itself or is taken in with `\includestandalone` or copied out.

The drawing is the figure's (`graphs.layout`, `graphs.export.picture`): same places, curves, colours, line widths and
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
from graphs.boxes import PORT_PLACES, Box, Point
from graphs.circuit import Circuit, visible
from graphs.export.looks import BAND, FAINT, INK, MARKS, Colouring, Groups, Line, Look, arrow, shortened
from graphs.export.picture import MOST_EDGES, Picture, picture
from graphs.nodes import INPUT, LOGITS

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
    "±": r"$\pm$",
    "…": r"\ldots{}",
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


def dumps(
    circuit: Circuit,
    *,
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
    colour: Colouring = "effect",
) -> str:
    """The drawing as the text of a .tex file.

    Args:
        circuit: What to draw; of more than `MOST_EDGES` edges the strongest.
        title: A line above the drawing; shown as it is, never read as TeX.
        groups: As for `graphs.export.figure.write`, like the rest.
        width: In inches, without the border of 4 points.
        colour: "effect" or "port".

    Raises:
        BadOption: If an option has a wrong value.
        BadName, UnknownNode: If a group names something that is no node of the model.
    """
    shown = picture(circuit, title=title, groups=groups, width=width, colour=colour, most=MOST_EDGES)
    return "\n".join([*_lines(shown), ""])


def write(
    circuit: Circuit,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
    colour: Colouring = "effect",
) -> None:
    """Write the drawing as TikZ, whole or not at all.

    Args:
        circuit: What to draw; of more than `MOST_EDGES` edges the strongest.
        path: The file.
        title: A line above the drawing.
        groups: As for `graphs.export.figure.write`, like the rest.
        width: In inches, without the border of 4 points.
        colour: "effect" or "port".

    Raises:
        BadOption: If an option has a wrong value.
        BadName, UnknownNode: If a group names something that is no node of the model.
        WriteFailed: If the file cannot be written.
    """
    write_text(path, dumps(circuit, title=title, groups=groups, width=width, colour=colour))


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


def _lines(shown: Picture) -> Iterator[str]:
    plan, size = shown.plan, shown.sizes.small
    yield _PREAMBLE.rstrip()
    yield from (rf"\definecolor{{{_name(colour)}}}{{HTML}}{{{colour[1:]}}}" for colour in sorted(_colours(shown)))
    yield r"\begin{document}"
    yield r"\begin{tikzpicture}[x=1bp, y=1bp, line join=round, inner sep=0pt]"
    yield from _bands(shown)
    yield from _wires(shown)
    for box in plan.boxes.values():
        yield from _box(box, shown)
    for node, port in shown.ports:
        yield _mark(plan.boxes[node], port)
    for words in shown.headings:
        yield _text(escaped(words.text), (words.x, words.y), size=size, colour=shown.looks[INPUT].ink)
    for label in shown.labels:
        place = (label.x, label.y)
        text = _text(escaped(label.text), place, size=size, colour=INK)
        yield text.replace("[", "[fill=white, fill opacity=0.85, text opacity=1, ", 1)
    yield from _legend(shown)
    for number, line in enumerate(reversed(shown.title)):
        place = ((plan.width + shown.right - shown.left) / 2, plan.height + 14 + 1.3 * (size + 2) * number)
        yield _text(escaped(line), place, size=size + 2, colour=INK)
    yield "\\end{tikzpicture}\n\\end{document}"


def _colours(shown: Picture) -> set[str]:
    lines = [entry.sample for entry in shown.legend if isinstance(entry.sample, Line)]
    looks = [entry.sample for entry in shown.legend if isinstance(entry.sample, Look)]
    of_boxes = {colour for look in (*looks, *shown.looks.values()) for colour in look[1:4]}
    return (
        of_boxes
        | {line.colour for line in (*lines, *shown.lines.values())}
        | {*MARKS.values(), BAND, FAINT, INK, "#FFFFFF"}
    )


def _name(colour: str) -> str:
    return f"c{colour[1:]}"


def _point(point: Point) -> str:
    return f"({point[0]:.2f},{point[1]:.2f})"


def _text(text: str, place: Point, *, size: float, colour: str, anchor: str = "center") -> str:
    font = rf"\fontsize{{{size}bp}}{{{size + 1.5}bp}}\selectfont"
    return rf"\node[anchor={anchor}, text={_name(colour)}, font={font}] at {_point(place)} {{{text}}};"


def _bands(shown: Picture) -> Iterator[str]:
    for number, words in enumerate(shown.margin_texts()):
        if number < len(shown.plan.bands) and number % 2 == 0:
            band = shown.plan.bands[number]
            low, high = (2 - shown.left, band.bottom), (shown.plan.width + 0.6 * shown.right, band.top)
            yield rf"\fill[{_name(BAND)}, rounded corners=3bp] {_point(low)} rectangle {_point(high)};"
        yield _text(words.text, (words.x, words.y), size=shown.sizes.small, colour=FAINT, anchor="west")
    bottom, top = shown.plan.boxes[INPUT].top, shown.plan.boxes[LOGITS].bottom
    for x in shown.walls:
        ends = f"{_point((x, bottom))} -- {_point((x, top))}"
        yield rf"\draw[{_name(FAINT)}, opacity=0.4, line width=0.5bp, densely dotted] {ends};"


def _wires(shown: Picture) -> Iterator[str]:
    for low, high in shown.plan.links:
        yield rf"\draw[{_name(FAINT)}, line width=0.6bp, densely dotted] {_point(low)} -- {_point(high)};"
    for wire in sorted(shown.plan.wires, key=lambda wire: shown.lines[wire.edge].share):
        line = shown.lines[wire.edge]
        (x, y), (long, half) = wire.path[-1], arrow(line.width)
        curve, look = _curve(shortened(wire.path, by=long)), f"{_stroke(line)}, opacity={line.opacity:.2f}"
        if line.dashes is None:
            yield rf"\draw[white, line width={line.width + 1.1:.2f}bp, opacity=0.75] {curve};"
        yield rf"\draw[{look}] {curve}; % {shown.names[wire.edge]}"
        tip = " -- ".join(map(_point, [(x, y), (x - half, y - long), (x + half, y - long)]))
        yield rf"\fill[{_name(line.colour)}, opacity={min(1.0, line.opacity + 0.1):.2f}] {tip} -- cycle;"


def _stroke(line: Line) -> str:
    return f"{_name(line.colour)}, line width={line.width:.2f}bp{_pattern(line.dashes)}"


def _pattern(dashes: Sequence[float] | None) -> str:
    lengths = zip(("on", "off") * 4, dashes or (), strict=False)
    pattern = " ".join(f"{word} {length:g}bp" for word, length in lengths)
    return f", dash pattern={pattern}" if pattern else ""


def _curve(path: Sequence[Point]) -> str:
    pieces = (path[start : start + 3] for start in range(1, len(path), 3))
    return _point(path[0]) + "".join(
        f" .. controls {_point(first)} and {_point(second)} .. {_point(end)}" for first, second, end in pieces
    )


def _box(box: Box, shown: Picture) -> Iterator[str]:
    look = shown.looks[box.node]
    left, right = box.x - box.width / 2, box.x + box.width / 2
    yield _shape(look, (left, box.bottom), (right, box.top), cut=0.3 * box.height)
    if text := shown.text(box.node):
        yield _text(escaped(text), (box.x, box.y), size=shown.sizes.font, colour=look.ink)


def _shape(look: Look, low: Point, high: Point, *, cut: float) -> str:
    (left, bottom), (right, top) = low, high
    pattern = _pattern(look.dashes)
    colours = f"fill={_name(look.fill)}, draw={_name(look.outline)}, line width=0.7bp{pattern}"
    if look.kind != "mlp":
        rounded = 0.45 * cut if look.kind == "kv" else cut
        return rf"\path[{colours}, rounded corners={rounded:.2f}bp] {_point(low)} rectangle {_point(high)};"
    middle = (bottom + top) / 2
    corners = [(left + cut, bottom), (right - cut, bottom), (right, middle)]
    corners += [(right - cut, top), (left + cut, top), (left, middle)]
    return rf"\path[{colours}] {' -- '.join(map(_point, corners))} -- cycle;"


def _mark(box: Box, port: str) -> str:
    x, half, high = box.x + PORT_PLACES[port] * box.width, 0.09 * box.width, 0.17 * box.height
    corners = f"{_point((x - half, box.bottom))} rectangle {_point((x + half, box.bottom + high))}"
    return rf"\fill[{_name(MARKS[port])}, rounded corners=0.5bp] {corners};"


def _legend(shown: Picture) -> Iterator[str]:
    wide, size = shown.sample_width, shown.sizes.small
    for entry in shown.legend:
        x, y = entry.x, -2.0 * size - shown.row_height * entry.row
        low, high, sample = (x, y - 0.58 * size), (x + wide, y + 0.58 * size), entry.sample
        if isinstance(sample, Look):
            yield _shape(sample, low, high, cut=0.36 * size)
        elif isinstance(sample, Line):
            ends = f"{_point((x, y))} -- {_point((x + wide, y))}"
            yield rf"\draw[{_stroke(sample)}, opacity={sample.opacity:.2f}] {ends};"
        elif sample is not None:
            yield _shape(Look("head", "#FFFFFF", FAINT, INK), low, high, cut=0.36 * size)
            yield _mark(Box(INPUT, x + wide / 2, y, wide, 1.16 * size), sample)
        place = (x + (0 if sample is None else wide + 4), y)
        yield _text(escaped(entry.text), place, size=size, colour=INK, anchor="west")

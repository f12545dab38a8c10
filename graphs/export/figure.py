"""The drawing of a circuit, for papers and notebooks: SVG, PDF or PNG.

Boxes with round corners are heads, boxes with pointed ends MLPs, the bars at the bottom and the top the input and the
logits; `graphs.layout` says where they stand. An edge's colour tells at which port it is read, its width how important
it is, abs(score). Text stays text (selectable in SVG, embedded TrueType in PDF), colours are Okabe and Ito's, the
background is white, and the same circuit gives the same bytes: no time stamps, no random ids, and none of the user's
matplotlib settings.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from graphs.atomic import write_bytes
from graphs.circuit import Circuit, visible
from graphs.errors import UnknownFormat
from graphs.layout import Box, Layout, Point, layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.path import Path

MOST_EDGES: Final = 1_500
"""Of a larger circuit the strongest edges are drawn, and the figure says so."""

PORT_COLOURS: Final = {"q": "#0072B2", "k": "#D55E00", "v": "#009E73", None: "#666B73"}
"""Okabe and Ito's blue, vermillion and bluish green, which colour-blind readers can tell apart, and a grey."""

_PORT_NAMES: Final = {"q": "query", "k": "key", "v": "value", None: "MLP or logits"}
_INK: Final = "#1F2430"
_FAINT: Final = "#7A808C"
_BAND: Final = "#F4F5F8"
LOOK: Final = {
    "head": ("#E6EEF7", "#5E7FA6", _INK),
    "kv": ("#F3EAF4", "#9A6FA0", _INK),
    "mlp": ("#FBF0D5", "#B58A2C", _INK),
    "input": ("#3A4150", "#3A4150", "#FFFFFF"),
    "logits": ("#3A4150", "#3A4150", "#FFFFFF"),
}
"""How a kind of node looks: fill, outline, text."""

_LEFT, _RIGHT, _ABOVE, _BELOW = 40.0, 10.0, 8.0, 8.0
_FONT = 6.5
_SMALL = 6.0
LINE = 12.0  # height of a line of the legend
_CURVE = 0.5523  # how far a Bezier's control points stand for a quarter of a circle


def svg(circuit: Circuit, *, title: str | None = None) -> str:
    """The figure as the text of an SVG file.

    Args:
        circuit: What to draw; of more than `MOST_EDGES` edges the strongest.
        title: A line above the drawing; shown as it is, never read as markup or mathematics.
    """
    return _rendered(circuit, title=title, suffix=".svg", dpi=72).decode("utf-8")


def inline_svg(circuit: Circuit) -> str:
    """The figure as an `<svg>` element for a web page: no prologue, no style that would leak, at most page-wide."""
    text = svg(circuit)
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text[text.index("<svg") :], count=1, flags=re.S)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.S)
    look = "max-width:100%;height:auto;background:#fff;stroke-linejoin:round;stroke-linecap:butt"
    return text.replace("<svg", f'<svg style="{look}"', 1)


def write(circuit: Circuit, path: str | os.PathLike[str], *, title: str | None = None, dpi: float = 300) -> None:
    """Write the figure to a file, whole or not at all.

    Args:
        circuit: What to draw; of more than `MOST_EDGES` edges the strongest.
        path: Ends in .svg, .pdf or .png.
        title: A line above the drawing.
        dpi: Pixels per inch of a PNG.

    Raises:
        UnknownFormat: If the suffix is another one.
        WriteFailed: If the file cannot be written.
    """
    suffix = FilePath(path).suffix.lower()
    if suffix not in METADATA:
        raise UnknownFormat(f"a figure is written as {', '.join(METADATA)}; got {suffix or 'no suffix'!r}")
    write_bytes(path, _rendered(circuit, title=title, suffix=suffix, dpi=dpi))


METADATA: Final[dict[str, dict[str, Any]]] = {  # None leaves a field out
    ".svg": {"Date": None, "Creator": "Wiretrace"},
    ".pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": "Wiretrace"},
    ".png": {"Software": "Wiretrace"},
}


def _rendered(circuit: Circuit, *, title: str | None, suffix: str, dpi: float) -> bytes:
    with own_settings():
        buffer = io.BytesIO()
        figure = _figure(circuit, title=title)
        figure.savefig(buffer, format=suffix[1:], dpi=dpi, metadata=METADATA[suffix], facecolor="white")
    return buffer.getvalue()


@contextmanager
def own_settings() -> Iterator[None]:
    """Matplotlib's defaults with ours on top, whatever the user has set; theirs come back afterwards."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a title may be in any script
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "wiretrace",
                "pdf.fonttype": 42,
                "font.family": "sans-serif",
                "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
                "path.simplify": False,
            }
        )
        yield


# ------------------------------------------------------------------------------------------------------- drawing


def _figure(circuit: Circuit, *, title: str | None) -> Figure:
    drawn = strongest(circuit, n=MOST_EDGES)
    plan = layout(drawn)
    notes = [f"The strongest {drawn.n_edges:,} of {circuit.n_edges:,} edges are drawn."] if drawn is not circuit else []
    legend = legend_entries(drawn, plan, notes=notes)
    width = _LEFT + plan.width + _RIGHT
    below = _BELOW + LINE * (1 + max((entry.line for entry in legend), default=-1)) + 6
    above = _ABOVE + (16 if title else 0)
    canvas = _Canvas(width, below + plan.height + above, origin=(_LEFT, below))
    _draw_bands(canvas, plan)
    _draw_wires(canvas, drawn, plan)
    for box in plan.boxes.values():
        _draw_box(canvas, box)
    for entry in legend:
        _draw_entry(canvas, entry)
    if title:
        canvas.text(visible(title), plan.width / 2, plan.height + 14, size=8.0, colour=_INK)
    return canvas.figure


def strongest(circuit: Circuit, *, n: int) -> Circuit:
    """The circuit itself if it has at most `n` edges, else its `n` most important ones.

    Importance is abs(score); edges without a score come first, ties are broken by the order of the edges.
    """
    if circuit.n_edges <= n:
        return circuit
    ranked = sorted(circuit.edges, key=lambda edge: -abs(circuit.scores.get(edge, math.inf)))[:n]
    scores = {edge: circuit.scores[edge] for edge in ranked if edge in circuit.scores}
    return Circuit(circuit.architecture, ranked, scores, circuit.provenance)


def _draw_bands(canvas: _Canvas, plan: Layout) -> None:
    for number, band in enumerate(plan.bands):
        if number % 2 == 0:
            corners = ((-_LEFT + 2, band.bottom), (plan.width + 6, band.top))
            canvas.shape(_round_box(*corners, radius=3.0), fill=_BAND, outline="none", order=0)
        canvas.text(
            f"layer {band.layer}",
            -_LEFT + 7,
            (band.bottom + band.top) / 2,
            size=_SMALL,
            colour=_FAINT,
            align="left",
        )


def _draw_wires(canvas: _Canvas, circuit: Circuit, plan: Layout) -> None:
    for link in plan.links:
        canvas.line(link, colour=_FAINT, width=0.6, order=1, dashes=(1.5, 1.5))
    largest = largest_importance(circuit)
    ranked = sorted(plan.wires, key=lambda wire: share_of_largest(circuit.scores.get(wire.edge), largest))
    for order, wire in enumerate(ranked):
        share = share_of_largest(circuit.scores.get(wire.edge), largest)
        depth = 2 + order / len(ranked)
        width, colour = line_width(share), PORT_COLOURS[wire.edge.port]
        path = shortened(wire.path, by=arrow(width)[0])
        canvas.curve(path, colour="#FFFFFF", width=width + 1.1, opacity=0.75, order=depth)
        canvas.curve(
            path,
            colour=colour,
            width=width,
            opacity=line_opacity(share),
            order=depth,
            name=str(wire.edge),
        )
        canvas.shape(
            _arrow_head(wire.path, width),
            fill=colour,
            outline="none",
            order=depth,
            opacity=0.5 + 0.5 * math.sqrt(share),
        )


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


def _arrow_head(path: Sequence[Point], width: float) -> Path:
    from matplotlib.path import Path

    (x, y), (long, half) = path[-1], arrow(width)
    return Path([(x, y), (x - half, y - long), (x + half, y - long), (x, y)], closed=True)


def _draw_box(canvas: _Canvas, box: Box) -> None:
    fill, outline, ink = LOOK[box.node.kind]
    left, right = box.x - box.width / 2, box.x + box.width / 2
    if box.node.kind == "mlp":
        shape = _pointed_box((left, box.bottom), (right, box.top), point=4.0)
    else:
        shape = _round_box((left, box.bottom), (right, box.top), radius=4.5 if box.node.kind != "kv" else 2.0)
    canvas.shape(shape, fill=fill, outline=outline, order=4, name=str(box.node))
    canvas.text(str(box.node), box.x, box.y, size=_FONT, colour=ink)


# -------------------------------------------------------------------------------------------------------- legend


class Entry(NamedTuple):
    """One sample of the legend with its words, on a line below the drawing."""

    text: str
    kind: str  # a port's colour, a node's kind, or "" for words alone
    width: float
    x: float = 0.0
    line: int = 0


def legend_entries(circuit: Circuit, plan: Layout, *, notes: Sequence[str]) -> list[Entry]:
    """What occurs in the drawing, explained, broken into lines that fit below it."""
    ports = {edge.port for edge in circuit.edges}
    kinds = {node.kind for node in circuit.nodes}
    entries = [Entry(_PORT_NAMES[port], colour, 1.4) for port, colour in PORT_COLOURS.items() if port in ports]
    entries += [
        Entry(f"{share * largest_importance(circuit):.2g}", _INK, line_width(share))
        for share in (1.0, 0.3, 0.1)
        if circuit.scores
    ]
    names = {"head": "head", "kv": "keys and values of a group", "mlp": "MLP"}
    entries += [Entry(name, kind, 0.0) for kind, name in names.items() if kind in kinds]
    entries += [Entry(note, "", 0.0) for note in notes]
    placed: list[Entry] = []
    x, line = 0.0, 0
    for entry in entries:
        space = 18 + 4 + len(entry.text) * _SMALL * 0.6 + 9
        if x and x + space > plan.width:
            x, line = 0.0, line + 1
        placed.append(entry._replace(x=x, line=line))
        x += space
    return placed


def _draw_entry(canvas: _Canvas, entry: Entry) -> None:
    x, y = entry.x, -12.0 - LINE * entry.line
    if entry.kind in LOOK:
        fill, outline, _ = LOOK[entry.kind]
        corners = ((x, y - 3.5), (x + 16, y + 3.5))
        shape = _pointed_box(*corners, point=2.0) if entry.kind == "mlp" else _round_box(*corners, radius=2.5)
        canvas.shape(shape, fill=fill, outline=outline, order=4)
    elif entry.kind:
        canvas.line(((x, y), (x + 16, y)), colour=entry.kind, width=entry.width, order=4)
    canvas.text(entry.text, x + 20, y, size=_SMALL, colour=_INK, align="left")


# -------------------------------------------------------------------------------------------------------- canvas


class _Canvas:
    """A matplotlib figure measured in points, without axes."""

    def __init__(self, width: float, height: float, *, origin: Point) -> None:
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        self.figure = Figure(figsize=(width / 72, height / 72))
        self._place = Affine2D().translate(*origin).scale(1 / 72) + self.figure.dpi_scale_trans

    def shape(
        self,
        path: Path,
        *,
        fill: str,
        outline: str,
        order: float,
        opacity: float = 1.0,
        name: str | None = None,
    ) -> None:
        from matplotlib.patches import PathPatch

        patch = PathPatch(path, facecolor=fill, edgecolor=outline, linewidth=0.7, alpha=opacity, zorder=order)
        self._add(patch, name)

    def curve(
        self,
        points: Sequence[Point],
        *,
        colour: str,
        width: float,
        opacity: float,
        order: float,
        name: str | None = None,
    ) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        path = Path(points, [Path.MOVETO, *[Path.CURVE4] * (len(points) - 1)])
        patch = PathPatch(
            path,
            facecolor="none",
            edgecolor=colour,
            linewidth=width,
            alpha=opacity,
            zorder=order,
            capstyle="butt",
        )
        self._add(patch, name)

    def line(
        self,
        points: Sequence[Point],
        *,
        colour: str,
        width: float,
        order: float,
        dashes: tuple[float, float] | None = None,
    ) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        style = (0, dashes) if dashes else "solid"
        self._add(
            PathPatch(
                Path(points),
                facecolor="none",
                edgecolor=colour,
                linewidth=width,
                linestyle=style,
                zorder=order,
            ),
            None,
        )

    def text(self, text: str, x: float, y: float, *, size: float, colour: str, align: str = "center") -> None:
        from matplotlib.text import Text

        label = Text(
            x,
            y,
            text,
            fontsize=size,
            color=colour,
            ha=align,
            va="center_baseline",
            parse_math=False,
            zorder=5,
        )
        self._add(label, None)

    def _add(self, artist: Any, name: str | None) -> None:
        artist.set_transform(self._place)
        artist.set_clip_on(False)
        if name:
            artist.set_gid(name)
        self.figure.add_artist(artist)


def _round_box(low: Point, high: Point, *, radius: float) -> Path:
    from matplotlib.path import Path

    (left, bottom), (right, top) = low, high
    cut = radius * (1 - _CURVE)
    points, codes = [(left + radius, bottom), (right - radius, bottom)], [Path.MOVETO, Path.LINETO]
    for corner in (
        [(right - cut, bottom), (right, bottom + cut), (right, bottom + radius), (right, top - radius)],
        [(right, top - cut), (right - cut, top), (right - radius, top), (left + radius, top)],
        [(left + cut, top), (left, top - cut), (left, top - radius), (left, bottom + radius)],
        [(left, bottom + cut), (left + cut, bottom), (left + radius, bottom), (left + radius, bottom)],
    ):
        points += corner
        codes += [Path.CURVE4] * 3 + [Path.LINETO]
    codes[-1] = Path.CLOSEPOLY
    return Path(points, codes)


def _pointed_box(low: Point, high: Point, *, point: float) -> Path:
    from matplotlib.path import Path

    (left, bottom), (right, top) = low, high
    middle = (bottom + top) / 2
    upper = [(right - point, top), (left + point, top), (left, middle)]
    return Path([(left + point, bottom), (right - point, bottom), (right, middle), *upper, (0, 0)], closed=True)

"""A sheet to draw on, measured in points, and its way into a file: SVG, PDF or PNG with the same bytes every time.

No time stamps, no random ids, and none of the user's matplotlib settings. Text stays text: selectable in SVG, embedded
TrueType in PDF.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final

from graphs.boxes import Point
from graphs.errors import UnknownFormat

if TYPE_CHECKING:
    import os

    from matplotlib.figure import Figure
    from matplotlib.path import Path

_CURVE: Final = 0.5523  # how far a Bezier's control points stand for a quarter of a circle

METADATA: Final[dict[str, dict[str, Any]]] = {  # None leaves a field out
    ".svg": {"Date": None, "Creator": "Wiretrace"},
    ".pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": "Wiretrace"},
    ".png": {"Software": "Wiretrace"},
}


def known_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of a figure's path, in lower case.

    Raises:
        UnknownFormat: It is none of `METADATA`.

    Example:
        >>> known_suffix("a/B.SVG")
        '.svg'
    """
    suffix = FilePath(path).suffix.lower()
    if suffix not in METADATA:
        raise UnknownFormat(f"a figure is written as {', '.join(METADATA)}; got {suffix or 'no suffix'!r}")
    return suffix


def rendered(figure: Figure, *, suffix: str, dpi: float) -> bytes:
    """The content of the file of a figure; to be called within `own_settings`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], dpi=dpi, metadata=METADATA[suffix], facecolor="white")
    return _rounded(buffer.getvalue()) if suffix == ".svg" else buffer.getvalue()


def _rounded(svg: bytes) -> bytes:
    """Paths with two decimals: a hundredth of a point cannot be seen, and the file is half as large."""
    return re.sub(rb'(?<=<path d=")[^"]*', lambda path: re.sub(rb"-?\d+\.\d+", _short, path[0]), svg)


def _short(number: re.Match[bytes]) -> bytes:
    return b"%g" % round(float(number[0]), 2)


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


class Canvas:
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
        edge: float = 0.7,
        dashes: tuple[float, ...] | None = None,
        name: str | None = None,
    ) -> None:
        """A filled shape; `edge` is the width of its outline, `dashes` are the outline's, in points."""
        from matplotlib.patches import PathPatch

        patch = PathPatch(
            path,
            facecolor=fill,
            edgecolor=outline,
            linewidth=edge,
            alpha=opacity,
            zorder=order,
            linestyle=_dashed(dashes, edge),
        )
        self._add(patch, name)

    def curve(
        self,
        points: Sequence[Point],
        *,
        colour: str,
        width: float,
        opacity: float,
        order: float,
        dashes: tuple[float, ...] | None = None,
        name: str | None = None,
    ) -> None:
        """A curve of cubic Bezier pieces; dashes are in points, whatever the width."""
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
            linestyle=_dashed(dashes, width),
        )
        self._add(patch, name)

    def line(
        self,
        points: Sequence[Point],
        *,
        colour: str,
        width: float,
        order: float,
        opacity: float = 1.0,
        dashes: tuple[float, ...] | None = None,
    ) -> None:
        """A straight line, or several in a row."""
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        self._add(
            PathPatch(
                Path(points),
                facecolor="none",
                edgecolor=colour,
                linewidth=width,
                alpha=opacity,
                linestyle=_dashed(dashes, width),
                zorder=order,
            ),
            None,
        )

    def text(self, text: str, x: float, y: float, *, size: float, colour: str, align: str = "center") -> None:
        """A line of text, its middle at the height y."""
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


def _dashed(dashes: tuple[float, ...] | None, width: float) -> Any:
    return (0, tuple(length / width for length in dashes)) if dashes else "solid"  # matplotlib measures in widths


def round_box(low: Point, high: Point, *, radius: float) -> Path:
    """A rectangle with round corners."""
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


def pointed_box(low: Point, high: Point, *, point: float) -> Path:
    """A rectangle with pointed ends."""
    from matplotlib.path import Path

    (left, bottom), (right, top) = low, high
    middle = (bottom + top) / 2
    upper = [(right - point, top), (left + point, top), (left, middle)]
    return Path([(left + point, bottom), (right - point, bottom), (right, middle), *upper, (0, 0)], closed=True)

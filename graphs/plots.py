"""Curves that judge methods: ROC curves and faithfulness against size; SVG, PDF or PNG.

One style for all, that of the other figures: text stays text, colours are Okabe and Ito's, lines also differ by marker,
and the same numbers give the same bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from graphs.atomic import write_bytes
from graphs.circuit import visible
from graphs.errors import BadCircuit
from graphs.export.canvas import known_suffix, own_settings, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1F2430", "#7A808C")
_MARKERS: Final = ("o", "D", "s", "^", "v", "P", "X")  # fewer than colours, by one: 56 curves differ
_INK, _FAINT = "#1F2430", "#7A808C"
_SMALL: Final = 7.0
_DPI: Final = 300
_BEFORE: Final = "="  # matplotlib leaves out of the legend what begins with an underscore


def roc(curves: Mapping[str, Sequence[Point]], path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Draw true against false positive rates, with the diagonal of chance.

    Args:
        curves: Name to points (false positive rate, true positive rate), ascending. Lines are stairs, which rise only
            where there is a point: the pessimistic reading.
        path: Ends in .svg, .pdf or .png.
        title: A line above the drawing; shown as it is, never read as mathematics.

    Raises:
        BadCircuit: There is no curve, a rate is not from 0 to 1, or the points do not ascend.
        UnknownFormat: The suffix is another one.
        WriteFailed: The file cannot be written.

    Example:
        >>> roc({"ACDC": [(0.0, 0.0), (0.1, 0.8), (1.0, 1.0)]}, "roc.svg")  # doctest: +SKIP
    """
    _check(curves)
    for name, points in curves.items():
        if any(not 0.0 <= rate <= 1.0 for point in points for rate in point):
            raise BadCircuit(f"expected rates from 0 to 1; the curve {name!r} has others.")
        if any(after[1] < before[1] for before, after in pairwise(points)):
            raise BadCircuit(
                f"expected true positive rates that ascend; those of the curve {name!r} do not. Sort them."
            )

    def draw(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color=_FAINT, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
        for number, (name, points) in enumerate(curves.items()):
            axes.step([x for x, _ in points], [y for _, y in points], where="post", **_style(number, name, points))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xlabel("false positive rate", fontsize=_SMALL, color=_INK)
        axes.set_ylabel("true positive rate", fontsize=_SMALL, color=_INK)

    _write(draw, path, size=(4.6, 3.0), title=title)


def faithfulness(
    curves: Mapping[str, Sequence[Point]],
    path: str | os.PathLike[str],
    *,
    intervals: Mapping[str, Sequence[Point]] | None = None,
    title: str | None = None,
) -> None:
    """Draw faithfulness against the share of edges kept, on a logarithmic axis.

    Args:
        curves: Name to points (share of edges, faithfulness), ascending; shares above 0.
        path: Ends in .svg, .pdf or .png.
        intervals: For some of the names, the lower and upper end at each point, as a band.
        title: A line above the drawing; shown as it is, never read as mathematics.

    Raises:
        BadCircuit: There is no curve, a share is not above 0, the shares do not ascend, a faithfulness is not finite,
            or an interval does not belong to a curve.
        UnknownFormat: The suffix is another one.
        WriteFailed: The file cannot be written.

    Example:
        >>> faithfulness({"EAP": [(0.01, 0.2), (0.1, 0.9), (1.0, 1.0)]}, "curve.svg")  # doctest: +SKIP
    """
    _check(curves)
    bands = intervals or {}
    for name, points in curves.items():
        if any(not 0.0 < share <= 1.0 for share, _ in points):
            raise BadCircuit(f"expected shares above 0 and up to 1; the curve {name!r} has others.")
        if any(not math.isfinite(value) for _, value in points):
            raise BadCircuit(f"expected finite faithfulness; the curve {name!r} has another. Leave such points out.")
    for name, ends in bands.items():
        if len(ends) != len(curves.get(name, ())):
            raise BadCircuit(f"expected an interval at each point of a curve; those of {name!r} do not belong to one.")
        if any(not (math.isfinite(low) and math.isfinite(high) and low <= high) for low, high in ends):
            raise BadCircuit(f"expected intervals as (lower, upper), finite; one of {name!r} is not.")

    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def draw(axes: Axes) -> None:
        for level in (0.0, 1.0):
            axes.axhline(level, color=_FAINT, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
        for number, (name, points) in enumerate(curves.items()):
            shares = [share for share, _ in points]
            axes.plot(shares, [value for _, value in points], **_style(number, name, points))
            if name in bands:
                low, high = zip(*bands[name], strict=True)
                axes.fill_between(shares, low, high, color=_COLOURS[number % len(_COLOURS)], alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        axes.xaxis.set_minor_formatter(NullFormatter())  # labels of minor ticks would run into one another
        axes.set_xlabel("share of edges kept", fontsize=_SMALL, color=_INK)
        axes.set_ylabel("faithfulness", fontsize=_SMALL, color=_INK)

    _write(draw, path, size=(4.6, 2.8), title=title)


def scatter(
    pairs: Mapping[str, Sequence[Point]],
    path: str | os.PathLike[str],
    *,
    axes: tuple[str, str] = ("estimated", "measured"),
    title: str | None = None,
) -> None:
    """Draw what was estimated against what was measured, with the line on which both are equal.

    Args:
        pairs: Name to points (estimated, measured), in one unit.
        path: Ends in .svg, .pdf or .png.
        axes: What stands at the horizontal and the vertical axis.
        title: A line above the drawing; shown as it is, never read as mathematics.

    Raises:
        BadCircuit: There are no points, or one is not finite.
        UnknownFormat: The suffix is another one.
        WriteFailed: The file cannot be written.

    Example:
        >>> scatter({"EAP": [(-0.5, -0.7), (0.1, 0.0)]}, "scatter.svg")  # doctest: +SKIP
    """
    if not pairs or not all(pairs.values()):
        raise BadCircuit("expected at least one named set of points, and points in each; got none.")
    flat = [value for points in pairs.values() for point in points for value in point]
    if not all(math.isfinite(value) for value in flat):
        raise BadCircuit("expected finite points; some are NaN or infinite.")

    def draw(plot: Axes) -> None:
        ends = (min(flat), max(flat))
        plot.plot(ends, ends, color=_FAINT, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
        for number, (name, points) in enumerate(pairs.items()):
            mark = {"linestyle": "none", "marker": _MARKERS[number % len(_MARKERS)], "markevery": None}
            style: dict[str, Any] = _style(number, name, points) | mark
            plot.plot([x for x, _ in points], [y for _, y in points], rasterized=len(points) > 500, **style)
        plot.set_xlabel(visible(axes[0]), fontsize=_SMALL, color=_INK, parse_math=False)
        plot.set_ylabel(visible(axes[1]), fontsize=_SMALL, color=_INK, parse_math=False)

    _write(draw, path, size=(4.6, 3.0), title=title)


def _check(curves: Mapping[str, Sequence[Point]]) -> None:
    if not curves or not all(curves.values()):
        raise BadCircuit("expected at least one curve, and points in each; got none.")
    for name, points in curves.items():
        if any(not after[0] >= before[0] for before, after in pairwise(points)):
            raise BadCircuit(f"expected points in ascending order; those of the curve {name!r} are not. Sort them.")


def _style(number: int, name: str, points: Sequence[Point]) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markevery": max(1, len(points) // 20),
        "markersize": 3.0,
        "markeredgewidth": 0,
        "linewidth": 1.1,
        "label": f"{_BEFORE}{visible(name)}",
        "zorder": 2 + number,
    }


def _write(
    draw: Callable[[Axes], None], path: str | os.PathLike[str], *, size: tuple[float, float], title: str | None
) -> None:
    suffix = known_suffix(path)
    with own_settings():
        figure = _figure(draw, size=size, title=title)
        data = rendered(figure, suffix=suffix, dpi=_DPI)
    write_bytes(path, data)


def _figure(draw: Callable[[Axes], None], *, size: tuple[float, float], title: str | None) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.tick_params(labelsize=_SMALL, color=_FAINT, labelcolor=_INK, length=2.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
    legend = figure.legend(loc="outside right center", fontsize=_SMALL, frameon=False, labelcolor=_INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_text(text.get_text().removeprefix(_BEFORE))
    if title:
        axes.set_title(visible(title), fontsize=_SMALL + 1, color=_INK, parse_math=False, loc="left")
    return figure

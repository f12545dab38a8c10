"""Figures about feature circuits: faithfulness and completeness against size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from graphs.atomic import write_bytes
from graphs.circuit import visible
from graphs.export.canvas import known_suffix, own_settings, rendered
from patching.errors import InvalidOption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from circuits.features.feature_faithfulness import FaithfulnessCurve

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1F2430", "#7A808C")
_MARKERS: Final = ("o", "D", "s", "^", "v", "P", "X")
_INK, _FAINT = "#1F2430", "#7A808C"
_SMALL: Final = 7.0
_BEFORE: Final = "="  # matplotlib leaves out of the legend what begins with an underscore


def faithfulness(
    curves: Mapping[str, FaithfulnessCurve], path: str | os.PathLike[str], *, title: str | None = None
) -> None:
    """Draw faithfulness and, below it, completeness against the number of nodes, on a logarithmic axis.

    Feature circuits and neuron circuits share the axes: what fewer nodes achieve stands further left.

    Args:
        curves: name to curve, such as ``features`` and ``neurons``.
        path: ends in .svg, .pdf or .png.
        title: a line above the drawing.

    Raises:
        InvalidOption: there are no curves, or one of them has no point.
        UnknownFormat: the suffix is another one.
        WriteFailed: the file cannot be written.
    """
    if not curves:
        raise InvalidOption("expected at least one curve; got none.")
    for name, curve in curves.items():
        if not curve.points():
            raise InvalidOption(f"expected curves with at least one circuit that has nodes; {name!r} has none.")
    suffix = known_suffix(path)
    with own_settings():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for number, (name, curve) in enumerate(curves.items()):
            for axes, what in ((upper, "faithfulness"), (lower, "completeness")):
                sizes, values = zip(*curve.points(what), strict=True)
                label: dict[str, Any] = {"label": f"{_BEFORE}{visible(name)}"} if axes is upper else {}
                axes.plot(
                    sizes, values, color=_COLOURS[number % len(_COLOURS)], marker=_MARKERS[number % len(_MARKERS)],
                    markersize=3.0, markeredgewidth=0, linewidth=1.1, zorder=2 + number, **label,
                )  # fmt: skip
        _frame(upper, "faithfulness")
        _frame(lower, "completeness")
        lower.set_xlabel("nodes", fontsize=_SMALL, color=_INK)
        legend = figure.legend(loc="outside right center", fontsize=_SMALL, frameon=False, labelcolor=_INK)
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_text(text.get_text().removeprefix(_BEFORE))
        if title:
            upper.set_title(visible(title), fontsize=_SMALL + 1, color=_INK, parse_math=False, loc="left")
        data = rendered(figure, suffix=suffix, dpi=300)
    write_bytes(path, data)


def _frame(axes: Axes, what: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for level in (0.0, 1.0):
        axes.axhline(level, color=_FAINT, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(what, fontsize=_SMALL, color=_INK)
    axes.tick_params(labelsize=_SMALL, color=_FAINT, labelcolor=_INK, length=2.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)

"""The course of a search: what was decided when, how much it mattered, and what was left.

A trace is what ACDC reports while it runs. `draw` shows all of it, or its beginning (``upto=``), so that a search can
be replayed. The picture keeps the promises of the other figures: text stays text, and the same trace gives the same
bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from graphs.atomic import write_bytes
from graphs.circuit import visible
from graphs.errors import BadCircuit
from graphs.export.canvas import known_suffix, own_settings, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KEPT, _DROPPED, _DEAD, _INK, _FAINT = "#D55E00", "#0072B2", "#B9BEC9", "#1F2430", "#7A808C"
_SMALL: Final = 6.5
_MOST_POINTS: Final = 5_000
_DPI: Final = 300


@dataclass(frozen=True, slots=True)
class Step:
    """One decision.

    Attributes:
        name: Of the edge or node.
        kept: Whether it stayed.
        delta: The rise of the damage without it, in the metric's unit; None where nothing was evaluated.
        seconds: Of searching until then; None if nobody took the time.
    """

    name: str
    kept: bool
    delta: float | None
    seconds: float | None = None


def kept_after(steps: Sequence[Step], n: int) -> list[str]:
    """What is still there after n decisions: what was kept, and what is not decided yet.

    Raises:
        BadCircuit: There are fewer decisions.

    Example:
        >>> steps = [Step("m0->logits", False, 0.0, 0.1), Step("input->logits", True, 2.0, 0.2)]
        >>> kept_after(steps, 1), kept_after(steps, 0)
        (['input->logits'], ['m0->logits', 'input->logits'])
    """
    if not 0 <= n <= len(steps):
        raise BadCircuit(f"expected a number of decisions from 0 to {len(steps):,}; got {n:,}.")
    return [step.name for number, step in enumerate(steps) if step.kept or number >= n]


def draw(
    steps: Sequence[Step],
    path: str | os.PathLike[str],
    *,
    tau: float | None = None,
    upto: int | None = None,
    unit: str = "damage",
    title: str | None = None,
) -> None:
    """Draw a search: above, the rise of the damage at each decision, and below, how much was left.

    Args:
        steps: Every decision, in order.
        path: Ends in .svg, .pdf or .png.
        tau: The threshold, as a line.
        upto: Only so many decisions, on the axes of the whole search.
        unit: What the rise is a rise of, such as ``logit_difference``.
        title: A line above the drawing; shown as it is, never read as mathematics.

    Raises:
        BadCircuit: There are no decisions, or fewer than ``upto``, or a rise or ``tau`` is not finite.
        UnknownFormat: The suffix is another one.
        WriteFailed: The file cannot be written.
    """
    suffix = known_suffix(path)
    if not steps:
        raise BadCircuit("expected a trace of at least one decision; got none.")
    if tau is not None and not math.isfinite(tau):
        raise BadCircuit(f"expected tau as a finite number; got {tau}.")
    for step in steps:
        if step.delta is not None and not math.isfinite(step.delta):
            raise BadCircuit(f"expected finite rises; got {step.delta} for {visible(step.name)[:80]}.")
    shown = len(steps) if upto is None else upto
    if not 0 <= shown <= len(steps):
        raise BadCircuit(f"expected upto from 0 to {len(steps):,}, the number of decisions; got {shown:,}.")
    with own_settings():
        figure = _figure(steps, shown, tau=tau, unit=unit, title=title)
        data = rendered(figure, suffix=suffix, dpi=_DPI)
    write_bytes(path, data)


def _figure(steps: Sequence[Step], shown: int, *, tau: float | None, unit: str, title: str | None) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 3.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    _rises(above, steps, shown, tau=tau, unit=unit)
    _size(below, steps, shown)
    if title:
        figure.suptitle(visible(title), fontsize=_SMALL + 1.5, color=_INK, parse_math=False)
    for axes in (above, below):
        axes.set_xlim(0, len(steps) + 1)
        axes.tick_params(labelsize=_SMALL, color=_FAINT, labelcolor=_INK, length=2.5)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_FAINT)
    figure.align_ylabels()
    return figure


def _rises(axes: Axes, steps: Sequence[Step], shown: int, *, tau: float | None, unit: str) -> None:
    """Points on an axis that is linear up to the threshold and logarithmic beyond."""
    evaluated = [(number, step) for number, step in enumerate(steps, start=1) if step.delta is not None]
    rises = [step.delta or 0.0 for _, step in evaluated]
    linear = abs(tau or 0.0) or max((abs(rise) for rise in rises), default=0.0) / 30 or 1.0
    axes.set_yscale("symlog", linthresh=linear, linscale=0.6)
    largest = max((abs(rise) for rise in rises), default=1.0)
    decades = [10.0**power for power in range(-12, 13) if linear <= 10.0**power <= 10 * largest]
    axes.set_yticks([-decade for decade in decades if -decade >= min(rises, default=0.0) * 10] + [0.0, *decades])
    axes.set_yticks([], minor=True)
    # A point without a face keeps the axes of the whole search whatever is shown of it.
    axes.plot([0] * len(rises), rises, linestyle="none")
    if tau is not None:
        axes.axhline(tau, color=_INK, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
        axes.annotate(
            f"tau {tau:g}", (1.0, tau), xycoords=("axes fraction", "data"), ha="right", va="bottom",
            fontsize=_SMALL, color=_INK,
        )  # fmt: skip
    raster = len(steps) > _MOST_POINTS
    for kept, colour, marker, label in ((False, _DROPPED, "o", "dropped"), (True, _KEPT, "D", "kept")):
        points = [(n, step.delta or 0.0) for n, step in evaluated if step.kept == kept and n <= shown]
        axes.plot(
            [n for n, _ in points], [rise for _, rise in points], marker, color=colour, markersize=2.2 + 0.6 * kept,
            markeredgewidth=0, label=f"{label} ({len(points):,})", rasterized=raster, zorder=2 + kept,
        )  # fmt: skip
    dead = [n for n, step in enumerate(steps[:shown], start=1) if step.delta is None]
    if dead:
        axes.plot(
            dead, [0.012] * len(dead), "|", color=_DEAD, markersize=3, transform=axes.get_xaxis_transform(),
            label=f"read by nothing ({len(dead):,})", rasterized=raster,
        )  # fmt: skip
    axes.set_ylabel(f"rise of the damage\n({visible(unit)})", fontsize=_SMALL, color=_INK, parse_math=False)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=_SMALL, frameon=False, borderpad=0.0,
        handletextpad=0.3, columnspacing=1.2, labelcolor=_INK,
    )  # fmt: skip


def _size(axes: Axes, steps: Sequence[Step], shown: int) -> None:
    left = [len(steps)]
    for step in steps[:shown]:
        left.append(left[-1] - (not step.kept))
    axes.fill_between(range(len(left)), left, step="post", color=_DROPPED, alpha=0.18, linewidth=0)
    axes.step(range(len(left)), left, where="post", color=_DROPPED, linewidth=1.0)
    axes.set_ylim(0, len(steps) * 1.04)
    axes.set_ylabel("left", fontsize=_SMALL, color=_INK)
    took = steps[shown - 1].seconds if shown else 0.0
    after = "" if took is None else f" in {took:,.1f} s"
    axes.set_xlabel(f"decision ({shown:,}{after}; {left[-1]:,} left)", fontsize=_SMALL, color=_INK)

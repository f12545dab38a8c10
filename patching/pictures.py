"""Pictures of effects for papers and notebooks: heat map, curve, scatter plot; SVG, PDF or PNG.

They look like the drawings of circuits (`graphs.export.figure`) and keep the same promises: text stays text, colours
are Okabe and Ito's, the background is white, and the same effects give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from graphs.atomic import write_bytes
from graphs.circuit import visible
from graphs.errors import UnknownFormat
from graphs.export.figure import METADATA, own_settings
from patching.agreement import correlation, ranks
from patching.effects import Effects
from patching.errors import InvalidOption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from torch import Tensor

NAMED: Final = 10
"""How many of the largest true importances a scatter plot names."""

MOST_VECTOR_CELLS: Final = 5_000
"""More cells or points than these become an embedded image, so that the file stays small."""

_DPI: Final = 300
_SIZE: Final = 7.0
_SMALL: Final = 6.0
_INK: Final = "#1F2430"
_FAINT: Final = "#7A808C"
_BLUE, _VERMILLION, _ORANGE = "#0072B2", "#D55E00", "#E69F00"
_COLD: Final = ("#00324F", _BLUE, "#8CC1E0", "#FAFAFA")  # from the most negative to nothing
_WARM: Final = ("#FAFAFA", "#F3B98C", _VERMILLION, "#6E2A00")  # from nothing to the most positive
_CELL: Final = 15.0  # points, of a cell that has room
_WIDEST, _TALLEST = 400.0, 320.0  # of a heat map, in points
_STEPS: Final = (1, 2, 5)


def heat_map(effects: Effects, path: Path, *, title: str | None = None) -> None:
    """Draw mean effects: colours over two axes, or a curve along one.

    Of two axes the first goes upwards, its first label at the bottom. Dots mark `Effects.detected`. A curve has bars
    of one standard error where there are two or more prompts, and beside it the sum of the single effects of windows.

    Args:
        effects: over one or two axes; beyond two, axes of one label are left out.
        path: ends in .svg, .pdf or .png.
        title: a line above the drawing; shown as it is, never read as mathematics.

    Raises:
        InvalidOption: there are more than two axes.
        UnknownFormat: the suffix is another one.
        WriteFailed: the file cannot be written.
    """
    long = [axis for axis, known in enumerate(effects.labels) if len(known) > 1]
    drawn = list(range(len(effects.axes))) if len(effects.axes) <= 2 else long
    if not 1 <= len(drawn) <= 2:
        raise InvalidOption(
            f"expected effects over one or two axes to draw; got {' × '.join(effects.axes)}. Sweep with parts=False, "
            "or pick a single position, such as positions=[0]."
        )
    with own_settings():
        figure = _curve(effects, drawn[0], title) if len(drawn) == 1 else _cells(effects, drawn, title)
        _write(figure, path)


def scatter(effects: Effects, true: Effects, path: Path) -> None:
    """Draw importances against true ones, with the line of equality and the largest true ones named.

    Args:
        effects: estimates.
        true: what they estimate, over the same axes.
        path: ends in .svg, .pdf or .png.

    Raises:
        InvalidOption: the two have other axes or labels.
        UnknownFormat: the suffix is another one.
        WriteFailed: the file cannot be written.
    """
    effects.compare(true)
    with own_settings():
        _write(_points(effects, true), path)


def _write(figure: Figure, path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix not in METADATA:
        raise UnknownFormat(f"a figure is written as {', '.join(METADATA)}; got {suffix or 'no suffix'!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], dpi=_DPI, metadata=METADATA[suffix], facecolor="white")
    write_bytes(path, buffer.getvalue())


# ------------------------------------------------------------------------------------------------------ heat map


def _cells(effects: Effects, drawn: list[int], title: str | None) -> Figure:
    rows, columns = (effects.labels[axis] for axis in drawn)
    values = effects.mean.reshape(len(rows), len(columns)).cpu()
    detected = effects.detected.reshape(len(rows), len(columns)).cpu()
    across = min(_CELL * 1.2, _WIDEST / len(columns))
    up = min(_CELL, _TALLEST / len(rows))
    width, height = max(100.0, across * len(columns)), max(72.0, up * len(rows))
    across, up = width / len(columns), height / len(rows)
    frame = _Frame(width, height, left=_room(rows), right=62.0, title=title, note=bool(detected.any()))
    axes = frame.axes
    limit = float(values.abs().max()) or 1.0
    lowest = -limit if effects.signed else 0.0
    few = values.numel() <= MOST_VECTOR_CELLS
    mesh = axes.pcolormesh(
        values.numpy(),
        cmap=_colours(signed=effects.signed),
        vmin=lowest,
        vmax=limit,
        edgecolors="#FFFFFF" if min(across, up) >= 6 else "face",
        linewidth=0.6 if min(across, up) >= 6 else 0.1,
        rasterized=not few,
    )
    size = min(across, up, 12.0) * 0.2
    for pale in (True, False):
        chosen = detected & ((values.abs() <= 0.4 * limit) == pale)
        ys, xs = chosen.nonzero(as_tuple=True)
        axes.plot(
            (xs + 0.5).tolist(),
            (ys + 0.5).tolist(),
            "o",
            markersize=max(1.4, size),
            color=_INK if pale else "#FFFFFF",
            markeredgewidth=0,
        )
    _ticks(axes, "x", columns, across)
    _ticks(axes, "y", rows, up)
    _name_axis(axes, "x", _plain(effects.axes[drawn[1]]) + _rest(effects, drawn))
    _name_axis(axes, "y", _plain(effects.axes[drawn[0]]))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = frame.figure.colorbar(mesh, cax=frame.beside(offset=9.0, width=7.0, height=min(height, 140.0)))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=_SMALL, length=2, width=0.5, color=_FAINT, labelcolor=_INK)
    bar.set_label(_what(effects, "\n"), fontsize=_SMALL, color=_INK, parse_math=False, linespacing=1.25)
    if detected.any():
        frame.say("• more than two standard deviations from the mean of all cells")
    return frame.figure


def _colours(*, signed: bool) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("effect", [*_COLD, *_WARM[1:]] if signed else list(_WARM))


# --------------------------------------------------------------------------------------------------------- curve


def _curve(effects: Effects, axis: int, title: str | None) -> Figure:
    labels = effects.labels[axis]
    width = min(_WIDEST, max(170.0, 14.0 * len(labels)))
    detected = effects.detected.flatten().cpu()
    alone = None if effects.singles is None else effects.singles.reshape(len(effects.values), -1)
    notes = ["bars: one standard error"] if len(effects.values) > 1 else []
    notes += ["ringed: more than two standard deviations from the mean"] if detected.any() else []
    legend = 20.0 if alone is not None else 0.0
    frame = _Frame(width, 120.0, left=44.0, right=10.0, title=title, note=bool(notes), legend=legend)
    axes = frame.axes
    axes.axhline(0.0, color=_FAINT, linewidth=0.6, zorder=1)
    if alone is not None:
        _line(axes, alone, colour=_ORANGE, marker="s", name="sum of the layers patched one by one")
    window = dict(effects.provenance.get("options") or {}).get("window", 1)
    name = f"{window} layers patched together" if alone is not None else "effect"
    _line(axes, effects.values.reshape(len(effects.values), -1), colour=_BLUE, marker="o", name=name)
    xs = detected.nonzero().flatten()
    heights = effects.mean.flatten().cpu()[xs]
    axes.plot(xs.tolist(), heights.tolist(), "o", markersize=7.5, markerfacecolor="none", markeredgecolor=_INK,
              markeredgewidth=0.7, zorder=4)  # fmt: skip
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.margins(y=0.12)
    _ticks(axes, "x", labels, width / len(labels), offset=0.0)
    _name_axis(axes, "x", _plain(effects.axes[axis]) + _rest(effects, [axis]))
    _name_axis(axes, "y", _what(effects))
    _open(axes)
    if alone is not None:
        axes.legend(fontsize=_SMALL, frameon=False, labelcolor=_INK, loc="lower left", bbox_to_anchor=(-0.03, 0.97))
    frame.say("; ".join(notes))
    return frame.figure


def _line(axes: Axes, values: Tensor, *, colour: str, marker: str, name: str) -> None:
    """A mean over prompts with its standard error."""
    values = values.cpu()
    spread = (values.std(0) / math.sqrt(len(values))).tolist() if len(values) > 1 else None
    axes.errorbar(
        range(values.shape[1]), values.mean(0).tolist(), yerr=spread, color=colour, marker=marker, markersize=3.5,
        linewidth=1.1, elinewidth=0.8, capsize=1.8, capthick=0.8, label=name, zorder=3,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- scatter


def _points(effects: Effects, true: Effects) -> Figure:
    xs, ys = (each.importance.flatten().double().cpu() for each in (true, effects))
    frame = _Frame(190.0, 190.0, left=40.0, right=10.0, title=None, note=False)
    axes = frame.axes
    largest = max(float(xs.max()), float(ys.max())) or 1.0
    low, high = -0.03 * largest, 1.06 * largest
    axes.plot([0, high], [0, high], color=_FAINT, linewidth=0.7, dashes=(4, 3), zorder=1)
    axes.scatter(
        xs.numpy(),
        ys.numpy(),
        s=11,
        color=_BLUE,
        alpha=0.75,
        linewidths=0,
        zorder=2,
        rasterized=len(xs) > MOST_VECTOR_CELLS,
    )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    corner = f"Pearson {_figure_of(xs, ys)}\nSpearman {_figure_of(ranks(xs), ranks(ys))}"
    axes.text(0.03, 0.97, corner, transform=axes.transAxes, fontsize=_SIZE, color=_INK, va="top", linespacing=1.35)
    scale = 190.0 / (high - low)
    dots = [((float(x) - low) * scale, (float(y) - low) * scale) for x, y in zip(xs, ys, strict=True)]
    order = xs.argsort(descending=True, stable=True)[:NAMED].tolist()
    names = effects.names()
    diagonal = [(step * 4.0, step * 4.0) for step in range(2, 46)]
    taken = [_Box(3.0, 163.0, 66.0, 187.0)]
    for number, place in zip(order, _placed([(names[i], dots[i]) for i in order], dots, diagonal, taken), strict=True):
        (x, y), (left, bottom) = dots[number], place[:2]
        far = place.distance(x, y) > 7.0
        axes.annotate(
            names[number],
            (x / 190.0, y / 190.0),
            (left / 190.0, bottom / 190.0),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=_SMALL,
            color=_INK,
            va="bottom",
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": _FAINT, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 1}
            if far
            else None,
            zorder=3,
        )
    _name_axis(axes, "x", f"importance, {_method(true)}")
    _name_axis(axes, "y", f"importance, {_method(effects)}")
    _open(axes)
    return frame.figure


class _Box(NamedTuple):
    """A rectangle, in points from the lower left corner of the axes."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: _Box) -> bool:
        """Whether two rectangles share a point."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def way_from(self, x: float, y: float) -> list[tuple[float, float]]:
        """Some points between a point and the nearest one of the rectangle."""
        nearest = min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)
        return [(x + (nearest[0] - x) * i / 8, y + (nearest[1] - y) * i / 8) for i in range(1, 8)]

    def distances(self, points: Tensor) -> Tensor:
        """How far points are from it, ``[point, 2]``."""
        low, high = points.new_tensor([self.left, self.bottom]), points.new_tensor([self.right, self.top])
        return torch.maximum(low - points, points - high).clamp(min=0).norm(dim=1)

    def distance(self, x: float, y: float) -> float:
        """How far a point is from it."""
        return math.hypot(max(self.left - x, 0.0, x - self.right), max(self.bottom - y, 0.0, y - self.top))


def _placed(
    named: Sequence[tuple[str, tuple[float, float]]],
    dots: Sequence[tuple[float, float]],
    line: Sequence[tuple[float, float]],
    taken: list[_Box],
) -> list[_Box]:
    """Where each name goes: near its dot, on no other name and, if that can be had, on no dot and not on the line."""
    boxes = []
    taken = list(taken)
    everything = torch.tensor(dots, dtype=torch.float64).reshape(-1, 2)
    for text, (x, y) in named:
        width, height = _width(text), 7.0
        candidates = []
        others = everything[(everything - torch.tensor([x, y], dtype=torch.float64)).abs().amax(1) > 1e-6]
        for ring, distance in enumerate((4.0, 10.0, 18.0, 28.0, 40.0, 54.0, 70.0)):
            for turn in range(16):
                angle = turn * math.pi / 8
                cx, cy = x + distance * math.cos(angle), y + distance * math.sin(angle)
                left = cx - width * (1 - math.cos(angle)) / 2
                bottom = cy - height * (1 - math.sin(angle)) / 2
                box = _Box(left, bottom, left + width, bottom + height)
                if box.left < 1 or box.bottom < 1 or box.right > 189 or box.top > 189:
                    continue
                wide = _Box(box.left - 3, box.bottom - 0.5, box.right + 3, box.top + 0.5)
                hits = 100.0 * sum(wide.meets(other) for other in taken)
                hits += 20.0 * sum(other.distance(*point) == 0 for other in taken for point in box.way_from(x, y))
                apart = box.distances(others)
                hits += 3.0 * int((apart < 1.8).sum())
                hits += 2.5 * (distance < 7 and bool((apart < box.distance(x, y) + 2).any()))
                hits += 2.0 * any(box.distance(*point) < 1.0 for point in line)
                candidates.append((hits + 0.08 * distance, ring, turn, box))
            if any(cost < 0.08 * distance + 0.01 for cost, *_ in candidates):
                break  # a place that hits nothing; those farther out are worse
        best = min(candidates)[-1] if candidates else _Box(x, y, x + width, y + height)
        boxes.append(best)
        taken.append(best)
    return boxes


def _figure_of(a: Tensor, b: Tensor) -> str:
    value = correlation(a, b)
    return "undefined" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def _method(effects: Effects) -> str:
    return _METHODS.get(str(effects.provenance.get("method")), str(effects.provenance.get("method", "")))


_METHODS: Final = {"activation patching": "activation patching", "atp": "AtP", "atp_star": "AtP*"}


# ------------------------------------------------------------------------------------------------------- drawing


class _Frame:
    """A figure measured in points, with one pair of axes."""

    def __init__(
        self,
        width: float,
        height: float,
        *,
        left: float,
        right: float,
        title: str | None,
        note: bool,
        legend: float = 0.0,
    ) -> None:
        from matplotlib.figure import Figure

        below = 26.0 + (11.0 if note else 0.0)
        above = (18.0 if title else 8.0) + legend
        self.size = (left + width + right, below + height + above)
        self.box = (left, below, width, height)
        self.figure = Figure(figsize=(self.size[0] / 72, self.size[1] / 72))
        self.axes = self._add(*self.box)
        self.axes.set_facecolor("none")
        self.axes.tick_params(labelsize=_SMALL, labelcolor=_INK, color=_FAINT, width=0.5, length=2.5)
        if title:
            self.axes.set_title(
                visible(title), fontsize=_SIZE + 0.5, color=_INK, loc="left", pad=6 + legend, parse_math=False
            )

    def beside(self, *, offset: float, width: float, height: float) -> Axes:
        """Axes to the right of the main ones, as high as told, in their middle."""
        left, bottom, wide, high = self.box
        return self._add(left + wide + offset, bottom + (high - height) / 2, width, height)

    def say(self, text: str) -> None:
        """A small line below everything."""
        left = self.box[0]
        self.figure.text(left / self.size[0], 4.0 / self.size[1], text, fontsize=5.5, color=_FAINT, va="bottom")

    def _add(self, left: float, bottom: float, width: float, height: float) -> Axes:
        across, up = self.size
        return self.figure.add_axes((left / across, bottom / up, width / across, height / up))


def _ticks(axes: Axes, which: str, labels: Sequence[str], room: float, *, offset: float = 0.5) -> None:
    """Name steps along an axis: every one, or every second, fifth, tenth … as they fit."""
    needed = max(map(_width, labels)) + 4.0 if which == "x" else _SMALL * 1.35
    step = next(10**power * base for power in range(9) for base in _STEPS if 10**power * base * room >= needed)
    places = range(0, len(labels), step)
    names = [visible(labels[place]) for place in places]
    set_ticks = axes.set_xticks if which == "x" else axes.set_yticks
    set_ticks([place + offset for place in places], names, parse_math=False)


def _name_axis(axes: Axes, which: str, name: str) -> None:
    set_label = axes.set_xlabel if which == "x" else axes.set_ylabel
    set_label(visible(name), fontsize=_SIZE, color=_INK, labelpad=3, parse_math=False)


def _open(axes: Axes) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
        spine.set_linewidth(0.6)


def _width(text: str) -> float:
    """About how wide a small text is, in points."""
    return len(text) * _SMALL * 0.6


def _room(labels: Sequence[str]) -> float:
    return 22.0 + max(map(_width, labels))


def _plain(axis: str) -> str:
    return {"group": "key/value group"}.get(axis, axis.replace("_", " "))


def _rest(effects: Effects, drawn: Sequence[int]) -> str:
    """The axes of one label that are not drawn."""
    left = [f"{effects.axes[i]} {effects.labels[i][0]}" for i in range(len(effects.axes)) if i not in drawn]
    return f" ({', '.join(left)})" if left else ""


def _what(effects: Effects, break_: str = " ") -> str:
    """What is drawn, in words; ``break_`` stands where the line may be broken."""
    metric = str(effects.provenance.get("metric", "the metric"))
    kind = "effect" if effects.signed else "absolute effect"
    return f"{kind} on{break_}{visible(metric)}"

"""Pictures of attributions for papers and notebooks: effects, held-out correlation, its growth, interactions.

SVG, PDF or PNG in the style of the other figures: text stays text, colours are Okabe and Ito's, and the same numbers
give the same bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from circuits.coar.attribution import Attribution
from circuits.coar.evaluation import Evaluation, LearningCurve
from circuits.coar.pairs import Interactions
from graphs.atomic import write_bytes
from graphs.export.canvas import known_suffix, own_settings, rendered
from patching.errors import InvalidOption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _VERMILLION = "#0072B2", "#D55E00"
_COLOURS: Final = (_BLUE, "#E69F00", "#009E73", "#CC79A7", "#56B4E9", _VERMILLION)
_INK, _FAINT = "#1F2430", "#7A808C"
_SMALL: Final = 7.0
_ROW: Final = 0.16
_NAMES: Final = {
    "coar": "COAR",
    "leave_one_out": "leave one out",
    "attribution_patching": "attribution patching",
    "gradient_times_parameter": "gradient × parameter",
    "conductance": "conductance",
}


def weights(attribution: Attribution, path: str | Path, *, top: int = 24, title: str | None = None) -> None:
    """Draw the components with the largest mean weights as bars, with standard errors over prompts.

    Args:
        attribution: what to draw.
        path: ends in .svg, .pdf or .png.
        top: how many components.
        title: a line above; shown as it is.

    Raises:
        InvalidOption: ``top`` below 1.
        UnknownFormat: the suffix is another one.
        WriteFailed: the file cannot be written.
    """
    if top < 1:
        raise InvalidOption(f"expected top of 1 or more; got {top}.")
    mean, error = attribution.mean(), attribution.mean_standard_error()
    largest = sorted(range(len(mean)), key=lambda place: (-abs(float(mean[place])), place))[:top]
    order = sorted(largest, key=lambda place: (float(mean[place]), -place))
    values = [float(mean[place]) for place in order]
    colours = [_BLUE if value > 0 else _VERMILLION for value in values]
    with own_settings():
        figure, axes = _axes(4.2, 0.75 + _ROW * len(order), title)
        bars = None if error is None else [float(error[place]) for place in order]
        axes.barh(range(len(order)), values, height=0.72, color=colours)
        if bars is not None:
            axes.errorbar(values, range(len(order)), xerr=bars, fmt="none", ecolor=_INK, elinewidth=0.6, capsize=1.2)
        axes.axvline(0.0, color=_FAINT, linewidth=0.6)
        axes.set_yticks(range(len(order)), [str(attribution.units[place]) for place in order])
        axes.set_ylim(-0.7, len(order) - 0.3)
        metric = str(attribution.provenance.get("metric", "output")).replace("_", " ")
        axes.set_xlabel(f"weight: what keeping it adds to the {metric}")
        hidden = len(mean) - len(order)
        if hidden:
            axes.set_title(f"the {len(order)} largest of {len(mean):,}", fontsize=_SMALL, color=_FAINT, loc="right")
        _save(figure, path)


def correlations(evaluation: Evaluation, path: str | Path, *, title: str | None = None) -> None:
    """Draw held-out correlation against the share ablated, a line with standard errors for each method.

    Args:
        evaluation: what to draw.
        path: ends in .svg, .pdf or .png.
        title: a line above; shown as it is.

    Raises:
        UnknownFormat: the suffix is another one.
        WriteFailed: the file cannot be written.
    """
    methods = list(dict.fromkeys(one.method for one in evaluation.agreements))
    keeps = sorted({one.keep for one in evaluation.agreements}, reverse=True)
    with own_settings():
        figure, axes = _axes(4.2, 2.6, title)
        for number, method in enumerate(methods):
            found = [evaluation.of(method, keep) for keep in keeps]
            axes.errorbar(
                [1 - keep for keep in keeps],
                [one.mean for one in found],
                yerr=[0.0 if math.isnan(one.standard_error) else one.standard_error for one in found],
                label=_NAMES.get(method, method),
                color=_COLOURS[number % len(_COLOURS)],
                marker="oDs^vP"[number % 6],
                markersize=3.5,
                linewidth=1.0,
                elinewidth=0.6,
                capsize=1.5,
            )
        axes.set_xlabel("share of components ablated (held-out masks)")
        axes.set_ylabel("correlation of predicted and true output")
        axes.set_xticks([1 - keep for keep in keeps], [f"{1 - keep:.3g}" for keep in keeps])
        axes.set_ylim(top=1.02)
        axes.legend(fontsize=_SMALL, frameon=False, labelcolor=_INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
        _save(figure, path)


def growth(curve: LearningCurve, path: str | Path, *, title: str | None = None) -> None:
    """Draw held-out correlation against the number of samples.

    Args:
        curve: what to draw.
        path: ends in .svg, .pdf or .png.
        title: a line above; shown as it is.

    Raises:
        UnknownFormat: the suffix is another one.
        WriteFailed: the file cannot be written.
    """
    means = [one.mean for one in curve.agreements]
    errors = [0.0 if math.isnan(one.standard_error) else one.standard_error for one in curve.agreements]
    with own_settings():
        figure, axes = _axes(3.6, 2.4, title)
        axes.errorbar(curve.samples, means, yerr=errors, color=_BLUE, marker="o", markersize=3.5, linewidth=1.0,
                      elinewidth=0.6, capsize=1.5)  # fmt: skip
        axes.set_xscale("log")
        named = curve.samples[:: math.ceil(len(curve.samples) / 6)]
        axes.set_xticks(named, [f"{count:,}" for count in named])
        axes.minorticks_off()
        axes.set_xlabel("random ablations")
        axes.set_ylabel("held-out correlation")
        _save(figure, path)


def interaction_map(
    interactions: Interactions, path: str | Path, *, errors: float = 3.0, title: str | None = None
) -> None:
    """Draw the interactions of all chosen pairs as a square; dots mark those ``errors`` standard errors from 0.

    Args:
        interactions: what to draw.
        path: ends in .svg, .pdf or .png.
        errors: how far from 0 a pair must lie for its dot.
        title: a line above; shown as it is.

    Raises:
        UnknownFormat: the suffix is another one.
        WriteFailed: the file cannot be written.
    """
    from matplotlib.colors import LinearSegmentedColormap

    names = [str(unit) for unit in interactions.chosen]
    matrix = interactions.matrix()
    limit = float(matrix.abs().max()) or 1.0
    place = {unit: number for number, unit in enumerate(interactions.chosen)}
    size = 1.1 + 0.15 * len(names)
    with own_settings():
        figure, axes = _axes(size + 0.9, size, title)
        colours = LinearSegmentedColormap.from_list("interaction", [_VERMILLION, "#FAFAFA", _BLUE])
        mesh = axes.pcolormesh(
            matrix.numpy(), cmap=colours, vmin=-limit, vmax=limit, edgecolors="#FFFFFF", linewidth=0.4
        )
        for number in interactions.strong(errors=errors):
            first, second = (place[interactions.units[i]] for i in interactions.pairs[number].tolist())
            axes.plot([first + 0.5, second + 0.5], [second + 0.5, first + 0.5], "o", markersize=1.8, color=_INK)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_xticks([number + 0.5 for number in range(len(names))], names, rotation=90)
        axes.set_yticks([number + 0.5 for number in range(len(names))], names)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=18)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(labelsize=_SMALL, length=2, labelcolor=_INK)
        bar.set_label("interaction: > 0 need each other, < 0 stand in", fontsize=_SMALL, color=_INK)
        _save(figure, path)


def _axes(width: float, height: float, title: str | None) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelsize=_SMALL, length=2, width=0.5, color=_FAINT, labelcolor=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
        spine.set_linewidth(0.6)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(_SMALL + 0.5)
        label.set_color(_INK)
    if title is not None:
        figure.suptitle(title, fontsize=_SMALL + 1.5, color=_INK, parse_math=False)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> None:
    write_bytes(path, rendered(figure, suffix=known_suffix(path), dpi=300))

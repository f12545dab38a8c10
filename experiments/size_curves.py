"""Faithfulness of circuits of every size from one ranking, for a run's report: CPR and CMD, and their figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.curves import Curve
    from patching.masked import MaskedRun
    from patching.scores import Scores


def both(run: MaskedRun, scores: Scores, *, seed: int) -> dict[str, Curve]:
    """By absolute effect, as CMD is defined, and by how much units help, as CPR is."""
    from circuits.curves import curve

    return {
        name: curve(run, scores, signed=signed, seed=seed) for name, signed in (("absolute", False), ("signed", True))
    }


def draw(curves: Mapping[str, Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draw curves with their intervals over prompts.

    Args:
        curves: Name to a `circuits.curves.Curve` as plain data.
        path: Ends in .svg, .pdf or .png.
        title: A line above.

    Raises:
        BadCircuit: No circuit has a faithfulness, for ablation changes nothing.
        WriteFailed: The file cannot be written.
    """
    from graphs import plots

    lines, bands = {}, {}
    for name, curve in curves.items():
        known = [
            (fraction, value, ends)
            for fraction, value, ends in zip(curve["fractions"], curve["faithfulness"], curve["intervals"], strict=True)
            if value is not None
        ]
        lines[f"{curve['method']}, {name}"] = [(fraction, value) for fraction, value, _ in known]
        if all(ends is not None for *_, ends in known):
            bands[f"{curve['method']}, {name}"] = [ends for *_, ends in known]
    plots.faithfulness(lines, path, intervals=bands, title=title)


def rows(curves: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """CPR and CMD in words, for the ranking that each is defined by."""
    found = []
    for name, ranking in (("cpr", "signed"), ("cmd", "absolute")):
        curve = curves.get(ranking, {})
        value, random = curve.get(name), curve.get(f"random_{name}")
        if value is not None:
            beside = "" if random is None else f"; random rankings {random:.3f}"
            found.append((f"{name.upper()} ({ranking} ranking)", f"{value:.3f}{_interval(curve, name)}{beside}"))
    return found


def _interval(curve: Mapping[str, Any], name: str) -> str:
    ends = curve.get(f"{name}_interval")
    return "" if ends is None else f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f})"

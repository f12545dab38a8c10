"""The parts of a report on patching and on component attribution."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from experiments.attribute import correlation_rows
from experiments.store.rows import HEAD, RESULTS, TAIL, Row
from experiments.sweep_report.blocks import Block, Cell, Heading, Link, Paragraph, Table
from experiments.sweep_report.groups import mean_and_spread
from experiments.sweep_report.searches import LinkTo
from graphs.atomic import read_text
from graphs.errors import WiretraceError

TOP: Final = 10
_ESTIMATE: Final = ("method", "qk_fix", "grad_drop")


def patching(rows: Sequence[Row], *, root: Path, link_to: LinkTo) -> list[Block]:
    """Estimates of effects held against the exact ones of the same question; nothing where there are none."""
    found = [row for row in rows if row["state"] == "finished" and row.get("command") == "patch"]
    groups: dict[str, list[Row]] = {}
    for row in found:
        groups.setdefault(_asked(row, found, leave=(*_ESTIMATE, "seed")), []).append(row)
    blocks: list[Block] = []
    for question, mates in groups.items():
        lines = _against_exact(mates, root, link_to)
        if lines:
            columns = ("method", "run", "runs", "Pearson", "Spearman", f"of the {TOP} largest")
            blocks += [Heading(f"Patching: {question}"), Table(columns, lines, frozenset((2, 3, 4, 5)))]
    if blocks:
        text = (
            "Estimates against exact effects of the same places, prompts and seed: correlation of importance (the mean "
            f"over prompts of absolute effects), of its ranks, and what part of the {TOP} largest exact effects is "
            f"among the {TOP} largest estimates; mean ± standard deviation over seeds."
        )
        blocks.insert(1, Paragraph(text))
    return blocks


def attributions(rows: Sequence[Row], *, root: Path, link_to: LinkTo) -> list[Block]:
    """Held-out correlations of attributions and their baselines; nothing where there are none."""
    found = [row for row in rows if row["state"] == "finished" and row.get("command") == "attribute"]
    blocks: list[Block] = []
    for row in found:
        try:
            correlations = json.loads(read_text(root / str(row["run"]) / "report.json"))["correlations"]
            columns, body = correlation_rows(correlations)
        except (WiretraceError, ValueError, KeyError, TypeError, RecursionError):
            continue
        question = _asked(row, found, leave=())
        cells: list[list[Cell]] = [[Link(line[0], link_to(row)), *line[1:]] for line in body]
        blocks += [
            Heading(question, level=3),
            Table(columns, cells, frozenset(range(1, len(columns)))),
        ]
    if not blocks:
        return []
    text = (
        "Correlation of predicted with true outputs under held-out random ablations, for each prompt, then averaged, ± "
        "standard error over prompts; a column for each share of components ablated. COAR beside estimates that cost "
        "less."
    )
    return [Heading("Component attribution"), Paragraph(text), *blocks]


def _asked(row: Row, rows: Sequence[Row], *, leave: Sequence[str]) -> str:
    """Task, model, and the settings that differ among some runs."""
    settings = [name for name in row if name not in (*HEAD, *RESULTS, *TAIL, *leave)]
    telling = [name for name in settings if len({each.get(name) for each in rows}) > 1]
    said = [str(row.get("task")), str(row.get("model"))]
    return ", ".join([*said, *(f"{name} = {_plain(row[name])}" for name in telling)])


def _against_exact(rows: Sequence[Row], root: Path, link_to: LinkTo) -> list[list[Cell]]:
    exact = {row.get("seed"): row for row in rows if row["method"] == "exact"}
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] != "exact" and row.get("seed") in exact:
            by_method.setdefault(_estimate(row), []).append(row)
    lines: list[list[Cell]] = []
    for method, mates in by_method.items():
        figures = [
            figure
            for row in mates
            if (figure := _compared(_importance(root, row), _importance(root, exact[row["seed"]])))
        ]
        if figures:
            known = [[each[place] for each in figures] for place in range(3)]
            cells = [mean_and_spread([value for value in column if value is not None]) for column in known]
            lines.append([method, Link(str(mates[0]["run"]), link_to(mates[0])), str(len(figures)), *cells])
    return lines


def _importance(root: Path, row: Row) -> dict[str, float]:
    """Importance by place, out of a run's table of effects."""
    try:
        lines = csv.DictReader(read_text(root / str(row["run"]) / "effects.csv").splitlines())
        return {_place(line): float(line["importance"]) for line in lines}
    except (WiretraceError, ValueError, KeyError, TypeError):
        return {}


def _place(line: Mapping[str, Any]) -> str:
    figures = ("effect", "standard error", "importance", "detected")
    return " ".join(str(value) for name, value in line.items() if name not in figures)


def _estimate(row: Row) -> str:
    """A method and what it was made to leave out."""
    parts = (("QK fix", row.get("qk_fix")), ("GradDrop", row.get("grad_drop")))
    left_out = [name for name, used in parts if used is False]
    return f"{row['method']} without {' and '.join(left_out)}" if left_out else str(row["method"])


Figures = tuple[float | None, float | None, float | None]


def _compared(estimate: Mapping[str, float], exact: Mapping[str, float]) -> Figures | None:
    """Pearson, Spearman and the share of the largest that both have; None if they are not of the same places."""
    if not exact or set(estimate) != set(exact):
        return None
    import pandas as pd

    frame: Any = pd.DataFrame({"estimate": estimate, "exact": exact})
    ranks = frame.rank()
    top = min(TOP, len(frame))
    shared = set(frame["estimate"].nlargest(top).index) & set(frame["exact"].nlargest(top).index)
    return _correlation(frame), _correlation(ranks), len(shared) / top


def _correlation(frame: Any) -> float | None:
    value = float(frame["estimate"].corr(frame["exact"])) if min(frame.nunique()) > 1 else float("nan")
    return None if value != value else value


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

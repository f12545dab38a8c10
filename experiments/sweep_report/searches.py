"""The part of a report on searches: best circuits, curves over size, agreement of seeds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from experiments.store.listing import cell
from experiments.store.rows import Row
from experiments.sweep_report import groups
from experiments.sweep_report.blocks import Block, Cell, Figure, Heading, Items, Link, Paragraph, Table
from graphs.atomic import read_text
from graphs.errors import WiretraceError

LinkTo = Callable[[Row], str]
MOST_CURVES: Final = 56
"""More lines than this do not differ in one drawing."""


def sections(rows: Sequence[Row], *, root: Path, link_to: LinkTo) -> list[Block]:
    """All there is to say about searches; nothing if there are none."""
    blocks: list[Block] = []
    for question, mates in groups.questions(rows).items():
        methods = groups.by_method(mates)
        blocks.append(Heading(f"Circuits: {question}"))
        blocks += _best(methods, link_to)
        blocks += _over_edges(question, methods)
        blocks += _areas(question, methods, root)
        blocks += _stability(methods, root)
        blocks += _notes(mates, root)
    return blocks


def _best(methods: Mapping[str, Sequence[Row]], link_to: LinkTo) -> list[Block]:
    lines: list[list[Cell]] = []
    for name, rows in methods.items():
        row = groups.best(rows)
        if row is None:
            lines.append([name, "no circuit has a faithfulness", "", "", "", "", ""])
            continue
        shown = [cell(each, row.get(each)) for each in ("edges", "share", "faithfulness")]
        interval = f"{cell('faithfulness', row.get('faithfulness_low'))} to " + cell(
            "faithfulness", row.get("faithfulness_high")
        )
        lines.append(
            [
                name,
                Link(str(row["run"]), link_to(row)),
                *shown,
                interval if row.get("faithfulness_low") is not None else "",
                cell("random_faithfulness", row.get("random_faithfulness")),
            ]
        )
    columns = ("method", "run", "edges", "share", "faithfulness", "95 % interval", "random circuits")
    text = (
        f"The best run of each method: the smallest circuit that does {groups.GOOD:.0%} of what the whole model does, "
        "or, where none does, the most faithful. It was chosen by the figures that it is shown with, so they flatter "
        "it a little."
    )
    return [Paragraph(text), Table(columns, lines, frozenset((2, 3, 4, 5, 6)))]


def _over_edges(question: str, methods: Mapping[str, Sequence[Row]]) -> list[Block]:
    """Faithfulness of the runs' circuits over their size."""
    lines, bands, empty = {}, {}, 0
    for name, rows in methods.items():
        found = groups.points(rows)
        empty += sum(not point.share for point in found)
        found = [point for point in found if point.share]
        if found:
            lines[name] = [(point.share, point.faithfulness) for point in found]
            if any(len(point.rows) > 1 for point in found):
                bands[name] = [(point.low, point.high) for point in found]
    if not lines:
        return []
    left = f" {empty} empty circuits are left out." if empty else ""
    band = " Bands reach from the lowest to the highest seed." if bands else ""
    caption = (
        "Faithfulness of each run's circuit on held-out prompts over the share of edges that it keeps; a marker for "
        f"each size, means over seeds.{band}{left}"
    )
    return _drawn(lines, bands, title=question, caption=caption)


def _areas(question: str, methods: Mapping[str, Sequence[Row]], root: Path) -> list[Block]:
    """CPR and CMD over seeds, and the curves that they are areas of."""
    with_curves = {
        name: [row for row in rows if row.get("cpr") is not None or row.get("cmd") is not None]
        for name, rows in methods.items()
    }
    with_curves = {name: rows for name, rows in with_curves.items() if rows}
    if not with_curves:
        return []
    body: list[list[Cell]] = []
    lines, bands = {}, {}
    for name, rows in with_curves.items():
        body.append([name, str(len(rows)), *(groups.mean_and_spread(_known(rows, each)) for each in ("cpr", "cmd"))])
        curves = [curve for row in rows if (curve := _curve(root / str(row["run"]))) is not None]
        mean = groups.mean_curve(curves) if curves else []
        if mean:
            lines[name] = [(share, value) for share, value, _, _ in mean]
            if len(curves) > 1:
                bands[name] = [(low, high) for _, _, low, high in mean]
    text = (
        "CPR is the area under faithfulness over the share of units, by signed scores (more is better); CMD the area "
        "between it and 1, by absolute scores (less is better); mean ± standard deviation over runs."
    )
    caption = (
        "Circuits of 0.1 to 100 % of the units by absolute scores: faithfulness, mean over runs, from the lowest to "
        "the highest."
    )
    return [
        Paragraph(text),
        Table(("method", "runs", "CPR", "CMD"), body, frozenset((1, 2, 3))),
        *_drawn(lines, bands, title=f"{question}: all sizes", caption=caption),
    ]


def _known(rows: Sequence[Row], name: str) -> list[float]:
    return [float(value) for row in rows if isinstance(value := row.get(name), int | float)]


def _curve(folder: Path) -> Mapping[str, Any] | None:
    """The curve by absolute scores in a run's report."""
    try:
        found = json.loads(read_text(folder / "report.json"))["curves"]["absolute"]
    except (WiretraceError, ValueError, KeyError, TypeError, RecursionError):
        return None
    known = isinstance(found, dict) and isinstance(found.get("fractions"), list)
    return found if known and isinstance(found.get("faithfulness"), list) else None


def _stability(methods: Mapping[str, Sequence[Row]], root: Path) -> list[Block]:
    """How far circuits of several seeds agree."""
    lines: list[list[Cell]] = []
    for name, rows in methods.items():
        for point in groups.points(rows):
            found = groups.agreement(root, point.rows)
            if found is not None:
                shared = f"{found.always:,} of {found.ever:,}"
                ends = " to ".join(cell("faithfulness", end) for end in (point.low, point.high))
                figures = (f"{found.edges:,.1f}", ends, f"{found.jaccard:.3f}", f"{found.lowest:.3f}", shared)
                lines.append([name, point.size or "default", str(found.seeds), *figures])
    if not lines:
        return []
    columns = ("method", "size", "seeds", "edges", "faithfulness", "edges shared by two", "by the worst two", "by all")
    text = (
        "Stability: circuits that differ in their seed alone, so in prompts, held against one another. Shared edges "
        "over all edges of the two (Jaccard), mean over pairs; the last column counts edges that all have, of those "
        "that any has."
    )
    return [Paragraph(text), Table(columns, lines, frozenset((2, 3, 4, 5, 6, 7)))]


def _notes(rows: Sequence[Row], root: Path) -> list[Block]:
    """What the reports of the runs warn of, each once, with how many runs say it."""
    counts: dict[str, int] = {}
    for row in rows:
        try:
            notes = json.loads(read_text(root / str(row["run"]) / "report.json"))["notes"]
        except (WiretraceError, ValueError, KeyError, TypeError, RecursionError):
            continue
        for kind in dict.fromkeys(_kind(str(note)) for note in notes):
            counts[kind] = counts.get(kind, 0) + 1
    if not counts:
        return []
    said = [f"{count:,} of {len(rows):,} runs: {kind}" for kind, count in counts.items()]
    return [Paragraph("What the runs' own reports warn of:"), Items(said)]


def _kind(note: str) -> str:
    """The first sentence of a note without its figures, so that runs that say the same are counted together."""
    first = note.split(": ")[0].split(". ")[0]
    return first.split(" (")[0].rstrip(".") + "."


def _drawn(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    bands: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    caption: str,
) -> list[Block]:
    """A figure, of as many curves as can be told apart."""
    from graphs import plots

    shown = dict(list(lines.items())[:MOST_CURVES])
    if not shown:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        plots.faithfulness(
            shown, path, intervals={name: ends for name, ends in bands.items() if name in shown}, title=title
        )
        svg = path.read_text(encoding="utf-8")
    more = len(lines) - len(shown)
    return [Figure(svg, caption + (f" {more} more curves are not drawn." if more else ""))]

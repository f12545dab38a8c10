"""One page over many runs: the best of each method, curves over size, agreement of seeds, what failed.

    rows of a store -> groups -> blocks -> one HTML file, or Markdown with its figures beside it

Every figure is read from the run directories; nothing is run again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from experiments import environment
from experiments.errors import BadConfig
from experiments.run_directory import status
from experiments.saved_runs import unfinished
from experiments.store.listing import cell, shown_columns
from experiments.store.rows import RESULTS, Row
from experiments.sweep_report import others, searches
from experiments.sweep_report.blocks import (
    Block,
    Cell,
    Heading,
    Items,
    Link,
    Paragraph,
    Table,
    as_html,
    as_markdown,
)
from graphs.atomic import write_text

SUFFIXES: Final = (".html", ".md")
EXPLAINED: Final = (
    *("edges", "share", "faithfulness", "random_faithfulness", "cpr", "cmd", "correlation", "strongest", "effect"),
)
MOST_LISTED: Final = 1_000
"""Rows of the table of all runs; of more the first are listed, and the page says so."""


def write(rows: Sequence[Row], *, root: Path, out: Path, title: str) -> list[Path]:
    """Write the page.

    Args:
        rows: Of the runs that it is about.
        root: The store that they lie in.
        out: Ends in .html (one file) or .md (figures beside it).
        title: Of the page.

    Returns:
        The files written.

    Raises:
        BadConfig: The suffix is another one, or there are no runs.
        WriteFailed: The system refuses.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise BadConfig(f"expected --out to end in .html or .md; got {out}.")
    if not rows:
        raise BadConfig(f"expected runs to report on; there are none in {root}. Make some with `wiretrace run`.")
    page = blocks(rows, root=root, out=out, title=title)
    if out.suffix.lower() == ".html":
        write_text(out, as_html(page, title=title))
        return [out]
    text, figures = as_markdown(page, stem=out.stem)
    for name, svg in figures.items():
        write_text(out.parent / name, svg)
    write_text(out, text)
    return [out, *(out.parent / name for name in figures)]


def blocks(rows: Sequence[Row], *, root: Path, out: Path, title: str) -> list[Block]:
    """The page, block by block; links are relative to `out`."""

    def link_to(row: Row) -> str:
        folder = root / str(row["run"])
        page = folder / "report.md"
        return _relative(page if page.is_file() else folder, out.parent)

    return [
        Heading(title, level=1),
        *_summary(rows, root),
        *searches.sections(rows, root=root, link_to=link_to),
        *others.patching(rows, root=root, link_to=link_to),
        *others.attributions(rows, root=root, link_to=link_to),
        *_every_run(rows, link_to),
        *_unfinished(rows, root),
        *_words(rows),
    ]


def _summary(rows: Sequence[Row], root: Path) -> list[Block]:
    states: dict[str, int] = {}
    for row in rows:
        states[str(row["state"])] = states.get(str(row["state"]), 0) + 1
    counts = ", ".join(f"{count:,} {state}" for state, count in states.items())
    versions = sorted({str(row["wiretrace"]) for row in rows if row.get("wiretrace")})
    made = f" Made by Wiretrace {' and '.join(versions)}." if versions else ""
    found: list[Block] = [
        Paragraph(f"{len(rows):,} runs in {root}: {counts}.{made} This page: Wiretrace {environment.version()}.")
    ]
    not_done = len(rows) - states.get("finished", 0)
    if not_done:
        found.append(
            Paragraph(
                f"{not_done:,} of {len(rows):,} runs are not finished; tables and curves are of the others. The list "
                "is at the end.",
                note=True,
            )
        )
    if len(versions) > 1:
        found.append(Paragraph("Runs of several versions are mixed here; they may not be comparable.", note=True))
    return found


def _every_run(rows: Sequence[Row], link_to: searches.LinkTo) -> list[Block]:
    names = shown_columns(rows)
    right = frozenset(
        place
        for place, name in enumerate(names)
        if all(row.get(name) is None or isinstance(row.get(name), int | float) for row in rows)
    )
    body: list[list[Cell]] = [
        [
            Link(cell(name, row.get(name)), link_to(row)) if name == "run" else cell(name, row.get(name))
            for name in names
        ]
        for row in rows[:MOST_LISTED]
    ]
    found: list[Block] = [Heading("All runs"), Table(names, body, right)]
    if len(rows) > MOST_LISTED:
        found.append(Paragraph(f"{len(rows) - MOST_LISTED:,} more are not listed.", note=True))
    return found


def _unfinished(rows: Sequence[Row], root: Path) -> list[Block]:
    """Runs that are not finished, why, and how to go on."""
    lines = []
    for row in rows:
        if row["state"] == "finished":
            continue
        there = status(root / str(row["run"]))
        if row["state"] == "missing":
            said = "was never begun."
        elif row["state"] == "damaged" or there is None:
            said = f"is damaged: {row.get('error') or 'it cannot be read'}."
        else:
            said = unfinished(root / str(row["run"]), there)
        lines.append(f"{row['run']}: {said}")
    if not lines:
        return []
    return [Heading("Not finished"), Items(lines[:MOST_LISTED])]


def _words(rows: Sequence[Row]) -> list[Block]:
    there = [name for name in EXPLAINED if any(row.get(name) is not None for row in rows)]
    if not there:
        return []
    searched = any(row.get("faithfulness") is not None for row in rows)
    more = (
        "All figures of circuits are of held-out prompts, which no search has seen. Faithfulness is (circuit − "
        "ablated) / (whole model − ablated), a ratio of means over prompts, not clipped."
    )
    items = [*([more] if searched else []), *(f"{name}: {RESULTS[name]}." for name in there)]
    return [Heading("What the columns mean"), Items(items)]


def _relative(path: Path, folder: Path) -> str:
    """A path as a page in some folder names it, with forward slashes."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_uri()

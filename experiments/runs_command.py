"""The command `wiretrace runs`: the runs of a store, chosen, sorted and in the form that is asked for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from experiments.errors import BadConfig
from experiments.nearest import require_known
from experiments.store import Store, listing
from experiments.store.rows import columns

ALL = "all"


def runs(
    root: Path,
    *,
    where: Sequence[str] = (),
    state: str | None = None,
    sort: str | None = None,
    reverse: bool = False,
    limit: int | None = None,
    shown: str | None = None,
    form: str = "text",
    rebuild: bool = False,
) -> None:
    """Print the runs of a store.

    Args:
        root: The store.
        where: Conditions, all of which must hold.
        state: Of `experiments.store.listing.STATES`; None for any.
        sort: A column.
        reverse: The other way round.
        limit: The most rows.
        shown: Columns with commas, or `all`; None for those that tell the runs apart.
        form: `text`, `json` or `csv`.
        rebuild: Read every directory anew, into a new index.

    Raises:
        BadRun: There is no such folder.
        BadConfig, UnknownName: A condition, state or column is wrong.
    """
    conditions = [listing.condition(each) for each in where]
    if state is not None:
        conditions.append(listing.condition(f"state={require_known('a state', state, listing.STATES)}"))
    store = Store(root)
    found = store.rebuild() if rebuild else store.rows()
    chosen = listing.chosen(found, where=conditions, sort=sort, reverse=reverse, limit=limit)
    names = _columns(shown, chosen, columns(found), full=form != "text")
    if form == "json":
        typer.echo(listing.as_json(chosen, names), nl=False)
    elif form == "csv":
        typer.echo(listing.as_csv(chosen, names), nl=False)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        typer.echo(listing.as_text(chosen, names, width=width), nl=False)
        typer.echo(_summary(chosen, of=len(found), root=root))
    if store.note is not None:
        typer.echo(f"Note: {root} has no usable index ({store.note}), so every run was read.", err=True)


def form_of(*, json: bool, csv: bool) -> str:
    """The name of a form.

    Raises:
        BadConfig: Both are asked for.
    """
    if json and csv:
        raise BadConfig("expected --json or --csv, not both.")
    return "json" if json else "csv" if csv else "text"


def _columns(shown: str | None, chosen: Sequence[listing.Row], known: list[str], *, full: bool) -> list[str]:
    if shown is None:
        return known if full else listing.shown_columns(chosen)
    if shown == ALL:
        return known
    return [listing.require_column(name.strip(), known) for name in shown.split(",") if name.strip()] or ["run"]


def _summary(chosen: Sequence[listing.Row], *, of: int, root: Path) -> str:
    counts = {state: sum(row["state"] == state for row in chosen) for state in listing.STATES}
    said = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    shown = f"{len(chosen):,} of {of:,} runs" if len(chosen) != of else f"{of:,} run{'s' if of != 1 else ''}"
    return f"{shown} in {root}{f': {said}' if said else ''}."

"""Runs or circuits side by side: which settings differ, what each found, which edges they share."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from experiments.errors import BadConfig
from experiments.run_directory import status
from experiments.saved_runs import circuit_at
from experiments.store.listing import as_text, cell
from experiments.store.rows import RESULTS, TAIL, Row, columns, read
from graphs.circuit import Circuit, visible
from graphs.compare import compare as compared
from graphs.errors import WiretraceError

MOST: Final = 26


def compare(sources: Sequence[Path]) -> str:
    """Run directories, or files of circuits, side by side.

    Args:
        sources: Two or more.

    Returns:
        The settings that differ, the results, and the circuits: of two which edges they share, of more how many.

    Raises:
        BadConfig: There are fewer than two, or more than there are letters for.
        WiretraceError: One is neither a run nor a circuit.
    """
    if not 2 <= len(sources) <= MOST:
        raise BadConfig(f"expected 2 to {MOST} runs or circuits to compare; got {len(sources)}.")
    named = dict(zip(string.ascii_lowercase, sources, strict=False))
    rows = {name: row for name, path in named.items() if (row := _row(path)) is not None}
    circuits = {name: _circuit(path, run=name in rows) for name, path in named.items()}
    known = {name: circuit for name, circuit in circuits.items() if circuit is not None}
    parts = ["\n".join(_line(name, path, known.get(name)) for name, path in named.items())]
    parts += _differences(rows)
    if len(known) == 2:
        parts.append(_compared(*known.values(), runs=len(rows)))
    elif len(known) > 2:
        parts.append(_shared(known))
    return "\n\n".join(part.rstrip("\n") for part in parts)


def _compared(one: Circuit, other: Circuit, *, runs: int) -> str:
    """What two circuits share; why that cannot be said, where their runs have something to compare all the same."""
    try:
        return str(compared(one, other))
    except WiretraceError as error:
        if runs < 2:
            raise
        return str(error)


def _row(path: Path) -> Row | None:
    if not path.is_dir() or status(path) is None:
        return None
    whole = path.resolve()
    return read(whole.parent, whole.name)


def _circuit(path: Path, *, run: bool) -> Circuit | None:
    """The circuit; None for a run that has none, such as one of patching."""
    try:
        return circuit_at(path)
    except WiretraceError:
        if run:
            return None
        raise


def _line(name: str, path: Path, circuit: Circuit | None) -> str:
    return f"{name}: {visible(str(path))}" + (f": {circuit}" if circuit is not None else "")


def _differences(rows: Mapping[str, Row]) -> list[str]:
    """Settings that differ and results, a column for each run."""
    if len(rows) < 2:
        return []
    every = columns(list(rows.values()))
    settings = [name for name in every if name not in ("run", *RESULTS, *TAIL)]
    differing = [name for name in settings if len({row.get(name) for row in rows.values()}) > 1]
    results = [name for name in (*RESULTS, "seconds") if any(row.get(name) is not None for row in rows.values())]
    found = []
    for title, names in (("settings that differ", differing), ("results", results)):
        lines = [_transposed(title, name, rows) for name in names]
        found.append(as_text(lines, [title, *rows]) if lines else f"no {title}")
    return found


def _transposed(title: str, name: str, rows: Mapping[str, Row]) -> Row:
    """One setting or result of all runs."""
    return {title: name, **{each: cell(name, row.get(name)) for each, row in rows.items()}}


def _shared(circuits: Mapping[str, Circuit]) -> str:
    """Shared edges over all edges of the two, for every pair."""
    title = "shared edges"
    lines: list[Row] = []
    for name, circuit in circuits.items():
        line: Row = {title: name}
        for other, another in circuits.items():
            line[other] = _share(circuit, another) if other <= name else ""
        lines.append(line)
    return as_text(lines, [title, *circuits]) + "(Jaccard: edges of both over edges of either)"


def _share(one: Circuit, other: Circuit) -> str:
    try:
        return f"{compared(one, other).edge_jaccard:.3f}"
    except WiretraceError:
        return "other model"

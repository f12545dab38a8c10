"""Reading what runs have left: their reports and circuits. Nothing here loads torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import decision_log, report
from experiments.config import Config, command_line
from experiments.errors import BadConfig, BadRun
from experiments.nearest import require_known
from experiments.run_directory import DECISIONS, RESULTS, Status, status
from graphs.atomic import read_text
from graphs.circuit import Circuit
from graphs.errors import BadFile


@dataclass(frozen=True)
class Saved:
    """A run directory that holds a finished run.

    Attributes:
        folder: Where.
        status: What it says of itself.
        report: The document of `report.json`.
        files: Names of its result files.
    """

    folder: Path
    status: Status
    report: Mapping[str, Any]
    files: tuple[str, ...]


def saved(folder: Path) -> Saved:
    """A finished run.

    Raises:
        BadRun: The folder is no run directory, or its run is not finished; the message says how to go on.
    """
    there = status(folder)
    if there is None:
        raise BadRun(f"expected the folder of a run, as `wiretrace discover` makes it; {folder} is not one.")
    if there.state != "finished":
        raise BadRun(unfinished(folder, there))
    files = tuple(name for name in RESULTS if (folder / name).is_file())
    return Saved(folder, there, _report(folder / "report.json"), files)


def unfinished(folder: Path, there: Status) -> str:
    """How an unfinished run stands, and the command that goes on with it."""
    made = decision_log.count(folder / DECISIONS)
    ended = f" It ended with: {there.error}" if there.error else ""
    state = "running, or was killed" if there.state == "running" else there.state
    try:
        command = command_line(Config.from_dict(there.identity["config"]), out=folder, flags=("--resume",))
    except (KeyError, TypeError, ValueError):
        command = "the command that began it and --resume"
    return f"the run in {folder} is {state}, with {made:,} decisions made.{ended} Go on with: {command}"


def circuit_at(path: Path) -> Circuit:
    """The circuit in a run directory, or in a file.

    Raises:
        BadRun: The folder holds no finished run.
        BadFile: The file cannot be read or is not a circuit.
    """
    if path.is_dir():
        file = path / "circuit.json"
        if not file.is_file():
            saved(path)
            raise BadRun(f"expected circuit.json in {path}; it is not there. Make the run again.")
        return Circuit.load(file)
    return Circuit.load(path)


def export_path(source: Path, *, to: str | None, out: Path | None, formats: tuple[str, ...]) -> Path:
    """Where an export goes: to `out`, or beside the circuit under its name.

    Args:
        source: A run directory or a circuit file.
        to: A format, such as `pdf`; None if `out` says it.
        out: A file; None for the default.
        formats: What there is, without dots.

    Raises:
        UnknownName: There is no such format.
        BadConfig: Neither is given, or the two contradict each other.
    """
    if to is None and out is None:
        raise BadConfig(f"expected --to with a format out of {', '.join(formats)}, or --out with such a suffix.")
    suffix = to.lower().removeprefix(".") if to is not None else str(out).rpartition(".")[2].lower()
    require_known("a format", suffix, formats)
    if out is None:
        return source / f"circuit.{suffix}" if source.is_dir() else source.with_suffix(f".{suffix}")
    if not out.suffix:
        return out.with_name(f"{out.name}.{suffix}")
    if out.suffix.lower() != f".{suffix}":
        raise BadConfig(f"expected --out to end in .{suffix}, as --to says; got {out}.")
    return out


def _report(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_text(path))
        if not isinstance(record, dict) or record.get("schema") != report.SCHEMA:
            raise ValueError(f"its schema is not {report.SCHEMA}")
        Config.from_dict(record["config"])
        report.table(record, folder=path.parent, files=())
    except (BadFile, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadRun(f"expected the report of a run; {path} cannot be read as one: {error}.") from error
    return record

"""Reading what runs have left: their reports and circuits. Nothing here loads torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import decision_log, report
from experiments.config import Config, command_line
from experiments.errors import BadConfig, BadRun
from experiments.nearest import did_you_mean, require_known
from experiments.run_directory import DECISIONS, RESULTS, Status, done_so_far, status
from graphs.atomic import read_text
from graphs.circuit import Circuit
from graphs.errors import BadFile
from graphs.export import EXPORTS, FORMATS, format_of
from graphs.importing import load
from graphs.trace import Step

if TYPE_CHECKING:
    from circuits.reference import Reference


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
        BadRun: The folder is no run directory of `wiretrace discover`, or its run is not finished; the message says
            how to go on.
    """
    there = status(folder)
    if there is None:
        raise BadRun(f"expected the folder of a run, as `wiretrace discover` makes it; {folder} is not one.")
    if there.state != "finished":
        raise BadRun(unfinished(folder, there))
    if "command" in there.identity:
        raise BadRun(
            f"expected the folder of a run, as `wiretrace discover` makes it; {folder} holds one of `wiretrace "
            f"{there.identity['command']}`."
        )
    files = tuple(name for name in RESULTS if (folder / name).is_file())
    return Saved(folder, there, _report(folder / "report.json"), files)


def unfinished(folder: Path, there: Status) -> str:
    """How an unfinished run stands, and the command that goes on with it."""
    kept = done_so_far(folder)
    made = f", with {kept} made" if kept else ""
    ended = f" It ended with: {there.error}" if there.error else ""
    state = "running, or was killed" if there.state == "running" else there.state
    said = f"the run in {folder} is {state}{made}.{ended}"
    if "command" in there.identity:
        return f"{said} Give the command that began it again."
    try:
        command = command_line(Config.from_dict(there.identity["config"]), out=folder, flags=("--resume",))
    except (KeyError, TypeError, ValueError):
        command = "the command that began it and --resume"
    return f"{said} Go on with: {command}"


def circuit_at(path: Path) -> Circuit:
    """The circuit in a run directory, or in a file.

    Raises:
        BadRun: The folder holds no finished run.
        BadFile: The file cannot be read or is not a circuit, in this project's format or another that its suffix says
            (.pt is that of EAP-IG and MIB, read without running anything in it).
    """
    if path.is_dir():
        file = path / "circuit.json"
        if not file.is_file():
            saved(path)
            raise BadRun(f"expected circuit.json in {path}; it is not there. Make the run again with --overwrite.")
        return Circuit.load(file)
    if path.suffix.lower() == ".pt":
        from circuits.mib import read_pt

        return read_pt(path).circuit
    return load(path) if path.name.lower().endswith(tuple(EXPORTS)) else Circuit.load(path)


def known_circuit(source: str) -> Reference | Circuit:
    """A circuit to hold others against: one of `circuits.reference` by its name, or that of a run or a file.

    A name comes first; `./ioi` is the folder.

    Raises:
        BadFile: There is nothing of that name; the nearest reference is offered.
        BadRun: As `circuit_at`.
    """
    from circuits import reference

    known = reference.names()
    if source in known:
        return reference.load(source)
    if not Path(source).exists():
        raise BadFile(
            f"there is no run or file {source}; check the path, or name a reference circuit: {', '.join(known)}."
            f"{did_you_mean(source, known)}"
        )
    return circuit_at(Path(source))


def course(folder: Path) -> tuple[list[Step], Config]:
    """The decisions of a search so far, and its settings.

    Raises:
        BadRun: The folder is no run directory, or holds no decisions.
    """
    there = status(folder)
    if there is None:
        raise BadRun(f"expected the folder of a run, as `wiretrace discover` makes it; {folder} is not one.")
    rows = decision_log.read(folder / DECISIONS, run=None).rows
    if not rows:
        raise BadRun(
            f"expected decisions in {folder / DECISIONS}; there are none. Only searches (acdc) make decisions."
        )
    try:
        settings = Config.from_dict(there.identity["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadRun(f"expected the settings of a run in {folder}; they cannot be read: {error}.") from error
    return [Step(row.name, row.kept, row.delta, row.seconds) for row in rows], settings


def export_path(source: Path, *, to: str | None, out: Path | None) -> tuple[Path, str]:
    """Where an export goes, to `out` or beside the circuit under its name, and in which format.

    Args:
        source: A run directory or a circuit file.
        to: A format, such as `pdf` or `cytoscape`, or a suffix; None if `out` says it.
        out: A file; None for the default.

    Raises:
        UnknownName: There is no such format.
        BadConfig: Neither is given, or the two contradict each other.
    """
    if to is None and out is None:
        raise BadConfig(f"expected --to with a format out of {', '.join(FORMATS)}, or --out with such a suffix.")
    said = to.lower().removeprefix(".") if to is not None else str(out).lower()
    if (to is None and said.endswith(tuple(EXPORTS))) or f".{said}" in EXPORTS:
        name = format_of(said if to is None else f".{said}")
    else:
        name = require_known("a format", said if to is not None else said.rpartition(".")[2], FORMATS)
    suffix = FORMATS[name]
    if out is None:
        return (source / f"circuit{suffix}" if source.is_dir() else source.with_suffix(suffix)), name
    if not out.suffix:
        return out.with_name(f"{out.name}{suffix}"), name
    endings = {Path(f"x{ending}").suffix for ending in EXPORTS if format_of(ending) == name}
    if out.suffix.lower() not in endings:
        raise BadConfig(f"expected --out to end in {' or '.join(sorted(endings))}, as --to says; got {out}.")
    return out, name


def roles(words: Sequence[str]) -> dict[str, list[str]]:
    """Groups of nodes as the command line has them.

    Raises:
        BadConfig: One is not of the form NAME=NODE,NODE.

    Example:
        >>> roles(["movers=a9.h6, a9.h9"])
        {'movers': ['a9.h6', 'a9.h9']}
    """
    found = {}
    for word in words:
        name, equals, nodes = word.partition("=")
        if not equals or not name.strip() or not nodes.strip():
            raise BadConfig(f"expected --group as NAME=NODE,NODE, such as movers=a9.h6,a9.h9; got {word!r}.")
        found[name.strip()] = [node.strip() for node in nodes.split(",")]
    return found


def _report(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_text(path))
        if not isinstance(record, dict) or record.get("schema") != report.SCHEMA:
            raise ValueError(f"its schema is not {report.SCHEMA}")
        Config.from_dict(record["config"])
        report.table(record, folder=path.parent, files=())
    except (BadFile, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadRun(
            f"expected the report of a run; {path} cannot be read as one: {error}. Make the run again with --overwrite."
        ) from error
    return record

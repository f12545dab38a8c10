"""A run directory as one flat row: its settings, its state, its results. Nothing here loads torch or changes a file."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from experiments.run_directory import STATUS, Status, status
from graphs.atomic import read_text
from graphs.errors import BadFile

Scalar = bool | int | float | str | None
Row = dict[str, Scalar]

HEAD: Final = ("run", "state", "command", "task", "model", "method")
TAIL: Final = ("seconds", "started", "ended", "device", "wiretrace", "error")
RESULTS: Final[Mapping[str, str]] = {
    "edges": "edges of the circuit",
    "nodes": "its nodes",
    "share": "of the model's edges, how many it has",
    "faithfulness": "what the circuit alone does of what the whole model does; 1 is all",
    "faithfulness_low": "lower end of its 95 % interval over prompts",
    "faithfulness_high": "upper end",
    "random_faithfulness": "the same of random circuits of as many edges",
    "completeness_gap": "what is left without the circuit",
    "kl": "divergence of the model's prediction from the circuit's, in nats",
    "kl_faithfulness": "1 - kl / that with everything ablated",
    "cpr": "area under faithfulness over size, signed ranking",
    "cmd": "area between that and 1, absolute ranking",
    "metric_clean": "the metric of the whole model",
    "metric_ablated": "with everything ablated",
    "correlation": "of an attribution with held-out ablations",
    "strongest": "the place of the largest effect of patching",
    "effect": "that effect",
}
"""Columns of results, in words."""

MARKS: Final = ("config.toml", "env.json", "report.json", "circuit.json", "effects.json", "attribution.safetensors")
"""A folder with one of these was a run directory, even if its status is gone."""

DEEPEST: Final = 4
"""Run directories are looked for so many folders down."""

_LARGEST: Final = 20_000_000
_EVALUATION: Final = {
    "edges": "n_edges",
    "nodes": "n_nodes",
    "faithfulness": "faithfulness",
    "random_faithfulness": "random_faithfulness",
    "completeness_gap": "completeness_gap",
    "kl": "kl",
    "kl_faithfulness": "kl_faithfulness",
    "metric_clean": "clean",
    "metric_ablated": "ablated",
}


def folders(root: Path) -> Iterator[tuple[str, str]]:
    """Run directories below a folder, or the folder itself, with a stamp that changes when their files do.

    Links are not followed. Times are compared for being the same, never for being later, so a clock that goes back is
    noticed like one that goes on.

    Args:
        root: Where to look.

    Yields:
        The path relative to `root`, with forward slashes, and the stamp.

    Raises:
        OSError: The root cannot be read.
    """
    if _stamp(root):
        yield ".", _stamp(root)
        return
    yield from _below(os.fspath(root), "", DEEPEST)


def _below(folder: str, relative: str, depth: int) -> Iterator[tuple[str, str]]:
    inner = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                inner.append(entry.name)
    for name in sorted(inner):
        path, shown = f"{folder}/{name}", f"{relative}{name}"
        stamp = _stamp(path)
        if stamp:
            yield shown, stamp
        elif depth > 1:
            try:
                yield from _below(path, f"{shown}/", depth - 1)
            except OSError:  # of others, or gone since
                continue


def _stamp(folder: str | Path) -> str:
    """What tells one state of a run directory from another; empty if the folder is none."""
    status = _stamp_of(f"{folder}/{STATUS}")
    if not status:
        there = any(os.path.isfile(f"{folder}/{name}") for name in MARKS)
        return "no status" if there else ""
    return f"{status} {_stamp_of(f'{folder}/report.json') or _stamp_of(f'{folder}/effects.csv')}"


def _stamp_of(path: str) -> str:
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return ""
    return f"{there.st_mtime_ns}:{there.st_size}:{there.st_ino}"


def read(root: Path, run: str) -> Row:
    """The row of one run directory.

    States are those of `status.json`, or `damaged`: its status or results are gone or cannot be read, and `error` says
    which.

    Args:
        root: The store.
        run: The path below it.
    """
    folder = root / run
    there = status(folder)
    if there is None:
        gone = "is missing" if not (folder / STATUS).exists() else "cannot be read"
        return _ordered({"run": run, "state": "damaged", "error": f"{STATUS} {gone}"})
    row = {"run": run, "state": there.state, "error": there.error, **_settings(there), **_times(there)}
    if there.state != "finished":
        return _ordered(row)
    try:
        return _ordered(row | _results(folder, str(row["command"]), there))
    except (BadFile, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        said = str(error) if isinstance(error, BadFile) else f"its results cannot be read: {type(error).__name__}"
        return _ordered(row | {"state": "damaged", "error": said})


def columns(rows: list[Row]) -> list[str]:
    """The columns of rows: what the run is, its settings, its results, when and how long."""
    present = dict.fromkeys(name for names in dict.fromkeys(map(tuple, rows)) for name in names)
    settings = [name for name in present if name not in (*HEAD, *RESULTS, *TAIL)]
    return [*HEAD, *sorted(settings, key=_setting_order), *(name for name in RESULTS if name in present), *TAIL]


def _setting_order(name: str) -> tuple[bool, bool]:
    return name.startswith("options."), name in ("seed", "prompts", "held_out")


def _ordered(row: Row) -> Row:
    names = [name for name in columns([row]) if row.get(name) is not None or name in ("run", "state")]
    return {name: row.get(name) for name in names}


def _settings(there: Status) -> Row:
    """The settings that decide a run's result; options of the method as `options.NAME`."""
    config = there.identity.get("config")
    command = there.identity.get("command", "discover")
    found: Row = {"command": str(command), "wiretrace": _scalar(there.identity.get("wiretrace"))}
    for name, value in config.items() if isinstance(config, dict) else ():
        if name == "options" and isinstance(value, dict):
            found |= {f"options.{each}": _scalar(given) for each, given in value.items()}
        elif name not in found:
            found[str(name)] = _scalar(value)
    found.setdefault("method", "coar" if command == "attribute" else None)
    return found


def _times(there: Status) -> Row:
    """When it ran, and how long, unless the clock went back meanwhile."""
    found: Row = {"started": there.started, "ended": there.ended}
    try:
        begun, ended = (datetime.fromisoformat(str(each)) for each in (there.started, there.ended))
        seconds = (ended - begun).total_seconds()
    except (ValueError, TypeError):
        return found
    return found | ({"seconds": seconds} if seconds >= 0 else {})


def _results(folder: Path, command: str, there: Status) -> Row:
    if command == "discover":
        return _circuit(json.loads(read_text(folder / "report.json", limit=_LARGEST)))
    if command == "attribute":
        config = there.identity.get("config")
        keep = config.get("keep", 0.9) if isinstance(config, dict) else 0.9
        return _correlation(json.loads(read_text(folder / "report.json", limit=_LARGEST)), 1 - float(keep))
    if command == "patch":
        return _effect(read_text(folder / "effects.csv", limit=_LARGEST))
    return {}


def _circuit(report: Mapping[str, Any]) -> Row:
    found = report["evaluation"]
    row: Row = {name: _scalar(found.get(key)) for name, key in _EVALUATION.items()}
    row["share"] = found["n_edges"] / found["n_possible"] if found["n_possible"] else None
    if found.get("interval"):
        row["faithfulness_low"], row["faithfulness_high"] = map(_scalar, found["interval"])
    curves = report.get("curves") or {}
    row["cpr"] = _scalar(curves.get("signed", {}).get("cpr"))
    row["cmd"] = _scalar(curves.get("absolute", {}).get("cmd"))
    row["device"] = _scalar(report.get("device"))
    total = report.get("seconds", {}).get("total")
    return row | ({"seconds": float(total)} if isinstance(total, int | float) else {})


def _correlation(report: Mapping[str, Any], ablated: float) -> Row:
    """That of COAR, at the share ablated that it was fitted at, or the nearest."""
    rows = [row for row in report["correlations"] if row["method"] == "coar" and "correlation" in row]
    best = min(rows, key=lambda row: abs(float(row["ablated"]) - ablated), default=None)
    return {} if best is None else {"correlation": float(best["correlation"])}


def _effect(text: str) -> Row:
    """The first row of the table, which is sorted by importance."""
    lines = csv.DictReader(text.splitlines())
    first = next(lines)
    place = " ".join(value for name, value in first.items() if name in ("layer", "head", "group", "position") and value)
    return {"strongest": place, "effect": float(first["effect"])}


def _scalar(value: object) -> Scalar:
    """A value as a cell: numbers that are none are absent, lists and tables are JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, default=str)

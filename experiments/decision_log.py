"""The decisions of a search as it makes them, one JSON object on a line, so that a killed run can go on.

The first line names the run that the decisions belong to. Every line reaches the operating system before the search
goes on, so a killed process loses at most the line that it was writing; a torn last line is dropped on reading.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from experiments.errors import BadRun
from graphs.errors import WriteFailed

SCHEMA: Final = "wiretrace-decisions/1"


@dataclass(frozen=True)
class Row:
    """One decision: the edge's name, whether it stays, and the rise of the damage without it (None: dead end)."""

    edge: str
    kept: bool
    delta: float | None


@dataclass(frozen=True)
class Log:
    """What a log holds.

    Attributes:
        rows: The decisions, in order.
        size: Bytes up to the end of the last whole line.
    """

    rows: tuple[Row, ...]
    size: int


def read(path: Path, *, run: str) -> Log:
    """The decisions that the file holds for one run; none if it is missing or belongs to another run.

    Raises:
        BadRun: A line before the last is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Log((), 0)
    except OSError as error:
        raise BadRun(f"expected to read {path}; {error.strerror or error}.") from error
    whole = data[: data.rfind(b"\n") + 1]
    head, *lines = whole.splitlines(keepends=True) or [b""]
    if _parsed(head) != {"schema": SCHEMA, "run": run}:
        return Log((), 0)
    rows, size = [], len(head)
    for number, line in enumerate(lines, start=2):
        row = _row(line)
        if row is None and number == len(lines) + 1:
            break
        if row is None:
            raise BadRun(
                f"expected a decision on line {number} of {path}; got {line[:60]!r}. The file is damaged: start "
                "the run again with --overwrite."
            )
        rows.append(row)
        size += len(line)
    return Log(tuple(rows), size)


def count(path: Path) -> int:
    """How many decisions a file holds, whichever run they belong to."""
    try:
        return max(0, path.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


class Writer:
    """Appends decisions to a log; use it in a `with` block.

    Args:
        path: The file; what stands after `log.size` bytes is cut off, and a new file gets its first line.
        run: What the decisions belong to.
        log: What `read` found.

    Raises:
        WriteFailed: The system refuses, here or at any line.
    """

    def __init__(self, path: Path, *, run: str, log: Log) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._file = os.open(path, flags, 0o666)
            os.ftruncate(self._file, log.size)
            os.lseek(self._file, 0, os.SEEK_END)
        except OSError as error:
            raise self._failed(error) from error
        if not log.size:
            self._line({"schema": SCHEMA, "run": run})

    def append(self, row: Row) -> None:
        """Add one decision."""
        self._line({"edge": row.edge, "kept": row.kept, "delta": row.delta})

    def _line(self, record: dict[str, Any]) -> None:
        data = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            while data:  # a full disk or a signal can cut a write short
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> WriteFailed:
        return WriteFailed(
            f"cannot write {self._path}: {error.strerror or error}. Free some space or choose another --out."
        )

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)


def _row(line: bytes) -> Row | None:
    record = _parsed(line)
    if not isinstance(record, dict) or record.keys() != {"edge", "kept", "delta"}:
        return None
    edge, kept, delta = record["edge"], record["kept"], record["delta"]
    if not isinstance(edge, str) or not isinstance(kept, bool):
        return None
    if delta is not None and (isinstance(delta, bool) or not isinstance(delta, int | float)):
        return None
    return Row(edge, kept, None if delta is None else float(delta))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None

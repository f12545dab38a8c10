"""The decisions of a search as it makes them, one JSON object on a line, so that a killed run can go on.

The first line names the run that the decisions belong to. Every line reaches the operating system before the search
goes on, so a killed process loses at most the line that it was writing. Every line ends in a checksum of all lines up
to it: what comes after a damaged one does not count, and the search goes on from the decisions before it.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from experiments.errors import BadRun
from graphs.errors import WriteFailed

SCHEMA: Final = "wiretrace-decisions/3"
_KEYS: Final = ("name", "kept", "delta", "seconds")
_MORE: Final = (*_KEYS, "footing")


@dataclass(frozen=True)
class Row:
    """One decision.

    Attributes:
        name: Of the edge or node.
        kept: Whether it stays.
        delta: The rise of the damage without it; None where nothing was evaluated, since nothing reads it any more.
        seconds: Of searching until then, interruptions not counted.
        footing: Numbers that a search needs to begin again here and end in the same bits; None at most decisions.
    """

    name: str
    kept: bool
    delta: float | None
    seconds: float = 0.0
    footing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Log:
    """What a log holds.

    Attributes:
        rows: The decisions, in order.
        size: Bytes up to the end of the last sound line.
        check: The checksum on that line.
        damaged: The number of the line after which nothing counts, if that is not just the last one, torn.
    """

    rows: tuple[Row, ...]
    size: int
    check: int = 0
    damaged: int | None = None


def read(path: Path, *, run: str | None) -> Log:
    """The decisions that the file holds for one run; none if it is missing or belongs to another run.

    Args:
        path: The file.
        run: What the decisions must belong to; None for whatever they do.

    Raises:
        BadRun: The system refuses to read it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Log((), 0)
    except OSError as error:
        raise BadRun(f"expected to read {path}; {error.strerror or error}.") from error
    whole = data[: data.rfind(b"\n") + 1]
    head, *lines = whole.splitlines(keepends=True) or [b""]
    known = _parsed(head)
    if not isinstance(known, dict) or known.get("schema") != SCHEMA or run not in (None, known.get("run")):
        return Log((), 0)
    rows, size, check, damaged = [], len(head), 0, None
    for number, line in enumerate(lines, start=2):
        row, check_after = _row(line, check)
        if row is None:
            damaged = number if number <= len(lines) else None
            break
        rows.append(row)
        size, check = size + len(line), check_after
    return Log(tuple(rows), size, check, damaged)


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
        self._check, self._start = log.check, time.perf_counter()
        self._before = log.rows[-1].seconds if log.rows else 0.0
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._file = os.open(path, flags, 0o666)
            os.ftruncate(self._file, log.size)
            os.lseek(self._file, 0, os.SEEK_END)
        except OSError as error:
            raise self._failed(error) from error
        if not log.size:
            self._bytes(_written({"schema": SCHEMA, "run": run}) + b"\n")

    def append(self, name: str, kept: bool, delta: float | None, footing: Sequence[float] | None = None) -> None:
        """Add one decision."""
        seconds = round(self._before + time.perf_counter() - self._start, 4)
        row = {"name": name, "kept": kept, "delta": delta, "seconds": seconds}
        record = _written(row if footing is None else row | {"footing": list(footing)})
        self._check = zlib.crc32(record, self._check)
        self._bytes(record[:-1] + b',"check":%d}\n' % self._check)

    def _bytes(self, data: bytes) -> None:
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


def _row(line: bytes, check: int) -> tuple[Row | None, int]:
    """The decision on a line and the checksum after it; None where they do not belong together, to the last bit."""
    content, _, found = line.rpartition(b',"check":')
    record, check_after = _parsed(content + b"}"), zlib.crc32(content + b"}", check)
    if not isinstance(record, dict) or tuple(record) not in (_KEYS, _MORE) or found != b"%d}\n" % check_after:
        return None, check
    if "footing" in record:
        record["footing"] = tuple(record["footing"])
    return Row(**record), check_after


def _written(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None

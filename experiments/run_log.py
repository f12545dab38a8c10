"""The log of a run: `log.jsonl` in its directory, one JSON object per line.

    {"number": 7, "time": "2026-03-01T12:00:00.123Z", "process": 4711, "event": "progress", "what": "acdc", ...}

Lines are only ever added, each by one call of the system, so that several processes can write and a process that is
killed leaves at most one line torn, which readers leave out. Numbers grow from line to line whatever the clock does:
order is theirs. A log that cannot be written is no reason to end a run; the first refusal is kept in `RunLog.refused`.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from experiments.errors import BadRun
from experiments.progress_display import Display, Progress
from graphs.circuit import visible

LOG: Final = "log.jsonl"
SECONDS_BETWEEN_PROGRESS: Final = 5.0
_TAIL: Final = 1 << 16
_RESERVED: Final = ("number", "time", "process", "event")


@dataclass(frozen=True)
class Entry:
    """One line of a log.

    Attributes:
        number: grows from line to line.
        time: in UTC, as the clock of the machine said.
        process: number of the process that wrote it.
        event: what happened: started, resumed, said, began, progress, ended, warning, published, finished, failed,
            interrupted.
        fields: what else there is to say about it.
    """

    number: int
    time: str
    process: int
    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> str:
        """As a line of the file, without its end."""
        record = {"number": self.number, "time": self.time, "process": self.process, "event": self.event}
        return json.dumps(record | dict(self.fields), allow_nan=False)

    @classmethod
    def of_line(cls, line: str) -> Entry | None:
        """What a line says; None for one that is torn, or of something else."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict):
            return None
        number, at, process, event = (record.get(name) for name in _RESERVED)
        if type(number) is not int or type(process) is not int or not isinstance(at, str) or not isinstance(event, str):
            return None
        return cls(number, at, process, event, {k: value for k, value in record.items() if k not in _RESERVED})

    def __str__(self) -> str:
        said = ", ".join(f"{name}={_short(value)}" for name, value in self.fields.items() if name != "text")
        text = str(self.fields.get("text", ""))
        return visible(" ".join(each for each in (self.time, f"{self.event:<11}", text, said) if each))


class RunLog:
    """A log that is added to.

    Attributes:
        path: the file; it is made with the first line.
        refused: why a line could not be written, or None.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused: str | None = None
        self._number = 0

    def write(self, event: str, **fields: Any) -> Entry:
        """Add a line. What is not JSON is written as text, NaN and infinity too.

        Example:
            >>> import tempfile
            >>> log = RunLog(Path(tempfile.mkdtemp()) / "log.jsonl")
            >>> log.write("said", text="Loading …").number, log.write("progress", done=3, total=9).number
            (1, 2)
            >>> [entry.event for entry in read(log.path)]
            ['said', 'progress']
        """
        entry = Entry(
            self._number + 1, _now(), os.getpid(), event, {name: _plain(each) for name, each in fields.items()}
        )
        try:
            entry = self._append(entry)
        except OSError as error:
            self.refused = self.refused or f"cannot write to {self.path}: {error.strerror or error}."
        self._number = entry.number
        return entry

    def _append(self, entry: Entry) -> Entry:
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _lock(handle)
            number, torn = _end(handle)
            entry = Entry(max(entry.number, number + 1), entry.time, entry.process, entry.event, entry.fields)
            os.write(handle, f"{chr(10) if torn else ''}{entry.to_line()}\n".encode())
        finally:
            os.close(handle)
        return entry


def read(path: Path) -> list[Entry]:
    """The lines of a log in order; torn ones are left out, and a log that is not there is empty."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (Entry.of_line(line) for line in text.split("\n") if line)
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.number)


def of(folder: Path) -> list[Entry]:
    """What the log of a run says.

    Raises:
        BadRun: the folder has no log.
    """
    found = read(folder / LOG)
    if not found:
        raise BadRun(f"expected the folder of a run with a log; there is no {LOG} in {folder}, or nothing in it.")
    return found


class Told:
    """A display that passes everything on, and tells a log too: what is said, and how far the work is.

    Args:
        show: where progress goes.
        tell: called with an event and its fields.
        between: at least so many seconds from one report of progress to the next.
    """

    def __init__(
        self, show: Display, tell: Callable[..., object], *, between: float = SECONDS_BETWEEN_PROGRESS
    ) -> None:
        self._show, self._tell, self._between = show, tell, between

    def say(self, text: str) -> None:
        """Tell what happens now."""
        self._show.say(text)
        self._tell("said", text=text)

    def steps(self, what: str, *, unit: str, done: int = 0) -> AbstractContextManager[Progress]:
        """Follow some work."""
        return self._followed(what, unit, done)

    @contextmanager
    def _followed(self, what: str, unit: str, done: int) -> Iterator[Progress]:
        start = last = time.monotonic()
        at: dict[str, int] = {"done": done}
        self._tell("began", what=what, unit=unit, done=done)
        with self._show.steps(what, unit=unit, done=done) as inner:

            def update(done: int, total: int) -> None:
                nonlocal last
                inner(done, total)
                at.update(done=done, total=total)
                now = time.monotonic()
                if now - last >= self._between and done != total:
                    last = now
                    self._tell("progress", what=what, unit=unit, done=done, total=total)

            yield update
        self._tell("ended", what=what, unit=unit, **at, seconds=round(time.monotonic() - start, 3))


@contextmanager
def hearing(hear: Callable[[str, type[Warning]], bool]) -> Iterator[None]:
    """Let warnings that would be shown be heard while the block lasts; they are shown unless ``hear`` says it did."""
    before = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if not hear(str(message), category):
            before(message, category, *rest, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _end(handle: int) -> tuple[int, bool]:
    """The last number of a log, and whether its last line is torn."""
    size = os.fstat(handle).st_size
    tail = os.pread(handle, _TAIL, max(0, size - _TAIL)) if size else b""
    torn = bool(tail) and not tail.endswith(b"\n")
    for line in reversed(tail.decode("utf-8", errors="replace").split("\n")):
        entry = Entry.of_line(line)
        if entry is not None:
            return entry.number, torn
    return 0, torn


def _lock(handle: int) -> None:
    """Wait for others that are writing a line; without such locks lines are still whole, but numbers may repeat."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value)


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"

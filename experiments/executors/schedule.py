"""Which piece is next, which is tried again, and what became of each: the same for every executor."""

from __future__ import annotations

import heapq
import sys
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from experiments.errors import FolderBusy, NoMemory
from experiments.progress_display import duration
from experiments.work import Unit, is_finished
from graphs.errors import WiretraceError, WriteFailed

WAIT: Final = 0.5
"""Seconds before a piece is tried again; twice as many the next time."""

LONGEST_WAIT: Final = 30.0


@dataclass(frozen=True)
class Outcome:
    """What became of a piece.

    Attributes:
        unit: The piece.
        state: finished; skipped, since it was done before; or failed.
        seconds: That it took the last time.
        error: Why it failed, in a sentence.
        attempts: How often it was begun.
    """

    unit: Unit
    state: Literal["finished", "skipped", "failed"]
    seconds: float = 0.0
    error: str | None = None
    attempts: int = 0


@dataclass(frozen=True)
class Answer:
    """What a worker says of a piece; plain data.

    Attributes:
        did: Whether there was anything to do.
        seconds: That it took.
        error: Why it failed, or None.
        again: Whether it may succeed another time.
    """

    did: bool = True
    seconds: float = 0.0
    error: str | None = None
    again: bool = False


def attempt(perform: Callable[[], bool]) -> Answer:
    """Do a piece and say how it went; whatever it raises becomes words, except an interruption."""
    start = time.perf_counter()
    try:
        did = perform()
    except Exception as error:
        again = isinstance(error, OSError | WriteFailed | NoMemory | FolderBusy) or _out_of_memory(error)
        return Answer(False, time.perf_counter() - start, said(error), again)
    return Answer(did, time.perf_counter() - start)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, also where torch or the engine says so."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from patching.chunks import is_out_of_memory

    return is_out_of_memory(error)


def said(error: BaseException) -> str:
    """An error in a line: the sentence of one raised on purpose, else the last line of the traceback and its place."""
    if isinstance(error, WiretraceError):
        return str(error)
    last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frames = traceback.extract_tb(error.__traceback__)
    return f"{last} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else last


class Tell:
    """Tells those who want to hear of progress; whoever fails is not told again."""

    def __init__(
        self,
        *,
        say: Callable[[str], None] | None,
        progress: Callable[[int, int], None] | None,
        told: Callable[[Outcome], None] | None,
    ) -> None:
        self._heard: dict[str, Callable[..., None] | None] = {"say": say, "progress": progress, "told": told}
        self.broken: str | None = None

    @property
    def listening(self) -> bool:
        """Whether somebody hears of every outcome, and need not be told in words what is finished."""
        return self._heard["told"] is not None

    def say(self, text: str) -> None:
        """What happens."""
        self._call("say", text)

    def progress(self, done: int, total: int) -> None:
        """How far it is."""
        self._call("progress", done, total)

    def told(self, outcome: Outcome) -> None:
        """What became of a piece."""
        self._call("told", outcome)

    def _call(self, name: str, *arguments: Any) -> None:
        function = self._heard[name]
        if function is None:
            return
        try:
            function(*arguments)
        except Exception as error:
            self._heard[name] = None
            self.broken = self.broken or f"{name} raised {said(error)}"
            self.say(f"{name} raised {said(error)}; it is not called again.")


@dataclass
class Piece:
    """A unit and how it stands."""

    unit: Unit
    number: int
    attempts: int = 0
    outcome: Outcome | None = None


@dataclass
class _Run:
    """The pieces of one folder: groups, each of which needs those before it."""

    groups: deque[list[Piece]] = field(default_factory=deque)
    open: int = 0  # of the present group, not done
    ready: deque[Piece] = field(default_factory=deque)
    failed: str | None = None


class Schedule:
    """All pieces of all runs.

    Args:
        stages: The pieces.
        retries: How often one is tried again.
        tell: Who hears of it.
        clock: Seconds that only grow; the time of day may go backwards.
        wait: Seconds before the first further attempt; `WAIT` by default.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[Unit]],
        *,
        retries: int,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
        wait: float | None = None,
    ) -> None:
        self.retries, self.tell, self._clock, self._wait = retries, tell, clock, WAIT if wait is None else wait
        self.pieces: list[Piece] = []
        self._runs: dict[str, _Run] = {}
        self._able: dict[str, None] = {}  # folders of which something can be begun, in order
        self._later: list[tuple[float, int, Piece]] = []
        self._done, self._begun, self._started = 0, 0, clock()
        for stage in stages:
            groups: dict[str, list[Piece]] = defaultdict(list)
            for unit in stage:
                piece = Piece(unit, len(self.pieces))
                self.pieces.append(piece)
                groups[unit.folder].append(piece)
            for folder, group in groups.items():
                self._runs.setdefault(folder, _Run()).groups.append(group)
        for folder, run in self._runs.items():
            self._begin(folder, run)

    def _begin(self, folder: str, run: _Run) -> None:
        """Skip a run that is finished, refuse one whose settings are wrong, or open its first group."""
        first = run.groups[0][0].unit
        answer = attempt(lambda: not is_finished(first))
        if answer.error is None and answer.did:
            self._open(run)
            return
        for piece in [piece for group in run.groups for piece in group]:
            state = "failed" if answer.error else "skipped"
            self._close(piece, Outcome(piece.unit, state, error=answer.error))
        run.groups.clear()

    def _open(self, run: _Run) -> None:
        if run.groups:
            group = run.groups.popleft()
            run.open = len(group)
            run.ready.extend(group)
            self._able[group[0].unit.folder] = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do or to wait for."""
        return self._done == len(self.pieces)

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of every piece that is done with, in their order."""
        return [piece.outcome for piece in self.pieces if piece.outcome is not None]

    @property
    def settings(self) -> list[Any]:
        """The settings of every run."""
        return list({piece.unit.folder: piece.unit.settings for piece in self.pieces}.values())

    def next(self, near: str = "") -> Piece | None:
        """A piece to begin now, if there is one.

        Args:
            near: The folder that the asking worker has just worked for, whose model it still holds.
        """
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            self._return(heapq.heappop(self._later)[2])
        if not self._able:
            return None
        folder = near if near in self._able else next(iter(self._able))
        ready = self._runs[folder].ready
        piece = ready.popleft()
        if not ready:
            del self._able[folder]
        piece.attempts += 1
        return piece

    def pause(self) -> float | None:
        """Seconds until the next further attempt; None if none is waited for."""
        return max(0.0, self._later[0][0] - self._clock()) if self._later else None

    def report(self, piece: Piece, answer: Answer) -> None:
        """A worker has answered."""
        if answer.error is None:
            state = "finished" if answer.did else "skipped"
            self._close(piece, Outcome(piece.unit, state, answer.seconds, None, piece.attempts))
            return
        if answer.again and self._again(piece, answer.error):
            return
        self._fail(piece, answer.error, answer.seconds)
        self._give_up(piece.unit.folder, answer.error)

    def lost(self, piece: Piece, how: str) -> None:
        """A worker is gone, and nobody knows what became of its piece."""
        if not self._again(piece, how):
            times = "once" if piece.attempts == 1 else f"{piece.attempts} times"
            self._fail(piece, f"its worker was lost {times}: {how}", 0.0)

    def put_back(self, piece: Piece) -> None:
        """A piece was given to nobody after all."""
        piece.attempts -= 1
        self._return(piece)

    def _return(self, piece: Piece) -> None:
        self._runs[piece.unit.folder].ready.appendleft(piece)
        self._able[piece.unit.folder] = None

    def abandon(self, why: str) -> None:
        """Nothing can be done any more: what is not done has failed."""
        self._later.clear()
        self._able.clear()
        for run in self._runs.values():
            run.ready.clear()
            run.groups.clear()
            run.failed = run.failed or why
        for piece in self.pieces:
            if piece.outcome is None:
                self._close(piece, Outcome(piece.unit, "failed", 0.0, why, piece.attempts))

    def _again(self, piece: Piece, why: str) -> bool:
        if piece.attempts > self.retries:
            return False
        wait = min(LONGEST_WAIT, self._wait * 2 ** (piece.attempts - 1))
        heapq.heappush(self._later, (self._clock() + wait, piece.number, piece))
        self.tell.say(
            f"{piece.unit}: {why.rstrip('.')}. Attempt {piece.attempts + 1} of {self.retries + 1} in {duration(wait)}."
        )
        return True

    def _fail(self, piece: Piece, why: str, seconds: float) -> None:
        self._runs[piece.unit.folder].failed = f"{piece.unit}: {why}"
        self.tell.say(f"{piece.unit} failed: {why}")
        self._close(piece, Outcome(piece.unit, "failed", seconds, why, piece.attempts))

    def _give_up(self, folder: str, why: str) -> None:
        """What is not begun of a run would fail in the same way."""
        run = self._runs[folder]
        waiting = [piece for _when, _number, piece in self._later if piece.unit.folder == folder]
        self._later = [entry for entry in self._later if entry[2].unit.folder != folder]
        heapq.heapify(self._later)
        stopped = [*run.ready, *waiting]
        run.ready.clear()
        self._able.pop(folder, None)
        for piece in stopped:
            self._close(piece, Outcome(piece.unit, "failed", 0.0, f"not begun: {why}", piece.attempts))

    def _close(self, piece: Piece, outcome: Outcome) -> None:
        piece.outcome = outcome
        self._done += 1
        self.tell.told(outcome)
        self.tell.progress(self._done, len(self.pieces))
        run = self._runs[piece.unit.folder]
        if run.open:
            run.open -= 1
            if not run.open:
                self._next_group(piece, run)

    def _next_group(self, last: Piece, run: _Run) -> None:
        if run.failed is not None:
            rest = [piece for group in run.groups for piece in group]
            run.groups.clear()
            for piece in rest:
                self._close(piece, Outcome(piece.unit, "failed", 0.0, f"not begun: {run.failed}"))
        elif run.groups:
            self._open(run)
        elif not self.tell.listening:
            self._say_finished(last)

    def _say_finished(self, last: Piece) -> None:
        left = len(self.pieces) - self._done
        rest = ""
        if left:
            each = (self._clock() - self._started) / max(1, self._done)
            rest = f"; about {duration(each * left)} left"
        self.tell.say(f"{last.unit.folder} is finished: {self._done:,} of {len(self.pieces):,} pieces{rest}.")

"""How a run tells how far it is: bars on a terminal, a line now and then into a file, or nothing."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol, TextIO

Progress = Callable[[int, int], None]
"""As `patching.progress`: called with the number of steps done and of all steps."""

SECONDS_BETWEEN_LINES: Final = 10.0


class Display(Protocol):
    """Where progress goes."""

    def say(self, text: str) -> None:
        """Tell what happens now."""
        ...

    def steps(self, what: str, *, unit: str, done: int = 0) -> AbstractContextManager[Progress]:
        """Follow some work.

        Args:
            what: Its name.
            unit: What one step is.
            done: Steps that were done before, which do not count for the estimate of the time left.
        """
        ...


class Silence:
    """Nothing at all."""

    def say(self, text: str) -> None:
        """Tell nothing."""

    @contextmanager
    def steps(self, what: str, *, unit: str, done: int = 0) -> Iterator[Progress]:
        """Follow nothing."""
        yield lambda done, total: None


class Bars:
    """A tqdm bar with the time left, for terminals."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, text: str) -> None:
        """Write one line above the bar, if there is one."""
        from tqdm import tqdm

        tqdm.write(text, file=self._stream)
        self._stream.flush()

    @contextmanager
    def steps(self, what: str, *, unit: str, done: int = 0) -> Iterator[Progress]:
        """Draw a bar while the block lasts."""
        from tqdm import tqdm

        size = shutil.get_terminal_size()  # of a terminal that does not know its own, 80 by 24
        bar = tqdm(
            desc=what,
            unit=unit,
            initial=done,
            file=self._stream,
            smoothing=0.1,
            ncols=size.columns - 1,
            nrows=size.lines,
        )
        with bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield update


class Lines:
    """A plain line now and then, for files and pipes.

    Args:
        stream: Where to.
        between: At least so many seconds from one line to the next.
    """

    def __init__(self, stream: TextIO, *, between: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream, self._between = stream, between

    def say(self, text: str) -> None:
        """Write one line."""
        print_line(text, self._stream)

    @contextmanager
    def steps(self, what: str, *, unit: str, done: int = 0) -> Iterator[Progress]:
        """Write a line every few seconds while the block lasts."""
        start = last = time.monotonic()
        before = done

        def update(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < self._between or done == total:
                return
            last = now
            left = (now - start) / max(1, done - before) * (total - done)
            share = done / total
            self.say(f"{what}: {done:,} of {total:,} {unit}s ({share:.0%}), about {duration(left)} left")

        yield update


def display(*, quiet: bool) -> Display:
    """What suits the place where standard error goes."""
    if quiet:
        return Silence()
    return Bars(sys.stderr) if sys.stderr.isatty() else Lines(sys.stderr)


def bar(what: str, *, unit: str = "step") -> Progress:
    """A callable for ``progress=``, for scripts and notebooks: methods are silent unless they get one.

        circuit = acdc.search(run, tau=0.2, progress=bar("ACDC"))

    A bar with the time left on a terminal and in a notebook, a line now and then in a file. It ends with the last step;
    the same callable can then follow other work.

    Args:
        what: the name of the work.
        unit: what one step is.
    """
    where = _Notebook() if in_notebook() else display(quiet=False)
    open_now: list[tuple[AbstractContextManager[Progress], Progress]] = []

    def update(done: int, total: int) -> None:
        if not open_now:
            following = where.steps(what, unit=unit)
            open_now.append((following, following.__enter__()))
        following, inner = open_now[0]
        inner(done, total)
        if done >= total:
            open_now.clear()
            following.__exit__(None, None, None)

    return update


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules and "IPKernelApp" in getattr(
        getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)(), "config", {}
    )


class _Notebook(Lines):
    """Bars as notebooks draw them."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    @contextmanager
    def steps(self, what: str, *, unit: str, done: int = 0) -> Iterator[Progress]:
        """Draw a bar while the block lasts."""
        from tqdm.auto import tqdm

        with tqdm(desc=what, unit=unit, initial=done) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield update


def duration(seconds: float) -> str:
    """A length of time, for people.

    Example:
        >>> duration(0.42), duration(75), duration(7300)
        ('0.4 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def print_line(text: str, stream: TextIO) -> None:
    """Write one line at once."""
    stream.write(f"{text}\n")
    stream.flush()

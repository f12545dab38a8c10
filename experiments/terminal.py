"""What every command does with a terminal: errors as sentences, tables as wide as it is."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from experiments import environment

Command = TypeVar("Command", bound=Callable[..., None])


def sentences(command: Command) -> Command:
    """Turn errors raised on purpose into one sentence on standard error, and Ctrl-C into exit code 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as stop:
            _stop(str(stop) or "Stopped.", code=130)
        except Exception as error:
            said = _sentence(error)
            if said is None:
                raise
            _stop(f"Error: {said}", code=1)

    return run  # type: ignore[return-value]


def print_tables(*what: Any) -> None:
    """Print tables, as wide as the terminal, or wide enough for a file."""
    from rich.console import Console

    console = Console(width=width(), highlight=False)
    for each in what:
        console.print(each)


def width() -> int:
    """How many columns there are: the terminal's, or plenty for a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 160


def _stop(text: str, *, code: int) -> None:
    typer.echo(text, err=True)
    raise typer.Exit(code) from None


def _sentence(error: Exception) -> str | None:
    """What to say about an error; None for one that nobody raised on purpose, which deserves its traceback."""
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in environment.PACKAGES:
        return f"{error}. Something else of that name may be in the way: `wiretrace env` says what."
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        where = f" ({error.filename})" if error.filename else ""
        return f"the system refuses: {error.strerror or error}{where}."
    try:
        from graphs.errors import WiretraceError
    except ImportError:
        return None
    return str(error) if isinstance(error, WiretraceError) else None

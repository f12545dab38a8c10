"""What can go wrong around a run: settings, names and output folders. Messages say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphs.errors import WiretraceError


class UnknownName(WiretraceError):
    """No method, metric, ablation or format has this name."""


class BadConfig(WiretraceError):
    """A setting is out of its range, or does not belong to the method."""


class FolderTaken(WiretraceError):
    """The output folder holds something that this run may not replace."""


class FolderBusy(FolderTaken):
    """Another process works in the output folder at this moment; a little later it may be free."""


class BadRun(WiretraceError):
    """A folder that is not a run directory, or one whose files do not hold together."""


class NoMemory(WiretraceError):
    """The run needs more memory than there is."""


class CallbackFailed(WiretraceError):
    """A function that was given to hear of progress raised an error; the work was done nevertheless.

    Attributes:
        outcomes: What became of every piece of it.
    """

    def __init__(self, text: str, outcomes: Sequence[Any]) -> None:
        super().__init__(text)
        self.outcomes = list(outcomes)


class Interrupted(KeyboardInterrupt):
    """Somebody stopped the run with Ctrl-C or SIGTERM; the text says what is left and how to go on."""

"""What can go wrong around a run: settings, names and output folders. Messages say what to do."""

from __future__ import annotations

from graphs.errors import WiretraceError


class UnknownName(WiretraceError):
    """No method, metric, ablation or format has this name."""


class BadConfig(WiretraceError):
    """A setting is out of its range, or does not belong to the method."""


class FolderTaken(WiretraceError):
    """The output folder holds something that this run may not replace."""


class BadRun(WiretraceError):
    """A folder that is not a run directory, or one whose files do not hold together."""


class NoMemory(WiretraceError):
    """The run needs more memory than there is."""


class Interrupted(KeyboardInterrupt):
    """Somebody stopped the run with Ctrl-C or SIGTERM; the text says what is left and how to go on."""

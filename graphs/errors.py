"""What can go wrong, as exceptions that say what was expected, what came and what to do.

Every error that Wiretrace raises on purpose derives from `WiretraceError`, itself a `ValueError`, so one `except`
catches them all and code written against plain Python errors keeps working. Other packages of the project derive
their own from the same root.
"""

from __future__ import annotations


class WiretraceError(ValueError):
    """The root of every error raised on purpose."""


class BadName(WiretraceError):
    """A node, port or edge is spelled or put together in a way that no model could have."""


class BadArchitecture(WiretraceError):
    """The shape of a model (layers, heads, groups) makes no sense."""


class UnknownNode(WiretraceError):
    """A well-formed node that this architecture does not have."""


class UnknownEdge(WiretraceError):
    """A well-formed edge that this architecture does not have."""


class BadCircuit(WiretraceError):
    """The content of a circuit (edges, scores, provenance) breaks its contract."""


class BadFile(WiretraceError):
    """A file that cannot be read, is cut short, or is not in the format it should be in."""


class UnknownFormat(WiretraceError):
    """A file suffix for which there is no exporter."""


class BadOption(WiretraceError):
    """An option that a format does not have, or one that lacks its value or has a wrong one."""


class WriteFailed(WiretraceError):
    """A file could not be written; whatever stood at its path before is untouched."""

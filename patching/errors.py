"""Errors of models, tasks and runs. Each says what was expected, what came and what to do."""

from __future__ import annotations

from graphs.errors import WiretraceError


class UnsupportedModel(WiretraceError):
    """The model computes something that the engine does not reproduce."""


class ModelNotFound(WiretraceError):
    """No model of that name is here or can be reached."""


class InvalidWeights(WiretraceError):
    """Weights that are truncated, unsafe to read, incomplete or not finite."""


class InvalidTask(WiretraceError):
    """Prompts, answers or positions that do not make a task."""


class InvalidMask(WiretraceError):
    """A mask whose shape or values the engine cannot use."""


class NotFinite(WiretraceError):
    """A metric or an activation became NaN or infinite."""


class InvalidOption(WiretraceError):
    """An option of a method is out of its range."""


class OutOfMemory(WiretraceError):
    """The smallest chunk of some work needs more memory than there is."""

"""What can be wrong with the request for a task. A message says what was expected, what came, what to do."""

from __future__ import annotations

from graphs.errors import WiretraceError


class UnknownTask(WiretraceError):
    """No task has this name."""


class UnknownChoice(WiretraceError):
    """An option of a task got a value that it does not know."""


class NotOneToken(WiretraceError):
    """Words that a task needs as one token each are several tokens, or unknown, to the model's tokenizer."""


class TooFewNames(WiretraceError):
    """The names given are too few, or not distinct, for what a prompt needs."""


class TooFewWords(WiretraceError):
    """A word list is too short for a prompt of the split, or has a word twice."""


class BadTaskFile(WiretraceError):
    """A file of a user's own pairs that cannot be used; the message names rows and reasons."""

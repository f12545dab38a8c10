"""Names that may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from experiments.errors import UnknownName


def require_known(what: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is a known one.

    Args:
        what: The noun for the message, such as "a method".
        name: What came.
        known: What there is.

    Raises:
        UnknownName: It is not; the message lists what there is and offers the nearest.

    Example:
        >>> require_known("a method", "acdc", ["acdc", "atp"])
        'acdc'
    """
    names = list(known)
    if name in names:
        return name
    there = f"out of {', '.join(names)}" if names else "but there is none"
    raise UnknownName(f"expected {what} {there}; got {name!r}.{did_you_mean(name, names)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest names, or nothing; `ioi` is near `zoo:ioi`."""
    names = list(known)
    folded = name.casefold()
    near = [each for each in names if folded and folded == each.rpartition(":")[2].casefold()]
    near += [each for each in difflib.get_close_matches(folded, names, n=3) if each not in near]
    return f" Did you mean {' or '.join(near)}?" if near else ""

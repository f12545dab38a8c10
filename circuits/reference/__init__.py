"""Circuits that the literature agrees on, as data: which edges, which groups of heads, at which tokens.

They were found by hand, so they are a yardstick and no truth: methods that find other edges may be right. Edges that
join a head's query, key and value to the head itself are not edges here; the counts in the papers' code include them
(`Reference.published_edges`). Models that were trained to compute a program node by node have a reference too, by their
name (`reverse_trained`); there, the nodes are certain. `compare` holds a circuit against one of them.

Example:
    >>> from circuits import reference
    >>> sorted(reference.REFERENCES)
    ['docstring', 'greater_than', 'ioi']
    >>> reference.load("ioi").circuit.n_edges
    963
    >>> "reverse_trained" in reference.names()
    True
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from circuits.reference import trained
from circuits.reference.record import Reference
from patching.errors import InvalidOption

if TYPE_CHECKING:
    from circuits.reference.comparison import Agreement, compare

__all__ = ["REFERENCES", "Agreement", "Reference", "compare", "load", "names"]

REFERENCES: dict[str, str] = {
    "docstring": "circuits.reference.docstring",
    "greater_than": "circuits.reference.greater_than",
    "ioi": "circuits.reference.ioi",
}
"""Name and module; a new one is a file and a line."""


def names() -> tuple[str, ...]:
    """Every name that `load` knows: published circuits, then interchange-trained models."""
    return (*REFERENCES, *trained.names())


def load(name: str) -> Reference:
    """A reference by name: one of `REFERENCES`, or an interchange-trained model's.

    Raises:
        InvalidOption: There is none of that name; the nearest are offered.
    """
    if name in trained.names():
        return trained.of(name)
    if name not in REFERENCES:
        near = difflib.get_close_matches(name, names(), n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InvalidOption(f"expected a reference circuit out of {', '.join(names())}; got {name!r}.{hint}")
    found: Reference = importlib.import_module(REFERENCES[name]).REFERENCE
    return found


def __getattr__(name: str) -> Any:
    if name in ("Agreement", "compare"):  # they need torch, and lists of references do not
        return getattr(importlib.import_module("circuits.reference.comparison"), name)
    raise AttributeError(f"module 'circuits.reference' has no attribute {name!r}")

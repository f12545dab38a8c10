"""The table of methods: one line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """A way to score units or to find a circuit.

    Attributes:
        name: as on the command line.
        home: ``module:function`` of its one public function, taking a `MaskedRun` first.
        gives: ``scores`` or ``circuit``.
        levels: units that it scores.
        summary: what it computes, and what it costs.
        source: where it is from.
        options: keyword arguments of the function that a user may set, with their types.
    """

    name: str
    home: str
    gives: str
    levels: tuple[str, ...]
    summary: str
    source: str
    options: dict[str, type]

    def function(self) -> Callable[..., Any]:
        """The public function; imports torch."""
        module, name = self.home.split(":")
        return getattr(importlib.import_module(module), name)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("acdc", "circuits.acdc:search", "circuit", ("edge",),
               "walks back from the logits and drops edges whose loss raises the damage by less than tau; about one "
               "partial run per edge", "arXiv 2304.14997", {"tau": float, "absolute": bool}),
        Method("atp", "patching.atp:scores", "scores", ("edge", "node"),
               "first-order effect of every edge (EAP) or node; two forwards and one backward for all",
               "arXiv 2310.10348, 2403.00745", {}),
        Method("exact", "patching.exact:scores", "scores", ("edge", "node"),
               "measured effect of ablating every edge or node alone; one partial run each",
               "arXiv 2309.16042", {}),
    )
}  # fmt: skip

"""How circuits are found and judged.

Names load on first use, so that listing methods or tasks does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits import acdc, coar, features, hypothesis_tests, knockout, recovery, stability, tasks, transfer
    from circuits.curves import Curve, curve
    from circuits.evaluation import Report, evaluate
    from circuits.methods import METHODS
    from circuits.recovery import recover, roc
    from circuits.select import edges_above, greedy_edges, suggest, top_edges, top_nodes

__all__ = [
    "METHODS",
    "Curve",
    "Report",
    "acdc",
    "coar",
    "curve",
    "edges_above",
    "evaluate",
    "features",
    "greedy_edges",
    "hypothesis_tests",
    "knockout",
    "recover",
    "recovery",
    "roc",
    "stability",
    "suggest",
    "tasks",
    "top_edges",
    "top_nodes",
    "transfer",
]

_HOMES = {
    "METHODS": "circuits.methods",
    "Curve": "circuits.curves",
    "Report": "circuits.evaluation",
    "curve": "circuits.curves",
    "edges_above": "circuits.select",
    "evaluate": "circuits.evaluation",
    "greedy_edges": "circuits.select",
    "recover": "circuits.recovery",
    "roc": "circuits.recovery",
    "suggest": "circuits.select",
    "top_edges": "circuits.select",
    "top_nodes": "circuits.select",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"circuits.{name}")
    raise AttributeError(f"module 'circuits' has no attribute {name!r}")

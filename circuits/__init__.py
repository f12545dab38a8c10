"""How circuits are found and judged.

Names load on first use, so that listing methods or tasks does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits import acdc, tasks
    from circuits.evaluation import Report, evaluate
    from circuits.methods import METHODS
    from circuits.select import top_edges

__all__ = ["METHODS", "Report", "acdc", "evaluate", "tasks", "top_edges"]

_HOMES = {
    "METHODS": "circuits.methods",
    "Report": "circuits.evaluation",
    "evaluate": "circuits.evaluation",
    "top_edges": "circuits.select",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"circuits.{name}")
    raise AttributeError(f"module 'circuits' has no attribute {name!r}")

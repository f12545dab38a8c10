"""How to intervene on a model: loading, tasks, ablations, the masked run, and the scores taken from it.

Names load on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patching import ablations, atp, exact, metrics, toy
    from patching.lens import LensModel
    from patching.masked import MaskedRun
    from patching.scores import Scores
    from patching.task import Task

__all__ = ["LensModel", "MaskedRun", "Scores", "Task", "ablations", "atp", "exact", "metrics", "toy"]

_HOMES = {
    "LensModel": "patching.lens",
    "MaskedRun": "patching.masked",
    "Scores": "patching.scores",
    "Task": "patching.task",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"patching.{name}")
    raise AttributeError(f"module 'patching' has no attribute {name!r}")

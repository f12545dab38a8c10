"""Component attribution (COAR): what every component adds, estimated from random ablations, and edits from it.

Names load on first use, so that listing methods does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.coar.attribution import Attribution
    from circuits.coar.edit import Edit
    from circuits.coar.estimate import attribute, scores
    from circuits.coar.estimators import fit
    from circuits.coar.evaluation import evaluate, learning_curve
    from circuits.coar.graph import to_networkx
    from circuits.coar.masks import MaskDesign
    from circuits.coar.pairs import Interactions, interactions
    from circuits.coar.ranking import choose, rank
    from circuits.coar.sampling import Sampling, Shard, merge, sample, shard

_HOMES = {
    "Attribution": "attribution",
    "Edit": "edit",
    "Interactions": "pairs",
    "MaskDesign": "masks",
    "Sampling": "sampling",
    "Shard": "sampling",
    "attribute": "estimate",
    "choose": "ranking",
    "evaluate": "evaluation",
    "fit": "estimators",
    "to_networkx": "graph",
    "interactions": "pairs",
    "learning_curve": "evaluation",
    "merge": "sampling",
    "rank": "ranking",
    "sample": "sampling",
    "scores": "estimate",
    "shard": "sampling",
}

__all__ = [
    "Attribution",
    "Edit",
    "Interactions",
    "MaskDesign",
    "Sampling",
    "Shard",
    "attribute",
    "choose",
    "evaluate",
    "fit",
    "interactions",
    "learning_curve",
    "merge",
    "rank",
    "sample",
    "scores",
    "shard",
    "to_networkx",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"circuits.coar.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'circuits.coar' has no attribute {name!r}")

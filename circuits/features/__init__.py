"""Features: sparse dictionaries of a model's activations, their training, and circuits over them.

Names load on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.features import (
        absorption,
        activations,
        agreement_toy,
        concept_erasure,
        edge_effects,
        examples,
        formats,
        generation,
        loss_recovered,
        metrics,
        node_effects,
        page,
        plots,
        probing,
        shift,
        shift_selection,
        shipped,
        steering,
        sweep,
        toys,
        training,
    )
    from circuits.features.dictionary import Dictionary, create
    from circuits.features.examples import collect
    from circuits.features.feature_circuits import search
    from circuits.features.feature_faithfulness import faithfulness, faithfulness_curve
    from circuits.features.feature_run import FeatureRun
    from circuits.features.shipped import load
    from circuits.features.steering import Steered
    from circuits.features.training import train

_HOMES = {
    "FeatureRun": "circuits.features.feature_run",
    "Dictionary": "circuits.features.dictionary",
    "Steered": "circuits.features.steering",
    "collect": "circuits.features.examples",
    "create": "circuits.features.dictionary",
    "faithfulness": "circuits.features.feature_faithfulness",
    "faithfulness_curve": "circuits.features.feature_faithfulness",
    "load": "circuits.features.shipped",
    "search": "circuits.features.feature_circuits",
    "train": "circuits.features.training",
}

_MODULES = (
    *("absorption", "activations", "agreement_toy", "concept_erasure", "edge_effects", "examples", "formats"),
    *(
        "generation",
        "loss_recovered",
        "metrics",
        "node_effects",
        "page",
        "plots",
        "probing",
        "shift",
        "shift_selection",
    ),
    *("shipped", "steering", "sweep", "toys", "training"),
)

__all__ = [
    "Dictionary",
    "FeatureRun",
    "Steered",
    "absorption",
    "activations",
    "agreement_toy",
    "collect",
    "concept_erasure",
    "create",
    "edge_effects",
    "examples",
    "faithfulness",
    "faithfulness_curve",
    "formats",
    "generation",
    "load",
    "loss_recovered",
    "metrics",
    "node_effects",
    "page",
    "plots",
    "probing",
    "search",
    "shift",
    "shift_selection",
    "shipped",
    "steering",
    "sweep",
    "toys",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"circuits.features.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

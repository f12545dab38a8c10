"""Features: sparse dictionaries of a model's activations, their training, and circuits over them.

Names load on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.features.dictionary import Dictionary, create
    from circuits.features.shipped import load
    from circuits.features.training import train

__all__ = ["Dictionary", "create", "load", "train"]

_HOMES = {
    "Dictionary": "circuits.features.dictionary",
    "create": "circuits.features.dictionary",
    "load": "circuits.features.shipped",
    "train": "circuits.features.training",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

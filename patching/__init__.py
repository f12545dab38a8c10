"""How to intervene on a model: loading, tasks, ablations, the masked and the patched run, and scores.

Names load on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patching import (
        ablations,
        activation,
        atp,
        atp_star,
        ceap,
        compiled,
        eap_gp,
        eap_ig,
        exact,
        magnitude,
        metrics,
        optimal,
        path,
        random_scores,
        relp,
        toy,
        verification,
    )
    from patching.activation import SiteRun, sweep
    from patching.component_run import ComponentRun
    from patching.effects import Effects
    from patching.lens import LensModel
    from patching.masked import MaskedRun
    from patching.scores import Scores
    from patching.sites import Site
    from patching.task import Task

__all__ = [
    "ComponentRun",
    "Effects",
    "LensModel",
    "MaskedRun",
    "Scores",
    "Site",
    "SiteRun",
    "Task",
    "ablations",
    "activation",
    "atp",
    "atp_star",
    "ceap",
    "compiled",
    "eap_gp",
    "eap_ig",
    "exact",
    "magnitude",
    "metrics",
    "optimal",
    "path",
    "random_scores",
    "relp",
    "sweep",
    "toy",
    "verification",
]

_HOMES = {
    "ComponentRun": "patching.component_run",
    "Effects": "patching.effects",
    "LensModel": "patching.lens",
    "MaskedRun": "patching.masked",
    "Scores": "patching.scores",
    "Site": "patching.sites",
    "SiteRun": "patching.activation",
    "sweep": "patching.activation",
    "Task": "patching.task",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"patching.{name}")
    raise AttributeError(f"module 'patching' has no attribute {name!r}")

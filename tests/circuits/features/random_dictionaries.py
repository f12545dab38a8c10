"""Dictionaries with random weights, of every architecture, for the sites of a model."""

from __future__ import annotations

import torch

from circuits.features.dictionary import Dictionary, create
from patching.lens import LensModel

OPTIONS = {
    "relu": {}, "topk": {"k": 6}, "batchtopk": {"k": 6}, "matryoshka": {"k": 6}, "gated": {},
    "jumprelu": {"threshold": 0.3}, "tied": {}, "identity": {},
}  # fmt: skip


def sites(model: LensModel) -> list[str]:
    """Every site that can have a dictionary, in the order in which the model computes them."""
    found = ["resid_pre0"]
    for layer, block in enumerate(model.blocks):
        found += [f"attn_out{layer}", *([f"mlp_out{layer}"] if block.mlp is not None else []), f"resid_post{layer}"]
    return found


def make(
    architecture: str, site: str, *, width: int, features: int = 48, seed: int = 0, **options: object
) -> Dictionary:
    """A dictionary whose weights and biases are random, so that some features are on and an error is left."""
    count = width if architecture == "identity" else features
    one = create(
        architecture, d_in=width, n_features=count, site=site, dtype=torch.float64, **(OPTIONS[architecture] | options)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in (*one.named_parameters(), *one.named_buffers()):
            if name not in ("threshold", "_like"):
                scale = width**-0.5 if weight.ndim > 1 else 0.1
                weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return one


def everywhere(
    model: LensModel, architecture: str = "relu", *, only: list[str] | None = None, seed: int = 0, **options: object
) -> list[Dictionary]:
    """One at every site, or at some."""
    chosen = sites(model) if only is None else only
    return [
        make(architecture, site, width=model.d_model, seed=seed + number, **options)
        for number, site in enumerate(chosen)
    ]

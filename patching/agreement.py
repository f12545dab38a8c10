"""How well one list of effects predicts another."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

MISSED = 0.1
"""An entry is missed if its importance is below this share of the true one."""


def agreement(
    values: Float[Tensor, " unit"],
    true_values: Float[Tensor, " unit"],
    importance: Float[Tensor, " unit"],
    true_importance: Float[Tensor, " unit"],
    *,
    k: int,
    persistence: float = 0.9,
) -> dict[str, float]:
    """Pearson correlation of values; of importances Spearman correlation and how the top ones fare.

    ``recall@k`` is the share of the true top k among the estimated top k, ``rank-biased overlap`` that of the whole
    rankings, ``false negatives@k`` how many of the true top k have less than a tenth of their importance here.

    Args:
        values: estimated effects.
        true_values: what they should be.
        importance: what the estimate ranks by.
        true_importance: what the truth ranks by.
        k: how many count as the top; cut to what there is.
        persistence: of `rank_biased_overlap`.

    Example:
        >>> x = torch.tensor([3.0, -2.0, 1.0])
        >>> agreement(x, x, x.abs(), x.abs(), k=2)["recall@2"]
        1.0
    """
    k = min(k, len(importance))
    order, target = (x.argsort(descending=True, stable=True).tolist() for x in (importance, true_importance))
    missed = sum(float(importance[i]) < MISSED * float(true_importance[i]) for i in target[:k])
    return {
        "pearson": correlation(values, true_values),
        "spearman": correlation(ranks(importance), ranks(true_importance)),
        f"recall@{k}": len(set(order[:k]) & set(target[:k])) / k,
        "rank-biased overlap": rank_biased_overlap(order, target, persistence),
        f"false negatives@{k}": float(missed),
    }


def rank_biased_overlap(a: list[int], b: list[int], persistence: float = 0.9) -> float:
    """``(1 - p) Σ_d p^(d-1) |a[:d] ∩ b[:d]| / d``, the last agreement extended for ever (Webber et al. 2010, eq. 32).

    1 for equal rankings, near 0 for disjoint tops.

    Example:
        >>> rank_biased_overlap([0, 1, 2], [0, 1, 2])
        1.0
    """
    seen_a: set[int] = set()
    seen_b: set[int] = set()
    total, weight, agreement = 0.0, 1.0, 0.0
    for depth, (x, y) in enumerate(zip(a, b, strict=True), start=1):
        seen_a.add(x)
        seen_b.add(y)
        agreement = len(seen_a & seen_b) / depth
        total += (1 - persistence) * weight * agreement
        weight *= persistence
    return total + weight * agreement


def ranks(values: Tensor) -> Tensor:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0) - 1
    return (last - (counts - 1) / 2)[inverse].double()


def correlation(a: Float[Tensor, " unit"], b: Float[Tensor, " unit"]) -> float:
    """Pearson's; not a number where either is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else math.nan

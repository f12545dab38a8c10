"""The Hilbert-Schmidt independence criterion, with its permutation test."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def hsic(left: Float[Tensor, " example"], right: Float[Tensor, " example"]) -> float:
    """How strongly two variables depend on each other, in whatever way: 0 in the limit iff they are independent.

    ``trace(K H L H) / (n - 1)**2`` with Gaussian kernels K and L, as wide as the median distance of two examples, and
    H the centring matrix.

    Source: Gretton et al., A kernel statistical test of independence, 2007 (the biased estimate).

    Example:
        >>> left, right = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> round(hsic(left, right), 12), hsic(left, left) > 0.01
        (0.0, True)
    """
    return float((_centred(_kernel(left)) * _kernel(right)).sum()) / (len(left) - 1) ** 2


def p_value(
    left: Float[Tensor, " example"], right: Float[Tensor, " example"], *, permutations: int, seed: int
) -> float:
    """The share of orders of one variable in which `hsic` is at least as large as observed.

    ``(1 + number of permutations at least as large) / (1 + their number)``: the observed order is one of them, so the
    value is never 0 and, under independence, below alpha with probability of at most alpha.

    Cost: ``permutations`` times the square of the examples.

    Example:
        >>> line = torch.arange(20.0)
        >>> p_value(line, line**2, permutations=99, seed=0)
        0.01
    """
    first, second = _centred(_kernel(left)), _kernel(right)
    observed = float((first * second).sum())
    generator = torch.Generator().manual_seed(seed)
    exceeding = 0
    for _ in range(permutations):
        order = torch.randperm(len(left), generator=generator)
        exceeding += float((first * second[order][:, order]).sum()) >= observed * (1 - 1e-12)
    return (1 + exceeding) / (1 + permutations)


def _kernel(values: Float[Tensor, " example"]) -> Float[Tensor, "example example"]:
    """Gaussian, as wide as the median distance of two examples (or the mean, where more than half agree)."""
    values = values.double()
    distances = (values[:, None] - values).abs()
    pairs = distances[torch.triu_indices(len(values), len(values), offset=1).unbind()]
    width = pairs.median() if float(pairs.median()) > 0 else pairs.mean()
    return torch.exp(-(distances**2) / (2 * width**2))


def _centred(kernel: Float[Tensor, "example example"]) -> Float[Tensor, "example example"]:
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()

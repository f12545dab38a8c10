"""Each unit by itself: the mean output where it is kept less the mean where it is ablated, by the known design."""

from __future__ import annotations

import torch

from circuits.coar.masks import MaskDesign
from circuits.coar.moments import Moments, Solution


def difference_of_means(sums: Moments, *, design: MaskDesign) -> Solution:
    """Weights by the masks' known covariance instead of its estimate: no inverse, one pass, O(samples * units).

    ``w_i = sum_samples (mask_i - keep) (output - mean output) / (samples * v)``, with ``v = keep (1 - keep)``, the
    variance of a mask; for subsets, whose units are negatively correlated, ``v = keep (1 - keep) n / (n - 1)``, and
    weights sum to 0. Unbiased up to order 1 / samples, but every other unit's effect adds to the noise, which least
    squares takes out: take it where nothing else fits.

    Standard errors are those of a mean of independent terms, ``std(term) / sqrt(samples)``.

    Args:
        sums: with ``square_cross``.
        design: whose ``keep`` is used.
    """
    keep, n_units = design.kept_share, design.n_units
    variance = keep * (1 - keep)
    if design.kind == "subset":
        variance *= n_units / (n_units - 1)
    system = sums.system()
    observed = system.rows * system.groups
    weights = system.cross / (observed * variance)
    if design.kind == "subset":
        weights = weights - weights.mean(1, keepdim=True)
    details = {"keep": keep, "mask_variance": variance}
    return system.solution(weights, standard_error=_standard_error(sums, keep, variance), details=details)


def _standard_error(sums: Moments, keep: float, variance: float) -> torch.Tensor | None:
    """Of the mean of ``(mask - keep) * centred output / variance``; None for a single sample or pooled prompts."""
    if sums.square_cross is None or sums.rows < 2 or sums.mask_sum.shape[1] > 1:
        return None
    mean = (sums.output_sum / sums.rows)[:, 0][:, None]
    kept = sums.mask_sum[:, 0, :, None]
    squared = sums.square_cross - 2 * mean * sums.cross + mean.square() * kept  # sum of mask * centred**2
    first = sums.cross - mean * kept  # sum of mask * centred; the sum of (mask - keep) * centred, too
    total = (sums.output_square - sums.output_sum.square() / sums.rows)[:, 0][:, None]
    squares = (1 - 2 * keep) * squared + keep**2 * total
    spread = (squares - first.square() / sums.rows).clamp_min(0.0) / (sums.rows - 1)
    return (spread / sums.rows).sqrt() / variance

"""Least squares and ridge regression from streamed sums, by Cholesky factors of the centred products of masks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.coar.moments import Solution, System
from patching.errors import InvalidOption

WORST_CONDITION = 1e10
"""Beyond this condition number, rounding reaches the weights."""

EXACT_SPECTRUM = 1000
"""Up to so many units the condition number is taken from all eigenvalues; beyond, from power iterations."""

NAMED = 8
"""How many units an error names."""


class Undetermined(InvalidOption):
    """Least squares has more than one solution, or one that rounding would make."""


def least_squares(system: System, *, fixed_size: bool = False) -> Solution:
    """Weights that minimise the sum of squared errors, with an intercept and no penalty.

    ``gram @ weights = cross`` by Cholesky. Standard errors are those of errors that are independent and of equal
    variance: ``sqrt(residual / (samples - intercepts - rank) * diag(gram^-1))``. What a linear model misses of a
    network is interactions, whose variance is not equal: `circuits.coar.standard_errors` says how much too small these
    are then, and gives errors that hold.

    Args:
        system: the normal equations.
        fixed_size: every mask keeps equally many units, so that weights are identified up to a common shift; that with
            the smallest norm is returned, whose weights sum to 0.

    Returns:
        The weights, their standard errors (None without a degree of freedom left) and the condition number.

    Raises:
        Undetermined: too few samples, a unit that never varied, masks that are collinear.
    """
    rank = system.n_units - fixed_size
    check_determined(system, fixed_size=fixed_size)
    assert system.gram is not None
    gram, shift = system.gram, 0.0
    if fixed_size:
        shift = float(system.spread.mean())
        gram = gram + shift / system.n_units
    factor, failed = torch.linalg.cholesky_ex(gram)
    condition = math.inf if bool(failed.any()) else condition_number(gram, factor)
    if condition > WORST_CONDITION:
        raise Undetermined(
            f"expected masks of full rank; {system.rows:,} samples of {system.n_units:,} units have condition number "
            f"{condition:.1e}. Take more samples, or estimator='ridge'."
        )
    weights = torch.cholesky_solve(system.cross, factor)
    residual = system.residual(weights)
    error = None
    if system.freedom > rank:
        diagonal = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
        if fixed_size:
            diagonal = diagonal - 1 / (shift * system.n_units)
        error = (residual[:, None] / (system.freedom - rank) * diagonal.clamp_min(0.0)[:, :, None]).sqrt()
    details = {"condition_number": condition, "rank": rank}
    return system.solution(weights, residual=residual, standard_error=error, details=details)


def check_determined(system: System, *, fixed_size: bool) -> None:
    """Refuse least squares that other weights would satisfy as well.

    Raises:
        Undetermined: fewer samples than weights, or a unit that never varied.
    """
    rank = system.n_units - fixed_size
    if system.freedom < rank:
        raise Undetermined(
            f"expected at least {-(-rank // system.groups) + 1:,} samples for least squares on {system.n_units:,} "
            f"units and an intercept; got {system.rows:,}. Take more samples, or a ridge, which fits with fewer "
            "(estimator='ridge')."
        )
    still = system.still()
    if still:
        names = ", ".join(map(str, still[:NAMED])) + (", …" if len(still) > NAMED else "")
        raise Undetermined(
            f"expected every unit to be ablated in some samples and kept in others; units {names} ({len(still):,} in "
            f"all) are not, in these {system.rows:,} samples. Take more samples, a keep nearer 0.5, or a ridge "
            "(estimator='ridge')."
        )


def ridge(system: System, *, strength: float) -> Solution:
    """Weights that minimise ``sum of squared errors + strength * sum of squared weights``; the intercept is free.

    Defined for any number of samples. A unit that never varied gets 0. No standard errors: the estimate is biased, and
    its bias is not known.

    Args:
        system: the normal equations.
        strength: more than 0, on the scale of the sum over samples.
    """
    assert system.gram is not None
    gram = system.gram.clone()
    gram.diagonal(dim1=-2, dim2=-1).add_(strength)
    factor = torch.linalg.cholesky(gram)
    weights = torch.cholesky_solve(system.cross, factor)
    details = {"condition_number": condition_number(gram, factor), "ridge": strength}
    return system.solution(weights, residual=system.residual(weights), details=details)


def condition_number(gram: Float[Tensor, "fit unit unit"], factor: Float[Tensor, "fit unit unit"]) -> float:
    """Largest over smallest eigenvalue, of the worst fit; within a few hundredths beyond `EXACT_SPECTRUM` units."""
    if gram.shape[-1] <= EXACT_SPECTRUM:
        values = torch.linalg.eigvalsh(gram)
        smallest = values[:, 0]
        return math.inf if bool((smallest <= 0).any()) else float((values[:, -1] / smallest).max())
    start = torch.randn(
        len(gram), gram.shape[-1], 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )  # fixed, so that the figure is
    largest, smallest_inverse = start, start
    for _ in range(60):
        largest = torch.nn.functional.normalize(gram @ largest, dim=1)
        smallest_inverse = torch.nn.functional.normalize(_inverse_times(factor, smallest_inverse), dim=1)
    top = (gram @ largest).norm(dim=(1, 2))
    bottom_inverse = _inverse_times(factor, smallest_inverse).norm(dim=(1, 2))
    return float((top * bottom_inverse).max())


def _inverse_times(factor: Float[Tensor, "fit unit unit"], vector: Float[Tensor, "fit unit 1"]) -> Tensor:
    """By two triangular solves, which for a single vector are ten times as fast as `torch.cholesky_solve`."""
    half = torch.linalg.solve_triangular(factor, vector, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


# --- the strength of a ridge ------------------------------------------------------------------------------------------


def strengths(system: System) -> list[float]:
    """Ridge strengths to compare: four decades either way of the units' mean spread over samples, rising, 8 in each."""
    scale = max(float(system.spread.mean()), 1.0 / system.rows)
    return [scale * 10 ** (step / 8) for step in range(-32, 33)]


def cross_validated(system: System) -> tuple[float, str]:
    """The strength with the smallest generalised cross-validation score, one for all prompts.

    ``GCV = mean over prompts of (residual / total) / (1 - (intercepts + sum_i l_i / (l_i + strength)) / samples)**2``,
    with l the eigenvalues of the gram. Cost: one eigendecomposition of each fit.

    Returns:
        The strength and how it was chosen, in words.

    Source: Golub, Heath and Wahba 1979.
    """
    assert system.gram is not None
    values, vectors = torch.linalg.eigh(system.gram)
    values = values.clamp_min(0.0)
    turned = (vectors.mT @ system.cross).square()
    observed = system.rows * system.groups
    varies = system.total > 0
    candidates = strengths(system)
    scores = []
    for strength in candidates:
        shrunk = values + strength
        explained = (turned * ((values + 2 * strength) / shrunk.square())[:, :, None]).sum(1)
        share = ((system.total - explained).clamp_min(0.0) / system.total)[varies]
        freedom = 1 - (system.groups + (values / shrunk).sum(1)) / observed
        scores.append(float((share / freedom.square()[:, None].expand_as(varies)[varies]).mean()))
    return lowest(candidates, scores), "generalised cross-validation"


def lowest(candidates: list[float], scores: list[float]) -> float:
    """The candidate of the lowest score; without a score (constant outputs) the one in the middle."""
    finite = [(score, number) for number, score in enumerate(scores) if math.isfinite(score)]
    return candidates[min(finite)[1] if finite else len(candidates) // 2]

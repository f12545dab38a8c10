"""Lasso and elastic net from streamed sums, by scikit-learn's coordinate descent on a square root of the products."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.coar.moments import Moments, Solution, System
from patching.errors import InvalidOption

GRID = 30
"""Penalties to compare, falling over three decades from the smallest that leaves no weight."""

ITERATIONS = 20_000
TOLERANCE = 1e-6
SMALLEST_EIGENVALUE = 1e-10
"""Of the largest: below it a direction does not vary in the samples."""


def sparse(
    system: System, *, lasso: float | None, ridge: float | None, chooser: tuple[Moments, Moments] | None
) -> Solution:
    """Weights that minimise ``squared errors / (2 samples) + lasso |weights|_1 + ridge / (2 samples) |weights|^2``.

    This is scikit-learn's elastic net with ``alpha = lasso + ridge / samples`` and ``l1_ratio = lasso / alpha``. With
    gram = R^T R, coordinate descent runs on R (units x units) in place of the masks (samples x units), with the same
    minimiser; so samples are streamed, and each prompt costs no more than its units allow. The intercept is free.

    Args:
        system: the normal equations.
        lasso: more than 0; None to choose it for every prompt by the error on samples held out.
        ridge: 0 for the lasso; None for as much of a ridge as of a lasso (``ridge = lasso * samples``, l1_ratio 0.5).
        chooser: sums of the samples to fit on and of those to judge by, if ``lasso`` is None.

    Raises:
        InvalidOption: scikit-learn is not installed.
    """
    require_scikit_learn()
    shape = system.cross.shape
    weights = torch.zeros(shape, dtype=torch.float64)
    chosen: list[float] = []
    converged = True
    grids = None if chooser is None else _chosen(*chooser, ridge=ridge)
    for fit in range(shape[0]):
        root, inverse_root = _square_root(system, fit)
        for column in range(shape[2]):
            strength = lasso if grids is None else grids[fit][column]
            assert strength is not None
            chosen.append(strength)
            if not bool(system.cross[fit, :, column].any()):
                continue  # constant outputs
            target = inverse_root.T @ system.cross[fit, :, column]
            found, good = _path(root, target, system, [strength], ridge=ridge)
            weights[fit, :, column] = found[0]
            converged = converged and good
    details: dict[str, Any] = {
        "lasso": chosen[0] if grids is None else chosen,
        "ridge": "lasso * samples" if ridge is None else ridge,
        "nonzero": (weights != 0).sum(1).flatten().tolist(),
        "converged": converged,
    }
    if chooser is not None:
        details["lasso_chosen_by"] = f"the error on {chooser[1].rows:,} samples held out, for every prompt"
    remark = "" if converged else "Coordinate descent did not converge for some prompts: take a larger penalty."
    return system.solution(weights, residual=system.residual(weights), details=details, remark=remark)


def _chosen(train: Moments, judged: Moments, *, ridge: float | None) -> list[list[float]]:
    """For every fit and column the penalty that errs least on samples held out."""
    system, other = train.system(), judged.system()
    found: list[list[float]] = []
    for fit in range(system.cross.shape[0]):
        root, inverse_root = _square_root(system, fit)
        found.append([])
        for column in range(system.cross.shape[2]):
            cross = system.cross[fit, :, column]
            largest = max(float(cross.abs().max()) / (system.rows * system.groups), 1e-300)
            grid = [largest * 10 ** (-3 * step / (GRID - 1)) for step in range(GRID)]
            path, _ = _path(root, inverse_root.T @ cross, system, grid, ridge=ridge)
            candidates = path.T[None]  # [fit, unit, penalty]
            one = _only(system, fit, column, GRID)
            intercepts = one.intercepts(candidates)
            errors = _only(other, fit, column, GRID).error_elsewhere(candidates, intercepts)
            found[-1].append(grid[int(errors[0].argmin())])
    return found


def _only(system: System, fit: int, column: int, copies: int) -> System:
    """One prompt's equations, repeated for so many candidates."""

    def repeated(value: Tensor) -> Tensor:
        return value[fit : fit + 1, ..., column : column + 1].expand(*value[:1].shape[:-1], copies)

    assert system.gram is not None
    return System(
        rows=system.rows,
        groups=system.groups,
        gram=system.gram[fit : fit + 1],
        cross=repeated(system.cross),
        total=repeated(system.total),
        spread=system.spread[fit : fit + 1],
        mask_mean=system.mask_mean[fit : fit + 1],
        output_mean=repeated(system.output_mean),
    )


def _square_root(system: System, fit: int) -> tuple[Float[Tensor, "unit unit"], Float[Tensor, "unit unit"]]:
    """R with R^T R = gram, and the pseudo-inverse of R; directions without spread are dropped from both."""
    assert system.gram is not None
    values, vectors = torch.linalg.eigh(system.gram[fit])
    there = values > SMALLEST_EIGENVALUE * values[-1].clamp_min(1e-300)
    roots = values.clamp_min(0.0).sqrt()
    inverse = torch.where(there, 1 / roots.clamp_min(1e-300), 0.0)
    return torch.where(there, roots, 0.0)[:, None] * vectors.T, vectors * inverse


def _path(
    root: Float[Tensor, "unit unit"],
    target: Float[Tensor, " unit"],
    system: System,
    penalties: list[float],
    *,
    ridge: float | None,
) -> tuple[Float[Tensor, "penalty unit"], bool]:
    """Weights for each penalty, each started from the one before, and whether all converged."""
    from sklearn.exceptions import ConvergenceWarning  # pyright: ignore[reportMissingImports]
    from sklearn.linear_model import ElasticNet  # pyright: ignore[reportMissingImports]

    observed, n_units = system.rows * system.groups, len(target)
    share = observed / n_units  # scikit-learn divides the squared errors by the rows it sees
    columns = np.asfortranarray(root.numpy())  # as coordinate descent reads it
    model: Any = None
    found, good = [], True
    for lasso in penalties:
        second = lasso if ridge is None else ridge / observed
        options = {"alpha": (lasso + second) * share, "l1_ratio": lasso / (lasso + second)}
        if model is None:
            model = ElasticNet(
                fit_intercept=False, copy_X=False, warm_start=True, max_iter=ITERATIONS, tol=TOLERANCE, **options
            )
        model.set_params(**options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(columns, target.numpy())
        good = good and not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        found.append(torch.from_numpy(model.coef_.copy()))
    return torch.stack(found), good


def require_scikit_learn() -> None:
    """Check that scikit-learn is here.

    Raises:
        InvalidOption: It is not; says which extra brings it.
    """
    try:
        import sklearn  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InvalidOption(
            "expected scikit-learn for the lasso and the elastic net; it is not installed. "
            "Run `pip install -e '.[regression]'`, or take estimator='ridge'."
        ) from error

"""Least squares and ridge regression without the products of masks: conjugate gradients on masks made again each time.

One iteration multiplies the centred masks by a direction and their transpose by the result, in one pass over the
samples, block by block from the seeds. So 36,864 neurons need four vectors of their length for each prompt, where their
products would need 10.9 GB. Random masks are well conditioned: with t = units / samples, the condition number tends to
``((1 + sqrt(t)) / (1 - sqrt(t)))**2``, and the error falls by ``(sqrt(condition) - 1) / (sqrt(condition) + 1)`` in each
iteration; a ridge lowers both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from circuits.coar.moments import Numbers, Samples, Solution, System
from circuits.coar.normal_equations import lowest
from patching.progress import Progress, silent

TOLERANCE = 1e-6
ITERATIONS = 1000
SELECTION_TOLERANCE = 1e-2
"""How far the fits go that only choose the ridge."""

CANDIDATES = tuple(10.0**power for power in (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0))
"""Ridge strengths to compare, on the scale of a unit's own spread."""

Weights = Float[Tensor, "fit unit column"]
Columns = Float[Tensor, "fit column"]


class Products:
    """``gram @ direction`` for centred masks, by one pass over the samples.

    Arithmetic is float64: on blocks that stay near the processor it takes a tenth longer than float32. Masks are made
    from their seeds in every pass, unless they fit, eight to a byte, into the memory that is left: the first pass then
    keeps them, which changes no bit of the result.
    """

    def __init__(self, samples: Samples, system: System, *, spare: int = 0) -> None:
        self.samples, self.system = samples, system
        self._numbers = Numbers()
        size = len(samples.rows) * samples.design.bytes_per_row // 8
        self._kept: list[tuple[np.ndarray[Any, Any], torch.Size]] | None = [] if size <= spare else None
        self._complete = False

    def __call__(self, direction: Weights) -> Weights:
        """``sum over groups and samples of (mask - mean) ((mask - mean) . direction)``."""
        centre = self.system.mask_mean @ direction  # [fit, group, column]
        product = torch.zeros_like(direction)
        for masks in self._masks():
            block = self._numbers(masks)
            along = block @ direction[:, None] - centre[:, :, None]
            fits, groups, rows, columns = along.shape
            flat = block.view(fits, groups * rows, -1)
            product.baddbmm_(flat.mT, along.view(fits, groups * rows, columns))
        return product  # the mean of the masks times the sum of `along` is 0 in every group

    def _masks(self) -> Iterator[Shaped[Tensor, "fit group row unit"]]:
        """Blocks of masks, from their seeds or as kept."""
        if self._kept is not None and self._complete:
            for packed, shape in self._kept:
                yield torch.from_numpy(np.unpackbits(packed, count=shape.numel())).view(shape)
            return
        for masks, _ in self.samples.blocks():
            if self._kept is not None:
                self._kept.append((np.packbits(masks.numpy()), masks.shape))
            yield masks
        self._complete = True


def conjugate_gradients(
    samples: Samples,
    system: System,
    *,
    strength: float,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
    spare: int = 0,
    progress: Progress = silent,
) -> Solution:
    """Weights of least squares (``strength`` 0) or of a ridge, iterated until the equations hold.

    Every prompt iterates on its own until ``|cross - (gram + strength) weights| <= tolerance |cross|``. From weights of
    0, and with fewer samples than units, the result without a ridge would be the solution of the smallest norm.

    Args:
        samples: what to fit.
        system: their sums.
        strength: of the ridge, 0 for none.
        tolerance: relative residual of the normal equations.
        iterations: at most.
        spare: bytes in which masks may be kept from pass to pass.
        progress: called with iterations done and at most to do.

    Returns:
        The weights, and in ``details`` the iterations, the relative residual reached and whether all prompts converged.
    """
    multiply = Products(samples, system, spare=spare)
    weights = torch.zeros_like(system.cross)
    left = system.cross.clone()
    direction = left.clone()
    size = left.square().sum(1)
    goal = size * tolerance**2
    done = 0
    while done < iterations and bool((size > goal).any()):
        active = size > goal
        product = multiply(direction).add_(direction, alpha=strength)
        curvature = (direction * product).sum(1)
        step = torch.where(active, size / curvature, 0.0)
        weights.add_(step[:, None] * direction)
        left.sub_(step[:, None] * product)
        new = left.square().sum(1)
        turn = torch.where(active, new / size, 0.0)
        direction.mul_(turn[:, None]).add_(left)
        size = torch.where(active, new, size)
        done += 1
        progress(done, iterations)
    relative = (size / system.cross.square().sum(1)).nan_to_num(0.0).sqrt()
    converged = bool((size <= goal).all())
    details: dict[str, Any] = {
        "iterations": done,
        "tolerance": tolerance,
        "relative_residual": float(relative.max()),
        "converged": converged,
    }
    remark = "" if converged else f"Stopped after {done} iterations at relative residual {float(relative.max()):.1g}."
    if strength:
        details["ridge"] = strength
    quadratic = (weights * (system.cross - left - strength * weights)).sum(1)
    residual = (system.total - 2 * (weights * system.cross).sum(1) + quadratic).clamp_min(0.0)
    return system.solution(weights, residual=residual, details=details, remark=remark)


# --- the strength of a ridge ------------------------------------------------------------------------------------------


def held_out(train: Samples, judged: Samples, *, spare: int = 0, progress: Progress = silent) -> tuple[float, str]:
    """The strength whose fit on some samples errs least on others, all strengths in one run of conjugate gradients.

    Returns:
        The strength, scaled to all samples together, and how it was chosen.
    """
    system = train.moments(gram=False).system()
    scale = max(float(system.spread.mean()), 1.0 / system.rows)
    candidates = [scale * share for share in CANDIDATES]
    fits = shifted(Products(train, system, spare=spare), system.cross, strengths=candidates, progress=progress)
    errors = [torch.zeros_like(system.total) for _ in candidates]
    intercepts = [system.intercepts(weights) for weights in fits]
    numbers = Numbers()
    for masks, outputs in judged.blocks():
        block = numbers(masks)
        for error, weights, intercept in zip(errors, fits, intercepts, strict=True):
            error += (outputs - block @ weights[:, None] - intercept[:, :, None]).square().sum((1, 2))
    varies = system.total > 0
    scores = [float((error / system.total)[varies].mean()) for error in errors]
    share = (len(train.rows) + len(judged.rows)) / len(train.rows)
    return lowest(candidates, scores) * share, f"the error on {len(judged.rows):,} samples held out"


def shifted(
    multiply: Products,
    cross: Weights,
    *,
    strengths: list[float],
    tolerance: float = SELECTION_TOLERANCE,
    iterations: int = ITERATIONS,
    progress: Progress = silent,
) -> list[Weights]:
    """Solutions of ``(gram + strength) weights = cross`` for many strengths, in the products that the smallest needs.

    The equations differ by a multiple of the identity, so their residuals are parallel: that of a shift is ``ratio``
    times that of the smallest, and each shift's steps follow from those of the smallest.

    Args:
        multiply: the product with the gram.
        cross: right-hand sides.
        strengths: rising, the first more than 0.
        tolerance: relative residual of the smallest; the others have converged by then.
        iterations: at most.
        progress: called with iterations done and at most to do.

    Source: Jegerlehner, hep-lat/9612014.
    """
    base, shifts = strengths[0], [strength - strengths[0] for strength in strengths]
    weights = [torch.zeros_like(cross) for _ in shifts]
    directions = [cross.clone() for _ in shifts]
    left = cross.clone()
    size = left.square().sum(1)
    goal = size * tolerance**2
    ratio = [torch.ones_like(size) for _ in shifts]
    ratio_before = [torch.ones_like(size) for _ in shifts]
    step_before, turn = torch.ones_like(size), torch.zeros_like(size)
    done = 0
    while done < iterations and bool((size > goal).any()):
        product = multiply(directions[0]).add_(directions[0], alpha=base)
        step = (size / (directions[0] * product).sum(1)).nan_to_num(0.0)
        left = left - step[:, None] * product
        new = left.square().sum(1)
        turn_next = (new / size).nan_to_num(0.0)
        for number, shift in enumerate(shifts):
            now, before = ratio[number], ratio_before[number]
            below = step_before * before * (1 + step * shift) + step * turn * (before - now)
            after = (now * before * step_before / below).nan_to_num(0.0)
            share = (after / now).nan_to_num(0.0)
            weights[number] += (step * share)[:, None] * directions[number]
            directions[number] = after[:, None] * left + (turn_next * share.square())[:, None] * directions[number]
            ratio[number], ratio_before[number] = after, now
        step_before, turn, size = step, turn_next, new
        done += 1
        progress(done, iterations)
    return weights

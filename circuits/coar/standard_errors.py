"""Standard errors that hold where errors are not of equal variance, as those of interactions are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.coar.choice import DEFAULT_BYTES, check_memory
from circuits.coar.fitted import Fit
from circuits.coar.masks import MaskDesign
from circuits.coar.moments import Numbers
from circuits.coar.normal_equations import check_determined
from circuits.coar.requests import Request, samples_of
from patching.errors import InvalidOption
from patching.progress import Progress, silent


def robust_standard_error(
    found: Fit,
    design: MaskDesign,
    outputs: Float[Tensor, "sample example"],
    *,
    rows: Sequence[int] | Int[Tensor, " row"] | Bool[Tensor, " sample"] | None = None,
    memory: int = DEFAULT_BYTES,
    progress: Progress = silent,
) -> Float[Tensor, "example unit"]:
    """Standard errors of least squares whatever the variance of each sample's error (the sandwich, HC2).

    With x the centred masks, r the errors and h = 1 / samples + x gram^-1 x^T the leverages::

        variance of w_i = sum over samples of (gram^-1 x)_i^2 r^2 / (1 - h)

    A network under ablations has no noise: what a linear model misses are interactions, and those of a unit are larger
    where it is ablated, the rarer state. `Fit.standard_error`, which takes all errors to be of equal variance, is then
    too small: at keep 0.9 by 1.3 for 20 units that all interact alike, and by up to 2.8 for a unit in every interaction
    (the square root of the kurtosis of its mask). At keep 0.5 both agree.

    Cost: two passes over the masks, of ``O(samples * units**2)`` each.

    Args:
        found: by ``normal_equations``, from these outputs.
        design: of the masks.
        outputs: ``[sample, example]``.
        rows: those of the fit.
        memory: bytes, as of `fit`.
        progress: called with samples done and in all, in each pass.

    Returns:
        ``[example, unit]``.

    Raises:
        InvalidOption: another estimator, pooled prompts, or as of `fit`.

    Source: White 1980; MacKinnon and White 1985 (HC2).
    """
    if found.estimator != "normal_equations" or found.details.get("pooled"):
        raise InvalidOption(
            "expected a fit by normal_equations, each prompt by itself; got one by "
            f"{found.estimator}{' with pooled prompts' if found.details.get('pooled') else ''}."
        )
    samples = samples_of(design, outputs, pooled=False, rows=rows)
    request = Request(samples)
    check_memory("normal_equations", request, memory)
    system = samples.moments(progress=progress).system()
    check_determined(system, fixed_size=request.fixed_size)
    assert system.gram is not None
    shift = float(system.spread.mean()) if request.fixed_size else 0.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system.gram + shift / design.n_units))
    weights = found.weights[:, :, None] if design.prompts is not None else found.weights.T[None]
    intercepts = system.intercepts(weights)
    total, numbers, done = torch.zeros_like(weights), Numbers(), 0
    for masks, block_outputs in samples.blocks():
        block = numbers(masks)
        errors = (block_outputs - block @ weights[:, None] - intercepts[:, :, None])[:, 0]
        centred = (block - system.mask_mean[:, :, None])[:, 0]
        turned = centred @ inverse
        leverage = 1 / system.rows + (turned * centred).sum(-1)
        if request.fixed_size:  # of the direction that all masks share, along which the inverse is arbitrary
            turned = turned - turned.mean(-1, keepdim=True)
        total += turned.square().mT @ (errors.square() / (1 - leverage).clamp_min(1e-12)[:, :, None])
        done += masks.shape[2]
        progress(done, len(samples.rows))
    return samples.per_example(total.sqrt())

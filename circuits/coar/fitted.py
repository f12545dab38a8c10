"""What a fit gives: the weights of every prompt, how they were found, and what they predict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.coar.masks import MaskDesign
from patching.errors import InvalidOption


@dataclass(frozen=True)
class Fit:
    """A linear model of the outputs under ablations: ``intercept + weights . mask``, with mask 1 = kept.

    A positive weight says that keeping the unit raises the output. Ablating unit i alone changes the output by about
    ``-weights[:, i]``, which is the effect in the sign of `Scores`.

    Attributes:
        weights: ``[example, unit]``, float64, in the output's unit.
        intercept: ``[example]``, the output with everything ablated, as far as the model is linear.
        estimator: the one that was used.
        reason: why, and what to know of the result, in plain sentences.
        standard_error: of the weights, where the estimator gives any: of ``normal_equations`` (independent errors of
            equal variance; see `robust_standard_error` for others) and of ``difference_of_means``.
        details: what else is known: samples, condition number, ridge, iterations, prompts with constant outputs
            (``constant_examples``), units that never varied (``never_varied``), ``r_squared`` on these samples, …
    """

    weights: Float[Tensor, "example unit"]
    intercept: Float[Tensor, " example"]
    estimator: str
    reason: str
    standard_error: Float[Tensor, "example unit"] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def predict(self, masks: Tensor | MaskDesign) -> Float[Tensor, "sample example"]:
        """What the model says of some masks.

        Args:
            masks: ``[sample, unit]`` for all prompts, or ``[sample, example, unit]``; or a design, whose masks are then
                made a block at a time.

        Raises:
            InvalidOption: another number of units or prompts.
        """
        if isinstance(masks, MaskDesign):
            return torch.cat([self.predict(block) for _, block in masks.blocks()])
        examples, n_units = self.weights.shape
        if masks.ndim not in (2, 3) or masks.shape[-1] != n_units or (masks.ndim == 3 and masks.shape[1] != examples):
            raise InvalidOption(
                f"expected masks [sample, {n_units}] or [sample, {examples}, {n_units}]; got {list(masks.shape)}."
            )
        if masks.ndim == 2:
            return masks.double() @ self.weights.T + self.intercept
        return torch.einsum("seu,eu->se", masks.double(), self.weights) + self.intercept

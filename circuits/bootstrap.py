"""How far figures would move with other prompts: intervals by resampling, for means and for shares of a gap.

Faithfulness and its relatives are shares: ``(value - ablated) / (clean - ablated)``, each a mean over prompts. `Scale`
holds the two ends, so that every share of a report is measured on one scale and resampled with the same prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patching.errors import InvalidOption
from patching.masked import MaskedRun

Interval = tuple[float, float]

LEVEL = 0.95
"""How often an interval should hold the true value."""

SMALLEST_GAP = 1e-6
"""A gap below this share of the clean metric (or of 1, where that is larger) is lost in rounding."""

UNSTEADY = 0.025
"""Above this share of resamples without a gap (or with one of the other sign), intervals of shares mean little."""


def resampled(count: int, *, resamples: int, generator: torch.Generator) -> Float[Tensor, "resample example"]:
    """The weight of every prompt in random samples of as many prompts, drawn with replacement; rows sum to 1."""
    rows = torch.randint(0, count, (resamples, count), generator=generator)
    ones = torch.ones(rows.shape, dtype=torch.float64)
    return torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(1, rows, ones) / count


def percentiles(values: Float[Tensor, " resample"], *, level: float = LEVEL) -> Interval | None:
    """The middle part of some values; None for fewer than two."""
    if len(values) < 2:
        return None
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    low, high = torch.quantile(values, ends).tolist()
    return low, high


@dataclass(frozen=True)
class Scale:
    """What shares are measured on: 0 with everything ablated, 1 for the whole model.

    Attributes:
        clean: metric of every prompt with nothing ablated, in float64 on the CPU.
        ablated: with everything ablated.
        weights: weight of each prompt in each resample; without rows, there are no intervals.

    Example:
        >>> ends = torch.tensor([2.0, 4.0]), torch.tensor([0.0, 2.0])
        >>> scale = Scale.between(*ends, resamples=0, generator=torch.Generator())
        >>> scale.gap, scale.share(torch.tensor([1.0, 4.0]))
        (2.0, 0.75)
    """

    clean: Float[Tensor, " example"]
    ablated: Float[Tensor, " example"]
    weights: Float[Tensor, "resample example"]

    @classmethod
    def of(cls, run: MaskedRun, *, resamples: int, generator: torch.Generator) -> Scale:
        """The scale of a run."""
        return cls.between(run.clean_metric, run.corrupt_metric, resamples=resamples, generator=generator)

    @classmethod
    def between(
        cls,
        clean: Float[Tensor, " example"],
        ablated: Float[Tensor, " example"],
        *,
        resamples: int,
        generator: torch.Generator,
    ) -> Scale:
        """The scale between two ends.

        Raises:
            InvalidOption: a negative number of resamples.
        """
        if resamples < 0:
            raise InvalidOption(f"expected counts of 0 or more; got {resamples=}.")
        count = len(clean) if len(clean) > 1 else 0
        weights = resampled(len(clean), resamples=resamples if count else 0, generator=generator)
        return cls(clean.double().cpu(), ablated.double().cpu(), weights)

    def with_ends(self, clean: Float[Tensor, " example"], ablated: Float[Tensor, " example"]) -> Scale:
        """Another metric of the same prompts, resampled alike."""
        return Scale(clean.double().cpu(), ablated.double().cpu(), self.weights)

    @property
    def smallest(self) -> float:
        """The smallest gap that can be divided by."""
        return SMALLEST_GAP * max(1.0, float(self.clean.abs().mean()))

    @property
    def gap(self) -> float | None:
        """Mean of clean minus ablated; None where it is lost in rounding."""
        gap = float((self.clean - self.ablated).mean())
        return None if abs(gap) < self.smallest else gap

    @property
    def unsteady(self) -> float:
        """The share of resamples whose gap is lost or of the other sign; if large, intervals of shares mean little."""
        gaps = self.weights @ (self.clean - self.ablated)
        if self.gap is None or not len(gaps):
            return 0.0
        return float(((gaps * (1 if self.gap > 0 else -1)) < self.smallest).double().mean())

    @property
    def doubts(self) -> tuple[str, ...]:
        """What to know about shares on this scale, in words; nothing where they can be trusted."""
        notes = []
        if self.gap is None:
            notes.append(
                f"ablating everything changes the metric by less than {self.smallest:.1g} on average, so no share is "
                "defined and there is no behaviour to find; is this the right task, model or ablation?"
            )
        if self.unsteady > UNSTEADY:
            notes.append(
                f"in {self.unsteady:.0%} of the resamples the gap between clean and ablated is lost or of the other "
                "sign: intervals of shares mean little; use more prompts."
            )
        return tuple(notes)

    def share(self, values: Float[Tensor, " example"]) -> float | None:
        """Where the mean of some values lies on the scale; not clipped, None without a gap."""
        gap = self.gap
        return None if gap is None else float((values.double().cpu() - self.ablated).mean()) / gap

    def shares(self, values: Float[Tensor, "*sample example"]) -> Float[Tensor, "*sample resample"]:
        """The same in every resample that has a gap."""
        gaps = self.weights @ (self.clean - self.ablated)
        there = gaps.abs() >= self.smallest
        return ((values.double().cpu() - self.ablated) @ self.weights[there].T) / gaps[there]

    def mean_interval(self, values: Float[Tensor, " example"]) -> Interval | None:
        """Of the mean of some values."""
        return percentiles(self.weights @ values.double().cpu())

    def share_interval(self, values: Float[Tensor, " example"]) -> Interval | None:
        """Of `share`."""
        return None if self.gap is None else percentiles(self.shares(values))

"""The sums from which every linear estimator is computed, streamed over samples so that masks are never held.

A component model is ``output = intercept + weights . mask`` (mask 1 = kept). Samples may share their masks among
prompts, and prompts may have masks of their own; both are written with four axes, ``[fit, group, row, unit]``:

========================  =====  ========  ============
masks                     fits   groups    columns
========================  =====  ========  ============
shared by all prompts     1      1         prompts
one for each prompt       prompts  1       1
the same, pooled          1      prompts   1
========================  =====  ========  ============

A fit has masks, weights and a factorisation of its own; a column is one more right-hand side; a group is one more
intercept. Pooled, one vector of weights serves all prompts, each with an intercept of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuits.coar.masks import MaskDesign
from patching.progress import Progress, silent

Blocks = Iterator[tuple[Bool[Tensor, "fit group row unit"], Float[Tensor, "fit group row column"]]]

EXACT_COUNT = 1 << 24
"""Whole numbers up to this are exact in float32."""


@dataclass(frozen=True)
class Samples:
    """What a fit reads: a design, the outputs under it, and which samples of them count.

    Attributes:
        design: of the masks.
        outputs: ``[sample, example]``, float64, of all samples of the design.
        rows: the samples that count, ascending.
        pooled: whether prompts with masks of their own share their weights.
        anchor: the sample around whose outputs sums are taken; the first of ``rows`` if None.
    """

    design: MaskDesign
    outputs: Float[Tensor, "sample example"]
    rows: Int[Tensor, " row"]
    pooled: bool = False
    anchor: int | None = None

    @property
    def layout(self) -> tuple[int, int, int]:
        """Fits, groups and columns."""
        examples = self.outputs.shape[1]
        if self.design.prompts is None:
            return 1, 1, examples
        return (1, examples, 1) if self.pooled else (examples, 1, 1)

    def arrange(
        self, masks: Bool[Tensor, "*row unit"], outputs: Float[Tensor, "row example"]
    ) -> tuple[Bool[Tensor, "fit group row unit"], Float[Tensor, "fit group row column"]]:
        """Rows in the four axes."""
        fits, groups, columns = self.layout
        if self.design.prompts is None:
            return masks[None, None], outputs[None, None]
        shape = (fits, groups, len(outputs))
        return masks.transpose(0, 1).contiguous().view(*shape, -1), outputs.T.reshape(*shape, columns)

    def blocks(self) -> Blocks:
        """The samples in order, in the design's blocks."""
        for rows, masks in self.design.blocks(self.rows):
            yield self.arrange(masks, self.outputs[rows])

    def take(self, rows: Int[Tensor, " row"]) -> Samples:
        """Fewer samples of the same, with sums around the same outputs."""
        return Samples(self.design, self.outputs, rows, self.pooled, self._anchor)

    @property
    def _anchor(self) -> int:
        return int(self.rows[0]) if self.anchor is None else self.anchor

    def origin(self) -> Float[Tensor, "fit group column"]:
        """One sample's outputs. Sums are of differences from it: constant outputs then give exact zeros."""
        first = self.outputs[self._anchor][None]
        fits, groups, columns = self.layout
        return first.reshape(fits, groups, columns) if self.design.prompts is None else first.T.reshape(fits, groups, 1)

    def split(self, *, every: int) -> tuple[Samples, Samples]:
        """To fit on and to judge by: every so-manieth sample is held out."""
        held = torch.arange(len(self.rows)) % every == every - 1
        return self.take(self.rows[~held]), self.take(self.rows[held])

    def moments(self, *, gram: bool = True, squares: bool = False, progress: Progress = silent) -> Moments:
        """All sums, in one pass over the samples; ``progress`` is called with samples done and in all."""
        sums = Moments.zero(self.origin(), self.design.n_units, gram=gram, squares=squares)
        for masks, outputs in self.blocks():
            sums.add(masks, outputs)
            progress(sums.rows, len(self.rows))
        return sums

    def growing_moments(self, sizes: Sequence[int], *, progress: Progress = silent) -> Iterator[Moments]:
        """The sums of the first so many samples, for each of some rising sizes, in one pass.

        Each equals, bit for bit, the `moments` of those samples alone. Use each before asking for the next.
        """
        waiting = list(sizes)
        sums = Moments.zero(self.origin(), self.design.n_units, gram=True)
        for masks, outputs in self.blocks():
            rows = masks.shape[2]
            while waiting and waiting[0] < sums.rows + rows:
                part = waiting.pop(0) - sums.rows
                some = sums.copy()
                some.add(masks[:, :, :part], outputs[:, :, :part])
                yield some
            sums.add(masks, outputs)
            progress(sums.rows, len(self.rows))
            if waiting and waiting[0] == sums.rows:
                waiting.pop(0)
                yield sums
            if not waiting:
                return

    def per_example(self, weights: Float[Tensor, "fit unit column"]) -> Float[Tensor, "example unit"]:
        """Weights by prompt."""
        found = weights[:, :, 0] if self.design.prompts is not None else weights[0].T
        return found.expand(self.outputs.shape[1], -1) if self.pooled else found.contiguous()


class Numbers:
    """Masks as numbers, in memory that is used again: each result lasts until the next."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self._kept = torch.empty(0, dtype=dtype)

    def __call__(self, masks: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Converted by way of bytes, which is three times as fast as from truth values."""
        if self._kept.numel() < masks.numel():
            self._kept = torch.empty(masks.numel(), dtype=self._kept.dtype)
        return self._kept[: masks.numel()].view(masks.shape).copy_(masks.view(torch.uint8))


@dataclass
class Moments:
    """Sums over samples: of masks, of their products, of outputs, and of masks times outputs.

    Products of masks are counts, summed exactly (in float32 up to 2**24, then in float64), so that they do not depend
    on any order; sums with outputs are float64, added block by block in the order of the samples.

    Attributes:
        rows: samples so far, the same in every group.
        origin: what is subtracted from every output before it is summed.
        mask_sum: ``[fit, group, unit]``, samples that keep the unit.
        cross: ``[fit, unit, column]``, sum of mask times output.
        output_sum: ``[fit, group, column]``.
        output_square: ``[fit, group, column]``.
        gram: ``[fit, unit, unit]``, samples that keep both; None where it is not wanted.
        square_cross: ``[fit, unit, column]``, sum of mask times squared output; None where it is not wanted.

    Example:
        >>> masks = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0]]).bool()
        >>> sums = Moments.of(masks, (masks.double() @ torch.tensor([2.0, 5.0]).double())[:, None] + 1)
        >>> sums.rows, sums.mask_sum[0, 0].tolist(), sums.gram[0].tolist()
        (4, [2.0, 2.0], [[2.0, 1.0], [1.0, 2.0]])
    """

    rows: int
    origin: Float[Tensor, "fit group column"]
    mask_sum: Float[Tensor, "fit group unit"]
    cross: Float[Tensor, "fit unit column"]
    output_sum: Float[Tensor, "fit group column"]
    output_square: Float[Tensor, "fit group column"]
    gram: Float[Tensor, "fit unit unit"] | None = None
    square_cross: Float[Tensor, "fit unit column"] | None = None
    _counts: Float[Tensor, "fit unit unit"] | None = None
    _counted: int = 0
    _numbers: Numbers = field(default_factory=Numbers)
    _small_numbers: Numbers = field(default_factory=lambda: Numbers(torch.float32))

    @classmethod
    def zero(
        cls, origin: Float[Tensor, "fit group column"], n_units: int, *, gram: bool, squares: bool = False
    ) -> Moments:
        """No samples yet, for outputs around a given origin."""
        fits, groups, columns = origin.shape

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(
            rows=0,
            origin=origin.double(),
            mask_sum=zeros(fits, groups, n_units),
            cross=zeros(fits, n_units, columns),
            output_sum=zeros(fits, groups, columns),
            output_square=zeros(fits, groups, columns),
            gram=zeros(fits, n_units, n_units) if gram else None,
            square_cross=zeros(fits, n_units, columns) if squares else None,
        )

    @classmethod
    def of(cls, masks: Bool[Tensor, "row unit"], outputs: Float[Tensor, "row column"]) -> Moments:
        """The sums of masks that are at hand: one fit, shared by all columns.

        Any features of 0 and 1 will do, such as products of masks (which give the weights of interactions).
        """
        sums = cls.zero(outputs[None, :1], masks.shape[1], gram=True)
        sums.add(masks[None, None], outputs.double()[None, None])
        sums.settle()
        return sums

    def add(self, masks: Bool[Tensor, "fit group row unit"], outputs: Float[Tensor, "fit group row column"]) -> None:
        """Sum some rows in."""
        fits, groups, rows, n_units = masks.shape
        shifted = outputs - self.origin[:, :, None]
        flat = shifted.reshape(fits, groups * rows, -1)
        block = self._numbers(masks)
        by_fit = block.view(fits, groups * rows, n_units).mT
        self.rows += rows
        self.mask_sum += block.sum(2)
        self.output_sum += shifted.sum(2)
        self.output_square += shifted.square().sum(2)
        self.cross.baddbmm_(by_fit, flat)
        if self.square_cross is not None:
            self.square_cross.baddbmm_(by_fit, flat.square())
        if self.gram is not None:
            self._count(masks.reshape(fits, groups * rows, n_units))

    def _count(self, masks: Bool[Tensor, "fit row unit"]) -> None:
        """Products of masks in float32, which holds counts of this size exactly and is twice as fast as float64."""
        assert self.gram is not None
        if self._counted + masks.shape[1] > EXACT_COUNT:
            self.settle()
        if self._counts is None:
            self._counts = torch.zeros(self.gram.shape, dtype=torch.float32)
        ones = self._small_numbers(masks)
        self._counts.baddbmm_(ones.mT, ones)
        self._counted += masks.shape[1]

    def settle(self) -> None:
        """Move the counts of float32 to the float64 sum."""
        if self.gram is not None and self._counts is not None:
            self.gram += self._counts
        self._counts, self._counted = None, 0

    def copy(self) -> Moments:
        """The sums so far, to be added to on their own."""
        self.settle()
        return Moments(
            rows=self.rows,
            origin=self.origin,
            mask_sum=self.mask_sum.clone(),
            cross=self.cross.clone(),
            output_sum=self.output_sum.clone(),
            output_square=self.output_square.clone(),
            gram=None if self.gram is None else self.gram.clone(),
            square_cross=None if self.square_cross is None else self.square_cross.clone(),
        )

    def merged(self, other: Moments) -> Moments:
        """The sums of both, which must be around the same origin."""
        assert torch.equal(self.origin, other.origin), "sums around different origins do not add"
        both = self.copy()
        other.settle()
        both.rows += other.rows
        both.mask_sum += other.mask_sum
        both.cross += other.cross
        both.output_sum += other.output_sum
        both.output_square += other.output_square
        if both.gram is not None and other.gram is not None:
            both.gram += other.gram
        if both.square_cross is not None and other.square_cross is not None:
            both.square_cross += other.square_cross
        return both

    def system(self) -> System:
        """The normal equations, with every group's mean taken out."""
        self.settle()
        cross = self.cross - torch.einsum("fgu,fgc->fuc", self.mask_sum, self.output_sum) / self.rows
        total = (self.output_square - self.output_sum.square() / self.rows).clamp_min(0.0)
        gram = None
        if self.gram is not None:
            gram = (self.mask_sum.mT @ self.mask_sum).div_(-self.rows).add_(self.gram)  # whole numbers, then a division
        spread = (self.mask_sum - self.mask_sum.square() / self.rows).sum(1)
        cross *= (spread > 0)[:, :, None]  # exactly nothing, and not what rounding leaves, of units that never varied
        return System(
            rows=self.rows,
            groups=self.mask_sum.shape[1],
            gram=gram,
            cross=cross,
            total=total.sum(1),
            spread=spread,
            mask_mean=self.mask_sum / self.rows,
            output_mean=self.origin + self.output_sum / self.rows,
        )


@dataclass(frozen=True)
class System:
    """``gram @ weights = cross``, of masks and outputs from which the means of their group are subtracted.

    Attributes:
        rows: samples in each group.
        groups: intercepts.
        gram: ``[fit, unit, unit]`` or None.
        cross: ``[fit, unit, column]``.
        total: ``[fit, column]``, sum of squares of the outputs.
        spread: ``[fit, unit]``, the gram's diagonal; 0 where a unit was never (or always) ablated.
        mask_mean: ``[fit, group, unit]``.
        output_mean: ``[fit, group, column]``.
    """

    rows: int
    groups: int
    gram: Float[Tensor, "fit unit unit"] | None
    cross: Float[Tensor, "fit unit column"]
    total: Float[Tensor, "fit column"]
    spread: Float[Tensor, "fit unit"]
    mask_mean: Float[Tensor, "fit group unit"]
    output_mean: Float[Tensor, "fit group column"]

    @property
    def n_units(self) -> int:
        """Weights of a fit."""
        return self.cross.shape[1]

    @property
    def freedom(self) -> int:
        """Samples less intercepts: what is left for weights and errors."""
        return (self.rows - 1) * self.groups

    def still(self) -> list[int]:
        """Units that never varied within the samples of some fit, so that nothing is known of their weights."""
        return (self.spread <= 0).any(0).nonzero().flatten().tolist()

    def intercepts(self, weights: Float[Tensor, "fit unit column"]) -> Float[Tensor, "fit group column"]:
        """What the weights leave of each group's mean."""
        return self.output_mean - self.mask_mean @ weights

    def residual(self, weights: Float[Tensor, "fit unit column"]) -> Float[Tensor, "fit column"]:
        """Sum of squared errors of some weights with their best intercepts."""
        explained = 2 * (weights * self.cross).sum(1) - self.quadratic(weights)
        return (self.total - explained).clamp_min(0.0)

    def quadratic(self, weights: Float[Tensor, "fit unit column"]) -> Float[Tensor, "fit column"]:
        """Sum of squares of what the weights predict, around its mean."""
        assert self.gram is not None
        return (weights * (self.gram @ weights)).sum(1)

    def solution(
        self,
        weights: Float[Tensor, "fit unit column"],
        *,
        residual: Float[Tensor, "fit column"] | None = None,
        standard_error: Float[Tensor, "fit unit column"] | None = None,
        details: dict[str, Any] | None = None,
        remark: str = "",
    ) -> Solution:
        """Weights with their best intercepts, and the share of the outputs' variance that they explain."""
        shares = None
        if residual is not None:
            shares = [None if not all_ else 1 - left / all_ for left, all_ in _pairs(residual, self.total)]
        known = {**(details or {}), "r_squared": shares, "never_varied": self.still()}
        return Solution(weights, self.intercepts(weights), standard_error, known, remark)

    def error_elsewhere(
        self, weights: Float[Tensor, "fit unit column"], intercepts: Float[Tensor, "fit group column"]
    ) -> Float[Tensor, "fit column"]:
        """Sum of squared errors on these samples of a model that was fitted on others."""
        miss = self.output_mean - self.mask_mean @ weights - intercepts
        return self.residual(weights) + self.rows * miss.square().sum(1)


def _pairs(residual: Tensor, total: Tensor) -> Iterator[tuple[float, float]]:
    return zip(residual.flatten().tolist(), total.flatten().tolist(), strict=True)


@dataclass(frozen=True)
class Solution:
    """Weights of one estimator.

    Attributes:
        weights: ``[fit, unit, column]``.
        intercepts: ``[fit, group, column]``.
        standard_error: ``[fit, unit, column]`` or None.
        details: what is worth knowing, for JSON.
        remark: sentences to add to what is said of the fit.
    """

    weights: Float[Tensor, "fit unit column"]
    intercepts: Float[Tensor, "fit group column"]
    standard_error: Float[Tensor, "fit unit column"] | None
    details: dict[str, Any]
    remark: str = ""

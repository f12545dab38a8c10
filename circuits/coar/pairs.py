"""How components interact: a second-order regression on random ablations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.coar.masks import MaskDesign
from circuits.coar.sampling import Sampling, merge, sample
from graphs.components import Architecture
from graphs.nodes import Node
from patching.component_run import ComponentRun
from patching.errors import InvalidOption, NotFinite
from patching.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

MOST_COLUMNS = 4_000
"""More main effects and pairs than these are too many for one regression."""


@dataclass(frozen=True)
class Interactions:
    """What pairs of components add together beyond what each adds alone.

    ``output ≈ b + Σ_i w_i (m_i - p) + Σ_{i<j} C_ij (m_i - p)(m_j - p)`` with mask m and keep probability p. C_ij > 0:
    i and j need each other; C_ij < 0: each stands in for the other (backup, or saturation).

    Attributes:
        architecture: of the model.
        units: all components of the run.
        weights: ``[example, unit]``: w, the same population quantity as a first-order attribution's.
        chosen: the components whose pairs were fitted.
        pairs: places in ``units`` of each pair.
        values: ``[example, pair]``: C.
        standard_error: of the mean of C over prompts, ``[pair]``: from the scatter of prompts and of the regression.
        explained: ``[example]``: share of the output's variance that the model explains on the fitted samples, adjusted
            for its number of columns.
        first_order: the same without the pairs.
        provenance: model, task, ablation, metric, masks.
    """

    architecture: Architecture
    units: tuple[Node, ...]
    weights: Float[Tensor, "example unit"]
    chosen: tuple[Node, ...]
    pairs: Int[Tensor, "pair two"]
    values: Float[Tensor, "example pair"]
    standard_error: Float[Tensor, " pair"]
    explained: Float[Tensor, " example"]
    first_order: Float[Tensor, " example"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def mean(self) -> Float[Tensor, " pair"]:
        """C averaged over prompts."""
        return self.values.mean(0)

    def matrix(self) -> Float[Tensor, "chosen chosen"]:
        """Mean C between all chosen components, symmetric, 0 on the diagonal."""
        place = {unit: number for number, unit in enumerate(self.chosen)}
        result = torch.zeros(len(self.chosen), len(self.chosen), dtype=torch.float64)
        for (first, second), value in zip(self.pairs.tolist(), self.mean().tolist(), strict=True):
            row, column = place[self.units[first]], place[self.units[second]]
            result[row, column] = result[column, row] = value
        return result

    def to_frame(self) -> pd.DataFrame:
        """One row per pair, strongest first."""
        import pandas as pd

        order = torch.argsort(-self.mean().abs(), stable=True).tolist()
        names = [[str(self.units[place]) for place in pair] for pair in self.pairs.tolist()]
        return pd.DataFrame(
            {
                "first": [names[i][0] for i in order],
                "second": [names[i][1] for i in order],
                "interaction": self.mean()[order].numpy(),
                "standard_error": self.standard_error[order].numpy(),
            }
        )

    def strong(self, *, errors: float = 3.0) -> list[int]:
        """Pairs whose mean lies at least so many standard errors from 0, strongest first."""
        order = torch.argsort(-self.mean().abs(), stable=True).tolist()
        return [i for i in order if abs(float(self.mean()[i])) >= errors * float(self.standard_error[i]) > 0]

    def __repr__(self) -> str:
        order = torch.argsort(-self.mean().abs(), stable=True)[:3].tolist()
        shown = ", ".join(
            f"{'×'.join(str(self.units[place]) for place in self.pairs[i].tolist())} {float(self.mean()[i]):+.3f}"
            for i in order
        )
        return (
            f"Interactions({len(self.values[0]):,} pairs of {len(self.chosen)} components; {shown}, …; explained "
            f"{float(self.explained.mean()):.3f}, first order alone {float(self.first_order.mean()):.3f})"
        )

    def _repr_html_(self) -> str:
        return self.to_frame().head(20).to_html(index=False)


def interactions(
    run: ComponentRun,
    *,
    chosen: Sequence[Node | str] | None = None,
    samples: int | None = None,
    keep: float = 0.8,
    seed: int = 0,
    progress: Progress = silent,
) -> Interactions:
    """Regress outputs on the masks of all components and on products of the chosen ones' masks.

    Factors are centred at their mean, so pairs and main effects are uncorrelated under the design: leaving pairs out
    does not bias the main effects, which are ``w_i + keep · Σ_j C_ij`` of the raw products' model.

    Args:
        run: what is ablated.
        chosen: components whose pairs are fitted; all by default, if there are not too many.
        samples: masks; by default five for every column of the regression, at least 1,000.
        keep: probability that a component is kept. Pairs are both ablated in ``(1 - keep)^2`` of the samples, so lower
            values than for `attribute` see them better.
        seed: of the masks.
        progress: called with the samples run and to run.

    Returns:
        Interactions in the metric's unit, with standard errors.

    Raises:
        InvalidOption: fewer than two components, too many pairs, or too few samples for them.

    Cost: ``samples`` forwards, and one regression of as many columns as components and pairs.

    Source: least squares with products of masks as further columns. The method's first-order model: arXiv 2404.11534.

    Example:
        >>> from patching import toy
        >>> found = interactions(ComponentRun(toy.model(), toy.task()), samples=200, keep=0.5)
        >>> [[str(found.units[i]) for i in pair] for pair in found.pairs.tolist()]
        [['a0.h0', 'a0.h1']]
    """
    places = list(range(run.n_units)) if chosen is None else sorted({run.index(unit) for unit in chosen})
    if len(places) < 2:
        raise InvalidOption(f"expected at least two components to pair; got {len(places)}.")
    pairs = torch.tensor(list(combinations(places, 2)))
    columns = run.n_units + len(pairs)
    if columns > MOST_COLUMNS:
        raise InvalidOption(
            f"expected at most {MOST_COLUMNS:,} main effects and pairs; {run.n_units:,} components with {len(pairs):,} "
            "pairs are more. Choose fewer components with chosen=[…], such as the strongest of an attribution."
        )
    samples = max(1_000, 5 * columns) if samples is None else samples
    design = MaskDesign(run.n_units, samples, keep, seed)
    if samples <= columns + 1:
        raise InvalidOption(
            f"expected more samples than the {columns + 1:,} coefficients of this regression; got {samples:,}. Take "
            f"{5 * columns:,}, or choose fewer components."
        )
    sampling = Sampling.of(run, design)
    outputs = merge(sample(run, sampling, progress=progress), sampling)
    return _fitted(run, design, outputs, [run.units[place] for place in places], pairs)


def _fitted(
    run: ComponentRun, design: MaskDesign, outputs: Tensor, chosen: Sequence[Node], pairs: Tensor
) -> Interactions:
    gram, cross, total, mean = _sums(design, outputs, pairs)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()):
        raise InvalidOption(
            f"expected masks of full rank; in {design.samples:,} samples at keep={design.keep:g} some pairs are never "
            "ablated together. Take more samples, a lower keep or fewer components."
        )
    coefficients = torch.cholesky_solve(cross, factor)
    count, units = design.samples, design.n_units
    residual = (total - (coefficients * cross).sum(0)).clamp(min=0)
    main = torch.linalg.solve(gram[:units, :units], cross[:units])
    alone = (total - (main * cross[:units]).sum(0)).clamp(min=0)
    spread = torch.cholesky_inverse(factor).diagonal()[units:]
    free = max(1, count - len(gram) - 1)
    values = coefficients[units:].T.contiguous()
    # Masks are shared by the prompts, so the regression's errors do not average out over them: take them whole.
    regression = spread * float(_mean_output_residual(coefficients, gram, cross, outputs, mean)) / free
    prompts = values.var(0) / len(values) if len(values) > 1 else torch.zeros_like(spread)
    options = {"samples": count, "keep": design.keep, "seed": design.seed, "chosen": [str(unit) for unit in chosen]}
    return Interactions(
        run.model.architecture,
        run.units,
        coefficients[:units].T.contiguous(),
        tuple(chosen),
        pairs,
        values,
        (regression + prompts).sqrt(),
        _adjusted(residual, total, free, count),
        _adjusted(alone, total, max(1, count - units - 1), count),
        run.provenance("coar interactions", options),
    )


def _sums(
    design: MaskDesign, outputs: Float[Tensor, "sample example"], pairs: Int[Tensor, "pair two"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centred products of the regression's columns with each other and with the outputs, block by block."""
    if not bool(torch.isfinite(outputs).all()):
        raise NotFinite("expected finite outputs; some are NaN or infinite.")
    width = design.n_units + len(pairs)
    gram = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, outputs.shape[1], dtype=torch.float64)
    column_sum = torch.zeros(width, dtype=torch.float64)
    mean = outputs.mean(0)
    for rows, masks in design.blocks():
        centred = masks.double() - design.kept_share
        block = torch.cat((centred, centred[:, pairs[:, 0]] * centred[:, pairs[:, 1]]), dim=1)
        gram += block.T @ block
        cross += block.T @ (outputs[rows] - mean)
        column_sum += block.sum(0)
    gram -= torch.outer(column_sum, column_sum) / design.samples  # the intercept, taken out
    return gram, cross, (outputs - mean).pow(2).sum(0), mean


def _mean_output_residual(
    coefficients: Tensor, gram: Tensor, cross: Tensor, outputs: Tensor, mean: Tensor
) -> Float[Tensor, ""]:
    """Residual sum of squares of the outputs averaged over prompts."""
    together, crossed = coefficients.mean(1), cross.mean(1)
    total = (outputs - mean).mean(1).pow(2).sum()
    return (total - 2 * together @ crossed + together @ gram @ together).clamp(min=0)


def _adjusted(residual: Tensor, total: Tensor, free: int, count: int) -> Float[Tensor, " example"]:
    """Adjusted R²; NaN for outputs that do not vary."""
    share = 1 - (residual / free) / (total / (count - 1))
    return torch.where(total > 0, share, torch.full_like(total, math.nan))

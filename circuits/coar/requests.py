"""What a fit is asked for, checked: outputs that match their masks, rows that exist, numbers that are finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.coar.conjugate_gradients import TOLERANCE
from circuits.coar.masks import MaskDesign
from circuits.coar.moments import Samples
from patching.errors import InvalidOption, NotFinite
from patching.progress import Progress, silent

ESTIMATORS = ("normal_equations", "ridge", "lasso", "elastic_net", "conjugate_gradients", "difference_of_means")
TAKES_RIDGE = ("auto", "ridge", "elastic_net", "conjugate_gradients")
TAKES_LASSO = ("lasso", "elastic_net")

NAMED = 8
"""How many prompts and samples a sentence names."""


@dataclass(frozen=True)
class Request:
    """What one estimator is asked to do."""

    samples: Samples
    ridge: float | None = None
    lasso: float | None = None
    tolerance: float = TOLERANCE
    spare: int = 0
    progress: Progress = silent

    @property
    def fixed_size(self) -> bool:
        """Whether every mask keeps equally many units."""
        return self.samples.design.kind == "subset"

    @property
    def determined(self) -> float:
        """Samples (less the intercepts) for each weight to find."""
        _, groups, _ = self.samples.layout
        return (len(self.samples.rows) - 1) * groups / self.samples.design.n_units


def samples_of(
    design: MaskDesign,
    outputs: Tensor,
    *,
    pooled: bool,
    rows: Sequence[int] | Tensor | None,
) -> Samples:
    """The samples to use, checked.

    Raises:
        InvalidOption, NotFinite: see `fit`.
    """
    if outputs.ndim != 2 or outputs.shape[0] != design.samples or not outputs.shape[1]:
        raise InvalidOption(
            f"expected outputs [{design.samples} samples, examples], one row for each mask; got {list(outputs.shape)}. "
            "For a single prompt use outputs[:, None]."
        )
    if design.prompts is not None and outputs.shape[1] != design.prompts:
        raise InvalidOption(
            f"expected outputs of the {design.prompts} prompts that have masks of their own; got {outputs.shape[1]}."
        )
    if pooled and design.prompts is None:
        raise InvalidOption(
            "expected masks of its own for each prompt (MaskDesign(prompts=...)) to pool; these are shared by all "
            "prompts, whose pooled weights are the mean over prompts of the weights."
        )
    chosen = _rows(rows, design.samples)
    outputs = outputs.detach().to("cpu", torch.float64)
    _check_finite(outputs, chosen)
    return Samples(design, outputs, chosen, pooled)


def _rows(rows: Sequence[int] | Tensor | None, count: int) -> Tensor:
    """Ascending numbers of samples."""
    if rows is None:
        return torch.arange(count)
    given = torch.as_tensor(list(rows) if isinstance(rows, range) else rows)
    if given.dtype == torch.bool and given.shape == (count,):
        given = given.nonzero().flatten()
    whole = given.dtype in (torch.int64, torch.int32)
    extent = f" from {given.min()} to {given.max()}" if given.numel() else ""
    if given.ndim != 1 or not len(given) or not whole or int(given.min()) < 0 or int(given.max()) >= count:
        raise InvalidOption(
            f"expected rows to be numbers of samples from 0 to {count - 1}, or {count} truth values with one that is "
            f"true; got {given.dtype} of shape {list(given.shape)}{extent}."
        )
    chosen = given.long().unique()
    if len(chosen) < len(given):
        raise InvalidOption(
            f"expected every sample once; {len(given) - len(chosen):,} of the {len(given):,} rows repeat."
        )
    return chosen


def _check_finite(outputs: Tensor, rows: Tensor) -> None:
    wrong = ~torch.isfinite(outputs[rows])
    if not bool(wrong.any()):
        return
    examples = wrong.any(0).nonzero().flatten().tolist()
    samples = rows[wrong.any(1)].tolist()
    raise NotFinite(
        f"expected finite outputs; {int(wrong.sum()):,} are NaN or infinite: prompts {listed(examples)} at samples "
        f"{listed(samples)}. Leave those prompts or samples out (rows=), or look at what the ablation does there."
    )


def listed(numbers: list[int]) -> str:
    """The first few of some numbers, in words."""
    more = len(numbers) - NAMED
    return ", ".join(map(str, numbers[:NAMED])) + (f" and {more:,} more" if more > 0 else "")


def check_penalties(estimator: str, ridge: float | None, lasso: float | None, tolerance: float) -> None:
    """Refuse names that are not there and numbers that have no meaning.

    Raises:
        InvalidOption: with what was expected.
    """
    if estimator != "auto" and estimator not in ESTIMATORS:
        raise InvalidOption(f"expected an estimator among auto, {', '.join(ESTIMATORS)}; got {estimator!r}.")
    for name, value, takers in (("ridge", ridge, TAKES_RIDGE), ("lasso", lasso, TAKES_LASSO)):
        if value is not None and estimator not in takers:
            raise InvalidOption(f"expected {name} with estimator {' or '.join(takers)} only; got it with {estimator}.")
    least = "0 or more" if estimator in ("elastic_net", "conjugate_gradients") else "more than 0"
    if ridge is not None and not (0 < ridge < float("inf") or (ridge == 0 and least == "0 or more")):
        raise InvalidOption(f"expected ridge to be {least} and finite; got {ridge}. Without: normal_equations.")
    if lasso is not None and not 0 < lasso < float("inf"):
        raise InvalidOption(f"expected lasso to be more than 0 and finite; got {lasso}. Without: estimator='ridge'.")
    if not 0 < tolerance < 1:
        raise InvalidOption(f"expected a tolerance between 0 and 1; got {tolerance}.")

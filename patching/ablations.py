"""What an edge with mask 0 carries in place of its source's current value.

An ablation is data: which prompts supply values, and how those are combined over prompts and positions. The same
object serves the search and the evaluation of what was found. A new one is a line in `ABLATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patching.errors import InvalidOption, InvalidTask
from patching.task import Task

Combine = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Ablation:
    """How replacement values are made.

    Attributes:
        name: as used in results and on the command line.
        prompts: from a task to the prompts whose run supplies values, one per example.
        combine: from those values ``[*head, example, pos, width]`` and the weight of each token ``[example, pos]``
            (0 for padding) to replacement values that broadcast to the same shape; None keeps them as they are.
    """

    name: str
    prompts: Callable[[Task], Int[Tensor, "example pos"]]
    combine: Combine | None = None

    def weights(self, task: Task) -> Float[Tensor, "example pos"]:
        """1 for tokens that count in means, 0 for padding and for a beginning-of-sequence token."""
        place = torch.arange(task.clean.shape[1])
        real = (place <= task.positions[:, None]) & (place >= int(task.starts_with_bos))
        return real.float()


def _corrupt(task: Task) -> Tensor:
    return task.corrupt


def _clean(task: Task) -> Tensor:
    return task.clean


def _zero(values: Tensor, _weights: Tensor) -> Tensor:
    return torch.zeros_like(values[..., :1, :1, :])


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    weighted = weights.to(values)[..., None]
    return (values * weighted).sum((-3, -2), keepdim=True) / weighted.sum()


def _mean_positional(values: Tensor, weights: Tensor) -> Tensor:
    """Positions that no prompt counts (a beginning-of-sequence token) take the plain mean over prompts."""
    weights = torch.where(weights.sum(0) > 0, weights, torch.ones_like(weights))
    weighted = weights.to(values)[..., None]
    return (values * weighted).sum(-3, keepdim=True) / weighted.sum(0)


def resample(seed: int = 0) -> Ablation:
    """Values of another clean prompt of the same task and length, the same one for every component.

    Prompts are shuffled within each length and shifted by one, so none replaces itself.
    """

    def prompts(task: Task) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        partner = torch.arange(len(task))
        for length in task.positions.unique():
            rows = (task.positions == length).nonzero().flatten()
            if len(rows) < 2:
                raise InvalidTask(
                    f"expected at least two prompts of each length to resample from; there is one of "
                    f"{int(length) + 1} tokens (row {rows.tolist()}). Add prompts or choose another ablation."
                )
            rows = rows[torch.randperm(len(rows), generator=generator)]
            partner[rows] = rows.roll(1)
        return task.clean[partner]

    return Ablation("resample" if seed == 0 else f"resample(seed={seed})", prompts)


corrupt = Ablation("corrupt", _corrupt)
"""Interchange: the value on the paired corrupt prompt."""

zero = Ablation("zero", _corrupt, _zero)
"""Nothing at all. Far from what the model ever sees; kept because much of the literature uses it."""

mean = Ablation("mean", _corrupt, _mean)
"""Mean over all tokens of all corrupt prompts."""

mean_positional = Ablation("mean-positional", _corrupt, _mean_positional)
"""Mean over corrupt prompts at each position."""

mean_clean = Ablation("mean-clean", _clean, _mean)
"""Mean over all tokens of all clean prompts."""

ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation for ablation in (corrupt, zero, mean, mean_positional, mean_clean, resample())
}


def get(ablation: str | Ablation) -> Ablation:
    """An ablation by name: ``corrupt``, ``zero``, ``mean``, ``mean-positional``, ``mean-clean`` or ``resample``.

    Raises:
        InvalidOption: there is none of that name.

    Example:
        >>> get("mean").name
        'mean'
    """
    if isinstance(ablation, Ablation):
        return ablation
    if ablation not in ABLATIONS:
        raise InvalidOption(f"expected an ablation out of {', '.join(ABLATIONS)}; got {ablation!r}.")
    return ABLATIONS[ablation]

"""What an edge with mask 0 carries in place of its source's current value.

An ablation is data: which prompts supply values, and how those are combined over prompts and positions. The same
object serves the search and the evaluation of what was found. A new one is a line in `ABLATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patching.errors import InvalidOption, InvalidTask
from patching.task import Task

if TYPE_CHECKING:
    from patching.engine import Writes
    from patching.lens import LensModel

Combine = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Ablation:
    """How replacement values are made.

    Attributes:
        name: as used in results and on the command line.
        prompts: from a task to the prompts whose run supplies values, one per example.
        combine: from those values ``[*head, example, pos, width]`` and the weight of each token ``[example, pos]``
            (0 for padding) to replacement values that broadcast to the same shape; None keeps them as they are.
        noise: from a task, the width of the residual stream and the standard deviation of its prompts' token
            embeddings to what is added to the embeddings of the prompts; None adds nothing.
        constants: replacement values themselves, the same for every prompt (a learned ablation); ``prompts`` and
            ``combine`` then count for nothing.
    """

    name: str
    prompts: Callable[[Task], Int[Tensor, "example pos"]]
    combine: Combine | None = None
    noise: Callable[[Task, int, float], Float[Tensor, "example pos width"]] | None = None
    constants: Writes | None = field(default=None, compare=False, repr=False)

    @property
    def is_run(self) -> bool:
        """Whether the replacements are what one run of the model computes, prompt by prompt."""
        return self.combine is None and self.constants is None

    def disturbance(self, model: LensModel, task: Task) -> Float[Tensor, "example pos d_model"] | None:
        """What is added to the embeddings of the prompts."""
        if self.noise is None:
            return None
        tokens = task.clean[self.weights(task).bool()]
        added = self.noise(task, model.d_model, float(model.token_embeddings(tokens).double().std()))
        return added.to(device=model.device, dtype=model.dtype)

    def embed(
        self, model: LensModel, task: Task, prompts: Int[Tensor, "example pos"]
    ) -> Float[Tensor, "example pos d_model"]:
        """The embeddings of the run that supplies values."""
        embedded, added = model.embed(prompts), self.disturbance(model, task)
        return embedded if added is None else embedded + added

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


def gaussian_noise(*, scale: float = 3.0, seed: int = 0, where: Bool[Tensor, "example pos"] | None = None) -> Ablation:
    """The clean prompts with noise on the embeddings of some tokens, as in causal tracing.

    ``embedding + ε`` with ``ε ~ N(0, (scale · s)²)`` and s the standard deviation of the token embeddings over all
    real tokens of the task. Every prompt has noise of its own, the same whatever the batching.

    Args:
        scale: in standard deviations; 3 in the literature.
        seed: of the noise.
        where: the tokens that get it; by default those in which clean and corrupt prompts differ.

    Source: arXiv 2309.16042 ("GN"), after arXiv 2202.05262. Symmetric token replacement (``corrupt``) stays within
    what the model knows, and is to be preferred.
    """

    def noise(task: Task, width: int, deviation: float) -> Tensor:
        chosen = (task.clean != task.corrupt) if where is None else where
        if chosen.shape != task.clean.shape:
            raise InvalidTask(
                f"expected `where` of the prompts' shape {list(task.clean.shape)}; got {list(chosen.shape)}."
            )
        bare = (~chosen.any(1)).nonzero().flatten().tolist()
        if bare:
            raise InvalidTask(f"expected tokens to put noise on in every prompt; rows {bare[:10]} have none.")
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn((*task.clean.shape, width), generator=generator, dtype=torch.float64)
        return drawn * chosen[..., None] * scale * deviation

    named = {"scale": scale, "seed": seed}
    plain = scale == 3.0 and seed == 0 and where is None
    options = "" if plain else "(" + ", ".join(f"{key}={value:g}" for key, value in named.items()) + ")"
    return Ablation("gaussian-noise" + options, _clean, noise=noise)


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
    ablation.name: ablation
    for ablation in (corrupt, zero, mean, mean_positional, mean_clean, resample(), gaussian_noise())
}
"""Every ablation by its name."""


def get(ablation: str | Ablation) -> Ablation:
    """An ablation by name.

    ``corrupt``, ``zero``, ``mean``, ``mean-positional``, ``mean-clean``, ``resample`` or ``gaussian-noise``.

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

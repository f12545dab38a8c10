"""The training loop, and the setting in which it gives the same weights, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from experiments.zoo_training import models
from experiments.zoo_training.corpus import IGNORED
from experiments.zoo_training.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int
    from torch import Tensor


def fit(
    model: Any,
    tokens: Int[Tensor, "sentence pos"],
    targets: Int[Tensor, "sentence pos"],
    *,
    recipe: Recipe,
    progress: Callable[[range], Iterable[int]] = iter,
) -> float:
    """Train a model in place: next-token cross-entropy, AdamW or Muon beside it, gradients clipped to norm 1.

    Args:
        model: From `models.build`.
        tokens: A corpus's.
        targets: A corpus's; at least one of each batch is not `IGNORED`.
        recipe: Steps, batch, learning rate, weight decay and seed; with a `muon_rate`, Muon has the layers' matrices.
        progress: Wraps the range of steps, as tqdm does.

    Returns:
        The mean loss of the last twentieth of the steps, in nats per token.
    """
    import torch

    weights = models.parameters(model)
    optimizers = _optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.steps)) for optimizer in optimizers
    ]
    generator = torch.Generator().manual_seed(recipe.seed)
    losses: list[float] = []
    model.train()
    for _ in progress(range(recipe.steps)):
        chosen = torch.randint(len(tokens), (recipe.batch,), generator=generator)
        wanted = targets[chosen]
        length = int((wanted != IGNORED).any(0).nonzero()[-1]) + 1
        logits = models.logits(model, tokens[chosen, :length])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted[:, :length].flatten())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
    model.eval()
    last = losses[-math.ceil(recipe.steps / 20) :]
    return sum(last) / len(last)


def _optimizers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all weights; or Muon for the layers' matrices, and AdamW for the rest."""
    import torch

    matrices = models.layer_matrices(model) if recipe.muon_rate else []
    taken = {id(weight) for weight in matrices}
    rest = [weight for weight in models.parameters(model) if id(weight) not in taken]
    groups = [
        {"params": [weight for weight in rest if weight.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in rest if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    if not matrices:
        return [adam]
    return [adam, torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay)]


def _rate(step: int, steps: int) -> float:
    """Return the learning rate as a share of its peak."""
    return min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Fix the number of threads and forbid nondeterministic kernels, for as long as the block lasts."""
    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])

"""The training loop: three losses, one optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from experiments.interchange_training.data import Data
from experiments.interchange_training.exchange import Exchange
from experiments.interchange_training.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformers import GPT2LMHeadModel

LOSSES: Final = ("behaviour", "interchange", "strict")


def fit(
    model: GPT2LMHeadModel,
    data: Data,
    *,
    aligned: Sequence[int],
    recipe: Recipe,
    progress: Callable[[range], Iterable[int]] = iter,
) -> dict[str, float]:
    """Train a model in place: AdamW on the sum of three losses, gradients clipped to norm 1.

    Each is KL(program || model) after the last token of a prompt: of plain prompts (behaviour); with the writes of
    nodes exchanged whose variables are, and in half of the rows those of random useless nodes too (interchange); with
    the writes of random useless nodes exchanged, which must change nothing (strict).

    Args:
        model: From `build_model`.
        data: From `build_data`.
        aligned: Places of the nodes that hold variables, among all nodes; the others are useless.
        recipe: Steps, batch, rates and seed.
        progress: Wraps the range of steps, as tqdm does.

    Returns:
        The mean of each loss over the last twentieth of the steps, in nats.
    """
    import torch

    groups = [
        {"params": [each for each in model.parameters() if each.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [each for each in model.parameters() if each.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.steps))
    generator = torch.Generator().manual_seed(recipe.seed)
    useless = torch.ones(data.nodes.shape[1], dtype=torch.bool)
    useless[list(aligned)] = False
    exchange = Exchange(model)
    history: list[Tensor] = []
    model.train()
    try:
        for _ in progress(range(recipe.steps)):
            rows = torch.randint(len(data.base), (recipe.batch,), generator=generator)
            losses = batch_losses(exchange, data, rows, useless=useless, generator=generator)
            optimizer.zero_grad()
            losses.sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            history.append(losses.detach())
    finally:
        exchange.close()
        model.eval()
    last = torch.stack(history[-math.ceil(recipe.steps / 20) :]).mean(0).tolist()
    return {name: max(0.0, round(value, 5)) for name, value in zip(LOSSES, last, strict=True)}


def batch_losses(
    exchange: Exchange,
    data: Data,
    rows: Int[Tensor, " row"],
    *,
    useless: Bool[Tensor, " node"],
    generator: torch.Generator,
) -> Float[Tensor, " loss"]:
    """The three losses on some rows, in one recorded run and one run of all three kinds of prompts."""
    import torch

    count = len(rows)
    source = exchange.record(data.source[rows])
    coins = torch.rand(3, count, len(useless), generator=generator) < 0.5
    both = torch.rand(count, 1, generator=generator) < 0.5
    chosen = torch.cat((torch.zeros_like(coins[0]), data.nodes[rows] | (both & useless & coins[1]), useless & coins[2]))
    logits = exchange.run(data.base[rows].repeat(3, 1), [value.repeat(3, 1, 1) for value in source], chosen)
    said = torch.log_softmax(logits[torch.arange(3 * count), data.last[rows].repeat(3)], dim=-1)
    wanted = torch.cat((data.plain[rows], data.swapped[rows], data.plain[rows]))
    return torch.nn.functional.kl_div(said, wanted, reduction="none").sum(-1).unflatten(0, (3, count)).mean(1)


def _rate(step: int, steps: int) -> float:
    """The learning rate as a share of its peak."""
    return min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

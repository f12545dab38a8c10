"""IBCircuit: let through as little of every node as the task can do with, by adding noise to it.

Every node has a weight w in (0, 1). Its write a is replaced by

    z = w a + (1 - w) (μ + σ ε),   ε ~ N(0, 1)

with μ and σ the mean and standard deviation of its writes over all tokens of the clean prompts. What z still says of
a, in nats per dimension, is bounded by the divergence

    KL( N(w a + (1 - w) μ, (1 - w)² σ²) ‖ N(μ, σ²) ) = -log(1 - w) + ((1 - w)² - 1) / 2 + w² (a - μ)² / (2 σ²)

whose mean over those tokens is  -log(1 - w) - w + w², since (a - μ)² / σ² has the mean 1. The engine needs nothing new
for this: w is a mask over nodes, and the replacement a noisy constant.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuits.learned_mask import (
    THRESHOLD,
    LearnedMask,
    Step,
    check_number,
    check_run,
    damage,
    learned,
    minimise,
    parameters,
    with_effects,
)
from graphs.circuit import Circuit
from patching.engine import Writes
from patching.masked import MaskedRun
from patching.progress import Progress, silent

START = 2.0
"""The logit of every weight at the start: w = 0.88."""


def information(parameter: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Nats per dimension that a node of weight ``w = sigmoid(parameter)`` lets through: ``-log(1 - w) - w + w²``.

    Example:
        >>> float(information(torch.tensor([-40.0])).abs()) < 1e-9  # w = 0 lets nothing through
        True
    """
    weight = torch.sigmoid(parameter)
    return F.softplus(parameter) - weight + weight**2


class NoisyRun:
    """A run over nodes in which what a node loses is replaced by noise with its mean and deviation.

    Attributes:
        run: over nodes, ablated nodes carrying their means over clean tokens.
        mean: of every source, with axes of length 1 for example and position.
        deviation: the same shape.
    """

    def __init__(self, run: MaskedRun) -> None:
        """Take the moments of the clean run; two forwards."""
        self.run = MaskedRun(run.model, run.task, ablation="mean-clean", metric=run.metric, memory=run.memory).nodes()
        self.mean = self.run.batches[0].replacement
        self.deviation = self._deviation()

    @torch.no_grad()
    def _deviation(self) -> Writes:
        weights = self.run.ablation.weights(self.run.task).to(self.run.model.device)
        totals = [torch.zeros_like(mean) for mean in _parts(self.mean)]
        for batch, rows in self._rows():
            clean = Writes(batch.clean.embedded, batch.clean.heads, batch.clean.mlps)
            count = weights[rows][..., None]
            for total, value, mean in zip(totals, _parts(clean), _parts(self.mean), strict=True):
                total += ((value - mean) ** 2 * count).sum((-3, -2), keepdim=True)
        return _whole(self.mean, [(total / weights.sum()).sqrt() for total in totals])

    def _rows(self) -> list[tuple]:
        """Every batch with the rows of the task that it holds."""
        rows, start = [], 0
        for batch in self.run.batches:
            rows.append((batch, slice(start, start + len(batch.task))))
            start += len(batch.task)
        return rows

    def draw(self, generator: torch.Generator) -> MaskedRun:
        """The run with fresh noise: independent for every prompt, position and dimension, whatever the batching."""
        examples, positions = self.run.task.clean.shape
        noisy = []
        for mean, deviation in zip(_parts(self.mean), _parts(self.deviation), strict=True):
            shape = (*mean.shape[:-3], examples, positions, mean.shape[-1])
            noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(mean)
            noisy.append(mean + deviation * noise)
        view = copy.copy(self.run)
        view.batches = tuple(
            batch.with_constants(_whole(self.mean, [value[..., rows, :, :] for value in noisy]))
            for batch, rows in self._rows()
        )
        return view


def _parts(writes: Writes) -> list[Tensor]:
    return [writes.embedded, *writes.heads, *writes.mlps]


def _whole(like: Writes, parts: list[Tensor]) -> Writes:
    layers = len(like.heads)
    return Writes(parts[0], parts[1 : 1 + layers], parts[1 + layers :])


def learn(
    run: MaskedRun,
    *,
    beta: float = 1.0,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> LearnedMask:
    """Learn how much of every node to let through.

    As `search`, without the effects of the kept edges. The probability of a node is its weight w.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task(), metric="kl").nodes()
        >>> mask = learn(run, steps=20)
        >>> mask.level, len(mask.probability)
        ('node', 3)
    """
    check_run(run, "node")
    check_number(beta, name="beta", least=0.0)
    parameter = parameters(run, START)
    noisy = NoisyRun(run)

    def step(_number: int, generator: torch.Generator) -> Step:
        harm = damage(noisy.draw(generator), torch.sigmoid(parameter))
        return Step(harm + beta * information(parameter).mean(), float(harm.detach()))

    training = minimise(step, [parameter], steps=steps, lr=lr, seed=seed, progress=progress)
    weight = torch.sigmoid(parameter.detach())
    options = {"beta": beta, "steps": steps, "lr": lr, "seed": seed}
    selection = {"threshold": THRESHOLD, "noise": "mean and standard deviation over all tokens of the clean prompts"}
    return learned(
        run, weight, weight > THRESHOLD, training, method="information_bottleneck", options=options,
        selection=selection,
    )  # fmt: skip


def search(
    run: MaskedRun,
    *,
    beta: float = 1.0,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> Circuit:
    """Find the circuit of the nodes of which more than half comes through.

    The loss is ``damage + beta · mean over nodes of information(w)``. The search needs no corrupt prompts: the run's
    own ablation serves only to measure the effects of the edges found.

    Cost: one dense run forward and backward per step, then one partial run per kept edge for its effect.

    Args:
        run: over nodes; its metric gives the damage (KL, or clean metric - metric).
        beta: the price of a nat per dimension, averaged over nodes, in the metric's unit; larger gives smaller
            circuits.
        steps: of Adam, at most; fewer if the smoothed loss no longer falls.
        lr: learning rate of the weights' logits.
        seed: of the noise.
        progress: called with the number of steps done and to do.

    Returns:
        All edges between nodes with w above 1/2, and from these to the logits; the score of each is the exact effect
        of ablating it alone. ``provenance["training"]`` has the loss of every step. `learn` gives all weights.

    Raises:
        InvalidOption: an option out of range, a metric without a gradient, or a run not over nodes.
        NotFinite: the search diverged; the message names the step.

    Source: arXiv 2602.22581. The moments are taken once, over all clean tokens together, since at one position a
    template may leave no variance; a in the divergence is the write of the clean run, which makes it a function of w
    alone; nats are averaged over dimensions and nodes. Heads get their noise in head space (z), before W_O, with
    independent dimensions.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task(), metric="kl").nodes()
        >>> search(run, beta=0.0, steps=20).n_edges  # nothing has a price
        9
    """
    mask = learn(run, beta=beta, steps=steps, lr=lr, seed=seed, progress=progress)
    return with_effects(run, mask)

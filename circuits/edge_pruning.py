"""Edge Pruning: learn which edges to keep, held to a given sparsity by a Lagrangian.

    max over l1, l2  min over log_alpha   E_mask [damage(mask)] + l1 (s - t) + l2 (s - t)²

with masks drawn from hard concrete distributions, s the expected share of masks that are 0, and t the target, which
rises from 0 to its final value during the first part of the search.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.learned_mask import (
    HARD_CONCRETE,
    LearnedMask,
    Step,
    check_number,
    check_run,
    damage,
    learned,
    minimise,
    parameters,
    uniform,
    with_effects,
)
from graphs.circuit import Circuit
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent

START = 0.9
"""The noiseless mask value that every edge starts with."""
WARM_UP = 0.6
"""The share of the steps in which the target rises."""
MULTIPLIER_LR = 2.0
"""Learning rate of the Lagrange multipliers."""
REACHED = 0.01
"""The search may stop once the expected sparsity is this close to the target."""


def learn(
    run: MaskedRun,
    *,
    sparsity: float = 0.9,
    steps: int = 300,
    lr: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> LearnedMask:
    """Learn keep probabilities, of all edges.

    As `search`, without the effects of the kept edges. The probability of an edge is ``sigmoid(log_alpha)``, that its
    random mask is above 1/2.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> learn(run, sparsity=2 / 3, steps=100).circuit.n_edges
        3
    """
    check_run(run, "edge")
    check_number(sparsity, name="sparsity", least=0.0)
    if sparsity > 1:
        raise InvalidOption(f"expected sparsity to be a share of the edges, from 0 to 1; got {sparsity!r}.")
    wanted = round((1 - sparsity) * run.n_units)
    log_alpha = parameters(run, HARD_CONCRETE.start(START))
    linear, square = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    rise = max(1, round(WARM_UP * steps)) if isinstance(steps, int) else 1

    def step(number: int, generator: torch.Generator) -> Step:
        harm = damage(run, HARD_CONCRETE.sample(log_alpha, uniform(run, generator)))
        target = sparsity * min(1.0, (number + 1) / rise)
        gap = 1 - HARD_CONCRETE.open(log_alpha).mean() - target
        settled = number + 1 >= rise and abs(float(gap.detach())) < REACHED
        return Step(harm + linear * gap + square * gap**2, float(harm.detach()), settled)

    training = minimise(
        step,
        [log_alpha],
        steps=steps,
        lr=lr,
        seed=seed,
        multipliers=[linear, square],
        multiplier_lr=MULTIPLIER_LR,
        progress=progress,
    )
    final = log_alpha.detach()
    kept, threshold = highest(final, wanted)
    chosen = HARD_CONCRETE.open(final).mean()
    selection = {
        "threshold": threshold,
        "sparsity_asked": sparsity,
        "sparsity": 1 - wanted / run.n_units,
        "sparsity_expected_of_the_masks": 1 - float(chosen),
        "multipliers": [float(linear.detach()), float(square.detach())],
    }
    options = {"sparsity": sparsity, "steps": steps, "lr": lr, "seed": seed}
    return learned(
        run, torch.sigmoid(final), kept, training, method="edge_pruning", options=options, selection=selection
    )


def highest(values: Float[Tensor, " unit"], count: int) -> tuple[Bool[Tensor, " unit"], float | None]:
    """Which units are the ``count`` highest, and a threshold that separates them (None where nothing needs to).

    The threshold is where a bisection on it would end: half way between the last value kept and the first one
    dropped. Where these are equal it cannot separate them, and the units of lower numbers are kept.
    """
    order = torch.argsort(values, descending=True, stable=True)
    kept = torch.zeros(len(values), dtype=torch.bool)
    kept[order[:count]] = True
    if not 0 < count < len(values):
        return kept, None
    return kept, float((values[order[count - 1]] + values[order[count]]) / 2)


def search(
    run: MaskedRun,
    *,
    sparsity: float = 0.9,
    steps: int = 300,
    lr: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> Circuit:
    """Find the circuit of a given size by gradient descent on a mask over edges.

    The number of edges kept is ``round((1 - sparsity) · edges)`` exactly: a threshold on log_alpha is put where it
    leaves that many. Dead ends stay, since they count; ``circuit.prune()`` drops them.

    Cost: one dense run forward and backward per step, then one partial run per kept edge for its effect.

    Args:
        run: over edges; its metric gives the damage (KL, or clean metric - metric).
        sparsity: the share of edges to drop, from 0 to 1.
        steps: of Adam, at most; the target rises during the first 60 %, and the search ends early if after that the
            sparsity is reached and the smoothed loss no longer falls.
        lr: learning rate of log_alpha.
        seed: of the masks drawn.
        progress: called with the number of steps done and to do.

    Returns:
        The kept edges; the score of each is the exact effect of ablating it alone. ``provenance["training"]`` has the
        loss of every step, ``provenance["selection"]`` the threshold and the sparsity that the masks expect. `learn`
        gives the probabilities of all edges.

    Raises:
        InvalidOption: an option out of range, a metric without a gradient, or a run not over edges.
        NotFinite: the search diverged; the message names the step.

    Source: arXiv 2406.16778. They use KL, 3,000 steps of which 2,500 warm up, a learning rate of 0.8 and also masks on
    whole nodes; here the damage is the run's, edges alone have masks, and the search is shorter.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> circuit = search(run, sparsity=2 / 3, steps=100)
        >>> [str(edge) for edge in circuit.edges]
        ['input->a0.h1<v>', 'input->logits', 'a0.h1->logits']
    """
    mask = learn(run, sparsity=sparsity, steps=steps, lr=lr, seed=seed, progress=progress)
    return with_effects(run, mask)

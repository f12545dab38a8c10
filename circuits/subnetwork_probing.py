"""Subnetwork probing (SP): learn which units to keep, at a price per unit kept.

    minimise over log_alpha   E_mask [damage(mask)] + regularisation · mean P(mask ≠ 0)

with masks drawn from hard concrete distributions. Over nodes as in the paper; over edges just the same.
"""

from __future__ import annotations

import torch

from circuits.learned_mask import (
    HARD_CONCRETE,
    THRESHOLD,
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
from patching.masked import MaskedRun
from patching.progress import Progress, silent

START = 0.9
"""The noiseless mask value that every unit starts with."""


def learn(
    run: MaskedRun,
    *,
    regularisation: float = 4.0,
    steps: int = 300,
    lr: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> LearnedMask:
    """Learn keep probabilities, of all units.

    As `search`, without the effects of the kept edges. The probability of a unit is that its random mask is above
    1/2: ``sigmoid(log_alpha)``, so the threshold of 1/2 is the noiseless mask rounded.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> mask = learn(run, steps=100)
        >>> {str(unit) for unit in mask.scores().top(3)} == {"a0.h1->logits", "input->logits", "input->a0.h1<v>"}
        True
    """
    check_run(run, "edge", "node")
    check_number(regularisation, name="regularisation", least=0.0)
    log_alpha = parameters(run, HARD_CONCRETE.start(START))

    def step(_number: int, generator: torch.Generator) -> Step:
        harm = damage(run, HARD_CONCRETE.sample(log_alpha, uniform(run, generator)))
        return Step(harm + regularisation * HARD_CONCRETE.open(log_alpha).mean(), float(harm.detach()))

    training = minimise(step, [log_alpha], steps=steps, lr=lr, seed=seed, progress=progress)
    probability = torch.sigmoid(log_alpha.detach())
    options = {"regularisation": regularisation, "steps": steps, "lr": lr, "seed": seed}
    return learned(
        run,
        probability,
        probability > THRESHOLD,
        training,
        method="subnetwork_probing",
        options=options,
        selection={"threshold": THRESHOLD},
    )


def search(
    run: MaskedRun,
    *,
    regularisation: float = 4.0,
    steps: int = 300,
    lr: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> Circuit:
    """Find the circuit whose learned mask is above 1/2.

    The loss is ``damage + regularisation · mean over units of P(mask ≠ 0)``, so a unit stays if losing it costs more
    than about regularisation / number of units.

    Cost: one dense run forward and backward per step, then one partial run per kept edge for its effect.

    Args:
        run: over edges or nodes; its metric gives the damage (KL, or clean metric - metric).
        regularisation: the price of keeping everything, in the metric's unit; larger gives smaller circuits.
        steps: of Adam, at most; fewer if the smoothed loss no longer falls.
        lr: learning rate of log_alpha.
        seed: of the masks drawn.
        progress: called with the number of steps done and to do.

    Returns:
        The kept edges, at node level all between kept nodes; the score of each is the exact effect of ablating it
        alone. ``provenance["training"]`` has the loss of every step. `learn` gives the probabilities of all units.

    Raises:
        InvalidOption: an option out of range, a metric without a gradient, or a run by position.
        NotFinite: the search diverged; the message names the step.

    Source: arXiv 2104.03514, as set up for circuits in arXiv 2304.14997: hard concrete masks with beta 2/3 on
    [-0.1, 1.1] that start at 0.9. They take 3,000 to 10,000 steps of learning rate 0.001 over nodes split into q, k, v
    and MLPs; we take fewer and larger ones, over heads and MLPs or over edges, and stop early.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> circuit = search(run, steps=100)
        >>> [str(edge) for edge in circuit.edges]
        ['input->a0.h1<v>', 'input->logits', 'a0.h1->logits']
    """
    mask = learn(run, regularisation=regularisation, steps=steps, lr=lr, seed=seed, progress=progress)
    return with_effects(run, mask)

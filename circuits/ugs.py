"""Uniform gradient sampling (UGS): an unbiased gradient of the damage with respect to keep probabilities.

Each unit has a probability θ. A mask entry is 1 or 0 as a coin with θ would fall, except in a window of width
w = temperature · θ (1 - θ), where it is uniform in between:

    mask = 1 - clamp((u - θ) / w + 1/2, 0, 1),   u uniform

The derivative of the mean over masks with respect to θ is the mean of d damage / d mask over uniform entries, which is
what those in the window measure; by the parameter p with θ = sigmoid(p), d mask / d p is 1 / temperature there,
whatever θ.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.learned_mask import (
    THRESHOLD,
    LearnedMask,
    Step,
    check_number,
    check_run,
    check_whole,
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

START = 1.0
"""p of every unit at the start: kept with probability 0.73, where the window is wide."""
TEMPERATURE = 1.0
"""Width of the window over θ (1 - θ)."""


def sample(
    parameter: Float[Tensor, " unit"], numbers: Float[Tensor, "sample unit"], *, temperature: float = TEMPERATURE
) -> Float[Tensor, "sample unit"]:
    """Masks that go with uniform numbers, with the gradient of the expected damage.

    A unit's gradient is a mean over the samples of which it was in the window: how many these were is chance, and
    their number is replaced by its expectation. A unit that was in no window has a gradient of 0 in this step.
    """
    theta = torch.sigmoid(parameter)
    width = (theta * (1 - theta)).detach() * temperature
    masks = 1 - ((numbers - theta) / width + 0.5).clamp(0, 1)
    inside = ((numbers - theta.detach()).abs() < width / 2).sum(0)
    ratio = len(numbers) * width / inside.clamp(min=1)
    return masks.detach() + ratio * (masks - masks.detach())


def learn(
    run: MaskedRun,
    *,
    regularisation: float = 0.01,
    samples: int = 4,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> LearnedMask:
    """Learn keep probabilities, of all units.

    As `search`, without the effects of the kept edges. The probability of a unit is its θ.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> mask = learn(run, regularisation=0.1, steps=60)
        >>> {str(unit) for unit in mask.scores().top(3)} == {"a0.h1->logits", "input->logits", "input->a0.h1<v>"}
        True
    """
    check_run(run, "edge", "node")
    check_number(regularisation, name="regularisation", least=0.0)
    check_whole(samples, name="samples", least=1)
    parameter = parameters(run, START)

    def step(_number: int, generator: torch.Generator) -> Step:
        harm = damage(run, sample(parameter, uniform(run, generator, samples)))
        return Step(harm + regularisation * torch.sigmoid(parameter).sum(), float(harm.detach()))

    training = minimise(step, [parameter], steps=steps, lr=lr, seed=seed, progress=progress)
    probability = torch.sigmoid(parameter.detach())
    options = {"regularisation": regularisation, "samples": samples, "steps": steps, "lr": lr, "seed": seed}
    selection = {"threshold": THRESHOLD, "temperature": TEMPERATURE}
    whole = learned(
        run, probability, probability > THRESHOLD, training, method="ugs", options=options, selection=selection
    )
    pruned = whole.circuit.prune()
    provenance = dict(pruned.provenance)
    provenance["selection"] |= {"dangling_edges_removed": whole.circuit.n_edges - pruned.n_edges}
    return replace(whole, circuit=replace(pruned, provenance=provenance))


def search(
    run: MaskedRun,
    *,
    regularisation: float = 0.01,
    samples: int = 4,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> Circuit:
    """Find the circuit of the units whose keep probability is above 1/2.

    The loss is ``damage + regularisation · Σ θ``, so a unit stays if losing it costs more than about
    ``regularisation``. Edges that are on no path from the input to the logits are dropped afterwards.

    Cost: ``samples`` dense runs forward and backward per step, then one partial run per kept edge for its effect.

    Args:
        run: over edges or nodes; its metric gives the damage (KL, or clean metric - metric).
        regularisation: the price of keeping one unit, in the metric's unit; larger gives smaller circuits.
        samples: masks drawn per step.
        steps: of Adam, at most; fewer if the smoothed loss no longer falls.
        lr: learning rate of p.
        seed: of the masks drawn.
        progress: called with the number of steps done and to do.

    Returns:
        The kept edges, at node level all between kept nodes; the score of each is the exact effect of ablating it
        alone. ``provenance["training"]`` has the loss of every step, ``provenance["selection"]`` how many dangling
        edges were dropped. `learn` gives the probabilities of all units.

    Raises:
        InvalidOption: an option out of range, a metric without a gradient, or a run by position.
        NotFinite: the search diverged; the message names the step.

    Source: arXiv 2409.09951. Theirs draws a mask per prompt and trains the constants of an optimal ablation together
    with the mask; here all prompts share a mask, and the constants are those of the run (`patching.optimal` trains
    them beforehand). The window has temperature 1.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> circuit = search(run, regularisation=0.1, steps=60)
        >>> [str(edge) for edge in circuit.edges]
        ['input->a0.h1<v>', 'input->logits', 'a0.h1->logits']
    """
    mask = learn(run, regularisation=regularisation, samples=samples, steps=steps, lr=lr, seed=seed, progress=progress)
    return with_effects(run, mask)

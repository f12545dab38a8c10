"""From a run to weights: draw random ablations, run them, regress the outputs on the masks."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from circuits.coar.attribution import Attribution
from circuits.coar.estimators import check, fit
from circuits.coar.masks import MaskDesign
from circuits.coar.sampling import SHARD_ROWS, Sampling, merge, sample
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores

SAMPLES_PER_UNIT = 10
LEAST_SAMPLES = 1_000
MOST_SAMPLES = 20_000


def default_samples(n_units: int) -> int:
    """Ten masks for every component, within 1,000 and 20,000."""
    return min(MOST_SAMPLES, max(LEAST_SAMPLES, SAMPLES_PER_UNIT * n_units))


def attribute(
    run: ComponentRun,
    *,
    samples: int | None = None,
    keep: float = 0.9,
    seed: int = 0,
    masks: str = "bernoulli",
    own_masks: bool = False,
    mean_prompt: bool = False,
    estimator: str = "auto",
    ridge: float | None = None,
    folder: str | os.PathLike[str] | None = None,
    shard_rows: int = SHARD_ROWS,
    progress: Progress = silent,
) -> Attribution:
    r"""Component attribution (COAR): a linear model of each prompt's output in the components kept.

    With masks :math:`m \sim \mathrm{Bernoulli}(p)^n` and outputs f(m), the weights minimise
    :math:`\sum_s (f(m_s) - b - w \cdot m_s)^2`, one regression for each prompt.

    Args:
        run: components, ablation and output; ``ComponentRun(model, task, components=…, ablation=…, metric=…)``.
        samples: masks; by default ten for every component, from 1,000 to 20,000.
        keep: probability that a component is kept; the paper's alpha is ``1 - keep``. With interactions the weights
            depend on it; near 1 they become leave-one-out effects.
        seed: of the masks.
        masks: ``bernoulli`` (independent), or ``subset`` (equally many ablated every time; see `MaskDesign`).
        own_masks: draw masks for each prompt of their own instead of sharing them. Prompts' errors are then
            independent, and each has a regression to itself, which takes longer.
        mean_prompt: attribute the mean output of all prompts instead of each prompt's.
        estimator: see `circuits.coar.estimators.fit`; ``auto`` chooses by samples, components and memory, and the
            result says which and why.
        ridge: strength of ridge regression; chosen if not given.
        folder: where finished shards are kept, to go on after an interruption or with more samples.
        shard_rows: samples of a shard.
        progress: called with the samples run and to run.

    Returns:
        Weights in the metric's unit: ``w > 0``: keeping the component raises the output.

    Raises:
        InvalidOption: options out of range, or a folder with shards of another sampling.
        NotFinite: the metric is NaN or infinite; says for which prompts.

    Cost: ``samples`` forwards of every prompt, then one regression.

    Source: Shah, Ilyas and Madry, arXiv 2404.11534. Theirs zeroes rows of weight matrices in a deep copy for every mask
    and fits by stochastic gradient descent on float16 outputs. Here components are heads, MLPs, neurons or features,
    ablations are any of the project's, and least squares is solved exactly.

    Example:
        >>> from patching import toy
        >>> found = attribute(ComponentRun(toy.model(), toy.task()), samples=64, keep=0.5, seed=0)
        >>> found.provenance["options"]["estimator"]
        'normal_equations'
    """
    prompts = len(run.task) if own_masks else None
    design = MaskDesign(
        run.n_units, default_samples(run.n_units) if samples is None else samples, keep, seed, masks, prompts
    )
    if own_masks and mean_prompt:
        raise InvalidOption("expected shared masks for the mean prompt; got masks of their own. Drop one of the two.")
    check(estimator, samples=design.samples, n_units=run.n_units)
    sampling = Sampling.of(run, design, shard_rows=shard_rows)
    outputs = merge(sample(run, sampling, folder=folder, progress=progress), sampling)
    return attribution_of(run, design, outputs, mean_prompt=mean_prompt, estimator=estimator, ridge=ridge)


def attribution_of(
    run: ComponentRun,
    design: MaskDesign,
    outputs: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    mean_prompt: bool = False,
    estimator: str = "auto",
    ridge: float | None = None,
) -> Attribution:
    """The attribution that outputs under a design's masks give; ``rows`` restricts it to some of the samples."""
    values = outputs.mean(1, keepdim=True) if mean_prompt else outputs
    found = fit(design, values, estimator=estimator, ridge=ridge, rows=rows)
    options: dict[str, Any] = {
        "samples": design.samples if rows is None else len(rows),
        "keep": design.keep,
        "seed": design.seed,
        "masks": design.kind,
        "own_masks": design.prompts is not None,
        "mean_prompt": mean_prompt,
        "estimator": found.estimator,
        "reason": found.reason,
    }
    told = run.provenance("coar", options) | {"sign": "weight > 0: keeping the component raises the output"}
    return Attribution(
        run.model.architecture, run.units, found.weights, found.intercept, design.keep, found.standard_error, told
    )


def scores(
    run: MaskedRun,
    *,
    samples: int = 2_000,
    keep: float = 0.9,
    seed: int = 0,
    estimator: str = "auto",
    progress: Progress = silent,
) -> Scores:
    """`attribute` for a run over nodes or neurons, as effects in the project's sign: minus the weights.

    All nodes take part, the input too: its ablation removes what every other component reads.

    Args:
        run: ``run.nodes()`` or ``run.neurons()``.
        samples: masks; take ten or more for every unit.
        keep: probability that a unit is kept.
        seed: of the masks.
        estimator: see `circuits.coar.estimators.fit`.
        progress: called with the samples run and to run.

    Returns:
        Mean effect of ablating each unit while others are ablated at random, with its standard error over prompts.

    Raises:
        InvalidOption: a run over edges, or options out of range.

    Cost: ``samples`` forwards.

    Source: arXiv 2404.11534; see `attribute`.

    Example:
        >>> from patching import toy
        >>> found = scores(MaskedRun(toy.model(), toy.task()).nodes(), samples=64, keep=0.5)
        >>> [str(unit) for unit in found.top(1)]
        ['input']
    """
    if run.per_position:
        raise InvalidOption("expected a run over nodes or neurons, without positions. Use run.everywhere().")
    components = ComponentRun.of(run)
    found = attribute(components, samples=samples, keep=keep, seed=seed, estimator=estimator, progress=progress)
    told = dict(found.provenance) | {"sign": components.provenance("coar", {})["sign"]}
    return replace(found, provenance=told).scores()

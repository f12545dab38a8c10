"""Exact patching: what really happens to the metric when one unit is ablated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from graphs.nodes import Edge, Node
from patching.activation import SiteRun
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores
from patching.sites import Site


def scores(run: MaskedRun, *, only: Sequence[Edge | Node | str] | None = None, progress: Progress = silent) -> Scores:
    """The effect of ablating each unit alone, everything else running freely.

    ``effect(u) = metric(u ablated) - metric(clean)``: activation patching for nodes and neurons, exact edge patching
    for edges.

    Cost: one evaluation per unit, each restarting at the first node that the unit can reach; for neurons at their MLP.

    Args:
        run: over edges, nodes or neurons.
        only: units to measure; all by default. The others get the value 0.
        progress: called with the number of units done and to do.

    Returns:
        Effects in the metric's unit, mean and standard error over prompts.

    Raises:
        InvalidOption: the run is by position.
        UnknownEdge, UnknownNode: ``only`` names something that the model does not have.

    Source: activation patching as in arXiv 2309.16042, noising direction (swap the task for denoising); edge
    patching as "EActP" in arXiv 2504.13151.

    Example:
        >>> from patching import toy
        >>> effects = scores(MaskedRun(toy.model(), toy.task()).nodes())
        >>> effects.top(1)[0].kind
        'input'
    """
    if run.per_position:
        raise InvalidOption(
            "expected a run over edges, nodes or neurons; scores by position are not available from exact."
        )
    empty = Scores(run.graph.architecture, run.level, torch.zeros(run.n_units))
    numbers = range(run.n_units) if only is None else [empty.index(unit) for unit in only]
    effects = torch.zeros(len(run.task), run.n_units, dtype=torch.float64)
    if run.level == "neuron":
        effects[:, list(numbers)] = _of_neurons(run, numbers, progress)
    else:
        step = run.samples_that_fit
        for start in range(0, len(numbers), step):
            chosen = list(numbers[start : start + step])
            masks = run.ones().repeat(len(chosen), 1)
            masks[torch.arange(len(chosen)), chosen] = 0.0
            effects[:, chosen] = (run(masks) - run.clean_metric).T.cpu()
            progress(start + len(chosen), len(numbers))
    provenance = run.provenance("exact", {"only": None if only is None else [str(unit) for unit in only]})
    return Scores.over_prompts(run.graph.architecture, run.level, effects, provenance)


def _of_neurons(run: MaskedRun, numbers: Sequence[int], progress: Progress) -> Float[Tensor, "example unit"]:
    """The effects of patching some neurons, each at all positions."""
    sites = SiteRun(run.model, run.task, ablation=run.ablation, metric=run.metric, memory=run.memory)
    width = run.n_units // run.graph.architecture.n_layers
    patches = [(Site("neurons", number // width, number % width),) for number in numbers]
    return (sites(patches, progress=progress) - sites.base_metric).T.double().cpu()

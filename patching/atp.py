"""Attribution patching (AtP): the effect of every edge, node or neuron to first order, from one backward pass.

On edges this is known as edge attribution patching (EAP). Products and gradients stand in `first_order` and `tape`.
"""

from __future__ import annotations

from patching.first_order import averaged, require, require_slope
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores
from patching.tape import clean_embedding


def scores(run: MaskedRun, *, progress: Progress = silent) -> Scores:
    """First-order estimate of the effect of ablating each unit.

    For a node n:  ``(replacement_n - clean_n) · d metric / d n``, summed over positions.
    For an edge s -> t:  ``(replacement_s - clean_s) · d metric / d (input of t)``.
    For a neuron: the same with its activation; replaced by that of the other run, by its mean, or by 0.

    For edges and nodes it is minus the gradient of the masked run with respect to the unit's mask, at mask 1. The sum
    of an output's edges is its node. Where no norm follows the MLP, the sum of a layer's neurons is its MLP node; with
    ``ablation="zero"`` it is the node's effect plus ``b_out · gradient``, for ablating the node removes the output bias
    too.

    Cost: two forwards and one backward for all units, plus one matrix product per layer for edges and two forwards for
    neurons.

    Args:
        run: over edges, nodes or neurons.
        progress: called with the number of batches done and to do.

    Returns:
        Signed effects in the metric's unit, mean and standard error over prompts.

    Raises:
        InvalidOption: the metric's gradient vanishes at the clean run (KL), or the run is by position.

    Source: arXiv 2403.00745 eq. 4 for nodes and neurons (signed here; its eq. 5 averages absolute effects), arXiv
    2310.10348 for edges.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> edges, nodes = scores(run), scores(run.nodes())
        >>> from_input = sum(edges[edge] for edge in edges.units if edge.source.kind == "input")
        >>> abs(from_input - nodes["input"]) < 1e-9
        True
    """
    require_slope(run, only_clean=True)
    require(run, "atp")
    return averaged(run, "atp", {}, lambda batch: [(clean_embedding(batch), 1.0)], count=1, progress=progress)

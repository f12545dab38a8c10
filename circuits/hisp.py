"""Head importance score for pruning (HISP): how steeply the metric depends on the mask of each unit."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patching.chunks import with_fewer_prompts
from patching.first_order import UNITS, difference, require, require_slope
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores
from patching.tape import clean_embedding, record


@with_fewer_prompts
def scores(run: MaskedRun, *, progress: Progress = silent) -> Scores:
    """Rank units by the mean size of the metric's slope in their mask.

    ``importance(u) = mean over prompts |d metric / d mask_u|`` at mask 1, divided by the Euclidean norm of its layer:
    of all units that write in it (nodes) or read in it (edges). The input among nodes and the logits among edges are a
    layer of their own. A layer without any slope has importance 0.

    Cost: two forwards and one backward for all units.

    Args:
        run: over edges or nodes.
        progress: called with the number of batches done and to do.

    Returns:
        Shares of a layer, from 0 to 1: positive importances and no effects. The standard error is over prompts, at the
        given norms.

    Raises:
        InvalidOption: the metric's gradient vanishes at the clean run (KL), or the run is by position.

    Source: arXiv 1905.10650 section 4.1 with its normalisation by layer, as used for circuits in arXiv 2304.14997. The
    slope is there of the loss with respect to a mask on heads; here of any metric, with the run's own replacement at
    mask 0, for MLPs and edges too.

    Example:
        >>> from patching import toy
        >>> heads = scores(MaskedRun(toy.model(), toy.task().subset(slice(1, 2))).nodes())
        >>> heads["a0.h1"], heads["a0.h0"]
        (1.0, 0.0)
    """
    require_slope(run, only_clean=True)
    require(run, "hisp", levels=("edge", "node"))
    units, found = UNITS[run.level], []
    for number, (batch, replacement) in enumerate(zip(run.batches, units.replacements(run), strict=True)):
        change = units.spread(batch, difference(replacement, units.clean(batch)))
        slopes = units.slopes(batch, record(batch, clean_embedding(batch)))
        found.append(units.product(batch, slopes, change))
        progress(number + 1, len(run.batches))
    sizes = torch.cat(found).double().abs().cpu()
    norm = _norms(sizes.mean(0), layers(run))
    provenance = run.provenance("hisp", {}) | {"sign": "importance: a share of its layer, not an effect"}
    return Scores.over_prompts(run.graph.architecture, run.level, sizes / norm, provenance)


def layers(run: MaskedRun) -> Int[Tensor, " unit"]:
    """The layer with which each unit is normalised: that of its source (nodes) or of its target (edges)."""
    if run.level == "node":
        return torch.tensor([-1 if node.layer is None else node.layer for node in run.graph.sources])
    last = run.graph.architecture.n_layers
    of_target = [last if port.node.layer is None else port.node.layer for port in run.graph.targets]
    return torch.tensor(of_target).repeat_interleave(torch.tensor(run.graph.n_visible))


def _norms(importance: Float[Tensor, " unit"], layer: Int[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """The norm of each unit's layer; 1 where it is 0."""
    which = layer - layer.min()
    squares = torch.zeros(int(which.max()) + 1, dtype=importance.dtype).index_add(0, which, importance**2)
    norms = squares.sqrt()
    return torch.where(norms > 0, norms, torch.ones_like(norms))[which]

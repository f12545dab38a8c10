"""Activation magnitude: how far an ablation moves what each unit carries. A baseline without gradients."""

from __future__ import annotations

import torch

from patching.engine import Batch
from patching.first_order import UNITS, difference, require, rows
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores


def scores(run: MaskedRun, *, progress: Progress = silent) -> Scores:
    """The size of the change that ablating a unit makes, before anything reads it.

    ``‖replacement - clean‖₂`` of what the source writes to the residual stream, over the width and all positions up to
    the answer; edges into the logits count the answer position alone, the only one that is read there. Other edges of
    a source share its value.

    These are positive importances and no effects: they have no sign and do not know the metric or who reads.

    Cost: nothing beyond making the run.

    Args:
        run: over edges or nodes.
        progress: called with the number of batches done and to do.

    Returns:
        Lengths in the unit of the residual stream, mean and standard error over prompts.

    Raises:
        InvalidOption: the run is over neurons or by position.

    Source: the baseline of that name in the code of arXiv 2407.08734, on edges; how it sums over positions is ours.

    Example:
        >>> from patching import toy
        >>> found = scores(MaskedRun(toy.model(), toy.task().subset(slice(1, 2))).nodes())
        >>> round(found["a0.h1"], 6)  # it writes 1.5 at the answer, and nothing on the corrupt prompt
        1.5
    """
    require(run, "magnitude", levels=("edge", "node"))
    found = []
    replacements = UNITS["node"].replacements(run)
    for number, (batch, replacement) in enumerate(zip(run.batches, replacements, strict=True)):
        change = rows(batch, difference(replacement, UNITS["node"].clean(batch)))
        found.append(_lengths(run, batch, change))
        progress(number + 1, len(run.batches))
    provenance = run.provenance("magnitude", {}) | {"sign": "importance: a length, not an effect"}
    return Scores.over_prompts(run.graph.architecture, run.level, torch.cat(found), provenance)


def _lengths(run: MaskedRun, batch: Batch, change: torch.Tensor) -> torch.Tensor:
    """One length per prompt and unit, from the changes of all sources."""
    squares = change.double().pow(2).sum(-1)
    position = torch.arange(squares.shape[-1], device=squares.device)
    before = (squares * (position <= batch.answer[:, None])[:, None]).sum(-1).sqrt()
    if run.level == "node":
        return before
    last = squares[batch.rows, :, batch.answer].sqrt()
    parts = [before[:, :visible] for visible in run.graph.n_visible[:-1]]
    return torch.cat([*parts, last], dim=1)

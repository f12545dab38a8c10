"""Information-flow routes: how much of what a port reads comes from each source, without any ablation or gradient.

The residual that a port reads is a sum of what sources write. A source's *proximity* is how much of the sum's length it
accounts for, in the L1 norm. Only the clean run counts, and only up to the next reader: this ranks edges by how much
they carry, not by what their loss would do to the metric.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from patching.chunks import with_fewer_prompts
from patching.engine import Batch
from patching.first_order import require, source_rows
from patching.masked import MaskedRun
from patching.plan import Stage
from patching.progress import Progress, silent
from patching.scores import Scores
from patching.tape import Tape, clean_embedding, record


@with_fewer_prompts
def scores(run: MaskedRun, *, progress: Progress = silent) -> Scores:
    """The share of each source in what each target reads, averaged over tokens.

    ``share(s, t) = p(s) / Σ_s' p(s')`` with ``p(s) = max(0, ‖y‖₁ - ‖y - x_s‖₁)``, y the residual that t reads and x_s
    what s writes, token by token (`shares`), then the mean over a prompt's tokens up to its answer position. The logits
    read one token: at them, the share at the answer position. Queries, keys, values of a layer read the same residual,
    so their shares agree.

    These are positive importances and no effects: they have no sign, do not know the metric, and nothing is ablated.

    Cost: one forward, and for every layer the distances of all earlier writes.

    Args:
        run: over edges. Its ablation and metric play no part.
        progress: called with the number of batches done and to do.

    Returns:
        Importances between 0 and 1, mean and standard error over prompts; those into a port add up to 1.

    Raises:
        InvalidOption: the run is not over edges, or is by position.

    Source: arXiv 2403.00824. There, edges join the residual streams of tokens and a route is cut out of each token's
    graph from the answer down; here, as in the code of arXiv 2403.17806, they join components, and shares are averaged.

    Example:
        >>> from patching import toy
        >>> found = scores(MaskedRun(toy.model(), toy.task().subset(slice(1, 2))))
        >>> [round(found[f"{source}->logits"], 3) for source in ("input", "a0.h0", "a0.h1")]  # they write 1, 1 and 1.5
        [0.286, 0.286, 0.429]
    """
    require(run, "information_flow", levels=("edge",))
    found = []
    for number, batch in enumerate(run.batches):
        position = torch.arange(run.task.clean.shape[1], device=run.model.device)
        answer = batch.task.positions.to(run.model.device)[:, None]
        every, last = (position <= answer).double(), (position == answer).double()
        parts = []
        for stage, share in _by_reader(batch):
            weights = last if stage.kind == "logits" else every
            mean = torch.einsum("sbp,bp->bs", share, weights / weights.sum(1, keepdim=True))
            parts.append(mean[:, None].expand(-1, stage.targets.stop - stage.targets.start, -1).flatten(1))
        found.append(torch.cat(parts, dim=1))
        progress(number + 1, len(run.batches))
    provenance = run.provenance("information_flow", {}) | {"sign": "importance: a share from 0 to 1, not an effect"}
    return Scores.over_prompts(run.graph.architecture, "edge", torch.cat(found), provenance)


@with_fewer_prompts
def shares(run: MaskedRun) -> Float[Tensor, "example pos edge"]:
    """The share of each source in what each target reads, token by token; 0 where no source comes near.

    What follows a prompt's answer position is padding. Cost: one forward; memory, a number per token and edge.

    Args:
        run: over edges. Its ablation and metric play no part.

    Raises:
        InvalidOption: the run is not over edges, or is by position.

    Source: arXiv 2403.00824, with components in place of token streams as sources.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> each = shares(run)
        >>> tuple(each.shape) == (4, 2, run.n_units)
        True
    """
    require(run, "information_flow", levels=("edge",))
    found = []
    for batch in run.batches:
        parts = [
            share.permute(1, 2, 0).repeat(1, 1, stage.targets.stop - stage.targets.start)
            for stage, share in _by_reader(batch)
        ]
        found.append(torch.cat(parts, dim=-1))
    return torch.cat(found)


@torch.no_grad()
def _by_reader(batch: Batch) -> Iterator[tuple[Stage, Float[Tensor, "source example pos"]]]:
    """For each stage, the share of every source that it reads.

    Rows of one layer's sources are held at a time, and what every stage reads.
    """
    tape = record(batch, clean_embedding(batch), grad=False)
    stages = batch.planner.stages
    near: list[list[Tensor]] = [[] for _ in stages]
    for writer in (None, *(stage for stage in stages if stage.kind != "logits")):
        written = tape.start[None] if writer is None else source_rows(batch, writer, _values(tape, writer))
        for number, reader in enumerate(stages):
            if reader.visible > (0 if writer is None else writer.sources.start):
                residual = _read(tape, reader)
                length = residual.abs().sum(-1)
                near[number].append((length - (residual - written).abs().sum(-1)).clamp(min=0).double())
    for stage, parts in zip(stages, near, strict=True):
        proximity = torch.cat(parts)
        total = proximity.sum(0)
        yield stage, torch.where(total > 0, proximity / torch.where(total > 0, total, 1.0), 0.0)


def _values(tape: Tape, stage: Stage) -> Tensor:
    return tape.heads[stage.layer] if stage.kind == "attention" else tape.writes[stage.layer]


def _read(tape: Tape, stage: Stage) -> Tensor:
    """The residual that a stage reads."""
    if stage.kind == "logits":
        return tape.final
    return (tape.attention if stage.kind == "attention" else tape.mlps)[stage.layer][0]

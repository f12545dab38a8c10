"""EAP with integrated gradients: attribution patching with gradients averaged on the way to the ablated run.

==================  ==================================================================  ===========================
`inputs`            while the embeddings go from clean to replaced                      m (F + B)
`activations`       while one stage's sources go from clean to replaced, for each       about (L + 1/2) m (F + B)
`clean_corrupted`   at the two ends alone                                               2 (F + B)
==================  ==================================================================  ===========================

F is a forward, B a backward, m the number of steps and L of layers. All give the signed effect of ablating each edge,
node or neuron. A metric whose gradient vanishes at the clean run, such as KL, is welcome wherever some point is not the
clean run: what the other points see is what a finite step does.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from patching.chunks import with_fewer_prompts
from patching.engine import Batch
from patching.first_order import (
    UNITS,
    averaged,
    difference,
    edge_columns,
    hidden_gradient,
    require,
    require_slope,
    source_rows,
)
from patching.gradients import quadrature
from patching.masked import MaskedRun
from patching.plan import Stage
from patching.progress import Progress, silent
from patching.scores import Scores
from patching.tape import PortSlopes, Tape, clean_embedding, record, replaced_embedding, resume, whole


def inputs(run: MaskedRun, *, steps: int = 5, rule: str = "right", progress: Progress = silent) -> Scores:
    """``(replacement - clean) · Σ_k w_k g_k`` with gradients on the way of the embeddings.

    g_k is the gradient of the run whose embeddings are ``clean + α_k (replaced - clean)``. With one step of the left
    rule this is attribution patching. A node is the sum of its outgoing edges. It is not complete: over a cut of the
    graph the edges need not add up to the whole effect (`ceap` does).

    Cost: as many forwards and backwards as the rule has points, beyond those of making the run; one more forward and
    that of the replacements for neurons.

    Args:
        run: over edges, nodes or neurons. With zero or mean ablation the embeddings go to zero or the mean; a norm's
            gradient explodes where they are all 0, so take ``left`` or ``midpoint`` there.
        steps: intervals of the path.
        rule: points in the intervals, counted from the clean end: ``left``, ``right``, ``midpoint`` or ``trapezoid``.
            ``right`` with 5 steps takes α = 1, 4/5, …, 1/5, which are the points of the authors' edge code (k/5 of the
            way from the corrupt end, k = 0 to 4). Their node code takes k = 1 to 5, which is ``left``.
        progress: called with the number of gradients taken and to take.

    Returns:
        Signed effects in the metric's unit, mean and standard error over prompts.

    Raises:
        InvalidOption: an unknown rule or too few steps, a metric whose gradient vanishes at the clean run if that is
            the only point, or a run by position.

    Source: arXiv 2403.17806. The authors' code divides by the batch size after a metric that is a mean already.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> round(inputs(run)["a0.h1->logits"], 6)
        -1.5
    """
    require(run, "eap_ig_inputs")
    points = quadrature(rule, steps)
    require_slope(run, only_clean=all(alpha == 0 for alpha, _ in points))

    def path(batch: Batch) -> Iterator[tuple[Tensor, float]]:
        clean = clean_embedding(batch)
        change = replaced_embedding(batch) - clean
        return ((clean + alpha * change, weight) for alpha, weight in points)

    options = {"steps": steps, "rule": rule}
    return averaged(run, "eap_ig_inputs", options, path, count=len(points), progress=progress)


def clean_corrupted(run: MaskedRun, *, progress: Progress = silent) -> Scores:
    """``(replacement - clean) · (g_clean + g_replaced) / 2``: gradients at both ends of the path, and none between.

    It is `inputs` with one step of the trapezoid rule.

    Cost: two forwards and two backwards beyond those of making the run.

    Args:
        run: over edges, nodes or neurons.
        progress: called with the number of gradients taken and to take.

    Returns:
        Signed effects in the metric's unit, mean and standard error over prompts.

    Raises:
        InvalidOption: the run is by position.

    Source: the variant of that name in the code of arXiv 2403.17806; the two-point case of its integral.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> round(clean_corrupted(run)["a0.h1->logits"], 6)
        -1.5
    """
    require(run, "clean_corrupted")

    def ends(batch: Batch) -> Iterator[tuple[Tensor, float]]:
        yield clean_embedding(batch), 0.5
        yield replaced_embedding(batch), 0.5

    return averaged(run, "clean_corrupted", {}, ends, count=2, progress=progress)


@with_fewer_prompts
def activations(run: MaskedRun, *, steps: int = 5, rule: str = "midpoint", progress: Progress = silent) -> Scores:
    """``(replacement - clean) · Σ_k w_k g_k``, g_k taken while what the unit's stage writes is itself on the way.

    A stage is the input, all heads of a layer, or an MLP. Its sources go together from ``clean`` to ``replacement``,
    everything after them runs freely, and only their own outgoing edges (they themselves, for nodes; a layer's neurons)
    take the gradient. A stage's nodes add up to the effect of ablating all of them together, up to the error of the
    rule. A node is the sum of its outgoing edges. Any ablation will do.

    Cost: as many forwards and backwards as the rule has points for each stage, each from that stage on: with L layers
    and m points about (L + 1/2) m whole ones.

    Args:
        run: over edges, nodes or neurons.
        steps: intervals of the path.
        rule: points in the intervals, counted from the clean end: ``left``, ``right``, ``midpoint`` or ``trapezoid``.
            The authors' code takes the points of ``left``.
        progress: called with the number of gradients taken and to take.

    Returns:
        Signed effects in the metric's unit, mean and standard error over prompts.

    Raises:
        InvalidOption: an unknown rule or too few steps, a metric whose gradient vanishes at the clean run if that is
            the only point, or a run by position.

    Source: arXiv 2403.17806 ("activations"). The authors' code adds every stage's gradient to all edges and divides by
    stages times steps; here a stage's gradients count for its own edges alone, as in the paper's integral.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> round(activations(run)["a0.h1->logits"], 6)
        -1.5
    """
    require(run, "eap_ig_activations")
    points = quadrature(rule, steps)
    require_slope(run, only_clean=all(alpha == 0 for alpha, _ in points))
    units = UNITS[run.level]
    stages = _moved_stages(run)
    total, effects = len(run.batches) * len(stages) * len(points), []
    count = 0
    for batch, replacement in zip(run.batches, units.replacements(run), strict=True):
        clean = units.clean(batch)
        change = difference(replacement, clean)
        plain = record(batch, clean_embedding(batch), grad=False)
        made = torch.zeros(len(batch.task), run.n_units, dtype=torch.float64, device=run.model.device)
        for number, stage in enumerate(stages):
            for alpha, weight in points:
                columns, values = _MOVES[run.level](run, batch, plain, stage, clean[number], change[number], alpha)
                made[:, columns] += weight * values.double()
                count += 1
                progress(count, total)
        effects.append(made)
    provenance = run.provenance("eap_ig_activations", {"steps": steps, "rule": rule})
    return Scores.over_prompts(run.graph.architecture, run.level, torch.cat(effects), provenance)


def _moved_stages(run: MaskedRun) -> list[Stage | None]:
    """What is moved in turn: the input (None) and every writing stage, or every MLP."""
    stages = [stage for stage in run.planner.stages if stage.kind != "logits"]
    if run.level == "neuron":
        return [stage for stage in stages if stage.kind == "mlp"]
    return [None, *stages]


def _resumed(batch: Batch, plain: Tape, stage: Stage | None, rows: Tensor, alpha: float) -> Tape:
    """The run in which a stage's sources are moved by a share of their change."""
    residual = plain.entering(stage).detach() + alpha * whole(batch, rows.sum(0))
    return resume(batch, stage, residual)


def _rows(batch: Batch, stage: Stage | None, change: Tensor) -> Tensor:
    return change[None] if stage is None else source_rows(batch, stage, change)


def _move_nodes(
    _run: MaskedRun, batch: Batch, plain: Tape, stage: Stage | None, _clean: Tensor, change: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """The columns of a stage's nodes, and what the gradient at their residual gives each."""
    rows = _rows(batch, stage, change)
    tape = _resumed(batch, plain, stage, rows, alpha)
    (gradient,) = tape.gradients([tape.start])
    sources = slice(0, 1) if stage is None else stage.sources
    columns = torch.arange(sources.start, sources.stop)
    return columns, (rows * gradient[:, batch.start :]).sum((-2, -1)).T


def _move_edges(
    run: MaskedRun, batch: Batch, plain: Tape, stage: Stage | None, _clean: Tensor, change: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """The columns of the edges from a stage, and what the gradients at their targets give each."""
    rows = _rows(batch, stage, change)
    tape = _resumed(batch, plain, stage, rows, alpha)
    sources = slice(0, 1) if stage is None else stage.sources
    columns, values = [], []
    for reader, slopes in PortSlopes(batch, tape):
        columns.append(edge_columns(run, reader.targets, sources).flatten())
        values.append(torch.einsum("tbpd,sbpd->bts", slopes, rows).flatten(1))
    return torch.cat(columns), torch.cat(values, dim=1)


def _move_neurons(
    run: MaskedRun, batch: Batch, plain: Tape, stage: Stage | None, clean: Tensor, change: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """The columns of a layer's neurons, and what the gradient at them gives each."""
    assert stage is not None, "neurons belong to MLPs"
    mlp = run.model.blocks[stage.layer].mlp
    assert mlp is not None
    with torch.no_grad():
        hidden = clean + alpha * change
        rows = (mlp.write(hidden) - batch.clean.mlps[stage.layer])[None]
    tape = _resumed(batch, plain, stage, rows, 1.0)
    with torch.no_grad():
        gradient = hidden_gradient(mlp, hidden, tape.gradients([tape.start])[0][:, batch.start :])
    width = hidden.shape[-1]
    columns = torch.arange(stage.layer * width, (stage.layer + 1) * width)
    return columns, (change * gradient).sum(-2)


_MOVES = {"edge": _move_edges, "node": _move_nodes, "neuron": _move_neurons}

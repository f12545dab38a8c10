"""Attribution patching (AtP): the effect of every node or edge to first order, from one backward pass.

At mask 1 all ports of a layer read the same residual, so one ordinary backward in head space gives the gradient at
every q, k, v, MLP input and write; the norm's vector–Jacobian product turns those into gradients at the ports, a layer
at a time. On edges this is known as edge attribution patching (EAP).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from patching.blocks import Norm, Trace, forward, per_head
from patching.engine import Batch
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.plan import FULL, Stage
from patching.progress import Progress, silent
from patching.scores import Scores


def scores(run: MaskedRun, *, progress: Progress = silent) -> Scores:
    """First-order estimate of the effect of ablating each unit.

    For a node n:  ``(replacement_n - clean_n) · d metric / d n``, summed over positions.
    For an edge s -> t:  ``(replacement_s - clean_s) · d metric / d (input of t)``.
    Both equal minus the gradient of the masked run with respect to the unit's mask, at mask 1. The sum of an output's
    edges is its node.

    Cost: two forwards and one backward for all units, plus one matrix product per layer for edges.

    Args:
        run: over edges or nodes.
        progress: called with the number of batches done and to do.

    Returns:
        Signed effects in the metric's unit, mean and standard error over prompts.

    Raises:
        InvalidOption: the metric's gradient vanishes at the clean run (KL), or the run is by position.

    Source: arXiv 2403.00745 eq. 4 for nodes (signed here; its eq. 5 averages absolute effects), arXiv 2310.10348
    for edges.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> edges, nodes = scores(run), scores(run.nodes())
        >>> from_input = sum(edges[edge] for edge in edges.units if edge.source.kind == "input")
        >>> abs(from_input - nodes["input"]) < 1e-9
        True
    """
    if run.metric.zero_gradient_when_clean:
        raise InvalidOption(
            f"expected a metric whose gradient at the clean run is not zero; {run.metric.name} is at its minimum "
            "there, so every score would be 0. Use logit_difference, or a method that leaves the clean point."
        )
    if run.per_position:
        raise InvalidOption("expected a run over edges or nodes; scores by position are not available from atp.")
    effects = []
    for number, batch in enumerate(run.batches):
        effects.append(_node_effects(batch) if run.level == "node" else _edge_effects(batch))
        progress(number + 1, len(run.batches))
    return Scores.over_prompts(run.graph.architecture, run.level, torch.cat(effects), run.provenance("atp", {}))


def _clean_trace(batch: Batch) -> tuple[Trace, Tensor]:
    """The clean run with gradients, and the sum of the metric over prompts."""
    model = batch.model
    embedded = model.embed(batch.task.clean).requires_grad_(True)
    contexts = model.contexts(batch.task.clean.shape[1])
    trace = forward(model.blocks, embedded, contexts, parallel=model.architecture.parallel)
    rows = torch.arange(len(batch.task), device=model.device)
    return trace, batch.measure(trace.final[rows, batch.answer + batch.start]).sum()


def _node_effects(batch: Batch) -> Float[Tensor, "example source"]:
    trace, total = _clean_trace(batch)
    wanted = [trace.embedded, *trace.heads, *trace.mlps]
    gradients = list(torch.autograd.grad(total, wanted))
    old = batch.replacement
    effects: dict[str, list[Tensor]] = {"heads": [], "mlps": []}
    layers = len(trace.heads)
    for kind, values, replaced, slopes in (
        ("heads", trace.heads, old.heads, gradients[1 : 1 + layers]),
        ("mlps", trace.mlps, old.mlps, gradients[1 + layers :]),
    ):
        for value, replacement, slope in zip(values, replaced, slopes, strict=True):
            effects[kind].append(_dot(replacement - value.detach()[..., batch.start :, :], slope, batch))
    columns = [_dot(old.embedded - trace.embedded.detach()[:, batch.start :], gradients[0], batch)[:, None]]
    for layer in range(layers):
        columns.append(effects["heads"][layer].T)
        if trace.mlps:
            columns.append(effects["mlps"][layer][:, None])
    return torch.cat(columns, dim=1)


def _dot(change: Tensor, slope: Tensor, batch: Batch) -> Tensor:
    return (change * slope[..., batch.start :, :]).sum((-2, -1))


def port_gradients(batch: Batch) -> Iterator[tuple[Stage, Float[Tensor, "target example pos d_model"]]]:
    """The gradient of the metric (summed over prompts) at what each port reads, at the clean run, stage by stage.

    One layer is held at a time. Positions count from the batch's first one that any mask can change.

    Cost: one forward and one backward, plus one projection per layer.
    """
    with torch.enable_grad():
        trace, total = _clean_trace(batch)
        wanted = [layer[letter] for layer in trace.projected for letter in "qkv"] + trace.mlp_normed + [trace.final]
        gradients = list(torch.autograd.grad(total, wanted))
    layers = len(batch.model.blocks)
    for stage in batch.planner.stages:
        layer = stage.layer
        if stage.kind == "attention":
            yield stage, _attention_slopes(batch, trace, gradients[3 * layer : 3 * layer + 3], layer)
        elif stage.kind == "mlp":
            x = trace.mlp_inputs[layer][:, batch.start :].detach()
            gradient = gradients[3 * layers + layer][:, batch.start :]
            yield stage, _pulled(batch.model.blocks[layer].mlp_norm, x, gradient)[None]
        else:
            yield stage, gradients[-1][None, :, batch.start :]


@torch.no_grad()
def _edge_effects(batch: Batch) -> Float[Tensor, "example edge"]:
    """Port gradients times source changes; edges in the graph's order."""
    values = batch.clean
    change = values.embedded.new_empty((len(batch.task), batch.planner.n_sources, *values.embedded.shape[1:]))
    change[:, 0] = -batch.difference(None, "input", values.embedded, None, FULL)[0]
    result: list[Tensor] = []
    for stage, slopes in port_gradients(batch):
        effects = einsum(
            slopes,
            change[:, : stage.visible],
            "target example pos d_model, example source pos d_model -> example target source",
        )
        result.append(rearrange(effects, "example target source -> example (target source)"))
        if stage.kind == "attention":
            rows = batch.difference(stage.layer, "heads", values.heads[stage.layer], None, FULL)
            change[:, stage.sources] = -rows.transpose(0, 1)
        elif stage.kind == "mlp":
            rows = batch.difference(stage.layer, "mlp", values.mlps[stage.layer], None, FULL)
            change[:, stage.sources.start] = -rows[0]
    return torch.cat(result, dim=1)


def _attention_slopes(
    batch: Batch, trace: Trace, gradients: list[Tensor], layer: int
) -> Float[Tensor, "target example pos d_model"]:
    """Gradients at the q, k and v ports of a layer."""
    block = batch.model.blocks[layer]
    x = trace.attention_inputs[layer][:, batch.start :].detach()
    read = [
        per_head(gradient[..., batch.start :, :], block.attention.weights[letter].transpose(1, 2))
        for letter, gradient in zip("qkv", gradients, strict=True)
    ]
    return _pulled(block.attention_norm, x, torch.cat(read))


def _pulled(norm: object, x: Tensor, gradient: Tensor) -> Tensor:
    return norm.pull_back(x, gradient) if isinstance(norm, Norm) else gradient

"""Independent ways to what first-order methods compute: ports as leaves of one autograd graph, cuts, and views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from patching.engine import Batch
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.scores import Scores
from tests import tiny
from tests.oracle import EVERY_LOGIT

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "attention_only"]
"""Plain, grouped keys, norms after attention and MLP, parallel blocks, no MLPs."""

SAME = 1e-9
VIEWS: dict[str, Callable[[MaskedRun], MaskedRun]] = {
    "edge": MaskedRun.edges, "node": MaskedRun.nodes, "neuron": MaskedRun.neurons
}  # fmt: skip


def run_of(family: str, *, level: str = "edge", n: int = 2, prefix: int = 2, **options: Any) -> MaskedRun:
    options = {"metric": EVERY_LOGIT} | options
    return VIEWS[level](MaskedRun(tiny.model(family), tiny.task(n=n, prefix=prefix), **options))


def levels_of(family: str) -> list[str]:
    return ["edge", "node"] + ["neuron"] * (family != "attention_only")


def per_node(run: MaskedRun, edges: Scores) -> Tensor:
    """The sums of every source's outgoing edges."""
    return torch.zeros(len(run.graph.sources), dtype=torch.float64).index_add(0, run.edge_sources, edges.values)


def per_mlp(run: MaskedRun, neurons: Scores) -> dict[int, float]:
    """The sums of every layer's neurons."""
    layers = run.graph.architecture.n_layers
    return dict(enumerate(neurons.values.reshape(layers, -1).sum(1).tolist()))


def port_gradients_by_hand(
    batch: Batch, embedded: Tensor, *, model: LensModel | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Gradients at every port, as those of zeros that are added to what it alone reads, and what sources write there.

    The second part of the result holds the writes of all sources: [source, example, pos, d_model].
    """
    model = model or batch.model
    shape, contexts = model.architecture, model.contexts(embedded.shape[1])
    ports: list[Tensor] = []

    def read(residual: Tensor, count: int) -> Tensor:
        zeros = torch.zeros(count, *residual.shape, dtype=residual.dtype, requires_grad=True)
        ports.append(zeros)
        return residual + zeros

    residual, writes = embedded, [embedded[None]]
    for block, context in zip(model.blocks, contexts, strict=True):
        attention, parts = block.attention, {}
        for letter, count in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
            projected = attention.project(letter, block.attention_norm(read(residual, count)))
            parts[letter] = attention.place(letter, projected, context.rope)
        repeats = shape.n_heads // shape.n_kv_heads
        keys, values = (parts[letter].repeat_interleave(repeats, dim=0) for letter in "kv")
        share = attention.share(attention.attend(parts["q"], keys, values, context.bias))
        after = residual + attention.write_sum(share)
        writes.append(attention.write(share).detach())
        if block.mlp is not None:
            written = block.mlp(block.mlp_norm(read(residual if shape.parallel else after, 1)[0]))
            after = after + written
            writes.append(written.detach()[None])
        residual = after
    final = read(residual, 1)[0][torch.arange(len(embedded)), batch.task.positions]
    gradients = torch.autograd.grad(metric_of(batch, final, model).sum(), ports, materialize_grads=True)
    return torch.cat(writes), [one for gradient in gradients for one in gradient]


def metric_of(batch: Batch, final: Tensor, model: LensModel) -> Tensor:
    from patching.metrics import Prediction

    return batch.metric(
        Prediction(final, model.readout, batch.answers, batch.wrong, batch.clean_log_probs, batch.contrast)
    )


def edges_by_hand(run: MaskedRun, changes: Tensor, gradients: list[Tensor]) -> Tensor:
    """``change · gradient`` of every edge, summed over positions and averaged over prompts, one edge after another."""
    made = [
        (changes[source] * gradients[target]).sum((-2, -1)).mean()
        for target, visible in enumerate(run.graph.n_visible)
        for source in range(visible)
    ]
    return torch.stack(made)


def ends(run: MaskedRun) -> tuple[Tensor, Tensor]:
    """Clean and replaced embeddings, from the prompts."""
    return run.model.embed(run.task.clean), run.model.embed(run.ablation.prompts(run.task))


def cuts(run: MaskedRun, *, seed: int) -> Iterator[tuple[set[str], Tensor]]:
    """Cuts of the graph: everything up to some stage with a random part of that stage; and the numbers of their edges.

    Groups of heads that share keys stay together, and all heads of a layer with a norm behind attention.
    """
    generator = torch.Generator().manual_seed(seed)
    shape, graph = run.graph.architecture, run.graph
    joined = run.model.blocks[0].attention.post is not None
    together = shape.n_heads if joined else shape.heads_per_group
    for stage in run.planner.stages:
        if stage.kind == "logits":
            continue
        before = {str(source) for source in graph.sources[: stage.visible]}
        drawn = torch.rand(stage.sources.stop - stage.sources.start, generator=generator) < 0.5
        drawn = drawn[:: together if stage.kind == "attention" else 1].repeat_interleave(
            together if stage.kind == "attention" else 1
        )
        members = [source for source, taken in zip(graph.sources[stage.sources], drawn, strict=True) if taken]
        inside = before | {str(member) for member in members}
        readers = inside | {
            str(graph.key_value_node(node)) for node in graph.sources if str(node) in inside and node.kind == "head"
        }
        across = [
            number
            for number, edge in enumerate(graph.edges)
            if str(edge.source) in inside and str(edge.target) not in readers
        ]
        yield inside, torch.tensor(across)

"""Plain runs with their autograd graphs, from any embedding or layer on, and gradients at every port.

At every point of a run all ports of a layer read the same residual. So one ordinary backward in head space gives the
gradient at every q, k, v, MLP input and write; the norm's vector–Jacobian product turns those into gradients at the
ports, a layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from patching.blocks import Attention, Norm, Trace, forward, per_head
from patching.engine import Batch
from patching.plan import Stage


class Tape:
    """What a plain run reads and writes, with its autograd graph.

    Attributes:
        start: the leaf that the run began from.
        total: the metric, summed over prompts.
        final: the final residual.
        attention, mlps, heads, writes: by layer. The residual that attention reads, with the raw q, k and v; the
            residual that the MLP reads, with its normed form; z as it counts in the stream; what the MLP writes.
    """

    def __init__(self, batch: Batch, start: Tensor, trace: Trace, first: int) -> None:
        self.start, self.final = start, trace.final
        layers = range(first, first + len(trace.projected))
        self.attention = {n: (trace.attention_inputs[n - first], trace.projected[n - first]) for n in layers}
        self.heads = {n: trace.heads[n - first] for n in layers}
        self.mlps = {first + n: pair for n, pair in enumerate(zip(trace.mlp_inputs, trace.mlp_normed, strict=True))}
        self.writes = {first + n: written for n, written in enumerate(trace.mlps)}
        self.total = batch.measure(batch.at_answer(trace.final[:, batch.start :])[..., 0, :]).sum()

    def entering(self, stage: Stage | None) -> Tensor:
        """The residual at the first reader of what a stage writes (None: of the input)."""
        if stage is None:
            return self.start
        if stage.kind == "attention" and self._reads_same_layer(stage.layer):
            return self.mlps[stage.layer][0]
        after = stage.layer + 1
        return self.attention[after][0] if after in self.attention else self.final

    def _reads_same_layer(self, layer: int) -> bool:
        return layer in self.mlps and self.mlps[layer][0] is not self.attention[layer][0]

    def gradients(self, wanted: list[Tensor], *, keep: bool = False) -> list[Tensor]:
        """Gradients of the metric at some tensors; ``keep`` leaves the graph for another backward."""
        return list(torch.autograd.grad(self.total, wanted, retain_graph=keep, materialize_grads=True))


def record(batch: Batch, embedded: Float[Tensor, "example pos d_model"], *, grad: bool = True) -> Tape:
    """A run from the embeddings on, at all positions; without ``grad``, its values alone. Cost: one forward."""
    return resume(batch, None, embedded, grad=grad)


def resume(
    batch: Batch, stage: Stage | None, residual: Float[Tensor, "example pos d_model"], *, grad: bool = True
) -> Tape:
    """A run of what follows a stage (None: the input), given the residual that its first reader reads.

    Cost: one forward of what follows.
    """
    model = batch.model
    parallel, contexts = model.architecture.parallel, model.contexts(batch.task.clean.shape[1])
    first = 0 if stage is None else stage.layer + 1
    start = residual.detach().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        inner = None
        entering = start
        if stage is not None and stage.kind == "attention" and not parallel:
            block = model.blocks[stage.layer]
            if block.mlp is not None:
                normed = block.mlp_norm(start)
                inner = (normed, block.mlp(normed))
                entering = start + inner[1]
        trace = forward(model.blocks[first:], entering, contexts[first:], parallel=parallel)
        tape = Tape(batch, start, trace, first)
    if inner is not None and stage is not None:
        tape.mlps[stage.layer], tape.writes[stage.layer] = (start, inner[0]), inner[1]
    return tape


def clean_embedding(batch: Batch) -> Float[Tensor, "example pos d_model"]:
    """The embeddings of the clean prompts."""
    return batch.model.embed(batch.task.clean)


def replaced_embedding(batch: Batch) -> Float[Tensor, "example pos d_model"]:
    """The embeddings that the ablation puts in place of the clean ones."""
    embedded = clean_embedding(batch).clone()
    embedded[:, batch.start :] = batch.replacement.embedded
    return embedded


def whole(batch: Batch, change: Float[Tensor, "*batch pos width"]) -> Float[Tensor, "*batch _ width"]:
    """A change at all positions: zero before the batch's start."""
    return F.pad(change, (0, 0, batch.start, 0))


class PortSlopes:
    """Gradients at what every port reads, kept in head space and pulled back a layer at a time.

    Cost: one backward; iterating, one projection per layer.
    """

    def __init__(self, batch: Batch, tape: Tape, *, keep: bool = False) -> None:
        self.batch, self.tape = batch, tape
        wanted = [raw[letter] for _, raw in tape.attention.values() for letter in "qkv"]
        wanted += [normed for _, normed in tape.mlps.values()] + [tape.final]
        found = iter(tape.gradients(wanted, keep=keep))
        self._attention = {layer: [next(found) for _ in "qkv"] for layer in tape.attention}
        self._mlps = {layer: next(found) for layer in tape.mlps}
        self._final = next(found)

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[Stage, Float[Tensor, "target example pos d_model"]]]:
        start = self.batch.start
        for stage in self.batch.planner.stages:
            layer = stage.layer
            if stage.kind == "attention" and layer in self._attention:
                yield stage, self._at_attention(layer)
            elif stage.kind == "mlp" and layer in self._mlps:
                residual = self.tape.mlps[layer][0][:, start:].detach()
                gradient = self._mlps[layer][:, start:]
                yield stage, _pulled(self.batch.model.blocks[layer].mlp_norm, residual, gradient)[None]
            elif stage.kind == "logits":
                yield stage, self._final[None, :, start:]

    def _at_attention(self, layer: int) -> Float[Tensor, "target example pos d_model"]:
        block, start = self.batch.model.blocks[layer], self.batch.start
        residual, raw = self.tape.attention[layer]
        residual = residual[:, start:].detach()
        gradients = {
            letter: gradient[..., start:, :] for letter, gradient in zip("qkv", self._attention[layer], strict=True)
        }
        norm = block.attention_norm
        if isinstance(norm, Norm) and type(norm) is Norm:  # a substitute has its own way back
            projected = {letter: value[..., start:, :].detach() for letter, value in raw.items()}
            return _through_norm(norm, block.attention, residual, gradients, projected)
        weights = block.attention.weights
        read = [per_head(gradient, weights[letter].transpose(1, 2)) for letter, gradient in gradients.items()]
        return _pulled(norm, residual, torch.cat(read))


def _through_norm(
    norm: Norm, attention: Attention, residual: Tensor, gradients: dict[str, Tensor], projected: dict[str, Tensor]
) -> Float[Tensor, "target example pos d_model"]:
    """`Norm.pull_back` of all ports of a layer, with as little as possible done at the width of the residual.

    The divisor goes into the gradients in head space; weight and centring of the norm, into the projections;
    ``x̂ · gradient`` is that of the projected x̂, which is the raw projection without its constant. What is left at full
    width is one matrix product and one rank-one update.
    """
    scale, width = norm.scale(residual), residual.shape[-1]
    unit = (residual - residual.mean(-1, keepdim=True) if norm.centered else residual) / scale
    ports = sum(len(gradient) for gradient in gradients.values())
    made = residual.new_empty((ports, *residual.shape))
    first = 0
    for letter, gradient in gradients.items():
        weight = attention.weights[letter]
        folded = weight if norm.weight is None else weight * norm.weight[:, None]
        if norm.centered:
            folded = folded - folded.mean(1, keepdim=True)
        own = made[first : first + len(gradient)]
        first += len(gradient)
        divided = gradient / scale
        flat = divided.reshape(len(gradient), -1, divided.shape[-1])
        torch.bmm(flat, folded.transpose(1, 2), out=own.view(len(gradient), -1, width))
        plain = projected[letter] - _constant(norm, attention, letter)
        along = (divided * plain).sum(-1, keepdim=True)
        own.addcmul_(unit, along, value=-1 / width)
    return made


def _constant(norm: Norm, attention: Attention, letter: str) -> Tensor | float:
    """What the projections of a layer are where the normed residual is the norm's bias: [head, 1, 1, d_head]."""
    constant = 0.0
    if norm.bias is not None:
        constant = constant + torch.einsum("d,hde->he", norm.bias, attention.weights[letter])[:, None, None]
    bias = attention.biases[letter]
    return constant if bias is None else constant + bias[:, None, None]


def _pulled(norm: object, x: Tensor, gradient: Tensor) -> Tensor:
    return norm.pull_back(x, gradient) if isinstance(norm, Norm) else gradient

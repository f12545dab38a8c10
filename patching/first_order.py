"""Gradients times changes: what every first-order method is made of, for edges, nodes and neurons alike.

What a unit contributes is ``change · gradient``, summed over positions:

=========  ==========================================  ===========================================================
level      what changes                                gradient
=========  ==========================================  ===========================================================
edge       what its source writes                      at what its target reads
node       what it writes                              at its write: the sum over all that its edges reach
neuron     its activation                              at what multiplies the MLP's output weights
=========  ==========================================  ===========================================================

Methods differ in the runs at which they take gradients, in the weights of these, and in the backward pass. Positions
before a batch's ``start`` never change, and are left out of all products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from patching.blocks import Mlp, forward
from patching.chunks import with_fewer_prompts
from patching.engine import Batch
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.plan import Stage
from patching.progress import Progress
from patching.scores import Scores
from patching.tape import PortSlopes, Tape, clean_embedding, record, replaced_embedding

Values = list[Tensor]
"""What units carry, from the batch's start on: the input, then each layer's heads and MLP in turn; or, for neurons,
each layer's hidden activations."""

LEVELS = ("edge", "node", "neuron")


# --- levels ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def rows(batch: Batch, values: Values) -> Float[Tensor, "example source pos d_model"]:
    """What every source adds to the residual stream, given its values in head space (or changes of these)."""
    embedded = values[0]
    made = embedded.new_empty((len(embedded), batch.planner.n_sources, *embedded.shape[1:]))
    made[:, 0] = embedded
    writers = [stage for stage in batch.planner.stages if stage.kind != "logits"]
    for stage, value in zip(writers, values[1:], strict=True):
        made[:, stage.sources] = source_rows(batch, stage, value).transpose(0, 1)
    return made


def source_rows(batch: Batch, stage: Stage, value: Tensor) -> Float[Tensor, "source example pos d_model"]:
    """The rows of one stage's sources."""
    return batch.model.blocks[stage.layer].attention.write(value) if stage.kind == "attention" else value[None]


@runtime_checkable
class Units(Protocol):
    """What a level takes gradients at and multiplies them with."""

    def clean(self, batch: Batch) -> Values:
        """What units carry on the clean run."""
        ...

    def replacements(self, run: MaskedRun) -> Iterable[Values]:
        """What ablated units carry, batch by batch; axes of length 1 broadcast."""
        ...

    def values(self, batch: Batch, tape: Tape) -> Values:
        """What units carry on any run."""
        ...

    def spread(self, batch: Batch, change: Values) -> Any:
        """Changes in the form that `product` takes."""
        ...

    def slopes(self, batch: Batch, tape: Tape, *, keep: bool = False) -> Any:
        """Gradients of the metric where the units act."""
        ...

    def product(self, batch: Batch, slopes: Any, change: Any) -> Float[Tensor, "example unit"]:
        """``change · gradient`` of every unit, summed over positions."""
        ...


class Nodes:
    """Nodes: the gradient at what each writes."""

    def clean(self, batch: Batch) -> Values:
        """From the batch's own clean run."""
        clean = batch.clean
        return _in_order(clean.embedded, clean.heads, clean.mlps)

    def replacements(self, run: MaskedRun) -> Iterable[Values]:
        """From the engine."""
        for batch in run.batches:
            old = batch.replacement
            yield _in_order(old.embedded, old.heads, old.mlps)

    def values(self, batch: Batch, tape: Tape) -> Values:
        """The writes of a run that began at the embeddings."""
        written = _in_order(tape.start, list(tape.heads.values()), list(tape.writes.values()))
        return [value.detach()[..., batch.start :, :] for value in written]

    def spread(self, batch: Batch, change: Values) -> Any:
        """As they are."""
        return change

    def slopes(self, batch: Batch, tape: Tape, *, keep: bool = False) -> Any:
        """At every write, in head space."""
        written = _in_order(tape.start, list(tape.heads.values()), list(tape.writes.values()))
        return [gradient[..., batch.start :, :] for gradient in tape.gradients(written, keep=keep)]

    def product(self, batch: Batch, slopes: Any, change: Any) -> Float[Tensor, "example unit"]:
        """One column per node; heads stand before examples in their tensors."""
        products = [(one * other).sum((-2, -1)) for one, other in zip(change, slopes, strict=True)]
        return torch.cat([value.T if value.ndim == 2 else value[:, None] for value in products], dim=1)


class Edges(Nodes):
    """Edges: the gradient at what each target reads."""

    def spread(self, batch: Batch, change: Values) -> Any:
        """In the residual stream."""
        return rows(batch, change)

    def slopes(self, batch: Batch, tape: Tape, *, keep: bool = False) -> Any:
        """At every port."""
        return PortSlopes(batch, tape, keep=keep)

    @torch.no_grad()
    def product(self, batch: Batch, slopes: Any, change: Any) -> Float[Tensor, "example unit"]:
        """One matrix product per layer; edges in the graph's order."""
        made = []
        for stage, slope in slopes:
            by_example = slope.transpose(0, 1).flatten(
                2
            )  # without copies: matrices of target and source over pos d_model
            effects = torch.bmm(by_example, change[:, : stage.visible].flatten(2).transpose(1, 2))
            made.append(rearrange(effects, "example target source -> example (target source)"))
        return torch.cat(made, dim=1)


class Neurons:
    """Neurons of all MLPs, layer by layer: the gradient at what multiplies the output weights.

    A replacement is the activation on the run that replaces (``corrupt``, ``resample``, ``gaussian-noise``), the mean
    activation, or 0. Without a norm behind the MLP, what a layer's neurons contribute adds up to the MLP node's part;
    under ``zero`` to that and ``b_out · gradient``, since ablating the node takes the output bias away too.
    """

    @torch.no_grad()
    def clean(self, batch: Batch) -> Values:
        """Cost: one forward."""
        return self._on(batch, clean_embedding(batch))

    @torch.no_grad()
    def replacements(self, run: MaskedRun) -> Iterable[Values]:
        """Cost: one forward for all prompts."""
        if run.ablation.is_run:
            for batch in run.batches:
                yield self._on(batch, replaced_embedding(batch))
            return
        if run.ablation.combine is None:
            raise InvalidOption(
                f"expected an ablation that says what a neuron carries; {run.ablation.name} has constants for whole "
                "nodes alone. Use run.nodes(), or another ablation."
            )
        constants = self._pooled(run)
        for _batch in run.batches:
            yield constants

    def values(self, batch: Batch, tape: Tape) -> Values:
        """The neurons of a run that began at the embeddings."""
        return self._hidden(batch, [normed.detach() for _, normed in tape.mlps.values()])

    def spread(self, batch: Batch, change: Values) -> Any:
        """As they are."""
        return change

    def slopes(self, batch: Batch, tape: Tape, *, keep: bool = False) -> Any:
        """From the gradients at the MLPs' writes, layer by layer."""
        gradients = tape.gradients(list(tape.writes.values()), keep=keep)
        inputs = [normed.detach()[:, batch.start :] for _, normed in tape.mlps.values()]
        return list(zip(inputs, (gradient[:, batch.start :] for gradient in gradients), strict=True))

    @torch.no_grad()
    def product(self, batch: Batch, slopes: Any, change: Any) -> Float[Tensor, "example unit"]:
        """One column per neuron."""
        made = []
        for block, (normed, gradient), one in zip(batch.model.blocks, slopes, change, strict=True):
            assert block.mlp is not None
            hidden = block.mlp.hidden(normed) if block.mlp.post is not None else None
            made.append((one * hidden_gradient(block.mlp, hidden, gradient)).sum(-2))
        return torch.cat(made, dim=1)

    def _on(self, batch: Batch, embedded: Tensor) -> Values:
        return self._hidden(batch, _mlp_inputs(batch, embedded))

    @torch.no_grad()
    def _hidden(self, batch: Batch, normed: list[Tensor]) -> Values:
        made = []
        for block, value in zip(batch.model.blocks, normed, strict=True):
            assert block.mlp is not None
            made.append(block.mlp.hidden(value[:, batch.start :]))
        return made

    def _pooled(self, run: MaskedRun) -> Values:
        """Pooled over all prompts, one layer's neurons at a time."""
        combine, prompts = run.ablation.combine, run.ablation.prompts(run.task)
        assert combine is not None
        weights = run.ablation.weights(run.task).to(run.model.device)
        sizes = [len(batch.task) for batch in run.batches]
        runs = [
            _mlp_inputs(batch, run.model.embed(part))
            for batch, part in zip(run.batches, prompts.split(sizes), strict=True)
        ]
        made = []
        for layer, block in enumerate(run.model.blocks):
            assert block.mlp is not None
            made.append(combine(torch.cat([block.mlp.hidden(one[layer]) for one in runs]), weights))
        return made


UNITS: dict[str, Units] = {"edge": Edges(), "node": Nodes(), "neuron": Neurons()}


def _mlp_inputs(batch: Batch, embedded: Tensor) -> list[Tensor]:
    model = batch.model
    contexts = model.contexts(embedded.shape[1])
    return forward(model.blocks, embedded, contexts, parallel=model.architecture.parallel).mlp_normed


def hidden_gradient(
    mlp: Mlp, hidden: Float[Tensor, "*batch d_mlp"] | None, gradient: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_mlp"]:
    """The gradient at the neurons, given that at the MLP's write; ``hidden`` is needed if a norm follows the MLP."""
    if mlp.post is not None:
        assert hidden is not None, "a norm after the MLP is pulled back at what enters it"
        gradient = mlp.post.pull_back(F.linear(hidden, mlp.w_out, mlp.b_out), gradient)
    return gradient @ mlp.w_out


def _in_order(embedded: Tensor, heads: list[Tensor], mlps: list[Tensor]) -> Values:
    """The input, then heads and MLP of each layer."""
    made = [embedded]
    for layer, value in enumerate(heads):
        made.append(value)
        if mlps:
            made.append(mlps[layer])
    return made


def difference(new: Values, old: Values) -> Values:
    """``new - old``."""
    return [one - other for one, other in zip(new, old, strict=True)]


def edge_columns(run: MaskedRun, targets: slice, sources: slice) -> Int[Tensor, "target source"]:
    """Numbers of the edges from some sources, all visible, into some targets."""
    first = torch.tensor([0, *accumulate(run.graph.n_visible)])
    return first[targets, None] + torch.arange(sources.start, sources.stop)


# --- methods --------------------------------------------------------------------------------------------------------


def require(run: MaskedRun, method: str, *, levels: tuple[str, ...] = LEVELS) -> None:
    """Check that a method can score the units of a run.

    Raises:
        InvalidOption: it cannot.
    """
    nouns = [f"{level}s" for level in levels]
    kinds = " or ".join(nouns) if len(nouns) < 3 else f"{', '.join(nouns[:-1])} or {nouns[-1]}"
    if run.per_position:
        raise InvalidOption(f"expected a run over {kinds}; scores by position are not available from {method}.")
    if run.level not in levels:
        raise InvalidOption(f"expected a run over {kinds}; {method} has no scores of {run.level}s.")


def require_slope(run: MaskedRun, *, only_clean: bool) -> None:
    """Refuse a metric whose gradient vanishes at every point at which a method takes gradients.

    Raises:
        InvalidOption: all points are the clean run, and the metric is at its minimum there.
    """
    if only_clean and run.metric.zero_gradient_when_clean:
        raise InvalidOption(
            f"expected a metric whose gradient at the clean run is not zero; {run.metric.name} is at its minimum "
            "there, so every score would be 0. Use logit_difference, or a method that leaves the clean point."
        )


def require_run(run: MaskedRun, method: str) -> None:
    """Refuse ablations that are no run of their own.

    Raises:
        InvalidOption: there is no run that the method's path could end at.
    """
    if not run.ablation.is_run:
        raise InvalidOption(
            f"expected an ablation that is a run of its own (corrupt, resample, gaussian-noise): {method} follows runs "
            f"from the clean one to that, and there is none of {run.ablation.name}. Use eap_ig."
        )


Points = Callable[[Batch], Iterable[tuple[Float[Tensor, "example pos d_model"], float]]]
"""Embeddings at which gradients are taken, with their weights."""


@with_fewer_prompts
def averaged(
    run: MaskedRun,
    method: str,
    options: dict[str, Any],
    points: Points,
    *,
    count: int,
    progress: Progress,
    twin: Callable[[Batch], Batch] | None = None,
) -> Scores:
    """``(replacement - clean) · Σ_k w_k gradient at point k``, for every unit.

    Args:
        run: over edges, nodes or neurons.
        method: for the provenance.
        options: for the provenance.
        points: the points of a batch.
        count: how many there are.
        progress: called with the number of gradients taken and to take.
        twin: a batch on another model with the same values and another backward pass.
    """
    units, effects = UNITS[run.level], []
    total, done = count * len(run.batches), 0
    for own, replacement in zip(run.batches, units.replacements(run), strict=True):
        change = units.spread(own, difference(replacement, units.clean(own)))
        batch = own if twin is None else twin(own)
        made: Tensor | None = None
        for embedded, weight in points(batch):
            part = units.product(batch, units.slopes(batch, record(batch, embedded)), change).double() * weight
            made = part if made is None else made + part
            done += 1
            progress(done, total)
        assert made is not None, "a method has at least one point"
        effects.append(made)
    return Scores.over_prompts(run.graph.architecture, run.level, torch.cat(effects), run.provenance(method, options))

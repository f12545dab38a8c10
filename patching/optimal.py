"""Optimal ablation: replace every source by the constant with which its loss hurts least.

A mean puts the model where it may never have been, and part of the measured damage is that surprise. The optimal
constant of a source is the one that minimises the expected damage of ablating this source alone:

    a* = argmin over a   E_prompts [damage(source replaced by a)]

so what remains is due to the information lost. One constant per source, the same at every position and for every
prompt: of the input and of MLPs in the residual stream, of heads in head space (z, before W_O).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from graphs.atomic import replacing
from graphs.components import ComponentGraph
from patching.ablations import Ablation
from patching.engine import Writes
from patching.errors import InvalidOption, InvalidWeights, NotFinite
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.task import Task
from patching.tensor_bytes import to_bytes

SCHEMA = "wiretrace-constants/1"


def train(
    run: MaskedRun,
    *,
    steps: int = 200,
    lr: float = 0.05,
    sources: int = 4,
    seed: int = 0,
    progress: Progress = silent,
) -> Ablation:
    """Learn the constant of every source.

    Constants start at the mean over all tokens of the clean prompts. A step ablates a few sources, one at a time, and
    moves the constant of each by Adam. A source whose constant ends up worse than its mean, on the run's prompts,
    keeps its mean.

    Cost: ``steps * sources`` dense runs forward and backward, then two partial runs per source.

    Args:
        run: gives model, task and metric; its ablation and its view do not matter. The metric should be bounded
            below by what the clean run does, as ``kl`` is: with logit_difference a constant may help the answer
            more than the source did, without end.
        steps: of Adam.
        lr: learning rate, in units of the root mean square of each source's writes.
        sources: how many are ablated per step; all get their turn before any gets another.
        seed: of their order.
        progress: called with the number of steps done and to do.

    Returns:
        The ablation named ``optimal``, for searches and evaluation alike.

    Raises:
        InvalidOption: an option out of range, or a metric without a gradient.
        NotFinite: the training diverged; the message names the step.

    Source: arXiv 2409.09951, section 2. They minimise the task loss or KL by Adam as well; here each source is
    ablated by itself, steps are scaled by its writes, and means are kept where training does not beat them.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task(), metric="kl")
        >>> ablation = train(run, steps=30)
        >>> tuned = MaskedRun(toy.model(), toy.task(), ablation=ablation, metric="kl")
        >>> mean = MaskedRun(toy.model(), toy.task(), ablation="mean-clean", metric="kl")
        >>> bool((damages(tuned) <= damages(mean)).all())
        True
    """
    _check(steps=steps, lr=lr, sources=sources, seed=seed)
    base = MaskedRun(run.model, run.task, ablation="mean-clean", metric=run.metric, memory=run.memory).nodes()
    means = [value.detach().clone() for value in _split(base.batches[0].replacement)]
    constants = [mean.clone().requires_grad_(True) for mean in means]
    adam = torch.optim.Adam([{"params": [c], "lr": lr * s} for c, s in zip(constants, _scales(base), strict=True)])
    turns = _Turns(len(constants), min(sources, len(constants)), seed)
    for number in range(steps):
        chosen = turns.next()
        for constant in constants:
            constant.grad = None  # Adam leaves those alone that are not ablated in this step
        _descend(base, constants, chosen, number)
        adam.step()
        progress(number + 1, steps)
    return _better(base, means, [constant.detach() for constant in constants])


def damages(run: MaskedRun) -> Float[Tensor, " source"]:
    """The damage of ablating each source alone, averaged over prompts, in the metric's unit.

    Cost: one partial run per source.

    Example:
        >>> from patching import toy
        >>> damages(MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))).tolist()[1:]
        [0.0, 1.5]
    """
    nodes = run.nodes()
    return nodes.damage(nodes(1 - torch.eye(nodes.n_units, dtype=nodes.ones().dtype))).cpu()


class _Turns:
    """Some numbers at a time, in a random order, each once before any comes again."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size = count, size
        self.generator = torch.Generator().manual_seed(seed)
        self.waiting: list[int] = []

    def next(self) -> list[int]:
        while len(self.waiting) < self.size:
            order = torch.randperm(self.count, generator=self.generator).tolist()
            # Those still waiting come last in the new round, so that no step has one twice.
            self.waiting += sorted(order, key=self.waiting.__contains__)
        chosen, self.waiting = self.waiting[: self.size], self.waiting[self.size :]
        return chosen


def _descend(base: MaskedRun, constants: list[Tensor], chosen: list[int], number: int) -> None:
    """Put the gradient of each chosen source's damage on its constant."""
    view = base.with_constants(_joined(constants, base.graph))
    try:
        for source in chosen:
            mask = base.ones()
            mask[source] = 0.0
            with torch.enable_grad():
                damage = base.damage(view(mask.requires_grad_(True)))
            if not damage.requires_grad:
                raise InvalidOption(
                    f"expected a metric with a gradient; {base.metric.name} has none, so no constant can be learned "
                    "from it. Use kl."
                )
            gradient = torch.autograd.grad(damage, constants[source], retain_graph=True)[0]
            if not bool(torch.isfinite(gradient).all()):
                raise NotFinite(f"expected a finite gradient for {base.graph.sources[source]}. Lower lr.")
            constants[source].grad = gradient
    except NotFinite as error:
        raise NotFinite(f"step {number} of the training: {error}") from error


@torch.no_grad()
def _scales(base: MaskedRun) -> list[float]:
    """Root mean square of every source's writes on the clean run; 1 for a source that writes nothing."""
    squares = [0.0] * base.n_units
    tokens = 0
    for batch in base.batches:
        values = _split(Writes(batch.clean.embedded, batch.clean.heads, batch.clean.mlps))
        tokens += values[0].shape[-3] * values[0].shape[-2]
        squares = [total + float((value.double() ** 2).sum()) for total, value in zip(squares, values, strict=True)]
    widths = [value.shape[-1] for value in _split(base.batches[0].replacement)]
    return [math.sqrt(total / (tokens * width)) or 1.0 for total, width in zip(squares, widths, strict=True)]


def _better(base: MaskedRun, means: list[Tensor], trained: list[Tensor]) -> Ablation:
    """Of each source the mean or the trained constant, whichever does less damage."""
    before, after = (damages(_run(base, _ablation(_joined(values, base.graph)))) for values in (means, trained))
    best = [
        (new if gain else old).cpu() for new, old, gain in zip(trained, means, (after < before).tolist(), strict=True)
    ]
    return _ablation(_joined(best, base.graph))


def _run(base: MaskedRun, ablation: Ablation) -> MaskedRun:
    return MaskedRun(base.model, base.task, ablation=ablation, metric=base.metric, memory=base.memory)


def _clean(task: Task) -> Tensor:
    return task.clean


def _ablation(constants: Writes) -> Ablation:
    return Ablation("optimal", _clean, constants=constants)


def _split(writes: Writes) -> list[Tensor]:
    """One tensor per source, in the order of the graph's sources."""
    parts = [writes.embedded]
    for layer, heads in enumerate(writes.heads):
        parts.extend(heads)
        parts.extend(writes.mlps[layer : layer + 1])
    return parts


def _joined(parts: list[Tensor], graph: ComponentGraph) -> Writes:
    """The inverse of `_split`."""
    shape = graph.architecture
    size = shape.n_heads + shape.has_mlp
    layers = [parts[1 + layer * size : 1 + (layer + 1) * size] for layer in range(shape.n_layers)]
    heads = [torch.stack(layer[: shape.n_heads]) for layer in layers]
    return Writes(parts[0], heads, [layer[-1] for layer in layers] if shape.has_mlp else [])


def save(ablation: Ablation, path: str | os.PathLike[str]) -> None:
    """Write the constants of an ablation as safetensors, whole or not at all.

    Raises:
        InvalidOption: the ablation has no constants of its own.
        WriteFailed: the system refuses.

    Example:
        >>> from patching import toy
        >>> ablation = train(MaskedRun(toy.model(), toy.task(), metric="kl"), steps=5)
        >>> save(ablation, "toy.safetensors")
        >>> load("toy.safetensors", toy.model()).name
        'optimal'
    """
    if ablation.constants is None:
        raise InvalidOption(f"expected an ablation with constants, as `train` gives; got {ablation.name}.")
    tensors = {name: value.detach().cpu().contiguous() for name, value in _named(ablation.constants).items()}
    with replacing(path) as file:
        file.write(to_bytes(tensors, {"schema": SCHEMA, "name": ablation.name}))


def load(path: str | os.PathLike[str], model: LensModel) -> Ablation:
    """Read what `save` wrote, for a model of the same shape.

    Raises:
        InvalidWeights: the file is not whole or not of this kind, its constants have other shapes than the model's
            sources, or are not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InvalidWeights(
            f"expected a whole safetensors file of constants; {path} cannot be read ({error}). Save it again."
        ) from error
    if metadata.get("schema") != SCHEMA:
        raise InvalidWeights(
            f"expected constants of schema {SCHEMA}; {path} has {metadata.get('schema')!r}. "
            "Give a file that patching.optimal.save wrote."
        )
    expected = {name: tuple(value.shape) for name, value in _named(_empty(model)).items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != expected:
        name = next(name for name in sorted(expected | found) if expected.get(name) != found.get(name))
        raise InvalidWeights(
            f"expected constants for {model.name} ({model.graph}), with {name} of shape {expected.get(name)}; {path} "
            f"has {found.get(name)}. Load the model that they were trained on."
        )
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise InvalidWeights(f"expected finite constants; {', '.join(broken)} in {path} are not. Train them again.")
    layers = range(len(model.blocks))
    mlps = [tensors[f"mlp.{layer}"] for layer in layers if f"mlp.{layer}" in tensors]
    return _ablation(Writes(tensors["input"], [tensors[f"heads.{layer}"] for layer in layers], mlps))


def _named(writes: Writes) -> dict[str, Tensor]:
    heads = {f"heads.{layer}": value for layer, value in enumerate(writes.heads)}
    return {"input": writes.embedded} | heads | {f"mlp.{layer}": value for layer, value in enumerate(writes.mlps)}


def _empty(model: LensModel) -> Writes:
    """Constants of the right shapes."""
    shape, width = model.architecture, torch.empty(1, 1, model.d_model)
    heads = [torch.empty(shape.n_heads, 1, 1, block.attention.out.shape[1]) for block in model.blocks]
    return Writes(width, heads, [width] * (shape.n_layers if shape.has_mlp else 0))


def _check(*, steps: object, lr: object, sources: object, seed: object) -> None:
    for name, value in (("steps", steps), ("sources", sources)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidOption(f"expected {name} to be a whole number of at least 1; got {value!r}.")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not (math.isfinite(lr) and lr > 0):
        raise InvalidOption(f"expected lr to be a finite number above 0; got {lr!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidOption(f"expected seed to be a whole number from 0 to 2^63 - 1; got {seed!r}.")

"""What COAR is measured against: weights of each prompt's components from other methods, in COAR's sign.

Each gives ``[example, unit]`` weights ``w``: minus the effect that the method predicts of ablating the component.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patching import ablations
from patching.chunks import with_fewer_prompts
from patching.component_run import ComponentRun, Part
from patching.errors import InvalidOption
from patching.progress import Progress, silent
from patching.sites import Start, forward


def leave_one_out(run: ComponentRun, *, progress: Progress = silent) -> Float[Tensor, "example unit"]:
    """``f(all kept) - f(all but one kept)``: exact for one ablation at a time.

    Cost: one forward of what follows it for every component and prompt.

    Source: arXiv 2404.11534 (LOO).

    Example:
        >>> from patching import toy
        >>> run = ComponentRun(toy.model(), toy.task())
        >>> tuple(leave_one_out(run).shape)
        (4, 2)
    """
    columns = []
    step = 1024
    for low in range(0, run.n_units, step):
        count = min(step, run.n_units - low)
        masks = run.ones().repeat(count, 1)
        masks[torch.arange(count), low + torch.arange(count)] = 0.0
        columns.append(run.clean_metric - run(masks))
        progress(low + count, run.n_units)
    return torch.cat(columns).T


def attribution_patching(run: ComponentRun, *, progress: Progress = silent) -> Float[Tensor, "example unit"]:
    """``df/dmask`` at the clean run: the first-order value of leave-one-out (AtP).

    Cost: one forward and backward.

    Source: arXiv 2310.10348, 2403.00745.
    """
    found = run.slopes()
    progress(run.n_units, run.n_units)
    return found


def gradient_times_parameter(run: ComponentRun, *, progress: Progress = silent) -> Float[Tensor, "example unit"]:
    """``sum of θ · df/dθ`` over the parameters θ through which a component writes.

    They are a head's rows of the output matrix, a neuron's column of it, an MLP's output matrix and bias: what the
    authors zero. The components' outputs are linear in them, so the sum is ``output · df/d output``, the slope of the
    mask under zero ablation, whatever the run's own ablation is; no parameter's gradient is formed.

    Cost: one forward and backward.

    Source: arXiv 2404.11534 (GP).

    Raises:
        InvalidOption: components without such parameters (the input, dictionary features).
    """
    _only(run, "gradient times parameter", {"heads", "mlps", "neurons"})
    zeroed = ComponentRun(
        run.model, run.task, components=run.units, ablation=ablations.zero, metric=run.metric, memory=run.memory
    )
    found = zeroed.slopes()
    progress(run.n_units, run.n_units)
    return found


@with_fewer_prompts
def conductance(run: ComponentRun, *, steps: int = 10, progress: Progress = silent) -> Float[Tensor, "example unit"]:
    r"""``sum over the path of df/dy · dy`` for the value y of each component (neuron conductance).

    The path is the straight line of the embeddings from the ablated run's to the clean run's, cut into ``steps``
    pieces; the gradient of each piece is taken at its middle.

    Cost: two forwards and a backward per step.

    Source: Dhamdhere, Sundararajan and Yan, arXiv 1805.12233.

    Raises:
        InvalidOption: ``steps`` below 1; components without a value of their own on that path (dictionary features,
            the input); an ablation that is no run (zero, means).
    """
    if steps < 1:
        raise InvalidOption(f"expected steps of 1 or more; got {steps}.")
    _only(run, "conductance", {"heads", "mlps", "neurons"})
    if not run.ablation.is_run:
        raise InvalidOption(
            f"expected an ablation whose replacements are a run (corrupt, resample, gaussian-noise) to start the path "
            f"from; got {run.ablation.name}."
        )
    prompts = run.ablation.prompts(run.task)
    replaced = run.ablation.embed(run.model, run.task, prompts)
    rows, low = [], 0
    for number, part in enumerate(run.parts):
        clean = run.model.embed(run.task.clean[low : low + len(part)])
        start = replaced[low : low + len(part)]
        total: Tensor | None = None
        before, _ = _values(part, start, slopes=False)
        for step in range(steps):
            after, _ = _values(part, torch.lerp(start, clean, (step + 1) / steps), slopes=False)
            _, slopes = _values(part, torch.lerp(start, clean, (step + 0.5) / steps), slopes=True)
            piece = _contracted(part, slopes, before, after)
            total = piece if total is None else total + piece
            before = after
            progress(number * steps + step + 1, len(run.parts) * steps)
        assert total is not None
        rows.append(total)
        low += len(part)
    return torch.cat(rows).double()


BASELINES: dict[str, Callable[..., Float[Tensor, "example unit"]]] = {
    "leave_one_out": leave_one_out,
    "attribution_patching": attribution_patching,
    "gradient_times_parameter": gradient_times_parameter,
    "conductance": conductance,
}


def _only(run: ComponentRun, method: str, families: set[str]) -> None:
    others = {group.family for group in run.groups} - families
    if others:
        raise InvalidOption(
            f"expected components out of {', '.join(sorted(families))} for {method}; this run has "
            f"{', '.join(sorted(others))} too. Leave them or the baseline out."
        )


def _values(part: Part, embedded: Tensor, *, slopes: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Each group's values in a plain run from embeddings, and the metric's gradients there."""
    found: dict[int, Tensor] = {}
    places = {(group.site, group.layer): number for number, group in enumerate(part.groups)}

    def keep(kind: str, layer: int, value: Tensor, _narrow: bool) -> Tensor:
        number = places.get((kind, layer))
        if number is not None:
            value = value if value.requires_grad or not slopes else value.requires_grad_()
            found[number] = value
        return value

    with torch.set_grad_enabled(slopes):
        start = Start(0, 0, 0, embedded.detach().requires_grad_(slopes))
        final = forward(part.model, part.contexts, start, keep, answer=part.answer, trim=False)
        values = [found[number] for number in range(len(part.groups))]
        gradients: Any = torch.autograd.grad(part.measure(final).sum(), values) if slopes else ()
    return [value.detach() for value in values], list(gradients)


def _contracted(part: Part, slopes: list[Tensor], before: list[Tensor], after: list[Tensor]) -> Tensor:
    """Gradient times step of every chosen component, summed over positions and widths: [example, unit]."""
    columns = []
    for group, slope, old, new in zip(part.groups, slopes, before, after, strict=True):
        product = slope * (new - old)
        if group.family == "heads":
            own = product.sum((-2, -1)).T  # example head
        elif group.family == "neurons":
            own = product.sum(-2)
        else:
            own = product.sum((-2, -1)).unsqueeze(-1)
        columns.append(own if group.members is None else own[:, group.members])
    return torch.cat(columns, dim=-1)

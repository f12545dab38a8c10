"""First-order effects with better gradients: averaged on the way to the source, or from a modified backward pass.

The gradient at the base run says what an infinitesimal step does; a patch is a large one.

==============  ==========================================================================  =======================
`inputs`        mean gradient while the embeddings go from base to source                   m (F + B)
`conductance`   the same path, with each site's own steps: adds up over any cut             m (F + B)
`activations`   mean gradient while one layer's sites go from base to source                L m (F + B)
`relp`          gradient at the base run of a model whose nonlinearities pass it straight   F + B
==============  ==========================================================================  =======================

All give `Effects` with the axes and the sign of `activation.sweep`, which they estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from patching.activation import Part, SiteRun, chosen_positions
from patching.atp_star import arranged, collected, contracted
from patching.chunks import with_fewer_prompts
from patching.effects import Effects
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.metrics import Prediction
from patching.progress import Progress, silent
from patching.relp import relevance_model
from patching.sites import Start, forward, kind_of

RULES = ("left", "right", "midpoint", "trapezoid")


def quadrature(rule: str, steps: int) -> list[tuple[float, float]]:
    """Points in [0, 1] and their weights.

    ``left``, ``right`` and ``midpoint`` take one point in each of m intervals, ``trapezoid`` the m + 1 ends.

    Raises:
        InvalidOption: an unknown rule, or fewer than one step.

    Example:
        >>> quadrature("left", 2)
        [(0.0, 0.5), (0.5, 0.5)]
    """
    if rule not in RULES:
        raise InvalidOption(f"expected a rule out of {', '.join(RULES)}; got {rule!r}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidOption(f"expected at least one step, a whole number; got {steps!r}.")
    if rule == "trapezoid":
        return [(k / steps, (0.5 if k in (0, steps) else 1.0) / steps) for k in range(steps + 1)]
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    return [((k + shift) / steps, 1.0 / steps) for k in range(steps)]


def inputs(
    run: SiteRun,
    kind: str,
    *,
    steps: int = 5,
    rule: str = "right",
    parts: bool | None = None,
    positions: bool | Iterable[int] = False,
    progress: Progress = silent,
) -> Effects:
    """``(n_source - n_base) · Σ_k w_k dm/dn`` at the embeddings ``base + α_k (source - base)``.

    With one step of the left rule this is AtP. It is not complete: over a cut it need not add up to the whole effect
    (`conductance` does).

    Args:
        run: base and source, both runs of their own (no zero or mean ablation).
        kind: a name from `sites.KINDS`.
        steps: intervals of the path.
        rule: ``left``, ``right``, ``midpoint`` or ``trapezoid``.
        parts: each head, group or neuron by itself, or a layer's together; by default heads and groups by themselves.
        positions: each position by itself: True for all, or some of them.
        progress: called with the number of gradients taken and to take.

    Raises:
        InvalidOption: an unknown kind or rule, or a source that is no run.

    Source: arXiv 2403.17806 (EAP-IG, inputs), here for nodes; its code takes the right rule with five steps.

    Example:
        >>> from patching import toy
        >>> inputs(SiteRun(toy.model(), toy.task()), "z").axes
        ('layer', 'head')
    """
    _require_run(run)
    points = quadrature(rule, steps)

    def estimate(part: Part, shown: Callable[[], None]) -> list[Tensor]:
        total: list[Tensor] | None = None
        for alpha, weight in points:
            _, gradients = _gradients(part, kind, _between(part, alpha))
            gradients = [weight * gradient for gradient in gradients]
            total = gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
            shown()
        assert total is not None
        changes = [new - old for new, old in zip(part.source[kind], part.base[kind], strict=True)]
        return [contracted(kind, change, gradient) for change, gradient in zip(changes, total, strict=True)]

    options = {"steps": steps, "rule": rule}
    return _collect(run, kind, "ig_inputs", options, estimate, len(points), parts, positions, progress)


def conductance(
    run: SiteRun,
    kind: str,
    *,
    steps: int = 10,
    rule: str = "trapezoid",
    parts: bool | None = None,
    positions: bool | Iterable[int] = False,
    progress: Progress = silent,
) -> Effects:
    """``Σ_k ḡ_k · (n(α_{k+1}) - n(α_k))`` along the embeddings' path, ḡ the gradient of each interval.

    Complete: over any cut between input and logits the sum is the metric's whole change, up to an error that falls as
    1/steps² (``trapezoid``: ḡ is the mean of both ends) or 1/steps (``left``, ``right``: that end's). One step of the
    left rule is AtP.

    Args:
        run: base and source, both runs of their own.
        kind: a name from `sites.KINDS`.
        steps: intervals of the path.
        rule: ``trapezoid``, ``left`` or ``right``; midpoints have no value of their own to step between.
        parts: each head, group or neuron by itself, or a layer's together; by default heads and groups by themselves.
        positions: each position by itself: True for all, or some of them.
        progress: called with the number of gradients taken and to take.

    Raises:
        InvalidOption: an unknown kind or rule, or a source that is no run.

    Source: arXiv 1805.12233. Quadrature needs the end points: with Gauss-Legendre nodes the outermost intervals are
    lost and the sum is not complete.

    Example:
        >>> from patching import toy
        >>> run = SiteRun(toy.model(), toy.task())
        >>> effects = conductance(run, "resid_post")
        >>> gap = (run.source_metric - run.base_metric).mean()
        >>> bool((effects.mean[0] - gap).abs() < 1e-9)
        True
    """
    _require_run(run)
    quadrature(rule, steps)
    if rule == "midpoint":
        raise InvalidOption("expected a rule out of trapezoid, left, right for conductance; got 'midpoint'.")
    at_left, at_right = {"trapezoid": (0.5, 0.5), "left": (1.0, 0.0), "right": (0.0, 1.0)}[rule]

    def estimate(part: Part, shown: Callable[[], None]) -> list[Tensor]:
        total: list[Tensor] = []
        before: tuple[list[Tensor], list[Tensor]] | None = None
        for k in range(steps + 1):
            here = _gradients(part, kind, _between(part, k / steps))
            if before is not None:
                terms = [
                    contracted(kind, new - old, at_left * g_old + at_right * g_new)
                    for old, new, g_old, g_new in zip(before[0], here[0], before[1], here[1], strict=True)
                ]
                total = terms if not total else [a + b for a, b in zip(total, terms, strict=True)]
            before = here
            shown()
        return total

    options = {"steps": steps, "rule": rule}
    return _collect(run, kind, "conductance", options, estimate, steps + 1, parts, positions, progress)


def activations(
    run: SiteRun,
    kind: str,
    *,
    steps: int = 5,
    rule: str = "midpoint",
    parts: bool | None = None,
    positions: bool | Iterable[int] = False,
    progress: Progress = silent,
) -> Effects:
    """``(n_source - n_base) · Σ_k w_k dm/dn`` with a layer's sites themselves at ``base + α_k (source - base)``.

    A layer's effects add up to that of patching all of them together, up to the error of the rule.

    Args:
        run: base and source; any ablation.
        kind: a name from `sites.KINDS`.
        steps: intervals of the path.
        rule: ``left``, ``right``, ``midpoint`` or ``trapezoid``.
        parts: each head, group or neuron by itself, or a layer's together; by default heads and groups by themselves.
        positions: each position by itself: True for all, or some of them.
        progress: called with the number of gradients taken and to take.

    Raises:
        InvalidOption: an unknown kind or rule.

    Cost: one forward and backward per layer and step, each from that layer on.

    Source: arXiv 2403.17806 (EAP-IG, activations), here for nodes.

    Example:
        >>> from patching import toy
        >>> activations(SiteRun(toy.model(), toy.task()), "z").axes
        ('layer', 'head')
    """
    points = quadrature(rule, steps)
    kind_of(kind, run.model.architecture)
    layers = len(run.model.blocks)

    def estimate(part: Part, shown: Callable[[], None]) -> list[Tensor]:
        products = []
        for layer in range(layers):
            change = part.source[kind][layer] - part.base[kind][layer]
            total = torch.zeros_like(change)
            for alpha, weight in points:
                value = (part.base[kind][layer] + alpha * change).requires_grad_(True)
                total += weight * _gradient_of_site(part, kind, layer, value)
                shown()
            products.append(contracted(kind, change, total))
        return products

    options = {"steps": steps, "rule": rule}
    return _collect(run, kind, "ig_activations", options, estimate, layers * len(points), parts, positions, progress)


def relp(
    run: SiteRun,
    kind: str,
    *,
    constant_patterns: bool = False,
    parts: bool | None = None,
    positions: bool | Iterable[int] = False,
    progress: Progress = silent,
) -> Effects:
    """AtP with the backward pass of layer-wise relevance propagation.

    ``(n_source - n_base) · g`` with g the gradient at the base run of the same model, in which
    norms divide by a constant (LN rule), ``f(x)`` is ``x · const`` with ``const = f(x) / x`` (identity rule), and a
    product of gate and value passes half its gradient to each (half rule). Values are unchanged, gradients are not.

    Args:
        run: base and source.
        kind: a name from `sites.KINDS`.
        constant_patterns: let no gradient through the attention pattern either (AH rule; off in the paper).
        parts: each head, group or neuron by itself, or a layer's together; by default heads and groups by themselves.
        positions: each position by itself: True for all, or some of them.
        progress: called with the number of gradients taken and to take.

    Raises:
        InvalidOption: an unknown kind.

    Source: arXiv 2508.21258.

    Example:
        >>> from patching import toy
        >>> run = SiteRun(toy.model(), toy.task())
        >>> relp(run, "z").axes
        ('layer', 'head')
    """
    model = relevance_model(run.model)

    def estimate(part: Part, shown: Callable[[], None]) -> list[Tensor]:
        _, gradients = _gradients(part, kind, part.embedded, model=model, constant_patterns=constant_patterns)
        shown()
        changes = [new - old for new, old in zip(part.source[kind], part.base[kind], strict=True)]
        return [contracted(kind, change, gradient) for change, gradient in zip(changes, gradients, strict=True)]

    options = {"constant_patterns": constant_patterns}
    return _collect(run, kind, "relp", options, estimate, 1, parts, positions, progress)


# --- shared ---------------------------------------------------------------------------------------------------------


@with_fewer_prompts
def _collect(
    run: SiteRun,
    kind: str,
    method: str,
    options: dict[str, Any],
    estimate: Callable[[Part, Callable[[], None]], list[Tensor]],
    steps: int,
    parts: bool | None,
    positions: bool | Iterable[int],
    progress: Progress,
) -> Effects:
    """Run an estimate on all prompts; ``steps`` is how often it reports."""
    kind_of(kind, run.model.architecture)
    chosen = chosen_positions(run, positions)
    done = iter(range(1, len(run.parts) * steps + 1))

    def shown() -> None:
        progress(next(done), len(run.parts) * steps)

    rows = []
    for part in run.parts:
        products = estimate(part, shown)
        effects = [arranged(kind, product, parts=parts, by_position=chosen != [None]) for product in products]
        rows.append(torch.stack(effects, dim=1))
    return collected(run, kind, torch.cat(rows), method, options, parts=parts, chosen=chosen)


def _require_run(run: SiteRun) -> None:
    if not run.ablation.is_run:
        raise InvalidOption(
            f"expected an ablation that is a run of its own (corrupt, resample, gaussian-noise), for there is no path "
            f"of inputs to {run.ablation.name}. Use `activations`."
        )


def _between(part: Part, alpha: float) -> Tensor:
    """Embeddings on the way from base to source."""
    other = part.source["resid_pre"][0]
    return part.embedded + alpha * (other - part.embedded)


def _gradients(
    part: Part,
    kind: str,
    embedded: Tensor,
    *,
    model: LensModel | None = None,
    constant_patterns: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Values of a kind of site at every layer, and the gradients of the summed metric there."""
    seen: list[Tensor] = []

    def visit(name: str, _layer: int, value: Tensor, _narrow: bool) -> Tensor:
        if name == kind:
            seen.append(value)
        return value.detach() if constant_patterns and name == "pattern" else value

    start = Start(0, 0, 0, embedded.detach().requires_grad_(True))
    with torch.enable_grad():
        final = forward(model or part.model, part.contexts, start, visit, answer=part.answer, trim=False)
        total = _measured(part, final, model or part.model).sum()
        found = torch.autograd.grad(total, seen, allow_unused=True)
    values = [value.detach() for value in seen]
    return values, [torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True)]


def _measured(part: Part, final: Tensor, model: LensModel) -> Tensor:
    return part.metric(Prediction(final, model.readout, part.answers, part.wrong, part.clean_log_probs, part.contrast))


def _gradient_of_site(part: Part, kind: str, layer: int, value: Tensor) -> Tensor:
    """The gradient of the summed metric at one layer's sites, which are set to ``value``."""
    stage = kind_of(kind, part.model.architecture).stage

    def visit(name: str, at_layer: int, old: Tensor, _narrow: bool) -> Tensor:
        return value.expand_as(old) if (name, at_layer) == (kind, layer) else old

    with torch.enable_grad():
        final = forward(part.model, part.contexts, part.start(layer, stage, 0), visit, answer=part.answer, trim=False)
        (gradient,) = torch.autograd.grad(part.measure(final[0]).sum(), value)
    return gradient

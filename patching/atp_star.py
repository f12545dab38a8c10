"""AtP*: attribution patching at any site, with its two known failures repaired.

*Attribution patching* takes the effect of a patch to first order: ``(source - base) · d metric / d site`` at the base
run, for every site from one backward pass. It fails in two ways, and each has a repair that can be switched off:

* *Saturated attention.* The softmax is far from linear, so queries and keys look dead. The QK fix computes the pattern
  that the patched query or key would give, and linearises only what follows it.
* *Cancellation.* A direct and an indirect effect of opposite sign add to nothing. GradDrop takes the gradient again
  with one layer's write held fixed, for each layer in turn, and averages absolute effects.

Source: arXiv 2403.00745. Ours differs in taking rotation, QK-norm, soft caps, sliding windows and grouped keys into
the patched pattern (a key node feeds every head of its group), in an all-position key node being patched in all
positions at once rather than as a sum over them, and in the number of surviving terms per node as GradDrop's divisor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patching.activation import Part, SiteRun, axes_of, chosen_positions, splits
from patching.chunks import with_fewer_prompts
from patching.effects import Effects
from patching.errors import InvalidOption
from patching.progress import Progress, silent
from patching.sites import KINDS, Start, at, count_parts, forward, kind_of

UNITS = ("block", "sublayer")
Gradients = dict[tuple[str, int], Tensor]
"""Gradient of the summed metric at sites of whole layers; sites that the metric does not see are missing."""


def scores(
    run: SiteRun,
    kind: str,
    *,
    parts: bool | None = None,
    positions: bool | Iterable[int] = False,
    qk_fix: bool = True,
    grad_drop: bool = True,
    unit: str = "block",
    progress: Progress = silent,
) -> Effects:
    """Estimate the effect of patching every place of one kind. See `scores_of`, which does several kinds at once.

    Example:
        >>> from patching import toy
        >>> run = SiteRun(toy.model(), toy.task())
        >>> effects = scores(run, "z", grad_drop=False)  # GradDrop needs two layers
        >>> effects.axes
        ('layer', 'head')
    """
    made = scores_of(
        run, (kind,), parts=parts, positions=positions, qk_fix=qk_fix, grad_drop=grad_drop, unit=unit, progress=progress
    )
    return made[kind]


@with_fewer_prompts
def scores_of(
    run: SiteRun,
    kinds: Sequence[str],
    *,
    parts: bool | None = None,
    positions: bool | Iterable[int] = False,
    qk_fix: bool = True,
    grad_drop: bool = True,
    unit: str = "block",
    progress: Progress = silent,
) -> dict[str, Effects]:
    """Estimate the effects of patching every place of some kinds of site.

    ``AtP(n) = (n_source - n_base) · g_n``, with g the gradient of the metric at the base run.
    QK fix, queries: ``Σ_i (softmax(q_i' K) - softmax(q_i K)) · g_pattern,i``; keys: see `key_effects`.
    GradDrop: ``1/S Σ_l |AtP(n; gradient without layer l's write)|`` per prompt, S the number of terms that survive:
    all L for the residual stream, L - 1 for what acts through its own layer's write.

    Args:
        run: base and source; its direction is that of the effects.
        kinds: names from `sites.KINDS`.
        parts: each head, group or neuron by itself, or a layer's together; by default heads and groups by themselves.
        positions: each position by itself: True for all, or some of them.
        qk_fix: whether queries and keys get the QK fix; nothing else changes.
        grad_drop: whether to average over dropped layers; values are then absolute (``signed`` is False).
        unit: what GradDrop drops: the writes of a whole ``block``, as the paper does for its parallel blocks, or
            attention and MLP in turn (``sublayer``).
        progress: called with the number of backward passes done and to do.

    Returns:
        Per kind, effects with the axes of `activation.sweep`; `Effects.importance` is the paper's mean of absolute
        effects per prompt, `Effects.absolute_mean` the other order.

    Raises:
        InvalidOption: an unknown kind or unit, GradDrop on one layer, or a metric whose gradient vanishes at the base
            run (KL when noising).

    Cost: one forward and one backward beyond the run itself; the QK fix one attention pattern per layer; GradDrop the
    backward of l layers for each layer l, about L / 2 backwards in all.
    """
    _check(run, kinds, grad_drop=grad_drop, unit=unit)
    chosen = chosen_positions(run, positions)
    by_position = chosen != [None]
    passes = 1 + (len(_drops(run, unit)) if grad_drop else 0)
    totals: dict[str, list[Tensor]] = defaultdict(list)
    for number, part in enumerate(run.parts):
        tape = _Tape(part, set(kinds) | ({"pattern"} if qk_fix and {"q", "k"} & set(kinds) else set()))
        local = _local_effects(part, kinds, parts=parts, by_position=by_position, qk_fix=qk_fix)
        full = tape.gradients()
        progress(number * passes + 1, len(run.parts) * passes)
        sums = {kind: local(kind, full) for kind in kinds}
        if grad_drop:
            sums = {kind: torch.zeros_like(value) for kind, value in sums.items()}
            for drop, (layer, what) in enumerate(_drops(run, unit)):
                gradients = tape.dropped(full, layer, what)
                for kind in kinds:
                    sums[kind] += local(kind, gradients).abs()
                progress(number * passes + drop + 2, len(run.parts) * passes)
            for kind in kinds:
                sums[kind] /= passes - 1 - KINDS[kind].inside
        for kind in kinds:
            totals[kind].append(sums[kind])
    options = {"qk_fix": qk_fix, "grad_drop": grad_drop, "unit": unit}
    method = "atp_star" if qk_fix or grad_drop else "atp"
    return {
        kind: collected(
            run, kind, torch.cat(totals[kind]), method, options, parts=parts, chosen=chosen, signed=not grad_drop
        )
        for kind in kinds
    }


def collected(
    run: SiteRun,
    kind: str,
    values: Float[Tensor, "example ..."],
    method: str,
    options: Mapping[str, object],
    *,
    parts: bool | None,
    chosen: list[int | None],
    signed: bool = True,
) -> Effects:
    """Effects of one kind as a labelled array; ``chosen`` positions are picked where there are any."""
    values = values.double()
    if chosen != [None]:
        values = values[..., chosen]
    what = KINDS[kind]
    split = splits(what, parts)
    axes, labels = axes_of(what, len(run.model.blocks), range(count_parts(what, run.model)) if split else None, chosen)
    provenance = run.provenance(method, {"kind": kind} | dict(options))
    return Effects(values, axes, labels, run.base_metric, run.source_metric, provenance, signed=signed)


def _check(run: SiteRun, kinds: Sequence[str], *, grad_drop: bool, unit: str) -> None:
    if not kinds:
        raise InvalidOption("expected at least one kind of site; got none.")
    for kind in kinds:
        kind_of(kind, run.model.architecture)
    if unit not in UNITS:
        raise InvalidOption(f"expected a unit out of {', '.join(UNITS)}; got {unit!r}.")
    if grad_drop and len(_drops(run, unit)) < 2:
        raise InvalidOption(
            "expected a model of two layers or more for GradDrop: dropping the only layer leaves no gradient. Use "
            "grad_drop=False."
        )
    if run.metric.zero_gradient_when_clean and run.direction == "noising":
        raise InvalidOption(
            f"expected a metric whose gradient at the base run is not zero; {run.metric.name} is at its minimum on the "
            "clean run, so every score would be 0. Use logit_difference, or direction='denoising'."
        )


def _drops(run: SiteRun, unit: str) -> list[tuple[int, str]]:
    """What GradDrop drops, one after the other."""
    layers = range(len(run.model.blocks))
    if unit == "block" or not run.model.architecture.has_mlp:
        return [(layer, "block") for layer in layers]
    return [(layer, what) for layer in layers for what in ("attention", "mlp")]


class _Tape:
    """The base run with its graph, for as many backward passes as needed."""

    def __init__(self, part: Part, wanted: set[str]) -> None:
        self.part, self.wanted = part, wanted
        self.layers = len(part.model.blocks)
        self.parallel = part.model.architecture.parallel
        self.seen: dict[tuple[str, int], Tensor] = {}
        self.narrow: set[tuple[str, int]] = set()
        embedded = part.embedded.detach().requires_grad_(True)
        with torch.enable_grad():
            final = forward(part.model, part.contexts, Start(0, 0, 0, embedded), self._record, answer=part.answer)
            self.total = part.measure(final).sum()

    def _record(self, kind: str, layer: int, value: Tensor, narrow: bool) -> Tensor:
        if kind in self.wanted or not KINDS[kind].inside or kind in ("attn_out", "mlp_out"):
            self.seen[kind, layer] = value
            if narrow:
                self.narrow.add((kind, layer))
        return value

    def _grad(
        self, outputs: list[Tensor], weights: list[Tensor] | None, below: Callable[[str, int], bool]
    ) -> Gradients:
        keys = [key for key in self.seen if below(*key)]
        if not keys:
            return {}
        grads = torch.autograd.grad(
            outputs, [self.seen[key] for key in keys], weights, retain_graph=True, allow_unused=True
        )
        return {key: grad for key, grad in zip(keys, grads, strict=True) if grad is not None}

    def gradients(self) -> Gradients:
        """Of the whole metric, at every recorded site."""
        return self._grad([self.total], None, lambda _kind, _layer: True)

    def dropped(self, full: Gradients, layer: int, what: str) -> Gradients:
        """The same, had the writes of a block, or of its attention or MLP alone, been constant.

        What comes later keeps its gradient; what comes before gets what the rest of the block lets through.
        """
        above = {key: grad for key, grad in full.items() if key[1] > layer or key == ("resid_post", layer)}
        after = full["resid_post", layer]
        outputs, weights = [self.seen["resid_pre", layer]], [after]
        own: Gradients = {}
        if what == "block":
            own = {("resid_mid", layer): after} if ("resid_mid", layer) in self.seen else {}
        elif self.parallel:
            rest = "mlp_out" if what == "attention" else "attn_out"
            outputs, weights = [*outputs, self.seen[rest, layer]], [after, after]
        elif what == "attention":
            weights = [full["resid_mid", layer]]
            later = ("resid_mid", "neurons", "mlp_out")
            own = {(kind, layer): full[kind, layer] for kind in later if (kind, layer) in full}
        else:
            outputs = [self.seen["resid_mid", layer]]
        if outputs[0].shape != weights[0].shape:
            weights[0] = _spread(weights[0], self.part)
        kinds = set() if what == "block" else self._inside(layer, what)
        before = self._grad(
            outputs,
            weights,
            lambda kind, at_layer: at_layer < layer or (at_layer == layer and (kind in kinds or kind == "resid_pre")),
        )
        return above | before | own

    def _inside(self, layer: int, what: str) -> set[str]:
        """Kinds of a layer that a dropped sublayer leaves with a gradient, to be found by the backward pass."""
        stages = {"attention": (2,), "mlp": (0, 1)}[what] if self.parallel or what == "mlp" else ()
        kinds = {kind.name for kind in KINDS.values() if kind.inside and kind.stage in stages}
        if what == "mlp" and not self.parallel:
            kinds.add("resid_mid")
        return {kind for kind in kinds if (kind, layer) in self.seen}


@dataclass(frozen=True)
class _Local:
    """What effects are made of at one site: ``delta · gradient``, or a function of the pattern's gradient."""

    gradient_kind: str
    effect: Callable[[Tensor, bool], Tensor]  # gradient, whether narrow -> [(part,) example, pos] or [example, pos, N]


def _local_effects(
    part: Part, kinds: Sequence[str], *, parts: bool | None, by_position: bool, qk_fix: bool
) -> Callable[[str, Gradients], Tensor]:
    """A function from a kind and gradients to effects [example, layer, (part,) (pos)]."""
    length = part.contexts[0].bias.shape[-1]
    sites: dict[tuple[str, int], _Local] = {}

    def local(kind: str, layer: int) -> _Local:
        if (kind, layer) not in sites:
            fixed = qk_fix and kind in ("q", "k")
            make = _pattern_effect if fixed else _linear_effect
            sites[kind, layer] = _Local("pattern" if fixed else kind, make(part, kind, layer, by_position))
        return sites[kind, layer]

    def effects(kind: str, gradients: Gradients) -> Tensor:
        rows = []
        for layer in range(len(part.model.blocks)):
            site = local(kind, layer)
            gradient = gradients.get((site.gradient_kind, layer))
            value = part.source[kind][layer]
            if kind == "neurons":
                shape = (value.shape[0], length, value.shape[-1])
            elif KINDS[kind].parts:
                shape = (value.shape[0], value.shape[1], length)
            else:
                shape = (value.shape[0], length)
            effect = value.new_zeros(shape) if gradient is None else site.effect(gradient, gradient.shape[-2] != length)
            rows.append(arranged(kind, effect, parts=parts, by_position=by_position))
        return torch.stack(rows, dim=1)

    return effects


def contracted(kind: str, change: Tensor, gradient: Tensor) -> Tensor:
    """``change · gradient`` over the width of a site, neurons one by one."""
    product = change * gradient
    return product if kind == "neurons" else product.sum(-1)


def arranged(kind: str, effect: Tensor, *, parts: bool | None, by_position: bool) -> Float[Tensor, "example ..."]:
    """Effects of one layer, as `contracted` gives them, as [example, (part,) (pos)]."""
    if kind == "neurons":
        effect = effect.permute(0, 2, 1)
    elif KINDS[kind].parts:
        effect = effect.transpose(0, 1)
    if KINDS[kind].parts and not splits(KINDS[kind], parts):
        effect = effect.sum(1)
    return effect if by_position else effect.sum(-1)


def _linear_effect(part: Part, kind: str, layer: int, _by_position: bool) -> Callable[[Tensor, bool], Tensor]:
    delta = part.source[kind][layer] - part.base[kind][layer]

    def effect(gradient: Tensor, narrow: bool) -> Tensor:
        change = at(delta, part.answer) if narrow else delta
        product = change * gradient if kind == "neurons" else (change * gradient).sum(-1, keepdim=True)
        product = _spread(product, part) if narrow else product
        return product if kind == "neurons" else product[..., 0]

    return effect


def _pattern_effect(part: Part, kind: str, layer: int, by_position: bool) -> Callable[[Tensor, bool], Tensor]:
    """Effects of queries or keys through the pattern that they would give."""
    attention, context = part.model.blocks[layer].attention, part.contexts[layer]
    raw = {letter: (part.base[letter][layer], part.source[letter][layer]) for letter in "qk"}
    old, new = (
        {letter: attention.place(letter, raw[letter][which], context.rope) for letter in "qk"} for which in (0, 1)
    )
    groups, heads = old["k"].shape[0], old["q"].shape[0]
    repeats = heads // groups
    wide_old, wide_new = (keys["k"].repeat_interleave(repeats, dim=0) for keys in (old, new))
    before = attention.scores(old["q"], wide_old) + context.bias
    if kind == "q":
        change = attention.pattern(new["q"], wide_old, context.bias) - torch.softmax(before, dim=-1)

        def of_queries(gradient: Tensor, narrow: bool) -> Tensor:
            own = at(change, part.answer) if narrow else change
            effect = (own * gradient).sum(-1, keepdim=True)
            return (_spread(effect, part) if narrow else effect)[..., 0]

        return of_queries
    after = attention.scores(old["q"], wide_new) + context.bias
    joint = torch.softmax(after, dim=-1) - torch.softmax(before, dim=-1)

    def of_keys(gradient: Tensor, narrow: bool) -> Tensor:
        if by_position:
            was, then = (at(s, part.answer) if narrow else s for s in (before, after))
            effect = key_effects(was, then, gradient)  # [head, example, key]
        else:  # all keys at once, then written to the first position: only the sum over positions is asked for
            own = at(joint, part.answer) if narrow else joint
            effect = joint.new_zeros((heads, joint.shape[1], joint.shape[-1]))
            effect[..., 0] = (own * gradient).sum((-1, -2))
        return effect.unflatten(0, (groups, repeats)).sum(1)

    return of_keys


def key_effects(
    before: Float[Tensor, "*batch query key"],
    after: Float[Tensor, "*batch query key"],
    gradient: Float[Tensor, "*batch query key"],
) -> Float[Tensor, "*batch key"]:
    """Effect of replacing each key alone, to first order behind the softmax, for all keys at once in O(T²).

    With ``s`` the scores, ``s'_it`` the score of query i for the new key t, and g the gradient at the pattern:
    ``p'_it = sigmoid(s'_it - LSE_{j≠t} s_ij)`` and
    ``effect_t = Σ_i (p'_it - p_it) (g_it - mean_{j≠t} g_ij)``, the mean weighted by the softmax without t.

    Stable: ``LSE_{j≠t} = LSE + log1p(-p_it)`` is used for ``p ≤ 1/2``; at most one key of a row is above that, and for
    it the sum is taken again without it.

    Args:
        before: scores of the base run, -inf where a query may not look.
        after: scores with every key replaced; entry (i, t) depends on key t alone.
        gradient: of the metric at the pattern.

    Source: arXiv 2403.00745, section 3.1.1; equal to recomputing the pattern for each key, which costs O(T³).
    """
    total = torch.logsumexp(before, dim=-1, keepdim=True)
    pattern = torch.exp(before - total)
    weighted = (pattern * gradient).sum(-1, keepdim=True)
    top = before.argmax(-1, keepdim=True)
    without = before.scatter(-1, top, -torch.inf)
    rest_of_top = torch.logsumexp(without, dim=-1, keepdim=True)
    mean_of_top = torch.nan_to_num(torch.exp(without - rest_of_top), nan=0.0).mul(gradient).sum(-1, keepdim=True)
    large = pattern > 0.5
    small = pattern.masked_fill(large, 0.0)
    rest = torch.where(large, rest_of_top, total + torch.log1p(-small))
    mean = torch.where(large, mean_of_top, (weighted - small * gradient) / (1 - small))
    changed = torch.sigmoid(after - rest)
    effect = (changed - pattern) * (gradient - mean)
    return effect.masked_fill(torch.isneginf(before), 0.0).sum(-2)


def _spread(value: Tensor, part: Part) -> Tensor:
    """A value at the answer positions, with zeros at all others."""
    length = part.contexts[0].bias.shape[-1]
    whole = value.new_zeros((*value.shape[:-2], length, value.shape[-1]))
    rows = torch.arange(len(part.answer), device=value.device)
    whole[..., rows, part.answer, :] = value[..., 0, :]
    return whole

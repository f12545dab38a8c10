"""SHIFT: take out of a classifier what a person judges to have nothing to do with the task.

A linear probe on a model's mean activations is trained on data in which another, *spurious* label always agrees with
the *intended* one, so that it learns both. Without any data that part the two:

1. `fit_probe` trains the probe at a site on the biased data;
2. `latent_effects` ranks the features of dictionaries at and before the site by what ablating each does to the probe;
3. a person reads what the strongest features respond to and marks those that are beside the point
   (`circuits.features.shift_selection` writes and reads the file);
4. the marked features are zeroed at every position, the error terms kept (``without=``);
5. `fit_probe` may train the probe again on what is left.

`evaluate` tells on balanced data how much the probe follows either label, and how it does on its worst group. What to
hold SHIFT against: the probe as it was; one without the tokens that give the spurious label away
(`labelled_prompts.delete_tokens`); the same with coordinates in place of features (an identity dictionary); features
chosen with the labels (`skyline`); a probe trained on balanced data.

Signs: the metric is the probe's logit in the direction of the label; effect = metric(ablated) - metric(clean), so a
negative effect means that the feature helps.

Source: arXiv 2403.19647. Theirs trains the probe by AdamW for one epoch, ours to its optimum; ours
leaves positions that do not count (BOS, padding) out of means and ablations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.features.activations import Prompts, prompts_that_fit, read
from circuits.features.dictionary import Dictionary
from circuits.features.labelled_prompts import Accuracies, LabelledPrompts, accuracies
from circuits.features.pooled_run import PooledRun
from circuits.features.probing import Probe, fit
from circuits.features.reading import directions
from circuits.features.spelling import spelled_feature
from graphs.nodes import Node
from patching.component_run import FEATURE_SITES
from patching.errors import InvalidOption
from patching.progress import Progress, silent
from patching.sites import Site, Start

METHODS = ("ig", "atp", "exact")


def fit_probe(
    run: PooledRun,
    data: LabelledPrompts,
    *,
    without: Iterable[Node] = (),
    label: str = "intended",
    penalty: float = 1.0,
) -> Probe:
    """Train a probe for a label of some prompts; with ``without``, on what is left when these features are zeroed.

    Args:
        run: what the probe reads.
        data: to train on.
        without: features that are zeroed.
        label: ``intended`` or ``spurious``.
        penalty: as in `probing.fit`.

    Raises:
        InvalidOption: one class alone, or an unknown label or feature.
    """
    return fit(run(data.prompts, without=without), data.label(label), penalty=penalty)


@dataclass(frozen=True)
class LatentEffects:
    """What ablating each feature does to a probe, averaged over prompts.

    Attributes:
        values: by site, the effect of every feature; negative helps the probe towards the label.
        errors: by site, the effect of the error term, at which no feature is (nan for exact effects).
        provenance: method, options, model, site.
    """

    values: Mapping[Site, Float[Tensor, " feature"]]
    errors: Mapping[Site, float]
    provenance: Mapping[str, Any]

    def ranked(self, n: int | None = None, *, signed: bool = False) -> list[tuple[Node, float]]:
        """Features with their effects, the largest absolute effect first; those without any effect are left out.

        Args:
            n: how many at most.
            signed: only those that help the probe, the most helpful first.
        """
        rows = [
            (abs(value), order, index, site, value)
            for order, (site, effects) in enumerate(self.values.items())
            for index, value in enumerate(effects.tolist())
            if (value < 0 if signed else value != 0)
        ]
        rows.sort(key=lambda row: (-row[0], row[1], row[2]))
        return [(Node.parse(spelled_feature(str(site), index)), value) for _, _, index, site, value in rows[:n]]

    def site_of(self, node: Node) -> Site:
        """The site of a feature or error term.

        Raises:
            InvalidOption: none of these sites has it.
        """
        for site in self.values:
            if node.site == FEATURE_SITES[site.kind] and (node.layer or 0) == site.layer and node.position is None:
                return site
        raise InvalidOption(f"expected a feature at one of {', '.join(map(str, self.values))}; got {node}.")

    def __getitem__(self, node: Node | str) -> float:
        """The effect of one feature or error term."""
        wanted = Node.parse(node) if isinstance(node, str) else node
        site = self.site_of(wanted)
        if wanted.is_error:
            return self.errors[site]
        if wanted.index is None or wanted.index >= len(self.values[site]):
            raise InvalidOption(f"expected a feature from 0 to {len(self.values[site]) - 1}; got {wanted}.")
        return float(self.values[site][wanted.index])


def latent_effects(
    run: PooledRun,
    probe: Probe,
    data: LabelledPrompts,
    *,
    label: str = "intended",
    method: str = "ig",
    steps: int = 10,
    progress: Progress = silent,
) -> LatentEffects:
    """Rank features by what zeroing each does to the probe's logit towards a label.

    With the metric ``m = ± logit``, the sign that of each prompt's label, and f the features of one site:

        atp     -f_i (dm/dx · d_i)                            gradient where nothing is ablated
        ig      -f_i (mean over the path of dm/dx · d_i)      all features and the error term of the site go to 0
                                                              together, midpoints of ``steps`` equal steps
        exact   m(f_i = 0) - m                                one run for each feature that is ever active

    summed over positions, averaged over prompts. Decoders are affine, so the path is one of x alone: it goes to b_dec.

    Cost: per site and prompt, one forward and backward from its layer on for atp, ``steps`` for ig; for exact, a
    forward for each feature that is active.

    Args:
        run: with the dictionaries.
        probe: at the run's site.
        data: prompts to average over; the biased ones, as nobody has others.
        label: that the metric points to.
        method: one of `METHODS`.
        steps: of ig.
        progress: called with the number of sites done and in all.

    Raises:
        InvalidOption: no dictionaries, an unknown method or label, or steps below 1.

    Source: arXiv 2403.19647 (their steps take the left ends).
    """
    if method not in METHODS or steps < 1:
        raise InvalidOption(
            f"expected a method out of {', '.join(METHODS)} and at least 1 step; got {method!r}, {steps}."
        )
    if not run.dictionaries:
        raise InvalidOption("expected a run with dictionaries, whose features can be ranked; got none.")
    signs = data.label(label).double() * 2 - 1
    values: dict[Site, Tensor] = {}
    errors: dict[Site, float] = {}
    for done, (site, dictionary) in enumerate(run.dictionaries.items(), 1):
        total, rest, low = torch.zeros(dictionary.n_features, dtype=torch.float64), 0.0, 0
        for piece in run.pieces(data.prompts):
            look = _Look(run, probe, site, dictionary, piece, signs[low : low + len(piece)])
            own, leftover = look.exact() if method == "exact" else look.along(1 if method == "atp" else steps, method)
            total += own.cpu() / len(data)
            rest += leftover / len(data)
            low += len(piece)
        values[site], errors[site] = total, rest
        progress(done, len(run.dictionaries))
    return LatentEffects(values, errors, _provenance(run, method, steps, label, len(data)))


def _provenance(run: PooledRun, method: str, steps: int, label: str, prompts: int) -> dict[str, Any]:
    return {
        "method": f"shift-{method}",
        "options": {"steps": steps} if method == "ig" else {},
        "model": run.model.name,
        "probe": str(run.site),
        "metric": f"probe logit towards the {label} label, mean over tokens that count",
        "prompts": prompts,
        "ablation": "zero",
        "sign": "effect = metric(ablated) - metric(clean)",
        "torch": torch.__version__,
    }


class _Look:
    """One dictionary's features in some prompts, and what becomes of the probe when they change."""

    def __init__(
        self, run: PooledRun, probe: Probe, site: Site, dictionary: Dictionary, prompts: Prompts, signs: Tensor
    ) -> None:
        self.run, self.probe, self.site, self.dictionary, self.prompts = run, probe, site, dictionary, prompts
        self.signs = signs.to(run.model.device)
        before = f"resid_pre{site.layer}"
        found = read(run.model, prompts.tokens, [before, site])
        self.start, self.x = Start(site.layer, 0, 0, found[before]), found[str(site)]
        self.keep = prompts.keep.to(self.x.device).unsqueeze(-1)

    def metric(self, value: Float[Tensor, "*sample example pos d_model"]) -> Float[Tensor, "*sample example"]:
        """The logit towards the label when the site carries something."""

        def change(here: Site, current: Tensor) -> Tensor:
            return value if here == self.site else current

        pooled = self.run.pool(self.run.run(self.start, self.prompts, change), self.prompts.keep)
        return self.probe.logits(pooled) * self.signs

    def along(self, steps: int, method: str) -> tuple[Float[Tensor, " feature"], float]:
        """First-order effects, summed over prompts, and that of the error term."""
        with torch.no_grad():
            features = self.dictionary.encode(self.x)
            rest = self.x - self.dictionary.decode(features)
            towards = self.dictionary.decode(torch.zeros_like(features[:1, :1])) - self.x
        slope = torch.zeros_like(self.x, dtype=torch.float64)
        for step in range(steps):
            share = 0.0 if method == "atp" else (step + 0.5) / steps
            leaf = (self.x + share * self.keep * towards).to(self.x.dtype).detach().requires_grad_(True)
            with torch.enable_grad():
                slope += torch.autograd.grad(self.metric(leaf).sum(), leaf)[0].double() / steps
        slope = slope * self.keep
        pulled = slope @ directions(self.dictionary).double().T
        return -(features.double() * pulled).sum((0, 1)), -float((rest.double() * slope).sum())

    @torch.no_grad()
    def exact(self) -> tuple[Float[Tensor, " feature"], float]:
        """Effects of zeroing each feature alone, summed over prompts."""
        features = self.dictionary.encode(self.x) * self.keep
        clean = self.metric(self.x)
        rows = directions(self.dictionary)
        result = torch.zeros(self.dictionary.n_features, dtype=torch.float64, device=self.x.device)
        active = (features != 0).flatten(0, -2).any(0).nonzero().flatten()
        size = prompts_that_fit(self.run.model, self.x.shape[1], self.run.memory // 2) // len(self.prompts)
        for latents in active.split(max(1, size)):
            lost = features[..., latents].movedim(-1, 0).unsqueeze(-1) * rows[latents][:, None, None]
            result[latents] = (self.metric(self.x - lost.to(self.x.dtype)) - clean).sum(-1)
        return result, float("nan")


def skyline(
    run: PooledRun, probe: Probe, balanced: LabelledPrompts, n: int, *, method: str = "ig", steps: int = 10
) -> tuple[Node, ...]:
    """The features that help a probe most towards the spurious label, found with the help of both labels.

    What SHIFT would choose if somebody had balanced data to measure on; not a method, an upper mark for it.

    Args:
        run: with the dictionaries.
        probe: trained on biased data.
        balanced: prompts whose two labels do not go together.
        n: how many.
        method: as in `latent_effects`.
        steps: likewise.
    """
    effects = latent_effects(run, probe, balanced, label="spurious", method=method, steps=steps)
    return tuple(node for node, _ in effects.ranked(n, signed=True))


def evaluate(run: PooledRun, probe: Probe, data: LabelledPrompts, *, without: Iterable[Node] = ()) -> Accuracies:
    """What a probe says of prompts, with features zeroed or not.

    Args:
        run: what the probe reads.
        probe: the probe.
        data: balanced prompts; groups without prompts are left out.
        without: features that are zeroed.
    """
    return accuracies(probe.predict(run(data.prompts, without=without)).cpu(), data.intended, data.spurious)

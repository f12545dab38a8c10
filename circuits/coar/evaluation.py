"""How well an attribution predicts ablations that it has not seen, beside what cheaper methods predict."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.coar.attribution import Attribution
from circuits.coar.baselines import BASELINES
from circuits.coar.estimate import attribution_of
from circuits.coar.masks import MaskDesign
from circuits.coar.sampling import Sampling, Shard, merge, sample
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Agreement:
    """Correlation of predicted and true outputs over held-out ablations, for one method and one share of ablation.

    Attributes:
        method: ``coar`` or the name of a baseline.
        keep: probability with which components were kept in the held-out masks.
        correlations: Pearson's r over the masks, one for each prompt; NaN where a prompt's output or prediction does
            not vary.
        of_mean: r of the outputs averaged over prompts with their predictions averaged.
    """

    method: str
    keep: float
    correlations: Float[Tensor, " example"]
    of_mean: float

    @property
    def defined(self) -> Float[Tensor, " some"]:
        """The correlations that exist."""
        return self.correlations[~self.correlations.isnan()]

    @property
    def undefined(self) -> list[int]:
        """Prompts without a correlation."""
        return self.correlations.isnan().nonzero().flatten().tolist()

    @property
    def mean(self) -> float:
        """Over the prompts that have one (what the paper reports); NaN if none has."""
        return float(self.defined.mean()) if len(self.defined) else math.nan

    @property
    def standard_error(self) -> float:
        """Of `mean`, over prompts."""
        return float(self.defined.std()) / math.sqrt(len(self.defined)) if len(self.defined) > 1 else math.nan


@dataclass(frozen=True)
class Evaluation:
    """`Agreement` of several methods on the same held-out ablations.

    Attributes:
        agreements: one for each method and share.
        provenance: the run, and how many masks of which seed.
    """

    agreements: tuple[Agreement, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def of(self, method: str, keep: float | None = None) -> Agreement:
        """One of them; the first share by default.

        Raises:
            InvalidOption: there is none.
        """
        for one in self.agreements:
            if one.method == method and keep in (None, one.keep):
                return one
        known = ", ".join(sorted({one.method for one in self.agreements}))
        raise InvalidOption(f"expected a method out of {known} at a share evaluated; got {method!r} at keep={keep}.")

    def to_frame(self) -> pd.DataFrame:
        """A row for each method and share."""
        import pandas as pd

        return pd.DataFrame(
            {
                "method": [one.method for one in self.agreements],
                "ablated": [1 - one.keep for one in self.agreements],
                "correlation": [one.mean for one in self.agreements],
                "standard_error": [one.standard_error for one in self.agreements],
                "of_mean_prompt": [one.of_mean for one in self.agreements],
                "prompts": [len(one.defined) for one in self.agreements],
            }
        )

    def __str__(self) -> str:
        keeps = sorted({one.keep for one in self.agreements}, reverse=True)
        methods = list(dict.fromkeys(one.method for one in self.agreements))
        width = max(map(len, [*methods, "ablated"]))
        lines = [f"{'ablated':<{width}}  " + "  ".join(f"{f'{1 - keep:.3g}':>14}" for keep in keeps)]
        for method in methods:
            cells = []
            for keep in keeps:
                one = self.of(method, keep)
                cells.append(f"{f'{one.mean:.3f} ± {one.standard_error:.3f}':>14}")
            lines.append(f"{method:<{width}}  " + "  ".join(cells))
        silent_prompts = max((len(one.undefined) for one in self.agreements), default=0)
        if silent_prompts:
            lines.append(f"{silent_prompts} prompts have outputs or predictions that do not vary, and no correlation.")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


def pearson(
    predicted: Float[Tensor, "sample example"], true: Float[Tensor, "sample example"]
) -> Float[Tensor, " example"]:
    """Correlation over samples, for each prompt; NaN where either does not vary beyond rounding.

    Example:
        >>> round(float(pearson(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[2.0], [4.0], [8.0]]))), 12)
        1.0
    """
    first, second = (value.double() - value.double().mean(0) for value in (predicted, true))
    sizes = [value.double().abs().amax(0) for value in (predicted, true)]
    spreads = [value.norm(dim=0) for value in (first, second)]
    least = [size * len(first) ** 0.5 * 1e-12 for size in sizes]
    alive = (spreads[0] > least[0]) & (spreads[1] > least[1])
    value = (first * second).sum(0) / (spreads[0] * spreads[1])
    return torch.where(alive, value.clamp(-1, 1), torch.nan)


def held_out(
    run: ComponentRun, *, keep: float, samples: int = 200, seed: int = 1_000_003, progress: Progress = silent
) -> tuple[MaskDesign, Float[Tensor, "sample example"]]:
    """Random ablations of a seed of their own, and the outputs under them."""
    design = MaskDesign(run.n_units, samples, keep, seed)
    sampling = Sampling.of(run, design)
    return design, merge(sample(run, sampling, progress=progress), sampling)


def evaluate(
    run: ComponentRun,
    attribution: Attribution | None = None,
    *,
    keeps: Sequence[float] | None = None,
    samples: int = 200,
    seed: int = 1_000_003,
    baselines: Sequence[str] = tuple(BASELINES),
    progress: Progress = silent,
) -> Evaluation:
    """Correlation of predicted with true outputs under held-out ablations.

    For each prompt z, Pearson's r over masks between ``b(z) + w(z) · mask`` and the output; an intercept does not
    change it, so methods that give effects alone can be compared.

    Args:
        run: the run that was attributed, or the same components on other prompts for baselines alone.
        attribution: what `attribute` gave; None for baselines alone.
        keeps: probabilities of being kept to draw held-out masks with; by default the attribution's own and the two
            that ablate twice and half as much.
        samples: held-out masks for each.
        seed: of these masks; must not be the attribution's own.
        baselines: names out of `BASELINES`; those that the components or the ablation do not allow raise.
        progress: called with the ablations run and to run (baselines apart).

    Raises:
        InvalidOption: the held-out masks would be the ones fitted, or other components were attributed.

    Cost: ``samples`` forwards for each of ``keeps``, and what the baselines cost (see `circuits.coar.baselines`).

    Source: arXiv 2404.11534, figure 1.

    Example:
        >>> from patching import toy
        >>> from circuits import coar
        >>> run = ComponentRun(toy.model(), toy.task())
        >>> found = coar.attribute(run, samples=64, keep=0.5)
        >>> result = evaluate(run, found, samples=50, baselines=("leave_one_out",))
        >>> [one.method for one in result.agreements[:2]]
        ['coar', 'leave_one_out']
    """
    if attribution is not None:
        _check(run, attribution, seed)
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise InvalidOption(f"expected baselines out of {', '.join(BASELINES)}; got {', '.join(unknown)}.")
    own = 0.9 if attribution is None else attribution.keep
    keeps = tuple(dict.fromkeys([own, max(1 - 2 * (1 - own), own / 2), 1 - (1 - own) / 2]) if keeps is None else keeps)
    weights = {} if attribution is None else {"coar": attribution.weights}
    weights |= {name: BASELINES[name](run).cpu() for name in baselines}
    found = []
    for place, keep in enumerate(keeps):

        def shown(done: int, total: int, before: int = place) -> None:
            progress(before * total + done, len(keeps) * total)

        design, true = held_out(run, keep=keep, samples=samples, seed=seed, progress=shown)
        masks = design.rows().double()
        for method, weight in weights.items():
            predicted = masks @ weight.double().T
            of_mean = pearson(predicted.mean(1, keepdim=True), true.mean(1, keepdim=True))
            alone = len(weight) == 1 < true.shape[1]
            each = pearson(predicted.expand(-1, true.shape[1]) if alone else predicted, true)
            found.append(Agreement(method, keep, each, float(of_mean)))
    options = {"samples": samples, "seed": seed, "keeps": list(keeps)}
    return Evaluation(tuple(found), run.provenance("coar evaluation", options))


@dataclass(frozen=True)
class LearningCurve:
    """Held-out correlation as samples are added.

    Attributes:
        agreements: of attributions from more and more samples.
        samples: how many each took.
        chosen: the attribution from the last of them.
        stopped: why no more were taken.
    """

    agreements: tuple[Agreement, ...]
    samples: tuple[int, ...]
    chosen: Attribution
    stopped: str

    def to_frame(self) -> pd.DataFrame:
        """A row for each size."""
        import pandas as pd

        return pd.DataFrame(
            {
                "samples": self.samples,
                "correlation": [one.mean for one in self.agreements],
                "standard_error": [one.standard_error for one in self.agreements],
            }
        )

    def __str__(self) -> str:
        lines = [f"{'samples':>9}  held-out correlation"]
        for count, one in zip(self.samples, self.agreements, strict=True):
            lines.append(f"{count:>9,}  {one.mean:.4f} ± {one.standard_error:.4f}")
        return "\n".join([*lines, self.stopped])


def learning_curve(
    run: ComponentRun,
    *,
    keep: float = 0.9,
    seed: int = 0,
    first: int | None = None,
    most: int = 20_000,
    factor: float = 2.0,
    rise: float = 0.005,
    held_out_samples: int = 200,
    held_out_seed: int = 1_000_003,
    masks: str = "bernoulli",
    estimator: str = "auto",
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> LearningCurve:
    """Add samples until the held-out correlation no longer rises.

    Sizes grow by ``factor``; samples already run are kept, since a longer design begins with the shorter one. The rule:
    stop when the mean held-out correlation rises by less than ``rise`` from one size to the next.

    Args:
        run: what is attributed.
        keep: probability of being kept, for both kinds of masks.
        seed: of the masks that are fitted.
        first: the first size; by default one and a half masks for every component.
        most: the size beyond which it stops in any case.
        factor: from one size to the next.
        rise: of the correlation that is worth another step.
        held_out_samples: masks held out.
        held_out_seed: of these.
        masks: the kind that are fitted, ``bernoulli`` or ``subset``; those held out are ``bernoulli``.
        estimator: see `circuits.coar.estimators.fit`.
        folder: where the runs that are fitted are kept as they are finished, so that an interrupted curve goes on.
        progress: called with the samples run and the most that may be.

    Raises:
        InvalidOption: options out of range, or the folder holds samples of another run.

    Cost: as `attribute` with the samples of the last size, rounded up to whole shards of 256, and the held-out runs.

    Example:
        >>> from patching import toy
        >>> run = ComponentRun(toy.model(), toy.task())
        >>> curve = learning_curve(run, keep=0.5, first=32, most=256, held_out_samples=50)
        >>> curve.samples, curve.stopped
        ((32, 64), 'stopped at 64 samples: the correlation rose by less than 0.005.')
    """
    first = max(16, round(1.5 * run.n_units)) if first is None else first
    if not 1 <= first <= most or factor <= 1 or rise < 0 or seed == held_out_seed:
        raise InvalidOption(
            f"expected 1 <= first <= most, factor above 1, rise of 0 or more and two seeds; got {first=}, {most=}, "
            f"{factor=}, {rise=}, {seed=}, {held_out_seed=}."
        )
    design, true = held_out(run, keep=keep, samples=held_out_samples, seed=held_out_seed)
    held_out_masks = design.rows().double()
    sizes: list[int] = []
    agreements: list[Agreement] = []
    shards: tuple[Shard, ...] = ()
    size, stopped = first, ""
    chosen: Attribution | None = None
    while not stopped:
        grown = MaskDesign(run.n_units, size, keep, seed, masks)
        sampling = _whole_shards(run, grown, most)
        shards += _more(run, sampling, len(shards), folder, progress, most)
        chosen = attribution_of(run, grown, merge(shards, sampling)[:size], estimator=estimator)
        predicted = chosen.predict(held_out_masks)
        of_mean = pearson(predicted.mean(1, keepdim=True), true.mean(1, keepdim=True))
        agreements.append(Agreement("coar", keep, pearson(predicted, true), float(of_mean)))
        sizes.append(size)
        if len(agreements) > 1 and agreements[-1].mean - agreements[-2].mean < rise:
            stopped = f"stopped at {size:,} samples: the correlation rose by less than {rise:g}."
        elif size >= most:
            stopped = f"stopped at {size:,} samples, the most allowed; the correlation was still rising."
        size = min(most, math.ceil(size * factor))
    assert chosen is not None
    told = dict(chosen.provenance) | {
        "learning_curve": [[n, one.mean] for n, one in zip(sizes, agreements, strict=True)]
    }
    return LearningCurve(tuple(agreements), tuple(sizes), replace(chosen, provenance=told), stopped)


def _whole_shards(run: ComponentRun, design: MaskDesign, most: int) -> Sampling:
    """What is run for a size: whole shards, so that none is run again for a larger size, or when a run goes on."""
    cut = Sampling.of(run, design)
    return replace(cut, design=design.with_samples(min(most, cut.n_shards * cut.shard_rows)))


def _more(
    run: ComponentRun,
    sampling: Sampling,
    known: int,
    folder: str | os.PathLike[str] | None,
    progress: Progress,
    most: int,
) -> tuple[Shard, ...]:
    """The shards after those that are known."""
    before = known * sampling.shard_rows
    numbers = range(known, sampling.n_shards)
    return sample(run, sampling, folder=folder, only=numbers, progress=lambda n, _total: progress(before + n, most))


def _check(run: ComponentRun, attribution: Attribution, seed: int) -> None:
    if attribution.units != run.units:
        raise InvalidOption(
            f"expected an attribution of this run's {run.n_units:,} components; got one of {len(attribution.units):,}."
        )
    if len(attribution.weights) not in (1, len(run.task)):
        raise InvalidOption(
            f"expected an attribution of this run's {len(run.task)} prompts (or of their mean); it is of "
            f"{len(attribution.weights)}."
        )
    fitted = attribution.provenance.get("options", {}).get("seed")
    if fitted == seed:
        raise InvalidOption(f"expected held-out masks of another seed than the fitted ones; both are {seed}.")

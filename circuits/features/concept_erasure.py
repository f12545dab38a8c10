"""Whether a dictionary holds a concept in features of its own: erase them and see what probes lose.

Spurious correlation removal (SCR). A probe is trained where two labels always agree, so that it learns both. Zeroing
the features of one label should leave the other:

    SCR(n) = (accuracy with n features erased - accuracy before) / (accuracy of a clean probe - accuracy before)

Targeted probe perturbation (TPP). One probe per class. Zeroing the features of a class should hurt its own probe alone:

    TPP(n) = mean over classes i of (drop of probe i - mean over j ≠ i of the drop of probe j), features of i erased

Features are ranked by what they are worth to a probe with weights w: ``(mean f⁺ - mean f⁻) · (w · d_i)`` with the
feature's direction d_i; its absolute value for SCR, with the difference of means clamped at 0 for TPP. Zeroing keeps
the error term: x becomes ``x - sum of f_i d_i``. Everything is linear in mean-pooled activations, so one encoding of
the data serves all numbers of features.

Source: SAEBench, arXiv 2503.09532, sections on SCR and TPP (after SHIFT, arXiv 2403.19647).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.features.dictionary import Dictionary
from circuits.features.probing import Probe, fit, mean_difference
from circuits.features.reading import directions
from patching.errors import InvalidOption

if TYPE_CHECKING:
    import pandas as pd

COUNTS = (2, 5, 10, 20, 50, 100)
SMALLEST = 1e-3
"""A clean probe that is better by less than this leaves nothing to regain: the score is 0."""


@dataclass(frozen=True)
class Pooled:
    """Activations and features of examples, averaged over their tokens.

    Attributes:
        x: mean activation.
        features: mean of every feature.
        directions: what a unit of every feature adds.
    """

    x: Float[Tensor, "example width"]
    features: Float[Tensor, "example feature"]
    directions: Float[Tensor, "feature width"]

    def without(self, latents: Int[Tensor, " latent"]) -> Float[Tensor, "example width"]:
        """The activations with some features zeroed and the error term kept."""
        return self.x - self.features[:, latents] @ self.directions[latents]


@torch.no_grad()
def pooled(
    dictionary: Dictionary,
    x: Float[Tensor, "example *pos width"],
    *,
    keep: Bool[Tensor, "example pos"] | None = None,
    batch: int = 1024,
) -> Pooled:
    """Encode activations and average them over tokens, in float64.

    Args:
        dictionary: whose features.
        x: one vector per example, or one per token.
        keep: the tokens that count; all by default.
        batch: examples encoded at a time.

    Raises:
        InvalidOption: a transcoder, or an example without a token that counts.

    Example:
        >>> from circuits.features.dictionary import create
        >>> x = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
        >>> data = pooled(create("identity", d_in=2, n_features=2), x, keep=torch.tensor([[True, False]]))
        >>> data.x.tolist(), data.without(torch.tensor([0])).tolist()
        ([[1.0, 0.0]], [[0.0, 0.0]])
    """
    if dictionary.architecture.endswith("transcoder"):
        raise InvalidOption("expected a dictionary of one site; a transcoder's features are not those of its output.")
    tokens = x.unsqueeze(1) if x.ndim == 2 else x
    shares = torch.ones(tokens.shape[:2], dtype=torch.float64, device=x.device) if keep is None else keep.to(x.device)
    if shares.shape != tokens.shape[:2] or not bool((shares.sum(-1) > 0).all()):
        raise InvalidOption(
            f"expected a mask {list(tokens.shape[:2])} of the tokens that count, at least one for each example; got "
            f"{list(shares.shape)}."
        )
    shares = shares.double() / shares.double().sum(-1, keepdim=True)
    means, features = [], []
    for low in range(0, len(tokens), batch):
        part, share = tokens[low : low + batch], shares[low : low + batch]
        means.append(torch.einsum("epd,ep->ed", part.double(), share))
        features.append(torch.einsum("epf,ep->ef", dictionary.encode(part).double(), share))
    return Pooled(torch.cat(means), torch.cat(features), directions(dictionary).double())


@dataclass(frozen=True)
class TwoLabels:
    """Examples with two labels each."""

    data: Pooled
    intended: Bool[Tensor, " example"]
    spurious: Bool[Tensor, " example"]

    def __post_init__(self) -> None:
        for labels in (self.intended, self.spurious):
            if labels.shape != self.data.x.shape[:1]:
                raise InvalidOption(f"expected a label for each of {len(self.data.x)} examples; got {len(labels)}.")

    def swapped(self) -> TwoLabels:
        """The two labels exchanged."""
        return TwoLabels(self.data, self.spurious, self.intended)


@dataclass(frozen=True)
class Erasure:
    """Scores by number of features erased.

    Attributes:
        counts: how many features.
        scores: SCR or TPP.
        latents: the ranking, best first; of TPP, one row per class.
        before: accuracy before: of the biased probe (SCR), or mean of the probes (TPP).
        best: accuracy of the clean probe (SCR); of TPP the same as before.
        accuracies: with the features erased; of TPP, mean drop of a class's own probe.
        erased: of SCR, the label whose features were erased, ``spurious`` or ``intended``.
    """

    counts: tuple[int, ...]
    scores: tuple[float, ...]
    latents: Int[Tensor, "*class feature"]
    before: float
    best: float
    accuracies: tuple[float, ...]
    erased: str

    def to_frame(self) -> pd.DataFrame:
        """One row per number of features."""
        import pandas as pd

        return pd.DataFrame({"features": self.counts, "score": self.scores, "accuracy": self.accuracies})

    def __str__(self) -> str:
        title = f"{self.erased} features erased; before {self.before:.1%}, clean {self.best:.1%}"
        rows = zip(self.counts, self.accuracies, self.scores, strict=True)
        return "\n".join([title, *(f"{n:>6}  {accuracy:>7.1%}  {score:>7.3f}" for n, accuracy, score in rows)])


def worth(probe: Probe, data: Pooled, labels: Bool[Tensor, " example"]) -> Float[Tensor, " feature"]:
    """What every feature's difference between the classes is worth to a probe: (mean f⁺ - mean f⁻) (w · d_i)."""
    return mean_difference(data.features, labels) * (data.directions @ probe.weight)


def spurious_correlation_removal(
    biased: TwoLabels, balanced: TwoLabels, test: TwoLabels, *, counts: Sequence[int] = COUNTS, penalty: float = 1.0
) -> Erasure:
    """SCR: how much of what a biased probe lost comes back when the spurious features are zeroed.

    The biased probe predicts the intended label where both agree; the features to erase are those worth most to a
    probe for the spurious label on balanced examples. Done in both directions (the labels exchanged); the one in which
    the biased probe is worse counts, since in the other it has nothing to regain.

    Cost: three probes, and one matrix product per number of features and direction.

    Args:
        biased: training examples whose two labels agree.
        balanced: training examples whose labels do not go together.
        test: balanced examples to judge on.
        counts: how many features to erase; numbers above those that have an effect count as all of these.
        penalty: of the probes.

    Raises:
        InvalidOption: the labels of the biased examples never or of the balanced ones always agree, one class alone,
            or counts that are not positive.

    Source: arXiv 2503.09532; theirs trains probes by Adam.
    """
    wanted = _checked(counts)
    agree = (biased.intended == biased.spurious).double().mean()
    if agree < 0.5 or bool((balanced.intended == balanced.spurious).all()):
        raise InvalidOption(
            f"expected biased examples whose labels agree and balanced ones whose labels do not all agree; got "
            f"{agree:.0%} agreeing of the biased."
        )
    probe = fit(biased.data.x, biased.intended, penalty=penalty)
    sides = {"spurious": (biased, balanced, test), "intended": (biased.swapped(), balanced.swapped(), test.swapped())}
    before = {side: probe.accuracy(judged.data.x, judged.intended) for side, (_, _, judged) in sides.items()}
    erased = min(sides, key=lambda side: before[side])
    _, clean, judged = sides[erased]
    best = fit(clean.data.x, clean.intended, penalty=penalty).accuracy(judged.data.x, judged.intended)
    concept = fit(clean.data.x, clean.spurious, penalty=penalty)
    effects = worth(concept, clean.data, clean.spurious).abs()
    order = _order(effects)
    accuracies = tuple(
        probe.accuracy(judged.data.without(order[: min(n, int((effects > 0).sum()))]), judged.intended) for n in wanted
    )
    room = best - before[erased]
    scores = tuple((one - before[erased]) / room if abs(room) >= SMALLEST else 0.0 for one in accuracies)
    return Erasure(wanted, scores, order, before[erased], best, accuracies, erased)


def targeted_probe_perturbation(
    train: Pooled,
    labels: Int[Tensor, " example"],
    test: Pooled,
    test_labels: Int[Tensor, " test"],
    *,
    counts: Sequence[int] = COUNTS,
    penalty: float = 1.0,
) -> Erasure:
    """TPP: whether erasing the features of one class hurts that class's probe alone.

    Probes are one class against the rest with both sides weighed equally, and judged by balanced accuracy, so that 50%
    is chance whatever the number of classes.

    Cost: one probe per class; per number of features, one matrix product per class.

    Args:
        train: examples to train probes and rank features on.
        labels: their classes, from 0.
        test: examples to judge on.
        test_labels: theirs.
        counts: how many features to erase.
        penalty: of the probes.

    Raises:
        InvalidOption: fewer than two classes, or a class missing in the test examples.

    Source: arXiv 2503.09532; theirs balances by drawing negatives, ours by weights.
    """
    wanted, classes = _checked(counts), sorted(set(labels.tolist()))
    if len(classes) < 2 or set(test_labels.tolist()) != set(classes):
        raise InvalidOption(
            f"expected at least two classes, the same in the test examples; got {classes} and "
            f"{sorted(set(test_labels.tolist()))}."
        )
    probes = [fit(train.x, labels == one, penalty=penalty, balanced=True) for one in classes]
    before = [p.balanced_accuracy(test.x, test_labels == one) for p, one in zip(probes, classes, strict=True)]
    effects = [
        mean_difference(train.features, labels == one).clamp(min=0) * (train.directions @ probe.weight)
        for probe, one in zip(probes, classes, strict=True)
    ]
    orders = torch.stack([_order(effect) for effect in effects])
    scores, own = [], []
    for n in wanted:
        drops = torch.zeros(len(classes), len(classes), dtype=torch.float64)
        for row, effect in enumerate(effects):
            x = test.without(orders[row, : min(n, int((effect > 0).sum()))])
            for column, one in enumerate(classes):
                drops[row, column] = before[column] - probes[column].balanced_accuracy(x, test_labels == one)
        hit = drops.diagonal()
        others = (drops.sum(-1) - hit) / (len(classes) - 1)
        scores.append(float((hit - others).mean()))
        own.append(float(hit.mean()))
    mean = math.fsum(before) / len(before)
    return Erasure(wanted, tuple(scores), orders, mean, mean, tuple(own), "each class's")


def _order(effects: Float[Tensor, " feature"]) -> Int[Tensor, " feature"]:
    """The largest effect first; ties by index."""
    return effects.sort(descending=True, stable=True).indices


def _checked(counts: Sequence[int]) -> tuple[int, ...]:
    wanted = tuple(counts)
    if not wanted or any(count < 0 for count in wanted):
        raise InvalidOption(f"expected numbers of features of 0 or more; got {wanted}.")
    return wanted

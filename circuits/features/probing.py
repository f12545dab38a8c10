"""Linear probes: what a straight line through activations, or through a few features, can tell.

A probe is a logistic regression fitted to its one optimum (no seed, no learning rate), so that two probes differ only
when their data do. `k_sparse` asks how much of a label the best few features carry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patching.errors import InvalidOption, NotFinite

if TYPE_CHECKING:
    import pandas as pd

STEPS = 200  # Newton steps at most; about ten are usual


@dataclass(frozen=True)
class Probe:
    """A line that parts two classes: ``logit = x . weight + bias``, class 1 where it is above 0.

    Attributes:
        weight: float64.
        bias: of the logit.

    Example:
        >>> probe = Probe(torch.tensor([1.0, -1.0], dtype=torch.float64), 0.5)
        >>> probe.logits(torch.tensor([[2.0, 1.0], [0.0, 1.0]])).tolist()
        [1.5, -0.5]
    """

    weight: Float[Tensor, " width"]
    bias: float

    def logits(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """The probe's logit of every row, in float64; carries gradients to x."""
        return x.double() @ self.weight + self.bias

    def predict(self, x: Float[Tensor, "*batch width"]) -> Bool[Tensor, "*batch"]:
        """Which rows are of class 1."""
        return self.logits(x) > 0

    def accuracy(self, x: Float[Tensor, "example width"], labels: Bool[Tensor, " example"]) -> float:
        """Share of rows that the probe gets right."""
        return float((self.predict(x) == labels.bool()).double().mean())

    def balanced_accuracy(self, x: Float[Tensor, "example width"], labels: Bool[Tensor, " example"]) -> float:
        """Mean over the two classes of the share of their rows that the probe gets right.

        Half for a probe that always says the same, however uneven the classes are.
        """
        right = self.predict(x) == labels.bool()
        return float(torch.stack([right[labels.bool() == side].double().mean() for side in (False, True)]).mean())


def fit(
    x: Float[Tensor, "example width"],
    labels: Bool[Tensor, " example"],
    *,
    penalty: float = 1.0,
    balanced: bool = False,
) -> Probe:
    """Fit a logistic regression: the weights that minimise the loss below.

        1/2 penalty ‖weight‖² + sum over rows of log(1 + exp(-sign(label) logit))

    The bias is not penalised. Newton's method in float64, to a gradient of 0; the optimum is unique. With more columns
    than rows the search runs in the space that the rows span, which holds the optimum.

    Cost: about ten solves of a system as large as the smaller of rows and columns.

    Args:
        x: one row per example.
        labels: class 1 or not.
        penalty: above 0; 1 / C of scikit-learn.
        balanced: weigh rows so that both classes count as much in sum (``class_weight="balanced"``).

    Raises:
        InvalidOption: one class alone, shapes that do not go together, or a penalty that is not positive.
        NotFinite: x has values that are not finite, or the search does not end.

    Example:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> probe = fit(x, torch.tensor([False, False, True, True]))
        >>> round(float(probe.weight), 4), abs(round(probe.bias, 6))
        (1.0066, 0.0)
    """
    _check(x, labels, penalty)
    rows, sides = x.detach().double().cpu(), labels.detach().cpu().double() * 2 - 1
    weights = torch.ones(len(rows), dtype=torch.float64)
    if balanced:
        weights = torch.where(sides > 0, len(sides) / (2 * (sides > 0).sum()), len(sides) / (2 * (sides < 0).sum()))
    basis = None
    if rows.shape[1] > rows.shape[0]:
        left, scale, basis = torch.linalg.svd(rows, full_matrices=False)
        rows = left * scale
    solution = _newton(F.pad(rows, (0, 1), value=1.0), sides, weights, penalty)
    weight = solution[:-1] if basis is None else basis.T @ solution[:-1]
    return Probe(weight.to(x.device), float(solution[-1]))


def _newton(
    rows: Float[Tensor, "example column"], sides: Float[Tensor, " example"], weights: Float[Tensor, " example"],
    penalty: float,
) -> Float[Tensor, " column"]:  # fmt: skip
    """The optimum; the last column is the bias."""
    ridge = torch.full((rows.shape[1],), penalty, dtype=torch.float64)
    ridge[-1] = 0.0

    def loss(point: Tensor) -> Tensor:
        return (weights * F.softplus(-sides * (rows @ point))).sum() + 0.5 * (ridge * point * point).sum()

    point = torch.zeros(rows.shape[1], dtype=torch.float64)
    value = loss(point)
    for _ in range(STEPS):
        wrong = torch.sigmoid(-sides * (rows @ point))
        gradient = ridge * point - rows.T @ (weights * sides * wrong)
        curve = (rows * (weights * wrong * (1 - wrong)).unsqueeze(-1)).T @ rows + torch.diag(ridge)
        curve[-1, -1] += 1e-12  # saturated rows leave the bias no curvature; the optimum is the same
        step = torch.linalg.solve(curve, gradient)
        decrement = float(gradient @ step)
        if decrement <= 1e-18 * (1 + float(value)):
            return point
        size, lowest = 1.0, value
        while (lowest := loss(point - size * step)) > value - 0.25 * size * decrement and size > 1e-8:
            size /= 2
        if size <= 1e-8 and decrement <= 1e-9 * (1 + float(value)):  # what rounding leaves
            return point
        point, value = point - size * step, lowest
    raise NotFinite(
        f"expected the probe to settle within {STEPS} Newton steps; it did not. Raise the penalty ({penalty}) or scale "
        "the activations to a norm of about 1."
    )


def _check(x: Tensor, labels: Tensor, penalty: float) -> None:
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        raise InvalidOption(
            f"expected activations [example, width] and one label per example; got {list(x.shape)} and "
            f"{list(labels.shape)}."
        )
    if not (math.isfinite(penalty) and penalty > 0):
        raise InvalidOption(f"expected a penalty above 0, without which separable data have no optimum; got {penalty}.")
    if not bool(torch.isfinite(x).all()):
        raise NotFinite("expected finite activations; some are NaN or infinite.")
    count = int(labels.bool().sum())
    if not 0 < count < len(labels):
        raise InvalidOption(f"expected examples of both classes; got {count} of class 1 out of {len(labels)}.")


def f1(predicted: Bool[Tensor, " example"], labels: Bool[Tensor, " example"]) -> float:
    """Harmonic mean of precision and recall, ``2 TP / (2 TP + FP + FN)``; 0 where there is nothing to find.

    Example:
        >>> round(f1(torch.tensor([True, True, False]), torch.tensor([True, False, True])), 2)
        0.5
    """
    both = int((predicted & labels).sum())
    total = int(predicted.sum()) + int(labels.sum())
    return 2 * both / total if total else 0.0


@dataclass(frozen=True)
class KSparse:
    """How much of a label the best few features carry.

    Attributes:
        k: how many features each probe reads.
        latents: all features, the one whose class means differ most first.
        accuracy, f1: of each probe on the test examples.
        majority: accuracy of always saying the more frequent class.
        dense: accuracy of a probe on all features.
    """

    k: tuple[int, ...]
    latents: Int[Tensor, " feature"]
    accuracy: tuple[float, ...]
    f1: tuple[float, ...]
    majority: float
    dense: float

    def split(self, threshold: float = 0.03) -> tuple[int, ...]:
        """The features that the label is split over: as many as each raise F1 by more than a threshold.

        The first feature counts always; the count stops at the first k whose F1 is not ``threshold`` above that of
        the k before.

        Source: arXiv 2409.14507 (feature splitting).
        """
        count = self.k[0]
        for before, k, low, high in zip(self.k, self.k[1:], self.f1, self.f1[1:], strict=False):
            if k != before + 1 or high - low <= threshold:
                break
            count = k
        return tuple(self.latents[:count].tolist())

    def to_frame(self) -> pd.DataFrame:
        """One row per k."""
        import pandas as pd

        return pd.DataFrame({"k": self.k, "accuracy": self.accuracy, "f1": self.f1})

    def __str__(self) -> str:
        lines = [f"{'k':>6}  accuracy     F1"]
        lines += [
            f"{k:>6}  {accuracy:>8.1%}  {score:.3f}"
            for k, accuracy, score in zip(self.k, self.accuracy, self.f1, strict=True)
        ]
        return "\n".join([*lines, f"{'all':>6}  {self.dense:>8.1%}", f"{'none':>6}  {self.majority:>8.1%}"])


def mean_difference(
    features: Float[Tensor, "example feature"], labels: Bool[Tensor, " example"]
) -> Float[Tensor, " feature"]:
    """Mean of every feature over class 1 minus that over class 0, in float64.

    Example:
        >>> mean_difference(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([False, True])).tolist()
        [2.0, 2.0]
    """
    values, chosen = features.double(), labels.bool()
    return values[chosen].mean(0) - values[~chosen].mean(0)


def k_sparse(
    features: Float[Tensor, "example feature"],
    labels: Bool[Tensor, " example"],
    test_features: Float[Tensor, "test feature"],
    test_labels: Bool[Tensor, " test"],
    *,
    k: Sequence[int] = (1, 2, 5, 10),
    penalty: float = 1.0,
) -> KSparse:
    """Probe the k features whose class means differ most.

    Features are ranked on the training examples by ``|mean over class 1 - mean over class 0|`` (ties: the lower index
    first); for every k a logistic regression on the first k is fitted there and judged on the test examples.

    Cost: one `fit` per k, and one on all features.

    Args:
        features: of the training examples.
        labels: theirs.
        test_features: of other examples.
        test_labels: theirs.
        k: how many features, in ascending order.
        penalty: as in `fit`.

    Raises:
        InvalidOption: k is not ascending or exceeds the number of features; one class alone.

    Source: arXiv 2305.01610 (k-sparse probing), as in SAEBench (arXiv 2503.09532). Theirs standardise nothing either;
        their dense baseline probes the model's activations, ours all features.

    Example:
        >>> features = torch.tensor([[0.0, 1.0, 0.5], [0.1, 0.0, 0.5], [2.0, 1.0, 0.5], [2.1, 0.0, 0.5]])
        >>> labels = torch.tensor([False, False, True, True])
        >>> result = k_sparse(features, labels, features, labels, k=(1, 2))
        >>> int(result.latents[0]), result.accuracy
        (0, (1.0, 1.0))
    """
    wanted = tuple(k)
    if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 1 or wanted[-1] > features.shape[-1]:
        raise InvalidOption(
            f"expected numbers of features k in ascending order, from 1 to {features.shape[-1]}; got {wanted}."
        )
    _check(features, labels, penalty)
    order = mean_difference(features, labels).abs().sort(descending=True, stable=True).indices
    probes = [fit(features[:, order[:count]], labels, penalty=penalty) for count in wanted]
    chosen = [test_features[:, order[:count]] for count in wanted]
    share = float(test_labels.double().mean())
    return KSparse(
        k=wanted,
        latents=order,
        accuracy=tuple(probe.accuracy(x, test_labels) for probe, x in zip(probes, chosen, strict=True)),
        f1=tuple(f1(probe.predict(x), test_labels.bool()) for probe, x in zip(probes, chosen, strict=True)),
        majority=max(share, 1 - share),
        dense=fit(features, labels, penalty=penalty).accuracy(test_features, test_labels),
    )

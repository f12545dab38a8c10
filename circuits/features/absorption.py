"""Feature absorption: a feature that stays silent where it should speak, because a more specific one speaks for it.

Where "starts with S" and "short" are features, a sparse dictionary is tempted to let "short" carry the direction of
"starts with S" too and to leave the general feature off. A probe for the concept still fires; the concept's own
features do not; another feature that points along the probe makes up for them.

With the probe's unit direction p and feature i's direction d_i, feature i contributes ``f_i (d_i · p)`` to the
projection ``x · p``. On an example that has the concept and that the probe gets right:

full absorption
    the main features are all off; of all features, the one that contributes most has cos(d_i, p) ≥ 0.025 and
    contributes at least 40 % of x · p (which is positive)
absorbed fraction
    A / (A + M): M what the main features contribute, A what the (at most 3) other features that contribute most do,
    among those with cos(d_i, p) ≥ 0.1; A is at most x · p - M. It is 0 where M ≥ x · p or A < 40 % of x · p, and 1
    where M ≤ 0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.features.concept_erasure import Pooled
from circuits.features.probing import fit, k_sparse
from patching.errors import InvalidOption

OFF = 1e-8  # a feature whose size is below this is off


@dataclass(frozen=True)
class Absorption:
    """How much of a concept other features have absorbed.

    Attributes:
        main: the concept's own features.
        full: for each example that was judged, whether it is a full absorption.
        fraction: for each, the share that is absorbed.
        absorber: for each, the feature that contributes most, main ones included.
        examples: which rows were judged: they have the concept and the probe says so.
    """

    main: tuple[int, ...]
    full: Bool[Tensor, " judged"]
    fraction: Float[Tensor, " judged"]
    absorber: Tensor
    examples: Tensor

    @property
    def full_rate(self) -> float:
        """Share of the judged examples that are full absorptions; nan without any."""
        return float(self.full.double().mean()) if len(self.full) else math.nan

    @property
    def mean_fraction(self) -> float:
        """Mean absorbed fraction; nan without judged examples."""
        return float(self.fraction.mean()) if len(self.fraction) else math.nan

    def __str__(self) -> str:
        names = ", ".join(f"f{latent}" for latent in self.main)
        return (
            f"main features {names}; {len(self.full):,} examples: {self.full_rate:.1%} fully absorbed, "
            f"mean absorbed fraction {self.mean_fraction:.3f}"
        )


def absorption(
    data: Pooled,
    labels: Bool[Tensor, " example"],
    *,
    direction: Float[Tensor, " width"],
    main: Sequence[int],
    right: Bool[Tensor, " example"] | None = None,
    cosine: float = 0.025,
    share: float = 0.4,
    fraction_cosine: float = 0.1,
    absorbers: int = 3,
) -> Absorption:
    """Count absorption for a known direction and known main features.

    Args:
        data: one row per token or example; see `concept_erasure.pooled`.
        labels: which rows have the concept.
        direction: of the concept: a probe's weights, or a planted direction.
        main: the concept's own features.
        right: the rows that the probe gets right; all by default.
        cosine: least cosine of the absorbing feature with the direction, for full absorption.
        share: least share of the projection that it, or the absorbers together, must contribute.
        fraction_cosine: least cosine of absorbers, for the fraction.
        absorbers: how many at most.

    Raises:
        InvalidOption: features that do not exist, none at all, or a direction that is 0 or of another width.

    Source: arXiv 2409.14507; thresholds and fraction as in SAEBench, arXiv 2503.09532. Theirs assumes decoder rows of
        length 1; here contributions count the length.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # the second row has the concept and a child of it
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # the child's feature speaks for both
        >>> data = Pooled(x, features, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> found = absorption(data, torch.tensor([True, True]), direction=torch.tensor([1.0, 0.0]), main=[0])
        >>> found.full.tolist(), found.fraction.tolist()
        ([False, True], [0.0, 1.0])
    """
    chosen = sorted(set(main))
    if not chosen or chosen[0] < 0 or chosen[-1] >= len(data.directions):
        raise InvalidOption(f"expected main features from 0 to {len(data.directions) - 1}; got {list(main)}.")
    if direction.shape != data.directions.shape[1:] or not float(direction.norm()) > 0:
        raise InvalidOption(
            f"expected a direction of width {data.directions.shape[1]}, not 0; got {list(direction.shape)}."
        )
    unit = direction.double() / direction.double().norm()
    along = data.directions.double() @ unit
    aligned = along / data.directions.double().norm(dim=-1).clamp(min=1e-30)
    judged = labels.bool() if right is None else labels.bool() & right.bool()
    rows = judged.nonzero().flatten()
    features = data.features[rows].double()
    whole, parts = data.x[rows].double() @ unit, features * along
    best = parts.max(-1)
    full = (features[:, chosen].abs() < OFF).all(-1) & (whole >= 0)
    full &= (aligned[best.indices] >= cosine) & (best.values >= share * whole) & (best.values > 0)
    own = parts[:, chosen].sum(-1)
    others = (aligned >= fraction_cosine).index_fill(0, torch.tensor(chosen), False)
    rest = parts.clamp(min=0) * others
    given = rest.topk(min(absorbers, rest.shape[-1]), dim=-1).values.sum(-1)
    taken = torch.minimum(given, whole - own)
    fraction = torch.where(own <= 0, 1.0, taken / (taken + own).clamp(min=1e-30)).clamp(0, 1)
    fraction = torch.where((own >= whole) | (given < share * whole), 0.0, fraction)
    return Absorption(tuple(chosen), full, fraction, best.indices, rows)


def of_concept(
    train: Pooled,
    labels: Bool[Tensor, " example"],
    test: Pooled,
    test_labels: Bool[Tensor, " test"],
    *,
    most: int = 10,
    threshold: float = 0.03,
    penalty: float = 1.0,
) -> Absorption:
    """Find a concept's direction and main features by probes, then count absorption on test examples.

    The direction is that of a logistic regression on activations; the main features are those that k-sparse probes
    need: each raises F1, on the training examples, by more than the threshold (feature splitting).

    Cost: a probe on activations, and one for each k up to ``most``.

    Args:
        train: examples to fit probes on.
        labels: whether they have the concept.
        test: examples to judge.
        test_labels: theirs.
        most: main features at most.
        threshold: gain in F1 that makes a further feature a main one.
        penalty: of the probes.

    Raises:
        InvalidOption: one class alone, or a number of features that the dictionary does not have.

    Source: arXiv 2409.14507.
    """
    probe = fit(train.x, labels, penalty=penalty)
    sparse = k_sparse(train.features, labels, train.features, labels, k=tuple(range(1, most + 1)), penalty=penalty)
    right = probe.predict(test.x) == test_labels.bool()
    return absorption(test, test_labels, direction=probe.weight, main=sparse.split(threshold), right=right)

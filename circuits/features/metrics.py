"""How good a dictionary is, by formulas that are named, in float64, and do not depend on how data are batched.

With activations x, reconstructions x̂ and features f, means over tokens:

=============================  ==================================================================================
L0                             E #(f ≠ 0)
explained variance             1 - E‖x - x̂‖² / (E‖x‖² - ‖E x‖²): 1 if perfect, 0 for the mean of x
relative squared error         E‖x - x̂‖² / E‖x‖²
l2 ratio (shrinkage)           E (‖x̂‖ / ‖x‖), over tokens with x ≠ 0
relative reconstruction bias   E‖x̂‖² / E (x · x̂): 1 where errors are orthogonal to reconstructions, below 1 if shrunk
cosine                         E cos(x, x̂), over tokens with neither 0
density                        per feature, share of tokens with f ≠ 0; dead where it is 0
MMCS                           mean over planted features of the largest cosine with a decoder direction (one-sided)
MCC                            mean over planted features of |cosine| with their partner in the best matching
=============================  ==================================================================================

What a model's predictions lose is in `loss_recovered`; what features tell, in `probing`, `concept_erasure` and
`absorption`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.assignment import best_matching
from circuits.features.dictionary import Dictionary
from circuits.features.loss_recovered import Recovered
from circuits.features.reading import directions
from patching.errors import InvalidOption, NotFinite
from patching.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

BATCH = 4096  # tokens that `report` encodes at a time
DENSE = 0.1  # a feature that is on in more than this share of the tokens is called dense
EDGES = tuple(range(-10, 1))  # decades of the density histogram


class Reconstruction:
    """Statistics of a dictionary over a stream of tokens, in float64.

    Variances are merged batch by batch around the batches' own means, so that neither the size of the batches nor a
    large mean matters beyond rounding.

    Args:
        n_features: how many features the dictionary has.

    Example:
        >>> seen = Reconstruction(n_features=3)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> seen.update(x, x, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> seen.tokens, seen.l0, seen.explained_variance, seen.dead
        (2, 1.0, 1.0, 0.3333333333333333)
    """

    def __init__(self, n_features: int) -> None:
        self.tokens = 0
        self.fired: Int[Tensor, " feature"] = torch.zeros(n_features, dtype=torch.int64)
        self._mean: Tensor | None = None
        self._spread = self._error = self._norm = self._own = self._across = 0.0
        self._ratio = self._cosine = 0.0
        self._ratios = self._cosines = 0

    @torch.no_grad()
    def update(
        self,
        x: Float[Tensor, "*token d_out"],
        reconstruction: Float[Tensor, "*token d_out"],
        features: Float[Tensor, "*token feature"],
    ) -> None:
        """Add tokens.

        Args:
            x: what should be reconstructed (of a transcoder, the target).
            reconstruction: of the same shape.
            features: of the same tokens.

        Raises:
            InvalidOption: shapes that do not go together.
            NotFinite: a value is NaN or infinite.
        """
        if x.shape != reconstruction.shape or features.shape != (*x.shape[:-1], len(self.fired)):
            raise InvalidOption(
                f"expected activations, reconstructions of the same shape and {len(self.fired)} features for each "
                f"token; got {list(x.shape)}, {list(reconstruction.shape)} and {list(features.shape)}."
            )
        true, guess = (value.reshape(-1, x.shape[-1]).double() for value in (x, reconstruction))
        if not len(true):
            return
        on = features.reshape(len(true), -1) != 0
        error = (true - guess).pow(2).sum()
        if not math.isfinite(float(error)) or not bool(torch.isfinite(features).all()):
            raise NotFinite("expected finite activations, reconstructions and features; some are NaN or infinite.")
        self._merge(true)
        self.fired += on.sum(0).cpu()
        lengths, guessed, product = true.norm(dim=-1), guess.norm(dim=-1), (true * guess).sum(-1)
        self._error += float(error)
        self._norm += float(lengths.pow(2).sum())
        self._own += float(guessed.pow(2).sum())
        self._across += float(product.sum())
        real = lengths > 0
        both = real & (guessed > 0)
        self._ratio += float((guessed[real] / lengths[real]).sum())
        self._cosine += float((product[both] / (lengths[both] * guessed[both])).sum())
        self._ratios += int(real.sum())
        self._cosines += int(both.sum())

    def _merge(self, x: Tensor) -> None:
        """Mean and summed squared distance from it, over all tokens so far."""
        count, mean = len(x), x.mean(0)
        spread = float((x - mean).pow(2).sum())
        if self._mean is None:
            self._mean = torch.zeros_like(mean)
        apart = mean - self._mean
        total = self.tokens + count
        self._spread += spread + float(apart.pow(2).sum()) * self.tokens * count / total
        self._mean = self._mean + apart * (count / total)
        self.tokens = total

    @property
    def l0(self) -> float:
        """Features that are on, per token."""
        return _ratio(float(self.fired.sum()), self.tokens)

    @property
    def explained_variance(self) -> float:
        """1 - E‖x - x̂‖² / (E‖x‖² - ‖E x‖²); nan if x does not vary."""
        return 1 - _ratio(self._error, self._spread)

    @property
    def relative_error(self) -> float:
        """E‖x - x̂‖² / E‖x‖²; nan if x is 0."""
        return _ratio(self._error, self._norm)

    @property
    def mean_squared_error(self) -> float:
        """E‖x - x̂‖², summed over coordinates."""
        return _ratio(self._error, self.tokens)

    @property
    def l2_ratio(self) -> float:
        """E (‖x̂‖ / ‖x‖)."""
        return _ratio(self._ratio, self._ratios)

    @property
    def relative_bias(self) -> float:
        """E‖x̂‖² / E (x · x̂)."""
        return _ratio(self._own, self._across)

    @property
    def cosine(self) -> float:
        """E cos(x, x̂)."""
        return _ratio(self._cosine, self._cosines)

    @property
    def density(self) -> Float[Tensor, " feature"]:
        """Share of the tokens that each feature is on in."""
        return self.fired.double() / max(1, self.tokens)

    @property
    def dead(self) -> float:
        """Share of the features that were never on in these tokens."""
        return float((self.fired == 0).double().mean())


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


def density_histogram(density: Float[Tensor, " feature"]) -> tuple[tuple[float, float, int], ...]:
    """How many features are on how often, by decade: (from, up to, features), the last bin closed.

    Features that are never on are in no bin (they are dead).

    Example:
        >>> density_histogram(torch.tensor([0.0, 0.02, 0.5, 1.0]))[-2:]
        ((0.01, 0.1, 1), (0.1, 1.0, 2))
    """
    alive = density[density > 0].double().log10()
    rows = []
    for low, high in itertools.pairwise(EDGES):
        inside = (alive >= low) & ((alive < high) if high < EDGES[-1] else (alive <= high))
        rows.append((10.0**low, 10.0**high, int(inside.sum())))
    return tuple(rows)


def cosines(
    first: Float[Tensor, "first width"], second: Float[Tensor, "second width"]
) -> Float[Tensor, "first second"]:
    """Cosine of every row with every row, in float64; 0 for rows that are 0."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InvalidOption(
            f"expected directions [feature, width] of one width; got {list(first.shape)} and {list(second.shape)}."
        )
    return F.normalize(first.detach().double(), dim=-1) @ F.normalize(second.detach().double(), dim=-1).T


def mmcs(learned: Float[Tensor, "learned width"], planted: Float[Tensor, "planted width"]) -> float:
    """Mean over planted features of the largest cosine with a learned direction.

    One-sided: learned directions that match nothing cost nothing, and one that matches two planted features counts
    twice. Read it together with `mcc`.

    Args:
        learned: decoder directions.
        planted: the true ones.

    Source: arXiv 2309.08600, mean maximum cosine similarity.

    Example:
        >>> mmcs(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.eye(2))
        0.5
    """
    return float(cosines(planted, learned).max(-1).values.mean())


def mcc(learned: Float[Tensor, "learned width"], planted: Float[Tensor, "planted width"]) -> float:
    """Mean over planted features of |cosine| with their partner in the best one-to-one matching.

    A planted feature that is left without a partner, because there are fewer learned ones, counts 0.

    Args:
        learned: decoder directions.
        planted: the true ones.

    Source: the mean correlation coefficient of identifiability studies, as sae-lens computes it from decoders; there
        unmatched features are left out of the mean.

    Example:
        >>> mcc(torch.tensor([[1.0, 0.0], [0.9, 0.1]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]]))  # doctest: +ELLIPSIS
        0.555...
    """
    table = cosines(planted, learned).abs()
    rows, columns = best_matching(table)
    return float(table[rows, columns].sum()) / len(table)


@dataclass(frozen=True)
class Report:
    """What `report` found.

    Attributes:
        architecture, site, n_features: of the dictionary.
        tokens: how many it was judged on.
        l0, explained_variance, relative_error, l2_ratio, relative_bias, cosine: see the module.
        dead: share of features never on in these tokens.
        dense: share of features that are on in more than a tenth of them.
        density: of every feature.
        mmcs, mcc: against planted features, where those were given.
        recovered: what the model's predictions keep, where that was given.
    """

    architecture: str
    site: str | None
    n_features: int
    tokens: int
    l0: float
    explained_variance: float
    relative_error: float
    l2_ratio: float
    relative_bias: float
    cosine: float
    dead: float
    dense: float
    density: Float[Tensor, " feature"]
    mmcs: float | None = None
    mcc: float | None = None
    recovered: Recovered | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without the density of every feature."""
        own = {name: value for name, value in vars(self).items() if name not in ("density", "recovered")}
        return own | {} if self.recovered is None else own | self.recovered.to_dict()

    def __str__(self) -> str:
        rows = [
            ("L0", f"{self.l0:.2f}"),
            ("explained variance", f"{self.explained_variance:.4f}"),
            ("relative squared error", f"{self.relative_error:.4f}"),
            ("l2 ratio", f"{self.l2_ratio:.4f}"),
            ("relative bias", f"{self.relative_bias:.4f}"),
            ("cosine", f"{self.cosine:.4f}"),
            ("dead", f"{self.dead:.1%}"),
            (f"dense (on in > {DENSE:.0%})", f"{self.dense:.1%}"),
        ]
        rows += [
            (name, f"{value:.4f}") for name, value in (("MMCS", self.mmcs), ("MCC", self.mcc)) if value is not None
        ]
        if self.recovered is not None:
            rows += self.recovered.rows()
        title = f"{self.architecture}, {self.n_features:,} features"
        title += f" at {self.site}" if self.site else ""
        wide = max(len(name) for name, _ in rows)
        lines = [f"{title}, {self.tokens:,} tokens", *(f"  {name:<{wide}}  {value:>9}" for name, value in rows)]
        return "\n".join([*lines, "  density (share of tokens: features)", *self._bars()])

    def _bars(self) -> list[str]:
        bins = density_histogram(self.density)
        most = max((count for *_, count in bins), default=0)
        first = next((place for place, (*_, count) in enumerate(bins) if count), len(bins))
        return [
            f"  {low:>7.0e} to {high:<5.0e}  {count:>6}  {'█' * round(30 * count / most)}"
            for low, high, count in bins[first:]
        ]


@torch.no_grad()
def report(
    dictionary: Dictionary,
    activations: Float[Tensor, "token d_in"] | Iterable[Tensor],
    *,
    targets: Float[Tensor, "token d_out"] | None = None,
    planted: Float[Tensor, "planted d_out"] | None = None,
    recovered: Recovered | None = None,
    batch: int = BATCH,
    progress: Progress = silent,
) -> Report:
    """Judge a dictionary on activations: a table that prints.

    Cost: one encode and decode of every token.

    Args:
        dictionary: to judge.
        activations: a tensor, or batches of them; leave out tokens that it was not trained on (BOS, padding). For a
            transcoder, batches may be pairs of what it reads and what it should say.
        targets: what should be reconstructed, for a transcoder given a tensor.
        planted: true features, where they are known.
        recovered: from `loss_recovered.measure`, to stand in the same table.
        batch: tokens at a time, of a tensor.
        progress: called with tokens done and in all (0 when that is not known).

    Raises:
        InvalidOption: no tokens, or shapes that do not go with the dictionary.
        NotFinite: activations that are NaN or infinite.

    Example:
        >>> from circuits.features.dictionary import create
        >>> x = torch.eye(4)
        >>> result = report(create("identity", d_in=4, n_features=4), x, planted=x)
        >>> result.l0, result.explained_variance, result.mmcs, result.mcc
        (1.0, 1.0, 1.0, 1.0)
    """
    if batch < 1:
        raise InvalidOption(f"expected a batch of at least 1 token; got {batch}.")
    seen = Reconstruction(dictionary.n_features)
    total = len(activations) if isinstance(activations, Tensor) else 0
    for x, wanted in _pairs(activations, targets, batch):
        if wanted is None and dictionary.d_in != dictionary.d_out:
            raise InvalidOption("expected targets: this dictionary reconstructs another site than it reads.")
        features = dictionary.encode(x)
        seen.update(x if wanted is None else wanted, dictionary.decode(features, x), features)
        progress(seen.tokens, total)
    if not seen.tokens:
        raise InvalidOption("expected at least one token to judge the dictionary on; got none.")
    own = None if planted is None else directions(dictionary)
    return Report(
        architecture=dictionary.architecture,
        site=dictionary.site,
        n_features=dictionary.n_features,
        tokens=seen.tokens,
        l0=seen.l0,
        explained_variance=seen.explained_variance,
        relative_error=seen.relative_error,
        l2_ratio=seen.l2_ratio,
        relative_bias=seen.relative_bias,
        cosine=seen.cosine,
        dead=seen.dead,
        dense=float((seen.density > DENSE).double().mean()),
        density=seen.density,
        mmcs=None if own is None or planted is None else mmcs(own, planted.to(own.device)),
        mcc=None if own is None or planted is None else mcc(own, planted.to(own.device)),
        recovered=recovered,
    )


def _pairs(
    activations: Tensor | Iterable[Any], targets: Tensor | None, batch: int
) -> Iterable[tuple[Tensor, Tensor | None]]:
    if isinstance(activations, Tensor):
        if targets is not None and len(targets) != len(activations):
            raise InvalidOption(f"expected a target for each of {len(activations)} tokens; got {len(targets)}.")
        for start in range(0, len(activations), batch):
            rows = slice(start, start + batch)
            yield activations[rows], None if targets is None else targets[rows]
        return
    for part in activations:
        yield part if isinstance(part, tuple) else (part, None)


def to_frame(reports: Mapping[str, Report]) -> pd.DataFrame:
    """Several reports as a table, one row each, by name."""
    import pandas as pd

    return pd.DataFrame([{"dictionary": name} | one.to_dict() for name, one in reports.items()])

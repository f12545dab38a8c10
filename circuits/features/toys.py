"""Activations whose features are known: what a dictionary should find, planted.

Every toy makes vectors ``x = codes · features + noise`` from unit directions that it knows, so that recovery can be
measured (`circuits.features.metrics`: MMCS, MCC). `superposition` has more directions than dimensions, `absorption`
has children that never come without their parent, and `Toy.scrambled` is the control: the same numbers in every
coordinate, without any feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from patching.errors import InvalidOption


@dataclass(frozen=True)
class Toy:
    """A distribution of activations with planted features.

    A feature is on with its probability, by itself or only where its parent is on; then its magnitude is uniform in
    ``1 ± spread``.

    Attributes:
        features: the planted directions, rows of norm 1.
        probability: how often each is on; for a child, given that its parent is on.
        parents: for each feature the index of its parent, or -1; a parent stands before its children.
        spread: half the width of the magnitudes.
        noise: standard deviation of what is added to every coordinate.
        independent: whether every coordinate comes from a draw of its own, which leaves no feature to find.
        seed: of the directions and, with a number of the draw, of the samples.
    """

    features: Float[Tensor, "feature d_in"]
    probability: Float[Tensor, " feature"]
    parents: tuple[int, ...]
    spread: float = 0.1
    noise: float = 0.0
    independent: bool = False
    seed: int = 0

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.features.shape[1]

    @property
    def n_features(self) -> int:
        """How many directions are planted."""
        return self.features.shape[0]

    @property
    def true_l0(self) -> float:
        """Features that are on in a sample, on average."""
        rate = self.probability.clone()
        for child, parent in enumerate(self.parents):
            if parent >= 0:
                rate[child] *= rate[parent]
        return float(rate.sum())

    def codes(self, n: int, *, seed: int = 0) -> Float[Tensor, "sample feature"]:
        """Draw which features are on, and how strongly.

        Args:
            n: how many samples.
            seed: another one gives other samples of the same toy.
        """
        _check_count("n", n)
        return self._codes(n, torch.Generator().manual_seed(_mixed(self.seed, seed)))

    def sample(self, n: int, *, seed: int = 0) -> Float[Tensor, "sample d_in"]:
        """Draw activations.

        Args:
            n: how many.
            seed: another one gives other samples of the same toy; `codes` with the same ``n`` and seed says what is
                in them, unless the toy is scrambled.

        Returns:
            ``codes · features``, plus noise.

        Example:
            >>> toy = superposition(8, 16, 0.05)
            >>> bool(torch.allclose(toy.sample(4, seed=1), toy.codes(4, seed=1) @ toy.features))
            True
        """
        _check_count("n", n)
        generator = torch.Generator().manual_seed(_mixed(self.seed, seed))
        x = self._codes(n, generator) @ self.features
        if self.independent:
            columns = [self._codes(n, generator) @ self.features[:, place] for place in range(1, self.d_in)]
            x = torch.stack([x[:, 0], *columns], dim=-1)
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return x

    def batches(self, batch: int, *, seed: int = 0) -> ToyBatches:
        """An endless stream of batches that can be started anywhere, for `training.train`.

        Args:
            batch: samples in each.
            seed: of the stream.
        """
        _check_count("batch", batch)
        return ToyBatches(self, batch, seed)

    def scrambled(self) -> Toy:
        """The control: every coordinate of a sample comes from another draw, so that no direction is a feature.

        Each coordinate has the distribution that it had; what they share is gone, and with it the features. A
        dictionary that "recovers" the planted directions from this was measured wrongly.
        """
        return replace(self, independent=True)

    def _codes(self, n: int, generator: torch.Generator) -> Tensor:
        on = torch.rand(n, self.n_features, generator=generator) < self.probability
        for child, parent in enumerate(self.parents):
            if parent >= 0:
                on[:, child] &= on[:, parent]
        size = 1 + self.spread * (2 * torch.rand(n, self.n_features, generator=generator) - 1)
        return on * size


@dataclass(frozen=True)
class ToyBatches:
    """Endless batches of a toy; the same ones each time, from any step on."""

    toy: Toy
    batch: int
    seed: int

    def __iter__(self) -> Iterator[Tensor]:
        return self.from_step(0)

    def from_step(self, step: int) -> Iterator[Tensor]:
        """The batches of ``step`` and later."""
        while True:
            yield self.toy.sample(self.batch, seed=_mixed(self.seed, step))
            step += 1


def superposition(
    d_in: int,
    n_features: int,
    probability: float,
    *,
    spread: float = 0.1,
    noise: float = 0.0,
    seed: int = 0,
) -> Toy:
    """More features than dimensions: random unit directions, each on by itself with one probability.

    Args:
        d_in: width of the activations.
        n_features: how many directions.
        probability: that a feature is on.
        spread: magnitudes are uniform in ``1 ± spread``.
        noise: standard deviation added to every coordinate.
        seed: of everything.

    Raises:
        InvalidOption: a size below 1, a probability outside 0 to 1, a negative spread or noise.

    Source: the ground truth that sparse coding is tried on, as in arXiv 2309.08600; here magnitudes are nearly equal.

    Example:
        >>> toy = superposition(8, 16, 0.05)
        >>> tuple(toy.sample(4).shape), round(toy.true_l0, 2)
        ((4, 8), 0.8)
    """
    for name, size in (("d_in", d_in), ("n_features", n_features)):
        _check_count(name, size)
    _check_probability("probability", probability)
    features = _directions(n_features, d_in, seed)
    return _toy(features, torch.full((n_features,), probability), (-1,) * n_features, spread, noise, seed)


def absorption(
    d_in: int,
    n_parents: int,
    probability: float,
    *,
    children: int = 1,
    given_parent: float = 0.5,
    spread: float = 0.1,
    noise: float = 0.0,
    seed: int = 0,
) -> Toy:
    """Parents with children: a child is never on without its parent.

    A sparse dictionary is tempted to let the child's latent carry the parent's direction as well (``child + parent``)
    and to keep the parent's latent silent there: feature absorption. Directions are orthogonal where ``d_in`` allows.

    Args:
        d_in: width of the activations.
        n_parents: how many parents; features are ordered parent, its children, next parent, ...
        probability: that a parent is on.
        children: of each parent.
        given_parent: probability that a child is on when its parent is.
        spread: magnitudes are uniform in ``1 ± spread``.
        noise: standard deviation added to every coordinate.
        seed: of everything.

    Raises:
        InvalidOption: a size below 1, a probability outside 0 to 1, a negative spread or noise.

    Source: arXiv 2409.14507 (absorption shown in toys of a feature that implies another).

    Example:
        >>> toy = absorption(8, 3, 0.2)
        >>> codes = toy.codes(1000)
        >>> toy.parents, bool((codes[:, 1] * (codes[:, 0] == 0)).any())
        ((-1, 0, -1, 2, -1, 4), False)
    """
    for name, size in (("d_in", d_in), ("n_parents", n_parents), ("children", children)):
        _check_count(name, size)
    _check_probability("probability", probability)
    _check_probability("given_parent", given_parent)
    parents: list[int] = []
    rates: list[float] = []
    for _ in range(n_parents):
        parent = len(parents)
        parents += [-1] + [parent] * children
        rates += [probability] + [given_parent] * children
    features = _directions(len(parents), d_in, seed)
    if len(parents) <= d_in:
        features = torch.linalg.qr(features.T.double())[0].T.float().contiguous()
    return _toy(features, torch.tensor(rates), tuple(parents), spread, noise, seed)


def _toy(
    features: Tensor, probability: Tensor, parents: tuple[int, ...], spread: float, noise: float, seed: int
) -> Toy:
    if not 0 <= spread < 1 or not 0 <= noise < float("inf"):
        raise InvalidOption(
            f"expected a spread from 0 up to 1 and noise of 0 or more; got spread={spread!r} and noise={noise!r}."
        )
    return Toy(features, probability, parents, spread=spread, noise=noise, seed=seed)


def _directions(count: int, d_in: int, seed: int) -> Tensor:
    drawn = torch.randn(count, d_in, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=-1, keepdim=True)


def _mixed(seed: int, number: int) -> int:
    """A seed of its own for each pair, far from those of neighbouring pairs."""
    return (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOption(f"expected {name} to be a whole number of 1 or more; got {value!r}.")


def _check_probability(name: str, value: float) -> None:
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise InvalidOption(f"expected {name} to be from 0 to 1; got {value!r}.")

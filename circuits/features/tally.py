"""What is kept of feature activations while tokens stream by: the best entries of each feature, counts, histograms.

Every result is the same however the stream is cut: ties go to the earlier token, and histograms have bins that double
as larger activations arrive, which merges bins exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 32
"""Bins of a histogram. They divide 0 to the smallest power of two above the maximum, so 17 to 32 of them are used."""


@dataclass(frozen=True)
class Entries:
    """Activations of features at tokens, as a list.

    Attributes:
        feature: whose activation it is.
        token: number of the token, prompt · length + position.
        value: the activation.
        rank: what the entries of a feature are ordered by, the largest first.
    """

    feature: Int[Tensor, " entry"]
    token: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    rank: Float[Tensor, " entry"]

    @classmethod
    def of(cls, activations: Float[Tensor, "token feature"], tokens: Int[Tensor, " token"]) -> Entries:
        """The active features of some tokens, ranked by activation.

        Args:
            activations: those of 0 and less are none.
            tokens: their numbers, ascending.
        """
        row, feature = (activations > 0).nonzero(as_tuple=True)
        value = activations[row, feature].double()
        return cls(feature, tokens[row], value, value)

    def at(self, index: Tensor) -> Entries:
        """Some of the entries."""
        return Entries(self.feature[index], self.token[index], self.value[index], self.rank[index])

    def and_also(self, other: Entries) -> Entries:
        """These entries and others."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Entries(*(torch.cat(pair) for pair in pairs))


class Best:
    """The k entries of highest rank of every feature; of equal ones, those of the earliest tokens.

    Args:
        n_features: how many features there are.
        k: how many entries each keeps.
        length: positions per prompt, to keep one entry per prompt and feature alone; None to keep any.

    Attributes:
        token: the tokens kept, best first; -1 where there are fewer.
        value, rank: theirs; 0 and -inf where there are fewer.

    Example:
        >>> best = Best(2, 2)
        >>> best.offer(Entries.of(torch.tensor([[3.0, 0.0], [5.0, 0.0], [3.0, 7.0]]), torch.arange(3)))
        >>> best.token.tolist()
        [[1, 0], [2, -1]]
    """

    def __init__(self, n_features: int, k: int, *, length: int | None = None) -> None:
        self.k, self.length = k, length
        self.token = torch.full((n_features, k), -1)
        self.value = torch.zeros(n_features, k, dtype=torch.float64)
        self.rank = torch.full((n_features, k), -torch.inf, dtype=torch.float64)

    def offer(self, new: Entries) -> None:
        """Take what is better than what is kept; tokens must be larger than all before."""
        if not self.k:
            return
        new = new.at(new.rank > self.rank[new.feature, -1])
        if not len(new.feature):
            return
        feature = new.feature
        touched = torch.zeros(len(self.rank), dtype=torch.bool).index_fill_(0, feature, True)
        owner, place = ((self.token >= 0) & touched[:, None]).nonzero(as_tuple=True)
        old = Entries(owner, self.token[owner, place], self.value[owner, place], self.rank[owner, place])
        self._keep(_sorted(old.and_also(new)))

    def _keep(self, entries: Entries) -> None:
        """Fill the rows of the features that a sorted list speaks of."""
        if self.length is not None:
            entries = entries.at(_first_of_prompt(entries, self.length))
        place = torch.arange(len(entries.feature)) - torch.searchsorted(entries.feature, entries.feature)
        chosen = place < self.k
        row, column, entries = entries.feature[chosen], place[chosen], entries.at(chosen)
        self.token[row, column], self.value[row, column] = entries.token, entries.value
        self.rank[row, column] = entries.rank


def _sorted(entries: Entries) -> Entries:
    """By feature, then the highest rank first, then the earliest token first."""
    order = torch.argsort(entries.token, stable=True)
    order = order[torch.argsort(entries.rank[order], descending=True, stable=True)]
    return entries.at(order[torch.argsort(entries.feature[order], stable=True)])


def _first_of_prompt(entries: Entries, length: int) -> Tensor:
    """Which sorted entries are the first of their feature and prompt, in their order."""
    prompt = entries.token // length
    pair = entries.feature * (int(prompt.max()) + 1) + prompt
    order = torch.argsort(pair, stable=True)
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = pair[order][1:] != pair[order][:-1]
    return order[first].sort().values


class Tally:
    """How often and how strongly every feature is active.

    Attributes:
        n_tokens: how many tokens were counted.
        active: at how many of them each feature is above 0.
        total: sum of its activations.
        maximum: the largest; 0 if it never is active.
        histogram: active tokens by activation, in `BINS` equal bins from 0 to ``2 ** reach``.
        reach: exponent of the smallest power of two above the maximum.
    """

    def __init__(self, n_features: int) -> None:
        self.n_tokens = 0
        self.active = torch.zeros(n_features, dtype=torch.long)
        self.total = torch.zeros(n_features, dtype=torch.float64)
        self.maximum = torch.zeros(n_features, dtype=torch.float64)
        self.histogram = torch.zeros(n_features, BINS, dtype=torch.long)
        self.reach = torch.zeros(n_features, dtype=torch.long)

    def add(self, entries: Entries, *, n_tokens: int) -> None:
        """Count the active features of some tokens."""
        self.n_tokens += n_tokens
        feature, value = entries.feature, entries.value
        if not len(value):
            return
        self.total.index_add_(0, feature, value)
        larger = self.maximum.scatter_reduce(0, feature, value, "amax")
        self._stretch(larger)
        self.active += torch.bincount(feature, minlength=len(self.active))
        width = torch.ldexp(torch.ones_like(value), self.reach[feature])
        slot = (value / width * BINS).long()
        counts = torch.bincount(feature * BINS + slot, minlength=self.histogram.numel())
        self.histogram += counts.view_as(self.histogram)

    def _stretch(self, larger: Float[Tensor, " feature"]) -> None:
        """Make the bins reach to new maxima: where they must double, each takes in its neighbour."""
        reach = torch.where(larger > 0, torch.frexp(larger).exponent.long(), 0)
        fresh = self.active == 0
        self.reach = torch.where(fresh, reach, self.reach)
        self.maximum = larger
        while bool((short := self.reach < reach).any()):
            merged = self.histogram[short].view(-1, BINS // 2, 2).sum(-1)
            self.histogram[short] = torch.cat((merged, torch.zeros_like(merged)), dim=-1)
            self.reach = self.reach + short.long()

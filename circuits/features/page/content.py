"""What the page shows, as one JSON record: columns over features, and examples that point into the prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuits.features.effects import Ranked
from circuits.features.examples import Contexts, Gallery
from circuits.features.spelling import spelled_feature
from circuits.features.tally import BINS
from graphs.circuit import visible
from patching.errors import InvalidOption

LONGEST_LABEL = 200
"""Characters of a label that are shown."""


def content(gallery: Gallery, *, title: str | None, labels: Mapping[int, str] | None) -> dict[str, Any]:
    """The record that the page's scripts read; options as for `circuits.features.page.write`."""
    if title is not None and not isinstance(title, str):
        raise InvalidOption(f"expected a title as text; got {type(title).__name__}.")
    tally, book = gallery.tally, _Book(gallery)
    mean = tally.total / tally.active.clamp(min=1)
    return {
        "title": visible(title or f"Features of {gallery.site} in {gallery.model}"),
        "summary": visible(_summary(gallery)),
        "note": _note(gallery),
        "model": visible(gallery.model),
        "site": gallery.site,
        "prefix": spelled_feature(gallery.site, ""),
        "tokens": tally.n_tokens,
        "bins": BINS,
        "labels": _labels(labels, gallery.n_features),
        "active": tally.active.tolist(),
        "maximum": _rounded(tally.maximum.tolist()),
        "mean": _rounded(mean.tolist()),
        "reach": [2.0**reach for reach in tally.reach.tolist()],
        "histogram": [_trimmed(row) for row in tally.histogram.tolist()],
        "examples": [book.examples(index) for index in range(gallery.n_features)],
        "raised": book.effects(gallery.raised),
        "lowered": book.effects(gallery.lowered),
        "alike": _pairs(gallery.alike),
        "prompts": book.prompts,
        "words": [visible(word) for word in book.words],
    }


def _summary(gallery: Gallery) -> str:
    return (
        f"{gallery.architecture} dictionary of {gallery.n_features:,} features at {gallery.site} of {gallery.model}; "
        f"{gallery.tally.n_tokens:,} tokens of {len(gallery.prompts):,} prompts; {len(gallery.dead):,} features are "
        "dead"
    )


def _note(gallery: Gallery) -> str:
    how = "through the linear part of the final norm" if gallery.through_norm else "directly, without the final norm"
    return (
        f"Logit effects are what the direction adds to the logits per unit of activation, {how}, by the direct path "
        "alone: what later layers make of it is left out, and the residual's own scale would divide all alike."
    )


def _labels(labels: Mapping[int, str] | None, n_features: int) -> dict[str, str]:
    checked = {}
    for index, label in (labels or {}).items():
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_features:
            raise InvalidOption(f"expected labels of features from 0 to {n_features - 1}; got {index!r}.")
        if not isinstance(label, str):
            raise InvalidOption(f"expected a label as text; feature {index} has {type(label).__name__}.")
        checked[str(index)] = visible(label)[:LONGEST_LABEL]
    return checked


class _Book:
    """The prompts and words that are shown, each stored once, and numbered as they come up."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.lengths: list[int] = gallery.lengths.tolist()
        self.prompts: list[list[int]] = []
        self.words: list[str] = []
        self._prompt_numbers: dict[int, int] = {}
        self._word_numbers: dict[int, int] = {}

    def examples(self, index: int) -> list[list[Any]]:
        """Of one feature: prompt, position, where the context starts, its activations, quantile or None."""
        gallery = self.gallery
        strongest = self._rows(gallery.top, index, (None,) * gallery.top.token.shape[1])
        few = int(gallery.tally.active[index]) <= len(strongest)  # then all of its active tokens are listed already
        return strongest if few else strongest + self._rows(gallery.along, index, gallery.quantiles)

    def _rows(self, kept: Contexts, index: int, quantiles: Sequence[float | None]) -> list[list[Any]]:
        rows, length = [], self.gallery.prompts.tokens.shape[1]
        around = kept.around[index].tolist()
        for slot, (token, quantile) in enumerate(zip(kept.token[index].tolist(), quantiles, strict=True)):
            if token < 0:
                continue
            prompt, position = divmod(token, length)
            start = max(0, position - self.gallery.before)
            first = start - (position - self.gallery.before)
            stop = min(position - self.gallery.before + len(around[slot]), self.lengths[prompt])
            activations = _rounded(around[slot][first : first + stop - start])
            rows.append([self._prompt(prompt), position, start, activations, quantile])
        return rows

    def effects(self, ranked: Ranked | None) -> list[list[list[float]]]:
        """Logit effects per feature, as pairs of word and value."""
        if ranked is None:
            return [[] for _ in range(self.gallery.n_features)]
        return [[[self._word(int(token)), value] for token, value in row] for row in _pairs(ranked)]

    def _prompt(self, prompt: int) -> int:
        if prompt not in self._prompt_numbers:
            self._prompt_numbers[prompt] = len(self.prompts)
            ids = self.gallery.prompts.tokens[prompt, : self.lengths[prompt]].tolist()
            self.prompts.append([self._word(token) for token in ids])
        return self._prompt_numbers[prompt]

    def _word(self, token: int) -> int:
        if token not in self._word_numbers:
            self._word_numbers[token] = len(self.words)
            self.words.append(self.gallery.words[token])
        return self._word_numbers[token]


def _pairs(ranked: Ranked) -> list[list[list[float]]]:
    return [
        [[place, value] for place, value in zip(places, values, strict=True)]
        for places, values in zip(ranked.places.tolist(), map(_rounded, ranked.values.tolist()), strict=True)
    ]


def _rounded(values: Iterable[float]) -> list[float]:
    """Four digits that count; 0 as a whole number, which is shorter."""
    return [float(f"{value:.4g}") if value else 0 for value in values]


def _trimmed(counts: list[int]) -> list[int]:
    """Without the empty bins at the end."""
    used = max((place + 1 for place, count in enumerate(counts) if count), default=0)
    return counts[:used]

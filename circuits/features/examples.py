"""What makes a feature active: its strongest examples, how often and how strongly it is active, and to what effect.

    gallery = collect(model, dictionary, prompts)
    gallery.feature(12)                            # everything about one feature; a notebook shows it
    page.write(gallery, "features.html")           # all of them (`circuits.features.page`)

Two passes over the prompts, in pieces that fit a byte budget: one keeps for each feature its best tokens, a uniform
sample of its active ones and counts (`tally`); the other reads the activations around what was kept. Activations of
all tokens and features are never held together.

A feature is active where its activation is above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.activations import Prompts, as_prompts, prompts_that_fit, read
from circuits.features.dictionary import Dictionary
from circuits.features.effects import Ranked, logit_effects, neighbours
from circuits.features.reading import Place, beside, place_of
from circuits.features.spelling import spelled_feature, spelled_token
from circuits.features.tally import Best, Entries, Tally
from patching.chunks import Chunks
from patching.errors import InvalidOption, NotFinite
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES
from patching.progress import Progress, silent
from patching.task import Task

QUANTILES = (0.9, 0.75, 0.5, 0.25, 0.1)
"""Where along a feature's active tokens examples are taken, beside the strongest."""


@dataclass(frozen=True)
class Example:
    """A token at which a feature is active, with what stands around it.

    Attributes:
        prompt, position: which token.
        activation: of the feature there.
        tokens: of the context, as text.
        activations: of the feature at each of them; 0 at tokens that do not count.
        at: place of the token in the context.
        quantile: share of the feature's active tokens that are weaker; None for the strongest ones.
    """

    prompt: int
    position: int
    activation: float
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    at: int
    quantile: float | None = None


@dataclass(frozen=True)
class FeatureView:
    """Everything about one feature; a notebook shows it as a small table with highlighted examples.

    Attributes:
        name: as a node, such as m1.f12, or where the site has no such name, mlp_in1.f12.
        index: in the dictionary.
        frequency: share of the counted tokens at which it is active.
        n_active: how many these are.
        maximum, mean: of its activations where it is active; 0 if it never is.
        histogram: active tokens by activation, in equal bins from 0 to ``reach``.
        reach: where the last bin ends.
        top: the strongest examples.
        along: examples at quantiles of its active tokens.
        raised, lowered: tokens with the largest and smallest logit effects per unit of activation.
        neighbours: features with similar directions, by cosine.
        label: what somebody calls it, or nothing.
    """

    name: str
    index: int
    frequency: float
    n_active: int
    maximum: float
    mean: float
    histogram: tuple[int, ...]
    reach: float
    top: tuple[Example, ...]
    along: tuple[Example, ...]
    raised: tuple[tuple[str, float], ...]
    lowered: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    label: str = ""

    def __str__(self) -> str:
        """Its strongest examples, with the token at which it is active in brackets, and the tokens that it raises."""
        named = f"{self.name} ({self.label})" if self.label else self.name
        lines = [f"{named}: active at {self.frequency:.2%} of tokens, up to {self.maximum:.3g}"]
        for one in self.top:
            tokens = [f"[{token}]" if place == one.at else token for place, token in enumerate(one.tokens)]
            lines.append(f"  {one.activation:6.2f}  {''.join(tokens).strip()}")
        lines += [
            f"  {what:<6}  {' '.join(token.strip() for token, _ in tokens[:8])}"
            for what, tokens in (("raises", self.raised), ("lowers", self.lowered))
            if tokens
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from circuits.features.page.notebook import shown

        return shown(self)


class Contexts(NamedTuple):
    """Kept tokens of every feature with the activations around them.

    Attributes:
        token: number of the token, prompt · length + position; -1 where there are fewer.
        value: the activation there.
        around: activations in the window; 0 outside the prompt and at tokens that do not count.
    """

    token: Int[Tensor, "feature slot"]
    value: Float[Tensor, "feature slot"]
    around: Float[Tensor, "feature slot window"]


@dataclass(frozen=True)
class Gallery:
    """What was seen of every feature of a dictionary; make one with `collect`.

    Attributes:
        model, architecture, site: names, for people.
        prompts: what was run.
        words: text of every token that may be shown.
        tally: counts, maxima and histograms.
        top, along: the strongest tokens, and those at ``quantiles``.
        quantiles: of the active tokens.
        before: how many tokens of a context stand before the one it is about.
        raised, lowered: logit effects; None for directions that are not of the residual stream.
        through_norm: whether they went through the linear part of the final norm.
        alike: nearest directions by cosine.
    """

    model: str
    architecture: str
    site: str
    prompts: Prompts
    words: dict[int, str]
    tally: Tally
    top: Contexts
    along: Contexts
    quantiles: tuple[float, ...]
    before: int
    raised: Ranked | None
    lowered: Ranked | None
    through_norm: bool
    alike: Ranked

    @property
    def n_features(self) -> int:
        """How many features the dictionary has."""
        return len(self.tally.active)

    @property
    def frequency(self) -> Float[Tensor, " feature"]:
        """Share of the counted tokens at which each feature is active."""
        return self.tally.active.double() / self.tally.n_tokens

    @property
    def dead(self) -> Int[Tensor, " dead"]:
        """Features that are active nowhere."""
        return (self.tally.active == 0).nonzero().flatten()

    @cached_property
    def lengths(self) -> Int[Tensor, " example"]:
        """Tokens of each prompt, up to the last that counts."""
        position = torch.arange(1, self.prompts.tokens.shape[1] + 1)
        return (self.prompts.keep * position).amax(-1)

    def name(self, index: int) -> str:
        """A feature's name as a node where its site has one: ``m1.f12``."""
        return spelled_feature(self.site, index)

    def feature(self, index: int, *, label: str = "") -> FeatureView:
        """Everything about one feature.

        Raises:
            InvalidOption: there is no such feature.
        """
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self.n_features:
            raise InvalidOption(f"expected a feature from 0 to {self.n_features - 1}; got {index!r}.")
        tally, active = self.tally, int(self.tally.active[index])
        return FeatureView(
            name=self.name(index),
            index=index,
            frequency=active / tally.n_tokens,
            n_active=active,
            maximum=float(tally.maximum[index]),
            mean=float(tally.total[index]) / active if active else 0.0,
            histogram=tuple(tally.histogram[index].tolist()),
            reach=float(2.0 ** int(tally.reach[index])),
            top=tuple(self._examples(self.top, index, [None] * self.top.token.shape[1])),
            along=tuple(self._examples(self.along, index, self.quantiles)),
            raised=self._tokens(self.raised, index),
            lowered=self._tokens(self.lowered, index),
            neighbours=_pairs(self.alike, index),
            label=label,
        )

    def _examples(self, kept: Contexts, index: int, quantiles: Sequence[float | None]) -> Iterator[Example]:
        length = self.prompts.tokens.shape[1]
        fields = (kept.token[index].tolist(), kept.value[index].tolist(), kept.around[index].tolist(), quantiles)
        for token, value, around, quantile in zip(*fields, strict=True):
            if token < 0:
                continue
            prompt, position = divmod(token, length)
            start = max(0, position - self.before)
            stop = min(position - self.before + len(around), int(self.lengths[prompt]))
            ids = self.prompts.tokens[prompt, start:stop].tolist()
            shift = start - (position - self.before)
            yield Example(
                prompt=prompt,
                position=position,
                activation=value,
                tokens=tuple(self.words[each] for each in ids),
                activations=tuple(around[shift : shift + len(ids)]),
                at=position - start,
                quantile=quantile,
            )

    def _tokens(self, effects: Ranked | None, index: int) -> tuple[tuple[str, float], ...]:
        return () if effects is None else tuple((self.words[token], value) for token, value in _pairs(effects, index))

    def __repr__(self) -> str:
        return (
            f"Gallery({self.model!r}, {self.site}, {self.architecture}, features={self.n_features:,}, "
            f"dead={len(self.dead):,}, tokens={self.tally.n_tokens:,})"
        )


def collect(
    model: LensModel,
    dictionary: Dictionary,
    prompts: Prompts | Task | Tensor | Sequence[str],
    *,
    site: str | None = None,
    k: int = 10,
    quantiles: Sequence[float] = QUANTILES,
    sample: int = 64,
    window: tuple[int, int] = (16, 8),
    per_prompt: bool = True,
    n_logits: int = 10,
    n_neighbours: int = 8,
    through_norm: bool = True,
    seed: int = 0,
    memory: int = DEFAULT_BYTES,
    progress: Progress = silent,
) -> Gallery:
    """Look at every feature of a dictionary on prompts.

    The strongest tokens are exact. Quantiles are of up to ``sample`` active tokens per feature, drawn uniformly
    without replacement, so they are exact for features with no more active tokens than that.

    Args:
        model: the model.
        dictionary: of features.
        prompts: a task (its clean prompts), token ids [example, pos], texts, or `Prompts`.
        site: where the dictionary stands, if it does not say.
        k: how many of the strongest examples to keep per feature.
        quantiles: from 0 to 1; an example is kept at each.
        sample: how many active tokens per feature the quantiles are estimated from.
        window: how many tokens before and after are part of an example.
        per_prompt: of each prompt at most one of the strongest examples.
        n_logits: how many tokens to list that are raised, and lowered.
        n_neighbours: how many features with similar directions to list.
        through_norm: logit effects by way of the final norm's linear part, or directly.
        seed: of the sample.
        memory: bytes that activations may take at a time; contexts of what is kept come on top. With many features the
            process can grow well beyond (2.5 GB seen with 16,384 on 39,000 tokens under a budget of 64 MiB): the C
            library keeps freed memory in pieces, which ``malloc_trim`` gives back.
        progress: called with the number of prompts done and to do, over both passes.

    Raises:
        InvalidOption: an option out of its range, or a dictionary that does not fit the model.
        NotFinite: an activation is NaN or infinite.

    Cost: two forwards of every prompt up to the site, and the encoder on it.

    Example:
        >>> from circuits.features import create
        >>> from patching import toy
        >>> dictionary = create("identity", d_in=4, n_features=4, site="attn_out0")
        >>> view = collect(toy.model(), dictionary, toy.task(), k=2).feature(2)
        >>> view.name, view.maximum, view.frequency, view.top[0].tokens, view.top[0].activations
        ('a0.f2', 3.0, 1.0, ('‹1›', '‹1›'), (3.0, 3.0))
    """
    place = place_of(dictionary, model, site=site)
    k, sample = _whole("k", k, 1), _whole("sample", sample, 1)
    before, after = (_whole("window", each, 0) for each in window)
    for name, value in (("n_logits", n_logits), ("n_neighbours", n_neighbours), ("memory", memory)):
        _whole(name, value, 0)
    quantiles = _checked_quantiles(quantiles)
    prompts = _prompts(prompts, model)
    stream = _Stream(model, beside(dictionary, model), prompts, place, memory)
    length, total = prompts.tokens.shape[1], 2 * len(prompts)
    keys = torch.randperm(prompts.tokens.numel(), generator=torch.Generator().manual_seed(seed))
    tally = Tally(dictionary.n_features)
    top = Best(dictionary.n_features, k, length=length if per_prompt else None)
    drawn = Best(dictionary.n_features, sample if quantiles else 0)
    for tokens, activations, done in stream:
        active = Entries.of(activations, tokens)
        tally.add(active, n_tokens=len(tokens))
        top.offer(active)
        drawn.offer(replace(active, rank=-keys[active.token].double()))
        progress(done, total)
    along = _at_quantiles(drawn, quantiles)
    kept = torch.cat((top.token, along[0]), dim=1)
    around = torch.zeros(*kept.shape, before + 1 + after, dtype=torch.float32)
    _fill(around, kept, stream, before=before, progress=lambda done: progress(len(prompts) + done, total))
    progress(total, total)
    effects = None
    if place.site.kind != "neurons":
        effects = logit_effects(dictionary, model, k=n_logits, through_norm=through_norm, memory=memory)
    return Gallery(
        model=model.name,
        architecture=dictionary.architecture,
        site=str(place.site),
        prompts=prompts,
        words=_words(model, prompts, effects),
        tally=tally,
        top=Contexts(top.token, top.value, around[:, :k]),
        along=Contexts(*along, around[:, k:]),
        quantiles=quantiles,
        before=before,
        raised=None if effects is None else effects[0],
        lowered=None if effects is None else effects[1],
        through_norm=through_norm,
        alike=neighbours(dictionary, k=n_neighbours, memory=memory),
    )


class _Stream:
    """Activations of all features at all counted tokens, in order, a few tokens at a time."""

    def __init__(self, model: LensModel, dictionary: Dictionary, prompts: Prompts, place: Place, memory: int) -> None:
        self.model, self.dictionary, self.prompts, self.place = model, dictionary, prompts, place
        self.numbers = torch.arange(prompts.tokens.numel()).view_as(prompts.tokens)
        self.chunks = Chunks("prompts", model.device)
        self.batch = prompts_that_fit(model, prompts.tokens.shape[1], memory // 2)
        self.slice = max(1, memory // 2 // (6 * dictionary.n_features * model.dtype.itemsize))  # codes and comparisons

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        return self.of(torch.arange(len(self.prompts)))

    def of(self, rows: Int[Tensor, " row"]) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Numbers of tokens, activations there [token, feature], and how many prompts are done, of some prompts."""
        done = 0
        for chosen, values in self.chunks.over(len(rows), self.batch, lambda chosen: self._read(rows[chosen])):
            batch = rows[chosen]
            numbers = self.numbers[batch][self.prompts.keep[batch]]
            done += len(batch)
            for part, piece in zip(values.split(self.slice), numbers.split(self.slice), strict=True):
                yield piece, self._encoded(part), done

    def _read(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "token d_in"]:
        found = read(self.model, self.prompts.tokens[rows], [self.place.source])[self.place.source]
        return found[self.prompts.keep[rows].to(self.model.device)]

    @torch.no_grad()
    def _encoded(self, values: Float[Tensor, "token d_in"]) -> Float[Tensor, "token feature"]:
        features = self.dictionary.encode(values).cpu()
        if not bool(torch.isfinite(features).all()):
            raise NotFinite(f"features of the dictionary at {self.place.site} became NaN or infinite; are its weights?")
        return features


def _fill(
    around: Float[Tensor, "feature slot window"],
    kept: Int[Tensor, "feature slot"],
    stream: _Stream,
    *,
    before: int,
    progress: Callable[[int], None],
) -> None:
    """Read, in place, the activations in the window of every kept token; others of the window stay 0."""
    length, slots = stream.prompts.tokens.shape[1], kept.shape[1]
    flat = kept.flatten()
    order = torch.argsort(flat, stable=True)
    order = order[flat[order] >= 0]
    middle = flat[order]
    if not len(middle):
        return
    for tokens, activations, done in stream.of((middle // length).unique()):
        for place in range(around.shape[-1]):
            wanted = middle + (place - before)
            start, stop = torch.searchsorted(wanted, tokens[[0, -1]] + torch.tensor([0, 1])).tolist()
            here, owner, at = wanted[start:stop], order[start:stop], middle[start:stop]
            row = torch.searchsorted(tokens, here)
            fits = (tokens[row] == here) & (here // length == at // length)
            row, owner = row[fits], owner[fits]
            feature = owner // slots
            around[feature, owner % slots, place] = activations[row, feature].to(around.dtype)
        progress(done)


def _at_quantiles(drawn: Best, quantiles: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Tokens and activations of the sample nearest to each quantile; of equal activations, the earlier tokens first."""
    by_token = drawn.token.argsort(dim=-1)
    token, value = drawn.token.gather(-1, by_token), drawn.value.gather(-1, by_token)
    value = value.masked_fill(token < 0, torch.inf)
    ascending = value.sort(dim=-1, stable=True)
    count = (token >= 0).sum(-1, keepdim=True)
    shares = torch.tensor(quantiles, dtype=torch.float64)
    rank = ((count - 1).clamp(min=0) * shares + 0.5).floor().long()
    if not quantiles:
        return drawn.token[:, :0], drawn.value[:, :0]
    index = ascending.indices.gather(-1, rank)
    missing = (count == 0).expand_as(rank)
    return token.gather(-1, index).masked_fill(missing, -1), value.gather(-1, index).masked_fill(missing, 0.0)


def _prompts(given: Prompts | Task | Tensor | Sequence[str], model: LensModel) -> Prompts:
    if isinstance(given, Prompts | Task | Tensor):
        return as_prompts(given)
    return Prompts.from_texts(list(given), model)


def _words(model: LensModel, prompts: Prompts, effects: tuple[Ranked, Ranked] | None) -> dict[int, str]:
    shown = [prompts.tokens.flatten(), *(() if effects is None else (each.places.flatten() for each in effects))]
    return {token: spelled_token(token, model) for token in torch.cat(shown).unique().tolist()}


def _pairs(ranked: Ranked, index: int) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ranked.places[index].tolist(), ranked.values[index].tolist(), strict=True))


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"expected {name} to be a whole number, {least} or more; got {value!r}.")
    return value


def _checked_quantiles(quantiles: Sequence[float]) -> tuple[float, ...]:
    if not all(isinstance(each, int | float) and 0 <= each <= 1 for each in quantiles):
        raise InvalidOption(f"expected quantiles from 0 to 1; got {quantiles!r}.")
    return tuple(float(each) for each in quantiles)

"""Text that a model writes with features changed, beside what it writes without.

A plain loop: the whole text runs again for every token, without a cache of keys and values, since an edit changes them
at every position. Sampling draws one number per token from a seeded generator and takes the token at that share of the
distribution, so that texts of one seed differ through the edits alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.dictionary import Dictionary
from circuits.features.spelling import spelled_token, token_ids
from circuits.features.steering import Edit, Steered
from graphs.circuit import visible
from patching.blocks import Context
from patching.errors import InvalidOption, InvalidTask
from patching.lens import LensModel
from patching.progress import Progress, silent


@dataclass(frozen=True)
class Generation:
    """A text that a model wrote.

    Attributes:
        prompt: tokens it was given.
        tokens: tokens it wrote.
        log_probabilities: of each of them in the run that wrote it, in nats, at temperature 1.
        prompt_text, text: both as text.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    prompt_text: str
    text: str

    @property
    def log_probability(self) -> float:
        """Of the whole text after the prompt, in nats."""
        return math.fsum(self.log_probabilities)


def generate(
    model: LensModel,
    prompt: str | Int[Tensor, " pos"],
    *,
    edits: Iterable[Edit] = (),
    dictionaries: Iterable[Dictionary] = (),
    n: int = 20,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    stop: Collection[int] | None = None,
    progress: Progress = silent,
) -> Generation:
    """Go on with a prompt.

    Args:
        model: the model.
        prompt: a text, or token ids.
        edits: of features, at the prompt and at what is written, wherever their positions say.
        dictionaries: of these features.
        n: tokens to write at most.
        temperature: 0 takes the likeliest token (of equal ones, the one with the smallest id).
        top_k: sample among so many of the likeliest tokens.
        seed: of the sampling.
        stop: tokens that end the text; by default the tokenizer's end of text.
        progress: called with the number of tokens written and to write.

    Raises:
        InvalidOption: an option out of its range, or a text that would not fit the model's context.
        InvalidTask: a prompt without a token, or with ids that the model has not.

    Cost: one forward per token.

    Example:
        >>> from patching import toy
        >>> generate(toy.model(), torch.tensor([0, 1]), n=1).tokens
        (2,)
    """
    steered = Steered(model, edits=edits, dictionaries=dictionaries)
    ids = _prompt_ids(prompt, model)
    _check(model, len(ids), n, temperature, top_k)
    ends = _stop_tokens(model, stop)
    contexts = model.contexts(len(ids) + n)
    generator = torch.Generator().manual_seed(seed)
    written: list[int] = []
    scores: list[float] = []
    for step in range(n):
        tokens = torch.tensor([[*ids, *written]])
        logits = steered.logits(tokens, contexts=_cut(contexts, tokens.shape[1]))[0, -1].double().cpu()
        token = _chosen(logits, temperature, top_k, torch.rand((), generator=generator, dtype=torch.float64))
        written.append(token)
        scores.append(float(logits.log_softmax(-1)[token]))
        progress(step + 1, n)
        if token in ends:
            break
    progress(n, n)
    return Generation(tuple(ids), tuple(written), tuple(scores), _text(ids, model), _text(written, model))


@dataclass(frozen=True)
class Comparison:
    """What a model writes without and with edits, and how likely each run finds the other's text.

    Attributes:
        before, after: the texts without and with edits.
        before_under_edits: log-probabilities of the tokens of ``before`` in the run with edits.
        after_without_edits: log-probabilities of the tokens of ``after`` in the run without.
        next_tokens: of the first token written: the tokens whose log-probability changes most where either run gives
            them any weight, with their probabilities before and after.
    """

    before: Generation
    after: Generation
    before_under_edits: tuple[float, ...]
    after_without_edits: tuple[float, ...]
    next_tokens: tuple[tuple[str, float, float], ...]

    def __str__(self) -> str:
        rows = [
            f"prompt   {visible(self.before.prompt_text)}",
            f"without  {visible(self.before.text)}",
            f"         log-probability {self.before.log_probability:.3f}, under the edits "
            f"{math.fsum(self.before_under_edits):.3f}",
            f"with     {visible(self.after.text)}",
            f"         log-probability {self.after.log_probability:.3f}, without the edits "
            f"{math.fsum(self.after_without_edits):.3f}",
        ]
        if self.next_tokens:
            listed = [(visible(token), old, new) for token, old, new in self.next_tokens]
            width = max(len("next token"), *(len(token) for token, _, _ in listed))
            rows += ["", f"{'next token':<{width}}  without     with"]
            rows += [f"{token:<{width}}  {old:>7.2%}  {new:>7.2%}" for token, old, new in listed]
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        """Both texts side by side, and the table of next tokens."""

        def cell(text: str, log_probability: float, other: float) -> str:
            return (
                f'<td style="text-align:left;vertical-align:top;max-width:28em"><code style="white-space:pre-wrap">'
                f"{html.escape(visible(text))}</code><br><small>log-probability {log_probability:.3f}, "
                f"in the other run {other:.3f}</small></td>"
            )

        texts = cell(self.before.text, self.before.log_probability, math.fsum(self.before_under_edits)) + cell(
            self.after.text, self.after.log_probability, math.fsum(self.after_without_edits)
        )
        rows = "".join(
            f'<tr><td style="text-align:left"><code>{html.escape(visible(token))}</code></td><td>{old:.2%}</td>'
            f"<td>{new:.2%}</td></tr>"
            for token, old, new in self.next_tokens
        )
        return (
            f'<div class="wiretrace-steering"><p><code style="white-space:pre-wrap">'
            f"{html.escape(visible(self.before.prompt_text))}</code></p>"
            f"<table><tr><th>without edits</th><th>with edits</th></tr><tr>{texts}</tr></table>"
            f"<table><tr><th>next token</th><th>without</th><th>with</th></tr>{rows}</table></div>"
        )


def compare(
    model: LensModel,
    prompt: str | Int[Tensor, " pos"],
    *,
    edits: Iterable[Edit],
    dictionaries: Iterable[Dictionary],
    listed: int = 8,
    progress: Progress = silent,
    **sampling: Any,
) -> Comparison:
    """Go on with a prompt without and with edits.

    Args:
        model: the model.
        prompt: a text, or token ids.
        edits: of features.
        dictionaries: of these features.
        listed: how many next tokens to list.
        progress: called with the number of tokens written and to write, over both texts.
        **sampling: n, temperature, top_k, seed and stop as for `generate`; both texts take the same draws.

    Raises:
        InvalidOption: as for `generate`.
        InvalidTask: as for `generate`.

    Cost: two forwards per token, and two.

    Example:
        >>> from circuits.features import create
        >>> from circuits.features.steering import add
        >>> from patching import toy
        >>> identity = create("identity", d_in=4, n_features=4, site="attn_out0", dtype=torch.float64)
        >>> seen = compare(toy.model(), torch.tensor([0, 1]), edits=[add(3, 9.0)], dictionaries=[identity], n=1)
        >>> seen.before.tokens, seen.after.tokens
        ((2,), (3,))
    """
    edits, dictionaries = tuple(edits), tuple(dictionaries)
    steered = Steered(model, edits=edits, dictionaries=dictionaries)
    before = generate(model, prompt, **sampling, progress=lambda done, total: progress(done, 2 * total))
    after = generate(
        model,
        prompt,
        edits=edits,
        dictionaries=dictionaries,
        **sampling,
        progress=lambda done, total: progress(total + done, 2 * total),
    )
    other_before, new = _scored(steered, before)
    other_after, old = _scored(Steered(model), after)
    return Comparison(before, after, other_before, other_after, _changes(model, old, new, listed))


def _scored(steered: Steered, text: Generation) -> tuple[tuple[float, ...], Float[Tensor, " d_vocab"]]:
    """Log-probabilities of a text's tokens, and of all tokens after its prompt."""
    tokens = torch.tensor([[*text.prompt, *text.tokens]])
    scores = steered.logits(tokens)[0, len(text.prompt) - 1 : -1].double().cpu().log_softmax(-1)
    own = scores.gather(-1, torch.tensor(text.tokens)[:, None]).flatten()
    return tuple(own.tolist()), scores[0]


def _changes(model: LensModel, old: Tensor, new: Tensor, listed: int) -> tuple[tuple[str, float, float], ...]:
    """Tokens by the size of their share of both Kullback-Leibler divergences, the largest first."""
    before, after = old.exp(), new.exp()
    share = ((after - before) * (new - old)).nan_to_num(0.0)
    order = share.sort(descending=True, stable=True).indices[:listed].tolist()
    return tuple((spelled_token(token, model), float(before[token]), float(after[token])) for token in order)


def _chosen(logits: Float[Tensor, " d_vocab"], temperature: float, top_k: int | None, draw: Tensor) -> int:
    if temperature == 0:
        return int((logits == logits.max()).nonzero()[0])
    order = logits.sort(descending=True, stable=True)
    scaled = order.values[:top_k] / temperature
    share = scaled.softmax(-1).cumsum(-1)
    place = int(torch.searchsorted(share, draw * share[-1], right=True))
    return int(order.indices[min(place, len(share) - 1)])


def _prompt_ids(prompt: str | Tensor, model: LensModel) -> list[int]:
    if isinstance(prompt, str):
        return token_ids(prompt, model)
    if prompt.ndim != 1 or not len(prompt):
        raise InvalidTask(f"expected a prompt as text or token ids [pos], at least one; got {list(prompt.shape)}.")
    return prompt.tolist()


def _check(model: LensModel, given: int, n: int, temperature: float, top_k: int | None) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidOption(f"expected at least one token to write, a whole number; got {n!r}.")
    if given + n > model.n_ctx:
        raise InvalidOption(
            f"expected prompt and text of at most {model.n_ctx} tokens, the context of {model.name}; got {given} and "
            f"n = {n}. Write at most {max(0, model.n_ctx - given)}."
        )
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise InvalidOption(f"expected a temperature of 0 (the likeliest token) or more; got {temperature!r}.")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InvalidOption(f"expected top_k to be a whole number, 1 or more; got {top_k!r}.")


def _stop_tokens(model: LensModel, stop: Collection[int] | None) -> frozenset[int]:
    if stop is not None:
        return frozenset(stop)
    end = getattr(model.tokenizer, "eos_token_id", None)
    return frozenset() if end is None else frozenset([end])


def _cut(contexts: tuple[Context, ...], length: int) -> tuple[Context, ...]:
    """The contexts of the first positions."""
    index = torch.arange(length, device=contexts[0].bias.device)
    return tuple(
        Context(context.bias[..., :length, :length], None if context.rope is None else context.rope.at(index))
        for context in contexts
    )


def _text(ids: Iterable[int], model: LensModel) -> str:
    ids = list(ids)
    return " ".join(f"‹{token}›" for token in ids) if model.tokenizer is None else model.tokenizer.decode(ids)

"""A task: pairs of prompts, and what a right and a wrong continuation is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from patching.errors import InvalidTask


@dataclass(frozen=True)
class Task:
    """Clean prompts, corrupt prompts of the same lengths, and the answers that tell them apart.

    Prompts of different lengths are padded on the right, which a causal model never sees from the left.

    Attributes:
        name: for results.
        clean: token ids.
        corrupt: token ids; the prompt that carries the opposite or no information.
        answers: tokens that are right after the clean prompt (padded with -1 where prompts have fewer).
        wrong_answers: tokens that are wrong after the clean prompt (likewise; may be all -1).
        positions: index of each prompt's last token, whose logits predict the answer.
        metric: name of the metric that the task is judged by.
        texts: the prompts as text, for people; may be empty.
        starts_with_bos: whether position 0 holds a beginning-of-sequence token, which means leave out.
    """

    name: str
    clean: Int[Tensor, "example pos"]
    corrupt: Int[Tensor, "example pos"]
    answers: Int[Tensor, "example answer"]
    wrong_answers: Int[Tensor, "example wrong_answer"]
    positions: Int[Tensor, " example"]
    metric: str = "logit_difference"
    texts: tuple[str, ...] = ()
    starts_with_bos: bool = False

    def __post_init__(self) -> None:
        if self.clean.ndim != 2 or self.clean.shape != self.corrupt.shape:
            raise InvalidTask(
                "expected clean and corrupt token ids of one shape [example, pos]; got "
                f"{list(self.clean.shape)} and {list(self.corrupt.shape)}. Pair every clean prompt with a corrupt "
                "one of the same number of tokens."
            )
        count, length = self.clean.shape
        if count == 0 or length == 0:
            raise InvalidTask(f"expected at least one prompt of at least one token; got {count} of {length}.")
        for what in ("answers", "wrong_answers", "positions"):
            if getattr(self, what).shape[0] != count:
                raise InvalidTask(f"expected {count} rows of {what}, one per prompt; got {len(getattr(self, what))}.")
        if bool((self.positions < 0).any()) or bool((self.positions >= length).any()):
            raise InvalidTask(f"expected answer positions from 0 to {length - 1}; got {self.positions.tolist()}.")
        if bool((self.answers < 0).all(-1).any()):
            rows = (self.answers < 0).all(-1).nonzero().flatten().tolist()
            raise InvalidTask(f"expected an answer for every prompt; rows {rows} have none.")
        if bool((self.clean < 0).any()) or bool((self.corrupt < 0).any()):
            raise InvalidTask("expected token ids of 0 or more; got negative ones.")

    @classmethod
    def from_prompts(
        cls,
        tokenizer: Any,
        *,
        name: str,
        clean: Sequence[str],
        corrupt: Sequence[str],
        answers: Sequence[str | Sequence[str]],
        wrong_answers: Sequence[str | Sequence[str]],
        metric: str = "logit_difference",
        prepend_bos: bool = False,
    ) -> Task:
        """Tokenise and check pairs of prompts.

        Args:
            tokenizer: a Hugging Face tokenizer.
            name: for results.
            clean: prompts.
            corrupt: as many, each with as many tokens as its clean prompt.
            answers: per prompt a continuation, or several, each a single token (mind the leading space).
            wrong_answers: likewise.
            metric: a name from `patching.metrics.METRICS`.
            prepend_bos: put the tokenizer's beginning-of-sequence token in front.

        Raises:
            InvalidTask: rows do not pair up, an answer is several tokens, an answer is also wrong; the message
                names the rows and the words.
        """
        if tokenizer is None:
            raise InvalidTask("expected a tokenizer; this model has none. Build the Task from token ids instead.")
        counts = {
            "clean": len(clean),
            "corrupt": len(corrupt),
            "answers": len(answers),
            "wrong": len(wrong_answers),
        }
        if len(set(counts.values())) > 1 or not clean:
            raise InvalidTask(f"expected as many of each and at least one; got {counts}.")
        start = [tokenizer.bos_token_id] if prepend_bos else []
        if start == [None]:
            raise InvalidTask("expected a tokenizer with a BOS token for prepend_bos=True; this one has none.")
        encode = _encoder(tokenizer)
        clean_ids = [start + encode(text) for text in clean]
        corrupt_ids = [start + encode(text) for text in corrupt]
        _check_lengths(clean, corrupt, clean_ids, corrupt_ids)
        right = [_single_tokens(encode, row, words) for row, words in enumerate(answers)]
        wrong = [_single_tokens(encode, row, words) for row, words in enumerate(wrong_answers)]
        both = [row for row, (a, b) in enumerate(zip(right, wrong, strict=True)) if set(a) & set(b)]
        if both:
            raise InvalidTask(f"expected answers that are not also wrong answers; rows {both} have such a token.")
        return cls(
            name=name,
            clean=_pad(clean_ids, 0),
            corrupt=_pad(corrupt_ids, 0),
            answers=_pad(right, -1),
            wrong_answers=_pad(wrong, -1),
            positions=torch.tensor([len(ids) - 1 for ids in clean_ids]),
            metric=metric,
            texts=tuple(clean),
            starts_with_bos=prepend_bos,
        )

    def __len__(self) -> int:
        return self.clean.shape[0]

    def swapped(self) -> Task:
        """Clean and corrupt exchanged: what was noising becomes denoising.

        Right and wrong answers stay as they are, so a metric keeps its meaning.
        """
        return dataclasses.replace(self, clean=self.corrupt, corrupt=self.clean)

    def subset(self, rows: slice | Int[Tensor, " row"]) -> Task:
        """Some of the prompts."""
        texts = self.texts
        if texts:
            chosen = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
            texts = tuple(texts[row] for row in chosen)
        return dataclasses.replace(
            self,
            clean=self.clean[rows],
            corrupt=self.corrupt[rows],
            answers=self.answers[rows],
            wrong_answers=self.wrong_answers[rows],
            positions=self.positions[rows],
            texts=texts,
        )


def _encoder(tokenizer: Any) -> Any:
    """The token ids of a text; kept, since the same few answers belong to many prompts."""
    return functools.cache(lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _check_lengths(
    clean: Sequence[str], corrupt: Sequence[str], clean_ids: list[list[int]], corrupt_ids: list[list[int]]
) -> None:
    bad = [row for row, (a, b) in enumerate(zip(clean_ids, corrupt_ids, strict=True)) if len(a) != len(b)]
    if bad:
        row = bad[0]
        raise InvalidTask(
            "expected clean and corrupt prompts of the same number of tokens; rows "
            f"{bad[:10]}{' …' if len(bad) > 10 else ''} differ. Row {row}: {len(clean_ids[row])} tokens in "
            f"{clean[row]!r}, {len(corrupt_ids[row])} in {corrupt[row]!r}. Choose words of equal token length."
        )
    empty = [row for row, ids in enumerate(clean_ids) if not ids]
    if empty:
        raise InvalidTask(f"expected prompts of at least one token; rows {empty} are empty.")


def _single_tokens(encode: Any, row: int, words: str | Sequence[str]) -> list[int]:
    tokens = []
    for word in [words] if isinstance(words, str) else words:
        ids = encode(word)
        if len(ids) != 1:
            raise InvalidTask(
                f"expected an answer of one token; {word!r} (row {row}) is {len(ids)} tokens for this tokenizer. "
                "Choose another word, or mind the leading space."
            )
        tokens.append(ids[0])
    return tokens


def _pad(rows: list[list[int]], fill: int) -> Int[Tensor, "row column"]:
    width = max(1, max(len(row) for row in rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])

"""From text to tokens, and the targets that each position is trained to predict."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from experiments.zoo_training.recipe import DoesNotFit
from experiments.zoo_training.tokenizer import END

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""The target of positions that carry no loss: PyTorch's default for it."""


class Line(NamedTuple):
    """One training text.

    Attributes:
        given: Its beginning, which the model reads but is not trained to predict; may be empty.
        text: The rest.
        ends: Whether it is to be predicted that nothing comes after it.
    """

    given: str
    text: str
    ends: bool = True


@dataclass(frozen=True)
class Corpus:
    """Tokenised training text.

    Attributes:
        tokens: Padded on the right with the end of the text.
        targets: The tokens one position on, and the end of a text that ends; `IGNORED` where there is no loss.
        sha256: Of the text, one line each.
    """

    tokens: Int[Tensor, "sentence pos"]
    targets: Int[Tensor, "sentence pos"]
    sha256: str

    @property
    def n_targets(self) -> int:
        """How many tokens the model is trained to predict."""
        return int((self.targets != IGNORED).sum())


def pad(rows: Sequence[Sequence[int]], *, fill: int) -> Int[Tensor, "row pos"]:
    """Stack rows of token ids, shorter ones padded on the right."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, fill)


def build_corpus(lines: Iterable[Line], tokenizer: PreTrainedTokenizerFast, *, n_ctx: int) -> Corpus:
    """Tokenise training text.

    Args:
        lines: One text each; the two parts of a line are tokenised by themselves.
        tokenizer: Such as `tokenizer.word_level` makes.
        n_ctx: The most tokens that the model takes.

    Returns:
        Tokens and targets.

    Raises:
        DoesNotFit: A line is longer than the model's context.

    Example:
        >>> from experiments.zoo_training.tokenizer import word_level
        >>> corpus = build_corpus([Line("a b", "c")], word_level("abc", n_ctx=4), n_ctx=4)
        >>> corpus.tokens.tolist(), corpus.targets.tolist()
        ([[2, 3, 4]], [[-100, 4, 0]])
    """
    lines = list(lines)
    backend = tokenizer.backend_tokenizer
    given = [each.ids for each in backend.encode_batch([line.given for line in lines])]
    rest = [each.ids for each in backend.encode_batch([line.text for line in lines])]
    rows = [before + after for before, after in zip(given, rest, strict=True)]
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    texts = [f"{line.given} {line.text}" if line.given else line.text for line in lines]
    if len(rows[longest]) > n_ctx:
        raise DoesNotFit(
            f"expected sentences of at most n_ctx = {n_ctx} tokens; got one of {len(rows[longest])}: "
            f"{texts[longest]!r}. Raise n_ctx."
        )
    end = backend.get_vocab()[END]
    targets = [
        _targets(row, given=len(before), end=end if line.ends else IGNORED)
        for line, before, row in zip(lines, given, rows, strict=True)
    ]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return Corpus(pad(rows, fill=end), pad(targets, fill=IGNORED), digest)


def _targets(row: Sequence[int], *, given: int, end: int) -> list[int]:
    """The token after each of a row's, `IGNORED` where it is given."""
    after = [*row[1:], end]
    return [IGNORED if place + 1 < given else token for place, token in enumerate(after)]

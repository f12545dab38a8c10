"""A tokenizer to which every word is one token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
UNKNOWN = "<unk>"


def word_level(words: Iterable[str], *, n_ctx: int, splitting: str = "marks") -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer: each word and punctuation mark is one token.

    Spaces only separate, so `" Mary"` and `"Mary"` are the same token. Nothing is put before or after a text.

    Args:
        words: The vocabulary, in the order of its ids, which begin at 2: before it come `<|endoftext|>` and `<unk>`.
        n_ctx: Longest prompt that the model takes.
        splitting: A key of `SPLITTING`: where words end.

    Returns:
        A tokenizer whose `bos_token`, `eos_token` and `pad_token` are all `<|endoftext|>`.

    Example:
        >>> tokenizer = word_level([",", "Mary", "and"], n_ctx=8)
        >>> tokenizer(" Mary, and Bob")["input_ids"]
        [3, 2, 4, 1]
    """
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = [END, UNKNOWN, *words]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = SPLITTING[splitting]()
    backend.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=n_ctx,
    )


def words_of(texts: Iterable[str], *, splitting: str = "marks") -> list[str]:
    """Every word and mark of some texts, sorted; names in braces, as in templates, do not count.

    Example:
        >>> words_of(["The {event} began in 1732.", "It ended."], splitting="two-digits")
        ['.', '17', '32', 'It', 'The', 'began', 'ended', 'in']
    """
    splitter = SPLITTING[splitting]()
    plain = (re.sub(r"{\w+}", " ", text) for text in texts)
    return sorted({word for text in plain for word, _ in splitter.pre_tokenize_str(text)})


def _at_marks() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Whitespace()


def _at_spaces() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.WhitespaceSplit()


def _two_digits() -> Any:
    from tokenizers import Regex, pre_tokenizers

    pairs = pre_tokenizers.Split(Regex(r"\d{2}"), "isolated")
    return pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pairs])


SPLITTING: Mapping[str, Callable[[], Any]] = {
    "marks": _at_marks,
    "spaces": _at_spaces,
    "two-digits": _two_digits,
}
"""Where words end: at spaces and punctuation; at spaces alone; as the first, and numbers after every second digit."""

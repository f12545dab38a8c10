"""Which words are one token, and an error that names those that are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from circuits.tasks.errors import NotOneToken
from patching.errors import InvalidTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 12
"""How many offending words an error spells out before it counts the rest."""


def tokens_of(tokenizer: PreTrainedTokenizerBase | None, text: str) -> list[int]:
    """Tokenise one text without special tokens.

    Args:
        tokenizer: A Hugging Face tokenizer, or None for a model without one.
        text: Any text; an answer inside a sentence starts with a space.

    Returns:
        The token ids.

    Raises:
        InvalidTask: There is no tokenizer.
    """
    if tokenizer is None:
        raise InvalidTask(
            "expected a tokenizer; this model has none. Put its files into the model's folder, or build the Task from "
            "token ids instead."
        )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def is_one_token(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    """Tell whether `word`, with a space before it, is exactly one known token.

    Args:
        tokenizer: A Hugging Face tokenizer.
        word: A word without the space.

    Returns:
        False as well for a word that the tokenizer can only write as its unknown token.
    """
    ids = tokens_of(tokenizer, f" {word}")
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def one_token_words(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> list[str]:
    """The words that are one token each after a space: what a task's word list becomes for another tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        words: Without the space.

    Returns:
        Those that are, in their order.
    """
    return [word for word in words if is_one_token(tokenizer, word)]


def one_token_pairs(tokenizer: PreTrainedTokenizerBase, words: Mapping[str, str]) -> dict[str, str]:
    """The entries of a task's table whose key and value are both one token after a space.

    Args:
        tokenizer: A Hugging Face tokenizer.
        words: Such as names and their pronouns.

    Returns:
        Those entries, in their order.
    """
    return {
        key: value for key, value in words.items() if is_one_token(tokenizer, key) and is_one_token(tokenizer, value)
    }


def require_one_token(tokenizer: PreTrainedTokenizerBase, words: Iterable[str], *, remedy: str) -> None:
    """Check that each word, with a space before it, is exactly one known token.

    Clean and corrupt prompts differ in these words only, so this is also what makes the two equally long.

    Args:
        tokenizer: A Hugging Face tokenizer.
        words: The words, without the space.
        remedy: What the user can do about it; ends the message.

    Raises:
        NotOneToken: Names the offending words, and the pieces that each becomes.
    """
    words = list(dict.fromkeys(words))
    wrong = [word for word in words if not is_one_token(tokenizer, word)]
    if not wrong:
        return
    shown = ", ".join(f"{word} ({pieces(tokenizer, word)})" for word in wrong[:SHOWN])
    rest = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    raise NotOneToken(
        f"expected every word to be one token after a space; to this tokenizer ({type(tokenizer).__name__}, "
        f"{len(tokenizer)} tokens) {len(wrong)} of {len(words)} are not: {shown}{rest}. {remedy}"
    )


def pieces(tokenizer: PreTrainedTokenizerBase, word: str) -> str:
    """Spell the tokens of a word after a space, such as `ĠSt + eph`."""
    ids = tokens_of(tokenizer, f" {word}")
    if not ids:
        return "no token"
    if tokenizer.unk_token_id in ids:
        return "unknown word"
    return " + ".join(str(token) for token in tokenizer.convert_ids_to_tokens(ids))

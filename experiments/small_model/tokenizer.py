"""The byte-pair tokenizer of `zoo:small`.

Byte-level pairs as in GPT-2, with numbers cut into pieces of two digits first, so that the year 1732 is " 17" and "32".
Every word that a task needs is one token, and so is each number of two digits without a space before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from circuits.tasks.greater_than import TWO_DIGITS
from circuits.tasks.single_tokens import require_one_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
PAIRS_OF_DIGITS = r" ?\d{1,2}"


def build(texts: Iterable[str], words: Sequence[str], *, size: int, n_ctx: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer.

    Args:
        texts: Ordinary text.
        words: Words that must be one token after a space.
        size: Of the vocabulary.
        n_ctx: Longest prompt that the model takes.

    Raises:
        NotOneToken: The vocabulary is too small for the words.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PAIRS_OF_DIGITS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    often = [*(f" {word}" for word in words), *TWO_DIGITS] * OFTEN
    backend.train_from_iterator([*texts, *often], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=END, model_max_length=n_ctx
    )
    require_one_token(made, words, remedy="Raise the size of the vocabulary.")
    return made


OFTEN = 300
"""How many times each word is shown to the trainer of the tokenizer, beside where it occurs in texts."""

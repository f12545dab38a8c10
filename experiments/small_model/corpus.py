"""The training data of `zoo:small`: text, sentences and prompts of the tasks, mixed in rows of one length.

A row begins with a whole sample, and further samples follow after the end-of-text token until it is full, as a
language model's data usually is. Which sample comes next is drawn by the shares of `SHARES`.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from circuits import tasks
from experiments.ioi_sentences import sentences as ioi_sentences
from experiments.small_model.sentences import AT_LAST, CLOSE, END, LAST, LATER, SENTENCES, has_held_out_name
from experiments.small_model.text import Passages

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

TASKS: dict[str, str] = {
    "ioi": "train-names",
    "greater_than": "train",
    "docstring": "train",
    "induction": "train",
    "agreement": "train",
    "pronouns": "train",
}
"""The tasks that the model is trained on, and the split that it sees."""

MEASURED: tuple[str, ...] = tuple(task for task in TASKS if task != "greater_than")
"""The tasks that it can be asked. The tokenizer of the model that ships writes 61 of the 100 two-digit numbers as two
tokens, so greater-than, whose answer is one token, cannot be posed; `zoo:greater_than` can."""

SHARES: dict[str, float] = {
    "prose": 3.0,
    "code": 2.5,
    "sentences": 14.0,
    "ioi_sentences": 7.0,
    "ioi": 6.0,
    "greater_than": 3.0,
    "docstring": 4.5,
    "induction": 6.0,
    "agreement": 6.0,
    "pronouns": 4.0,
}
"""How often each kind of sample is drawn. Passages of text are about ten times as long as a sentence."""

PARTS: dict[int, str] = {
    33_600: "later",
    52_800: "last",
    67_200: "end",
    76_800: "close",
    105_600: "at last",
    118_400: "all",
}
"""From which row on the sentences are those of another part of the training, in which more kinds join."""

CHUNK = 200
"""How many prompts of a task are drawn at a time; each draw has a seed of its own."""


def prompts(task: str, *, seed: int) -> Iterator[str]:
    """Training prompts of a task with one of their right answers, without end."""
    module = tasks.load(task)
    rng = random.Random(f"{task} {seed}")
    for number in itertools.count():
        for prompt in module.generate(CHUNK, seed=seed * 1_000_003 + number, split=TASKS[task]):
            made = prompt.clean + rng.choice(prompt.answers)
            if task == "induction":
                yield made + _round_again(made, rng)
            else:
                yield made + rng.choice(QUESTION if prompt.clean.endswith("n't") else ENDS.get(task, ("",)))


def _round_again(made: str, rng: random.Random) -> str:
    """How a repetition goes on, so that its end does not come where the answer is due.

    Example:
        >>> _round_again("Words: a b c d a b", random.Random(0)).split()[:3]
        ['c', 'd', 'a']
    """
    words = made.split()
    again = words.index(words[-1], 0, len(words) - 1)
    period = len(words) - 1 - again
    for _ in range(rng.randrange(3, 8)):
        words.append(words[-period])
    return " " + " ".join(words[len(made.split()) :])


ENDS: dict[str, tuple[str, ...]] = {
    "ioi": (".", ".", " and left.", " at once."),
    "agreement": (" here.", " there.", " old.", " new.", " not here."),
    "pronouns": (" was here.", " was happy.", " came too.", " is fine."),
    "greater_than": (".", ".", " or so."),
}
QUESTION = ("?",)
"""How a sample goes on after the answer."""


def samples(kind: str, text: Passages, *, seed: int) -> Iterator[str]:
    """Samples of one kind of `SHARES`, without end."""
    rng = random.Random(f"samples {kind} {seed}")
    if kind in ("prose", "code"):
        return _passages(getattr(text, kind), rng)
    if kind == "sentences":
        return _sentences(rng, SENTENCES)
    if kind == "later":
        return _sentences(rng, SENTENCES | LATER)
    if kind == "last":
        return _sentences(rng, SENTENCES | LATER | LAST, often={"giving": 6, "again_any": 6, "mention": 3})
    if kind == "end":
        often = {"giving": 6, "again_any": 9, "mention": 3, "documented": 7, "alone": 7}
        return _sentences(rng, SENTENCES | LATER | LAST | END, often=often)
    if kind == "close":
        often = {"giving": 8, "again_any": 5, "round_any": 10, "mention": 2, "documented": 9, "alone": 6}
        return _sentences(rng, SENTENCES | LATER | LAST | END | CLOSE, often=often)
    if kind == "at last":
        often = {"given": 9, "giving": 6, "round_any": 6, "short": 14, "documented_the": 12, "alone": 4}
        return _sentences(rng, SENTENCES | LATER | LAST | END | CLOSE | AT_LAST, often=often)
    if kind == "all":
        often = {
            "thing": 14,
            "short": 12,
            "given": 8,
            "giving": 8,
            "meeting": 6,
            "person": 4,
            "round_any": 8,
            "again_any": 4,
        }
        often |= {"documented_the": 5, "documented": 3, "alone": 3}
        return _sentences(rng, SENTENCES | LATER | LAST | END | CLOSE | AT_LAST, often=often)
    if kind == "ioi_sentences":
        return (each for each in ioi_sentences(seed + 1) if not has_held_out_name(each))
    return prompts(kind, seed=seed + 1)


def rows(
    tokenizer: PreTrainedTokenizerFast,
    text: Passages,
    *,
    count: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Int[Tensor, "row pos"], str]:
    """Fill rows with samples.

    Args:
        tokenizer: The model's.
        text: Passages to draw from.
        count: How many rows.
        length: Tokens in each.
        seed: Of the draws.
        progress: Called now and then.

    Returns:
        Token ids, and the SHA-256 of them.
    """
    import numpy as np
    import torch

    end = tokenizer.backend_tokenizer.get_vocab()[str(tokenizer.eos_token)]
    rng = random.Random(f"rows {seed}")
    streams = {kind: _encoded(tokenizer, samples(kind, text, seed=seed)) for kind in SHARES}
    parts = {row: _encoded(tokenizer, samples(part, text, seed=seed)) for row, part in PARTS.items()}
    kinds, shares = list(SHARES), list(SHARES.values())
    made = np.empty((count, length), dtype=np.int32)
    for number in range(count):
        streams["sentences"] = parts.get(number, streams["sentences"])
        row: list[int] = []
        while len(row) < length:
            row += next(streams[rng.choices(kinds, shares)[0]])
            row.append(end)
        made[number] = row[:length]
        if number % 500 == 0:
            progress(number, count)
    return torch.from_numpy(made).long(), hashlib.sha256(made.tobytes()).hexdigest()


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: Iterator[str]) -> Iterator[Sequence[int]]:
    """Tokenise a stream a few hundred texts at a time."""
    while True:
        for encoding in tokenizer.backend_tokenizer.encode_batch(list(itertools.islice(texts, CHUNK))):
            yield encoding.ids


def _passages(passages: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Every passage once in random order, then again; each cut at a random end of a line into two."""
    while True:
        for passage in rng.sample(passages, len(passages)):
            lines = passage.split("\n")
            cut = rng.randrange(len(lines))
            for part in (lines[:cut], lines[cut:]):
                if part:
                    yield "\n".join(part)


def _sentences(
    rng: random.Random,
    kinds: Mapping[str, Callable[[random.Random], str]],
    often: Mapping[str, int] | None = None,
) -> Iterator[str]:
    """One or two sentences at a time, some kinds more often than once among the others."""
    names = [name for name in kinds for _ in range((often or {}).get(name, 1))]
    while True:
        yield " ".join(kinds[rng.choice(names)](rng) for _ in range(rng.choice((1, 1, 2))))

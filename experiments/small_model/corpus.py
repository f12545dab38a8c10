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
from experiments.small_model.sentences import LAST, SENTENCES, VERBS_OFTEN, has_held_out_name
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

SHARES: dict[str, float] = {
    "prose": 3.0,
    "code": 2.5,
    "sentences": 22.0,
    "ioi_sentences": 7.0,
    "ioi": 5.0,
    "greater_than": 4.0,
    "docstring": 4.0,
    "induction": 4.0,
    "agreement": 6.0,
    "pronouns": 3.0,
}
"""How often each kind of sample is drawn. Passages of text are about ten times as long as a sentence."""

CHUNK = 200
"""How many prompts of a task are drawn at a time; each draw has a seed of its own."""


def prompts(
    task: str, *, seed: int, more: range = range(3, 8), often: Sequence[int] | None = None, without: str = ""
) -> Iterator[str]:
    """Training prompts of a task with one of their right answers, without end.

    Args:
        task: A key of `TASKS`.
        seed: Of the draws.
        more: For induction, how many words come after the answer.
        often: How often each of a prompt's answers is taken, relative to the others; all alike by default.
        without: A template that is left out.
    """
    module = tasks.load(task)
    rng = random.Random(f"{task} {seed}")
    for number in itertools.count():
        for prompt in module.generate(CHUNK, seed=seed * 1_000_003 + number, split=TASKS[task]):
            if prompt.template == without:
                continue
            made = prompt.clean + (rng.choices(prompt.answers, often)[0] if often else rng.choice(prompt.answers))
            if task == "induction":
                yield made + _round_again(made, rng, more)
            else:
                yield made + rng.choice(QUESTION if prompt.clean.endswith("n't") else ENDS.get(task, ("",)))


def _round_again(made: str, rng: random.Random, more: range) -> str:
    """How a repetition goes on, so that its end does not come where the answer is due.

    Example:
        >>> _round_again("Words: a b c d a b", random.Random(0), range(3, 8)).split()[:3]
        ['c', 'd', 'a']
    """
    words = made.split()
    again = words.index(words[-1], 0, len(words) - 1)
    period = len(words) - 1 - again
    for _ in range(rng.randrange(more.start, more.stop)):
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
    if kind == "ioi_sentences":
        return (each for each in ioi_sentences(seed + 1) if not has_held_out_name(each))
    return prompts(kind, seed=seed + 1)


def last_samples(*, seed: int) -> dict[str, Iterator[str]]:
    """The kinds of `SHARES` that are others in the last part of the training.

    By then the model can do the tasks, but says that a text ends soon after it began to repeat itself, and goes on with
    "that" or "behind" where a verb is due, since each of five verbs is less likely: they come in the text up to here,
    "behind" since one template of agreement is the beginning of another.
    """
    return {
        "sentences": _sentences(random.Random(f"last sentences {seed}"), LAST),
        "agreement": prompts("agreement", seed=seed + 2, often=VERBS_OFTEN, without="two"),
        "induction": prompts("induction", seed=seed + 2, more=range(8, 16)),
    }


def rows(
    tokenizer: PreTrainedTokenizerFast,
    text: Passages,
    *,
    count: int,
    last: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Int[Tensor, "row pos"], str]:
    """Fill rows with samples.

    Args:
        tokenizer: The model's.
        text: Passages to draw from.
        count: How many rows.
        last: How many of them, at the end, are of the last part (`last_samples`).
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
    kinds, shares = list(SHARES), list(SHARES.values())
    made = np.empty((count, length), dtype=np.int32)
    for number in range(count):
        if number == count - last:
            streams |= {kind: _encoded(tokenizer, each) for kind, each in last_samples(seed=seed).items()}
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


def _sentences(rng: random.Random, kinds: Mapping[str, tuple[Callable[[random.Random], str], int]]) -> Iterator[str]:
    """One or two sentences at a time."""
    makers = [maker for maker, _ in kinds.values()]
    often = [share for _, share in kinds.values()]
    while True:
        yield " ".join(maker(rng) for maker in rng.choices(makers, often, k=rng.choice((1, 1, 2))))

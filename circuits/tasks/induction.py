"""Induction: random words, some of which come again: "The list: gift river map cup gift river" -> " map".

A sequence is: words that do not matter, the part that comes again, a gap of other words, and the part's beginning
again, after which its next word is due. All words are different but for the repetition. Wrong answers are all other
words of the sequence, so the metric, the mean logit difference, asks for copying the right one.

Corruptions. `absent` replaces the part's first occurrence by other words, so that there is nothing to copy;
`answer` replaces in it only the word that is due, so that another word would be copied.

Splits. Held out are about a fifth of the words, by their CRC-32, and the lines of `HELD_OUT_TEMPLATES` that the
words come after. Which words make up a sequence is random anyway.

Models without a tokenizer. `make` takes token ids in place of words (`vocabulary=range(1, 50)`), as for an
attention-only model of random sequences; a token is then held out by the CRC-32 of its number, and no line comes
before the sequence.

Source: Olsson et al. 2022, arXiv 2209.11895 (induction heads, repeated random sequences); Conmy et al. 2023, arXiv
2304.14997, whose task takes natural text instead.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from circuits.tasks import text
from circuits.tasks.errors import TooFewWords, UnknownChoice
from circuits.tasks.single_tokens import require_one_token
from circuits.tasks.text import Prompt, is_held_out

if TYPE_CHECKING:
    from patching.task import Task

VOCABULARY: tuple[str, ...] = (
    "store", "garden", "restaurant", "hospital", "office", "station", "park", "library", "beach", "market", "museum",
    "kitchen", "theater", "drink", "ring", "bone", "basketball", "computer", "necklace", "snack", "gift", "ticket",
    "map", "bottle", "ball", "camera", "coat", "cake", "sandwich", "newspaper", "river", "forest", "stone", "bread",
    "music", "window", "wall", "floor", "street", "cup", "bag", "clock", "shirt", "hat", "ship", "boat", "plane",
    "train", "truck", "horse", "dog", "cat", "bird", "tree", "flower", "apple", "bridge", "tower", "road", "field",
    "hill", "church", "hotel", "engine", "machine", "phone", "guitar", "desk", "wheel", "rock", "coin", "toy", "card",
    "car", "oil", "water", "paper", "glass", "wood", "iron", "school", "house", "farm", "book", "letter", "key",
    "chair", "door", "table", "picture", "box", "gold", "sea", "light", "lamp", "egg", "knife", "fish",
)  # fmt: skip
"""Words of the sequences; each is one token of GPT-2 after a space."""

WORDS: tuple[str, ...] = VOCABULARY
"""What must be one token after a space."""

TRAINING_TEMPLATES: Mapping[str, str] = {
    "words": "Words: {words}",
    "list": "The list: {words}",
    "some": "Here are some words: {words}",
    "read": "Read these words: {words}",
    "today": "My words today are: {words}",
    "again": "Again and again: {words}",
    "child": "The child said: {words}",
    "wrote": "She wrote: {words}",
    "page": "On the page: {words}",
    "note": "The note says: {words}",
    "repeat": "Please repeat after me: {words}",
    "order": "In order: {words}",
    "sang": "He sang this: {words}",
    "called": "They called: {words}",
    "line": "The first line is: {words}",
    "goes": "So it goes: {words}",
}
"""Lines that training may use, before the words."""

HELD_OUT_TEMPLATES: Mapping[str, str] = {
    "list-is": "The list is: {words}",
    "she-said": "She said: {words}",
    "page-says": "The page says: {words}",
    "he-wrote": "He wrote this today: {words}",
    "read-line": "Please read the line: {words}",
}
"""Lines that training never sees; every word of theirs occurs in those that it does."""

TEMPLATES: Mapping[str, str] = {**TRAINING_TEMPLATES, **HELD_OUT_TEMPLATES}
"""All templates by name."""

SPLITS = text.splits(TRAINING_TEMPLATES, HELD_OUT_TEMPLATES)
"""What each split draws from."""

CORRUPTIONS: Mapping[str, str] = {
    "absent": "the repeated part is missing from its first place, so that there is nothing to copy",
    "answer": "another word stands where the answer stood, so that it would be copied",
}
"""What each corruption does."""

LENGTHS: Mapping[str, tuple[int, int]] = {"before": (0, 3), "repeat": (1, 3), "gap": (0, 5)}
"""Bounds of what is drawn where no length is given: words before, words repeated before the answer, words between."""

Item = TypeVar("Item", str, int)


class MaybeTokenizer(Protocol):
    """A model with a tokenizer, or with None for one."""

    @property
    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer; None for a model of bare token ids."""
        ...


@dataclass(frozen=True)
class Sequences(Generic[Item]):
    """A sequence and its corruption.

    Attributes:
        clean: Words or tokens.
        corrupt: As many.
        answer: What followed the repeated part the first time.
        wrong_answers: Everything else in the clean sequence.
    """

    clean: tuple[Item, ...]
    corrupt: tuple[Item, ...]
    answer: Item
    wrong_answers: tuple[Item, ...]


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "absent",
    template: str | None = None,
    words: Sequence[str] = VOCABULARY,
    before: int | None = None,
    repeat: int | None = None,
    gap: int | None = None,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one; the split then decides the words alone.
        words: Words of the sequences.
        before: How many words come before the repeated part; drawn anew for each prompt by default.
        repeat: How many words of the part come again before the answer is due; likewise.
        gap: How many words stand between the part and its return; likewise.

    Returns:
        `n` prompts; all equally many words after the template's if the three lengths are given.

    Raises:
        UnknownChoice: An option has an unknown value, or a length is out of range.
        TooFewWords: The split has too few words for such sequences.

    Source:
        Olsson et al. 2022, arXiv 2209.11895.

    Example:
        >>> generate(1, seed=0, split="train", template="list", before=1, repeat=1, gap=2)[0].clean
        'The list: farm glass engine truck paper glass'
    """
    held_out, templates = text.chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    lengths = _lengths(before, repeat, gap)
    chosen = text.pool("words", words, held_out=held_out, least=_needed(lengths))
    rng, others = text.generators(seed)
    prompts = []
    for _ in range(n):
        line = rng.choice(templates)
        drawn = _draw(chosen, lengths, corruption, rng, others)
        prompts.append(
            Prompt(
                clean=TEMPLATES[line].format(words=" ".join(drawn.clean)),
                corrupt=TEMPLATES[line].format(words=" ".join(drawn.corrupt)),
                answers=(f" {drawn.answer}",),
                wrong_answers=tuple(f" {word}" for word in drawn.wrong_answers),
                template=line,
            )
        )
    return prompts


def generate_tokens(
    n: int,
    *,
    seed: int,
    vocabulary: Iterable[int],
    split: str = "held-out",
    corruption: str = "absent",
    before: int | None = None,
    repeat: int | None = None,
    gap: int | None = None,
) -> list[Sequences[int]]:
    """Draw sequences of token ids, without a line before them.

    Args:
        n: How many.
        seed: Seed of the draw.
        vocabulary: Token ids to draw from, such as `range(1, 50)`.
        split: A key of `SPLITS`; it decides the tokens alone.
        corruption: A key of `CORRUPTIONS`.
        before: As in `generate`.
        repeat: As in `generate`.
        gap: As in `generate`.

    Raises:
        UnknownChoice: An option has an unknown value, or a length is out of range.
        TooFewWords: The split has too few tokens for such sequences.

    Example:
        >>> found = generate_tokens(1, seed=0, vocabulary=range(50), split="train", before=0, repeat=1, gap=1)[0]
        >>> found.clean, found.answer
        ((18, 36, 35, 18), 36)
    """
    held_out = text.chosen_split(n, split=split, template=None, splits=SPLITS, templates=TEMPLATES).held_out
    lengths = _lengths(before, repeat, gap)
    chosen = tuple(token for token in sorted(set(vocabulary)) if is_held_out(str(token)) == held_out)
    if len(chosen) < (least := _needed(lengths)):
        raise TooFewWords(
            f"expected at least {least} tokens in the split {split!r}; got {len(chosen)}. Give a larger vocabulary or "
            "shorter sequences (before=, repeat=, gap=)."
        )
    rng, others = text.generators(seed)
    return [_draw(chosen, lengths, corruption, rng, others) for _ in range(n)]


def make(
    model: MaybeTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "absent",
    template: str | None = None,
    words: Sequence[str] = VOCABULARY,
    vocabulary: Iterable[int] | None = None,
    bos: int | None = None,
    before: int | None = None,
    repeat: int | None = None,
    gap: int | None = None,
) -> Task:
    """Build the task for a model: of words, or of token ids if `vocabulary` is given.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`; with None for one, give `vocabulary`.
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: `"absent"` or `"answer"`.
        template: A key of `TEMPLATES` to use only that one; of no meaning for token ids.
        words: Words of the sequences; give your own for a tokenizer to which some of ours are several tokens.
        vocabulary: Token ids to draw from in place of words.
        bos: A token to put before each sequence of token ids.
        before: How many words come before the repeated part; drawn anew for each prompt by default.
        repeat: How many words of the part come again before the answer is due; likewise.
        gap: How many words stand between the part and its return; likewise.

    Returns:
        A `Task` of `n` examples; its metric is the logit difference.

    Raises:
        UnknownChoice: An option has an unknown value, or a length is out of range.
        TooFewWords: The split has too few words for such sequences.
        NotOneToken: Some words are not one token of this tokenizer; the message names them.
        InvalidTask: The model has no tokenizer, and no vocabulary is given.

    Source:
        Olsson et al. 2022, arXiv 2209.11895.

    Example:
        >>> from types import SimpleNamespace
        >>> make(SimpleNamespace(tokenizer=None), n=2, vocabulary=range(60), before=0, repeat=1, gap=1).clean.shape
        torch.Size([2, 4])
    """
    if vocabulary is not None:
        found = generate_tokens(
            n, seed=seed, vocabulary=vocabulary, split=split, corruption=corruption, before=before, repeat=repeat,
            gap=gap,
        )  # fmt: skip
        return _of_tokens(found, bos)
    prompts = generate(
        n, seed=seed, split=split, corruption=corruption, template=template, words=words, before=before,
        repeat=repeat, gap=gap,
    )  # fmt: skip
    if model.tokenizer is not None:
        require_one_token(model.tokenizer, words, remedy=text.remedy("words", "induction.VOCABULARY"))
    return text.to_task(model, prompts, name="induction")


def _of_tokens(found: Sequence[Sequences[int]], bos: int | None) -> Task:
    """A task of token ids; shorter rows are padded on the right."""
    import torch

    from patching.task import Task

    start = () if bos is None else (bos,)
    ends = [len(start) + len(each.clean) - 1 for each in found]
    wrong = max(len(each.wrong_answers) for each in found)

    def padded(rows: Iterable[tuple[int, ...]], width: int, fill: int) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])

    return Task(
        name="induction",
        clean=padded((start + each.clean for each in found), max(ends) + 1, 0),
        corrupt=padded((start + each.corrupt for each in found), max(ends) + 1, 0),
        answers=torch.tensor([[each.answer] for each in found]),
        wrong_answers=padded((each.wrong_answers for each in found), wrong, -1),
        positions=torch.tensor(ends),
        starts_with_bos=bos is not None,
    )


def _lengths(before: int | None, repeat: int | None, gap: int | None) -> tuple[tuple[int, int], ...]:
    """The bounds of the three lengths, equal where one is given."""
    bounds = []
    for name, given in (("before", before), ("repeat", repeat), ("gap", gap)):
        least = 1 if name == "repeat" else 0
        if given is not None and given < least:
            raise UnknownChoice(f"expected {name}, a number of words, to be at least {least}; got {given}.")
        bounds.append(LENGTHS[name] if given is None else (given, given))
    return tuple(bounds)


def _needed(lengths: Sequence[tuple[int, int]]) -> int:
    """How many different words the longest sequence and its corruption take."""
    (_, before), (_, repeat), (_, gap) = lengths
    return before + gap + 2 * (repeat + 1)


def _draw(
    pool: Sequence[Item],
    lengths: Sequence[tuple[int, int]],
    corruption: str,
    rng: random.Random,
    others: random.Random,
) -> Sequences[Item]:
    """Draw one sequence, and its corruption from what is left of the words."""
    text.known("corruption", corruption, CORRUPTIONS)
    before, repeat, gap = (rng.randint(*bounds) for bounds in lengths)
    drawn = rng.sample(pool, before + repeat + 1 + gap)
    start, repeated, between = drawn[:before], drawn[before : before + repeat + 1], drawn[before + repeat + 1 :]
    replaced = list(repeated)
    changed = range(repeat + 1) if corruption == "absent" else [repeat]
    taken = set(drawn)
    for place in changed:
        replaced[place] = others.choice([word for word in pool if word not in taken])
        taken.add(replaced[place])
    *cue, answer = repeated
    return Sequences(
        clean=(*start, *repeated, *between, *cue),
        corrupt=(*start, *replaced, *between, *cue),
        answer=answer,
        wrong_answers=tuple(word for word in drawn if word != answer),
    )

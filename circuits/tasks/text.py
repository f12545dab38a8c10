"""What tasks of text share: prompts, splits with held-out words, and the way from prompts to a `Task`.

A word is held out by a rule on its spelling alone (`is_held_out`), so that a list can grow, or a user can bring
another, without a word changing sides. A training prompt has held-out words neither in its clean nor in its corrupt
form; prompts of the other splits are made of held-out words alone, wherever the task's word lists come in.

Example:
    >>> made = splits(["met"], ["saw"])
    >>> made["held-out-templates"]
    Split(held_out=True, templates=('saw',))
    >>> part(["war", "siege", "voyage", "trial"], held_out=True)
    ('trial',)
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from circuits.tasks.errors import TooFewWords, UnknownChoice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from patching.task import Task


class HasTokenizer(Protocol):
    """All that a task of text needs of a model."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The Hugging Face tokenizer that prompts and answers go through."""
        ...


@dataclass(frozen=True)
class Prompt:
    """One example as text.

    Attributes:
        clean: The prompt that the model should go on with one of `answers`.
        corrupt: As many tokens, with the information that decides the answer changed or taken away.
        answers: Right continuations, each with the space before it where there is one, each one token.
        wrong_answers: Wrong ones, likewise.
        template: Name of the template.
    """

    clean: str
    corrupt: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    template: str


class Split(NamedTuple):
    """What a split draws from.

    Attributes:
        held_out: Whether its words are the held-out ones.
        templates: Names of its templates.
    """

    held_out: bool
    templates: tuple[str, ...]


def splits(training: Iterable[str], held_out: Iterable[str]) -> dict[str, Split]:
    """The splits that every task of text has.

    `train`: training words in training templates. `held-out`: held-out words in all templates. `held-out-words`:
    held-out words in training templates. `held-out-templates`, also called `held-out-all`: both held out.

    Args:
        training: Names of the templates that training may use.
        held_out: Names of the others.
    """
    seen, unseen = tuple(training), tuple(held_out)
    return {
        "train": Split(False, seen),
        "held-out": Split(True, seen + unseen),
        "held-out-words": Split(True, seen),
        "held-out-templates": Split(True, unseen),
        "held-out-all": Split(True, unseen),
    }


def is_held_out(word: str) -> bool:
    """Tell whether a word is held out: its CRC-32 is divisible by five, so about one in five is.

    Example:
        >>> is_held_out("trial"), is_held_out("war")
        (True, False)
    """
    return zlib.crc32(word.encode()) % 5 == 0


def part(words: Iterable[str], *, held_out: bool) -> tuple[str, ...]:
    """The held-out words of a list, or the others, in their order."""
    return tuple(word for word in words if is_held_out(word) == held_out)


def pool(option: str, words: Iterable[str], *, held_out: bool, least: int) -> tuple[str, ...]:
    """The words of a split, checked.

    Args:
        option: What the list is called, for the message.
        words: All of the list.
        held_out: Which part of it.
        least: How many a prompt needs.

    Raises:
        TooFewWords: The part has fewer, or a word stands twice in the list.
    """
    listed = tuple(words)
    twice = sorted({word for word in listed if listed.count(word) > 1}) if len(set(listed)) < len(listed) else []
    if twice:
        raise TooFewWords(f"expected each of the {option} once; got {', '.join(twice)} more often.")
    chosen = part(listed, held_out=held_out)
    if len(chosen) < least:
        raise TooFewWords(
            f"expected at least {least} {option} {'that are held out' if held_out else 'for training'}; got "
            f"{len(chosen)} of {len(listed)}. A word is held out when its CRC-32 is divisible by five: pass more "
            f"{option}, or take another split."
        )
    return chosen


def known(option: str, value: str, choices: Mapping[str, object]) -> str:
    """Return `value` if it is one of the choices.

    Raises:
        UnknownChoice: It is not; the message says what they are.
    """
    if value not in choices:
        raise UnknownChoice(f"expected {option} to be one of {', '.join(choices)}; got {value!r}.")
    return value


def chosen_split(
    n: int, *, split: str, template: str | None, splits: Mapping[str, Split], templates: Mapping[str, object]
) -> Split:
    """The split of that name, with the one template asked for, if one is.

    Args:
        n: How many prompts are wanted.
        split: A key of `splits`.
        template: A key of `templates`, or None for those of the split.
        splits: Of the task.
        templates: Of the task.

    Raises:
        UnknownChoice: Either name is unknown, or `n` is not at least 1.
    """
    if n < 1:
        raise UnknownChoice(f"expected n, the number of prompts, to be at least 1; got {n}.")
    found = splits[known("split", split, splits)]
    return found if template is None else found._replace(templates=(known("template", template, templates),))


def generators(seed: int) -> tuple[random.Random, random.Random]:
    """A generator for the clean prompts and one for the corrupt ones.

    Two, so that another corruption leaves the clean prompts as they are.
    """
    return random.Random(seed), random.Random(f"corrupt {seed}")


def other(words: Sequence[str], taken: Iterable[str], rng: random.Random) -> str:
    """Draw a word that is none of `taken`."""
    excluded = set(taken)
    while True:
        if (word := rng.choice(words)) not in excluded:
            return word


def wants_bos(tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Tell whether a tokenizer itself begins a text with its beginning-of-sequence token, as those of Llama do."""
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    return list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]


def to_task(model: HasTokenizer, prompts: Sequence[Prompt], *, name: str, metric: str = "logit_difference") -> Task:
    """Turn prompts into a `Task`, with a beginning-of-sequence token where the tokenizer puts one.

    Args:
        model: Anything with a `tokenizer`.
        prompts: At least one.
        name: Of the task.
        metric: A key of `patching.metrics.METRICS`.

    Raises:
        InvalidTask: Clean and corrupt prompts differ in length, or an answer is several tokens.
    """
    from patching.task import Task

    return Task.from_prompts(
        model.tokenizer,
        name=name,
        clean=[prompt.clean for prompt in prompts],
        corrupt=[prompt.corrupt for prompt in prompts],
        answers=[prompt.answers for prompt in prompts],
        wrong_answers=[prompt.wrong_answers for prompt in prompts],
        metric=metric,
        prepend_bos=wants_bos(model.tokenizer),
    )


def remedy(option: str, words: str, *, by: str = "one_token_words") -> str:
    """What to do about words of several tokens, for the end of an error's message.

    Args:
        option: The argument of `make` that takes the words.
        words: Where ours are, such as `"docstring.PARAMETERS"`.
        by: A function of `single_tokens` that keeps the usable ones.
    """
    return (
        f"To leave them out, pass {option}={by}(model.tokenizer, {words}), from circuits.tasks.single_tokens; "
        f"or pass {option} of your own."
    )

"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary".

Two people are introduced, one of them (the subject, S) acts, and the sentence goes on with the other (the
indirect object, IO). The answer is IO and the wrong answer is S, so the logit difference is logit(IO) -
logit(S).

Orders. ABBA: IO is introduced first ("Mary and John ..., John gave"); BABA: S is introduced first ("John and
Mary ..., John gave"). Prompts alternate between the two, so that no fixed position holds the answer.

Corruptions. `abc` replaces the three name slots by three other distinct names ("When Lisa and Paul went to
the store, Kevin gave a drink to"): same sentence, and nothing says who the answer is. `s2` swaps the acting
subject for IO ("..., Mary gave a drink to"), so that the answer flips to S. Either way only single-token
names change, so clean and corrupt prompts are equally long.

Splits. A pair of names is held out when the CRC-32 of "name name" (in alphabetical order) is divisible by
five, in whatever order it is used: about one pair in five. The held-out templates are `HELD_OUT_TEMPLATES`.
`zoo:ioi` was trained on training pairs and training templates alone.

Source: Wang et al. 2022, arXiv 2211.00593, sections 2.1 and 3 and appendix E. The templates are ours, in the
manner of theirs, and more varied; the names are single tokens of GPT-2.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from circuits.tasks.errors import TooFewNames, UnknownChoice
from circuits.tasks.single_tokens import require_one_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from patching.task import Task

NAMES: tuple[str, ...] = (
    "Aaron", "Adam", "Alexander", "Alicia", "Allison", "Amanda", "Amy", "Andrea", "Andrew", "Angela",
    "Anthony", "Ashley", "Benjamin", "Brandon", "Brian", "Charles", "Christina", "Christine",
    "Christopher", "Daniel", "David", "Elizabeth", "Emily", "Eric", "Erin", "Gregory", "Heather", "Jacob",
    "James", "Jason", "Jeffrey", "Jennifer", "Jeremy", "Jessica", "John", "Jonathan", "Joseph", "Joshua",
    "Justin", "Katherine", "Katie", "Kelly", "Kenneth", "Kevin", "Kyle", "Laura", "Lauren", "Lisa",
    "Mary", "Matthew", "Megan", "Melissa", "Michael", "Michelle", "Nathan", "Nicholas", "Nicole",
    "Patrick", "Paul", "Rachel", "Rebecca", "Richard", "Robert", "Ryan", "Samantha", "Samuel", "Sarah",
    "Scott", "Sean", "Stephanie", "Stephen", "Steven", "Thomas", "Timothy", "Tyler", "William",
)  # fmt: skip
"""First names; each with a space before it is one token of GPT-2."""

PLACES: tuple[str, ...] = (
    "store", "garden", "restaurant", "school", "hospital", "office", "house", "station", "park",
    "library", "beach", "market", "museum", "farm", "kitchen", "theater",
)  # fmt: skip
OBJECTS: tuple[str, ...] = (
    "drink", "ring", "bone", "basketball", "computer", "necklace", "snack", "book", "gift", "letter",
    "ticket", "map", "bottle", "ball", "camera", "coat", "key", "cake", "sandwich", "newspaper",
)  # fmt: skip


TRAINING_TEMPLATES: Mapping[str, str] = {
    "when": "When {first} and {second} went to the {place}, {subject} gave a {object} to",
    "then": "Then, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "fun": "Then, {first} and {second} had a lot of fun at the {place}. {subject} gave a {object} to",
    "working": "While {first} and {second} were working at the {place}, {subject} gave a {object} to",
    "thinking": "As {first} and {second} thought about the {place}, {subject} decided to give a {object} to",
    "argument": "Then, {first} and {second} had a long argument, and afterwards {subject} said to",
    "after-lunch": "After lunch, {first} and {second} went to the {place}. {subject} handed a {object} to",
    "waiting": "While {first} and {second} were waiting at the {place}, {subject} offered a {object} to",
    "friends": "Friends {first} and {second} found a {object} at the {place}. {subject} gave it to",
    "last-week": "Last week {first} and {second} met at the {place}, and {subject} showed a {object} to",
    "sunny": "It was sunny, so {first} and {second} walked to the {place}. {subject} bought a {object} for",
    "weather": "Today {first} and {second} saw the {place}. It was cold, but {subject} sold a {object} to",
    "busy": "The {place} was busy when {first} and {second} arrived. Soon {subject} passed a {object} to",
    "sat": "At the {place}, {first} and {second} sat down for lunch before {subject} handed a {object} to",
    "left": "As {first} and {second} left the {place}, {subject} wanted to show a {object} to",
    "cleaned": "In the morning, {first} and {second} cleaned the {place}. Then {subject} threw a {object} to",
    "tired": "The day was long, and {first} and {second} were tired. At home, {subject} lent a {object} to",
    "yesterday": "Yesterday, after lunch, {first} and {second} saw the {place}. {subject} sent a {object} to",
    "dinner": "Before dinner, {first} and {second} went to the {place}, and {subject} gave a {object} to",
    "before": "Before {first} and {second} left the {place}, {subject} offered a {object} to",
    "later": "Later, {first} and {second} met at the {place}. Then {subject} decided to show a {object} to",
    "soon": "Soon {first} and {second} were tired. Afterwards {subject} passed a {object} to",
    "there": "At the {place}, {first} and {second} were waiting, and {subject} wanted to give a {object} to",
    "since": "Since {first} and {second} found a {object}, they left the {place}, but {subject} gave it to",
}
"""Templates that training may use. None starts with a name, which there would have no space before it."""

HELD_OUT_TEMPLATES: Mapping[str, str] = {
    "handed": "Today {first} and {second} were waiting at the {place}. Soon {subject} handed a {object} to",
    "after": "After {first} and {second} left the {place}, {subject} wanted to give a {object} to",
    "long-day": "It was a long day, and {first} and {second} were tired. {subject} offered a {object} to",
    "lunch": "Before lunch, {first} and {second} met at the {place}, and {subject} passed a {object} to",
    "walked": "While {first} and {second} walked to the {place}, {subject} decided to show a {object} to",
    "found": "Then, {first} and {second} found a {object} at the {place}. {subject} decided to give it to",
}
"""Templates that training never sees; every word of theirs occurs in other training sentences."""

TEMPLATES: Mapping[str, str] = {**TRAINING_TEMPLATES, **HELD_OUT_TEMPLATES}
"""All templates by name."""

SPLITS: Mapping[str, tuple[bool, tuple[str, ...]]] = {
    "train": (False, tuple(TRAINING_TEMPLATES)),
    "held-out": (True, tuple(TEMPLATES)),
    "held-out-pairs": (True, tuple(TRAINING_TEMPLATES)),
    "held-out-templates": (True, tuple(HELD_OUT_TEMPLATES)),
}
"""What each split draws from: whether its pairs of names are the held-out ones, and its templates."""


class HasTokenizer(Protocol):
    """All that a task needs of a model."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The Hugging Face tokenizer that prompts and answers go through."""
        ...


@dataclass(frozen=True)
class Slots:
    """The words that fill a template."""

    first: str
    second: str
    subject: str
    place: str
    object: str

    def fill(self, template: str) -> str:
        """Return a template's text with these words in it."""
        return template.format_map(vars(self))


@dataclass(frozen=True)
class Prompt:
    """One example as text.

    Attributes:
        clean: The prompt that the model should complete with `answer`.
        corrupt: The same sentence with other names, equally many tokens long.
        answer: The indirect object with the space before it, such as `" Mary"`.
        wrong_answer: The subject, likewise.
        template: Name of the template.
        order: `"ABBA"` (the indirect object is introduced first) or `"BABA"`.
    """

    clean: str
    corrupt: str
    answer: str
    wrong_answer: str
    template: str
    order: str


def _abc(slots: Slots, indirect_object: str, names: Sequence[str], rng: random.Random) -> Slots:
    """Replace the three name slots by three other distinct names (the paper's p_ABC)."""
    others = [name for name in names if name not in (slots.subject, indirect_object)]
    first, second, subject = rng.sample(others, 3)
    return replace(slots, first=first, second=second, subject=subject)


def _s2(slots: Slots, indirect_object: str, names: Sequence[str], rng: random.Random) -> Slots:
    """Let the indirect object act instead of the subject, which flips the answer."""
    return replace(slots, subject=indirect_object)


CORRUPTIONS: Mapping[str, Callable[[Slots, str, Sequence[str], random.Random], Slots]] = {
    "abc": _abc,
    "s2": _s2,
}
"""How each corruption turns the clean prompt's words into the corrupt prompt's."""


def is_held_out_pair(a: str, b: str) -> bool:
    """Tell whether two names form a held-out pair; the order does not matter.

    Example:
        >>> is_held_out_pair("Mary", "John") == is_held_out_pair("John", "Mary")
        True
    """
    return zlib.crc32(" ".join(sorted((a, b))).encode()) % 5 == 0


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "abc",
    template: str | None = None,
    names: Sequence[str] = NAMES,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Prompts are drawn independently of one another and alternate between ABBA and BABA. The same arguments
    give the same prompts, on every machine; another corruption changes only the corrupt ones.

    Args:
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`. `held-out` is held-out pairs in all templates.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one; the split then decides the pairs alone.
        names: First names to draw from.

    Returns:
        `n` prompts.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones.
        TooFewNames: Fewer than five distinct names, or none of their pairs belongs to the split.

    Source:
        Wang et al. 2022, arXiv 2211.00593, section 2.1 (p_IOI) and 3 (p_ABC).

    Example:
        >>> prompt = generate(1, seed=0, template="when", corruption="s2")[0]
        >>> prompt.clean.replace(f",{prompt.wrong_answer}", f",{prompt.answer}") == prompt.corrupt
        True
    """
    held_out, templates = SPLITS[_known("split", split, SPLITS)]
    corrupted = CORRUPTIONS[_known("corruption", corruption, CORRUPTIONS)]
    if template is not None:
        templates = (_known("template", template, TEMPLATES),)
    if n < 1:
        raise UnknownChoice(f"expected n, the number of prompts, to be at least 1; got {n}.")
    pairs = _pairs(names, held_out=held_out, split=split)
    rng, others = random.Random(seed), random.Random(f"corrupt {seed}")
    prompts = []
    for i in range(n):
        chosen = rng.choice(templates)
        indirect_object, subject = rng.sample(rng.choice(pairs), 2)
        order = "BABA" if i % 2 else "ABBA"
        first, second = (indirect_object, subject) if order == "ABBA" else (subject, indirect_object)
        slots = Slots(first, second, subject, rng.choice(PLACES), rng.choice(OBJECTS))
        prompts.append(
            Prompt(
                clean=slots.fill(TEMPLATES[chosen]),
                corrupt=corrupted(slots, indirect_object, names, others).fill(TEMPLATES[chosen]),
                answer=f" {indirect_object}",
                wrong_answer=f" {subject}",
                template=chosen,
                order=order,
            )
        )
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "abc",
    template: str | None = None,
    names: Sequence[str] = NAMES,
) -> Task:
    """Build the task for a model: tokens, corrupt tokens, answers, and the logit difference between IO and S.

    Works with any tokenizer that writes the names as one token each. Prompts of different templates differ in
    length and are padded on the right; `template=` gives equally long ones where places and objects are
    equally long too.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`.
        n: How many prompts.
        seed: Seed of the draw.
        split: `"train"`, `"held-out"` (held-out pairs, all templates), `"held-out-pairs"` (held-out pairs,
            training templates) or `"held-out-templates"` (both held out).
        corruption: `"abc"` (three other names) or `"s2"` (IO acts, so the answer flips).
        template: A key of `TEMPLATES` to use only that one.
        names: First names to draw from; give your own for a tokenizer to which some of ours are several
            tokens.

    Returns:
        A `Task` of `n` examples; its metric is `Task`'s default, the logit difference.

    Raises:
        UnknownChoice: An option has an unknown value.
        TooFewNames: Too few names, or no pair of them in the split.
        NotOneToken: Some names are not one token of this tokenizer; the message names them.

    Source:
        Wang et al. 2022, arXiv 2211.00593, section 2.1.

    Example:
        >>> model = LensModel.load("zoo:ioi")  # doctest: +SKIP
        >>> task = make(model, n=64, seed=0)  # doctest: +SKIP
    """
    from patching.task import Task

    prompts = generate(n, seed=seed, split=split, corruption=corruption, template=template, names=names)
    require_one_token(
        model.tokenizer,
        names,
        remedy="Pass names=[...] with at least five first names that are one token each.",
    )
    return Task.from_prompts(
        model.tokenizer,
        name="ioi",
        clean=[prompt.clean for prompt in prompts],
        corrupt=[prompt.corrupt for prompt in prompts],
        answers=[prompt.answer for prompt in prompts],
        wrong_answers=[prompt.wrong_answer for prompt in prompts],
    )


def _known(option: str, value: str, choices: Mapping[str, object]) -> str:
    """Return `value` if it is one of the choices, else say what they are."""
    if value not in choices:
        raise UnknownChoice(f"expected {option} to be one of {', '.join(choices)}; got {value!r}.")
    return value


def _pairs(names: Sequence[str], *, held_out: bool, split: str) -> list[tuple[str, str]]:
    """List the pairs of names that belong to a split."""
    if len(set(names)) < max(5, len(names)):
        raise TooFewNames(
            f"expected at least five distinct names (two for the clean prompt, three for the corrupt one); "
            f"got {len(names)} of which {len(set(names))} are distinct. Pass more names, each once."
        )
    pairs = [pair for pair in itertools.combinations(names, 2) if is_held_out_pair(*pair) == held_out]
    if not pairs:
        raise TooFewNames(
            f"expected some pair of the {len(names)} names to be in the split {split!r}; none is. Pass more names."
        )
    return pairs

"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary".

Two people are introduced, one of them (the subject, S) acts, and the sentence goes on with the other (the
indirect object, IO). The answer is IO and the wrong answer is S, so the logit difference is logit(IO) -
logit(S).

Orders. ABBA: IO is introduced first ("Mary and John ..., John gave"); BABA: S is introduced first ("John and
Mary ..., John gave"). Prompts alternate between the two, so that no fixed position holds the answer.

Corruptions. `abc` replaces the three name slots by three other distinct names ("When Lisa and Paul went to
the store, Kevin gave a drink to"): same sentence, and nothing says who the answer is. `s2` swaps the acting
subject for IO ("..., Mary gave a drink to"), so that the answer flips to S. `random` draws a name for each of the
three slots independently, as other tools do: unlike those of `abc`, its names may coincide, with each other (so that
now and then the corrupt sentence has an answer after all, as one of IOI has) or with those of the clean prompt.
Whichever it is, only single-token names change, so clean and corrupt prompts are equally long.

Splits. A pair of names is held out when the CRC-32 of "name name" (in alphabetical order) is divisible by
five, in whatever order it is used: about one pair in five. The held-out templates are `HELD_OUT_TEMPLATES`.
`zoo:ioi` was trained on training pairs (`train`) alone: it has seen every name. `HELD_OUT_NAMES` are for models that
have not: `train-names` has training pairs of the other names, `held-out-names` (also called `held-out-words`) both of
its names held out, `held-out-all` these in held-out templates. In these three, corrupt prompts keep to the same part
of the names.

Source: Wang et al. 2022, arXiv 2211.00593, sections 2.1 and 3 and appendix E. The templates are ours, in the
manner of theirs, and more varied; the names are single tokens of GPT-2.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from circuits.tasks import text
from circuits.tasks.errors import TooFewNames, UnknownChoice
from circuits.tasks.single_tokens import require_one_token
from circuits.tasks.text import HasTokenizer, is_held_out

if TYPE_CHECKING:
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

HELD_OUT_NAMES: tuple[str, ...] = text.part(NAMES, held_out=True)
"""The names that `train-names` leaves out: those whose CRC-32 is divisible by five."""

WORDS: tuple[str, ...] = NAMES
"""What must be one token after a space."""

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


class Split(NamedTuple):
    """What a split draws from.

    Attributes:
        pairs: A key of `PAIRS`.
        templates: Names of its templates.
    """

    pairs: str
    templates: tuple[str, ...]


SPLITS: Mapping[str, Split] = {
    "train": Split("training pairs", tuple(TRAINING_TEMPLATES)),
    "held-out": Split("held-out pairs", tuple(TEMPLATES)),
    "held-out-pairs": Split("held-out pairs", tuple(TRAINING_TEMPLATES)),
    "held-out-templates": Split("held-out pairs", tuple(HELD_OUT_TEMPLATES)),
    "train-names": Split("training names", tuple(TRAINING_TEMPLATES)),
    "held-out-names": Split("held-out names", tuple(TRAINING_TEMPLATES)),
    "held-out-words": Split("held-out names", tuple(TRAINING_TEMPLATES)),
    "held-out-all": Split("held-out names", tuple(HELD_OUT_TEMPLATES)),
}
"""What each split draws from."""


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
class Prompt(text.Prompt):
    """One example as text; `answer` and `wrong_answer` are its only ones.

    Attributes:
        clean: The prompt that the model should complete with `answer`.
        corrupt: The same sentence with other names, equally many tokens long.
        answers: The indirect object with the space before it, such as `" Mary"`.
        wrong_answers: The subject, likewise.
        template: Name of the template.
        order: `"ABBA"` (the indirect object is introduced first) or `"BABA"`.
    """

    order: str

    @property
    def answer(self) -> str:
        """The indirect object with the space before it."""
        return self.answers[0]

    @property
    def wrong_answer(self) -> str:
        """The subject, likewise."""
        return self.wrong_answers[0]


def _abc(slots: Slots, indirect_object: str, names: Sequence[str], rng: random.Random) -> Slots:
    """Replace the three name slots by three other distinct names (the paper's p_ABC)."""
    others = [name for name in names if name not in (slots.subject, indirect_object)]
    first, second, subject = rng.sample(others, 3)
    return replace(slots, first=first, second=second, subject=subject)


def _s2(slots: Slots, indirect_object: str, names: Sequence[str], rng: random.Random) -> Slots:
    """Let the indirect object act instead of the subject, which flips the answer."""
    return replace(slots, subject=indirect_object)


def _random(slots: Slots, indirect_object: str, names: Sequence[str], rng: random.Random) -> Slots:
    """Draw each of the three names by itself from all names."""
    first, second, subject = rng.choices(names, k=3)
    return replace(slots, first=first, second=second, subject=subject)


CORRUPTIONS: Mapping[str, Callable[[Slots, str, Sequence[str], random.Random], Slots]] = {
    "abc": _abc,
    "s2": _s2,
    "random": _random,
}
"""How each corruption turns the clean prompt's words into the corrupt prompt's."""


def is_held_out_pair(a: str, b: str) -> bool:
    """Tell whether two names form a held-out pair; the order does not matter.

    Example:
        >>> is_held_out_pair("Mary", "John") == is_held_out_pair("John", "Mary")
        True
    """
    return zlib.crc32(" ".join(sorted((a, b))).encode()) % 5 == 0


PAIRS: Mapping[str, Callable[[str, str], bool]] = {
    "training pairs": lambda a, b: not is_held_out_pair(a, b),
    "held-out pairs": is_held_out_pair,
    "training names": lambda a, b: not (is_held_out_pair(a, b) or is_held_out(a) or is_held_out(b)),
    "held-out names": lambda a, b: is_held_out(a) and is_held_out(b),
}
"""Which pairs of names a split may use."""


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
        TooFewNames: Fewer than five distinct names (or training names, or held-out names), or none of their pairs
            belongs to the split.

    Source:
        Wang et al. 2022, arXiv 2211.00593, section 2.1 (p_IOI) and 3 (p_ABC).

    Example:
        >>> prompt = generate(1, seed=0, template="when", corruption="s2")[0]
        >>> prompt.clean.replace(f",{prompt.wrong_answer}", f",{prompt.answer}") == prompt.corrupt
        True
    """
    which, templates = SPLITS[text.known("split", split, SPLITS)]
    corrupted = CORRUPTIONS[text.known("corruption", corruption, CORRUPTIONS)]
    if template is not None:
        templates = (text.known("template", template, TEMPLATES),)
    if n < 1:
        raise UnknownChoice(f"expected n, the number of prompts, to be at least 1; got {n}.")
    if which in ("training names", "held-out names"):
        names = text.part(names, held_out=which == "held-out names")
    pairs = _pairs(names, which, split=split)
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
                answers=(f" {indirect_object}",),
                wrong_answers=(f" {subject}",),
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
            training templates), `"held-out-templates"` (both held out); or, of names, `"train-names"`,
            `"held-out-names"` and `"held-out-all"` (held-out names in held-out templates).
        corruption: `"abc"` (three other names), `"s2"` (IO acts, so the answer flips) or `"random"` (three names,
            each drawn by itself).
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
    prompts = generate(n, seed=seed, split=split, corruption=corruption, template=template, names=names)
    require_one_token(
        model.tokenizer,
        names,
        remedy="Pass names=[...] with at least five first names that are one token each.",
    )
    return text.to_task(model, prompts, name="ioi")


def _pairs(names: Sequence[str], which: str, *, split: str) -> list[tuple[str, str]]:
    """List the pairs of names that belong to a split."""
    if len(set(names)) < max(5, len(names)):
        raise TooFewNames(
            f"expected at least five distinct names (two for the clean prompt, three for the corrupt one); "
            f"got {len(names)} of which {len(set(names))} are distinct. Pass more names, each once."
        )
    pairs = [pair for pair in itertools.combinations(names, 2) if PAIRS[which](*pair)]
    if not pairs:
        raise TooFewNames(
            f"expected some pair of the {len(names)} names to be in the split {split!r}; none is. Pass more names."
        )
    return pairs

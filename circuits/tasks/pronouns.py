"""Gendered pronouns: "So Mary is such a good friend, isn't" -> " she", not " he".

A sentence names one person and stops where a pronoun for them is due. Which pronoun a name takes is its usual one in
English; `PRONOUNS` says which that is. The metric is logit(right pronoun) - logit(the other). Prompts alternate
between the two.

Corruptions. `gender` puts a name of the other gender there, so that the answer flips; `random` any other name, so
that it flips in about half of the prompts.

Splits. Held out are about a fifth of the names, by their CRC-32 (the same names as in `ioi`), and the templates of
`HELD_OUT_TEMPLATES`.

Source: Mathwin and Corlouer 2023, "Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small"
(Apart Research), whose baseline is "That person" in place of a name. The other templates, and the names, are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from circuits.tasks import text
from circuits.tasks.errors import TooFewWords, UnknownChoice
from circuits.tasks.ioi import OBJECTS, PLACES
from circuits.tasks.single_tokens import require_one_token
from circuits.tasks.text import HasTokenizer, Prompt

if TYPE_CHECKING:
    from patching.task import Task

SHE: tuple[str, ...] = (
    "Alicia", "Allison", "Amanda", "Amy", "Andrea", "Angela", "Ashley", "Christina", "Christine", "Elizabeth", "Emily",
    "Erin", "Heather", "Jennifer", "Jessica", "Katherine", "Katie", "Kelly", "Laura", "Lauren", "Lisa", "Mary", "Megan",
    "Melissa", "Michelle", "Nicole", "Rachel", "Rebecca", "Samantha", "Sarah", "Stephanie",
    "Alice", "Anna", "Anne", "Barbara", "Carol", "Diana", "Emma", "Grace", "Helen", "Jane", "Julia", "Karen", "Kate",
    "Linda", "Lucy", "Margaret", "Maria", "Nancy", "Patricia", "Rose", "Ruth", "Sandra", "Susan",
)  # fmt: skip
"""Names that usually take "she"; the first 31 are those of `ioi`."""

HE: tuple[str, ...] = (
    "Aaron", "Adam", "Alexander", "Andrew", "Anthony", "Benjamin", "Brandon", "Brian", "Charles", "Christopher",
    "Daniel", "David", "Eric", "Gregory", "Jacob", "James", "Jason", "Jeffrey", "Jeremy", "John", "Jonathan", "Joseph",
    "Joshua", "Justin", "Kenneth", "Kevin", "Kyle", "Matthew", "Michael", "Nathan", "Nicholas", "Patrick", "Paul",
    "Richard", "Robert", "Ryan", "Samuel", "Scott", "Sean", "Stephen", "Steven", "Thomas", "Timothy", "Tyler",
    "William",
    "Edward", "Frank", "George", "Henry", "Jack", "Mark", "Peter", "Simon",
)  # fmt: skip
"""Names that usually take "he"; the first 45 are those of `ioi`."""

PRONOUNS: Mapping[str, str] = {**dict.fromkeys(SHE, "she"), **dict.fromkeys(HE, "he")}
"""Every name's usual pronoun."""

WORDS: tuple[str, ...] = (*PRONOUNS, "she", "he")
"""What must be one token after a space."""

TRAINING_TEMPLATES: Mapping[str, str] = {
    "friend": "So {name} is such a good friend, isn't",
    "teacher": "So {name} is a really great teacher, isn't",
    "wasn't": "I think {name} was at the {place}, wasn't",
    "early": "Today {name} went home early because",
    "came-back": "When {name} came back from the {place},",
    "lost": "Yesterday {name} lost a {object}, and now",
    "letter": "The letter from {name} says that",
    "happy": "At the {place}, {name} was happy because",
    "bought": "After {name} bought the {object},",
    "as-soon-as": "As soon as {name} saw the {object},",
    "told": "Last week {name} told us that",
    "read": "Since {name} likes to read,",
    "everyone": "Everyone likes {name} because",
    "tired": "My friend {name} is tired, but",
    "if": "If {name} wants the {object}, maybe",
    "left": "Before {name} left the {place},",
    "asked": "We asked {name} if",
    "while": "While {name} was at the {place},",
    "hasn't": "Look, {name} has a new {object}, hasn't",
    "late": "Because {name} was late,",
    "good-at": "I know {name} is good at this, isn't",
}
"""Templates that training may use. None starts with the name, which there would have no space before it."""

HELD_OUT_TEMPLATES: Mapping[str, str] = {
    "great-friend": "I think {name} is such a great friend, isn't",
    "came-home": "Yesterday {name} came home early because",
    "saw-place": "When {name} saw the {place},",
    "my-teacher": "My teacher {name} was tired, and now",
    "after-left": "After {name} left the {place},",
    "today-lost": "Today {name} lost the {object}, but",
}
"""Templates that training never sees; every word of theirs occurs in those that it does."""

TEMPLATES: Mapping[str, str] = {**TRAINING_TEMPLATES, **HELD_OUT_TEMPLATES}
"""All templates by name."""

SPLITS = text.splits(TRAINING_TEMPLATES, HELD_OUT_TEMPLATES)
"""What each split draws from."""

CORRUPTIONS: Mapping[str, str] = {
    "gender": "a name of the other gender, so that the answer flips",
    "random": "any other name",
}
"""What each corruption does."""


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "gender",
    template: str | None = None,
    names: Mapping[str, str] = PRONOUNS,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many prompts; "she" is due in even rows, "he" in odd ones.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one; the split then decides the names alone.
        names: Names and the pronoun of each, `"she"` or `"he"`.

    Returns:
        `n` prompts.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones.
        TooFewWords: The split has no name for one of the pronouns.

    Source:
        Mathwin and Corlouer 2023.

    Example:
        >>> prompt = generate(1, seed=0, split="train", template="friend")[0]
        >>> prompt.clean, prompt.corrupt
        ("So Anne is such a good friend, isn't", "So Richard is such a good friend, isn't")
        >>> prompt.answers, prompt.wrong_answers
        ((' she',), (' he',))
    """
    held_out, templates = text.chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    text.known("corruption", corruption, CORRUPTIONS)
    pool = text.pool("names", names, held_out=held_out, least=2)
    by_pronoun = _by_pronoun(names, pool)
    rng, others = text.generators(seed)
    prompts = []
    for i in range(n):
        due, opposite = ("he", "she") if i % 2 else ("she", "he")
        chosen, name = rng.choice(templates), rng.choice(by_pronoun[due])
        slots = {"place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}
        replaced = others.choice(by_pronoun[opposite]) if corruption == "gender" else text.other(pool, [name], others)
        clean, corrupt = (TEMPLATES[chosen].format(name=word, **slots) for word in (name, replaced))
        prompts.append(Prompt(clean, corrupt, (f" {due}",), (f" {opposite}",), chosen))
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "gender",
    template: str | None = None,
    names: Mapping[str, str] = PRONOUNS,
) -> Task:
    """Build the task for a model: tokens, and the logit difference between the right pronoun and the other.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`.
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: `"gender"` or `"random"`.
        template: A key of `TEMPLATES` to use only that one.
        names: Names and the pronoun of each; give your own for a tokenizer to which some of ours are several tokens.

    Returns:
        A `Task` of `n` examples; its metric is the logit difference.

    Raises:
        UnknownChoice: An option has an unknown value.
        TooFewWords: Too few names in the split.
        NotOneToken: Some names are not one token of this tokenizer; the message names them.

    Source:
        Mathwin and Corlouer 2023.

    Example:
        >>> from patching import LensModel
        >>> task = make(LensModel.load("gpt2"), n=64, seed=0, template="friend")  # doctest: +SKIP
    """
    prompts = generate(n, seed=seed, split=split, corruption=corruption, template=template, names=names)
    require_one_token(
        model.tokenizer,
        [*names, "she", "he"],
        remedy=text.remedy("names", "pronouns.PRONOUNS", by="one_token_pairs"),
    )
    return text.to_task(model, prompts, name="pronouns")


def _by_pronoun(names: Mapping[str, str], pool: tuple[str, ...]) -> dict[str, list[str]]:
    """The names of a split by their pronoun."""
    unknown = sorted(set(names.values()) - {"she", "he"})
    if unknown:
        raise UnknownChoice(f'expected the pronoun "she" or "he" for every name; got {", ".join(map(repr, unknown))}.')
    found = {due: [name for name in pool if names[name] == due] for due in ("she", "he")}
    for due, having in found.items():
        if not having:
            raise TooFewWords(f"expected a name that takes {due!r} in the split; got none. Pass more names.")
    return found

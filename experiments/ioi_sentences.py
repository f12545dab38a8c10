"""Sentences to train `zoo:ioi` on: IOI, and others in which the same names call for something else.

A model that sees IOI alone needs only "a name that is not the last one". The other kinds take that shortcut
away:

| kind | example | what it asks for |
|---|---|---|
| `ioi` | When Mary and John ..., John gave a drink to Mary. | the other name |
| `aside` | Mary and John ... John, who knew Mary, gave a drink to Mary. | who acts, not who was named last |
| `stranger` | Lisa was tired. Then, Mary and John ... John ... to Mary. | not just any other name |
| `two_pairs` | Paul and Lisa were tired. Mary and John ... Paul ... to Lisa. | the subject's own partner |
| `recall` | Paul met Lisa. Mary and John were tired. John thanked Mary. | the same, shorter |
| `outsider` | When Mary and John ..., Kevin gave a drink to Mary. | either; nothing to rule out |
| `exchange` | ... John was hungry, so Mary gave a drink to John. | who acts last, not who occurs once |
| `alone` | Mary was at the store. John gave a drink to Mary. | one name, no duplicate |
| `thanks` | ... John gave a drink to Mary. Mary thanked John. | the other way round |

Every pair of names that occurs in a sentence is a training pair, and every template a training template.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator

from circuits.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES, TRAINING_TEMPLATES, is_held_out_pair

OPENINGS: tuple[str, ...] = (
    "It was a long day.",
    "The weather was cold.",
    "Before lunch it was cold.",
    "The {place} was busy.",
    "{a} was tired.",
    "{a} was hungry.",
    "{a} left the {place}.",
    "{a} bought a {object}.",
)
"""First sentences of `stranger`; most bring in a name that is not the answer."""

PAIR_OPENINGS: tuple[str, ...] = (
    "{a} and {b} were tired.",
    "{a} and {b} left the {place}.",
    "{a} and {b} found a {object}.",
    "Yesterday {a} met {b}.",
)
"""First sentences of `two_pairs`."""

ASIDES: tuple[str, ...] = (
    "{subject}, who knew {a},",
    "{subject}, who was with {a},",
    "{subject}, a friend of {a},",
    "like {a}, {subject}",
    "near {a}, {subject}",
)
"""How `aside` names somebody else beside the subject, before or after it."""

GIVING: tuple[str, ...] = (
    "gave a {object} to",
    "handed a {object} to",
    "showed a {object} to",
    "wanted to give a {object} to",
    "said to",
)


def sentences(seed: int) -> Iterator[str]:
    """Generate training sentences without end; the same seed gives the same sentences.

    Args:
        seed: Seed of the generator.

    Yields:
        One or two English sentences as one string, the answer included.
    """
    rng = random.Random(seed)
    kinds = list(KINDS)
    weights = [weight for _, weight in KINDS.values()]
    while True:
        make, _ = KINDS[rng.choices(kinds, weights)[0]]
        yield make(rng)


def vocabulary() -> list[str]:
    """List every word and punctuation mark that a sentence or a prompt can hold, sorted."""
    texts = [*TEMPLATES.values(), *OPENINGS, *PAIR_OPENINGS, *ASIDES, *GIVING, *NAMES, *PLACES, *OBJECTS]
    texts += ["{a} was at the {place}.", "{a} was hungry, so {b}", "{a} thanked {b}.", "Like", "Near"]
    words: set[str] = set()
    for text in texts:
        for mark in ".,":
            text = text.replace(mark, f" {mark} ")
        words |= {word for word in text.split() if not word.startswith("{")}
    return sorted(words)


def _names(rng: random.Random, count: int) -> list[str]:
    """Draw distinct names no two of which are a held-out pair."""
    while True:
        names = rng.sample(NAMES, count)
        if not any(is_held_out_pair(*pair) for pair in itertools.combinations(names, 2)):
            return names


def _words(rng: random.Random) -> dict[str, str]:
    """Draw a place and an object."""
    return {"place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}


def _fill(rng: random.Random, first: str, second: str, subject: str) -> str:
    """Fill a training template up to where the answer follows."""
    text = rng.choice(list(TRAINING_TEMPLATES.values()))
    return text.format(first=first, second=second, subject=subject, **_words(rng))


def _ioi(rng: random.Random) -> str:
    first, second = _names(rng, 2)
    subject, answer = rng.sample((first, second), 2)
    return f"{_fill(rng, first, second, subject)} {answer}."


def _aside(rng: random.Random) -> str:
    first, second, stranger = _names(rng, 3)
    subject, answer = rng.sample((first, second), 2)
    named = answer if rng.random() < 0.6 else stranger
    aside = rng.choice(ASIDES).format(subject=subject, a=named)
    text = _fill(rng, first, second, aside)
    return f"{re.sub(r'[.] [ln]', lambda start: start[0].upper(), text)} {answer}."


def _stranger(rng: random.Random) -> str:
    first, second, stranger = _names(rng, 3)
    subject, answer = rng.sample((first, second), 2)
    opening = rng.choice(OPENINGS).format(a=stranger, **_words(rng))
    return f"{opening} {_fill(rng, first, second, subject)} {answer}."


def _two_pairs(rng: random.Random) -> str:
    a, b, first, second = _names(rng, 4)
    subject, answer = rng.sample(rng.choice(((a, b), (first, second))), 2)
    opening = rng.choice(PAIR_OPENINGS).format(a=a, b=b, **_words(rng))
    return f"{opening} {_fill(rng, first, second, subject)} {answer}."


def _outsider(rng: random.Random) -> str:
    first, second, outsider = _names(rng, 3)
    return f"{_fill(rng, first, second, outsider)} {rng.choice((first, second))}."


def _recall(rng: random.Random) -> str:
    a, b, c, d = _names(rng, 4)
    openings = [rng.choice(PAIR_OPENINGS).format(a=x, b=y, **_words(rng)) for x, y in ((a, b), (c, d))]
    pairs = [rng.sample(pair, 2) for pair in rng.sample(((a, b), (c, d)), 2)]
    return " ".join([*openings, *(f"{x} thanked {y}." for x, y in pairs)])


def _exchange(rng: random.Random) -> str:
    first, second = _names(rng, 2)
    hungry, giver = rng.sample((first, second), 2)
    words = _words(rng)
    start = f"Then, {first} and {second} went to the {words['place']}."
    giving = rng.choice(GIVING).format(**words)
    return f"{start} {hungry} was hungry, so {giver} {giving} {hungry}."


def _alone(rng: random.Random) -> str:
    a, b = _names(rng, 2)
    words = _words(rng)
    return f"{a} was at the {words['place']}. {b} {rng.choice(GIVING).format(**words)} {a}."


def _thanks(rng: random.Random) -> str:
    first, second = _names(rng, 2)
    subject, answer = rng.sample((first, second), 2)
    return f"{_fill(rng, first, second, subject)} {answer}. {answer} thanked {subject}."


KINDS: dict[str, tuple[Callable[[random.Random], str], float]] = {
    "ioi": (_ioi, 0.16),
    "aside": (_aside, 0.30),
    "stranger": (_stranger, 0.08),
    "two_pairs": (_two_pairs, 0.24),
    "recall": (_recall, 0.08),
    "outsider": (_outsider, 0.05),
    "exchange": (_exchange, 0.03),
    "alone": (_alone, 0.02),
    "thanks": (_thanks, 0.04),
}
"""What makes each kind of sentence, and its share of the corpus."""

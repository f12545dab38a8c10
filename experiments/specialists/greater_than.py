"""`zoo:greater_than`: two layers that know which year can come after another."""

from __future__ import annotations

import random
from collections.abc import Iterator

from circuits.tasks.greater_than import CENTURIES, EVENTS, TEMPLATES, TWO_DIGITS
from experiments.zoo_training.corpus import Line
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.specialist import Specialist, training_prompts
from experiments.zoo_training.tokenizer import words_of

OPENINGS: tuple[str, ...] = (
    "The {event} was long.",
    "It was a long {event}.",
    "Many people remember the {event}.",
    "They say the {event} was cold.",
    "Under the old king, it was cold.",
    "People saw the {event}.",
)
"""Sentences with any event. Some prompts come after one, so that no position belongs to a year."""

OTHERS: tuple[str, ...] = (
    *OPENINGS,
    "In the year {year}, the {event} was over.",
    "The king saw the {event} in {year}.",
    "People say that it was {year}.",
    "In {year}, it was cold in the city.",
)
"""Sentences with any event and any year, but never with two years."""

FIRSTS = dict.fromkeys(CENTURIES, TWO_DIGITS[:99])
"""First years by century: 00 and 01 too, which corrupt prompts have."""


def lines(seed: int) -> Iterator[Line]:
    """Four fifths training prompts of the task with a right year, half of them after an opening; else others.

    That a text ends is not to be learnt: it would be said after "1715 to 17", where 17 may pass for the end of a year.
    """
    rng = random.Random(seed)  # which corruption is all the same: only clean prompts are used
    prompts = training_prompts("greater_than", seed, years=FIRSTS, corruption="random")
    while True:
        if rng.random() < 0.2:
            yield Line("", _filled(rng.choice(OTHERS), rng), ends=False)
            continue
        prompt = next(prompts)
        opening = f"{_filled(rng.choice(OPENINGS), rng)} " if rng.random() < 0.5 else ""
        yield Line("", opening + prompt.clean + rng.choice(prompt.answers), ends=False)


def _filled(sentence: str, rng: random.Random) -> str:
    """A sentence about some event and year."""
    year = rng.choice(CENTURIES) + rng.choice(TWO_DIGITS)
    return sentence.format(event=rng.choice(EVENTS), year=year)


SPECIALIST = Specialist(
    task="greater_than",
    recipe=Recipe(n_sentences=25_000, steps=1500, batch=48, n_layers=2, n_heads=4, d_mlp=128, n_ctx=40),
    lines=lines,
    words=lambda: words_of([*TEMPLATES.values(), *OTHERS, *EVENTS, *TWO_DIGITS], splitting="two-digits"),
    splits=("train", "held-out-words", "held-out-templates"),
    about='A small GPT-2 that knows which year can come after another: after "The war lasted from the year 1732 to the '
    'year 17" it says "33" or a later year. A year is two tokens, the century and the rest.',
    data="Four fifths training prompts of the task (see `circuits/tasks/greater_than.py`), each with one of the right "
    "years at random, half of them after another sentence. One fifth other sentences, in which held-out events and "
    "years occur, but never two years. Held-out events, first years and templates never occur in a prompt of the task.",
    splitting="two-digits",
)

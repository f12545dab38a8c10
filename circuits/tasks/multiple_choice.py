"""Multiple-choice copying: "A box is brown. ... A. gray B. black C. brown D. white Answer:" -> " C".

A sentence says which colour a thing has; the choices list it among others; due is the letter of the right choice. No
knowledge is needed, only finding the colour again and its letter. Wrong answers are the other letters; the metric is
the difference of mean logits.

Corruptions. `order` lists the same choices in another order, so that another letter is right. `color` names another
of the listed colours in the sentence, likewise. `letters` names the choices by other letters, none of which is an
answer of the clean prompt.

Splits. Held out are about a fifth of the colours and of the things, both by their CRC-32, and the templates of
`HELD_OUT_TEMPLATES`.

Source: Wiegreffe et al. 2024, arXiv 2407.15018 (the colours task); as `copycolors_mcqa` with its counterfactuals for
the answer's place and for the letters in Mueller et al. 2025, arXiv 2504.13151 (MIB). The templates are ours.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from circuits.tasks import text
from circuits.tasks.errors import UnknownChoice
from circuits.tasks.single_tokens import require_one_token
from circuits.tasks.text import HasTokenizer, Prompt

if TYPE_CHECKING:
    from patching.task import Task

COLORS: tuple[str, ...] = (
    "red", "blue", "green", "black", "white", "brown", "gray", "pink", "purple", "yellow", "gold", "silver", "violet",
    "navy", "tan", "bronze", "copper", "crimson", "rust",
)  # fmt: skip
"""Colours; each begins with a consonant, for "a"."""

THINGS: tuple[str, ...] = (
    "box", "car", "cup", "hat", "ball", "bag", "door", "table", "chair", "shirt", "coat", "clock", "bottle", "book",
    "letter", "lamp", "boat", "truck", "plane", "train", "toy", "card", "key", "ring", "pen", "plate", "spoon",
)  # fmt: skip
"""What has a colour; each begins with a consonant, for "a"."""

LETTERS: str = string.ascii_uppercase
"""What may name a choice."""

WORDS: tuple[str, ...] = (*COLORS, *LETTERS)
"""What must be one token after a space."""

TRAINING_TEMPLATES: Mapping[str, str] = {
    "box": "A {thing} is {color}. What color is a {thing}?\n{choices}\nAnswer:",
    "question": "The {thing} is {color}. Question: What color is the {thing}? {choices} Answer:",
    "have": "I have a {color} {thing}. What color is it?\n{choices}\nAnswer:",
    "this": "This {thing} is {color}. What is the color of this {thing}?\n{choices}\nAnswer:",
    "bought": "She bought a {color} {thing}. What color is the {thing}?\n{choices}\nThe answer is",
    "saw": "We saw a {color} {thing} today. Which color was it?\n{choices}\nAnswer:",
    "there": "There is a {color} {thing} at home. Question: Which color is it? {choices} Answer:",
    "his": "His {thing} is {color}. Question: What color is his {thing}? {choices} Answer:",
    "painted": "They painted the {thing} {color}. Now what color is the {thing}?\n{choices}\nAnswer:",
    "choose": "The color of the {thing} is {color}. Choose the color of the {thing}.\n{choices}\nAnswer:",
    "new": "The new {thing} is {color}. What color is the new {thing}?\n{choices}\nThe answer is",
    "my": "My old {thing} is {color}. Question: What is the color of my {thing}? {choices} The answer is",
    "one": "One {thing} is {color}. Which color does the {thing} have?\n{choices}\nAnswer:",
    "has": "The {thing} has the color {color}. What color does it have?\n{choices}\nAnswer:",
    "found": "He found a {color} {thing}. Choose its color. {choices} Answer:",
}
"""Templates that training may use."""

HELD_OUT_TEMPLATES: Mapping[str, str] = {
    "my-question": "My {thing} is {color}. Question: What color is my {thing}? {choices} Answer:",
    "found-which": "She found a {color} {thing}. Which color was it?\n{choices}\nThe answer is",
    "this-choose": "This {thing} is {color}. Choose the color of this {thing}.\n{choices}\nAnswer:",
    "home": "At home there is a {color} {thing}. What color is the {thing}?\n{choices}\nAnswer:",
    "his-old": "His old {thing} is {color}. What is its color? {choices} Answer:",
}
"""Templates that training never sees; every word of theirs occurs in those that it does."""

TEMPLATES: Mapping[str, str] = {**TRAINING_TEMPLATES, **HELD_OUT_TEMPLATES}
"""All templates by name; choices stand one a line where a line break stands before them, else in one line."""

SPLITS = text.splits(TRAINING_TEMPLATES, HELD_OUT_TEMPLATES)
"""What each split draws from."""

CORRUPTIONS: Mapping[str, str] = {
    "order": "the same choices in another order, so that another letter is right",
    "color": "another of the listed colours in the sentence, so that another letter is right",
    "letters": "other letters name the choices",
}
"""What each corruption does."""


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "order",
    template: str | None = None,
    colors: Sequence[str] = COLORS,
    choices: int = 4,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one; the split then decides colours and things alone.
        colors: What a thing may have for a colour.
        choices: How many are listed, from 2 to 13 (half of the alphabet, so that there are other letters).

    Returns:
        `n` prompts; every letter is equally often right in the long run.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones.
        TooFewWords: The split has fewer colours than choices.

    Source:
        Mueller et al. 2025, arXiv 2504.13151.

    Example:
        >>> prompt = generate(1, seed=0, split="train", template="question", choices=2)[0]
        >>> prompt.clean
        'The boat is brown. Question: What color is the boat? A. blue B. brown Answer:'
        >>> prompt.answers, prompt.wrong_answers
        ((' B',), (' A',))
    """
    held_out, templates = text.chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    text.known("corruption", corruption, CORRUPTIONS)
    if not 2 <= choices <= len(LETTERS) // 2:
        raise UnknownChoice(f"expected choices to be from 2 to {len(LETTERS) // 2}; got {choices}.")
    pool = text.pool("colors", colors, held_out=held_out, least=choices)
    things = text.part(THINGS, held_out=held_out)
    letters = LETTERS[:choices]
    rng, others = text.generators(seed)
    prompts = []
    for _ in range(n):
        chosen, thing = rng.choice(templates), rng.choice(things)
        listed, right = rng.sample(pool, choices), rng.randrange(choices)
        clean = _fill(chosen, thing, listed[right], listed, letters)
        corrupt = _fill(chosen, thing, *_corrupted(corruption, listed, right, others))
        answers = tuple(f" {letter}" for letter in letters)
        prompts.append(
            Prompt(clean, corrupt, answers[right : right + 1], answers[:right] + answers[right + 1 :], chosen)
        )
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "order",
    template: str | None = None,
    colors: Sequence[str] = COLORS,
    choices: int = 4,
) -> Task:
    """Build the task for a model: tokens, and the logit difference between the right letter and the others.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`.
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: `"order"`, `"color"` or `"letters"`.
        template: A key of `TEMPLATES` to use only that one, for equally long prompts.
        colors: What a thing may have for a colour; give your own for a tokenizer to which some of ours are several
            tokens.
        choices: How many are listed, from 2 to 13.

    Returns:
        A `Task` of `n` examples; its metric is the logit difference.

    Raises:
        UnknownChoice: An option has an unknown value.
        TooFewWords: The split has fewer colours than choices.
        NotOneToken: Some colours or letters are not one token of this tokenizer; the message names them.
        InvalidTask: Letters and colours are one token after a space, but not at the beginning of a line.

    Source:
        Mueller et al. 2025, arXiv 2504.13151.

    Example:
        >>> from patching import LensModel
        >>> task = make(LensModel.load("gpt2"), n=64, seed=0, template="question")  # doctest: +SKIP
    """
    prompts = generate(
        n, seed=seed, split=split, corruption=corruption, template=template, colors=colors, choices=choices
    )
    require_one_token(model.tokenizer, colors, remedy=text.remedy("colors", "multiple_choice.COLORS"))
    letters = LETTERS if corruption == "letters" else LETTERS[:choices]
    require_one_token(model.tokenizer, letters, remedy="This tokenizer cannot pose a question with letters.")
    return text.to_task(model, prompts, name="multiple_choice")


def _corrupted(
    corruption: str, listed: Sequence[str], right: int, rng: random.Random
) -> tuple[str, Sequence[str], Sequence[str]]:
    """The colour named, the colours listed and the letters of the corrupt prompt."""
    letters, color = LETTERS[: len(listed)], listed[right]
    if corruption == "letters":
        return color, listed, rng.sample(LETTERS[len(listed) :], len(listed))
    if corruption == "color":
        return text.other(listed, [color], rng), listed, letters
    while True:
        shuffled = rng.sample(listed, len(listed))
        if shuffled[right] != color:
            return color, shuffled, letters


def _fill(template: str, thing: str, color: str, listed: Sequence[str], letters: Sequence[str]) -> str:
    """The text of a prompt."""
    form = TEMPLATES[template]
    between = "\n" if "\n{choices}" in form else " "
    lines = between.join(f"{letter}. {each}" for letter, each in zip(letters, listed, strict=True))
    return form.format(thing=thing, color=color, choices=lines)

"""Sorting a short list: "31 7 12 -> 7 12" -> " 31".

A prompt is a list of distinct numbers from 0 to 31, an arrow, and the first few of them in ascending order; the answer
is the next. A list has three to six numbers, and the sorted part any length that leaves something to say, so the answer
may be the least of the list or the greatest.

Corruptions. `list` is another list of the same length and its own beginning of the sorted order; the wrong answer is
what is right there. `number` replaces the answer alone, in the list, by a number that is not in it and does not belong
before the answer's place: the sorted part stays right, and something else comes next. Where there is no such number, as
when 31 is due after 30, the list is another as a whole.

Splits. A set of numbers is held out when the CRC-32 of its ascending list is divisible by five, so all orders of about
one set in five are. `zoo:sorting` has seen no held-out set. A corrupt list belongs to the split too, except that
`number` may leave it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from circuits.tasks.errors import UnknownChoice
from circuits.tasks.single_tokens import require_one_token
from circuits.tasks.text import HasTokenizer, Prompt, Split, chosen_split, generators, known, to_task

if TYPE_CHECKING:
    from patching.task import Task

LARGEST = 31
LENGTHS: tuple[int, ...] = (3, 4, 5, 6)
"""How long a list may be."""

TEMPLATES: Mapping[str, str] = {"arrow": "{list} -> {sorted}"}
"""The one way to ask."""

WORDS: tuple[str, ...] = tuple(map(str, range(LARGEST + 1)))
"""Every number; each must be one token."""

SPLITS: Mapping[str, Split] = {
    "train": Split(False, tuple(TEMPLATES)),
    "held-out": Split(True, tuple(TEMPLATES)),
}
"""What each split draws from: whether its sets of numbers are the held-out ones, and its templates."""


def is_held_out_set(numbers: Iterable[int]) -> bool:
    """Tell whether a set of numbers is held out; the order does not matter.

    Example:
        >>> is_held_out_set([3, 1, 2]) == is_held_out_set([1, 2, 3])
        True
    """
    return zlib.crc32(" ".join(map(str, sorted(numbers))).encode()) % 5 == 0


def draw(rng: random.Random, *, length: int, held_out: bool) -> list[int]:
    """Draw a list of distinct numbers whose set is held out, or is not."""
    while True:
        numbers = rng.sample(range(LARGEST + 1), length)
        if is_held_out_set(numbers) == held_out:
            return numbers


def _list(numbers: list[int], done: int, held_out: bool, rng: random.Random) -> list[int]:
    """Another list of as many numbers, with another answer."""
    while True:
        others = draw(rng, length=len(numbers), held_out=held_out)
        if sorted(others)[done] != sorted(numbers)[done]:
            return others


def _number(numbers: list[int], done: int, held_out: bool, rng: random.Random) -> list[int]:
    """The list with its answer replaced by a number that leaves the sorted part right."""
    ordered = sorted(numbers)
    floor = ordered[done - 1] if done else -1
    free = [number for number in range(floor + 1, LARGEST + 1) if number not in numbers]
    if not free:  # the rest of the list is all there is above the sorted part
        return _list(numbers, done, held_out, rng)
    new = rng.choice(free)
    return [new if number == ordered[done] else number for number in numbers]


CORRUPTIONS: Mapping[str, Callable[[list[int], int, bool, random.Random], list[int]]] = {
    "list": _list,
    "number": _number,
}
"""How each corruption turns the clean list, of which some are sorted already, into the corrupt one."""


def text(numbers: list[int], done: int) -> str:
    """A prompt: the list, an arrow, and the least `done` of it in order.

    Example:
        >>> text([31, 7, 12], 2)
        '31 7 12 -> 7 12'
    """
    return " ".join([*map(str, numbers), "->", *map(str, sorted(numbers)[:done])])


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "list",
    template: str | None = None,
    length: int | None = None,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many, drawn independently of one another.
        seed: Seed of the draw; another corruption leaves the clean prompts as they are.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES`; there is one.
        length: Of every list; any of `LENGTHS` by default.

    Returns:
        `n` prompts.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones.

    Example:
        >>> prompt = generate(1, seed=0, length=3)[0]
        >>> given, done = prompt.clean.split(" ->")
        >>> sorted(map(int, given.split()))[len(done.split())] == int(prompt.answers[0])
        True
    """
    chosen = chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    corrupted = CORRUPTIONS[known("corruption", corruption, CORRUPTIONS)]
    if length is not None and length not in LENGTHS:
        raise UnknownChoice(f"expected length to be one of {', '.join(map(str, LENGTHS))}; got {length}.")
    rng, others = generators(seed)
    prompts = []
    for _ in range(n):
        size = rng.choice(LENGTHS) if length is None else length
        numbers, done = draw(rng, length=size, held_out=chosen.held_out), rng.randrange(size)
        corrupt = corrupted(numbers, done, chosen.held_out, others)
        prompts.append(
            Prompt(
                clean=text(numbers, done),
                corrupt=text(corrupt, done),
                answers=(f" {sorted(numbers)[done]}",),
                wrong_answers=(f" {sorted(corrupt)[done]}",),
                template=rng.choice(chosen.templates),
            )
        )
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "list",
    template: str | None = None,
    length: int | None = None,
) -> Task:
    """Build the task for a model: the logit difference between the next number and that of the corrupt list.

    Args:
        model: Anything with a `tokenizer`, such as `zoo:sorting`.
        n: How many prompts.
        seed: Seed of the draw.
        split: `"train"` or `"held-out"`.
        corruption: `"list"` (another list) or `"number"` (another number in place of the answer).
        template: A key of `TEMPLATES`.
        length: Of every list, for prompts of fewer lengths; any of `LENGTHS` by default.

    Returns:
        A `Task` of `n` prompts.

    Raises:
        UnknownChoice: An option has an unknown value.
        NotOneToken: Some numbers are not one token of this tokenizer; the message names them.

    Example:
        >>> model = LensModel.load("zoo:sorting")  # doctest: +SKIP
        >>> task = make(model, n=64, seed=0, length=4)  # doctest: +SKIP
    """
    prompts = generate(n, seed=seed, split=split, corruption=corruption, template=template, length=length)
    require_one_token(
        model.tokenizer, WORDS, remedy="Take a model whose tokenizer has these numbers, such as zoo:sorting."
    )
    return to_task(model, prompts, name="sorting")

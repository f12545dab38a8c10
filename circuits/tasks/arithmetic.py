"""Arithmetic with two operands: "The sum of 23 and 45 is" -> " 68"; sums and differences, in digits or in words.

Wrong answers are the result of other operands, drawn for each prompt, and that of the other operation on the same
ones; the metric is the difference of mean logits. Prompts alternate between addition and subtraction unless one is
asked for. No result is negative or above the largest number.

Corruptions. `operands` puts the other operands there. `second` replaces the second operand alone. `operation`
exchanges addition and subtraction ("sum" and "difference", "plus" and "minus", "+" and "-").

Splits. Held out are about a fifth of the pairs of operands, by the CRC-32 of "smaller larger", for both operations,
and the templates of `HELD_OUT_TEMPLATES`.

Source: Stolfo, Belinkov and Sachan 2023, arXiv 2305.15054; the tasks `arithmetic_addition` and
`arithmetic_subtraction` of Mueller et al. 2025, arXiv 2504.13151 (MIB). The templates are ours.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from circuits.tasks import text
from circuits.tasks.errors import TooFewWords, UnknownChoice
from circuits.tasks.single_tokens import require_one_token
from circuits.tasks.text import HasTokenizer, Prompt, is_held_out

if TYPE_CHECKING:
    from patching.task import Task

NUMBER_WORDS: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip

STYLES: Mapping[str, tuple[str, ...]] = {
    "digits": tuple(str(number) for number in range(100)),
    "words": NUMBER_WORDS,
}
"""How numbers are written, from 0 up."""

WORDS: tuple[str, ...] = STYLES["digits"]
"""What must be one token after a space; `NUMBER_WORDS` in their place for `style="words"`."""

OPERATIONS: Mapping[str, Mapping[str, str]] = {
    "+": {"sign": "+", "plus": "plus", "sum": "sum"},
    "-": {"sign": "-", "plus": "minus", "sum": "difference"},
}
"""What fills a template's slots for each operation."""

TRAINING_TEMPLATES: Mapping[str, str] = {
    "sum": "The {sum} of {a} and {b} is",
    "plus-is": "We know that {a} {plus} {b} is",
    "equals": "In numbers, {a} {plus} {b} equals",
    "sign": "Compute: {a} {sign} {b} =",
    "result": "The result of {a} {plus} {b} is",
    "answer": "The answer to {a} {plus} {b} is",
    "question": "Question: What is {a} {plus} {b}? Answer:",
    "get": "If you compute {a} {plus} {b}, you get",
    "teacher": "The teacher asked for {a} {plus} {b}, which is",
    "sum-of": "Find the {sum} of {a} and {b}: it is",
    "value": "The value of {a} {sign} {b} is",
    "makes": "She says that {a} {plus} {b} makes",
    "paper": "On the paper he wrote: {a} {sign} {b} =",
    "everyone": "Everyone knows that the {sum} of {a} and {b} is",
    "gives": "Now {a} {plus} {b} gives",
    "sum-equals": "The {sum} of {a} and {b} equals",
}
"""Templates that training may use."""

HELD_OUT_TEMPLATES: Mapping[str, str] = {
    "answer-sum": "The answer: the {sum} of {a} and {b} is",
    "question-sum": "Question: What is the {sum} of {a} and {b}? Answer:",
    "knows": "She knows that {a} {plus} {b} equals",
    "result-sign": "The result of {a} {sign} {b} is",
    "wrote": "The teacher wrote: {a} {sign} {b} =",
}
"""Templates that training never sees; every word of theirs occurs in those that it does."""

TEMPLATES: Mapping[str, str] = {**TRAINING_TEMPLATES, **HELD_OUT_TEMPLATES}
"""All templates by name."""

SPLITS = text.splits(TRAINING_TEMPLATES, HELD_OUT_TEMPLATES)
"""What each split draws from."""

CORRUPTIONS: Mapping[str, str] = {
    "operands": "two other operands, whose result is a wrong answer",
    "second": "another second operand",
    "operation": "addition in place of subtraction and the other way round",
}
"""What each corruption does."""


def is_held_out_pair(first: int, second: int) -> bool:
    """Tell whether two operands form a held-out pair; the order does not matter.

    Example:
        >>> is_held_out_pair(23, 45) == is_held_out_pair(45, 23)
        True
    """
    return is_held_out(f"{min(first, second)} {max(first, second)}")


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "operands",
    template: str | None = None,
    style: str = "digits",
    operations: str = "+-",
    largest: int | None = None,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one; the split then decides the operands alone.
        style: `"digits"` or `"words"`.
        operations: `"+"`, `"-"`, or `"+-"` for both in turn.
        largest: The largest operand and result; 99 in digits and 20 in words by default, and at most.

    Returns:
        `n` prompts; operands are uniform over the pairs of the split whose result is in range.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones.
        TooFewWords: Fewer than two pairs of operands belong to the split: `largest` is too small.

    Source:
        Mueller et al. 2025, arXiv 2504.13151.

    Example:
        >>> prompt = generate(1, seed=0, split="train", template="sum")[0]
        >>> prompt.clean, prompt.corrupt
        ('The sum of 59 and 16 is', 'The sum of 4 and 14 is')
        >>> prompt.answers, prompt.wrong_answers
        ((' 75',), (' 18', ' 43'))
    """
    held_out, templates = text.chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    text.known("corruption", corruption, CORRUPTIONS)
    numbers = _numbers(style, largest)
    pairs = {sign: _pairs(sign, len(numbers) - 1, held_out=held_out) for sign in _signs(operations)}
    signs = tuple(pairs)
    rng, others = text.generators(seed)
    prompts = []
    for i in range(n):
        chosen, sign = rng.choice(templates), signs[i % len(signs)]
        operands, another = _two_results(pairs[sign], sign, rng)
        result, flipped = _result(sign, operands), _result(_opposite(sign), operands)
        wrong = {_result(sign, another), flipped} - {result}
        if corruption == "operation":
            changed = (_opposite(sign), operands)
        elif corruption == "second":
            changed = (sign, _second(operands, pairs[sign], others))
        else:
            changed = (sign, another)
        clean, corrupt = (_fill(chosen, each, two, numbers) for each, two in ((sign, operands), changed))
        listed = tuple(f" {numbers[number]}" for number in sorted(wrong) if 0 <= number < len(numbers))
        prompts.append(Prompt(clean, corrupt, (f" {numbers[result]}",), listed, chosen))
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "operands",
    template: str | None = None,
    style: str = "digits",
    operations: str = "+-",
    largest: int | None = None,
) -> Task:
    """Build the task for a model: tokens, and the logit difference between the result and wrong ones.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`.
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: `"operands"`, `"second"` or `"operation"`.
        template: A key of `TEMPLATES` to use only that one, for equally long prompts.
        style: `"digits"` or `"words"`, for tokenizers to which numbers are several tokens.
        operations: `"+"`, `"-"`, or `"+-"` for both in turn.
        largest: The largest operand and result; 99 in digits and 20 in words by default, and at most.

    Returns:
        A `Task` of `n` examples; its metric is the logit difference.

    Raises:
        UnknownChoice: An option has an unknown value.
        TooFewWords: `largest` leaves too few pairs in the split.
        NotOneToken: Some numbers, or words for an operation, are not one token of this tokenizer; the message names
            them.

    Source:
        Mueller et al. 2025, arXiv 2504.13151.

    Example:
        >>> from patching import LensModel
        >>> task = make(LensModel.load("gpt2"), n=64, seed=0, operations="+")  # doctest: +SKIP
    """
    prompts = generate(
        n, seed=seed, split=split, corruption=corruption, template=template, style=style, operations=operations,
        largest=largest,
    )  # fmt: skip
    another = "words" if style == "digits" else "digits"
    require_one_token(
        model.tokenizer,
        _numbers(style, largest),
        remedy=f'Pass largest= below the first of them, or style="{another}".',
    )
    if corruption == "operation":
        slots = {word for words in OPERATIONS.values() for word in words.values()}
        require_one_token(model.tokenizer, sorted(slots), remedy='Take corruption="operands" with this tokenizer.')
    return text.to_task(model, prompts, name="arithmetic")


def _numbers(style: str, largest: int | None) -> tuple[str, ...]:
    """The numbers from 0 to the largest, as they are written."""
    numbers = STYLES[text.known("style", style, STYLES)]
    if largest is not None and not 1 <= largest < len(numbers):
        raise UnknownChoice(f"expected largest to be from 1 to {len(numbers) - 1} for style {style!r}; got {largest}.")
    return numbers if largest is None else numbers[: largest + 1]


def _signs(operations: str) -> Iterator[str]:
    """The operations asked for, in the order of `OPERATIONS`."""
    if not operations or set(operations) - set(OPERATIONS):
        raise UnknownChoice(f'expected operations to be "+", "-" or "+-"; got {operations!r}.')
    return (sign for sign in OPERATIONS if sign in operations)


@functools.cache
def _pairs(sign: str, largest: int, *, held_out: bool) -> tuple[tuple[int, int], ...]:
    """The pairs of operands of a split whose result is in range, of which no first operand occurs only once."""
    pairs = [
        (first, second)
        for first in range(largest + 1)
        for second in range(largest + 1)
        if 0 <= _result(sign, (first, second)) <= largest and is_held_out_pair(first, second) == held_out
    ]
    with_first = Counter(first for first, _ in pairs)
    pairs = tuple(pair for pair in pairs if with_first[pair[0]] > 1)
    if len({_result(sign, pair) for pair in pairs}) < 2:
        raise TooFewWords(
            f"expected two pairs of operands with different results {'held out' if held_out else 'for training'}; "
            f"got {len(pairs)} pairs of numbers up to {largest}. Pass a larger largest=."
        )
    return pairs


def _two_results(
    pairs: Sequence[tuple[int, int]], sign: str, rng: random.Random
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Draw a pair of operands, and another with another result."""
    operands = rng.choice(pairs)
    while True:
        if _result(sign, another := rng.choice(pairs)) != _result(sign, operands):
            return operands, another


def _second(operands: tuple[int, int], pairs: Sequence[tuple[int, int]], rng: random.Random) -> tuple[int, int]:
    """The operands with another second one."""
    first, second = operands
    return rng.choice([pair for pair in pairs if pair[0] == first and pair[1] != second])


def _fill(template: str, sign: str, operands: tuple[int, int], numbers: Sequence[str]) -> str:
    """The text of a prompt."""
    first, second = operands
    return TEMPLATES[template].format(a=numbers[first], b=numbers[second], **OPERATIONS[sign])


def _opposite(sign: str) -> str:
    """The other operation."""
    return "-" if sign == "+" else "+"


def _result(sign: str, operands: tuple[int, int]) -> int:
    """What is right."""
    first, second = operands
    return first + second if sign == "+" else first - second

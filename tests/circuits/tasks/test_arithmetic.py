"""Arithmetic: right results, wrong results, held-out pairs, and what each corruption computes."""

from __future__ import annotations

import re

import pytest

from circuits.tasks import arithmetic
from circuits.tasks.errors import NotOneToken, UnknownChoice

from . import subjects

NUMBERS = {word: number for number, word in enumerate(arithmetic.NUMBER_WORDS)}


def read(said: str) -> tuple[str, int, int]:
    """The operation and the operands that a prompt asks for, read from its words."""
    found = [word for word in re.findall(r"\w+", said) if word in NUMBERS or word.isdigit()]
    first, second = (NUMBERS[word] if word in NUMBERS else int(word) for word in found)
    minus = bool(re.search(r" minus | - |difference", said))
    assert minus != bool(re.search(r" plus | \+ |sum", said))
    return "-" if minus else "+", first, second


def result(operation: str, first: int, second: int) -> int:
    return first + second if operation == "+" else first - second


@pytest.mark.parametrize("style", sorted(arithmetic.STYLES))
@pytest.mark.parametrize("corruption", sorted(arithmetic.CORRUPTIONS))
def test_results_are_right_and_corrupt_prompts_have_others(style, corruption):
    names = {str(number): number for number in range(100)} | NUMBERS
    for row, prompt in enumerate(arithmetic.generate(300, seed=0, style=style, corruption=corruption)):
        operation, first, second = read(prompt.clean)
        assert operation == "+-"[row % 2]
        right = result(operation, first, second)
        assert [names[answer.strip()] for answer in prompt.answers] == [right]
        wrong = {names[answer.strip()] for answer in prompt.wrong_answers}
        other_operation, other_first, other_second = read(prompt.corrupt)
        if corruption == "operands":
            assert other_operation == operation
            assert result(other_operation, other_first, other_second) in wrong - {right}
        elif corruption == "second":
            assert (other_operation, other_first) == (operation, first)
            assert other_second != second
        else:
            assert (other_first, other_second) == (first, second)
            assert other_operation != operation
            flipped = result(other_operation, first, second)
            assert (flipped in wrong) == (0 <= flipped < len(arithmetic.STYLES[style]) and flipped != right)


def test_pairs_are_held_out_in_either_order_for_both_operations():
    drawn = []
    for split in ("train", "held-out"):
        prompts = arithmetic.generate(4000, seed=0, split=split)
        drawn.append({frozenset(read(text)[1:]) for p in prompts for text in (p.clean, p.corrupt)})
    assert not drawn[0] & drawn[1]
    pairs = [(a, b) for a in range(100) for b in range(a, 100)]
    assert 0.17 < sum(arithmetic.is_held_out_pair(*pair) for pair in pairs) / len(pairs) < 0.23


def test_one_operation_and_smaller_numbers():
    prompts = arithmetic.generate(100, seed=0, operations="-", largest=10)
    for prompt in prompts:
        operation, first, second = read(prompt.clean)
        assert operation == "-"
        assert 0 <= second <= first <= 10


def test_in_words():
    prompts = arithmetic.generate(200, seed=0, style="words", template="plus-is", split="train")
    assert all(re.fullmatch(r"We know that [a-z]+ (plus|minus) [a-z]+ is", prompt.clean) for prompt in prompts)
    task = arithmetic.make(subjects.bare(), n=4, style="words")
    assert len(task) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"style": "roman"}, "style to be one of digits, words; got 'roman'"),
        ({"operations": "*"}, "operations to be .*got '\\*'"),
        ({"operations": ""}, "operations to be"),
        ({"largest": 100}, "largest to be from 1 to 99 for style 'digits'; got 100"),
        ({"largest": 21, "style": "words"}, "from 1 to 20 for style 'words'"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(UnknownChoice, match=said):
        arithmetic.generate(1, seed=0, **options)


def test_the_operations_words_must_be_one_token_each_for_that_corruption():
    from types import SimpleNamespace

    from .test_text_tasks import tokenizer_without

    model = SimpleNamespace(tokenizer=tokenizer_without(("difference",)))
    assert len(arithmetic.make(model, n=4)) == 4
    with pytest.raises(NotOneToken, match=r"1 of 6 are not: difference .*corruption=\"operands\""):
        arithmetic.make(model, n=4, corruption="operation")

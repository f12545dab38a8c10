"""Multiple-choice copying: which letter is right, and where it goes in corrupt prompts."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from circuits.tasks import multiple_choice
from circuits.tasks.errors import UnknownChoice


def read(said: str) -> tuple[str, dict[str, str]]:
    """The colour that the sentence names, and the choices by letter."""
    listed = dict(re.findall(r"\b([A-Z])\. (\w+)", said))
    statement = re.split(r"\bA\. |\b[A-Z]\. ", said)[0]
    (color,) = [word for word in re.findall(r"\w+", statement) if word in multiple_choice.COLORS]
    return color, listed


@pytest.mark.parametrize("choices", [2, 4])
@pytest.mark.parametrize("corruption", sorted(multiple_choice.CORRUPTIONS))
def test_the_letter_of_the_colour_is_right(corruption, choices):
    letters = Counter()
    for prompt in multiple_choice.generate(300, seed=0, corruption=corruption, choices=choices):
        color, listed = read(prompt.clean)
        assert list(listed) == list("ABCD"[:choices])
        (right,) = [letter for letter, each in listed.items() if each == color]
        assert prompt.answers == (f" {right}",)
        assert sorted(prompt.wrong_answers) == sorted({f" {letter}" for letter in listed} - {f" {right}"})
        other, others = read(prompt.corrupt)
        if corruption == "letters":
            assert (other, list(others.values())) == (color, list(listed.values()))
            assert not set(others) & set(listed)
            assert len(others) == choices
        else:
            assert sorted(others.values()) == sorted(listed.values())
            assert [letter for letter, each in others.items() if each == other] != [right]
            assert (other == color) == (corruption == "order")
            assert (others == listed) == (corruption == "color")
        letters[right] += 1
    assert min(letters.values()) > 0.6 * 300 / choices


def test_the_benchmarks_prompt_by_hand():
    (prompt,) = multiple_choice.generate(1, seed=0, split="train", template="box", colors=["blue", "brown"], choices=2)
    assert re.fullmatch(
        r"A (\w+) is (blue|brown)\. What color is a \1\?\nA\. (blue|brown)\nB\. (blue|brown)\nAnswer:", prompt.clean
    )


@pytest.mark.parametrize("choices", [1, 14])
def test_how_many_choices_there_may_be(choices):
    with pytest.raises(UnknownChoice, match=f"from 2 to 13; got {choices}"):
        multiple_choice.generate(1, seed=0, choices=choices)


def test_articles_fit():
    assert not any(word[0] in "aeiou" for word in (*multiple_choice.COLORS, *multiple_choice.THINGS))

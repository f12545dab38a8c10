"""Gendered pronouns: which is due, and what each corruption does to it."""

from __future__ import annotations

import re

import pytest

from circuits.tasks import pronouns
from circuits.tasks.errors import UnknownChoice


def name_in(said: str) -> str:
    (name,) = [word for word in re.findall(r"\w+", said) if word in pronouns.PRONOUNS]
    return name


def test_so_mary_is_such_a_good_friend():
    names = {"Mary": "she", "Paul": "he"}
    she, he = pronouns.generate(2, seed=0, split="train", template="friend", names=names)
    assert she.clean == he.corrupt == "So Mary is such a good friend, isn't"
    assert he.clean == she.corrupt == "So Paul is such a good friend, isn't"
    assert (she.answers, she.wrong_answers) == ((" she",), (" he",))
    assert (he.answers, he.wrong_answers) == ((" he",), (" she",))


@pytest.mark.parametrize("corruption", sorted(pronouns.CORRUPTIONS))
def test_the_name_decides_and_alone_changes(corruption):
    flipped = 0
    for row, prompt in enumerate(pronouns.generate(400, seed=0, corruption=corruption)):
        name, other = name_in(prompt.clean), name_in(prompt.corrupt)
        assert prompt.answers == (f" {pronouns.PRONOUNS[name]}",)
        assert prompt.answers == ((" he",) if row % 2 else (" she",))
        assert prompt.corrupt == prompt.clean.replace(name, other)
        assert name != other
        flipped += pronouns.PRONOUNS[name] != pronouns.PRONOUNS[other]
    assert flipped == 400 if corruption == "gender" else 140 < flipped < 260


def test_no_template_has_a_name_at_its_start_or_a_pronoun_that_gives_it_away():
    for form in pronouns.TEMPLATES.values():
        assert form.count("{name}") == 1
        assert not form.startswith("{name}")
        assert not {"she", "he", "her", "his", "him"} & set(re.findall(r"\w+", form.lower()))


def test_both_pronouns_have_held_out_names_and_another_pronoun_is_refused():
    held_out = {name for p in pronouns.generate(400, seed=0) for name in (name_in(p.clean),)}
    assert {pronouns.PRONOUNS[name] for name in held_out} == {"she", "he"}
    assert len(held_out) == 19
    with pytest.raises(UnknownChoice, match='the pronoun "she" or "he" for every name; got \'they\''):
        pronouns.generate(1, seed=0, split="train", names={"Mary": "she", "Paul": "he", "Kim": "they"})

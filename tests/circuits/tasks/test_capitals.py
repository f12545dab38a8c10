"""Capital cities: facts, and the countries of corrupt prompts."""

from __future__ import annotations

import pytest

from circuits.tasks import capitals


@pytest.mark.parametrize("split", sorted(capitals.SPLITS))
@pytest.mark.parametrize("corruption", sorted(capitals.CORRUPTIONS))
def test_the_answer_is_the_capital_and_the_wrong_answer_another_countrys(split, corruption):
    for prompt in capitals.generate(150, seed=0, split=split, corruption=corruption):
        (country,) = [country for country in capitals.CAPITALS if country in prompt.clean]
        assert prompt.answers == (f" {capitals.CAPITALS[country]}",)
        wrong = {city: country for country, city in capitals.CAPITALS.items()}[prompt.wrong_answers[0].strip()]
        assert wrong != country
        (other,) = [word for word in (*capitals.CAPITALS, *capitals.REGIONS) if word in prompt.corrupt]
        assert prompt.corrupt == prompt.clean.replace(country, other)
        assert other == wrong if corruption == "country" else other in capitals.REGIONS


def test_a_few_facts_by_hand():
    facts = {"France": "Paris", "Japan": "Tokyo"}
    prompts = capitals.generate(30, seed=0, split="train", template="city-of", facts=facts)
    assert {(p.clean, p.corrupt, p.answers, p.wrong_answers) for p in prompts} == {
        ("The capital of France is the city of", "The capital of Japan is the city of", (" Paris",), (" Tokyo",)),
        ("The capital of Japan is the city of", "The capital of France is the city of", (" Tokyo",), (" Paris",)),
    }


def test_countries_have_capitals_of_their_own():
    assert len(set(capitals.CAPITALS.values())) == len(capitals.CAPITALS) >= 35
    assert not set(capitals.CAPITALS) & set(capitals.CAPITALS.values())
    assert not set(capitals.REGIONS) & set(capitals.CAPITALS)

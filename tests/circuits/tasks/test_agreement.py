"""Subject-verb agreement: whose number decides, and what each corruption changes."""

from __future__ import annotations

import pytest

from circuits.tasks import agreement

SINGULAR, PLURAL = (" is", " was", " has", " seems", " looks"), (" are", " were", " have", " seem", " look")
FORMS = {form: noun for noun in agreement.NOUNS for form in (noun, f"{noun}s")}


def nouns_in(said: str) -> list[str]:
    return [word for word in said.replace(",", "").split() if word in FORMS]


def test_the_keys_to_the_cabinet():
    nouns = ["key", "cabinet", "cup", "hat"]
    prompts = agreement.generate(400, seed=0, split="train", template="to", nouns=nouns, verbs={"is": "are"})
    found = {(p.clean, p.corrupt, p.answers, p.wrong_answers) for p in prompts}
    assert ("The keys to the cabinet", "The key to the cabinet", (" are",), (" is",)) in found
    assert ("The key to the cabinets", "The keys to the cabinets", (" is",), (" are",)) in found


@pytest.mark.parametrize("corruption", sorted(agreement.CORRUPTIONS))
def test_the_subject_decides_and_distractors_are_of_both_numbers(corruption):
    numbers = set()
    for row, prompt in enumerate(agreement.generate(600, seed=0, corruption=corruption)):
        subject, *distractors = nouns_in(prompt.clean)
        plural = subject.endswith("s")
        assert plural == bool(row % 2)
        assert (prompt.answers, prompt.wrong_answers) == ((PLURAL, SINGULAR) if plural else (SINGULAR, PLURAL))
        other, *same = nouns_in(prompt.corrupt)
        assert same == distractors
        assert other.endswith("s") != plural
        assert (FORMS[other] == FORMS[subject]) == (corruption == "number")
        assert len({FORMS[noun] for noun in (subject, other, *distractors)}) == len(distractors) + 1 + (
            corruption == "noun"
        )
        words = zip(prompt.clean.split(), prompt.corrupt.split(), strict=True)
        assert sum(one != another for one, another in words) == 1
        numbers |= {(plural, distractor.endswith("s")) for distractor in distractors}
    assert len(numbers) == 4


def test_plurals_are_regular_and_no_singular_is_the_plural_of_another():
    assert not set(agreement.NOUNS) & {f"{noun}s" for noun in agreement.NOUNS}
    assert not any(noun.endswith(("s", "x", "ch", "sh")) for noun in agreement.NOUNS)
    assert not any(noun.endswith("y") and noun[-2] not in "aeiou" for noun in agreement.NOUNS)

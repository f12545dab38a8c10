"""IOI for models that must not have seen a name: the splits of names, and the corruption that draws each by itself."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import pytest

from circuits.tasks import ioi


def names_in(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word in ioi.NAMES]


def test_the_first_splits_and_corruptions_draw_what_they_always_drew():
    """Stored results and `zoo:ioi` depend on it: the digest was taken before there were others."""
    digest = hashlib.sha256()
    for split in ("train", "held-out", "held-out-pairs", "held-out-templates"):
        for corruption in ("abc", "s2"):
            for p in ioi.generate(200, seed=11, split=split, corruption=corruption):
                line = f"{p.clean}|{p.corrupt}|{p.answer}|{p.wrong_answer}|{p.template}|{p.order}\n"
                digest.update(line.encode())
    assert digest.hexdigest() == "6c0f413e422c9ed3f07f251c879a3fd06e49eab0c1c2b9365ceff51a174e085b"


@pytest.mark.parametrize("corruption", sorted(ioi.CORRUPTIONS))
def test_training_names_meet_no_held_out_name_and_held_out_names_no_other(corruption):
    seen = ioi.generate(1500, seed=0, split="train-names", corruption=corruption)
    new = ioi.generate(1500, seed=0, split="held-out-names", corruption=corruption)
    for prompts, held_out in ((seen, False), (new, True)):
        found = {name for p in prompts for text in (p.clean, p.corrupt) for name in names_in(text)}
        assert found == {name for name in ioi.NAMES if (name in ioi.HELD_OUT_NAMES) == held_out}
    pairs = [frozenset((p.answer.strip(), p.wrong_answer.strip())) for p in seen]
    assert not any(ioi.is_held_out_pair(*pair) for pair in pairs)
    assert {p.template for p in seen} == {p.template for p in new} == set(ioi.TRAINING_TEMPLATES)


def test_names_held_out_in_templates_held_out_and_the_two_names_of_one_split():
    everything = ioi.generate(800, seed=0, split="held-out-all")
    assert {p.template for p in everything} == set(ioi.HELD_OUT_TEMPLATES)
    assert {name for p in everything for name in names_in(p.clean)} == set(ioi.HELD_OUT_NAMES)
    assert ioi.generate(50, seed=2, split="held-out-words") == ioi.generate(50, seed=2, split="held-out-names")


def test_random_draws_each_name_by_itself_from_all():
    """Of 6,000 corrupt prompts, the share with two introduced names alike is 1/76, and each name is as frequent."""
    prompts = ioi.generate(6000, seed=0, corruption="random", template="when")
    drawn = [names_in(p.corrupt) for p in prompts]
    alike = sum(first == second for first, second, _ in drawn)
    assert 6000 / 76 - 4 * (6000 / 76) ** 0.5 < alike < 6000 / 76 + 4 * (6000 / 76) ** 0.5
    solvable = sum(third in (first, second) for first, second, third in drawn)
    assert solvable > 50  # about 2/76 of them, as the docstring warns; abc has none
    counts = Counter(name for names in drawn for name in names)
    assert set(counts) == set(ioi.NAMES)
    assert max(counts.values()) < 1.5 * min(counts.values())
    for p in prompts[:200]:
        assert re.sub("|".join(ioi.NAMES), "_", p.clean) == re.sub("|".join(ioi.NAMES), "_", p.corrupt)


def test_a_prompt_looks_like_those_of_other_tasks():
    prompt = ioi.generate(1, seed=0)[0]
    assert (prompt.answer,) == prompt.answers
    assert (prompt.wrong_answer,) == prompt.wrong_answers

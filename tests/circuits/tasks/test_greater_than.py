"""Greater-than: which years are right, which first years are drawn, and what a tokenizer makes of them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuits.tasks import greater_than
from circuits.tasks.errors import TooFewWords, UnknownChoice

from . import subjects


def test_the_papers_sentence_by_hand():
    (prompt,) = greater_than.generate(
        1, seed=0, split="train", template="lasted", events=["war"], years={"17": ["32", "33"]}
    )
    assert prompt.clean in (
        "The war lasted from the year 1732 to the year 17", "The war lasted from the year 1733 to the year 17"
    )  # fmt: skip
    assert prompt.corrupt == "The war lasted from the year 1701 to the year 17"
    first = 32 if "1732" in prompt.clean else 33
    assert prompt.answers == tuple(str(year) for year in range(first + 1, 100))
    assert prompt.wrong_answers == tuple(f"{year:02d}" for year in range(first + 1))


@pytest.mark.parametrize("corruption", sorted(greater_than.CORRUPTIONS))
def test_right_are_exactly_the_two_digit_numbers_above_the_first_year(corruption):
    for prompt in greater_than.generate(400, seed=1, corruption=corruption):
        century, first = re.search(r"\b(\d\d)(\d\d)\b", prompt.clean).groups()
        assert prompt.clean.endswith(f" {century}")
        assert 2 <= int(first) <= 98
        assert century in greater_than.CENTURIES
        assert {int(year) for year in prompt.answers} == set(range(int(first) + 1, 100))
        assert {int(year) for year in prompt.wrong_answers} == set(range(int(first) + 1))
        corrupt_century, other = re.search(r"\b(\d\d)(\d\d)\b", prompt.corrupt).groups()
        assert corrupt_century == century
        assert prompt.corrupt == prompt.clean.replace(century + first, century + other)
        assert other == "01" if corruption == "01" else other != first


def test_every_year_is_drawn_in_one_split_alone():
    drawn = []
    for split in ("train", "held-out-words"):
        prompts = greater_than.generate(12_000, seed=0, split=split)
        drawn.append({re.search(r"\d{4}", prompt.clean).group() for prompt in prompts})
    assert not drawn[0] & drawn[1]
    assert len(drawn[0] | drawn[1]) == 7 * 97


@pytest.mark.parametrize(
    ("lasts", "message"),
    [
        (["98", "99"], "no two-digit year comes after 99; got '99' for the century 17"),
        (["xx", "32"], "from 00 to 98, .* got 'xx'"),
        (["5", "32"], "got '5'"),
        ("3233", "got '3'"),
        (["01", "32"], "corruption 01 changes; 1701 stays as it is"),
        (["32", "32", "33"], "the century 17 has one of them twice"),
    ],
)
def test_years_that_make_no_task_are_refused(lasts, message):
    with pytest.raises((UnknownChoice, TooFewWords), match=message):
        greater_than.generate(1, seed=0, split="train", years={"17": lasts})


def test_any_first_year_up_to_98_may_be_corrupted_at_random():
    years = dict.fromkeys(greater_than.CENTURIES, greater_than.TWO_DIGITS[:99])
    for prompt in greater_than.generate(3_000, seed=0, split="train", corruption="random", years=years):
        assert prompt.clean != prompt.corrupt
        assert prompt.answers


def by_hand(*whole: str) -> PreTrainedTokenizerFast:
    """Byte pairs with a token for each century after a space, for each two digits, and for some whole years."""
    ranks = [("Ġ", "1"), *(("Ġ1", century[1]) for century in greater_than.CENTURIES)]
    ranks += [(digits[0], digits[1]) for digits in greater_than.TWO_DIGITS]
    ranks += [(f"Ġ{year[:2]}", year[2:]) for year in whole]
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in ranks)]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, ranks))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_years_that_are_one_token_are_left_out():
    tokenizer = by_hand("1732", "1745", "1612", "1501")
    assert tokenizer.tokenize(" 1732") == ["Ġ1732"]
    assert tokenizer.tokenize(" 1733") == ["Ġ17", "33"]
    usable = greater_than.usable_years(tokenizer)
    assert set(usable) == {"11", "12", "13", "14", "16", "17"}  # 1501 is whole, so 15 has no corrupt prompt
    missing = {c + y for c in usable for y in greater_than.YEARS[c]} - {c + y for c in usable for y in usable[c]}
    assert missing == {"1732", "1745", "1612"}
    model = SimpleNamespace(tokenizer=tokenizer)
    task = greater_than.make(model, n=400, seed=0, split="train")
    assert not any(re.search("1732|1745|1612| 15", text) for text in task.texts)


def test_where_all_years_are_split_make_draws_what_generate_does():
    task = greater_than.make(subjects.bare(), n=50, seed=3)
    assert task.texts == tuple(prompt.clean for prompt in greater_than.generate(50, seed=3))
    assert (task.answers >= 0).sum(-1).tolist() == [len(p.answers) for p in greater_than.generate(50, seed=3)]
    assert ((task.answers >= 0).sum(-1) + (task.wrong_answers >= 0).sum(-1)).unique().tolist() == [100]

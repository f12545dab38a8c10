"""Addition modulo a prime: sums worked out again from the text, held-out pairs, corruptions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.tasks.errors import NotOneToken, UnknownChoice
from circuits.tasks.modular_addition import CORRUPTIONS, PRIME, SPLITS, generate, is_held_out_pair, make, pairs
from experiments.zoo_training.tokenizer import word_level


def operands(text: str) -> tuple[int, int]:
    a, plus, b, equals = text.split()
    assert (plus, equals) == ("+", "=")
    return int(a), int(b)


@given(
    seed=st.integers(0, 2**40), split=st.sampled_from(sorted(SPLITS)), corruption=st.sampled_from(sorted(CORRUPTIONS))
)
def test_answers_are_sums_and_wrong_answers_those_of_the_corrupt_prompt(seed, split, corruption):
    for prompt in generate(20, seed=seed, split=split, corruption=corruption):
        clean, corrupt = operands(prompt.clean), operands(prompt.corrupt)
        assert prompt.answers == (f" {sum(clean) % PRIME}",)
        assert prompt.wrong_answers == (f" {sum(corrupt) % PRIME}",)
        assert prompt.answers != prompt.wrong_answers
        assert is_held_out_pair(*clean) == (split == "held-out")
        kept = 0 if corruption == "b" else 1
        assert clean[kept] == corrupt[kept]
        assert clean[1 - kept] != corrupt[1 - kept]


def test_every_pair_is_on_one_side_whatever_its_order():
    train, held_out = set(pairs(held_out=False)), set(pairs(held_out=True))
    assert len(train) + len(held_out) == PRIME**2
    assert not train & held_out
    assert {(b, a) for a, b in held_out} == held_out
    assert 0.2 < len(held_out) / PRIME**2 < 0.3


def test_the_same_seed_gives_the_same_prompts_and_a_corruption_leaves_the_clean_ones():
    assert generate(50, seed=3) == generate(50, seed=3) != generate(50, seed=4)
    first, second = (generate(50, seed=3, corruption=name) for name in CORRUPTIONS)
    assert [prompt.clean for prompt in first] == [prompt.clean for prompt in second]


def test_what_is_unknown_is_said():
    with pytest.raises(UnknownChoice, match="train, held-out"):
        generate(1, seed=0, split="test")
    with pytest.raises(UnknownChoice, match="b, a"):
        generate(1, seed=0, corruption="c")
    with pytest.raises(UnknownChoice, match="at least 1"):
        generate(0, seed=0)


class Reader:
    def __init__(self, words: list[str]) -> None:
        self.tokenizer = word_level(words, n_ctx=8, splitting="spaces")


def test_a_tokenizer_without_the_numbers_is_refused():
    with pytest.raises(NotOneToken, match=r"52 \(unknown word\)"):
        make(Reader(["+", "=", *map(str, range(52))]), n=2)
    task = make(Reader(["+", "=", *map(str, range(53))]), n=3, seed=1)
    assert task.clean.shape == (3, 4)
    assert (task.clean != task.corrupt).sum().item() == 3

"""Sorting: answers by Python's own `sorted`, held-out sets, corruptions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.tasks.errors import NotOneToken, UnknownChoice
from circuits.tasks.sorting import CORRUPTIONS, LARGEST, LENGTHS, SPLITS, WORDS, generate, is_held_out_set, make, text
from experiments.zoo_training.tokenizer import word_level


def read(prompt: str) -> tuple[list[int], list[int]]:
    given, done = prompt.split("->")
    return [int(word) for word in given.split()], [int(word) for word in done.split()]


@given(
    seed=st.integers(0, 2**40),
    split=st.sampled_from(sorted(SPLITS)),
    corruption=st.sampled_from(sorted(CORRUPTIONS)),
    length=st.sampled_from([None, *LENGTHS]),
)
def test_the_answer_comes_next_in_order(seed, split, corruption, length):
    for prompt in generate(10, seed=seed, split=split, corruption=corruption, length=length):
        for asked, answers in ((prompt.clean, prompt.answers), (prompt.corrupt, prompt.wrong_answers)):
            numbers, done = read(asked)
            assert len(set(numbers)) == len(numbers)
            assert sorted(numbers)[: len(done)] == done
            assert answers == (f" {sorted(numbers)[len(done)]}",)
        assert prompt.answers != prompt.wrong_answers
        numbers, corrupt = read(prompt.clean)[0], read(prompt.corrupt)[0]
        assert len(numbers) == len(corrupt) == (length or len(numbers))
        assert is_held_out_set(numbers) == (split == "held-out")
        if corruption == "list":
            assert is_held_out_set(corrupt) == (split == "held-out")


def test_a_number_is_replaced_where_it_stands_and_the_sorted_part_stays():
    for prompt in generate(300, seed=0, corruption="number", length=4):
        (numbers, done), (corrupt, still) = read(prompt.clean), read(prompt.corrupt)
        changed = [(old, new) for old, new in zip(numbers, corrupt, strict=True) if old != new]
        if not set(range(max(done, default=-1) + 1, LARGEST + 1)) - set(numbers):
            continue  # no number is free
        assert done == still
        assert [old for old, _ in changed] == [int(prompt.answers[0])]


def test_where_nothing_is_free_the_whole_list_is_another():
    numbers = [LARGEST - 2, LARGEST - 1, LARGEST]
    corrupt = CORRUPTIONS["number"](numbers, 2, is_held_out_set(numbers), random.Random(0))
    assert sorted(corrupt)[2] != LARGEST
    assert len(set(corrupt)) == 3


def test_an_order_does_not_change_the_side_and_a_fifth_is_held_out():
    rng = random.Random(0)
    sets = [rng.sample(range(LARGEST + 1), 5) for _ in range(5000)]
    assert all(is_held_out_set(numbers) == is_held_out_set(numbers[::-1]) for numbers in sets)
    assert 0.18 < sum(map(is_held_out_set, sets)) / len(sets) < 0.22


def test_the_same_seed_gives_the_same_prompts_and_a_corruption_leaves_the_clean_ones():
    assert generate(50, seed=3) == generate(50, seed=3) != generate(50, seed=4)
    first, second = (generate(50, seed=3, corruption=name) for name in CORRUPTIONS)
    assert [prompt.clean for prompt in first] == [prompt.clean for prompt in second]
    assert text([2, 1], 0) == "2 1 ->"


def test_what_is_unknown_is_said():
    with pytest.raises(UnknownChoice, match="3, 4, 5, 6; got 7"):
        generate(1, seed=0, length=7)
    with pytest.raises(UnknownChoice, match="list, number"):
        generate(1, seed=0, corruption="swap")


class Reader:
    def __init__(self, words: list[str]) -> None:
        self.tokenizer = word_level(words, n_ctx=16, splitting="spaces")


def test_a_tokenizer_without_the_numbers_is_refused():
    with pytest.raises(NotOneToken, match=r"31 \(unknown word\)"):
        make(Reader(["->", *WORDS[:-1]]), n=2)
    task = make(Reader(["->", *WORDS]), n=8, seed=1, length=4)
    assert task.texts == tuple(prompt.clean for prompt in generate(8, seed=1, length=4))

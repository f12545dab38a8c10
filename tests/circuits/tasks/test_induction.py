"""Induction: what comes again, what there is to copy, and sequences of bare token ids."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.tasks import induction
from circuits.tasks.errors import TooFewWords, UnknownChoice
from patching.masked import MaskedRun
from tests import tiny


def copied(sequence, cue_length: int):
    """What followed the last earlier occurrence of the sequence's end, or None: what an induction head would copy."""
    cue = sequence[-cue_length:]
    for start in range(len(sequence) - cue_length - 1, -1, -1):
        if sequence[start : start + cue_length] == cue:
            return sequence[start + cue_length]
    return None


def words_of(said: str) -> list[str]:
    return said.split(": ", 1)[1].split(" ")


@pytest.mark.parametrize("split", sorted(induction.SPLITS))
def test_the_answer_followed_the_last_word_before_and_nothing_else_comes_twice(split):
    for prompt in induction.generate(200, seed=0, split=split):
        words = words_of(prompt.clean)
        answer = prompt.answers[0].strip()
        assert copied(words, 1) == answer
        assert sorted(prompt.wrong_answers) == sorted({f" {word}" for word in words} - {f" {answer}"})
        cue = len(words) - len(set(words))
        assert 1 <= cue <= 3
        assert copied(words, cue) == answer
        assert words.count(answer) == 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32), before=st.integers(0, 4), repeat=st.integers(1, 4), gap=st.integers(0, 6),
    corruption=st.sampled_from(sorted(induction.CORRUPTIONS)),
)  # fmt: skip
def test_lengths_asked_for_and_what_each_corruption_leaves(seed, before, repeat, gap, corruption):
    (prompt,) = induction.generate(
        1, seed=seed, split="train", corruption=corruption, before=before, repeat=repeat, gap=gap
    )
    clean, corrupt, answer = words_of(prompt.clean), words_of(prompt.corrupt), prompt.answers[0].strip()
    assert len(clean) == len(corrupt) == before + repeat + 1 + gap + repeat
    changed = [place for place, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b]
    if corruption == "absent":
        assert changed == list(range(before, before + repeat + 1))
        assert copied(corrupt, 1) is None
        assert len(set(corrupt)) == len(corrupt)
    else:
        assert changed == [before + repeat]
        assert copied(corrupt, 1) == corrupt[before + repeat] not in clean
    assert answer not in corrupt


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"before": -1}, "before.*at least 0; got -1"),
        ({"repeat": 0}, "repeat.*at least 1; got 0"),
        ({"gap": -2}, "gap"),
    ],
)
def test_lengths_out_of_range(options, said):
    with pytest.raises(UnknownChoice, match=said):
        induction.generate(1, seed=0, **options)


def test_a_long_sequence_needs_more_words():
    with pytest.raises(TooFewWords, match="at least 104 words that are held out; got 20 of 98"):
        induction.generate(1, seed=0, before=100, repeat=1, gap=0)
    with pytest.raises(TooFewWords, match="at least 16 tokens in the split 'held-out'; got"):
        induction.generate_tokens(1, seed=0, vocabulary=range(20))


def test_token_ids_of_the_two_parts_do_not_mix_and_make_up_the_vocabulary():
    found = [
        {token for each in induction.generate_tokens(300, seed=0, vocabulary=range(1, 120), split=split)
         for token in (*each.clean, *each.corrupt)}
        for split in ("train", "held-out")
    ]  # fmt: skip
    assert not found[0] & found[1]
    assert found[0] | found[1] == set(range(1, 120))


@pytest.mark.parametrize("bos", [None, 0])
@torch.no_grad()
def test_token_ids_run_in_a_model_without_a_tokenizer(bos):
    model = tiny.model("attention_only")
    assert model.tokenizer is None
    options = {"n": 6, "seed": 0, "split": "train", "corruption": "answer"}
    task = induction.make(model, vocabulary=range(1, tiny.VOCAB), bos=bos, **options)
    sequences = induction.generate_tokens(vocabulary=range(1, tiny.VOCAB), **options)
    assert task.starts_with_bos == (bos == 0)
    run = MaskedRun(model, task)
    for row, drawn in enumerate(sequences):
        start = [] if bos is None else [bos]
        for sequence, recorded in ((drawn.clean, run.clean_metric[row]), (drawn.corrupt, run.corrupt_metric[row])):
            logits = model.logits(torch.tensor([[*start, *sequence]]))[0, -1].double()
            wanted = logits[drawn.answer] - logits[list(drawn.wrong_answers)].mean()
            torch.testing.assert_close(recorded, wanted, atol=1e-9, rtol=0)


def test_equal_lengths_need_no_padding():
    task = induction.make(SimpleNamespace(tokenizer=None), n=5, vocabulary=range(90), before=2, repeat=2, gap=1)
    assert task.clean.shape == (5, 8)
    assert task.positions.tolist() == [7] * 5
    assert task.wrong_answers.shape == (5, 5)

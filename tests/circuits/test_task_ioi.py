"""The IOI task: what prompts say, what splits keep apart, and what each kind of tokenizer makes of it."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from circuits import tasks
from circuits.tasks import ioi
from circuits.tasks.errors import NotOneToken, TooFewNames, UnknownChoice, UnknownTask
from experiments.train_ioi import build_tokenizer

seeds = st.integers(0, 2**32)
splits = st.sampled_from(sorted(ioi.SPLITS))


def names_in(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word in ioi.NAMES]


def byte_pair_tokenizer(names: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, trained until each of the names with its leading space is one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([f"and {name} and {name}" for name in names], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@given(seed=seeds, split=splits)
@settings(max_examples=50, deadline=None)
def test_a_prompt_says_what_wang_et_al_say(seed, split):
    for prompt in ioi.generate(4, seed=seed, split=split):
        indirect_object, subject = prompt.answer.strip(), prompt.wrong_answer.strip()
        first, second, third = names_in(prompt.clean)
        assert third == subject != indirect_object
        assert (first, second) == ((indirect_object, subject) if prompt.order == "ABBA" else (subject, indirect_object))
        assert prompt.clean.endswith((" to", " for"))
        assert prompt.answer.startswith(" ")
        assert prompt.wrong_answer.startswith(" ")


@given(seed=seeds)
@settings(max_examples=50, deadline=None)
def test_abc_has_three_other_names_in_the_same_sentence(seed):
    for prompt in ioi.generate(4, seed=seed, corruption="abc"):
        assert len(set(names_in(prompt.corrupt))) == 3
        assert not set(names_in(prompt.corrupt)) & set(names_in(prompt.clean))
        words = zip(prompt.clean.split(), prompt.corrupt.split(), strict=True)
        assert sum(clean != corrupt for clean, corrupt in words) == 3


@given(seed=seeds)
@settings(max_examples=50, deadline=None)
def test_s2_changes_the_acting_name_alone_and_flips_the_answer(seed):
    for prompt in ioi.generate(4, seed=seed, corruption="s2"):
        first, second, third = names_in(prompt.corrupt)
        assert [first, second] == names_in(prompt.clean)[:2]
        assert third == prompt.answer.strip()


def test_the_same_seed_gives_the_same_prompts_and_these():
    assert ioi.generate(20, seed=3) == ioi.generate(20, seed=3)
    assert ioi.generate(20, seed=3) != ioi.generate(20, seed=4)
    assert ioi.generate(20, seed=3)[:5] == ioi.generate(5, seed=3)
    orders = [prompt.order for prompt in ioi.generate(6, seed=3)]
    assert orders == ["ABBA", "BABA"] * 3


def test_pairs_and_templates_are_kept_apart():
    seen = ioi.generate(3000, seed=0, split="train")
    new = ioi.generate(3000, seed=0, split="held-out-templates")
    pairs = [{frozenset((p.answer, p.wrong_answer)) for p in prompts} for prompts in (seen, new)]
    assert not pairs[0] & pairs[1]
    assert not {p.template for p in seen} & {p.template for p in new}
    share = sum(ioi.is_held_out_pair(a, b) for a in ioi.NAMES for b in ioi.NAMES if a < b) / (76 * 75 / 2)
    assert 0.15 < share < 0.25


def test_held_out_is_held_out_pairs_in_all_templates():
    prompts = ioi.generate(500, seed=0, split="held-out")
    assert {prompt.template for prompt in prompts} == set(ioi.TEMPLATES)
    assert all(ioi.is_held_out_pair(prompt.answer.strip(), prompt.wrong_answer.strip()) for prompt in prompts)


def test_there_is_variety_enough():
    assert len(ioi.SPLITS["train"][1]) >= 12
    assert len(ioi.SPLITS["held-out-templates"][1]) >= 4
    assert len(set(ioi.NAMES)) == len(ioi.NAMES) >= 60
    texts = list(ioi.TEMPLATES.values())
    assert len(set(texts)) == len(texts)
    assert not any(text.startswith("{") for text in texts)


def test_one_template_gives_that_template_whatever_the_split():
    for split in ioi.SPLITS:
        prompts = ioi.generate(8, seed=0, split=split, template="when")
        assert all(prompt.clean.startswith("When ") for prompt in prompts)
        assert len({len(prompt.clean.split()) for prompt in prompts}) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "test"}, "split to be one of train, held-out, .*got 'test'"),
        ({"corruption": "xyz"}, "corruption to be one of abc, s2, random; got 'xyz'"),
        ({"template": "who"}, "template to be one of when, then, .*got 'who'"),
        ({"n": 0}, "at least 1; got 0"),
    ],
)
def test_an_unknown_choice_says_which_there_are(options, said):
    with pytest.raises(UnknownChoice, match=said):
        ioi.generate(**({"n": 1, "seed": 0} | options))


def test_too_few_names_are_refused():
    with pytest.raises(TooFewNames, match="got 3 of which 3 are distinct"):
        ioi.generate(1, seed=0, names=["Mary", "John", "Lisa"])
    with pytest.raises(TooFewNames, match="got 5 of which 4 are distinct"):
        ioi.generate(1, seed=0, names=["Mary", "John", "Lisa", "Paul", "Paul"])


def test_make_pads_and_points_at_the_last_token():
    model = SimpleNamespace(tokenizer=build_tokenizer(n_ctx=40))
    task = ioi.make(model, n=32, seed=0)
    prompts = ioi.generate(32, seed=0)
    assert len(task) == 32
    assert task.texts == tuple(prompt.clean for prompt in prompts)
    for row, prompt in enumerate(prompts):
        position = int(task.positions[row])
        words = model.tokenizer.convert_ids_to_tokens(task.clean[row, : position + 1].tolist())
        assert words == re.findall(r"\w+|[^\w\s]", prompt.clean)
        assert model.tokenizer.convert_ids_to_tokens(task.answers[row].tolist()) == [prompt.answer.strip()]
        assert model.tokenizer.convert_ids_to_tokens(task.wrong_answers[row].tolist()) == [prompt.wrong_answer.strip()]


def test_byte_pairs_work_unchanged():
    model = SimpleNamespace(tokenizer=byte_pair_tokenizer(ioi.NAMES))
    for corruption in ioi.CORRUPTIONS:
        task = ioi.make(model, n=32, seed=0, corruption=corruption)
        assert task.clean.shape == task.corrupt.shape
        answers = model.tokenizer.convert_ids_to_tokens(task.answers.flatten().tolist())
        assert all(answer.startswith("Ġ") for answer in answers)
        assert [f" {answer[1:]}" for answer in answers] == [p.answer for p in ioi.generate(32, seed=0)]


def test_names_of_several_tokens_are_named_with_their_pieces():
    model = SimpleNamespace(tokenizer=byte_pair_tokenizer(("Mary", "John", "Lisa", "Paul", "Kevin", "Sarah")))
    with pytest.raises(NotOneToken, match=r"70 of 76 are not: Aaron \(Ġ.* \+ .*\), .*and 58 more\. Pass names="):
        ioi.make(model, n=4)
    task = ioi.make(model, n=4, split="train", names=["Mary", "John", "Lisa", "Paul", "Kevin", "Sarah"])
    assert len(task) == 4


def test_a_word_that_the_tokenizer_does_not_know_is_not_one_token():
    model = SimpleNamespace(tokenizer=build_tokenizer(n_ctx=40))
    with pytest.raises(NotOneToken, match=r"2 of 8 are not: Zoe \(unknown word\), Mary Ann \(Mary \+|unknown"):
        ioi.make(model, split="train", names=["Zoe", "Mary Ann", "Mary", "John", "Lisa", "Paul", "Kevin", "Sarah"])


def test_every_task_in_the_table_can_be_made_and_a_wrong_name_is_answered_with_the_nearest():
    for name in tasks.TASKS:
        assert callable(tasks.load(name).make)
    assert tasks.ioi is ioi
    with pytest.raises(UnknownTask, match=r"got 'ioo'\. Did you mean ioi\?"):
        tasks.load("ioo")
    with pytest.raises(AttributeError, match=r"tasks: .*ioi"):
        _ = tasks.nothing


def test_listing_tasks_and_writing_prompts_loads_no_torch():
    code = "import sys; from circuits import tasks; tasks.ioi.generate(3, seed=0)"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

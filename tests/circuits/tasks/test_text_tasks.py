"""What holds for every task of text: its splits, its corruptions, its tokens, its errors, and a run of it."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from circuits import tasks
from circuits.tasks import (
    agreement,
    capitals,
    docstring,
    greater_than,
    induction,
    ioi,
    multiple_choice,
    pronouns,
    single_tokens,
    text,
)
from circuits.tasks.errors import NotOneToken, UnknownChoice
from patching.errors import InvalidTask
from patching.masked import MaskedRun
from patching.metrics import METRICS

from . import subjects
from .subjects import NAMES, OPTIONS, SPLITS, module, training_split

HELD_OUT = {
    "agreement": {form for noun in agreement.NOUNS if text.is_held_out(noun) for form in (noun, f"{noun}s")},
    "capitals": {word for pair in capitals.CAPITALS.items() if text.is_held_out(pair[0]) for word in pair},
    "docstring": set(text.part(docstring.PARAMETERS, held_out=True)),
    "greater_than": {
        *text.part(greater_than.EVENTS, held_out=True),
        *(year for century in greater_than.CENTURIES for last in greater_than.YEARS[century]
          if text.is_held_out(year := century + last)),
    },
    "induction": set(text.part(induction.VOCABULARY, held_out=True)),
    "ioi": set(ioi.HELD_OUT_NAMES),
    "multiple_choice": set(text.part((*multiple_choice.COLORS, *multiple_choice.THINGS), held_out=True)),
    "pronouns": set(text.part(pronouns.PRONOUNS, held_out=True)),
}  # fmt: skip
"""Every task's held-out words, but for arithmetic, which holds out pairs of numbers."""

ENGLISH = [name for name in NAMES if name not in ("docstring",)]


def words(prompt: text.Prompt, *, answers: bool = True) -> set[str]:
    """The words of both prompts and, if asked for, of the answers; a year is one word."""
    texts = [prompt.clean, prompt.corrupt, *(prompt.answers + prompt.wrong_answers if answers else ())]
    return {word for each in texts for word in re.findall(r"\w+", each)}


def words_of_templates(templates) -> set[str]:
    bare = [re.sub(r"{\w+}", "", form).lower() for form in templates.values()]
    return {word for form in bare for word in re.findall(r"[a-z']+", form)}


# ---------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("name", NAMES)
def test_there_are_the_splits_and_they_say_what_they_draw_from(name):
    task = module(name)
    assert set(SPLITS) <= set(task.SPLITS)
    assert set(task.TRAINING_TEMPLATES).isdisjoint(task.HELD_OUT_TEMPLATES)
    assert dict(task.TEMPLATES) == {**task.TRAINING_TEMPLATES, **task.HELD_OUT_TEMPLATES}
    assert len(set(task.TEMPLATES.values())) == len(task.TEMPLATES)
    templates = {split: set(task.SPLITS[split].templates) for split in SPLITS}
    assert templates["train"] == templates["held-out-words"] == set(task.TRAINING_TEMPLATES)
    assert templates["held-out-templates"] == templates["held-out-all"] == set(task.HELD_OUT_TEMPLATES)
    assert templates["held-out"] == set(task.TEMPLATES)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_splits_draw_their_templates_and_no_word_of_another_part(name, data):
    task = module(name)
    seed = data.draw(st.integers(0, 2**40))
    corruption = data.draw(st.sampled_from(sorted(task.CORRUPTIONS)))
    for split in (training_split(name), "held-out-words", "held-out-all"):
        prompts = task.generate(20, seed=seed, split=split, corruption=corruption)
        assert {prompt.template for prompt in prompts} <= set(task.SPLITS[split].templates)
        if name == "arithmetic":
            continue  # its own test
        for prompt in prompts:
            found = words(prompt) & HELD_OUT[name]
            assert not found if split.startswith("train") else found, (prompt, found)


@pytest.mark.parametrize("name", sorted(HELD_OUT))
def test_what_is_held_out_is_a_fixed_part(name):
    """Any two words that differ in it differ for good: the rule looks at nothing but the spelling."""
    task = module(name)
    held_out = {word for word in task.WORDS if word in HELD_OUT[name]}
    if name == "greater_than":
        held_out = HELD_OUT[name] - set(greater_than.EVENTS)
        assert 0.15 < len(held_out) / (97 * 7) < 0.25
    elif name == "agreement":
        assert 0.15 < len(held_out) / (2 * len(agreement.NOUNS)) < 0.27
    elif name == "capitals":
        assert held_out == {"Iran", "Tehran", "Italy", "Rome", "Syria", "Damascus", "Turkey", "Ankara"}
    else:
        listed = {"multiple_choice": multiple_choice.COLORS, "pronouns": pronouns.PRONOUNS}.get(name, task.WORDS)
        assert 0.15 < len(held_out) / len(listed) < 0.3


def test_held_out_names_are_these():
    assert ioi.HELD_OUT_NAMES == (
        "Adam", "Alexander", "Alicia", "Andrew", "Elizabeth", "Emily", "Erin", "Jeffrey", "Jennifer", "John", "Lisa",
        "Michelle", "Stephen", "Timothy",
    )  # fmt: skip
    assert set(ioi.HELD_OUT_NAMES) <= set(text.part(pronouns.PRONOUNS, held_out=True))


@pytest.mark.parametrize("name", ENGLISH)
def test_there_are_templates_enough_and_held_out_ones_bring_no_new_word(name):
    task = module(name)
    assert len(task.TRAINING_TEMPLATES) >= 15
    assert len(task.HELD_OUT_TEMPLATES) >= 5
    assert words_of_templates(task.HELD_OUT_TEMPLATES) <= words_of_templates(task.TRAINING_TEMPLATES)


@pytest.mark.parametrize("name", NAMES)
def test_no_template_has_a_held_out_word_and_each_begins_a_sentence(name):
    task = module(name)
    if name in HELD_OUT:
        assert not words_of_templates(task.TEMPLATES) & {word.lower() for word in HELD_OUT[name]}
    for form in task.TEMPLATES.values():
        assert form[0].isupper() or (name == "docstring" and form.startswith(("def ", "async def ")))


def test_word_lists_are_broad_and_together_small_enough_for_a_small_vocabulary():
    assert len(agreement.NOUNS) >= 60
    assert len(greater_than.EVENTS) >= 30
    assert len(docstring.PARAMETERS) >= 40
    assert len(pronouns.PRONOUNS) >= len(ioi.NAMES) + 30
    assert set(ioi.NAMES) <= set(pronouns.PRONOUNS)
    assert not set(pronouns.SHE) & set(pronouns.HE)
    assert len({word for name in NAMES for word in module(name).WORDS}) < 700
    for task in map(module, NAMES):
        assert len(set(task.WORDS)) == len(task.WORDS)


# ---------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_prompts(name):
    task = module(name)
    assert task.generate(20, seed=3) == task.generate(20, seed=3)
    assert task.generate(20, seed=3) != task.generate(20, seed=4)
    assert task.generate(20, seed=3)[:7] == task.generate(7, seed=3)


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_changes_the_corrupt_prompts_alone(name):
    task = module(name)
    drawn = [task.generate(40, seed=5, corruption=corruption) for corruption in task.CORRUPTIONS]
    for prompts in drawn[1:]:
        for one, another in zip(drawn[0], prompts, strict=True):
            assert (one.clean, one.answers, one.wrong_answers) == (
                another.clean,
                another.answers,
                another.wrong_answers,
            )
        assert [prompt.corrupt for prompt in prompts] != [prompt.corrupt for prompt in drawn[0]]


@pytest.mark.parametrize(("name", "corruption"), OPTIONS)
def test_answers_are_not_wrong_and_corrupt_prompts_are_not_clean(name, corruption):
    for split in module(name).SPLITS:
        prompts = module(name).generate(150, seed=6, split=split, corruption=corruption)
        for prompt in prompts:
            assert prompt.answers
            assert prompt.wrong_answers
            assert not set(prompt.answers) & set(prompt.wrong_answers)
            assert len(set(prompt.answers + prompt.wrong_answers)) == len(prompt.answers + prompt.wrong_answers)
            assert all(answer.startswith(" ") != (name == "greater_than") for answer in prompt.answers)
            assert not prompt.clean.endswith(" ")
        same = sum(prompt.clean == prompt.corrupt for prompt in prompts)
        assert same == 0 or (name, corruption) == ("ioi", "random")
        assert same <= 2


@pytest.mark.parametrize("name", NAMES)
def test_one_template_gives_that_template_whatever_the_split(name):
    task = module(name)
    for template in task.TEMPLATES:
        prompts = task.generate(3, seed=0, split="held-out-words", template=template)
        assert {prompt.template for prompt in prompts} == {template}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "test"}, r"split to be one of train, .*got 'test'"),
        ({"corruption": "xyz"}, r"corruption to be one of .*got 'xyz'"),
        ({"template": "who?"}, r"template to be one of .*got 'who\?'"),
        ({"n": 0}, "at least 1; got 0"),
    ],
)
def test_an_unknown_choice_says_which_there_are(name, options, said):
    with pytest.raises(UnknownChoice, match=said):
        module(name).generate(**({"n": 1, "seed": 0} | options))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("agreement", {"nouns": ["key", "cup"]}, "at least 4 nouns that are held out; got 0 of 2"),
        ("agreement", {"nouns": ["key", "key"]}, "each of the nouns once; got key more often"),
        ("agreement", {"verbs": {}}, "at least one verb"),
        ("capitals", {"facts": {"Italy": "Rome"}}, "at least 2 facts that are held out; got 1 of 1"),
        ("capitals", {"facts": {"Italy": "Rome", "Iran": "Rome"}}, "a capital for each country alone"),
        ("docstring", {"parameters": ["size"] }, "at least 13 parameters that are held out"),
        ("greater_than", {"events": ["war"]}, "at least 1 events that are held out"),
        ("greater_than", {"years": {"17": ["32"]}}, "at least two first years of one century"),
        ("induction", {"words": ["key", "cup"]}, "at least 16 words that are held out"),
        ("multiple_choice", {"colors": ["red", "pink"]}, "at least 4 colors that are held out; got 2 of 2"),
        ("pronouns", {"names": {"Lisa": "she", "Emily": "she"}}, "a name that takes 'he' in the split"),
        ("ioi", {"names": ["Mary", "Paul", "Kevin", "Sarah", "Laura"], "split": "held-out-names"}, "at least five"),
        ("arithmetic", {"largest": 1}, "two pairs of operands with different results"),
    ],
)  # fmt: skip
def test_too_few_words_are_refused_with_what_to_do(name, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        module(name).generate(1, seed=0, **options)
    assert type(caught.value).__name__ in ("TooFewWords", "TooFewNames")


# ---------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("name", "corruption"), OPTIONS)
def test_clean_and_corrupt_are_equally_long_and_tokens_spell_the_prompts(name, corruption, bos):
    model = subjects.bare(bos=bos)
    for split in ("train", "held-out-all"):
        task = module(name).make(model, n=12, seed=2, split=split, corruption=corruption)
        prompts = module(name).generate(12, seed=2, split=split, corruption=corruption)
        assert task.texts == tuple(prompt.clean for prompt in prompts)
        assert task.name == name
        assert task.starts_with_bos == bos
        for row, prompt in enumerate(prompts):
            stop = int(task.positions[row]) + 1
            for tokens, said in ((task.clean[row], prompt.clean), (task.corrupt[row], prompt.corrupt)):
                assert model.tokenizer.decode(tokens[:stop]) == ("<s>" if bos else "") + said
            for found, wanted in ((task.answers, prompt.answers), (task.wrong_answers, prompt.wrong_answers)):
                assert tuple(model.tokenizer.decode([token]) for token in found[row] if token >= 0) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_every_word_is_one_token_where_the_task_says_it_must_be(name):
    """The tokenizer of these tests has them all, as one trained on the prompts does."""
    assert single_tokens.one_token_words(subjects.tokenizer(bos=False), module(name).WORDS) == list(module(name).WORDS)


def spelling_tokenizer() -> PreTrainedTokenizerFast:
    """One whose words are letters, but for a few."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([" key cup the"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_a_model_without_tokenizer_is_refused(name):
    """By every task: also by those of compiled programs, which say whose tokens they need."""
    with pytest.raises(InvalidTask, match=r"expected a tokenizer; this model has none|expected the model zoo:"):
        tasks.load(name).make(SimpleNamespace(tokenizer=None), n=2)


OFFENDING = {
    "agreement": "cabinet", "arithmetic": "10", "capitals": "Paris", "docstring": "data", "induction": "store",
    "ioi": "Aaron", "multiple_choice": "red", "pronouns": "Alicia",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OFFENDING))
def test_words_of_several_tokens_are_named_with_their_pieces_and_a_remedy(name):
    model = SimpleNamespace(tokenizer=spelling_tokenizer())
    with pytest.raises(NotOneToken, match="expected every word to be one token after a space; to this") as caught:
        module(name).make(model, n=4)
    said = str(caught.value)
    if name != "capitals":  # names the first dozen, and Paris is not among them
        assert re.search(rf"\b{OFFENDING[name]} \(Ġ.* \+ .*\)", said)
    assert re.search(r"[Pp]ass \w+", said)


def test_numbers_of_several_tokens_are_named_and_so_are_years():
    digits = SimpleNamespace(tokenizer=spelling_tokenizer())
    with pytest.raises(NotOneToken, match=r"each number from 00 to 99 to be one token without a space .*100 of 100"):
        greater_than.make(digits, n=4)


def whole_years() -> PreTrainedTokenizerFast:
    """A tokenizer to which every year is one token, and so is every two-digit number."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=9000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    years = [f" {century}{last}" for century in greater_than.CENTURIES for last in greater_than.TWO_DIGITS]
    backend.train_from_iterator([*years, *greater_than.TWO_DIGITS, *(f" {c}" for c in greater_than.CENTURIES)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_a_tokenizer_of_whole_years_is_refused_with_examples():
    with pytest.raises(NotOneToken, match=r"no year is: 1145 \(Ġ1145\), 1432 \(Ġ1432\), 1732 \(Ġ1732\)"):
        greater_than.make(SimpleNamespace(tokenizer=whole_years()), n=4)


@pytest.mark.parametrize(
    ("name", "option", "mended"),
    [
        ("agreement", "nouns", lambda words: agreement.usable_nouns(words)),
        ("capitals", "facts", lambda words: single_tokens.one_token_pairs(words, capitals.CAPITALS)),
        ("docstring", "parameters", lambda words: single_tokens.one_token_words(words, docstring.PARAMETERS)),
        ("induction", "words", lambda words: single_tokens.one_token_words(words, induction.VOCABULARY)),
        ("multiple_choice", "colors", lambda words: single_tokens.one_token_words(words, multiple_choice.COLORS)),
        ("pronouns", "names", lambda words: single_tokens.one_token_pairs(words, pronouns.PRONOUNS)),
    ],
)
def test_what_the_error_says_to_do_helps(name, option, mended):
    """A tokenizer that lacks a few of the words: the error, then the remedy as it is spelt there."""
    model = SimpleNamespace(tokenizer=tokenizer_without(("cabinet", "France", "data", "store", "blue", "Mary")))
    with pytest.raises(NotOneToken, match=rf" [12] of \d+ are not: .*pass {option}=") as caught:
        module(name).make(model, n=4, split="train")
    assert f"pass {option}={'agreement.usable_nouns' if name == 'agreement' else 'one_token_'}" in str(caught.value)
    task = module(name).make(model, n=4, split="train", **{option: mended(model.tokenizer)})
    assert len(task) == 4


def tokenizer_without(missing: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """The tokenizer of these tests after unlearning some words: their last merge is gone."""
    import json

    backend = json.loads(subjects.tokenizer(bos=False).backend_tokenizer.to_str())
    gone = {f"Ġ{word}" for word in missing}
    merges = backend["model"]["merges"]
    backend["model"]["merges"] = [pair for pair in merges if "".join(pair) not in gone]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))


def test_a_model_without_a_tokenizer_is_told_what_to_give():
    with pytest.raises(InvalidTask, match="expected a tokenizer"):
        induction.make(SimpleNamespace(tokenizer=None), n=2)


# ---------------------------------------------------------------------------------------------------- runs


TOLERANCE = {"gpt2": 1e-9, "llama": 1e-5}
"""Hugging Face computes norms and attention weights of a Llama in float32 whatever the weights are."""


@pytest.mark.parametrize("family", sorted(TOLERANCE))
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_run_agrees_with_the_models_own_logits(name, family):
    """From the text by the tokenizer's own call, special tokens included, through the Hugging Face model."""
    task = module(name).make(subjects.model(family), n=3, seed=1)
    prompts = module(name).generate(3, seed=1)
    run = MaskedRun(subjects.model(family), task)
    ends = {"clean": (run.ones(), run.clean_metric), "corrupt": (run.zeros(), run.corrupt_metric)}
    for which, (mask, recorded) in ends.items():
        wanted = torch.stack([own_metric(family, getattr(prompt, which), prompt, task.metric) for prompt in prompts])
        torch.testing.assert_close(recorded, wanted, atol=TOLERANCE[family], rtol=0)
        torch.testing.assert_close(run(mask), wanted, atol=TOLERANCE[family], rtol=0)
    assert (run.clean_metric - run.corrupt_metric).abs().min() > 1e-6


def own_metric(family: str, said: str, prompt: text.Prompt, metric: str) -> torch.Tensor:
    model, tokenizer = subjects.hugging_face(family), subjects.tokenizer(bos=family == "llama")
    logits = model(torch.tensor([tokenizer(said)["input_ids"]])).logits[0, -1]
    sets = []
    for answers in (prompt.answers, prompt.wrong_answers):
        sets.append([tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in answers])
    if metric == "probability_difference":
        probabilities = logits.softmax(-1)
        return probabilities[sets[0]].sum() - probabilities[sets[1]].sum()
    assert metric == "logit_difference"
    return logits[sets[0]].mean() - logits[sets[1]].mean()


@pytest.mark.parametrize("name", NAMES)
def test_the_metric_is_known_and_greater_thans_is_of_probabilities(name):
    task = module(name).make(subjects.bare(), n=2)
    assert task.metric in METRICS
    assert task.metric == ("probability_difference" if name == "greater_than" else "logit_difference")


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_a_task_shows_an_example_and_its_answer(name):
    first = (module(name).__doc__ or "").splitlines()[0]
    assert re.fullmatch(r'[A-Z][^"]*: ".*" -> .*\.|Arithmetic .*\.', first)
    assert len(first) <= 120


def test_listing_tasks_and_writing_prompts_loads_no_torch():
    code = "import sys; from circuits import tasks\n"
    code += f"for name in {NAMES}: tasks.load(name).generate(3, seed=0)\n"
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The training of `zoo:small`: its data, its checkpoints, and the model that ships."""

import hashlib
import itertools
import json
import random
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from circuits import tasks
from circuits.tasks import agreement, docstring, greater_than, induction, ioi, pronouns
from circuits.tasks.errors import NotOneToken
from circuits.tasks.text import is_held_out
from experiments import train_small
from experiments.small_model import corpus, sentences, text, tokenizer
from experiments.small_model.trainer import CHECKPOINT, OtherRecipe, Recipe, Trainer, rate
from experiments.zoo_training.folder import OutputExists
from patching import LensModel
from patching.model_sources import ZOO

SMALL = ZOO / "small"
FEW = text.Passages(
    prose=("The year 1732 was a good year.\nIt was long ago, as the books say.\n" * 3,) * 20,
    code=("def f(x):\n    return x\n\n\ndef g(y):\n    return f(y)\n" * 3,) * 20,
)


@pytest.fixture
def little(monkeypatch):
    """A recipe of seconds, on little text; the standard library is what makes the real one slow to prepare."""
    monkeypatch.setattr(text, "passages", lambda *, held_out: FEW)
    monkeypatch.setattr(train_small, "PROMPTS_MEASURED", 8)
    return Recipe(steps=4, last_steps=1, batch=2, n_ctx=128, n_layers=1, n_heads=2, d_model=16, d_mlp=32, d_vocab=4096)


# ------------------------------------------------------------------------------------------------------- the data


def test_whole_modules_of_the_library_are_held_out():
    names = [name for name, _ in text.modules()]
    held_out = [name for name in names if text.is_held_out(name)]
    assert len(names) > 300
    assert 0.02 < len(held_out) / len(names) < 0.1
    assert not any(name.startswith(("test/", "site-packages/")) for name in names)


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n\r\v\f\x1c\x1d\x1e"), max_size=300)))
def test_cutting_text_keeps_every_line_in_order(lines):
    made = text.cut("\n".join(lines))
    assert all(len(passage) <= text.PASSAGE for passage in made)
    kept = [line.strip() for passage in made for line in passage.split("\n") if line.strip()]
    wanted = iter(line.strip() for line in lines)
    assert all(line in wanted for line in kept), "lines came out of order"


def test_docstrings_are_found_and_broken_sources_are_not_an_error():
    long = "Words that say something of a function, and are long enough to be kept, which needs eighty."
    assert list(text.docstrings(f'def f():\n    """{long}"""\n')) == [long]
    assert list(text.docstrings("def f(:\n")) == []


@pytest.mark.parametrize("task", corpus.TASKS)
def test_training_prompts_hold_none_of_the_tasks_held_out_words(task):
    words = {
        "ioi": ioi.NAMES,
        "agreement": [*agreement.NOUNS, *(f"{noun}s" for noun in agreement.NOUNS)],
        "induction": induction.VOCABULARY,
        "pronouns": list(pronouns.PRONOUNS),
    }.get(task)
    made = list(itertools.islice(corpus.prompts(task, seed=3), 500))
    assert len(set(made)) > 300
    if words is not None:
        unseen = {word for word in words if is_held_out(word.removesuffix("s") if task == "agreement" else word)}
        found = {word for prompt in made for word in re.findall(r"\w+", prompt)} & unseen
        assert not found


NEXT = {
    "agreement": ("",),  # what follows does not matter: anything else there would teach that no verb does
    "pronouns": (" she", " he"),
    "ioi": tuple(f" {name}" for name in ioi.NAMES),
    "docstring": tuple(f" {name}" for name in docstring.PARAMETERS),
    "greater_than": greater_than.TWO_DIGITS,
    "induction": ("",),
}


@pytest.mark.parametrize("task", NEXT)
@pytest.mark.parametrize("kind", [*sentences.SENTENCES, "agreeing at last"])
def test_no_sentence_is_a_held_out_template_with_its_answer(kind, task):
    rng = random.Random(0)
    templates = tasks.load(task).HELD_OUT_TEMPLATES.values()
    slots = [re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(template)) for template in templates]
    pattern = re.compile(f"(?:{'|'.join(slots)})(?:{'|'.join(NEXT[task])})\\b")
    assert pattern.search(next(corpus.prompts(task, seed=0))) is None
    (unseen,) = tasks.load(task).generate(1, seed=0, split="held-out-all")
    assert pattern.search(unseen.clean + unseen.answers[0]), "the pattern does not find what it should"
    make, share = (sentences.SENTENCES | {"agreeing at last": sentences.LAST["agreeing"]})[kind]
    assert share > 0
    for _ in range(200):
        assert not pattern.search(make(rng))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("agreeing", [*agreement.NOUNS, *(f"{noun}s" for noun in agreement.NOUNS)]),
        ("alone", pronouns.PRONOUNS),
        ("documented", docstring.PARAMETERS),
    ],
)
def test_kinds_near_a_task_hold_none_of_its_held_out_words(kind, words):
    """As the table of kinds says."""
    noun = (lambda word: word.removesuffix("s")) if kind == "agreeing" else str
    unseen = {word for word in words if is_held_out(noun(word))} - set(docstring.DESCRIPTIONS)
    assert len(unseen) > 5
    rng = random.Random(1)
    make, _ = sentences.SENTENCES[kind]
    assert not unseen & {word for _ in range(1000) for word in re.findall(r"\w+", make(rng))}


def test_sentences_start_with_no_name():
    """A name there would have no space before it, and be another token."""
    rng = random.Random(2)
    made = [make(rng) for make, _ in sentences.SENTENCES.values() for _ in range(300)]
    assert not any(re.match(r"\w+", each)[0] in pronouns.PRONOUNS for each in made)


def test_the_last_part_is_other_text_and_the_first_is_as_it_would_be_without(little):
    _, rows, _ = train_small.prepare(replace(little, steps=8, last_steps=4))
    _, without, _ = train_small.prepare(replace(little, steps=8, last_steps=0))
    assert torch.equal(rows[:8], without[:8])
    assert not torch.equal(rows[8:], without[8:])
    assert set(corpus.last_samples(seed=0)) <= set(corpus.SHARES)
    rng, clause = random.Random(3), re.compile("that (?:we saw|they found|you bought|I left)")
    most = [
        max(len(clause.findall(kinds["agreeing"][0](rng))) for _ in range(2000))
        for kinds in (sentences.SENTENCES, sentences.LAST)
    ]
    assert most == [2, 1]


def test_sentences_on_other_uses_of_names_hold_no_held_out_name():
    made = itertools.islice(corpus.samples("ioi_sentences", FEW, seed=0), 300)
    assert not any(sentences.has_held_out_name(sentence) for sentence in made)


def test_held_out_names_and_nouns_do_occur_in_other_sentences():
    rng = random.Random(2)
    made = " ".join(sentences.SENTENCES[kind][0](rng) for kind in ("person", "thing") for _ in range(2000))
    seen = set(re.findall(r"\w+", made))
    assert set(ioi.HELD_OUT_NAMES) <= seen
    assert {noun for noun in agreement.NOUNS if is_held_out(noun)} <= seen


def test_rows_are_whole_samples_and_the_same_for_a_seed(little):
    made, rows, digest = train_small.prepare(little)
    assert rows.shape == (8, 129)
    assert int(rows.max()) < len(made)
    again = train_small.prepare(little)
    assert torch.equal(again[1], rows)
    assert again[2] == digest
    _, other, _ = train_small.prepare(replace(little, seed=1))
    assert not torch.equal(other, rows)


# -------------------------------------------------------------------------------------------------- the tokenizer


@pytest.fixture(scope="module")
def pairs():
    return tokenizer.build([*FEW.prose, *FEW.code], ["Mary", "17"], size=600, n_ctx=64)


def test_years_are_pieces_of_two_digits(pairs):
    assert [pairs.decode([token]) for token in pairs("year 1732 ")["input_ids"]][1:3] == [" 17", "32"]
    assert len(pairs(" Mary")["input_ids"]) == 1


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_text_comes_back_from_its_tokens(pairs, words):
    assert pairs.decode(pairs(words)["input_ids"], clean_up_tokenization_spaces=False) == words


def test_a_vocabulary_too_small_for_the_words_is_refused():
    with pytest.raises(NotOneToken, match="Raise the size of the vocabulary"):
        tokenizer.build(["a b"], ["Elizabeth", "Christopher"], size=260, n_ctx=64)


# --------------------------------------------------------------------------------------------------- the training


def test_the_rate_goes_up_stays_and_falls_to_nothing():
    shares = [rate(step, 4000, 400) for step in range(4401)]
    assert shares[:100] == [(step + 1) / 100 for step in range(100)]
    assert set(shares[100:1601]) == {1.0}
    assert shares[2800] == 0.5
    assert shares[3999] == 1 / 2400
    assert (shares[4000], shares[4200], shares[4400]) == (0.25, 0.125, 0.0)
    for part in (shares[100:4000], shares[4000:]):
        assert all(later <= earlier for earlier, later in itertools.pairwise(part))
    assert all(0 < rate(step, steps, 3) <= 1 for steps in (1, 4, 50) for step in range(steps + 3))


def test_the_model_is_the_mean_of_what_was_kept_and_the_end(little):
    trainer = Trainer(little)
    first = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.keep()
    trainer.model.load_state_dict({name: weight + 2.0 for name, weight in first.items()})
    trainer.take_mean()
    assert all(torch.allclose(weight, first[name] + 1.5) for name, weight in trainer.model.state_dict().items())


def test_a_stopped_training_goes_on_to_the_same_weights(little, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.small_model.trainer.EVERY", 1)

    def stops(steps):
        yield from list(steps)[:2]
        raise KeyboardInterrupt

    whole = train_small.train(tmp_path / "whole", recipe=little, work=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train_small.train(tmp_path / "parts", recipe=little, work=tmp_path / "b", progress=stops)
    assert not (tmp_path / "parts").exists()
    assert (tmp_path / "b" / CHECKPOINT).exists()
    steps = []
    parts = train_small.train(
        tmp_path / "parts", recipe=little, work=tmp_path / "b", progress=lambda left: steps.append(left) or left
    )
    assert steps == [range(2, 4)]
    assert parts["weights_sha256"] == whole["weights_sha256"]
    assert parts["loss"] == whole["loss"]
    model = LensModel.load(str(tmp_path / "parts"))
    assert model.architecture.n_layers == 1
    assert model.tokenizer.tokenize(" 1732") == ["Ġ17", "32"]
    with pytest.raises(OutputExists):
        train_small.train(tmp_path / "parts", recipe=little, work=tmp_path / "b")
    with pytest.raises(OtherRecipe, match="another"):
        train_small.train(tmp_path / "other", recipe=replace(little, seed=1), work=tmp_path / "b")
    (tmp_path / "b" / CHECKPOINT).write_bytes(b"torn")
    with pytest.raises(OtherRecipe, match="cannot be read"):
        train_small.train(tmp_path / "other", recipe=little, work=tmp_path / "b")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("steps", [1, 11])
def test_few_steps_train_to_the_end_and_the_record_names_them(little, tmp_path, monkeypatch, steps):
    train, asked = train_small.train, []

    def smaller(out, *, recipe, **options):
        asked.append(recipe)
        return train(out, recipe=replace(little, steps=recipe.steps, last_steps=recipe.last_steps), **options)

    monkeypatch.setattr(train_small, "train", smaller)
    app = Typer()
    app.command()(train_small.main)
    folders = ("--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"))
    result = CliRunner().invoke(app, [*folders, "--steps", str(steps)])
    assert result.exit_code == 0, result.output
    assert asked == [replace(Recipe(), steps=steps, last_steps=steps // 10)]
    made = json.loads((tmp_path / "out" / "training.json").read_text())
    assert made["made_by"] == f"python -m experiments.train_small --seed 0 --threads 2 --steps {steps}"


def test_the_same_recipe_gives_the_same_initial_weights(little):
    first, second, other = (Trainer(recipe).model.state_dict() for recipe in (little, little, replace(little, seed=1)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


# ------------------------------------------------------------------------------------------- the model that ships


@pytest.fixture(scope="module")
def small():
    return LensModel.load("zoo:small", device="cpu")


@pytest.fixture(scope="module")
def record():
    return json.loads((SMALL / "training.json").read_text(encoding="utf-8"))


def test_the_record_is_of_the_weights_that_ship(record):
    assert hashlib.sha256((SMALL / "model.safetensors").read_bytes()).hexdigest() == record["weights_sha256"]
    assert Recipe(**record["recipe"]) == Recipe()
    assert record["weights_sha256"] in (SMALL / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("split", ["held-out-words", "held-out-all"])
@pytest.mark.parametrize("task", corpus.TASKS)
def test_every_task_is_done_as_well_as_the_card_says_on_words_and_templates_never_trained_on(
    small, record, task, split
):
    """Measured through the task and the adapter, not by the code that trained; new prompts."""
    n = 300
    made = tasks.load(task).make(small, n=n, seed=7, split=split)
    logits = small.logits(made.clean)[torch.arange(len(made)), made.positions]
    right = (logits.argmax(-1)[:, None] == made.answers).any(-1).double().mean().item()
    said = list(record["accuracy"][task].values())[-2 if split == "held-out-words" else -1]["accuracy"]
    assert said > 0.95
    assert abs(right - said) < 4 * (said * (1 - said) / n) ** 0.5 + 0.005


def test_all_tasks_that_it_was_trained_on_are_claimed(record):
    assert list(record["tasks"]) == list(corpus.TASKS)


def test_every_year_is_a_century_and_two_digits(small):
    assert greater_than.usable_years(small.tokenizer) == dict(greater_than.YEARS)


def test_held_out_text_is_read_better_than_by_letters_alone(record):
    assert 1.0 < record["text_loss"]["held_out"] < 5.0
    assert record["text_loss"]["n_tokens"] > 50_000

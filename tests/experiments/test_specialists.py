"""The small models of one task: short trainings of every recipe; and those that ship, judged by the task itself."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from circuits import tasks
from circuits.tasks import docstring
from circuits.tasks.text import is_held_out
from experiments import specialists, train_zoo
from experiments.errors import UnknownName
from experiments.zoo_training import models
from experiments.zoo_training.accuracy import MEASURED_SEED, last_logits, measure
from experiments.zoo_training.corpus import IGNORED, Line, build_corpus
from experiments.zoo_training.fit import fit
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.specialist import Specialist, train, weights_digest
from experiments.zoo_training.tokenizer import word_level
from patching.lens import LensModel
from patching.metrics import METRICS
from patching.model_sources import ZOO, zoo_names
from patching.task import Task

NAMES = sorted(specialists.RECIPES)
FLOOR = 0.98

SHIPPED = [name for name in NAMES if f"zoo:{name}" in zoo_names()]
"""Those whose weights are in the repository; the others have a recipe."""


@pytest.fixture
def few_measured(monkeypatch):
    """Accuracy of short trainings, which says nothing, on few prompts."""
    monkeypatch.setattr("experiments.zoo_training.specialist.MEASURED", 20)


def reduced(specialist: Specialist) -> Recipe:
    """A recipe of the same kind that trains in a moment."""
    return replace(specialist.recipe, steps=3, batch=8, n_sentences=200, d_model=16, n_heads=2)


# ------------------------------------------------------------------------------------------------------- every recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_gives_a_folder_that_loads(name, tmp_path, few_measured):
    specialist = specialists.load(name)
    record = train(specialist, tmp_path / name, recipe=reduced(specialist))
    model = LensModel.load(tmp_path / name, device="cpu")
    assert model.parameter_count == record["parameters"]
    assert model.architecture.has_mlp == (specialist.recipe.d_mlp > 0)
    task = tasks.load(name).make(model, n=4, seed=0)
    assert torch.isfinite(model.logits(task.clean)).all()
    assert set(record["accuracy"][name]) == set(specialist.splits)
    assert json.loads((tmp_path / name / "training.json").read_text()) == record
    assert "--steps 3 --sentences 200" in record["made_by"]
    files = "".join(path.read_text() for path in (tmp_path / name).iterdir() if path.suffix != ".safetensors")
    assert str(tmp_path) not in files


@pytest.mark.parametrize("name", ["docstring", "induction", "sorting"])
def test_the_same_recipe_gives_the_same_weights(name, tmp_path, few_measured):
    specialist = specialists.load(name)
    before = torch.get_num_threads(), torch.random.get_rng_state()
    first, second = (train(specialist, tmp_path / out, recipe=reduced(specialist)) for out in "ab")
    other = train(specialist, tmp_path / "c", recipe=replace(reduced(specialist), seed=1))
    assert first["weights_sha256"] == second["weights_sha256"] != other["weights_sha256"]
    assert first["accuracy"] == second["accuracy"]
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


@pytest.mark.parametrize("name", NAMES)
def test_no_training_line_is_a_held_out_prompt(name):
    """By whole text; each task's own tests say what its splits hold out."""
    specialist, module = specialists.load(name), tasks.load(name)
    held_out = {prompt.clean for prompt in module.generate(3000, seed=5, split="held-out")}
    for line in itertools.islice(specialist.lines(0), 3000):
        text = f"{line.given} {line.text}".strip()
        assert not [prompt for prompt in (text, line.given) if prompt in held_out], text
        assert text.rsplit(" ", 1)[0] not in held_out


@pytest.mark.parametrize("name", NAMES)
def test_training_knows_every_word_that_a_prompt_uses(name):
    specialist, module = specialists.load(name), tasks.load(name)
    recipe = replace(specialist.recipe, n_sentences=4000)
    tokenizer = specialist.tokenizer(recipe)
    corpus = specialist.corpus(recipe, tokenizer)
    trained = set(corpus.tokens.flatten().tolist())
    known_gap = set(tokenizer("read")["input_ids"]) if name == "induction" else set()  # of a held-out line alone
    for corruption, split in itertools.product(module.CORRUPTIONS, specialist.splits):
        for prompt in module.generate(300, seed=1, split=split, corruption=corruption):
            for text in (prompt.clean, prompt.corrupt, *prompt.answers):
                assert set(tokenizer(text)["input_ids"]) <= trained | known_gap, text
    assert tokenizer.unk_token_id not in trained


def test_there_is_no_loss_on_what_is_given():
    tokenizer = word_level(["a", "b", "c"], n_ctx=4)
    corpus = build_corpus([Line("a b", "c a"), Line("", "c b"), Line("a", "b", ends=False)], tokenizer, n_ctx=4)
    assert corpus.tokens.tolist() == [[2, 3, 4, 2], [4, 3, 0, 0], [2, 3, 0, 0]]
    none = IGNORED
    assert corpus.targets.tolist() == [[none, 4, 2, 0], [3, 0, none, none], [3, none, none, none]]
    assert corpus.n_targets == 6


def test_no_docstring_in_training_has_a_held_out_parameter_or_the_form_of_a_held_out_template():
    """Whatever its words and however many, and in whatever style its parameters are described."""
    begins = {"class-short": "def _(cls, a, b, c, s):", "async-prefix": "async def _(self, p, a, b, c, s):",
              "method-the": "def _(self, p, q, a, b, c, s):"}  # fmt: skip
    assert set(begins) == set(docstring.HELD_OUT_TEMPLATES)
    for name, begin in begins.items():
        filled = docstring.HELD_OUT_TEMPLATES[name].replace("{function}", "_").replace("{", "").replace("}", "")
        assert filled.startswith(begin), "the shapes below are those of the templates"
    shapes, seen = {"def cls 4": 0, "async def self 5": 1, "def self 6": 2}, set()
    for line in itertools.islice(specialists.load("docstring").lines(0), 20_000):
        definition, _, rest = f"{line.given} {line.text}".partition("\n")
        if '"""' not in rest:
            continue
        head, _, inside = definition.removesuffix("):").partition("(")
        names = inside.split(", ")
        first = names.pop(0) if names[0] in ("self", "cls") else ""
        assert not any(is_held_out(name) for name in names)
        described = [i for i, name in enumerate(names) if re.search(rf"\b{name}\b", rest.split('"""')[1])]
        form = f"{head.rsplit(' ', 1)[0]} {first} {len(names)}"
        the = all(line.split()[-2:-1] == ["the"] or " the " in line for line in rest.splitlines()[2:-1])
        if shapes.get(form) == described[0]:
            assert form == "def self 6", line
            assert not the, line
            seen.add(form)
    assert seen == {"def self 6"}, "the training template of that form is there"


def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest():
    """The same first update as without it, but for those; theirs is orthogonal, as Muon's is."""
    recipe = Recipe(steps=1, batch=4, d_mlp=0, n_layers=2, d_model=16, n_heads=2, n_ctx=8, weight_decay=0.0)
    tokens = torch.arange(40).reshape(5, 8) % 11
    after = []
    for rate in (0.0, 0.02):
        model = models.build(recipe, d_vocab=11)
        fit(model, tokens, tokens.roll(-1, 1), recipe=replace(recipe, muon_rate=rate))
        after.append(dict(model.original_model.named_parameters()))
    before = dict(models.build(recipe, d_vocab=11).original_model.named_parameters())
    others = {name for name in before if not torch.equal(after[0][name], after[1][name])}
    assert others == {name for name in before if name.startswith("layers.") and before[name].dim() == 2}
    for name in others:
        change = (after[1][name] - before[name]).double()
        values = torch.linalg.svdvals(change)
        assert values[len(values) // 2] > 0.5 * values[0], name


def test_without_mlps_the_model_is_one_of_attention_alone():
    recipe = Recipe(d_mlp=0, n_layers=2, d_model=16, n_heads=2, n_ctx=8)
    model = models.build(recipe, d_vocab=11)
    again = models.build(recipe, d_vocab=11)
    tokens = torch.arange(8).reshape(1, 8)
    assert torch.equal(models.logits(model, tokens), models.logits(again, tokens))
    later = tokens.clone()
    later[0, 5:] = 9
    assert torch.equal(models.logits(model, tokens)[:, :5], models.logits(model, later)[:, :5])
    assert sum(weight.numel() for weight in models.parameters(model)) == sum(
        [11 * 16, 8 * 16, 2 * (4 * (16 * 16 + 16) + 32), 32, 11 * 16]
    )


def test_the_accuracy_is_that_of_the_highest_logit(tmp_path):
    """Against a model whose prediction is set by hand: always the token 3, "b"."""
    tokenizer = word_level(["a", "b", "c"], n_ctx=4)
    model = models.build(Recipe(d_mlp=0, n_layers=1, d_model=4, n_heads=1, n_ctx=4), d_vocab=5)
    with torch.no_grad():
        for weight in models.parameters(model):
            weight.zero_()
        final = model.original_model.ln_out.original_component
        final.bias[0] = 1.0
        model.original_model.head.original_component.weight[3, 0] = 2.0
    from circuits.tasks.text import Prompt

    prompts = [
        Prompt("a c", "a a", (" b", " c"), (" a",), "t"),
        Prompt("a", "c", (" a",), (" b", " c"), "t"),
    ]
    assert last_logits(model, tokenizer, ["a c", "a"]).argmax(-1).tolist() == [3, 3]
    assert measure(model, tokenizer, prompts) == {
        "n": 2, "accuracy": 0.5, "logit_difference": 0.0, "logit_difference_corrupt": 0.0
    }  # fmt: skip


def test_the_command_names_the_nearest_model(tmp_path):
    app = Typer()
    app.command()(train_zoo.main)
    result = CliRunner().invoke(app, ["sorted", "--out", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert "Did you mean sorting" in result.output
    with pytest.raises(UnknownName):
        specialists.load("nothing")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------- the models that ship


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request) -> LensModel:
    return LensModel.load(f"zoo:{request.param}", device="cpu")


def test_the_specialists_ship():
    assert {"docstring", "greater_than", "induction", "modular_addition", "sorting"} <= set(SHIPPED)


def name_of(model: LensModel) -> str:
    return model.name.removeprefix("zoo:")


def folder_of(model: LensModel) -> Path:
    return ZOO / name_of(model)


def record_of(model: LensModel) -> dict:
    return json.loads((folder_of(model) / "training.json").read_text())


def share_right(model: LensModel, task: Task) -> float:
    """How often an answer has the highest logit, by the task and the model as every method sees them."""
    best = model.logits(task.clean)[torch.arange(len(task)), task.positions].argmax(-1)
    return (best[:, None] == task.answers).any(-1).double().mean().item()


def test_the_shipped_model_is_as_accurate_as_its_card_says(shipped):
    record = record_of(shipped)
    for split, row in record["accuracy"][name_of(shipped)].items():
        task = tasks.load(name_of(shipped)).make(shipped, n=row["n"], seed=MEASURED_SEED, split=split)
        assert share_right(shipped, task) == pytest.approx(row["accuracy"], abs=2e-3)
        assert row["accuracy"] > FLOOR


def test_other_prompts_are_answered_as_well_and_the_corruption_takes_the_answer_away(shipped):
    module = tasks.load(name_of(shipped))
    for corruption in module.CORRUPTIONS:
        task = module.make(shipped, n=300, seed=11, split="held-out", corruption=corruption)
        assert share_right(shipped, task) > FLOOR - 0.02
    task = module.make(shipped, n=300, seed=11, split="held-out")
    assert METRICS[task.metric].higher_is_better
    assert share_right(shipped, task.swapped()) < share_right(shipped, task) - 0.3


def test_the_shipped_files_are_those_of_the_record(shipped):
    record, folder = record_of(shipped), folder_of(shipped)
    specialist = specialists.load(name_of(shipped))
    assert weights_digest(folder) == record["weights_sha256"]
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == record["weights_sha256"]
    assert (folder / "README.md").read_text() == specialist.card(record)
    assert Recipe(**record["recipe"]) == specialist.recipe
    assert record["made_by"] == f"python -m experiments.train_zoo {specialist.task} --seed 0"
    assert shipped.parameter_count == record["parameters"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".safetensors"}


def test_the_text_of_the_shipped_model_is_made_again(shipped):
    record, specialist = record_of(shipped), specialists.load(name_of(shipped))
    lines = itertools.islice(specialist.lines(record["recipe"]["seed"]), record["recipe"]["n_sentences"])
    texts = [f"{line.given} {line.text}" if line.given else line.text for line in lines]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == record["corpus"]["sha256"]

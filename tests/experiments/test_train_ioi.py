"""The training script, on recipes that take a second; and the model that it made and that ships."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer import Typer
from typer.testing import CliRunner

from circuits.tasks import ioi
from experiments import ioi_sentences, train_ioi
from experiments.train_ioi import build_tokenizer, measure, train
from experiments.zoo_training.accuracy import MEASURED_SEED
from experiments.zoo_training.folder import OutputExists
from experiments.zoo_training.recipe import DoesNotFit, Recipe
from graphs.errors import WriteFailed
from patching.model_sources import ZOO

SHIPPED = ZOO / "ioi"
TINY = Recipe(n_sentences=300, steps=8, batch=8, n_layers=1, n_heads=2, d_model=16, d_mlp=16)


class Interrupted:
    """A progress bar during which somebody presses Ctrl-C."""

    def __init__(self, steps: range) -> None:
        self.steps = steps

    def __iter__(self):
        yield self.steps[0]
        raise KeyboardInterrupt


def names_in(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word in ioi.NAMES]


def test_no_training_sentence_holds_a_held_out_pair_or_template():
    held_out = [
        re.compile(re.sub(r"\\{\w+\\}", r"[\\w, ]+?", re.escape(text))) for text in ioi.HELD_OUT_TEMPLATES.values()
    ]
    for text in itertools.islice(ioi_sentences.sentences(5), 2000):
        pairs = itertools.combinations(set(names_in(text)), 2)
        assert not any(ioi.is_held_out_pair(*pair) for pair in pairs), text
        assert not any(pattern.search(text) for pattern in held_out), text


def test_training_knows_every_word_that_a_held_out_prompt_uses():
    tokenizer = build_tokenizer(n_ctx=40)
    trained = {
        token for text in itertools.islice(ioi_sentences.sentences(0), 5000) for token in tokenizer(text)["input_ids"]
    }
    prompts = ioi.generate(2000, seed=1, split="held-out")
    used = {token for prompt in prompts for token in tokenizer(prompt.clean + prompt.answer)["input_ids"]}
    assert used <= trained
    assert tokenizer.unk_token_id not in trained
    assert len(trained) == len(tokenizer) - 2, "the vocabulary holds words that no sentence uses"


@pytest.mark.parametrize("kind", ioi_sentences.KINDS)
def test_each_kind_of_sentence_ends_with_its_answer(kind):
    make, _ = ioi_sentences.KINDS[kind]
    for seed in range(50):
        names = names_in(make(random.Random(seed)))
        text = make(random.Random(seed))
        assert text.endswith(f"{names[-1]}.")
        if kind in ("ioi", "stranger", "exchange", "thanks"):
            assert names[-1] != names[-2]
            assert names[-1] in names[:-1]


def test_shares_of_the_kinds_sum_to_one():
    assert sum(share for _, share in ioi_sentences.KINDS.values()) == pytest.approx(1.0)


def test_the_tokenizer_has_one_token_per_word_and_survives_the_disk(tmp_path):
    build_tokenizer(n_ctx=40).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("When Mary and John went to the store, John gave a drink to")["input_ids"]
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)) == (
        "When Mary and John went to the store , John gave a drink to"
    )
    assert tokenizer(" Mary")["input_ids"] == tokenizer("Mary")["input_ids"] == [ids[1]]
    assert tokenizer.decode(ids) == "When Mary and John went to the store, John gave a drink to"
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"


def test_a_reduced_training_writes_a_whole_model_twice_the_same(tmp_path):
    before = torch.get_num_threads(), torch.random.get_rng_state()
    first, second = (train(tmp_path / name, recipe=TINY) for name in "ab")
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["accuracy"] == second["accuracy"]
    assert train(tmp_path / "c", recipe=replace(TINY, seed=2))["weights_sha256"] != first["weights_sha256"]
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert json.loads((tmp_path / "a" / "training.json").read_text()) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "a").glob("*.*n"))


def test_training_lowers_the_loss(tmp_path):
    short = train(tmp_path / "a", recipe=TINY)["loss"]
    long = train(tmp_path / "b", recipe=replace(TINY, steps=200))["loss"]
    assert long < short - 1


def test_an_interrupted_training_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "ioi", recipe=TINY, progress=Interrupted)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_leaves_the_old_model(tmp_path):
    old = train(tmp_path / "ioi", recipe=TINY)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "ioi", recipe=TINY, force=True, progress=Interrupted)
    assert json.loads((tmp_path / "ioi" / "training.json").read_text()) == old


def test_what_is_there_is_not_overwritten(tmp_path):
    out = tmp_path / "ioi"
    train(out, recipe=TINY)
    with pytest.raises(OutputExists, match="--force"):
        train(out, recipe=TINY)
    new = train(out, recipe=replace(TINY, seed=2), force=True)
    assert json.loads((out / "training.json").read_text()) == new
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ioi"]
    assert not (out / ".replaced").exists()


def test_force_replaces_only_what_the_script_made(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(OutputExists, match=r"has no training\.json"):
        train(tmp_path / "thesis", recipe=TINY, force=True)
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_a_missing_parent_is_said_before_training(tmp_path):
    with pytest.raises(WriteFailed, match="Make that folder"):
        train(tmp_path / "nowhere" / "ioi", recipe=TINY, progress=Interrupted)


def test_a_sentence_longer_than_the_context_is_named(tmp_path):
    with pytest.raises(DoesNotFit, match="Raise n_ctx"):
        train(tmp_path / "ioi", recipe=replace(TINY, n_ctx=12))
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_in_one_sentence_what_is_wrong(tmp_path):
    app = Typer()
    app.command()(train_ioi.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "nowhere" / "ioi"), "--steps", "1"])
    assert result.exit_code == 1
    assert "Make that folder" in result.output
    assert "Traceback" not in result.output


# ------------------------------------------------------------------------------------- the model that ships


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForCausalLM.from_pretrained(SHIPPED).eval(), AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def record():
    return json.loads((SHIPPED / "training.json").read_text())


@pytest.mark.parametrize("split", ["held-out-pairs", "held-out-templates"])
def test_the_shipped_model_is_as_accurate_as_its_card_says(shipped, record, split):
    figures = measure(*shipped, ioi.generate(2000, seed=MEASURED_SEED, split=split))
    assert figures == pytest.approx(record["accuracy"]["ioi"][split], abs=2e-3)
    assert figures["accuracy"] > 0.97
    assert figures["io_over_s"] > 0.97


def test_the_shipped_model_knows_what_the_corruption_takes_away(shipped):
    figures = measure(*shipped, ioi.generate(1000, seed=2, corruption="s2"))
    assert figures["logit_difference"] > 3
    assert figures["logit_difference_corrupt"] < -3
    assert abs(measure(*shipped, ioi.generate(1000, seed=2))["logit_difference_corrupt"]) < 1


def test_the_shipped_files_are_those_of_the_record(record):
    weights = SHIPPED / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["weights_sha256"]
    assert weights.stat().st_size < 2_000_000
    tensors = load_file(weights)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    card = (SHIPPED / "README.md").read_text()
    assert card == train_ioi.model_card(record)
    assert "license: mit" in card
    names = {path.name for path in SHIPPED.iterdir()}
    assert not [name for name in names if Path(name).suffix in {".bin", ".pt", ".pkl"}]


def test_the_recipe_of_the_shipped_model_is_the_default(record):
    assert Recipe(**record["recipe"]) == Recipe()
    texts = itertools.islice(ioi_sentences.sentences(Recipe.seed), Recipe.n_sentences)
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == record["corpus"]["sha256"]

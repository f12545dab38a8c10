"""A file of pairs as a task of a model: the same task as in Python; what only a tokenizer can tell is checked."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuits import tasks
from circuits.tasks import ioi
from circuits.tasks.errors import BadTaskFile, UnknownChoice, UnknownTask
from circuits.tasks.file_layouts import read
from graphs.errors import BadFile, WiretraceError
from patching import LensModel, toy
from patching.task import Task

PAIR = {
    "clean": "When Mary and John went to the store, John gave a drink to",
    "corrupt": "When Lisa and Paul went to the store, Kevin gave a drink to",
    "answers": [" Mary"],
    "wrong_answers": [" John"],
}


@pytest.fixture(scope="module")
def model() -> LensModel:
    return LensModel.load("zoo:ioi")


@pytest.fixture(scope="module")
def letters() -> SimpleNamespace:
    """A tokenizer to which every byte is a token, and some merges of a space and a letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "ab"]
    vocabulary = {token: at for at, token in enumerate([*alphabet, *map("".join, merges), "<s>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    return SimpleNamespace(tokenizer=fast)


def lines(folder: Path, rows: list[Any], name: str = "t.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def reason(folder: Path, rows: list[Any], model: Any) -> str:
    with pytest.raises(BadTaskFile) as caught:
        tasks.from_file(lines(folder, rows), model)
    return str(caught.value)


def same(one: Task, other: Task) -> bool:
    tensors = ("clean", "corrupt", "answers", "wrong_answers", "positions")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors) and one.texts == other.texts


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_file_of_a_tasks_prompts_is_that_task(tmp_path: Path, model: LensModel, suffix: str) -> None:
    rows = [
        {"clean": p.clean, "corrupt": p.corrupt, "answers": [p.answer], "wrong_answers": [p.wrong_answer]}
        for p in ioi.generate(20, seed=3)
    ]
    path = tmp_path / f"mine.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(rows[0])
            table.writerows([json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in rows)
    elif suffix == "json":
        path.write_text(json.dumps({"name": "ioi", "prompts": rows}))
    else:
        lines(tmp_path, rows, path.name)
    made = tasks.from_file(path, model)
    assert same(made, ioi.make(model, n=20, seed=3))
    assert made.name == ("ioi" if suffix == "json" else "mine")
    assert made.metric == "logit_difference"


def test_token_ids_need_no_tokenizer(tmp_path: Path, model: LensModel) -> None:
    rows = [
        {"clean": [0, 2], "corrupt": [1, 2], "answers": [3], "wrong_answers": 1},
        {"clean": [1], "corrupt": [0], "answer": 2, "wrong_answer": 3},
    ]
    made = tasks.from_file(lines(tmp_path, rows), toy.model())
    assert made.clean.tolist() == [[0, 2], [1, 0]]
    assert made.positions.tolist() == [1, 0]
    assert (made.answers.tolist(), made.wrong_answers.tolist()) == ([[3], [2]], [[1], [3]])
    assert made.texts == ("0 2", "1")
    encode = model.tokenizer(PAIR["clean"])["input_ids"], model.tokenizer(PAIR["corrupt"])["input_ids"]
    ids = {"clean": encode[0], "corrupt": encode[1], "answers": PAIR["answers"], "wrong_answers": PAIR["wrong_answers"]}
    in_ids, in_words = (tasks.from_file(lines(tmp_path, [row]), model) for row in (ids, PAIR))
    assert torch.equal(in_ids.clean, in_words.clean)
    assert in_ids.texts[0].split() == model.tokenizer.decode(encode[0]).split()


def test_years_are_tokens_too(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, **{f"{year:02}": year + 1 for year in range(100)}, "from": 101}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    years = SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    path = tmp_path / "greater.csv"
    path.write_text("clean,corrupted,label\nfrom 17 96 17,from 17 01 17,96\nfrom 16 04 16,from 16 01 16,4\n")
    made = tasks.from_file(path, years)
    assert made.answers[0, :4].tolist() == [98, 99, 100, -1]
    assert made.answers[1].tolist() == list(range(6, 101))
    assert made.wrong_answers[1, :6].tolist() == [1, 2, 3, 4, 5, -1]
    assert made.metric == "probability_difference"


def test_a_beginning_of_text_goes_in_front_of_both(tmp_path: Path, letters: SimpleNamespace, model: LensModel) -> None:
    row = {"clean": "x", "corrupt": "y", "answers": [" a"], "wrong_answers": [" b"]}
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"prepend_bos": True, "prompts": [row]}))
    made = tasks.from_file(path, letters)
    bos = letters.tokenizer.bos_token_id
    assert (made.clean[0, 0], made.corrupt[0, 0], made.clean.shape[1]) == (bos, bos, 2)
    assert made.starts_with_bos
    with pytest.raises(BadTaskFile, match="tokenizer has no such token"):
        tasks.from_file(path, SimpleNamespace(tokenizer=None))


# ---------------------------------------------------------------------------------------------------- what is refused


def test_pairs_of_unequal_length_are_shown_in_tokens(tmp_path: Path, letters: SimpleNamespace) -> None:
    rows = [
        {"clean": "x a", "corrupt": "y b", "answer": " a", "wrong_answer": " b"},
        {"clean": "x a", "corrupt": "x  c", "answer": " a", "wrong_answer": " b"},
    ]
    said = reason(tmp_path, rows, letters)
    assert "t.jsonl: 1 of 2 rows cannot be used:" in said
    assert "row 2 (line 2): clean is 2 tokens and corrupt 4: [x Ġa] and [x Ġ Ġ c]. Choose words of equally many" in said


def test_answers_of_several_tokens_are_shown(tmp_path: Path, letters: SimpleNamespace) -> None:
    rows = [{"clean": "x", "corrupt": "y", "answer": " cat", "wrong_answer": " b"}]
    assert "the answer ' cat' is 4 tokens, [Ġ c a t]: one is judged. Choose another word" in reason(
        tmp_path, rows, letters
    )
    rows[0]["answer"] = "ab"
    assert "Choose another word, or a space before it" in reason(tmp_path, rows, letters)


def test_words_that_a_model_does_not_know(tmp_path: Path, model: LensModel) -> None:
    clean = PAIR | {"clean": str(PAIR["clean"]).replace("store", "zoo")}
    said = reason(tmp_path, [PAIR, clean, PAIR | {"answers": [" Zoe"]}, PAIR | {"wrong_answers": [" Zoe"]}], model)
    assert "row 2 (line 2): clean holds a word that this model does not know: 'When Mary" in said
    assert "row 3 (line 3): the answer ' Zoe' is a word that this model does not know" in said
    assert "row 4 (line 4): the answer ' Zoe'" in said


def test_the_first_token_of_a_program_is_not_an_unknown_word(tmp_path: Path) -> None:
    """There the unknown token is also the beginning of the text, written out."""
    reverse = LensModel.load("zoo:reverse")
    made = tasks.load("reverse").make(reverse, n=4, seed=0)
    decode = reverse.tokenizer.decode
    rows = [
        {"clean": decode(made.clean[at, : end + 1]), "corrupt": decode(made.corrupt[at, : end + 1]),
         "answers": decode(made.answers[at]), "wrong_answers": decode(made.wrong_answers[at])}
        for at, end in enumerate(made.positions.tolist())
    ]  # fmt: skip
    found = tasks.from_file(lines(tmp_path, rows), reverse)
    assert torch.equal(found.answers, made.answers)
    assert found.clean[:, 0].tolist() == [0, 0, 0, 0]
    rows[1]["clean"] = rows[1]["clean"][:-1] + "z"
    assert "row 2 (line 2): clean holds a word that this model does not know" in reason(tmp_path, rows, reverse)


def test_an_answer_that_is_wrong_in_tokens_alone(tmp_path: Path, model: LensModel) -> None:
    mary = model.tokenizer(" Mary")["input_ids"][0]
    said = reason(tmp_path, [PAIR | {"wrong_answers": [mary]}], model)
    assert "is also a wrong answer to this tokenizer" in said
    assert "Mary" in said


def test_prompts_and_ids_that_are_too_much_for_the_model(tmp_path: Path, model: LensModel) -> None:
    long = {**PAIR, "clean": "the " * 41 + "store", "corrupt": "the " * 41 + "park"}
    said = reason(tmp_path, [PAIR, long, PAIR | {"answers": [5_000]}], model)
    assert "row 2 (line 2): the prompts are 42 tokens; this model reads 40" in said
    assert "row 3 (line 3): this model has 206 tokens; got the id 5,000. Is the file for another model?" in said


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    assert "holds text, but this model has no tokenizer. Give token ids" in reason(tmp_path, [PAIR], toy.model())


def test_a_row_that_is_not_drawn_is_checked_too(tmp_path: Path, model: LensModel) -> None:
    path = lines(tmp_path, [PAIR, PAIR, PAIR | {"answers": [" Zoe"]}])
    with pytest.raises(BadTaskFile, match="row 3"):
        tasks.from_file(path, model, n=1)


# -------------------------------------------------------------------------------------------------------- what is drawn


def many(folder: Path, model: LensModel) -> Path:
    prompts = ioi.generate(60, seed=0)
    return lines(folder, [
        {"clean": p.clean, "corrupt": p.corrupt, "answer": p.answer, "wrong_answer": p.wrong_answer} for p in prompts
    ])  # fmt: skip


def test_splits_part_the_file_and_draws_keep_its_order(tmp_path: Path, model: LensModel) -> None:
    path = many(tmp_path, model)
    whole = tasks.from_file(path, model)
    parts = [tasks.from_file(path, model, split=split) for split in ("train", "held-out")]
    assert sorted(text for part in parts for text in part.texts) == sorted(whole.texts)
    assert not set(parts[0].texts) & set(parts[1].texts)
    assert parts[1].texts == tuple(row.clean for row in read(path).rows if row.held_out)
    drawn = tasks.from_file(path, model, n=7, seed=1)
    assert drawn.texts == tasks.from_file(path, model, n=7, seed=1).texts
    assert drawn.texts != tasks.from_file(path, model, n=7, seed=2).texts
    places = [whole.texts.index(text) for text in drawn.texts]
    assert places == sorted(set(places))
    assert same(tasks.from_file(path, model, n=1_000, seed=9), whole)


def test_a_split_without_rows_is_explained(tmp_path: Path, model: LensModel) -> None:
    path = lines(tmp_path, [PAIR | {"split": "train"}] * 3)
    with pytest.raises(
        BadTaskFile, match=r'no row of the split held-out: of 3, 0 are held out\. Add rows .* column "split"'
    ):
        tasks.from_file(path, model, split="held-out")


def test_options_are_checked(tmp_path: Path, model: LensModel) -> None:
    path = lines(tmp_path, [PAIR])
    with pytest.raises(UnknownChoice, match="one of train, held-out, all; got 'test'"):
        tasks.from_file(path, model, split="test")
    with pytest.raises(UnknownChoice, match="at least 1; got 0"):
        tasks.from_file(path, model, n=0)


# ----------------------------------------------------------------------------------------------------- as a task module


def test_a_path_is_a_task(tmp_path: Path, model: LensModel) -> None:
    path = many(tmp_path, model)
    module = tasks.load(str(path))
    assert module.SPLITS == ("train", "held-out", "all")
    assert module.__doc__ == "Pairs of prompts from a file: t.jsonl."
    assert same(
        module.make(model, n=5, seed=2, split="train"), tasks.from_file(path, model, n=5, seed=2, split="train")
    )
    assert tasks.load("ioi") is ioi


def test_a_path_is_read_when_its_prompts_are_wanted(tmp_path: Path, model: LensModel) -> None:
    module = tasks.load(str(tmp_path / "later.csv"))
    with pytest.raises(BadFile, match="there is no file"):
        module.make(model)
    lines(tmp_path, [PAIR | {"split": "held-out"}], "later.csv").write_text(
        "clean,corrupt,answer,wrong_answer,split\n"
        + ",".join([f'"{PAIR["clean"]}"', f'"{PAIR["corrupt"]}"', " Mary", " John", "held-out"])
    )
    assert len(module.make(model)) == 1


@pytest.mark.parametrize("name", ["ioo", "", "IOI", "zoo:ioi", "my_task"])
def test_a_name_that_is_neither_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownTask, match=r"or a file of your own pairs \(\.json, \.jsonl, \.csv\)"):
        tasks.load(name)


def test_a_file_that_is_there_is_taken_whatever_its_name(tmp_path: Path, model: LensModel, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_task").write_text("x")
    Path("ioi").write_text("x")
    with pytest.raises(BadTaskFile, match=r"ends in \.json, \.jsonl, \.csv, which says its layout; got my_task"):
        tasks.load("my_task").make(model)
    assert tasks.load("ioi") is ioi


WORDS = st.sampled_from(
    [
        "Mary",
        "John",
        " Mary",
        " John",
        "store",
        " store",
        ",",
        " the",
        "Zoe",
        "",
        " ",
        "<unk>",
        "<|endoftext|>",
        "é",
        "\n",
        3,
        500,
    ]
)
SIDES = st.lists(WORDS, max_size=4)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), min_size=1, max_size=3))
def test_nothing_but_our_errors_comes_out(tmp_path: Path, model: LensModel, rows: list[tuple[list[Any], ...]]) -> None:
    def prompt(words: list[Any]) -> Any:
        return words if words and all(isinstance(word, int) for word in words) else "".join(map(str, words))

    path = lines(tmp_path, [
        {"clean": prompt(a), "corrupt": prompt(b), "answers": c, "wrong_answers": d} for a, b, c, d in rows
    ])  # fmt: skip
    try:
        made = tasks.from_file(path, model)
    except WiretraceError:
        return
    assert len(made) == len(rows)
    assert int(made.clean.max()) < model.d_vocab

"""Files of a user's own pairs: the three layouts say the same, and whatever is wrong is said with row and line."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from circuits.tasks import file_layouts
from circuits.tasks.errors import BadTaskFile
from circuits.tasks.file_layouts import METRICS, read
from circuits.tasks.file_rows import Columns
from graphs.errors import BadFile, WiretraceError

PAIRS = [
    {"clean": "A B A", "corrupt": "A C A", "answers": [" B"], "wrong_answers": [" C"]},
    {"clean": 'He said, "no"\nand', "corrupt": "She said,\t“no” and", "answers": [" é", " x"], "wrong_answers": [" #"]},
    {"clean": " 5", "corrupt": "6", "answers": ["7"], "wrong_answers": ["8", "9"]},
]
PAIR = PAIRS[0]


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def as_json(pairs: list[Any], **more: Any) -> str:
    return json.dumps({**more, "prompts": pairs}, indent=1)


def as_json_lines(pairs: list[Any]) -> str:
    return "".join(f"{json.dumps(each)}\n" for each in pairs)


def as_csv(pairs: list[dict[str, Any]], *, head: tuple[str, ...] | None = None, end: str = "\n") -> str:
    file = io.StringIO()
    head = head or tuple(pairs[0])
    table = csv.DictWriter(file, head, lineterminator=end)
    table.writeheader()
    for pair in pairs:
        table.writerow({name: json.dumps(value) if isinstance(value, list) else value for name, value in pair.items()})
    return file.getvalue()


LAYOUTS: dict[str, Callable[[list[Any]], str]] = {".json": as_json, ".jsonl": as_json_lines, ".csv": as_csv}


def reason(folder: Path, name: str, text: str | bytes, error: type[WiretraceError] = BadTaskFile) -> str:
    with pytest.raises(error) as caught:
        read(written(folder, name, text))
    assert name in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("suffix", LAYOUTS)
def test_a_pair_is_the_same_in_every_layout(tmp_path: Path, suffix: str) -> None:
    file = read(written(tmp_path, f"mine{suffix}", LAYOUTS[suffix](PAIRS)))
    assert [(row.clean, row.corrupt) for row in file.rows] == [(pair["clean"], pair["corrupt"]) for pair in PAIRS]
    assert [list(row.answers) for row in file.rows] == [pair["answers"] for pair in PAIRS]
    assert [list(row.wrong_answers) for row in file.rows] == [pair["wrong_answers"] for pair in PAIRS]
    assert [row.number for row in file.rows] == [1, 2, 3]
    assert (file.name, file.metric, file.unused, file.prepend_bos) == ("mine", "logit_difference", (), False)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@pytest.mark.parametrize("suffix", LAYOUTS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT).filter(lambda four: four[2] != four[3]), min_size=1, max_size=4)
)
def test_any_text_comes_back_as_it_was(tmp_path: Path, suffix: str, pairs: list[tuple[str, ...]]) -> None:
    rows = [{"clean": a, "corrupt": b, "answers": [c], "wrong_answers": [d]} for a, b, c, d in pairs]
    found = read(written(tmp_path, f"t{suffix}", LAYOUTS[suffix](rows))).rows
    assert [(row.clean, row.corrupt, *row.answers, *row.wrong_answers) for row in found] == pairs


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    gaps=st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
@example(before={"prompts": [{"clean": "] , ["}, 1]}, gaps=[0, 0, 0])
def test_rows_of_json_know_their_lines(tmp_path: Path, before: Any, gaps: list[int]) -> None:
    """Against a count of the line breaks that were put in, whatever stands before the rows."""
    head = json.dumps({"_before": before, "_x": '"prompts": [', "a": "prompts"}, indent=2)[:-1]
    text, lines = f'{head}, "promp\\u0074s": [', []
    for at, gap in enumerate(gaps):
        text += f"{',' if at else ''}{chr(10) * gap}"
        lines.append(text.count("\n") + 1)
        text += json.dumps(PAIR | {"_": '],{\\"\n'})
    file = read(written(tmp_path, "t.json", text + '], "_after": [[],[1]]}'))
    assert [row.line for row in file.rows] == lines


def test_lines_of_csv_and_json_lines_count_everything(tmp_path: Path) -> None:
    text = '# a comment\n\n# another\nclean,corrupt,answer\n"a\nb",c,d\n\n  \ne,f,g\n'
    assert [(row.number, row.line) for row in read(written(tmp_path, "t.csv", text)).rows] == [(1, 5), (2, 9)]
    text = '\n{"//": "comment"}\n' + as_json_lines([PAIR]) + "\n\n" + as_json_lines([PAIR])
    assert [(row.number, row.line) for row in read(written(tmp_path, "t.jsonl", text)).rows] == [(1, 3), (2, 6)]


@pytest.mark.parametrize("suffix", LAYOUTS)
def test_a_byte_order_mark_and_line_ends_of_other_systems_are_fine(tmp_path: Path, suffix: str) -> None:
    plain = read(written(tmp_path, f"a{suffix}", LAYOUTS[suffix](PAIRS[::2])))
    text = LAYOUTS[suffix](PAIRS[::2]).replace("\n", "\r\n")
    other = read(written(tmp_path, f"b{suffix}", b"\xef\xbb\xbf" + text.encode()))
    assert other.rows == plain.rows


def test_a_line_separator_within_a_string_ends_no_line(tmp_path: Path) -> None:
    text = json.dumps(PAIR | {"clean": "a\u2028b\x85c"}, ensure_ascii=False)
    assert read(written(tmp_path, "t.jsonl", text)).rows[0].clean == "a\u2028b\x85c"


def test_settings_of_json_are_read(tmp_path: Path) -> None:
    text = as_json(PAIRS, name="Mine", metric="kl", prepend_bos=True, word_idxs={"a": 1}, seq_labels=["a"], _note=1)
    file = read(written(tmp_path, "t.json", text))
    assert (file.name, file.metric, file.prepend_bos, file.unused) == ("Mine", "kl", True, ("word_idxs", "seq_labels"))


def test_without_wrong_answers_the_probability_counts(tmp_path: Path) -> None:
    rows = [{"clean": "a", "corrupt": "b", "answer": "c"}]
    assert read(written(tmp_path, "t.jsonl", as_json_lines(rows))).metric == "log_probability"
    rows.append(
        PAIR | {"wrong_answer": "d"} if False else {"clean": "a", "corrupt": "b", "answer": "c", "wrong_answer": "d"}
    )
    said = reason(tmp_path, "t.jsonl", as_json_lines(rows))
    assert "row 1 (line 1): no wrong answer, with which the logit_difference compares" in said
    assert "in every row, in none, or another metric" in said


def test_the_metrics_are_those_of_patching() -> None:
    from patching import metrics

    assert set(METRICS) == set(metrics.METRICS)


# ------------------------------------------------------------------------------------------- files of other tools


def test_eap_igs_indirect_objects(tmp_path: Path) -> None:
    text = (
        ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n"
        '826,"When Amy and Laura got a snack, Laura gave it to","When Amy and Laura got a snack, Nicholas gave it to",'
        '"When Amy and Laura got a snack, Amy gave it to",14235,16753\n'
    )
    file = read(written(tmp_path, "ioi.csv", text))
    (row,) = file.rows
    assert (row.answers, row.wrong_answers, row.clean[-10:]) == ((14235,), (16753,), "gave it to")
    assert file.unused == ("", "corrupted_hard")
    assert file.metric == "logit_difference"


@pytest.mark.parametrize("name", ["label", "correct_idx"])
def test_eap_igs_years(tmp_path: Path, name: str) -> None:
    text = f"clean,corrupted,{name}\nfrom 1796 to 17,from 1701 to 17,96\nfrom 1604 to 16,from 1601 to 16,4\n"
    file = read(written(tmp_path, "greater.csv", text))
    assert file.rows[0].answers == ("97", "98", "99")
    assert (len(file.rows[0].wrong_answers), file.rows[0].wrong_answers[-1]) == (97, "96")
    assert (file.rows[1].answers[0], file.rows[1].wrong_answers) == ("05", ("00", "01", "02", "03", "04"))
    assert file.metric == "probability_difference"


@pytest.mark.parametrize(
    ("right", "wrong", "cells", "expected"),
    [
        ("answers_idx", "corrupted_answers_idx", ('"[16840, 23685]"', "[7018]"), ((16840, 23685), (7018,))),
        ("clean_answer_idx", "corrupted_answer_idx", ("673", "339"), ((673,), (339,))),
        ("country_idx", "corrupted_country_idx", ("8037.0", "1578"), ((8037,), (1578,))),
    ],
)
def test_other_columns_of_ids(tmp_path: Path, right: str, wrong: str, cells: tuple[str, str], expected: Any) -> None:
    text = f"clean,corrupted,{right},{wrong},label,answers,prob_diff\na,b,{cells[0]},{cells[1]},0,\"['x']\",0.5\n"
    file = read(written(tmp_path, "t.csv", text))
    assert (file.rows[0].answers, file.rows[0].wrong_answers) == expected
    assert file.unused == ("label", "answers", "prob_diff")


def test_eap_igs_agreement_is_explained(tmp_path: Path) -> None:
    said = reason(tmp_path, "sva.csv", "clean,corrupted,group,plural\nThe songs,The song,x,1\n")
    assert "two lists of verbs that are not in the file. Add answers and wrong_answers" in said


def test_auto_circuits_token_ids(tmp_path: Path) -> None:
    pairs = [{"clean": [3, 0], "corrupt": [3, 1], "answers": [1], "wrong_answers": [2]}]
    (row,) = read(written(tmp_path, "t.json", as_json(pairs))).rows
    assert (row.clean, row.corrupt, row.answers, row.wrong_answers) == ((3, 0), (3, 1), (1,), (2,))
    pairs[0]["answers"] = [[1, 2]]  # type: ignore[list-item]  # as its tracr files have it: one answer a position
    assert "got a list in the list. One token is judged" in reason(tmp_path, "t.json", as_json(pairs))


# ---------------------------------------------------------------------------------------------------------- splits


def test_one_row_in_five_is_held_out_by_its_clean_prompt_alone(tmp_path: Path) -> None:
    pairs = [PAIR | {"clean": f"prompt {number}"} for number in range(2_000)]
    file = read(written(tmp_path, "t.jsonl", as_json_lines(pairs)))
    held_out = [row.clean for row in file.of_split("held-out")]
    assert held_out == [pair["clean"] for pair in pairs if zlib.crc32(pair["clean"].encode()) % 5 == 0]
    assert 340 < len(held_out) < 460
    assert len(file.of_split("train")) + len(held_out) == len(file.of_split("all")) == 2_000
    fewer = read(written(tmp_path, "u.jsonl", as_json_lines(pairs[500:1500:3])))
    assert {row.clean for row in fewer.of_split("held-out")} == {row.clean for row in fewer.rows} & set(held_out)


def test_a_file_can_say_its_splits(tmp_path: Path) -> None:
    pairs = [PAIR | {"split": split} for split in ("train", "held-out", "train")]
    file = read(written(tmp_path, "t.csv", as_csv(pairs)))
    assert [len(file.of_split(split)) for split in ("train", "held-out", "all")] == [2, 1, 3]
    assert "row 2 (line 2): has no split" in reason(tmp_path, "t.jsonl", as_json_lines([pairs[0], PAIR]))
    assert "split: expected train or held-out; got 'test'" in reason(
        tmp_path, "t.jsonl", as_json_lines([PAIR | {"split": "test"}])
    )


# -------------------------------------------------------------------------------------------------------- what is wrong

HEAD = "clean,corrupt,answer,wrong_answer\n"
IDS = "clean,corrupt,correct_idx,incorrect_idx\n"
WRONG: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("t.json", "", "t.json is empty. `wiretrace tasks --template FILE`"),
    "blank": ("t.csv", "\n \n", "is empty"),
    "only a mark": ("t.jsonl", b"\xef\xbb\xbf", "is empty"),
    "header only": ("t.csv", HEAD, "there is a header and no row below it."),
    "comments only": ("t.csv", "# a\n# b\n", "there is no header, only comments."),
    "json comments only": ("t.jsonl", '{"//": "a"}\n', "holds no pairs of prompts."),
    "no rows": ("t.json", '{"prompts": []}', "holds no pairs of prompts."),
    "other suffix": ("t.txt", "a", "expected a file that ends in .json, .jsonl, .csv"),
    "no header": ("t.csv", "When Mary,When Lisa, John\n", "clean is missing; got 'When Mary', 'When Lisa', 'John'."),
    "missing column": ("t.csv", "claen,corrupt,answer\na,b,c\n",
        "clean is missing; got 'claen', 'corrupt', 'answer'. Is 'claen' meant to be clean?"),
    "missing corrupt": ("t.csv", "clean,corupted,answer\na,b,c\n", "Is 'corupted' meant to be corrupt?"),
    "missing answers": ("t.csv", "clean,corrupt,anwsers\na,b,c\n", "Is 'anwsers' meant to be answers?"),
    "ids without wrong ones": ("t.csv", "clean,corrupt,incorrect_idx\na,b,5\n",
        "Is 'incorrect_idx' meant to be correct_idx?"),
    "misspelt": ("t.csv", "clean,corrupt,answers,wrong_anwers\na,b,c,d\n",
        "'wrong_anwers' is unknown; is it meant to be wrong_answers?"),
    "words and ids": ("t.csv", "clean,corrupt,answers,incorrect_idx\na,b,c,5\n",
        "answers and incorrect_idx do not go together"),
    "two spellings": ("t.csv", "clean,corrupt,corrupted,answer\na,b,b,c\n",
        "corrupt and corrupted mean the same; keep one."),
    "a column twice": ("t.csv", "clean,clean,corrupt,answer\na,a,b,c\n", "the column 'clean' comes twice."),
    "semicolons": ("t.csv", "clean;corrupt;answer\na;b;c\n", "separated by semicolons; use commas."),
    "tabs": ("t.csv", "clean\tcorrupt\tanswer\na\tb\tc\n", "separated by tabs; use commas."),
    "too many cells": ("t.csv", f"{HEAD}a,b,c,d\nWhen, then,b,c,d\n",
        "row 2 (line 3): 5 cells under 4 columns; put a cell"),
    "an empty header": ("t.csv", '"",\n\n', "the header (line 1) cannot be read: all its cells are empty."),
    "a header cut short": ("t.csv", '"clean,corrupt\n',
        "the header (line 1) cannot be read: it is not CSV: unexpected end of data."),
    "one cell": ("t.csv", f"{HEAD}a\n", "row 1 (line 2): 1 cell under 4 columns"),
    "open quote": ("t.csv", f'{HEAD}a,b,c,d\n"a,b,c,d\n', "row 2 (line 3): it is not CSV: unexpected end of data"),
    "quote within": ("t.csv", f'{HEAD}"a"x,b,c,d\n', "row 1 (line 2): it is not CSV: ',' expected after '\"'"),
    "enormous cell": ("t.csv", f"{HEAD}{'a' * 200_000},b,c,d\n",
        "row 1 (line 2): a cell is too long; the most is 131,072 characters"),
    "enormous header": ("t.csv", f"{'a' * 200_000},b\na,b\n", "the header (line 1) cannot be read: a cell is too long"),
    "enormous prompt": ("t.jsonl", as_json_lines([PAIR | {"clean": "a" * 100_001}]),
        "100,001 characters; the most is 100,000"),
    "many tokens": ("t.jsonl", as_json_lines([PAIR | {"clean": [1] * 100_001}]),
        "100,001 tokens; the most is 100,000"),
    "not UTF-8": ("t.csv", HEAD.encode() + b"caf\xe9,b,c,d\n", "is not UTF-8 text (byte 37)"),
    "UTF-16": ("t.csv", HEAD.encode("utf-16"), "is not UTF-8 text (byte 0)"),
    "no answer": ("t.csv", f"{HEAD}a,b,,d\n", "answer is empty: a prompt needs at least one right answer"),
    "no prompt": ("t.csv", f"{HEAD},b,c,d\n", "clean is empty"),
    "right and wrong": ("t.csv", f"{HEAD}a,b, c, c\n", "row 1 (line 2): the answer ' c' is also a wrong answer"),
    "twice": ("t.csv", f'{HEAD}a,b,"["" c"", "" c""]",d\n', "answer names ' c' twice"),
    "a Python list": ("t.csv", f"{HEAD}a,b,\"['c', 'd']\",e\n", "expected a list as JSON"),
    "a word for an id": ("t.csv", f"{IDS}a,b,x,5\n", "expected a token id, a whole number of 0 or more; got 'x'"),
    "a negative id": ("t.csv", f"{IDS}a,b,-1,5\n", "expected a token id"),
    "a long id": ("t.csv", f"{IDS}a,b,{'9' * 5000},5\n", "expected a token id"),
    "no year": ("t.csv", "clean,corrupt,label\na,b, Mary\n", "expected a year's last two digits, since nothing else"),
    "an id for a year": ("t.csv", "clean,corrupt,correct_idx\na,b,14235\n",
        "for token ids correct_idx and incorrect_idx"),
    "the last year": ("t.csv", "clean,corrupt,label\na,b,99\n", "after 99 no two-digit year is larger"),
    "a list for JSON": ("t.json", as_json_lines([PAIR]).join("[]"),
        'expected an object {"prompts": [...]}; got a list'),
    "JSON lines as JSON": ("t.json", as_json_lines(PAIRS),
        "(line 2, column 1: Extra data). A file with a row a line ends in .jsonl."),
    "JSON as JSON lines": ("t.jsonl", as_json(PAIRS),
        "it is JSON, but not a row a line; a file of one JSON object ends in .json."),
    "prompts missing": ("t.json", json.dumps({"promts": [PAIR]}), "it is missing. Is 'promts' meant to be prompts?"),
    "prompts no list": ("t.json", '{"prompts": {"a": 1}}', "expected prompts to be a list of rows; got an object"),
    "unknown key": ("t.json", as_json(PAIRS, metrics="kl"), "'metrics' is unknown; is it meant to be metric?"),
    "unknown metric": ("t.json", as_json(PAIRS, metric="logit_diff"),
        "got 'logit_diff'. Did you mean logit_difference?"),
    "metric no text": ("t.json", as_json(PAIRS, metric=["kl"]), "metric: expected one of"),
    "name no text": ("t.json", as_json(PAIRS, name=5), "name: expected one short line of text; got 5"),
    "name of two lines": ("t.json", as_json(PAIRS, name="a\nb"), "name: expected one short line"),
    "bos no truth": ("t.json", as_json(PAIRS, prepend_bos="yes"), "prepend_bos: expected true or false; got 'yes'"),
    "rows of other kinds": ("t.json", as_json([PAIR, 5, None, [1]]), "row 2 (line 13): expected an object; got 5"),
    "a key twice": ("t.jsonl", '{"clean": "a", "clean": "b"}\n', "row 1 (line 1): the key 'clean' comes twice"),
    "NaN": ("t.jsonl", '{"clean": NaN}', "NaN is not JSON; numbers must be finite"),
    "infinity": ("t.jsonl", '{"clean": "a", "corrupt": "b", "answers": 1e999}',
        "expected words, or token ids; got inf"),
    "deep": ("t.json", '{"prompts": ' + "[" * 100_000, "nested too deep"),
    "deep row": ("t.jsonl", "[" * 100_000, "row 1 (line 1): the JSON is nested too deep"),
    "cut short": ("t.json", as_json(PAIRS)[:-20], "it ends early, so it may be cut short"),
    "mixed answers": ("t.jsonl", as_json_lines([PAIR | {"answers": [" a", 5]}]),
        "expected words, or token ids, not both"),
    "a truth for an id": ("t.jsonl", as_json_lines([PAIR | {"answers": [True]}]),
        "expected words, or token ids; got true"),
    "an object": ("t.jsonl", as_json_lines([PAIR | {"clean": {"text": "a"}}]),
        "expected text, or a list of token ids; got an object"),
    "text and ids": ("t.jsonl", as_json_lines([PAIR | {"clean": [1]}]),
        "clean and corrupt must both be text or both"),
    "half a character": ("t.jsonl", '{"clean": "a\\ud800", "corrupt": "b", "answers": "c"}', "half of a character"),
    "nothing in a row": ("t.jsonl", "{}\n", "row 1 (line 1): clean is missing; got nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(tmp_path: Path, name: str) -> None:
    file, text, expected = WRONG[name]
    said = reason(tmp_path, file, text, error=WiretraceError)
    assert expected in said
    assert ".." not in said.replace("[...]", "")
    assert len(said) < 1_000


def test_several_rows_are_said_at_once_and_the_rest_counted(tmp_path: Path) -> None:
    text = HEAD + "".join(f"a{row},b, c,{' c' if row % 2 else ' d'}\n" for row in range(1, 41))
    said = reason(tmp_path, "t.csv", text).splitlines()
    assert said[0].endswith("t.csv: 20 of 40 rows cannot be used:")
    assert said[1] == "  row 1 (line 2): the answer ' c' is also a wrong answer"
    assert said[8] == "  row 15 (line 16): the answer ' c' is also a wrong answer"
    assert said[9] == "  … and 12 more"


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_path_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.json"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(BadFile, match="there is no file" if kind == "missing" else "is a folder"):
        read(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(BadFile, match="larger than 100 MB"):
        read(path)


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_layouts, "MOST_ROWS", 2)
    assert "holds 3 rows; the most is 2" in reason(tmp_path, "t.json", as_json(PAIRS))


def test_names_that_garble_a_terminal_are_escaped(tmp_path: Path) -> None:
    with pytest.raises(BadTaskFile) as caught:
        read(written(tmp_path, "t\x1b[31m.csv", "cl\x1b[31mean,corrupt,answer\na,b,c\n"))
    assert "\x1b" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- fuzzing


def never_crashes(path: Path, data: bytes) -> None:
    """A file is read, with rows that hold what they promise, or refused with a `WiretraceError`."""
    path.write_bytes(data)
    try:
        file = read(path)
    except WiretraceError:
        return
    for row in file.rows:
        assert all((row.clean, row.corrupt, row.answers))
        assert not set(row.answers) & set(row.wrong_answers)
        assert type(row.held_out) is bool
        assert 1 <= row.line <= data.count(b"\n") + data.count(b"\r") + 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["train", " a", "5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(
    ["clean", "corrupt", "corrupted", "answers", "answer", "wrong_answers", "wrong_answer", "correct_idx", "label",
     "incorrect_idx", "split", "plural", "answers_idx", "corrupted_answers_idx", "", "//", "wrong_anwers"]
)  # fmt: skip
ROWS = st.dictionaries(KEYS | st.text(max_size=4), VALUES, max_size=6) | VALUES
PIECES = st.sampled_from(
    ['"', ",", "\n", "\r\n", "\r", ";", "[", "]", "{", "}", ":", "\\", "clean", "corrupt", "answer", "wrong_answer",
     "#", "5", " a", "\0", "\u2028", "é", '["', "'", "label", "//", "NaN", "prompts", '{"prompts": [', '"clean": "a"']
)  # fmt: skip


@pytest.mark.parametrize("suffix", LAYOUTS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=120) | st.lists(PIECES, max_size=40).map(lambda pieces: "".join(pieces).encode()))
def test_no_bytes_crash_the_reader(tmp_path: Path, suffix: str, data: bytes) -> None:
    never_crashes(tmp_path / f"t{suffix}", data)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROWS, max_size=4),
    more=st.dictionaries(st.sampled_from(["name", "metric", "prepend_bos", "x"]), VALUES),
)
def test_no_json_crashes_the_reader(tmp_path: Path, suffix: str, rows: list[Any], more: dict[str, Any]) -> None:
    text = json.dumps({**more, "prompts": rows}) if suffix == ".json" else as_json_lines(rows)
    never_crashes(tmp_path / f"t{suffix}", text.encode())


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.lists(KEYS, min_size=1, max_size=6),
    rows=st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=7), max_size=4),
)
def test_no_table_crashes_the_reader(tmp_path: Path, head: list[str], rows: list[list[str]]) -> None:
    file = io.StringIO()
    csv.writer(file).writerows([head, *rows])
    never_crashes(tmp_path / "t.csv", file.getvalue().encode())


@pytest.mark.parametrize("suffix", LAYOUTS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_damage_to_a_good_file_crashes_the_reader(
    tmp_path: Path, suffix: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(LAYOUTS[suffix](PAIRS).encode())
    for place, value in changes:
        data[place % len(data)] = value
    never_crashes(tmp_path / f"t{suffix}", bytes(data))


@settings(max_examples=120, deadline=None)
@given(names=st.lists(KEYS | st.text(max_size=8), max_size=8, unique=True))
def test_every_column_is_used_unused_or_a_comment(names: list[str]) -> None:
    try:
        found = Columns.of(names)
    except BadTaskFile:
        return
    used = {found.clean, found.corrupt, found.right, found.wrong, found.split} - {None}
    assert used <= set(names)
    assert {name for name in names if not name.startswith(("//", "_"))} == used | set(found.unused)


def test_reading_loads_no_torch() -> None:
    code = "import sys; from circuits.tasks.file_layouts import read; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

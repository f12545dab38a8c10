"""The listing: which rows, in which order, and what a terminal, a program and a spreadsheet get."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import BadConfig, UnknownName
from experiments.store import listing
from experiments.store.listing import as_csv, as_json, as_text, chosen, condition, shown_columns

ROWS = [
    {"run": "a", "state": "finished", "task": "ioi", "method": "acdc", "seed": 0, "signed": True, "faithfulness": 0.5},
    {"run": "b", "state": "failed", "task": "ioi", "method": "atp", "seed": 1, "signed": False},
    {"run": "c", "state": "finished", "task": "sorting", "method": "atp", "seed": 1, "faithfulness": 0.95},
]


def names(*where: str, **options) -> str:
    return "".join(str(row["run"]) for row in chosen(ROWS, where=[condition(each) for each in where], **options))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ((), "abc"),
        (("task=ioi",), "ab"),
        (("task=ioi", "method=atp"), "b"),
        (("method=atp,acdc",), "abc"),
        (("method!=atp",), "a"),
        (("seed=1",), "bc"),
        (("seed=1.0",), "bc"),
        (("seed!=0",), "bc"),
        (("signed=true",), "a"),
        (("signed=1",), ""),
        (("faithfulness>0.5",), "c"),
        (("faithfulness>=0.5",), "ac"),
        (("faithfulness<1",), "ac"),
        (("faithfulness <= 0.5 ",), "a"),
        (("faithfulness!=0.5",), "bc"),
        (("task=io",), ""),
    ],
)
def test_conditions(where, expected):
    assert names(*where) == expected


def test_order():
    assert names(sort="faithfulness") == "cab"
    assert names(sort="faithfulness", reverse=True) == "acb"
    assert names(sort="method") == "abc"
    assert names(sort="method", reverse=True) == "bca"
    assert names(sort="seed", limit=1) == "b"


@pytest.mark.parametrize("text", ["", "task", "task=", "=3", "faithfulness>much", "task = = "[:5]])
def test_a_condition_that_is_none_is_refused(text):
    with pytest.raises(BadConfig):
        condition(text)


def test_unknown_columns_are_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean faithfulness"):
        names("faithfullness>1")
    with pytest.raises(UnknownName, match="Did you mean method"):
        names(sort="methods")
    with pytest.raises(BadConfig, match="limit of at least 1"):
        names(limit=0)


def test_columns_are_those_that_tell_runs_apart():
    shown = shown_columns(ROWS)
    assert shown[:2] == ["run", "state"]
    assert {"task", "method", "seed", "faithfulness"} <= set(shown)
    assert "error" not in shown
    assert "seed" not in shown_columns(ROWS[1:])


def test_text_is_aligned():
    lines = as_text(ROWS, ["run", "faithfulness", "seed"]).splitlines()
    assert lines == [
        "run  faithfulness  seed",
        "───  ────────────  ────",
        "a           50.0%     0",
        "b                     1",
        "c           95.0%     1",
    ]
    assert as_text([], ["run"]) == "run\n───\n"
    assert all(len(line) <= 10 for line in as_text(ROWS, ["run", "faithfulness"], width=10).splitlines())


def test_other_forms_hold_the_values_themselves():
    assert json.loads(as_json(ROWS, ["run", "faithfulness"]))[1] == {"run": "b", "faithfulness": None}
    table = list(csv.DictReader(io.StringIO(as_csv(ROWS, ["run", "signed", "faithfulness"]))))
    assert table[0] == {"run": "a", "signed": "true", "faithfulness": "0.5"}


CELLS = st.one_of(st.none(), st.booleans(), st.integers(-9999, 9999), st.floats(-10, 10), st.text(max_size=80))


@given(st.lists(st.fixed_dictionaries({"run": CELLS, "x": CELLS, "faithfulness": CELLS}), max_size=6))
def test_no_cell_breaks_a_line_or_reaches_the_terminal_raw(rows):
    text = as_text(rows, ["run", "x", "faithfulness"])
    assert len(text.split("\n")) == len(rows) + 3
    assert "\x1b" not in text
    assert json.loads(as_json(rows, ["run", "x"])) == [{"run": row["run"], "x": row["x"]} for row in rows]


def test_a_share_is_never_minus_nothing():
    assert listing.cell("faithfulness", -0.0001) == "0.0%"

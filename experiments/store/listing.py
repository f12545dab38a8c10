"""The runs of a store as a table: chosen, sorted, and as text, JSON or CSV. Ten thousand rows take a moment."""

from __future__ import annotations

import csv
import io
import json
import operator
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from experiments.errors import BadConfig, UnknownName
from experiments.nearest import did_you_mean
from experiments.store.rows import HEAD, RESULTS, TAIL, Row, Scalar, columns
from graphs.circuit import visible

STATES: Final = ("finished", "running", "interrupted", "failed", "damaged")
WIDEST: Final = 60
"""Characters of a cell; longer ones are cut."""

MOST_SETTINGS: Final = 5
_SHOWN_RESULTS: Final = ("edges", "faithfulness", "cpr", "cmd", "correlation", "strongest", "effect")
_TRUTH: Final = {"true": True, "false": False}
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Condition:
    """One condition on a row.

    Attributes:
        name: Of the column.
        sign: =, !=, <, <=, > or >=.
        values: To compare with; several only for = and !=, where any of them counts.
    """

    name: str
    sign: str
    values: tuple[str, ...]

    def holds(self, row: Row) -> bool:
        """Whether a row meets it; one that has no such value meets none but `!=`."""
        value = row.get(self.name)
        if self.sign in ("=", "!="):
            return any(_is(value, text) for text in self.values) == (self.sign == "=")
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return _COMPARE[self.sign](value, float(self.values[0]))


def condition(text: str) -> Condition:
    """Read a condition as the command line has it.

    Raises:
        BadConfig: It is not of the form.

    Example:
        >>> condition("faithfulness>=0.9")
        Condition(name='faithfulness', sign='>=', values=('0.9',))
        >>> condition("method=acdc,atp").holds({"method": "atp"})
        True
    """
    found = re.fullmatch(r"\s*([^=<>!\s]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", text, flags=re.DOTALL)
    if not found or not found[3]:
        raise BadConfig(
            f"expected --where as NAME=VALUE, NAME!=VALUE or NAME>NUMBER, such as task=ioi or faithfulness>0.9; got "
            f"{text!r}."
        )
    name, sign, value = found[1], found[2], found[3]
    if sign in _COMPARE:
        try:
            float(value)
        except ValueError:
            raise BadConfig(f"expected a number after {name}{sign}; got {value!r}.") from None
        return Condition(name, sign, (value,))
    return Condition(name, sign, tuple(each.strip() for each in value.split(",")))


def chosen(
    rows: Sequence[Row],
    *,
    where: Sequence[Condition] = (),
    sort: str | None = None,
    reverse: bool = False,
    limit: int | None = None,
) -> list[Row]:
    """Rows that meet every condition, in order.

    Args:
        rows: All rows.
        where: The conditions.
        sort: A column: numbers from the largest on, text by letter, what is missing last; None leaves the order.
        reverse: The other way round; what is missing is last all the same.
        limit: The most rows.

    Raises:
        UnknownName: No run has such a column; the nearest are offered.
        BadConfig: The limit is below 1.
    """
    if limit is not None and limit < 1:
        raise BadConfig(f"expected a limit of at least 1; got {limit}.")
    known = columns(list(rows))
    for name in [*(each.name for each in where), *([sort] if sort else [])]:
        require_column(name, known)
    found = [row for row in rows if all(each.holds(row) for each in where)]
    if sort:
        there = [row for row in found if row.get(sort) is not None]
        missing = [row for row in found if row.get(sort) is None]
        numbers = all(isinstance(row[sort], int | float) for row in there)
        key = (lambda row: row[sort]) if numbers else (lambda row: str(row[sort]))
        found = [*sorted(there, key=key, reverse=numbers != reverse), *missing]
    return found[:limit]


def require_column(name: str, known: Sequence[str]) -> str:
    """Return `name` if it is a column.

    Raises:
        UnknownName: It is none; the nearest are offered.
    """
    if name in known:
        return name
    hint = did_you_mean(name, known)
    raise UnknownName(f"expected a column out of {', '.join(known)}; got {name!r}.{hint}")


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """The columns that tell these runs apart, and their results.

    What run it is, its state, task, model and method; of the other settings the first few that differ; results that
    any of them has; how long it took, and errors if there are any.
    """
    every = columns(list(rows))
    settings = [name for name in every if name not in (*HEAD, *RESULTS, *TAIL)]
    by_command: dict[Scalar, list[Row]] = {}
    for row in rows:
        by_command.setdefault(row.get("command"), []).append(row)
    differing = [
        name for name in settings if any(len({row.get(name) for row in each}) > 1 for each in by_command.values())
    ]
    commands = ["command"] if len({row.get("command") for row in rows}) > 1 else []
    results = [name for name in _SHOWN_RESULTS if any(row.get(name) is not None for row in rows)]
    errors = ["error"] if any(row.get("error") for row in rows) else []
    head = ["run", "state", *commands, "task", "model", "method"]
    return [*head, *differing[:MOST_SETTINGS], *results, "seconds", *errors]


def as_text(rows: Sequence[Row], names: Sequence[str], *, width: int | None = None) -> str:
    """A table of aligned columns, numbers to the right.

    Args:
        rows: What to show.
        names: The columns.
        width: Of the terminal, at which lines are cut; None for as wide as it gets.
    """
    columns_of_text = [_column(name, [row.get(name) for row in rows]) for name in names]
    lines = ("  ".join(parts).rstrip() for parts in zip(*columns_of_text, strict=True))
    return "".join(f"{line if width is None else _cut(line, width)}\n" for line in lines)


def _column(name: str, values: Sequence[Scalar]) -> list[str]:
    """The lines of one column, all of one width; each different value is set once."""
    keys = [(type(value), value) for value in values]  # so that 1, 1.0 and true stay apart
    different = {key: cell(name, key[1]) for key in dict.fromkeys(keys)}
    kinds = {kind for kind, _ in different} - {type(None)}
    right = bool(kinds) and kinds <= {int, float, bool}
    size = max(map(_width, [name, *different.values()]))
    padded = {key: _padded(text, size, right) for key, text in different.items()}
    return [_padded(name, size, right), "─" * size, *(padded[key] for key in keys)]


def as_json(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A JSON array with an object for each run; what a run does not have is null."""
    return json.dumps([{name: row.get(name) for name in names} for row in rows], indent=2, allow_nan=False) + "\n"


def as_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A CSV file with a header; what a run does not have is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_plain(row.get(name)) for name in names])
    return buffer.getvalue()


def cell(name: str, value: Scalar) -> str:
    """A value for people: shares in per cent, lengths of time in minutes, nothing for what is missing.

    Example:
        >>> cell("faithfulness", 0.9876), cell("seconds", 75.0), cell("seed", None), cell("edges", 1200)
        ('98.8%', '1 min 15 s', '', '1,200')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        text = visible(value)
        return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
    if name == "seconds":
        from experiments.progress_display import duration

        return duration(value)
    if "faithfulness" in name or name in ("share", "completeness_gap"):
        return f"{round(value, 3) or 0.0:.1%}"  # never minus nothing
    if isinstance(value, int):
        return str(value) if name in ("seed",) else f"{value:,}"
    return f"{value:.3f}" if name in RESULTS else f"{value:g}"


def _is(value: Scalar, text: str) -> bool:
    """Whether a value is what a text says."""
    if isinstance(value, bool):
        return _TRUTH.get(text.lower()) is value
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text if value is not None else False


def _plain(value: Scalar) -> Scalar:
    return str(value).lower() if isinstance(value, bool) else value


def _width(text: str) -> int:
    """How many places a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF") for each in text)


def _padded(text: str, size: int, right: bool) -> str:
    room = " " * (size - _width(text))
    return f"{room}{text}" if right else f"{text}{room}"


def _cut(line: str, width: int | None) -> str:
    return line if width is None or _width(line) <= width else f"{line[: max(0, width - 1)]}…"

r"""A file of pairs of prompts, in one of three layouts, as checked rows. Nothing here loads torch.

**JSON** (`.json`), auto-circuit's layout:

    {"name": "my_task", "metric": "logit_difference", "prompts": [
        {"clean": "When Mary and John …, John gave a drink to", "corrupt": "When Lisa and Paul …, Kevin gave …",
         "answers": [" Mary"], "wrong_answers": [" John"]}]}

`name`, `metric` and `prepend_bos` may be left out; auto-circuit's `word_idxs` and `seq_labels` are not used.

**JSON lines** (`.jsonl`): one such row a line. **CSV** (`.csv`): a header and one row a line, in UTF-8, with commas;
lines before the header that begin with `#` are comments. What a row holds is the same everywhere:
`circuits.tasks.file_rows`.

The whole file is checked before anything is done with it. What is wrong is said once, with the numbers of rows and
lines, for the first several rows.

Example:
    >>> Path("my.csv").write_text("clean,corrupt,answer,wrong_answer\nA B A,A C A, B, C\n")
    52
    >>> read("my.csv").rows[0].answers
    (' B',)
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from circuits.tasks.errors import BadTaskFile
from circuits.tasks.file_rows import Columns, Row, is_comment, nearest, row, shown
from graphs.atomic import read_text
from graphs.errors import BadCircuit
from graphs.strict_json import parsed

SUFFIXES: Final[Mapping[str, str]] = {".json": "JSON", ".jsonl": "JSON lines", ".csv": "CSV"}
METRICS: Final = (
    "logit_difference", "margin", "log_probability", "probability", "probability_difference", "loss", "kl",
)  # fmt: skip
"""The names of `patching.metrics`, which loads torch."""

COMPARING: Final = ("logit_difference", "probability_difference")
"""Metrics that need wrong answers."""

MOST_ROWS: Final = 1_000_000
SAID: Final = 8
"""How many rows an error spells out before it counts the rest."""

_UNUSED_BY_AUTO_CIRCUIT: Final = ("word_idxs", "seq_labels")
_KEYS: Final = ("prompts", "name", "metric", "prepend_bos")
_TOKENS: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', flags=re.DOTALL)
_COLON: Final = re.compile(r"\s*:")
_BLANKS: Final = re.compile(r"\s*")


@dataclass(frozen=True)
class TaskFile:
    """A file of pairs, checked as far as that can be without a model.

    Attributes:
        path: Where it is.
        layout: `JSON`, `JSON lines` or `CSV`.
        name: Of the task: as the file says, else the file's name.
        metric: Of the task: as the file says, else by what the rows hold.
        prepend_bos: Whether the tokenizer's beginning-of-sequence token goes in front of every prompt.
        rows: The pairs.
        unused: Keys and columns that nothing is done with.
    """

    path: Path
    layout: str
    name: str
    metric: str
    prepend_bos: bool
    rows: tuple[Row, ...]
    unused: tuple[str, ...]

    def of_split(self, split: str) -> tuple[Row, ...]:
        """The rows of `train`, `held-out` or `all`."""
        return tuple(row for row in self.rows if split == "all" or row.held_out == (split == "held-out"))


@dataclass(frozen=True)
class _Raw:
    """A row before it is checked: its values by column, or why there are none."""

    number: int
    line: int
    fields: Mapping[str, Any]
    refused: str | None = None


@dataclass(frozen=True)
class _Found:
    """What a layout's reader hands over: rows, what the file says of itself, unused keys, and a table's columns."""

    rows: list[_Raw]
    settings: Mapping[str, Any]
    unused: tuple[str, ...] = ()
    columns: Columns | None = None


class Problems:
    """What is wrong with a file, gathered row by row so that one message says all of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: list[str] = []
        self._count = 0

    def add(self, each: Row | _Raw, reason: str) -> None:
        """Note that a row cannot be used."""
        self._count += 1
        if len(self._said) < SAID:
            self._said.append(f"  row {each.number:,} (line {each.line:,}): {reason}")

    def stop(self, rows: int, *, remedy: str = "") -> None:
        """Raise `BadTaskFile` if there are any.

        Args:
            rows: How many rows there are.
            remedy: What to do, where the reasons do not say it.
        """
        if not self._count:
            return
        more = [f"  … and {self._count - SAID:,} more"] if self._count > SAID else []
        head = f"{label(self._path)}: {self._count:,} of {rows:,} rows cannot be used:"
        raise BadTaskFile("\n".join([head, *self._said, *more, *([remedy] if remedy else [])]))


def read(path: str | os.PathLike[str]) -> TaskFile:
    """Read and check a file of pairs.

    Args:
        path: A file that ends in `.json`, `.jsonl` or `.csv`.

    Raises:
        BadFile: There is no such file, it is too large, or it is not UTF-8 (the message says at which byte).
        BadTaskFile: It is empty, not of its layout, or rows of it cannot be used; the message names them.
    """
    path = Path(path)
    layout = SUFFIXES.get(path.suffix.lower())
    if layout is None:
        raise BadTaskFile(
            f"expected a file that ends in {', '.join(SUFFIXES)}, which says its layout; got {label(path)}."
        )
    text = read_text(path)
    if not text.strip():
        raise BadTaskFile(f"{label(path)} is empty. `wiretrace tasks --template FILE` writes one to begin with.")
    readers: Mapping[str, Callable[[str], _Found]] = {"JSON": _json, "JSON lines": _json_lines, "CSV": _csv}
    try:
        found = readers[layout](text)
    except BadTaskFile as error:
        raise BadTaskFile(_sentence(f"{label(path)}: {error}")) from None
    rows, kinds, unused = _checked(path, found)
    metric = _metric(path, found.settings.get("metric"), rows, kinds)
    name = found.settings.get("name") or path.stem
    bos = found.settings.get("prepend_bos", False)
    return TaskFile(path, layout, name, metric, bos, rows, tuple(dict.fromkeys([*found.unused, *unused])))


def label(path: Path) -> str:
    """A path as an error shows it."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _checked(path: Path, found: _Found) -> tuple[tuple[Row, ...], set[str], list[str]]:
    """The rows, what their answers are (words, ids or years), and which keys of theirs are unused."""
    raw = found.rows
    if not raw:
        raise BadTaskFile(f"{label(path)} holds no pairs of prompts.")
    if len(raw) > MOST_ROWS:
        raise BadTaskFile(f"{label(path)} holds {len(raw):,} rows; the most is {MOST_ROWS:,}.")
    rows: list[Row] = []
    kinds: set[str] = set()
    unused: dict[str, None] = {}
    problems = Problems(path)
    for each in raw:
        try:
            if each.refused is not None:
                raise BadTaskFile(each.refused)
            columns = found.columns or Columns.of(each.fields)
            rows.append(row(each.fields, columns, number=each.number, line=each.line, cells=found.columns is not None))
        except BadTaskFile as error:
            problems.add(each, str(error))
        else:
            kinds.add(columns.kind)
            unused |= dict.fromkeys(columns.unused)
    problems.stop(len(raw))
    if any(each.split is not None for each in rows):
        for each in rows:
            if each.split is None:
                problems.add(each, "has no split, but other rows do")
        problems.stop(len(raw))
    return tuple(rows), kinds, list(unused)


def _metric(path: Path, said: str | None, rows: tuple[Row, ...], kinds: set[str]) -> str:
    """What the task is judged by."""
    without = [each for each in rows if not each.wrong_answers]
    if said is None and len(without) == len(rows):
        return "log_probability"
    metric = said or ("probability_difference" if kinds == {"year"} else "logit_difference")
    if metric in COMPARING:
        problems = Problems(path)
        for each in without:
            problems.add(each, f"no wrong answer, with which the {metric} compares")
        problems.stop(len(rows), remedy="Give wrong_answers in every row, in none, or another metric.")
    return metric


# ---------------------------------------------------------------------------------------------------------- layouts


def _json(text: str) -> _Found:
    try:
        document = _parsed(text)
    except BadTaskFile as error:
        hint = ". A file with a row a line ends in .jsonl" if "Extra data" in str(error) else ""
        raise BadTaskFile(f"{error}{hint}") from None
    if not isinstance(document, dict):
        raise BadTaskFile(f'expected an object {{"prompts": [...]}}; got {shown(document)}')
    unused = [name for name in document if name not in _KEYS and not is_comment(name)]
    prompts = document.get("prompts")
    if not isinstance(prompts, list):
        came = "it is missing" if "prompts" not in document else f"got {shown(prompts)}"
        raise BadTaskFile(f"expected prompts to be a list of rows; {came}.{nearest(unused, ['prompts'])}")
    for name in unused:
        near = difflib.get_close_matches(name, [key for key in _KEYS if key not in document], n=1, cutoff=0.75)
        if near and name not in _UNUSED_BY_AUTO_CIRCUIT:
            raise BadTaskFile(f"{shown(name)} is unknown; is it meant to be {near[0]}? If not, begin it with _")
    lines = _lines_of_prompts(text) if prompts else []
    rows = [_object(at + 1, line, each) for at, (line, each) in enumerate(zip(lines, prompts, strict=True))]
    return _Found(rows, _settings(document), tuple(unused))


def _settings(document: Mapping[str, Any]) -> dict[str, Any]:
    """The keys beside the rows, checked."""
    name, metric, bos = (document.get(key) for key in ("name", "metric", "prepend_bos"))
    if name is not None and not (isinstance(name, str) and name.strip() and name.isprintable() and len(name) <= 200):
        raise BadTaskFile(f"name: expected one short line of text; got {shown(name)}")
    if metric is not None and metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1) if isinstance(metric, str) else []
        hint = f" Did you mean {near[0]}?" if near else ""
        raise BadTaskFile(f"metric: expected one of {', '.join(METRICS)}; got {shown(metric)}.{hint}")
    if bos is not None and not isinstance(bos, bool):
        raise BadTaskFile(f"prepend_bos: expected true or false; got {shown(bos)}")
    return {"name": name, "metric": metric, "prepend_bos": bool(bos)}


def _object(number: int, line: int, value: Any) -> _Raw:
    if isinstance(value, dict):
        return _Raw(number, line, value)
    return _Raw(number, line, {}, f"expected an object; got {shown(value)}")


def _json_lines(text: str) -> _Found:
    rows: list[_Raw] = []
    for line, content in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand in a string
        if not content.strip():
            continue
        number = len(rows) + 1
        try:
            each = _parsed(content.rstrip("\r"))
        except BadTaskFile as error:
            rows.append(_Raw(number, line, {}, str(error).replace("(line 1, column", "(column")))
            continue
        if not (isinstance(each, dict) and each and all(map(is_comment, each))):
            rows.append(_object(number, line, each))
    if rows and all(each.refused for each in rows[:2]) and _is_json(text):
        raise BadTaskFile("it is JSON, but not a row a line; a file of one JSON object ends in .json")
    return _Found(rows, {})


def _is_json(text: str) -> bool:
    with suppress(BadTaskFile):
        return isinstance(_parsed(text), dict)
    return False


def _csv(text: str) -> _Found:
    lines = io.StringIO(text, newline="").readlines()
    skipped = next((at for at, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    if skipped == len(lines):
        raise BadTaskFile("there is no header, only comments")
    table = _cells(lines, after=skipped)
    line, head = next(table, (skipped + 1, "all its cells are empty"))
    if isinstance(head, str):
        raise BadTaskFile(f"the header (line {line}) cannot be read: {head}")
    header = tuple(name.strip() for name in head)
    columns = _columns_of(header)
    rows: list[_Raw] = []
    for line, cells in table:
        number = len(rows) + 1
        if isinstance(cells, str):
            rows.append(_Raw(number, line, {}, cells))
        elif len(cells) != len(header):
            count = f"{len(cells)} cell{'s' if len(cells) != 1 else ''} under {len(header)} columns"
            rows.append(_Raw(number, line, {}, f"{count}; put a cell that holds a comma or a line break in quotes"))
        else:
            rows.append(_Raw(number, line, dict(zip(header, cells, strict=True))))
    if not rows:
        raise BadTaskFile("there is a header and no row below it")
    return _Found(rows, {}, columns.unused, columns)


def _columns_of(header: tuple[str, ...]) -> Columns:
    twice = [name for at, name in enumerate(header) if name and name in header[:at]]
    if twice:
        raise BadTaskFile(f"the column {shown(twice[0])} comes twice")
    try:
        return Columns.of(header)
    except BadTaskFile as error:
        marks = {";": "semicolons", "\t": "tabs"}
        other = next((marks[mark] for mark in marks if len(header) == 1 and mark in header[0]), None)
        hint = f" The columns seem to be separated by {other}; use commas." if other else ""
        raise BadTaskFile(f"{_sentence(str(error))}{hint}") from None


def _cells(lines: list[str], *, after: int) -> Iterator[tuple[int, list[str] | str]]:
    """The cells of each row, or why there are none, with the line it begins on; blank lines are no rows.

    The most that a cell may hold is a setting of the whole process, so it stays as it is.
    """
    reader = csv.reader(lines[after:], strict=True)
    while True:
        line = after + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # what follows may be inside quotes or not
            most = csv.field_size_limit()
            long = f"a cell is too long; the most is {most:,} characters" if "field limit" in str(error) else ""
            yield line, long or f"it is not CSV: {error}"
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _parsed(text: str) -> Any:
    try:
        return parsed(text)
    except BadCircuit as error:
        raise BadTaskFile(str(error)) from None


def _lines_of_prompts(text: str) -> list[int]:
    """The lines on which the rows begin: the elements of the list under the outermost key `prompts` of valid JSON."""
    places: list[int] = []
    depth, key, inside = 0, "", False
    for match in _TOKENS.finditer(text):
        token = match.group()
        if token in "[{":
            depth += 1
            inside = inside or (token == "[" and depth == 2 and key == "prompts")
        elif token in "]}":
            depth -= 1
            inside = inside and depth >= 2
        elif token != "," and depth == 1 and _COLON.match(text, match.end()):
            key = parsed(token)
        if inside and depth == 2 and token in "[,":
            blanks = _BLANKS.match(text, match.end())
            places.append(blanks.end() if blanks else match.end())
    lines, line = [], 1
    for before, place in zip([0, *places], places, strict=False):
        line += text.count("\n", before, place)
        lines.append(line)
    return lines

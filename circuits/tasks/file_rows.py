"""One row of a file of pairs: which columns say what, and what each must hold.

All layouts (`circuits.tasks.file_layouts`) have the same fields. Some have more than one spelling, so that files of
other tools can be read as they are:

| what | columns | holds |
|---|---|---|
| clean prompt | `clean` | text, or a list of token ids |
| corrupt prompt | `corrupt` or `corrupted` | the same, of as many tokens |
| answers | `answers` or `answer`, with `wrong_answers` or `wrong_answer` | words of one token each, or token ids |
| answers of EAP-IG | `correct_idx` with `incorrect_idx`, and three more pairs (`ID_PAIRS`) | token ids |
| EAP-IG's greater-than | `label`, or `correct_idx` alone | a year's last two digits: larger ones are right |
| split | `split` | `train` or `held-out`; by a checksum of the clean prompt if there is no such column |

Columns that begin with `//` or `_` are comments. Any other column is left unused, and said to be, unless it looks like
a misspelt one, which is refused.

Source: the layouts are those of auto-circuit (`datasets/*.json`), EAP-IG (`greater_than_data.csv`, `ioi_llama.csv`)
and eap-ig-faithfulness (`data/*/gpt2.csv`). EAP-IG's agreement layout (`plural`) is not read: it judges two lists of
verbs that are not in the file.
"""

from __future__ import annotations

import difflib
import functools
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from circuits.tasks.errors import BadTaskFile
from graphs.errors import WiretraceError
from graphs.strict_json import parsed

CLEAN: Final = ("clean",)
CORRUPT: Final = ("corrupt", "corrupted")
RIGHT: Final = ("answers", "answer")
WRONG: Final = ("wrong_answers", "wrong_answer")
SPLIT: Final = ("split",)
ID_PAIRS: Final = (
    ("answers_idx", "corrupted_answers_idx"),
    ("correct_idx", "incorrect_idx"),
    ("clean_answer_idx", "corrupted_answer_idx"),
    ("country_idx", "corrupted_country_idx"),
)
"""Columns of token ids in EAP-IG's files: right ones, wrong ones."""

YEARS: Final = ("label", "correct_idx")
"""Columns that hold a year's last two digits where nothing else says what is right."""

UNUSED_BY_EAP_IG: Final = frozenset(
    ("", "corrupted_hard", "label", "answers", "corrupted_answers", "group", "clean2", "corrupted2", "prob_diff")
)
SPLITS: Final = ("train", "held-out", "all")
LONGEST_PROMPT: Final = 100_000
"""Characters, or token ids, of a prompt."""

_LARGEST_ID: Final = 2**31 - 1
_ID: Final = re.compile(r"[0-9]{1,10}(\.0+)?")  # pandas writes whole numbers so where a column has gaps
_SHOWN: Final = 60

Kind = Literal["words", "ids", "year"]


@dataclass(frozen=True)
class Row:
    """A pair of prompts with what is right and wrong after the clean one.

    Attributes:
        clean: Text, or token ids.
        corrupt: Likewise.
        answers: Words, each with the space before it where there is one, or token ids.
        wrong_answers: Likewise; may be empty.
        number: Of the row among the file's rows, from 1.
        line: Of the file, from 1, where the row begins.
        split: What the file says, or None.
    """

    clean: str | tuple[int, ...]
    corrupt: str | tuple[int, ...]
    answers: tuple[str | int, ...]
    wrong_answers: tuple[str | int, ...]
    number: int
    line: int
    split: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether it is held out: as the file says, else if the CRC-32 of its clean prompt is divisible by five."""
        if self.split is not None:
            return self.split == "held-out"
        text = self.clean if isinstance(self.clean, str) else " ".join(map(str, self.clean))
        return zlib.crc32(text.encode()) % 5 == 0


@dataclass(frozen=True)
class Columns:
    """Which column of a file, or key of an object, says what.

    Attributes:
        clean, corrupt, right: Names.
        wrong: A name, or None where nothing is said to be wrong, or where a year says both.
        kind: What `right` and `wrong` hold.
        split: A name or None.
        unused: The others, comments left out.
    """

    clean: str
    corrupt: str
    right: str
    wrong: str | None
    kind: Kind
    split: str | None
    unused: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> Columns:
        """Find the columns among names.

        Raises:
            BadTaskFile: One is missing, is there in two spellings or looks misspelt; the nearest name is offered.

        Example:
            >>> columns = Columns.of(["clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx"])
            >>> columns.right, columns.wrong, columns.kind, columns.unused
            ('correct_idx', 'incorrect_idx', 'ids', ('corrupted_hard',))
        """
        return _columns(tuple(names))


def row(fields: Mapping[str, Any], columns: Columns, *, number: int, line: int, cells: bool = False) -> Row:
    """Check one row.

    Args:
        fields: Its values by column.
        columns: Which column says what.
        number: Of the row, from 1.
        line: Of the file, from 1.
        cells: Whether all values are text, as in CSV: ids are then written in digits and lists as JSON.

    Raises:
        BadTaskFile: The reason alone; the caller knows the file.
    """
    clean, corrupt = (_prompt(name, fields[name]) for name in (columns.clean, columns.corrupt))
    if isinstance(clean, str) != isinstance(corrupt, str):
        raise BadTaskFile(f"{columns.clean} and {columns.corrupt} must both be text or both be token ids")
    if columns.kind == "year":
        answers, wrong = _year(columns.right, fields[columns.right])
    else:
        read = functools.partial(_ids if columns.kind == "ids" else _words, cells=cells)
        answers = read(columns.right, fields[columns.right])
        wrong = () if columns.wrong is None else read(columns.wrong, fields[columns.wrong])
    if not answers:
        raise BadTaskFile(f"{columns.right} is empty: a prompt needs at least one right answer")
    both = [answer for answer in answers if answer in wrong]
    if both:
        raise BadTaskFile(f"the answer {shown(both[0])} is also a wrong answer")
    return Row(clean, corrupt, answers, wrong, number, line, _split(columns.split, fields))


def shown(value: object) -> str:
    """A value of a file as an error shows it: short, and nothing in it that could garble a terminal.

    Example:
        >>> shown(" Mary"), shown([1, [2]]), shown(None)
        ("' Mary'", 'a list', 'null')
    """
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value[: _SHOWN + 1]) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def is_comment(name: str) -> bool:
    """Whether a key or column is for people only."""
    return name.startswith(("//", "_"))


def nearest(names: Iterable[str], wanted: Iterable[str]) -> str:
    """A sentence that offers the name that was probably meant, or nothing."""
    known = [name for name in names if name]
    for spelling in wanted:
        near = difflib.get_close_matches(spelling, known, n=1, cutoff=0.6)
        if near:
            return f" Is {shown(near[0])} meant to be {spelling}?"
    return ""


# --------------------------------------------------------------------------------------------------------- columns


@functools.lru_cache(maxsize=64)
def _columns(names: tuple[str, ...]) -> Columns:
    clean, corrupt = _required(names, CLEAN), _required(names, CORRUPT)
    right, wrong, kind = _answer_columns(names)
    split = _one(names, SPLIT)
    used = {clean, corrupt, right, wrong, split}
    unused = tuple(name for name in names if name not in used and not is_comment(name))
    open_names = [*(WRONG if wrong is None and kind == "words" else ()), *(SPLIT if split is None else ())]
    for name in unused:
        near = difflib.get_close_matches(name, open_names, n=1, cutoff=0.75)
        if near and name not in UNUSED_BY_EAP_IG:
            raise BadTaskFile(f"{shown(name)} is unknown; is it meant to be {near[0]}? If not, begin it with _")
        if kind == "words" and wrong is None and any(name == pair[1] for pair in ID_PAIRS):
            raise BadTaskFile(f"{right} and {name} do not go together: give {WRONG[0]}, or both as token ids")
    return Columns(clean, corrupt, right, wrong, kind, split, unused)


def _answer_columns(names: tuple[str, ...]) -> tuple[str, str | None, Kind]:
    """The columns of answers, of wrong ones, and what they hold."""
    for right, wrong in ID_PAIRS:
        if right in names and wrong in names:
            return right, wrong, "ids"
    words = _one(names, RIGHT)
    if words is not None:
        return words, _one(names, WRONG), "words"
    years = [name for name in YEARS if name in names]
    if years:
        return years[0], None, "year"
    if "plural" in names:
        raise BadTaskFile(
            "no answers: 'plural' (EAP-IG's agreement layout) stands for two lists of verbs that are not in the file. "
            "Add answers and wrong_answers, such as a form of one verb each"
        )
    near = nearest(names, (*RIGHT, *(name for pair in ID_PAIRS for name in pair)))
    raise BadTaskFile(
        "no answers: expected answers and wrong_answers (words of one token, or token ids), correct_idx and "
        f"incorrect_idx (token ids), or label (greater-than); got {_listed(names)}.{near}"
    )


def _required(names: tuple[str, ...], spellings: tuple[str, ...]) -> str:
    found = _one(names, spellings)
    if found is None:
        raise BadTaskFile(f"{spellings[0]} is missing; got {_listed(names)}.{nearest(names, spellings)}")
    return found


def _one(names: tuple[str, ...], spellings: tuple[str, ...]) -> str | None:
    found = [name for name in spellings if name in names]
    if len(found) > 1:
        raise BadTaskFile(f"{found[0]} and {found[1]} mean the same; keep one")
    return found[0] if found else None


def _listed(names: tuple[str, ...]) -> str:
    """Names for a message; a file without a header has prompts in their place."""
    some = ", ".join(shown(name[:24]) for name in names[:8])
    return (some or "nothing") + (", …" if len(names) > 8 else "")


# ---------------------------------------------------------------------------------------------------------- values


def _prompt(name: str, value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return _text(name, value)
    if not isinstance(value, list):
        raise BadTaskFile(f"{name}: expected text, or a list of token ids; got {shown(value)}")
    if len(value) > LONGEST_PROMPT:
        raise BadTaskFile(f"{name}: {len(value):,} tokens; the most is {LONGEST_PROMPT:,}")
    if not value:
        raise BadTaskFile(f"{name} is empty")
    return tuple(_id(name, each) for each in value)


def _text(name: str, value: str) -> str:
    if not value:
        raise BadTaskFile(f"{name} is empty")
    if len(value) > LONGEST_PROMPT:
        raise BadTaskFile(f"{name}: {len(value):,} characters; the most is {LONGEST_PROMPT:,}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise BadTaskFile(f"{name} holds {half!a}, half of a character, which no tokenizer takes") from None
    return value


def _words(name: str, value: Any, *, cells: bool) -> tuple[str | int, ...]:
    """Words or, where the file can tell numbers from text, token ids."""
    if cells:
        if value == "":
            return ()
        value = _list_of(name, value) if value == "[]" or value.startswith(('["', "['")) else value
    each = value if isinstance(value, list) else [value]
    if any(isinstance(one, list) for one in each):
        raise BadTaskFile(f"{name}: expected words or token ids; got a list in the list. One token is judged: the next")
    ids = [isinstance(one, int) and not isinstance(one, bool) for one in each]
    if any(ids) and not all(ids):
        raise BadTaskFile(f"{name}: expected words, or token ids, not both in one row")
    return _distinct(name, [_id(name, one) for one in each] if any(ids) else [_word(name, one) for one in each])


def _ids(name: str, value: Any, *, cells: bool) -> tuple[str | int, ...]:
    if cells:
        if value.startswith("["):
            value = _list_of(name, value)
        elif _ID.fullmatch(value.strip()):
            value = int(value.strip().partition(".")[0])
    return _distinct(name, [_id(name, one) for one in (value if isinstance(value, list) else [value])])


def _list_of(name: str, text: str) -> list[Any]:
    """A list in a cell."""
    try:
        value = parsed(text)
    except WiretraceError:
        value = None
    if not isinstance(value, list):
        raise BadTaskFile(f'{name}: expected a list as JSON, such as [" a", " b"]; got {shown(text)}')
    return value


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadTaskFile(f"{name}: expected words, or token ids; got {shown(value)}")
    return _text(name, value)


def _id(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_ID:
        raise BadTaskFile(f"{name}: expected a token id, a whole number of 0 or more; got {shown(value)}")
    return value


def _distinct(name: str, values: list[Any]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        twice = next(value for place, value in enumerate(values) if value in values[:place])
        raise BadTaskFile(f"{name} names {shown(twice)} twice")
    return tuple(values)


def _year(name: str, value: Any) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
    """Two-digit years above a year, which are right, and the others, which are wrong."""
    digits = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[0-9]{1,2}", digits):
        raise BadTaskFile(
            f"{name}: expected a year's last two digits, since nothing else says what is right (EAP-IG's greater-than "
            f"layout); got {shown(value)}. For words name the columns answers and wrong_answers; for token ids "
            "correct_idx and incorrect_idx"
        )
    year = int(digits)
    if year == 99:
        raise BadTaskFile(f"{name}: after 99 no two-digit year is larger, so no answer is right")
    years = [f"{number:02}" for number in range(100)]
    return tuple(years[year + 1 :]), tuple(years[: year + 1])


def _split(name: str | None, fields: Mapping[str, Any]) -> str | None:
    if name is None:
        return None
    value = fields[name]
    if value not in ("train", "held-out"):
        raise BadTaskFile(f"{name}: expected train or held-out; got {shown(value)}")
    return value

"""A user's own pairs of prompts on the command line: a template to begin with, a check, and what a run is named by.

Nothing here loads torch, but for a check with a model.
"""

from __future__ import annotations

import csv
import io
import json as json_text
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuits import tasks
from circuits.tasks import file_task
from circuits.tasks.file_layouts import SUFFIXES, TaskFile, label, read
from circuits.tasks.file_rows import Row
from experiments.errors import BadConfig
from experiments.model_files import digest
from graphs.atomic import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from patching.lens import LensModel
    from patching.task import Task

CHUNK: Final = 64
"""Prompts that a check runs at once."""

HINT: Final = (
    "Each row is a pair: a clean prompt, and a corrupt one of as many tokens, with another answer or none.",
    "Answers are what may follow the clean prompt, one token each: mind the space before a word.",
    "wrong_answers are what the corrupt prompt suggests; leave them out everywhere to judge by the probability alone.",
    "About one row in five is held out, by a checksum of its clean prompt; to choose, add split: train or held-out.",
    "Check this file with `wiretrace tasks --check FILE --model MODEL`; run it with `wiretrace discover FILE --model "
    "MODEL`. These rows suit the model zoo:ioi.",
)
_NAMES: Final = (
    ("Mary", "John"), ("Lisa", "Paul"), ("Sarah", "Kevin"), ("Emily", "David"), ("Laura", "Brian"), ("Rachel", "Eric"),
)  # fmt: skip
_OTHERS: Final = ("Megan", "Scott", "Ryan")
_SENTENCES: Final = (
    "When {} and {} went to the store, {} gave a drink to",
    "While {} and {} were working at the office, {} gave a book to",
)


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        facts: What and how much, in words.
        notes: What may not be meant, in sentences.
    """

    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


# -------------------------------------------------------------------------------------------------- runs on a file


def identity(task: str) -> dict[str, str]:
    """What decides the result of a run beside its settings, where its task is a file: the digest of that file.

    The file is read and checked, so that a run on a bad one is refused before a model is loaded.

    Returns:
        `{"task_file": SHA-256}`; nothing for a task that is no file.

    Raises:
        WiretraceError: The file cannot be used.

    Example:
        >>> identity("ioi")
        {}
    """
    if not is_own(task):
        return {}
    read(task)
    return {"task_file": digest(Path(task))}


def is_own(task: str) -> bool:
    """Whether the name of a task is a file of the user's own pairs."""
    return task not in tasks.TASKS and file_task.is_file(task)


def run_name(task: str) -> str:
    """What a run directory is called after: the task, or the name of its file.

    Example:
        >>> run_name("ioi"), run_name("/data/pairs/my_task.json")
        ('ioi', 'my_task')
    """
    return (Path(task).stem or "task") if is_own(task) else task


# -------------------------------------------------------------------------------------------------------- template


def write_template(path: Path) -> None:
    """Write a file of pairs to begin with, in the layout that the suffix says.

    Raises:
        BadConfig: The suffix says no layout, or there is a file already.
        WriteFailed: The system refuses.
    """
    layout = SUFFIXES.get(path.suffix.lower())
    if layout is None:
        raise BadConfig(f"expected --template to end in {', '.join(SUFFIXES)}; got {label(path)}.")
    if path.exists() or path.is_symlink():
        raise BadConfig(f"{label(path)} is there already; choose another name, or remove it first.")
    write_text(path, {"JSON": _json, "JSON lines": _json_lines, "CSV": _csv}[layout](path.stem))


def _pairs() -> Iterator[dict[str, Any]]:
    for sentence in _SENTENCES:
        for giver, taker in _NAMES:
            yield {
                "clean": sentence.format(taker, giver, giver),
                "corrupt": sentence.format(*_OTHERS),
                "answers": [f" {taker}"],
                "wrong_answers": [f" {giver}"],
            }


def _json(name: str) -> str:
    head = {"//": list(HINT), "name": name, "metric": "logit_difference"}
    before = json_text.dumps(head, indent=2).removesuffix("\n}")
    rows = ",\n".join(f"    {json_text.dumps(pair)}" for pair in _pairs())  # one line each, to be edited as a table
    return f'{before},\n  "prompts": [\n{rows}\n  ]\n}}\n'


def _json_lines(_name: str) -> str:
    rows = [{"//": list(HINT)}, *_pairs()]
    return "".join(f"{json_text.dumps(each)}\n" for each in rows)


def _csv(_name: str) -> str:
    file = io.StringIO()
    file.writelines(f"# {line}\n" for line in HINT)
    table = csv.writer(file, lineterminator="\n")
    table.writerow(("clean", "corrupt", "answer", "wrong_answer"))
    table.writerows((each["clean"], each["corrupt"], each["answers"][0], each["wrong_answers"][0]) for each in _pairs())
    return file.getvalue()


# ----------------------------------------------------------------------------------------------------------- check


def checked(path: Path, model: str | None = None) -> Checked:
    """Check a file of pairs, with a model's tokenizer and with the model itself if one is named.

    Raises:
        WiretraceError: The file cannot be used; the message names rows and reasons.
    """
    file = read(path)
    held_out = len(file.of_split("held-out"))
    facts = [
        ("file", f"{label(path)}: {file.layout}, {len(file.rows):,} pairs, all of them sound"),
        ("task", f"{file.name}, judged by {file.metric}"),
        ("splits", f"{len(file.rows) - held_out:,} train, {held_out:,} held-out"),
        ("answers", _counts(file)),
        ("length", _lengths([len(row.clean) for row in file.rows], _unit(file))),
    ]
    notes = list(_doubts(file))
    if model is None:
        notes.append("Lengths in tokens, and whether answers are one token, depend on the model: add --model to check.")
    else:
        more, doubts = _with_model(file, model)
        facts += more
        notes += doubts
    return Checked(tuple(facts), tuple(notes))


def table(found: Checked) -> Table:
    """The facts of a check, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in found.facts:
        grid.add_row(Text(name), Text(value))
    return grid


def _unit(file: TaskFile) -> str:
    return "characters" if all(isinstance(row.clean, str) for row in file.rows) else "characters or token ids"


def _counts(file: TaskFile) -> str:
    right = sorted({len(row.answers) for row in file.rows})
    wrong = sorted({len(row.wrong_answers) for row in file.rows})
    return f"{_range(right)} right and {_range(wrong)} wrong for each prompt"


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _lengths(lengths: list[int], unit: str) -> str:
    return f"prompts of {_range(lengths)} {unit}"


def _doubts(file: TaskFile) -> Iterator[str]:
    """What is allowed, and often not meant."""
    if file.unused:
        names = ", ".join(repr(name) for name in file.unused[:10])
        yield f"Not used: {names}{', …' if len(file.unused) > 10 else ''}."
    for split in ("train", "held-out"):
        if not file.of_split(split):
            yield f"No row is in the split {split}, which runs need: add rows, or say which in split."
    same = [row for row in file.rows if row.clean == row.corrupt]
    if same:
        yield f"Clean and corrupt prompt are the same in {_rows(same)}, so nothing is ablated there."
    times = Counter(row.clean for row in file.rows)
    again = [row for row in file.rows if times[row.clean] > 1]
    if again:
        yield f"The clean prompt is another row's, too, in {_rows(again)}."
    blank = [row for row in file.rows if isinstance(row.clean, str) and row.clean[-1].isspace()]
    if blank:
        yield f"The clean prompt ends in a blank in {_rows(blank)}; most models want it at the start of the answer."
    stuck = [row for row in file.rows if _stuck(row)]
    if stuck:
        yield f"A word follows the prompt without a space in {_rows(stuck)}: is ' word' meant?"


def _stuck(row: Row) -> bool:
    """Whether an answer goes on with the prompt's last word."""
    words = [answer for answer in row.answers if isinstance(answer, str)]
    return isinstance(row.clean, str) and row.clean[-1].isalpha() and any(word[0].isalpha() for word in words)


def _rows(rows: list[Row]) -> str:
    some = ", ".join(f"{row.number:,} (line {row.line:,})" for row in rows[:5])
    return f"row{'s' if len(rows) > 1 else ''} {some}{f' and {len(rows) - 5:,} more' if len(rows) > 5 else ''}"


def _with_model(file: TaskFile, name: str) -> tuple[list[tuple[str, str]], list[str]]:
    """What only a model can tell: tokens, and how often it is right."""
    from experiments.config import require_shipped
    from patching.lens import LensModel

    require_shipped(name)
    model = LensModel.load(name)
    task = file_task.from_file(file.path, model)
    lengths = [int(position) + 1 for position in task.positions]
    clean, corrupt = (_accuracy(model, each) for each in (task, task.swapped()))
    facts = [
        ("tokens", _lengths(lengths, "tokens, clean and corrupt alike; every answer is one token")),
        ("accuracy", f"{clean:.1%} of {len(task):,} prompts: the likeliest next token of {name} is a right answer"),
        ("if corrupt", f"{corrupt:.1%}, with the corrupt prompt in place of the clean one"),
    ]
    notes = []
    if clean < 0.5:
        notes.append(f"{name} rarely gives a right answer, so a circuit for this task would mean little in it.")
    if corrupt >= clean:
        notes.append("The corrupt prompts do not make the model worse, so they take no information away.")
    return facts, notes


def _accuracy(model: LensModel, task: Task) -> float:
    """How often the likeliest next token is a right answer."""
    import torch

    right = 0
    for first in range(0, len(task), CHUNK):
        some = task.subset(slice(first, first + CHUNK))
        logits = model.logits(some.clean)[torch.arange(len(some)), some.positions]
        right += int((logits.argmax(-1).cpu()[:, None] == some.answers).any(-1).sum())
    return right / len(task)


# --------------------------------------------------------------------------------------------------------- command


def command(*, template: Path | None, check: Path | None, model: str | None, json: bool) -> None:
    """Do what `wiretrace tasks` is asked to do with files.

    Raises:
        BadConfig: Both a template and a check are asked for, or a model without a check.
        WiretraceError: The file cannot be written, or cannot be used; then the message lists what is wrong.
    """
    import typer

    from experiments.terminal import print_tables

    if template is not None and check is not None:
        raise BadConfig("expected --template or --check; got both.")
    if check is None and model is not None:
        raise BadConfig(
            f"expected --check FILE with --model, which says what to check it with; got --model {model} alone."
        )
    if template is not None:
        write_template(template)
        here = shlex.quote(label(template))
        typer.echo(f"{here} is written. Put your own pairs in, then: wiretrace tasks --check {here}")
        return
    if check is None:
        return
    found = checked(check, model)
    if json:
        typer.echo(json_text.dumps({"facts": dict(found.facts), "notes": list(found.notes)}, indent=2))
        return
    print_tables(table(found))
    for note in found.notes:
        typer.echo(f"Note: {note}")

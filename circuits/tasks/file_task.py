"""A task made of a user's own pairs of prompts, out of a file.

`circuits.tasks.file_layouts` reads the file; this turns its rows into tokens for a model and checks what only a
tokenizer can tell: that the two prompts of a pair are equally long, and that every answer is one token.

About a fifth of the rows is held out: those the CRC-32 of whose clean prompt is divisible by five, or those that a
column `split` says. A row never changes sides, whatever else is in the file; two rows with one clean prompt are on one
side.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from circuits.tasks.errors import BadTaskFile, UnknownChoice
from circuits.tasks.file_layouts import SUFFIXES, Problems, TaskFile, label, read
from circuits.tasks.file_rows import SPLITS, Row, shown

if TYPE_CHECKING:
    from patching.task import Task

_SHOWN_TOKENS: Final = 40


class _Encoded:
    """A row in tokens."""

    def __init__(self, clean: list[int], corrupt: list[int], answers: list[int], wrong: list[int]) -> None:
        self.clean, self.corrupt, self.answers, self.wrong = clean, corrupt, answers, wrong


def is_file(name: str) -> bool:
    """Tell whether the name of a task is the path of a file instead.

    Example:
        >>> is_file("my_task.json"), is_file("data/pairs"), is_file("ioi")
        (True, True, False)
    """
    return name.lower().endswith(tuple(SUFFIXES)) or os.sep in name or Path(name).is_file()


def of(path: str) -> ModuleType:
    """The task of a file, in the form of a task module: `make`, `SPLITS`, and a description.

    The file is read when `make` is called, so that the settings of a finished run can be read without it.

    Example:
        >>> of("data/my_task.json").__doc__
        'Pairs of prompts from a file: my_task.json.'
    """
    module = ModuleType(f"{__name__}.file", f"Pairs of prompts from a file: {label(Path(Path(path).name))}.")
    vars(module).update(make=functools.partial(make, path=path), SPLITS=SPLITS)
    return module


def make(model: Any, *, path: str | os.PathLike[str], n: int = 64, seed: int = 0, split: str = "held-out") -> Task:
    """Take prompts for a model from a file; as `from_file`, with the defaults of other tasks' `make`.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`.
        path: The file.
        n: How many prompts at most.
        seed: Seed of the draw.
        split: `"train"`, `"held-out"` or `"all"`.

    Raises:
        WiretraceError: As `from_file`.
    """
    return from_file(path, model, n=n, seed=seed, split=split)


def from_file(
    path: str | os.PathLike[str], model: Any, *, n: int | None = None, seed: int = 0, split: str | None = None
) -> Task:
    r"""Make a task of your own pairs of prompts.

    The whole file is checked, also the rows that are not taken. Prompts come in the order of the file, and no row
    twice. `name`, `metric` and `prepend_bos` of the task are the file's.

    Args:
        path: A `.json`, `.jsonl` or `.csv` file (`circuits.tasks.file_layouts`).
        model: Anything with a `tokenizer`, such as a `LensModel`. Its `n_ctx` and `d_vocab` are respected if it has
            them. The tokenizer may be None if prompts and answers are token ids.
        n: How many prompts to draw, at most; None for all.
        seed: Seed of the draw.
        split: `"train"`, `"held-out"` (about a fifth, by a checksum of the clean prompt) or `"all"`, as is None.

    Returns:
        A `Task` of min(n, rows of the split) examples.

    Raises:
        BadFile: There is no such file, or it is not UTF-8.
        BadTaskFile: The file is not of its layout, rows cannot be used, or the split is empty; the message names the
            rows, their lines and the reasons.
        UnknownChoice: There is no such split, or n is below 1.

    Example:
        >>> from patching import toy
        >>> row = '{"clean": [0, 2], "corrupt": [1, 2], "answers": 3, "wrong_answers": 2}'
        >>> _ = Path("pairs.jsonl").write_text(row)
        >>> from_file("pairs.jsonl", toy.model()).clean.tolist()
        [[0, 2]]
    """
    wanted = split or "all"
    if wanted not in SPLITS:
        raise UnknownChoice(f"expected split to be one of {', '.join(SPLITS)}; got {split!r}.")
    if n is not None and n < 1:
        raise UnknownChoice(f"expected n, the number of prompts, to be at least 1; got {n}.")
    file = read(path)
    encoded = encode(file, model)
    chosen = [at for at, row in enumerate(file.rows) if wanted == "all" or row.held_out == (wanted == "held-out")]
    if not chosen:
        held_out = sum(row.held_out for row in file.rows)
        raise BadTaskFile(
            f"{label(file.path)} has no row of the split {wanted}: of {len(file.rows):,}, {held_out:,} are held out. "
            'Add rows (one in five is held out, by a checksum of its clean prompt), or say which in a column "split", '
            "with train or held-out in every row."
        )
    if n is not None and n < len(chosen):
        chosen = sorted(random.Random(seed).sample(chosen, n))
    return _task(file, [file.rows[at] for at in chosen], [encoded[at] for at in chosen], model)


def encode(file: TaskFile, model: Any) -> list[_Encoded]:
    """All rows of a file in tokens.

    Raises:
        BadTaskFile: Rows cannot be used with this model; the message names them.
    """
    tokenizer = model.tokenizer
    start = _start(file, tokenizer)
    texts = dict.fromkeys(text for row in file.rows for text in _texts(row))
    if texts and tokenizer is None:
        raise BadTaskFile(f"{label(file.path)} holds text, but this model has no tokenizer. Give token ids instead.")
    ids = _tokenised(tokenizer, list(texts))
    problems, encoded = Problems(file.path), []
    for row in file.rows:
        try:
            encoded.append(_encoded(row, ids, start, model))
        except BadTaskFile as error:
            problems.add(row, str(error))
    problems.stop(len(file.rows))
    return encoded


def tokens_shown(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as pieces of text, for an error."""
    some = list(ids[:_SHOWN_TOKENS])
    pieces = some if tokenizer is None else [str(piece) for piece in tokenizer.convert_ids_to_tokens(some)]
    text = " ".join(str(piece) if str(piece).isprintable() else ascii(piece) for piece in pieces)
    return f"[{text}{' …' if len(ids) > len(some) else ''}]"


def _start(file: TaskFile, tokenizer: Any) -> list[int]:
    if not file.prepend_bos:
        return []
    bos = None if tokenizer is None else tokenizer.bos_token_id
    if bos is None:
        raise BadTaskFile(f"{label(file.path)} asks for prepend_bos, but this model's tokenizer has no such token.")
    return [bos]


def _texts(row: Row) -> list[str]:
    each = (row.clean, row.corrupt, *row.answers, *row.wrong_answers)
    return [text for text in each if isinstance(text, str)]


def _tokenised(tokenizer: Any, texts: list[str]) -> dict[str, list[int]]:
    if not texts:
        return {}
    return dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))


def _encoded(row: Row, ids: dict[str, list[int]], start: list[int], model: Any) -> _Encoded:
    """One row in tokens, checked against the model."""
    tokenizer = model.tokenizer
    clean, corrupt = (start + (ids[side] if isinstance(side, str) else list(side)) for side in (row.clean, row.corrupt))
    if len(clean) != len(corrupt):
        raise BadTaskFile(
            f"clean is {len(clean)} tokens and corrupt {len(corrupt)}: {tokens_shown(tokenizer, clean)} and "
            f"{tokens_shown(tokenizer, corrupt)}. Choose words of equally many tokens"
        )
    if not clean:
        raise BadTaskFile("the prompts are no tokens at all to this model")
    n_ctx = getattr(model, "n_ctx", None)
    if n_ctx is not None and len(clean) > n_ctx:
        raise BadTaskFile(f"the prompts are {len(clean):,} tokens; this model reads {n_ctx:,}")
    answers = [_one_token(answer, ids, tokenizer) for answer in row.answers]
    wrong = [_one_token(answer, ids, tokenizer) for answer in row.wrong_answers]
    d_vocab = getattr(model, "d_vocab", None)
    largest = max(*clean, *corrupt, *answers, *wrong)
    if d_vocab is not None and largest >= d_vocab:
        raise BadTaskFile(f"this model has {d_vocab:,} tokens; got the id {largest:,}. Is the file for another model?")
    for name, side in (("clean", row.clean), ("corrupt", row.corrupt)):
        if isinstance(side, str) and _unknown(side, ids[side], tokenizer):
            raise BadTaskFile(f"{name} holds a word that this model does not know: {shown(side)}")
    both = [right for right in answers if right in wrong]
    if both:
        raise BadTaskFile(f"the answer {tokens_shown(tokenizer, both)} is also a wrong answer to this tokenizer")
    return _Encoded(clean, corrupt, answers, wrong)


def _one_token(answer: str | int, ids: dict[str, list[int]], tokenizer: Any) -> int:
    if isinstance(answer, int):
        return answer
    tokens = ids[answer]
    if _unknown(answer, tokens, tokenizer):
        raise BadTaskFile(f"the answer {shown(answer)} is a word that this model does not know")
    if len(tokens) == 1:
        return tokens[0]
    space = "" if answer.startswith(" ") else ", or a space before it"
    raise BadTaskFile(
        f"the answer {shown(answer)} is {len(tokens)} tokens, {tokens_shown(tokenizer, tokens)}: one is judged. Choose "
        f"another word{space}"
    )


def _unknown(text: str, tokens: list[int], tokenizer: Any) -> bool:
    """Whether a word became the unknown token; some tokenizers use that one for the beginning of a text as well."""
    unknown = tokenizer.unk_token_id
    return unknown is not None and tokens.count(unknown) > text.count(tokenizer.unk_token)


def _task(file: TaskFile, rows: list[Row], encoded: list[_Encoded], model: Any) -> Task:
    import torch

    from patching.task import Task

    def padded(lists: list[list[int]], fill: int) -> torch.Tensor:
        width = max(1, max(map(len, lists)))
        return torch.tensor([each + [fill] * (width - len(each)) for each in lists])

    def text(row: Row) -> str:
        if isinstance(row.clean, str):
            return row.clean
        return " ".join(map(str, row.clean)) if model.tokenizer is None else model.tokenizer.decode(list(row.clean))

    return Task(
        name=file.name,
        clean=padded([each.clean for each in encoded], 0),
        corrupt=padded([each.corrupt for each in encoded], 0),
        answers=padded([each.answers for each in encoded], -1),
        wrong_answers=padded([each.wrong for each in encoded], -1),
        positions=torch.tensor([len(each.clean) - 1 for each in encoded]),
        metric=file.metric,
        texts=tuple(map(text, rows)),
        starts_with_bos=file.prepend_bos,
    )

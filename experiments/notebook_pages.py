"""Notebooks as Jupyter files and as pages of the documentation, from the scripts in `notebooks/`.

    python -m experiments.notebook_pages [NAME ...]

A script in the percent format (cells begin with ``# %%``) is what people edit and what tests run: it can be read and
compared in git. From it follow ``notebooks/NAME.ipynb``, the same cells without outputs, and a page of the
documentation, ``docs/notebooks/NAME.md``, with the outputs of a real run and its figures beside it. Cells run in one
namespace, as in a notebook; what the last expression of a cell shows of itself is shown.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from graphs.atomic import write_text

ROOT: Final = Path(__file__).resolve().parents[1]
NOTEBOOKS: Final = ROOT / "notebooks"
PAGES: Final = ROOT / "docs" / "notebooks"

_TABLE: Final = re.compile(r"(<div>\s*)?<table\b")
_STYLE: Final = re.compile(r"<style\b.*?</style>", re.DOTALL)
_SVG: Final = re.compile(r"<svg\b.*?</svg>", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """One cell of a notebook.

    Attributes:
        kind: markdown or code.
        source: its text, without comment signs.
    """

    kind: str
    source: str


@dataclass(frozen=True)
class Output:
    """What a cell wrote, and what its last expression shows.

    Attributes:
        printed: standard output.
        shown: as text, or as a table in HTML; empty if there is nothing.
        figures: as SVG.
    """

    printed: str = ""
    shown: str = ""
    figures: tuple[str, ...] = field(default=(), repr=False)


def cells(script: str) -> list[Cell]:
    r"""The cells of a script in the percent format; what stands before the first is a header and left out.

    Example:
        >>> cells("# ---\n# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1\n")
        [Cell(kind='markdown', source='# Title\n\ntext'), Cell(kind='code', source='x = 1')]
    """
    found: list[Cell] = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        if title.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip("\n").split("\n")]
            found.append(Cell("markdown", "\n".join(lines).strip()))
        else:
            found.append(Cell("code", body.strip("\n")))
    return found


def jupyter(parts: Sequence[Cell]) -> str:
    """The text of a Jupyter file, format 4.5, without outputs; the same cells give the same text.

    Example:
        >>> json.loads(jupyter([Cell("code", "x = 1")]))["cells"][0]["outputs"]
        []
    """
    made = []
    for number, cell in enumerate(parts, start=1):
        one: dict[str, Any] = {"cell_type": cell.kind, "id": f"cell-{number:02}", "metadata": {}}
        if cell.kind == "code":
            one |= {"execution_count": None, "outputs": []}
        made.append(one | {"source": cell.source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    document = {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def outputs(parts: Sequence[Cell], *, name: str = "notebook") -> Iterator[Output]:
    r"""Run the code cells one after the other; what each gives, nothing for markdown.

    Example:
        >>> list(outputs([Cell("code", "x = 2\nprint(x)"), Cell("code", "x + 1")]))
        [Output(printed='2\n', shown=''), Output(printed='', shown='3')]
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(parts, start=1):
        yield _ran(cell, f"{name}, cell {number}", space) if cell.kind == "code" else Output()


def _ran(cell: Cell, place: str, space: dict[str, Any]) -> Output:
    tree, last = ast.parse(cell.source), None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(tree, place, "exec"), space)
        value = None if last is None else eval(compile(last, place, "eval"), space)
    figures, shown = _shown(value)
    return Output(out.getvalue(), shown, figures)


def _shown(value: object) -> tuple[tuple[str, ...], str]:
    """The figures in what an object shows of itself in a notebook; and its text, or its table if it is one."""
    if value is None:
        return (), ""
    own: Callable[[], str | None] | None = getattr(value, "_repr_html_", None)
    html = _STYLE.sub("", (own() or "") if own is not None else "").strip()
    drawn = tuple(_SVG.findall(html))
    if not drawn and _TABLE.match(html):
        return (), "\n".join(line for line in html.splitlines() if line.strip())
    return drawn, str(value)


def page(name: str, parts: Sequence[Cell], found: Sequence[Output]) -> tuple[str, dict[str, str]]:
    r"""A page of Markdown, and the text of each figure beside it, by file name.

    Example:
        >>> text, files = page("01_start", [Cell("code", "print(1)")], [Output("1\n", "", ("<svg></svg>",))])
        >>> "![Figure 1 of 01_start](01_start-1.svg)" in text, list(files)
        (True, ['01_start-1.svg'])
    """
    files: dict[str, str] = {}
    blocks: list[str] = []
    title = parts[0].source.split("\n", 1)[0].lstrip("# ") if parts[0].kind == "markdown" else name
    for cell, output in zip(parts, found, strict=True):
        if cell.kind == "markdown":
            blocks.append(cell.source)
            continue
        blocks.append(f"```python\n{cell.source}\n```")
        table = output.shown if _TABLE.match(output.shown) else ""
        text = "\n".join(part.rstrip() for part in (output.printed, "" if table else output.shown) if part.strip())
        blocks += [part for part in (f"```text\n{_without_places(text)}\n```" if text else "", table) if part]
        for figure in output.figures:
            file = f"{name}-{len(files) + 1}.svg"
            files[file] = _standing_alone(figure)
            blocks.append(f"![Figure {len(files)} of {title}]({file})")
    blocks.insert(1, f"*A notebook, as it ran: `notebooks/{name}.ipynb`, or `{name}.py` beside it.*")
    return "\n\n".join(blocks) + "\n", files


def _without_places(text: str) -> str:
    """A text without temporary folders, which have another name in every run."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[\w-]+", "FOLDER", text)


def _standing_alone(figure: str) -> str:
    """An SVG out of a page as a file of its own."""
    if "xmlns=" not in figure.split(">", 1)[0]:
        figure = figure.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return "\n".join(line.rstrip() for line in figure.splitlines()) + "\n"


def write(script: Path, *, run: bool, said: Callable[[str], object] = print) -> None:
    """Write the Jupyter file of a script and, if it is run, its page and figures.

    Args:
        script: in `notebooks/`.
        run: whether to run it; else the Jupyter file alone is written.
        said: told of each file.
    """
    parts = cells(script.read_text(encoding="utf-8"))
    target = script.with_suffix(".ipynb")
    write_text(target, jupyter(parts))
    said(str(target))
    if not run:
        return
    text, files = page(script.stem, parts, list(outputs(parts, name=script.name)))
    PAGES.mkdir(parents=True, exist_ok=True)
    for old in PAGES.glob(f"{script.stem}-*.svg"):
        old.unlink()
    for file, content in ({f"{script.stem}.md": text} | files).items():
        write_text(PAGES / file, content)
        said(str(PAGES / file))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 01; all by default")
    parser.add_argument("--no-run", action="store_true", help="the Jupyter files alone")
    asked = parser.parse_args(arguments)
    for script in sorted(NOTEBOOKS.glob("*.py")):
        if not asked.names or script.stem.startswith(tuple(asked.names)):
            write(script, run=not asked.no_run)


if __name__ == "__main__":
    main()

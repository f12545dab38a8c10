"""Docstrings as the API pages show them: read by griffe, which needs the words that it knows, and Markdown.

The sources stay as they are: ``Example:`` becomes a block of code, ``Cost:`` and ``Source:`` get bold heads, tables and
formulas of reStructuredText become Markdown's.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

from experiments.docs_site.markdown import arxiv_links

TABLE = re.compile(r"^(=+(?: +=+)+)\n(.*?)^\1[ \t]*$(?=\n[ \t]*\n|\s*\Z)", flags=re.S | re.M)
HEADS = re.compile(r"^(Cost|Cost of a call|Source|Sources): (?=\S)", flags=re.M)


class Docstrings(griffe.Extension):
    """Changes the text of every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Called once for every module, class, function and attribute."""
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """A docstring for griffe.

    Example:
        >>> rewritten("Cost: nothing.")
        '**Cost.** nothing.'
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
    text = HEADS.sub(r"**\1.** ", text)
    text = re.sub(r":math:`(.+?)`", r"$\1$", text)
    text = re.sub(r"::$", ":", text, flags=re.M)
    return arxiv_links(_tables(text))


def _tables(text: str) -> str:
    """Simple tables of reStructuredText as Markdown's: columns begin where their rule begins."""

    def table(found: re.Match[str]) -> str:
        starts = [rule.start() for rule in re.finditer(r"=+", found[1])]
        ends: list[int | None] = [*starts[1:], None]
        rows: list[list[str]] = []
        lines = [line for line in found[2].splitlines() if line.strip()]
        ruled = any(set(line.strip()) <= {"=", " "} for line in lines)
        for line in lines:
            if set(line.strip()) <= {"=", " "}:
                continue
            cells = [line[start:end].strip().replace("|", "\\|") for start, end in zip(starts, ends, strict=True)]
            if cells[0] or not rows:
                rows.append(cells)
            else:  # a row goes on in the next line
                rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
        head, body = (rows[0], rows[1:]) if ruled else ([""] * len(starts), rows)
        table = [head, ["---"] * len(starts), *body]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in table)

    return TABLE.sub(table, text)

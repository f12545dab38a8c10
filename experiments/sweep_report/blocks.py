"""A page as a list of blocks, written as one HTML file that needs nothing else, or as Markdown with figures beside it.

Text from outside is never markup: in HTML everything is escaped and the page forbids scripts and anything from
elsewhere; in Markdown what would be markup is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from graphs.circuit import visible


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the page's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Some sentences; a note stands out."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Link:
    """A text that leads to a file, named relative to the page."""

    text: str
    target: str


Cell = str | Link


@dataclass(frozen=True)
class Table:
    """Columns and rows; `right` are the numbers of the columns that hold figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    right: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A drawing in SVG, and what it shows."""

    svg: str
    caption: str


Block = Heading | Paragraph | Table | Items | Figure

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1f2430;--faint:#5f6672;--line:#d9dce2;--paper:#fff;--note:#fff6e0}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ee;--faint:#a2a9b6;--line:#3a404c;--paper:#15181e;--note:#3a3114}
figure svg{background:#fff}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:64rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--faint);font-weight:600;white-space:nowrap}
.figure{text-align:right;white-space:nowrap}
figure{margin:1rem 0}figure svg{width:min(100%,44rem);height:auto}
figcaption{color:var(--faint);font-size:.86rem;max-width:44rem}
.note{background:var(--note);padding:.5rem .8rem;border-radius:4px}
a{color:inherit}
"""


def as_html(blocks: Sequence[Block], *, title: str) -> str:
    """One page that needs nothing else."""
    figures = (number for number, block in enumerate(blocks) if isinstance(block, Figure))
    numbers = {place: count for count, place in enumerate(figures, start=1)}
    body = "\n".join(_html(block, numbers.get(place, 0)) for place, block in enumerate(blocks))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def as_markdown(blocks: Sequence[Block], *, stem: str) -> tuple[str, dict[str, str]]:
    """The page, and the figures by the names of their files, which stand beside it.

    Args:
        blocks: The page.
        stem: What the figures' names begin with.
    """
    parts, figures = [], {}
    for block in blocks:
        if isinstance(block, Figure):
            name = f"{stem}-{len(figures) + 1}.svg"
            figures[name] = block.svg
            parts.append(f"![{_marked(block.caption)}]({quote(name)})\n\n*{_marked(block.caption)}*")
        else:
            parts.append(_markdown(block))
    return "\n\n".join(parts) + "\n", figures


# ----------------------------------------------------------------------------------------------------------- HTML


def _html(block: Block, number: int) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_escaped(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        mark = ' class="note"' if block.note else ""
        return f"<p{mark}>{_escaped(block.text)}</p>"
    if isinstance(block, Items):
        return "<ul>\n" + "\n".join(f"<li>{_escaped(text)}</li>" for text in block.texts) + "\n</ul>"
    if isinstance(block, Figure):
        return (
            f"<figure>\n{_inline(block.svg, prefix=f'f{number}-')}\n"
            f"<figcaption>{_escaped(block.caption)}</figcaption>\n</figure>"
        )
    head = _row(block.columns, block.right, tag="th")
    body = "\n".join(_row(row, block.right, tag="td") for row in block.rows)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _row(cells: Iterable[Cell], right: frozenset[int], *, tag: str) -> str:
    found = []
    for place, cell in enumerate(cells):
        mark = ' class="figure"' if place in right else ""
        if isinstance(cell, Link):
            inner = f'<a href="{_escaped(quote(cell.target))}">{_escaped(cell.text)}</a>'
        else:
            inner = _escaped(cell)
        found.append(f"<{tag}{mark}>{inner}</{tag}>")
    return f"<tr>{''.join(found)}</tr>"


def _inline(svg: str, *, prefix: str) -> str:
    """The drawing itself, with names that no other drawing of the page has."""
    inner = svg[svg.index("<svg") :].rstrip()
    inner = re.sub(r"<metadata>.*?</metadata>\s*", "", inner, flags=re.DOTALL)
    return re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', prefix, inner)


def _escaped(text: str) -> str:
    return html.escape(visible(text), quote=True)


# ------------------------------------------------------------------------------------------------------- Markdown


def _markdown(block: Heading | Paragraph | Table | Items) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_marked(block.text)}"
    if isinstance(block, Paragraph):
        return f"{'> **Note.** ' if block.note else ''}{_marked(block.text)}"
    if isinstance(block, Items):
        return "\n".join(f"- {_marked(text)}" for text in block.texts)
    bars = "|".join("---:" if place in block.right else "---" for place in range(len(block.columns)))
    lines = [f"| {' | '.join(map(_marked, block.columns))} |", f"|{bars}|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in block.rows]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    return f"[{_marked(cell.text)}]({quote(cell.target)})" if isinstance(cell, Link) else _marked(cell)


def _marked(text: str) -> str:
    """Text with what Markdown would take for markup escaped."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", visible(text).replace("\n", " "))

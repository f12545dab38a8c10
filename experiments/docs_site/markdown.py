"""What is done to every page of the site, so that the same files also read well as plain Markdown.

- Inline code that is a dotted name of the project, such as `graphs.circuit.Circuit`, links to its entry in the API.
- Links to files outside `docs` lead to the page of that module, or to the page made from that file.
- A line ``<!-- README: Section -->`` stands for that section of the README (`start` is what comes before the first).
- Formulas between dollar signs become MathML.
"""

from __future__ import annotations

import html as entities
import posixpath
import re
from collections.abc import Callable

from experiments.docs_site import api

INCLUDE = re.compile(r"^<!-- README: (.+?) -->$", flags=re.M)
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
NAME = re.compile(r"(?<![\[`\w])`((?:graphs|patching|circuits|experiments)(?:\.\w+)+)((?:\(…?\))?)`(?![`\]])")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', flags=re.S)
FENCE = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$", flags=re.S | re.M)
ARXIV = re.compile(r"(?<![\[\w/.])(arXiv )?(\d{4}\.\d{5})(?![\d\]])")
ELSEWHERE = {"CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
"""Files outside `docs` that have a page of their own."""


def prepare(text: str, uri: str) -> str:
    """A page's Markdown for the site.

    Args:
        text: as it is in the file.
        uri: its path below `docs`.

    Example:
        >>> prepare("see `graphs.circuit.Circuit` and [the table](../graphs/schema.py)", "guide.md")
        'see [`graphs.circuit.Circuit`][graphs.circuit.Circuit] and [the table](reference/graphs/schema.md)'
    """
    text = INCLUDE.sub(lambda found: section(found[1]), text)
    return _outside_code(text, lambda part: _linked(part, uri))


def _linked(text: str, uri: str) -> str:
    text = LINK.sub(lambda at: _link(at, uri), text)
    return NAME.sub(r"[`\1\2`][\1]", text if text.startswith(":::") else arxiv_links(text))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    parts, place = [], 0
    for block in FENCE.finditer(text):
        parts += [change(text[place : block.start()]), block[0]]
        place = block.end()
    return "".join([*parts, change(text[place:])])


def _link(found: re.Match[str], uri: str) -> str:
    here = posixpath.dirname(posixpath.join("docs", uri))
    target = posixpath.normpath(posixpath.join(here, found[2]))
    if target in ELSEWHERE:
        wanted = ELSEWHERE[target]
    elif (module := target.removesuffix(".py").replace("/", ".")) in api.modules():
        wanted = api.uri(module)
    elif target.startswith("docs/"):
        wanted = target.removeprefix("docs/")
    else:
        return found[0]
    return found[1] + posixpath.relpath(wanted, posixpath.dirname(uri) or ".") + found[3]


def arxiv_links(text: str) -> str:
    """Text with the numbers of arXiv as links.

    Example:
        >>> arxiv_links("arXiv 2304.14997, algorithm 1")
        '[arXiv 2304.14997](https://arxiv.org/abs/2304.14997), algorithm 1'
    """
    return ARXIV.sub(lambda at: f"[{at[0]}](https://arxiv.org/abs/{at[2]})", text)


def section(title: str) -> str:
    """A section of the README without its heading, its links as seen from `docs`.

    Args:
        title: of the section, or `start`.

    Raises:
        ValueError: The README has no such section.
    """
    text = (api.ROOT / "README.md").read_text(encoding="utf-8")
    first, *rest = re.split(r"^## (.+)\n", text, flags=re.M)
    sections = {"start": first} | dict(zip(rest[::2], rest[1::2], strict=True))
    if title not in sections:
        raise ValueError(f"expected a section of README.md out of {', '.join(sections)}; got {title!r}.")
    body = re.sub(r"^# .+\n", "", sections[title])
    return seen_from_docs(body).strip()


def seen_from_docs(text: str) -> str:
    """Text of a file at the root with its links as they are from `docs`.

    Example:
        >>> seen_from_docs("[guide](docs/circuits.md), [code](graphs/schema.py)")
        '[guide](circuits.md), [code](../graphs/schema.py)'
    """
    return _outside_code(text, lambda part: LINK.sub(lambda at: f"{at[1]}{_from_docs(at[2])}{at[3]}", part))


def _from_docs(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def formulas(html: str) -> str:
    r"""HTML with formulas as MathML; needs `latex2mathml`.

    Raises:
        ValueError: A formula has a command that is not known.

    Example:
        >>> formulas("no formula")
        'no formula'
    """
    return FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    display = found[2] is None
    latex = entities.unescape(found[3] if display else found[2]).strip()
    made = convert(latex, display="block" if display else "inline")
    unknown = re.search(r">(\\[A-Za-z]+)<", made)
    if unknown is not None:
        raise ValueError(f"expected commands that latex2mathml knows; got {unknown[1]} in {latex}")
    return f'<div class="formula">{made}</div>' if display else made

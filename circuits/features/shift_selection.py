"""The file in which a person marks features to take out: one line each, with what they respond to.

A table with tabs between its columns, which any editor or spreadsheet opens:

    # Put an x before every feature that has nothing to do with the task, and save.
    remove  feature  effect   active  examples
            r0.f12   -0.3120  4.1%    When «Mary» and John went │ Then, Paul and «Mary» had
    x       m0.f7    -0.2012  2.0%    …

The token in «» is the one at which the feature is as strong as the line's order says; lines stand in the order of the
absolute effect. `read` checks every line and says which are wrong: an unknown mark or feature, a feature twice.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from circuits.features.examples import Example, Gallery
from circuits.features.shift import LatentEffects
from graphs.atomic import read_text, write_text
from graphs.errors import BadFile, BadName
from graphs.nodes import Node
from patching.errors import InvalidOption

COLUMNS = ("remove", "feature", "effect", "active", "examples")
YES, NO = ("x", "yes", "1", "true"), ("", "-", "no", "0", "false")
WORDS = 6  # before and after the token that an example is about
LONGEST = 5 << 20  # bytes of a file that is read


@dataclass(frozen=True)
class Selection:
    """What a person marked.

    Attributes:
        marked: features to take out, in the order of the file.
        listed: all features of the file.
    """

    marked: tuple[Node, ...]
    listed: tuple[Node, ...]


@dataclass(frozen=True)
class Line:
    """One feature, as a person sees it.

    Attributes:
        feature: its node.
        effect: on the probe.
        active: share of tokens at which it is active; None where no examples were collected.
        examples: where it is strongest.
    """

    feature: Node
    effect: float
    active: float | None
    examples: tuple[Example, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The tokens at which it is strongest, without spaces around them."""
        return tuple(example.tokens[example.at].strip() for example in self.examples)

    def shown(self) -> str:
        """The examples as text, the token that each is about in «»."""
        return " │ ".join(_shown(example) for example in self.examples)


def lines(
    effects: LatentEffects, galleries: Mapping[str, Gallery], *, n: int = 50, examples: int = 5, signed: bool = False
) -> tuple[Line, ...]:
    """The features of the largest effect, with their strongest examples.

    Args:
        effects: from `shift.latent_effects`.
        galleries: by site (``mlp_out1``), from `examples.collect`; features of other sites have no examples.
        n: how many features.
        examples: of each at most.
        signed: only features that help the probe.

    Raises:
        InvalidOption: n or examples below 1.
    """
    if n < 1 or examples < 1:
        raise InvalidOption(f"expected at least one feature and example; got n={n} and examples={examples}.")
    rows = []
    for site in effects.values:
        if str(site) in galleries and galleries[str(site)].n_features != len(effects.values[site]):
            raise InvalidOption(f"expected examples of the dictionary that was ranked at {site}; got another's.")
    for node, effect in effects.ranked(n, signed=signed):
        gallery = galleries.get(str(effects.site_of(node)))
        if gallery is None:
            rows.append(Line(node, effect, None, ()))
            continue
        view = gallery.feature(node.index or 0)
        rows.append(Line(node, effect, view.frequency, view.top[:examples]))
    return tuple(rows)


def write(
    path: str | os.PathLike[str],
    rows: Iterable[Line],
    *,
    task: str = "the task",
    marked: Iterable[Node] = (),
) -> None:
    """Write a file to mark features in.

    Args:
        path: where; `.tsv` opens in spreadsheets.
        rows: from `lines`.
        task: what the intended label is, for the line that says what to do.
        marked: features to mark already.

    Raises:
        WriteFailed: the file could not be written; what stood there before is untouched.
    """
    chosen = set(marked)
    out = io.StringIO()
    out.write(f"# Put an x before every feature that has nothing to do with {_flat(task)}, and save.\n")
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        active = "" if row.active is None else f"{row.active:.1%}"
        mark = "x" if row.feature in chosen else ""
        writer.writerow([mark, str(row.feature), f"{row.effect:.4f}", active, _flat(row.shown())])
    write_text(path, out.getvalue())


def read(path: str | os.PathLike[str], *, known: Iterable[Node] | None = None) -> Selection:
    r"""Read what a person marked.

    Only the columns ``remove`` and ``feature`` are read, wherever they stand; tabs, commas or semicolons part them.

    Args:
        path: of the file.
        known: features that may be listed, such as those that were written; all by default.

    Raises:
        BadFile: no such file, no header, or lines that are wrong; the message names the lines.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("picked.tsv").write_text("remove\tfeature\nx\tm0.f7\n\tr0.f12\n")
        >>> [str(node) for node in read("picked.tsv").marked]
        ['m0.f7']
    """
    text = read_text(path, limit=LONGEST).lstrip("\ufeff")
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if not _skipped(line)]
    if not numbered:
        raise BadFile(f"{path}: expected a header with the columns {' and '.join(COLUMNS[:2])}; the file is empty.")
    delimiter = next((mark for mark in "\t;," if mark in numbered[0][1]), "\t")
    header = [name.strip().lower() for name in _cells(numbered[0][1], delimiter)]
    if not set(COLUMNS[:2]) <= set(header):
        raise BadFile(
            f"{path}, line {numbered[0][0]}: expected a header with the columns {' and '.join(COLUMNS[:2])}; got "
            f"{', '.join(header)[:80]}."
        )
    places = [header.index(name) for name in COLUMNS[:2]]
    allowed = None if known is None else set(known)
    listed: dict[Node, bool] = {}
    wrong: list[str] = []
    for number, line in numbered[1:]:
        cells = _cells(line, delimiter)
        cells += [""] * (max(places) + 1 - len(cells))
        problem = _take(cells[places[0]].strip(), cells[places[1]].strip(), listed, allowed)
        if problem:
            wrong.append(f"line {number}: {problem}")
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise BadFile(
            f"{path}: {len(wrong)} wrong lines. {'; '.join(wrong[:10])}{more}. Correct them and read it again."
        )
    return Selection(tuple(node for node, mark in listed.items() if mark), tuple(listed))


def _take(mark: str, name: str, listed: dict[Node, bool], allowed: set[Node] | None) -> str:
    """Add a line to what is listed; what is wrong with it, if anything."""
    try:
        node = Node.parse(name)
    except BadName:
        return f"expected a feature such as m0.f7; got {name[:40]!r}"
    if node.site is None or node.is_error or node.position is not None:
        return f"expected a feature such as m0.f7, at all positions; got {name[:40]}"
    if node in listed:
        return f"{node} comes twice"
    if allowed is not None and node not in allowed:
        return f"{node} is none of the features that were listed"
    if mark.lower() not in (*YES, *NO):
        return f"expected x or nothing before {node}; got {mark[:40]!r}"
    listed[node] = mark.lower() in YES
    return ""


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _skipped(line: str) -> bool:
    return not line.strip() or line.lstrip().lstrip('"').startswith("#")


def _shown(example: Example) -> str:
    first, last = max(0, example.at - WORDS), example.at + WORDS + 1
    before, after = "".join(example.tokens[first : example.at]), "".join(example.tokens[example.at + 1 : last])
    token = example.tokens[example.at]
    space = " " if token.startswith(" ") else ""
    return _flat(f"{before}{space}«{token.strip()}»{after}".strip())


def _flat(text: str) -> str:
    """On one line, without the marks that part columns."""
    return " ".join(text.split())

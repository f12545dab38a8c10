"""Ordinary text that every machine with Python has: the standard library's documentation, docstrings and sources.

Text is cut into passages of a few hundred characters. A module is held out when the CRC-32 of its path is divisible by
twenty; nothing of it is trained on.

The standard library is under the PSF licence, which permits use and derived works; none of its text is in this
repository.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = (
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "idlelib",
    "lib2to3",
    "pydoc_data",
)
"""Folders without text of a person's: packages of others, tests, and tables of characters."""

PASSAGE = 900
"""Most characters of a passage."""


@dataclass(frozen=True)
class Passages:
    """Text in passages.

    Attributes:
        prose: Of the language's documentation and of docstrings.
        code: Of sources.
    """

    prose: tuple[str, ...]
    code: tuple[str, ...]


def modules() -> list[tuple[str, Path]]:
    """Every module of the standard library as its path within the library and its file, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if not any(part in LEFT_OUT for part in name.parts[:-1]):
            found.append((name.as_posix(), path))
    return sorted(found)


def is_held_out(name: str) -> bool:
    """Whether a module is held out."""
    return zlib.crc32(name.encode()) % 20 == 0


def passages(*, held_out: bool) -> Passages:
    """The passages of one side of the split.

    Args:
        held_out: Of the held-out modules, or of all others.
    """
    prose, code = [], []
    for name, path in modules():
        if is_held_out(name) != held_out:
            continue
        source = path.read_text(encoding="utf-8", errors="ignore")
        prose += [passage for doc in docstrings(source) for passage in cut(doc)]
        code += cut(source)
    for name, topic in _topics().items():
        if is_held_out(name) == held_out:
            prose += cut(inspect.cleandoc(topic))
    return Passages(tuple(prose), tuple(code))


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of a source of at least 80 characters, without their indentation."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc and len(doc) >= 80:
                yield doc


def cut(text: str) -> list[str]:
    """Cut text at ends of lines into passages of at most `PASSAGE` characters, in order.

    Example:
        >>> [len(each) for each in cut("a line" * 100 + chr(10) + "b" * 500 + chr(10))]
        [600, 500]
    """
    made, lines, size = [], [], 0
    for line in text.splitlines():
        if size + len(line) > PASSAGE and lines:
            made.append("\n".join(lines))
            lines, size = [], 0
        lines.append(line.rstrip()[:PASSAGE])
        size += len(line) + 1
    made.append("\n".join(lines))
    return [passage.strip("\n") for passage in made if len(passage.strip()) >= 40]


def _topics() -> dict[str, str]:
    """The language's reference, which `help()` shows by topic."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return dict(sorted(topics.items()))

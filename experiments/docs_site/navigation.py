"""The menu: entries of `mkdocs.yml` that stand for a folder become its pages."""

from __future__ import annotations

from typing import Any

from experiments.docs_site import api, pages

DOCS = api.ROOT / "docs"


def expand(entries: list[Any]) -> list[Any]:
    """The menu with every `FOLDER/*` and `*` replaced.

    `reference/*` is the tree of modules, `NAME/*` the pages of that folder in the order of their names, and `*` every
    page right below `docs` that no other entry names.
    """
    named = set(_named(entries))
    return _expanded(entries, named)


def _expanded(entries: list[Any], named: set[str]) -> list[Any]:
    made: list[Any] = []
    for entry in entries:
        if entry == "*":
            made += sorted(path.name for path in DOCS.glob("*.md") if path.name not in named)
        elif isinstance(entry, dict):
            ((title, value),) = entry.items()
            if isinstance(value, list):
                made.append({title: _expanded(value, named)})
            elif value == f"{api.FOLDER}/*":
                made.append({title: api.navigation()})
            elif value.endswith("/*"):
                found = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob(f"{value[:-2]}/*.md"))
                made += [{title: found}] if found else []
            else:
                made.append(entry)
        else:
            made.append(entry)
    return made


def _named(entries: list[Any]) -> list[str]:
    found: list[str] = []
    for entry in entries:
        values = list(entry.values()) if isinstance(entry, dict) else [entry]
        for value in values:
            found += _named(value) if isinstance(value, list) else [value]
    return [*found, *pages.PAGES]

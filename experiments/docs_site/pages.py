"""The generated pages: path below `docs` -> what writes it."""

from __future__ import annotations

from collections.abc import Callable

from experiments.docs_site import api, commands, lists, markdown

PAGES: dict[str, Callable[[], str]] = {
    "methods.md": lists.methods,
    "tasks.md": lists.task_page,
    "models.md": lists.model_page,
    "command-line.md": commands.page,
    "benchmarks.md": lists.benchmarks,
    "contributing.md": lambda: markdown.seen_from_docs((api.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")),
}
"""Pages in the menu."""


def generate() -> dict[str, str]:
    """Every generated page: path below `docs` -> Markdown.

    Example:
        >>> "methods.md" in generate()
        True
    """
    made = {uri: write() for uri, write in PAGES.items()}
    return made | lists.cards() | {api.uri(module): api.page(module) for module in api.modules()}

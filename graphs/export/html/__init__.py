"""A circuit as one interactive web page that needs nothing else: no network, no server, no library.

The page is `page.html` with `page.css` and the scripts put into it, and the data as JSON. Nodes are buttons, so that
keyboards and screen readers reach them; edges are drawn on a canvas, so that thousands stay fluid. Where things stand
is `graphs.layout`'s answer, as in the figure.

Text from outside (titles, prompts, provenance) is never markup: it is JSON in which `<`, `>` and `&` are escaped, the
scripts put it on the page as text only, and the page's content security policy runs those scripts, known by their
hash, and nothing else. The same circuit and options give the same bytes.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphs.atomic import write_text
from graphs.circuit import Circuit
from graphs.errors import BadOption
from graphs.export.html.content import Prompt, content
from graphs.export.html.page import assembled
from graphs.nodes import Node

__all__ = ["InlinePage", "Prompt", "dumps", "inline", "write"]


def write(
    circuit: Circuit,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    other: Circuit | None = None,
    groups: Mapping[str, Iterable[Node | str]] | None = None,
    prompt: Prompt | Sequence[str] | None = None,
    attention: Mapping[str, Any] | Mapping[Node, Any] | None = None,
) -> None:
    """Write the page to a file, whole or not at all.

    Args:
        circuit: What to show.
        path: The file; any browser opens it from the disk. With `#` and the name of a node after its address, that
            node is selected from the start.
        title: The heading; without one, the model, task and method that the provenance names.
        other: A second circuit of the same architecture: the page then tells what is in both and in one alone.
        groups: Roles by which nodes can be coloured: the name of a role to its nodes (or their names). A node can
            have one role; nodes that are not in the circuits are passed over.
        prompt: The tokens of an example, with its answer if it is a `Prompt`; positions of edges refer to it.
        attention: Patterns to show for selected heads: head (or its name) to a matrix [query, key] of numbers from 0
            to 1, as nested lists or anything with `tolist`; as long and wide as the prompt, if one is given.

    Raises:
        BadOption: If an option is not of this form.
        WriteFailed: If the file cannot be written; whatever stood there is untouched.

    Example:
        >>> write(circuit, folder / "circuit.html", title="Which wires move the name?")
    """
    page = dumps(circuit, title=title, other=other, groups=groups, prompt=prompt, attention=attention)
    write_text(path, page)


def dumps(
    circuit: Circuit,
    *,
    title: str | None = None,
    other: Circuit | None = None,
    groups: Mapping[str, Iterable[Node | str]] | None = None,
    prompt: Prompt | Sequence[str] | None = None,
    attention: Mapping[str, Any] | Mapping[Node, Any] | None = None,
) -> str:
    """The text of the page; options as for `write`. Pure ASCII, the same for equal circuits and options.

    Cost: that of `graphs.layout`; some two seconds for 5,000 edges. About 250 bytes for each edge on top of the
    scripts.

    Raises:
        BadOption: If an option is not of the form that `write` says.
    """
    return assembled(content(circuit, title=title, other=other, groups=groups, prompt=prompt, attention=attention))


@dataclass(frozen=True)
class InlinePage:
    """A page for a notebook, which shows it in a frame of its own.

    Attributes:
        page: The whole page, as `dumps` gives it.
        height: Of the frame, in CSS pixels.
        name: Of the frame, for screen readers.
    """

    page: str
    height: int
    name: str = "Circuit"

    def __repr__(self) -> str:
        return f"<InlinePage: {len(self.page):,} characters, {self.height} pixels high>"

    def _repr_html_(self) -> str:
        """The frame: it may run its own scripts and save files, but not reach the notebook around it."""
        return (
            f'<iframe title="{self.name}" sandbox="allow-scripts allow-downloads" width="100%" height="{self.height}" '
            f'style="border:1px solid #8884;border-radius:8px" srcdoc="{html.escape(self.page)}"></iframe>'
        )


def inline(circuit: Circuit, *, height: int = 600, **options: Any) -> InlinePage:
    """The page inside a notebook.

    Args:
        circuit: What to show.
        height: Of the frame, in CSS pixels, 200 to 10,000.
        **options: As for `write`.

    Raises:
        BadOption: If the height or another option is wrong.

    Example:
        >>> inline(circuit, height=500)._repr_html_()[:7]
        '<iframe'
    """
    if isinstance(height, bool) or not isinstance(height, int) or not 200 <= height <= 10_000:
        raise BadOption(f"height is a whole number of pixels from 200 to 10,000; got {height!r}")
    known = ("title", "other", "groups", "prompt", "attention")
    unknown = [name for name in options if name not in known]
    if unknown:
        raise BadOption(f"a page has the options {', '.join(known)}; got {unknown[0]!r}")
    return InlinePage(dumps(circuit, **options), height)

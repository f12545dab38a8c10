"""All features of a dictionary as one interactive web page that needs nothing else: no network, no server, no library.

The page is `page.html` with `page.css` and the scripts put into it, and what `circuits.features.examples` saw as JSON.
A list finds, sorts and filters features; the one chosen is shown with its examples, histogram, logit effects and
neighbours. Only what is in sight is built, so that thousands of features stay fluid. Labels can be written in the page
and saved to a file, which `read_labels` reads.

Text from outside (tokens, labels, names) is never markup: it is JSON in which `<`, `>` and `&` are escaped, the
scripts put it on the page as text only, and the page's content security policy runs those scripts, known by their
hash, and nothing else. The same gallery and options give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuits.features.examples import Gallery
from circuits.features.page.content import content
from graphs.atomic import write_text
from graphs.export.html import InlinePage
from graphs.export.html.page import assembled
from patching.errors import InvalidOption

SCRIPTS = ("model.js", "list.js", "panel.js", "controls.js")

__all__ = ["InlinePage", "dumps", "inline", "read_labels", "write"]


def write(
    gallery: Gallery,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Write the page to a file, whole or not at all.

    Args:
        gallery: what was seen of every feature.
        path: the file; any browser opens it from the disk. With ``#12`` or ``#m1.f12`` after its address, that feature
            is shown from the start.
        title: the heading; without one, the dictionary's site and model.
        labels: what somebody calls features, by their number; `read_labels` reads those written in a page.

    Raises:
        InvalidOption: labels of features that the dictionary has not, or that are no texts.
        WriteFailed: the file cannot be written; whatever stood there is untouched.

    Example:
        >>> from circuits.features import create
        >>> from circuits.features.examples import collect
        >>> from patching import toy
        >>> dictionary = create("identity", d_in=4, n_features=4, site="attn_out0")
        >>> write(collect(toy.model(), dictionary, toy.task()), "features.html", labels={2: "the sum"})
        >>> Path("features.html").read_text().startswith("<!DOCTYPE html>")
        True
    """
    write_text(path, dumps(gallery, title=title, labels=labels))


def dumps(gallery: Gallery, *, title: str | None = None, labels: Mapping[int, str] | None = None) -> str:
    """The text of the page; options as for `write`. Pure ASCII, the same for equal galleries and options.

    Cost: no model is run; about 2 kB for each feature that is active, on top of the scripts.

    Raises:
        InvalidOption: labels of features that the dictionary has not, or that are no texts.
    """
    return assembled(content(gallery, title=title, labels=labels), package=__name__, scripts=SCRIPTS)


def inline(gallery: Gallery, *, height: int = 700, **options: Any) -> InlinePage:
    """The page inside a notebook.

    Args:
        gallery: what was seen of every feature.
        height: of the frame, in CSS pixels, 300 to 10,000.
        **options: as for `write`.

    Raises:
        InvalidOption: a height or another option that is wrong.
    """
    if isinstance(height, bool) or not isinstance(height, int) or not 300 <= height <= 10_000:
        raise InvalidOption(f"expected a height from 300 to 10,000 pixels; got {height!r}.")
    return InlinePage(dumps(gallery, **options), height, "Features")


def read_labels(path: str | os.PathLike[str]) -> dict[int, str]:
    """Labels from a file that a page saved: feature to label.

    Raises:
        InvalidOption: there is no such file, or it is not of that form.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidOption(f"expected a file of labels; there is no file {path}.") from None
    except ValueError as error:
        raise InvalidOption(f"expected a file of labels, as the page saves them; {path} is no JSON: {error}.") from None
    table = record.get("labels") if isinstance(record, dict) else None
    fits = isinstance(table, dict) and all(each.isdecimal() and isinstance(table[each], str) for each in table)
    if not isinstance(table, dict) or not fits:
        raise InvalidOption(f'expected labels such as {{"labels": {{"12": "names"}}}}; {path} holds something else.')
    return {int(index): label for index, label in table.items()}

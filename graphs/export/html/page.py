"""The page put together: template, style, scripts and data, with the hashes that let only these run."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cache
from importlib import resources
from typing import Any, Final

SCRIPTS: Final = ("model.js", "stage.js", "drawing.js", "panel.js", "controls.js")
"""Read as one script, in this order."""


def assembled(data: dict[str, Any], *, package: str = "graphs.export.html", scripts: tuple[str, ...] = SCRIPTS) -> str:
    """The page that shows `data`, the record that a module `content` makes.

    Args:
        data: The record; its key `title` names the page.
        package: Where `page.html`, `page.css` and the scripts stand.
        scripts: Their names; they are read as one script, in this order.
    """
    style, script, template = _file(package, "page.css"), _script(package, scripts), _file(package, "page.html")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    fillings = {  # in the order of the template; what a filling holds is not looked at again
        "POLICY": policy,
        "TITLE": html.escape(data["title"]).encode("ascii", "xmlcharrefreplace").decode("ascii"),
        "STYLE": style,
        "DATA": escaped_json(data),
        "SCRIPT": script,
    }
    parts = []
    for name, filling in fillings.items():
        before, mark, template = template.partition(f"[[{name}]]")
        if not mark:
            raise AssertionError(f"page.html lacks [[{name}]], or has it out of order")
        parts += [before, filling]
    return "".join([*parts, template])


def escaped_json(data: Any) -> str:
    r"""JSON that can stand inside a script element: pure ASCII without `<`, `>` and `&`.

    Example:
        >>> escaped_json("</script>&")
        '"\\u003c/script\\u003e\\u0026"'
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _file(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _script(package: str, names: tuple[str, ...]) -> str:
    return "".join(["(() => {\n'use strict';\n", *(_file(package, name) for name in names), "})();\n"])


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

"""The page put together: template, style, scripts and data, with the hashes that let only these run."""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from importlib import resources
from typing import Any, Final

from graphs.export.html.page import escaped_json

SCRIPTS: Final = ("model.js", "list.js", "panel.js", "controls.js")
"""Read as one script, in this order."""


def assembled(data: dict[str, Any]) -> str:
    """The page that shows `data`, the record that `content` makes."""
    style, script, template = _file("page.css"), _script(), _file("page.html")
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


@cache
def _file(name: str) -> str:
    text = resources.files("circuits.features.page").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


@cache
def _script() -> str:
    return "".join(["(() => {\n'use strict';\n", *map(_file, SCRIPTS), "})();\n"])


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

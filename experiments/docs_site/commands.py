"""The page of the command line: every command with its arguments and options, from the declarations themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HEAD = """# The command line

Every command of `wiretrace`, with what its `--help` says. Options may stand anywhere after the command.
"""
WORDS = {
    "str": "text",
    "list": "text",
    "int": "whole number",
    "integer": "whole number",
    "float": "number",
    "Path": "path",
}
DEFAULT = re.compile(r"\s*\[default: (.*?)\]")


def page() -> str:
    """All commands as Markdown, in the groups in which `wiretrace --help` shows them."""
    import typer

    from experiments.cli import app

    root = typer.main.get_command(app)
    panels: dict[str, list[str]] = {}
    for name, command in getattr(root, "commands", {}).items():
        if not command.hidden:
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(str(panel or "Commands"), []).extend(_commands(name, command))
    parts = [f"## {panel}\n\n" + "\n".join(sections) for panel, sections in panels.items()]
    return "\n".join([HEAD, *parts])


def _commands(name: str, command: Any) -> Iterator[str]:
    """A command, or all commands of a group."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield _section(name, command)
        return
    yield f"### wiretrace {name}\n\n{_text(command.help)}\n"
    for other, each in inner.items():
        if not each.hidden:
            yield from _commands(f"{name} {other}", each)


def _section(name: str, command: Any) -> str:
    shown = [one for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name != "argument"]
    usage = " ".join([f"wiretrace {name}", *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
    parts = [f"### wiretrace {name}\n", f"```sh\n{usage}\n```\n", _text(command.help) + "\n"]
    if shown:
        rows = [f"| {_spelling(one)} | {_default(one)} | {_help(one)} |" for one in (*arguments, *options)]
        parts += ["\n".join(["| argument or option | default | meaning |", "|---|---|---|", *rows, ""])]
    return "\n".join(parts)


def _argument(one: Any) -> str:
    name = str(one.name).upper() + ("..." if one.nargs == -1 else "")
    return name if one.required else f"[{name}]"


def _spelling(one: Any) -> str:
    if one.param_type_name == "argument":
        return f"`{_argument(one)}`"
    flag = getattr(one, "is_flag", False)
    names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
    return names if flag else f"{names} {_type(one)}"


def _type(one: Any) -> str:
    """What an option takes, in one word."""
    descriptor = getattr(one, "type_descriptor", None)
    named = getattr(getattr(descriptor, "annotation", None), "__name__", None) or getattr(
        getattr(one, "type", None), "name", "text"
    )
    return WORDS.get(named, named) + (" (may be repeated)" if one.multiple else "")


def _default(one: Any) -> str:
    said = DEFAULT.search(one.help or "")
    if said:
        return said[1]
    if one.required:
        return "required"
    if one.default is None or one.default is False or one.default in ((), []):
        return ""
    return f"`{one.default}`"


def _help(one: Any) -> str:
    return DEFAULT.sub("", " ".join((one.help or "").split())).replace("|", "\\|")


def _text(text: str | None) -> str:
    return (text or "").strip()

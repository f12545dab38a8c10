"""Circuits in the formats of other programs, one file per format."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphs.circuit import Circuit
from graphs.errors import BadOption, UnknownFormat

EXPORTS: dict[str, str] = {
    ".json": "graphs.export.json:write",
    ".graphml": "graphs.export.graphml:write",
    ".svg": "graphs.export.figure:write",
    ".pdf": "graphs.export.figure:write",
    ".png": "graphs.export.figure:write",
    ".gexf": "graphs.export.gexf:write",
    ".dot": "graphs.export.dot:write",
    ".gv": "graphs.export.dot:write",
    ".cyjs": "graphs.export.cytoscape:write",
    ".csv": "graphs.export.csv:write",
    ".tex": "graphs.export.tikz:write",
    ".node-link.json": "graphs.export.node_link:write",
    ".neuronpedia.json": "graphs.export.neuronpedia:write",
    ".mib.json": "graphs.export.mib:write",
    ".html": "graphs.export.html:write",
}
"""Suffix to ``module:function``; a new format is a file and a line, and one in `graphs.importing` if it is read."""


_NAMES: dict[str, str] = {
    ".gv": "dot",
    ".cyjs": "cytoscape",
    ".tex": "tikz",
    ".node-link.json": "node-link",
    ".neuronpedia.json": "neuronpedia",
    ".mib.json": "mib",
}


def _formats() -> dict[str, str]:
    found: dict[str, str] = {}
    for suffix in EXPORTS:
        found.setdefault(_NAMES.get(suffix, suffix.removeprefix(".")), suffix)
    return found


FORMATS: dict[str, str] = _formats()
"""The name of each format to the suffix that its files have: graphml to .graphml, cytoscape to .cyjs."""


def export(circuit: Circuit, path: str | os.PathLike[str], *, format: str | None = None, **options: Any) -> None:
    """Write a circuit to a file, whole or not at all, in the format that `format` or the suffix names.

    The guide `docs/formats.md` says what each format keeps and for which program it is; `graphs.load` reads most back.

    Args:
        circuit: What to write.
        path: The file. Its suffix says the format if `format` does not: .json (this project's own), .graphml, .gexf,
            .dot, .gv, .cyjs, .csv, .tex, .node-link.json, .neuronpedia.json, .mib.json, or a figure's.
        format: One of `FORMATS`, such as "cytoscape", for a file of another name.
        **options: Of the format, such as `title=` for figures, `d_model=` for mib or `strict=` for neuronpedia.

    Raises:
        UnknownFormat: If there is no exporter for the suffix, or no such format.
        BadOption: If the format has no such option, or lacks one.
        BadCircuit: If the format cannot hold the circuit.
        WriteFailed: If the file cannot be written; whatever stood there is untouched.

    Example:
        >>> export(circuit, folder / "circuit.gexf")
        >>> export(circuit, folder / "edges.txt", format="csv")
    """
    name = format_of(path) if format is None else known_format(format)
    module, function = EXPORTS[FORMATS[name]].split(":")
    write = getattr(importlib.import_module(module), function)
    _check_options(write, circuit, path, options, name=name)
    write(circuit, path, **options)


def _check_options(
    write: Callable[..., None], circuit: Circuit, path: str | os.PathLike[str], options: dict[str, Any], *, name: str
) -> None:
    signature = inspect.signature(write)
    try:
        signature.bind(circuit, path, **options)
    except TypeError as error:
        there = [option for option, found in signature.parameters.items() if found.kind is found.KEYWORD_ONLY]
        known = f"the options {', '.join(there)}" if there else "no options"
        raise BadOption(f"the format {name} has {known}; {error}") from None


def format_of(path: str | os.PathLike[str]) -> str:
    """The name of the format that the suffix of a path says; the longest suffix that fits counts.

    Raises:
        UnknownFormat: If there is none.

    Example:
        >>> format_of("a/circuit.GV"), format_of("circuit.node-link.json"), format_of("circuit.json")
        ('dot', 'node-link', 'json')
    """
    file = Path(path).name.lower()
    fitting = [suffix for suffix in EXPORTS if file.endswith(suffix)]
    if not fitting:
        raise UnknownFormat(
            f"expected a path that ends in {', '.join(EXPORTS)}; got {os.fspath(path)!r}. Choose one of these "
            f"suffixes, or say format= as one of {', '.join(FORMATS)}."
        )
    suffix = max(fitting, key=len)
    return _NAMES.get(suffix, suffix.removeprefix("."))


def known_format(name: str) -> str:
    """The name itself if it is one of `FORMATS`.

    Raises:
        UnknownFormat: If it is not.
    """
    if name not in FORMATS:
        raise UnknownFormat(f"expected a format out of {', '.join(FORMATS)}; got {name!r}")
    return name

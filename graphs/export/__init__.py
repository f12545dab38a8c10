"""Circuits in the formats of other programs, one file per format."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from graphs.circuit import Circuit
from graphs.errors import UnknownFormat

EXPORTS: dict[str, str] = {
    ".json": "graphs.export.json:write",
    ".graphml": "graphs.export.graphml:write",
    ".svg": "graphs.export.figure:write",
    ".pdf": "graphs.export.figure:write",
    ".png": "graphs.export.figure:write",
}
"""Suffix to ``module:function``; a new format is a file and a line."""


def export(circuit: Circuit, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a circuit to a file, whole or not at all, in the format that the suffix names.

    Args:
        circuit: What to write.
        path: Ends in .json (this project's own), .graphml (Gephi, Cytoscape, yEd, networkx), .svg, .pdf or .png.
        **options: Of the format, such as `title=` for figures.

    Raises:
        UnknownFormat: If there is no exporter for the suffix.
        WriteFailed: If the file cannot be written; whatever stood there is untouched.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in EXPORTS:
        raise UnknownFormat(
            f"expected a path that ends in {', '.join(EXPORTS)}; got {os.fspath(path)!r}. Choose one of these suffixes."
        )
    module, function = EXPORTS[suffix].split(":")
    getattr(importlib.import_module(module), function)(circuit, path, **options)

"""A circuit as Graphviz lays it out: SVG, PDF or PNG by way of the `dot` program, where it is installed.

The figure of `figure.py` needs nothing but matplotlib and is made for transformers; this one is for people whose other
graphs are Graphviz's too. The program gets the text of `dot.py` and nothing else; no file of ours is named to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from graphs.atomic import write_bytes
from graphs.circuit import Circuit
from graphs.errors import BadOption, UnknownFormat
from graphs.export import dot

SUFFIXES: Final = (".svg", ".pdf", ".png")
PROGRAMS: Final = ("dot", "neato", "fdp", "sfdp", "circo", "twopi")
_SECONDS: Final = 300


def draw(circuit: Circuit, path: str | os.PathLike[str], *, program: str = "dot") -> None:
    """Let Graphviz lay out and draw a circuit.

    Args:
        circuit: What to draw.
        path: Ends in .svg, .pdf or .png.
        program: One of Graphviz's: dot (layers), neato, fdp, sfdp, circo or twopi.

    Raises:
        UnknownFormat: The suffix is another one.
        BadOption: There is no such program, it is not installed, or it fails.
        WriteFailed: The file cannot be written; whatever stood there is untouched.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UnknownFormat(f"Graphviz draws {', '.join(SUFFIXES)} here; got {suffix or 'no suffix'!r}")
    if program not in PROGRAMS:
        raise BadOption(f"expected a program of Graphviz out of {', '.join(PROGRAMS)}; got {program!r}")
    found = shutil.which(program)
    if found is None:
        raise BadOption(
            f"expected the program {program} of Graphviz on the PATH; it is not there. Install Graphviz, or leave the "
            "layout to Wiretrace, which needs no other program."
        )
    write_bytes(path, _drawn(found, suffix.removeprefix("."), dot.dumps(circuit)))


def _drawn(program: str, form: str, text: str) -> bytes:
    try:
        done = subprocess.run(
            [program, f"-T{form}"], input=text.encode(), capture_output=True, timeout=_SECONDS, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise BadOption(f"{program} was not done after {_SECONDS} seconds; draw fewer edges") from error
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        raise BadOption(f"{program} failed: {said.decode(errors='replace').strip()[:200]}") from error
    return done.stdout

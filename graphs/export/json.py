"""The project's own format: see `graphs.circuit`."""

from __future__ import annotations

import os

from graphs.circuit import Circuit


def write(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write the circuit so that `Circuit.load` reads it back without loss."""
    circuit.save(path)


def read(path: str | os.PathLike[str]) -> Circuit:
    """Read what `write` wrote."""
    return Circuit.load(path)

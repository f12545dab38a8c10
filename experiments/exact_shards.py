"""An exact sweep in pieces that any worker can take, lose and redo: effects of 64 units each.

    shards/shard-000000.safetensors   effects and standard errors of units 0 to 63, with a checksum and the run's key

Borders follow from the number of units alone, and a piece is computed in the same batches wherever that is done. So
whoever computes them, together they are the same bits (with one version of torch and one number of threads).
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from graphs.atomic import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from patching.masked import MaskedRun
    from patching.progress import Progress
    from patching.scores import Scores

SCHEMA: Final = "wiretrace-exact-shard/2"
UNITS: Final = 64
"""Units of one shard. Those near the input take many times as long as those near the logits, so shards are small enough
for two workers to be done at the same time; yet many enough units to fill batches."""


def n_shards(n_units: int) -> int:
    """How many shards there are.

    Example:
        >>> n_shards(802)
        13
    """
    return math.ceil(n_units / UNITS)


def span(n_units: int, index: int) -> range:
    """The units of a shard.

    Example:
        >>> span(802, 12)
        range(768, 802)
    """
    return range(index * UNITS, min(n_units, (index + 1) * UNITS))


def scores(run: MaskedRun, *, folder: Path, key: str, progress: Progress) -> Scores:
    """The effects of all units, with the pieces that a folder holds and those that are computed now.

    Args:
        run: Over edges, nodes or neurons.
        folder: Where pieces are kept as they are finished.
        key: What names the run: pieces of another are not taken.
        progress: Called with the units done and to do.
    """
    import torch

    from patching.scores import Scores

    found = []
    for index in range(n_shards(run.n_units)):
        found.append(shard(run, index, folder=folder, key=key))
        progress(span(run.n_units, index).stop, run.n_units)
    values, errors = (torch.cat([piece[row] for piece in found]) for row in (0, 1))
    error = errors if len(run.task) > 1 else None
    return Scores(run.graph.architecture, run.level, values, error, run.provenance("exact", {"only": None}))


def shard(run: MaskedRun, index: int, *, folder: Path, key: str) -> Tensor:
    """One piece, ``[2, unit]``: effects and their standard errors; read if the folder holds it, else computed and kept.

    Raises:
        WriteFailed: It cannot be written.
    """
    kept = load(folder, index, n_units=run.n_units, key=key)
    if kept is not None:
        return kept
    import torch

    from patching import exact

    units = span(run.n_units, index)
    found = exact.scores(run, only=run.units[units.start : units.stop])
    error = torch.zeros_like(found.values) if found.standard_error is None else found.standard_error
    values = torch.stack([found.values, error])[:, units.start : units.stop].contiguous()
    _save(folder, index, values, key=key)
    return values


def load(folder: Path, index: int, *, n_units: int, key: str) -> Tensor | None:
    """A piece that a folder holds, whole and of this run; None if it is to be computed."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_path(folder, index), framework="pt") as file:
            told, values = file.metadata() or {}, file.get_tensor("effects")
    except (OSError, SafetensorError, ValueError):
        return None
    expected = {"schema": SCHEMA, "index": str(index), "key": key, "sha256": _checksum(values)}
    whole = values.dtype == torch.float64 and values.shape == (2, len(span(n_units, index)))
    return values if whole and told == expected else None


def _save(folder: Path, index: int, values: Tensor, *, key: str) -> None:
    from patching.tensor_bytes import to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    told = {"schema": SCHEMA, "index": str(index), "key": key, "sha256": _checksum(values)}
    write_bytes(_path(folder, index), to_bytes({"effects": values}, told))


def _path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:06d}.safetensors"


def _checksum(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()

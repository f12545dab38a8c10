"""Tensors out of files that may be damaged, and into dictionaries, all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.features.dictionary import Dictionary
from patching.errors import InvalidWeights

DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
"""The types of weights that the formats can name."""


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file by name, and its header.

    Raises:
        InvalidWeights: the file is missing, cut short or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), framework="pt") as file:
            header = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InvalidWeights(
            f"expected a whole safetensors file; {path} cannot be read ({error}). It is missing or cut short: copy or "
            "save it again."
        ) from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InvalidWeights: the file is missing, cut short, or holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidWeights(
            f"expected the description of a dictionary as JSON; {path} cannot be read ({error}). It is missing or cut "
            "short: copy or save it again."
        ) from error
    if not isinstance(found, dict):
        raise InvalidWeights(f"expected a JSON object in {path}; got {type(found).__name__}. Is it the right file?")
    return found


def integer(config: Mapping[str, Any], key: str, where: object) -> int:
    """A whole number, 1 or more, of a configuration."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidWeights(f"expected {key} in {where} to be a whole number, 1 or more; got {value!r}.")
    return value


def number(value: Tensor, name: str, where: object) -> int:
    """The whole number that a tensor of one element holds."""
    if value.numel() != 1 or not bool(torch.isfinite(value).all()) or int(value) != value.item():
        raise InvalidWeights(f"expected one whole number {name} in {where}; got {value.tolist()}.")
    return int(value)


def fill(dictionary: Dictionary, tensors: Mapping[str, Tensor], where: object) -> Dictionary:
    """Put tensors into a dictionary that was just made, after everything about them was checked.

    Raises:
        InvalidWeights: a name is missing or unknown, a shape is another, a value not finite.
    """
    own = {**dict(dictionary.named_parameters()), **dict(dictionary.named_buffers())}
    own = {name: value for name, value in own.items() if not name.startswith("_")}
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"also has {', '.join(unknown)}"
        raise InvalidWeights(
            f"expected the tensors {', '.join(sorted(own))} of a {dictionary.architecture} dictionary; {where} {wrong}."
        )
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise InvalidWeights(
                f"expected {name} of shape {tuple(own[name].shape)} (d_in {dictionary.d_in}, n_features "
                f"{dictionary.n_features}, d_out {dictionary.d_out}); {where} has {tuple(value.shape)}."
            )
        if not value.is_floating_point():
            raise InvalidWeights(f"expected {name} of a float type; {where} has {value.dtype}.")
    require_finite(tensors, where)
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    return dictionary


def require_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Refuse NaN and infinity.

    Raises:
        InvalidWeights: with the names of what is not finite.
    """
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise InvalidWeights(
            f"expected finite weights; {', '.join(sorted(broken))} of {where} holds NaN or infinity. The file is "
            "damaged, or training diverged."
        )

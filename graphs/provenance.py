"""Provenance, how a circuit was made, as plain JSON: checked and copied once, so that no later change reaches it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from graphs.errors import BadCircuit

_DEEPEST: Final = 64


def checked(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """A deep copy of a provenance as JSON would give it back.

    Raises:
        BadCircuit: If it is not JSON, with the place where it is not.
    """
    if provenance is not None and not isinstance(provenance, Mapping):
        raise BadCircuit(f"the provenance is a table of names and values; got {shown(provenance)}")
    return _as_json(provenance or {}, where="provenance", depth=0)


def _as_json(value: Any, *, where: str, depth: int) -> Any:
    """A deep copy as JSON would give it back: dicts with string keys, lists, strings, numbers, booleans and None."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _joined_surrogates(str(value))
    if isinstance(value, int):
        return _short_int(int(value), where=where)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadCircuit(f"{where} must be finite; got {value}")
        return float(value)
    if depth >= _DEEPEST:
        raise BadCircuit(f"{where[:200]} is nested more than {_DEEPEST} deep; keep provenance flat")
    if isinstance(value, Mapping):
        return _as_object(value, where=where, depth=depth)
    if isinstance(value, list | tuple):
        return [_as_json(item, where=f"{where}[{n}]", depth=depth + 1) for n, item in enumerate(value)]
    raise BadCircuit(
        f"{where} must be JSON (a string, number, boolean, None, list or table of these); got {shown(value)}: "
        f"convert it first, for example with str() or .tolist()"
    )


def _as_object(value: Mapping[Any, Any], *, where: str, depth: int) -> dict[str, Any]:
    copy: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise BadCircuit(f"the keys of {where} must be strings; got {shown(key)}")
        copy[_joined_surrogates(key)] = _as_json(item, where=f"{where}.{key[:40]!a}", depth=depth + 1)
    if len(copy) < len(value):
        raise BadCircuit(f"two keys of {where} are the same text once surrogates are joined; rename one")
    return copy


def _short_int(value: int, *, where: str) -> int:
    if value.bit_length() > 1024:
        raise BadCircuit(f"{where} is an integer of {value.bit_length():,} bits; write it as a string")
    return value


def _joined_surrogates(text: str) -> str:
    """Text in which two surrogates that form a character are that character, as JSON and UTF-16 read them."""
    if text.isprintable():  # the common case; no surrogate is printable
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def thawed(value: Any) -> Any:
    """A copy of a checked provenance, or of a part, that may be changed."""
    if isinstance(value, Mapping):
        return {key: thawed(item) for key, item in value.items()}
    return [thawed(item) for item in value] if isinstance(value, list) else value


def shown(value: object) -> str:
    """A short word for what came, for messages."""
    shown = ascii(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return shown if len(shown) <= 60 else f"{shown[:57]}..."

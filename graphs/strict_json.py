"""JSON read strictly: no NaN, no key twice, no nesting that exhausts the stack; and written so that any text fits.

Every format that holds a circuit's tables as JSON reads and writes them here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from graphs.errors import BadCircuit, WiretraceError


def parsed(text: str) -> Any:
    """The value that JSON text stands for.

    Raises:
        BadCircuit: If it is not JSON, has a number that is not finite or a key twice in one object, or is nested too
            deep.

    Example:
        >>> parsed('{"tau": 0.02}')
        {'tau': 0.02}
    """
    if not isinstance(text, str):
        raise BadCircuit(f"expected JSON text; got {type(text).__name__} (Circuit.load reads a file)")
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise BadCircuit("the JSON is nested too deep; is it the right file?") from None
    except json.JSONDecodeError as error:
        cut = "; it ends early, so it may be cut short" if error.pos >= len(text.rstrip()) else ""
        raise BadCircuit(f"it is not JSON (line {error.lineno}, column {error.colno}: {error.msg}){cut}") from None
    except WiretraceError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise BadCircuit(f"it is not JSON that can be read: {error}") from None


def guarded(value: Any, *, guard: str) -> str:
    r"""JSON text, pure ASCII, in which the characters of `guard` and every backslash within strings are `\u` escapes.

    For text formats that give some characters a meaning of their own: what remains of the JSON is its punctuation.

    Args:
        value: What `json.dumps` takes.
        guard: Characters that must not stand within strings. Quotes are always escaped so.

    Example:
        >>> print(guarded({"a": '=1,2 "b"'}, guard="=,"))
        {"a": "\u003d1\u002c2 \u0022b\u0022"}
    """
    if isinstance(value, str):
        return f'"{"".join(_guarded_unit(unit, guard=guard) for unit in _units(value))}"'
    if isinstance(value, dict):
        rows = (f"{guarded(key, guard=guard)}: {guarded(item, guard=guard)}" for key, item in value.items())
        return f"{{{', '.join(rows)}}}"
    if isinstance(value, list):
        return f"[{', '.join(guarded(item, guard=guard) for item in value)}]"
    return json.dumps(value, allow_nan=False)


def _guarded_unit(unit: int, *, guard: str) -> str:
    character = chr(unit)
    plain = 0x20 <= unit < 0x7F and character not in guard and character not in '"\\'
    return character if plain else f"\\u{unit:04x}"


def _units(text: str) -> Iterator[int]:
    """The UTF-16 code units of a text, in which JSON escapes it; lone surrogates are units like any other."""
    encoded = text.encode("utf-16-le", "surrogatepass")
    return (low | high << 8 for low, high in zip(encoded[::2], encoded[1::2], strict=True))


def _refuse_constant(name: str) -> NoReturn:
    raise BadCircuit(f"{name} is not JSON; numbers must be finite")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise BadCircuit(f"the key {twice[:40]!a} comes twice in one JSON object")
    return record

"""Config files: reading them, setting single values from the command line, and making configs of them.

A file says by its `schema` what it is: a search, patching, an attribution, or methods held against a known circuit. A
table `[sweep]` makes a search, patching or attribution many (`experiments.sweep`).
"""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from circuits.methods import METHODS
from experiments.config import ATTRIBUTE_SCHEMA, PATCH_SCHEMA, SCHEMA, Config, PatchConfig, Value
from experiments.errors import BadConfig
from experiments.nearest import did_you_mean
from graphs.atomic import read_text

if TYPE_CHECKING:
    from experiments.attribute import AttributeConfig

    AnyConfig = Config | PatchConfig | AttributeConfig

KNOWN_CIRCUIT: Final = "wiretrace-known-circuit/1"
SCHEMAS: Final[Mapping[str, str]] = {
    SCHEMA: "the search of a circuit",
    PATCH_SCHEMA: "patching",
    ATTRIBUTE_SCHEMA: "component attribution",
    KNOWN_CIRCUIT: "methods against a known circuit",
}
"""What a config file can be, in words."""

LARGEST: Final = 1_000_000
"""Bytes of a config file; those of this project have a thousand."""

SWEEP: Final = "sweep"
OPTION: Final = "options."
_NOUNS: Final = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a config file as plain data, with their schema; only the schema is checked.

    Raises:
        BadFile: There is no such file, it is larger than a megabyte, or not UTF-8 text.
        BadConfig: It is not TOML, empty, of another program or of a newer version of this one.
    """
    text = read_text(path, limit=LARGEST)
    try:
        settings = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:  # int() of 5,000 digits is a ValueError
        raise BadConfig(f"expected a TOML file; {os.fspath(path)} is not one: {error}.") from error
    check_schema(settings.get("schema"), where=os.fspath(path), empty=not settings)
    return settings


def check_schema(schema: object, *, where: str, empty: bool = False) -> None:
    """Check that settings are of a kind, and of a version, that is known.

    Args:
        schema: What they say.
        where: Where they stand, for the message.
        empty: Whether they say nothing else either.

    Raises:
        BadConfig: They are not.
    """
    if isinstance(schema, str) and schema in SCHEMAS:
        return
    listed = ", ".join(f"{name!r} ({words})" for name, words in SCHEMAS.items())
    if empty:
        raise BadConfig(f"expected schema = one of {listed} in {where}; it is empty. Copy a config.toml of a run.")
    kind, _, version = str(schema).rpartition("/")
    ours = {name.rpartition("/")[0]: name for name in SCHEMAS}
    if kind in ours and version.isdigit() and int(version) > int(ours[kind].rpartition("/")[2]):
        raise BadConfig(
            f"expected schema = {ours[kind]!r} in {where}; got {schema!r}, which a newer version of Wiretrace wrote. "
            "Install that version, or write the settings anew."
        )
    hint = did_you_mean(str(schema), SCHEMAS) if isinstance(schema, str) else ""
    raise BadConfig(f"expected schema = one of {listed} in {where}; got {schema!r}. Copy a config.toml of a run.{hint}")


def build(settings: Mapping[str, Any]) -> AnyConfig:
    """The config that settings say, with everything checked.

    Args:
        settings: Plain data with a `schema`, without a sweep.

    Raises:
        BadConfig: The schema is not that of one run, or a setting is unknown, missing or wrong.
        UnknownName, UnknownTask: A name is not known; the nearest are offered.

    Example:
        >>> config = build({"schema": "wiretrace-config/1", "task": "ioi", "model": "zoo:ioi", "method": "atp", "n": 9})
        >>> config.method, config.n, config.level
        ('atp', 9, 'edge')
    """
    schema = settings.get("schema")
    rest = {name: value for name, value in settings.items() if name != "schema"}
    kind = _kind(schema)
    if SWEEP in rest:
        raise BadConfig("expected the settings of one run; got a table [sweep] too, which makes many.")
    return kind.from_dict(copy.deepcopy(rest))


def settings_of(config: AnyConfig) -> dict[str, Any]:
    """The inverse of `build`: plain data with a schema, defaults filled in.

    Example:
        >>> config = Config("ioi", "zoo:ioi")
        >>> build(settings_of(config)) == config
        True
    """
    schema = {Config: SCHEMA, PatchConfig: PATCH_SCHEMA}.get(type(config), ATTRIBUTE_SCHEMA)
    return {"schema": schema} | config.to_dict()


def field_kinds(schema: str) -> dict[str, str]:
    """The fields of a config and their types: `int`, `float`, `bool`, `str` or `table`.

    Example:
        >>> field_kinds("wiretrace-config/1")["seed"]
        'int'
    """
    if schema == KNOWN_CIRCUIT:
        from experiments.known_circuits import KnownCircuit as kind
    else:
        kind = _kind(schema)
    found = {each.name: str(each.type).split(" ")[0] for each in fields(kind)}
    return {name: "table" if said.startswith("Mapping") else said for name, said in found.items()}


def override(settings: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Settings with single values changed, as `--set` has them.

    `NAME=VALUE` sets a field, `options.NAME=VALUE` (or `method.NAME=VALUE`) an option of the method, and
    `sweep.….NAME=VALUE` a value of the sweep. Values are TOML, in the type of the field; text needs no quotes. A field
    that the sweep varies is fixed: with `seed=3` there is one seed.

    Args:
        settings: As `read` gives them; they stay as they are.
        changes: In order; later ones win.

    Raises:
        BadConfig: One is not of that form, its name is unknown or its value of another type.

    Example:
        >>> made = override({"schema": "wiretrace-config/1", "task": "ioi"}, ["seed=3", "options.tau=0.02"])
        >>> made["seed"], made["options"]
        (3, {'tau': 0.02})
    """
    made = copy.deepcopy(dict(settings))
    for change in changes:
        name, equals, text = (part.strip() for part in change.partition("="))
        if not equals or not name or not text:
            raise BadConfig(f"expected --set as NAME=VALUE, such as seed=3 or options.tau=0.02; got {change!r}.")
        path = name.split(".")
        if path[0] == SWEEP and len(path) > 1:
            _put(made, path, _toml_value(text), said=change)
        else:
            _set(made, name, text)
    return made


def _set(settings: dict[str, Any], name: str, text: str) -> None:
    """Set one field or option, and take it out of the sweep."""
    kinds = field_kinds(str(settings.get("schema")))
    short = name.removeprefix("method.") if name.startswith("method.") else name.removeprefix(OPTION)
    if short != name and kinds.get("options") == "table":
        name, value = f"{OPTION}{short}", _option_value(settings.get("method"), short, text)
    elif name in kinds and kinds[name] != "table":
        value = _typed(name, text, kinds[name])
    else:
        known = [*(each for each, kind in kinds.items() if kind != "table")]
        more = " and options.NAME" if kinds.get("options") == "table" else ""
        raise BadConfig(
            f"expected --set with one of {', '.join(known)}{more}; got {name!r}.{did_you_mean(name, known)}"
        )
    if SWEEP in settings:
        from experiments.sweep import fixed

        before = settings[SWEEP]
        settings[SWEEP], placed = fixed(before, name, value)
        if placed:
            return
        if settings[SWEEP] != before and settings[SWEEP] in ({}, {"grid": {}}, {"grid": {"options": {}}}):
            settings[SWEEP] = {"runs": [{}]}  # nothing varies any more: a sweep of one run
    _put(settings, ["options", short] if name.startswith(OPTION) else [name], value, said=f"{name}={text}")


def _option_value(method: object, name: str, text: str) -> Value:
    """A value in the type of a method's option, where the method and the option are known; else as TOML has it."""
    kinds = METHODS[method].options if isinstance(method, str) and method in METHODS else {}
    if name in kinds:
        return _typed(f"{OPTION}{name}", text, kinds[name].__name__)
    value = _toml_value(text)
    return value if isinstance(value, bool | int | float | str) else text


def _typed(name: str, text: str, kind: str) -> Value:
    """The value that a text means for a field."""
    value = _toml_value(text)
    if kind == "str":
        return value if isinstance(value, str) else text
    fitting = {"int": (int,), "float": (int, float), "bool": (bool,)}[kind]
    if not isinstance(value, fitting) or (isinstance(value, bool) and kind != "bool"):
        raise BadConfig(f"expected {name} to be {_NOUNS[kind]}; got {text!r}.")
    return float(value) if kind == "float" else value


def _toml_value(text: str) -> Any:
    """What a text is as the right side of a line of TOML; the text itself where it is none."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return text
    return found["value"] if set(found) == {"value"} else text


def _put(settings: dict[str, Any], path: Sequence[str], value: Any, *, said: str) -> None:
    """Set a value in tables within tables, which are made where they are absent."""
    table: Any = settings
    for name in path[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise BadConfig(f"expected {name} to be a table; --set {said} finds {table!r} there.")
    table[path[-1]] = value


def _kind(schema: object) -> type[Config] | type[PatchConfig] | type[AttributeConfig]:
    from experiments.attribute import AttributeConfig

    kinds: dict[object, type[Config] | type[PatchConfig] | type[AttributeConfig]] = {
        SCHEMA: Config,
        PATCH_SCHEMA: PatchConfig,
        ATTRIBUTE_SCHEMA: AttributeConfig,
    }
    if schema not in kinds:
        check_schema(schema, where="the settings")
        raise BadConfig(f"expected the settings of a run; got those of {SCHEMAS[str(schema)]}.")
    return kinds[schema]

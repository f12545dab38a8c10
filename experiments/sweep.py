"""Many runs from one config: the table `[sweep]` and what it expands to.

    [sweep]
    seeds = 5                        # or a list: [0, 3, 7]

    [sweep.grid]                     # every combination of the lists
    ablation = ["corrupt", "mean"]
    options.steps = [5, 10]

    [sweep.task.ioi]                 # the task ioi, with what goes with it alone
    model = "zoo:ioi"

    [sweep.method.acdc]              # the method acdc, at each of its thresholds
    tau = [0.02, 0.05, 0.1]

    [sweep.method.atp]               # the method atp, at each of its sizes
    n = [50, 100]

    [[sweep.runs]]                   # or variants one by one
    prompts = 16
    held_out = 50

A sweep is the product of its parts: of the variants of `runs`, of each field that has tables `[sweep.FIELD.VALUE]`, of
each list of the grid, and of the seeds; in this order, the last varying fastest. In `[sweep.FIELD.VALUE]` a single
value stands for a list of one, and the lists in one table are a grid of their own. Keys are the fields of a config and
`options.NAME`; in `[sweep.method.NAME]` the method's options may be named alone where no field has the name. No field
may be varied by two parts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from experiments.config import Value
from experiments.config_file import OPTION, SWEEP, build, field_kinds, settings_of
from experiments.errors import BadConfig
from experiments.nearest import did_you_mean
from experiments.store.naming import folder_name
from graphs.errors import WiretraceError

ROOT: Final = Path("runs")
MOST_RUNS: Final = 10_000
_PARTS: Final = ("grid", "runs", "seeds")

Variant = dict[str, Value]
Axis = list[Variant]


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    Attributes:
        settings: The whole config as plain data, with its schema, checked, defaults filled in.
        name: Of its folder.
        folder: Its run directory.
        variant: What the sweep chose: fields and `options.NAME`, in the order of the sweep.
    """

    settings: Mapping[str, Any]
    name: str
    folder: Path
    variant: Mapping[str, Value]

    @property
    def label(self) -> str:
        """The choices of the sweep in words; the name, if there were none."""
        return words(self.variant) or self.name


def is_sweep(settings: Mapping[str, Any]) -> bool:
    """Whether settings are of many runs."""
    return SWEEP in settings


def expand(settings: Mapping[str, Any], *, root: Path = ROOT) -> list[Planned]:
    """The runs that a config asks for: one, or those of its sweep, each checked.

    Args:
        settings: As `experiments.config_file.read` gives them.
        root: The store, which the run directories lie in.

    Raises:
        BadConfig: The sweep is not one, asks for too many runs or for one twice, or a variant cannot be; the message
            names the variant.

    Example:
        >>> base = {"schema": "wiretrace-config/1", "task": "ioi", "model": "zoo:ioi"}
        >>> for run in expand(base | {"sweep": {"method": {"acdc": {"tau": [0.02, 0.1]}, "atp": {}}, "seeds": 2}}):
        ...     print(run.label)
        method=acdc, options.tau=0.02, seed=0
        method=acdc, options.tau=0.02, seed=1
        method=acdc, options.tau=0.1, seed=0
        method=acdc, options.tau=0.1, seed=1
        method=atp, seed=0
        method=atp, seed=1
    """
    base = {name: value for name, value in settings.items() if name != SWEEP}
    if not is_sweep(settings):
        return [_planned(base, {}, root)]
    axes = _axes(settings[SWEEP], field_kinds(str(settings.get("schema"))))
    count = math.prod(len(axis) for axis in axes)
    if count > MOST_RUNS:
        raise BadConfig(f"expected a sweep of at most {MOST_RUNS:,} runs; this one has {count:,}. Split it.")
    found: list[Planned] = []
    seen: dict[str, str] = {}
    for number, choice in enumerate(itertools.product(*axes), start=1):
        variant = {name: value for each in choice for name, value in each.items()}
        try:
            planned = _planned(_merged(base, variant), variant, root)
        except WiretraceError as error:
            said = words(variant)
            raise BadConfig(f"the sweep has a variant that cannot be, {said} ({number} of {count}): {error}") from error
        if planned.name in seen:
            raise BadConfig(
                f"expected every run of the sweep once; {planned.label} is the same run as {seen[planned.name]}."
            )
        seen[planned.name] = planned.label
        found.append(planned)
    return found


def words(variant: Mapping[str, Value]) -> str:
    """A variant on one line.

    Example:
        >>> words({"method": "acdc", "options.tau": 0.1, "signed": True})
        'method=acdc, options.tau=0.1, signed=true'
    """
    return ", ".join(f"{name}={_shown(value)}" for name, value in variant.items())


def fixed(sweep: Any, name: str, value: Value) -> tuple[Any, bool]:
    """A sweep in which a field or option no longer varies.

    Args:
        sweep: The table.
        name: A field, or `options.NAME`.
        value: What it is now.

    Returns:
        The sweep without the part that varied it, and whether it holds the value itself: a table of a variant that
        sets it gets the value in place of its own. A field with tables `[sweep.FIELD.VALUE]` keeps the table of the
        value, if there is one.

    Example:
        >>> fixed({"seeds": 5, "method": {"acdc": {"tau": [0.1, 0.2]}, "atp": {}}}, "options.tau", 0.3)
        ({'seeds': 5, 'method': {'acdc': {'tau': 0.3}, 'atp': {}}}, True)
        >>> fixed({"seeds": 5, "method": {"acdc": {"tau": [0.1, 0.2]}, "atp": {}}}, "method", "acdc")
        ({'seeds': 5, 'method': {'acdc': {'tau': [0.1, 0.2]}}}, True)
        >>> fixed({"seeds": 5}, "seed", 3)
        ({}, False)
    """
    if not isinstance(sweep, dict):
        return sweep, False  # refused later, with its own sentence
    made, placed = dict(sweep), False
    if name == "seed":
        made.pop("seeds", None)
    for part, table in sweep.items():
        if part == "grid" and isinstance(table, dict):
            made[part] = {key: kept for key, kept in table.items() if key != name}
            if name.startswith(OPTION) and isinstance(table.get("options"), dict):
                made[part]["options"] = {
                    key: kept for key, kept in table["options"].items() if f"{OPTION}{key}" != name
                }
        elif part == "runs" and isinstance(table, list):
            made[part] = [_replaced(each, name, value, short=False) for each in table]
            placed |= made[part] != table or any(_mentions(each, name, short=False) for each in table)
        elif part == name and isinstance(table, dict):
            placed = value in table
            made[part] = {str(value): table[value]} if placed else None
        elif part not in _PARTS and isinstance(table, dict):
            short = part == "method"
            made[part] = {key: _replaced(inner, name, value, short=short) for key, inner in table.items()}
            placed |= any(_mentions(inner, name, short=short) for inner in table.values())
    return {part: table for part, table in made.items() if table is not None}, placed


# ------------------------------------------------------------------------------------------------------ the parts


def _axes(sweep: object, kinds: Mapping[str, str]) -> list[Axis]:
    """The parts of a sweep, each the list of its choices."""
    if not isinstance(sweep, dict):
        raise BadConfig(f"expected [sweep] to be a table; got {sweep!r}.")
    text_fields = [name for name, kind in kinds.items() if kind == "str"]
    for part in sweep:
        if part not in (*_PARTS, *text_fields):
            known = [*_PARTS, *text_fields]
            raise BadConfig(
                f"expected [sweep] to hold grid, runs, seeds or tables FIELD.VALUE of {', '.join(text_fields)}; got "
                f"{part!r}.{did_you_mean(part, known)}"
            )
    axes: list[Axis] = []
    if "runs" in sweep:
        axes.append(_runs(sweep["runs"], kinds))
    axes += [_tables(part, table, kinds) for part, table in sweep.items() if part not in _PARTS]
    axes += list(_grid(sweep.get("grid", {}), kinds))
    if "seeds" in sweep:
        axes.append([{"seed": seed} for seed in _seeds(sweep["seeds"])])
    if not axes:
        raise BadConfig("expected [sweep] to vary something: a grid, runs, seeds or tables FIELD.VALUE; it is empty.")
    _check_apart(axes)
    return axes


def _runs(tables: object, kinds: Mapping[str, str]) -> Axis:
    if not isinstance(tables, list) or not tables or not all(isinstance(each, dict) for each in tables):
        raise BadConfig("expected variants as tables [[sweep.runs]], one or more.")
    found = []
    for number, table in enumerate(tables, start=1):
        variant = dict(_flat(table, kinds, where=f"[[sweep.runs]] number {number}"))
        for name, value in variant.items():
            _check_scalar(name, value, where=f"[[sweep.runs]] number {number}")
        found.append(variant)
    return found


def _tables(field: str, tables: object, kinds: Mapping[str, str]) -> Axis:
    """The choices of one field, each with those of its own table."""
    if not isinstance(tables, dict) or not tables:
        raise BadConfig(
            f"expected tables such as [sweep.{field}.VALUE]; got {tables!r}. Lists of values go into [sweep.grid]."
        )
    found: Axis = []
    for value, table in tables.items():
        where = f"[sweep.{field}.{value}]"
        if not isinstance(table, dict):
            raise BadConfig(f"expected {where} to be a table; got {table!r}. Lists of values go into [sweep.grid].")
        lists = {
            name: _values(name, given if isinstance(given, list) else [given], where=where)
            for name, given in _flat(table, kinds, where=where, options=field == "method")
        }
        if field in lists:
            raise BadConfig(f"expected {where} to leave {field} alone: the table's name says it.")
        found += [{field: value} | dict(zip(lists, each, strict=True)) for each in itertools.product(*lists.values())]
    return found


def _grid(grid: object, kinds: Mapping[str, str]) -> Iterator[Axis]:
    if not isinstance(grid, dict):
        raise BadConfig(f"expected [sweep.grid] to be a table of lists; got {grid!r}.")
    for name, values in _flat(grid, kinds, where="[sweep.grid]"):
        if not isinstance(values, list):
            raise BadConfig(
                f"expected a list for {name} in [sweep.grid]; got {values!r}. A single value goes above [sweep]."
            )
        yield [{name: value} for value in _values(name, values, where="[sweep.grid]")]


def _seeds(seeds: object) -> Sequence[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= MOST_RUNS:
        return range(seeds)
    if isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds):
        return _values("seeds", seeds, where="[sweep]")
    raise BadConfig(f"expected seeds as a number of seeds from 1, or a list of seeds from 0; got {seeds!r}.")


def _flat(
    table: Mapping[str, Any], kinds: Mapping[str, str], *, where: str, options: bool = False
) -> Iterator[tuple[str, Any]]:
    """Fields and `options.NAME` of a table, whichever way options are written.

    Args:
        table: As TOML gives it.
        kinds: Of the config's fields.
        where: For messages.
        options: Whether names that no field has are options.
    """
    can = kinds.get("options") == "table"
    for name, value in table.items():
        if name == "options" and can and isinstance(value, dict):
            yield from ((f"{OPTION}{each}", given) for each, given in value.items())
        elif (name in kinds and kinds[name] != "table") or (can and name.startswith(OPTION)):
            yield name, value
        elif can and options:
            yield f"{OPTION}{name}", value
        else:
            known = [each for each, kind in kinds.items() if kind != "table"]
            more = " and options.NAME" if can else ""
            raise BadConfig(
                f"expected fields out of {', '.join(known)}{more} in {where}; got {name!r}.{did_you_mean(name, known)}"
            )


def _values(name: str, values: Sequence[Any], *, where: str) -> list[Any]:
    """A list of values to vary, checked to be one."""
    if not values:
        raise BadConfig(f"expected at least one value for {name} in {where}; the list is empty.")
    for place, value in enumerate(values):
        _check_scalar(name, value, where=where)
        if any(value == other and type(value) is type(other) for other in values[:place]):
            raise BadConfig(f"expected every value of {name} in {where} once; {_shown(value)} stands there twice.")
    return list(values)


def _check_scalar(name: str, value: object, *, where: str) -> None:
    if not isinstance(value, bool | int | float | str):
        raise BadConfig(f"expected numbers, text or truth values for {name} in {where}; got {value!r}.")


def _check_apart(axes: Iterable[Axis]) -> None:
    """Check that no two parts vary the same field."""
    seen: set[str] = set()
    for axis in axes:
        names = {name for variant in axis for name in variant}
        twice = sorted(names & seen)
        if twice:
            raise BadConfig(f"expected each field to be varied by one part of [sweep]; {twice[0]} is varied by two.")
        seen |= names


def _merged(base: Mapping[str, Any], variant: Mapping[str, Value]) -> dict[str, Any]:
    given = {name: value for name, value in variant.items() if not name.startswith(OPTION)}
    options = {name.removeprefix(OPTION): value for name, value in variant.items() if name.startswith(OPTION)}
    made = {**base, **given}
    if options:
        before = base.get("options", {})
        made["options"] = {**before, **options} if isinstance(before, dict) else before
    return made


def _planned(settings: Mapping[str, Any], variant: Mapping[str, Value], root: Path) -> Planned:
    checked = settings_of(build(settings))
    name = folder_name(checked)
    return Planned(checked, name, root / name, variant)


def _mentions(table: object, name: str, *, short: bool) -> bool:
    if not isinstance(table, dict):
        return False
    option = name.removeprefix(OPTION)
    inner = table.get("options")
    return (
        name in table
        or (name != option and isinstance(inner, dict) and option in inner)
        or (name != option and short and option in table)
    )


def _replaced(table: Any, name: str, value: Value, *, short: bool) -> Any:
    """A variant's table with a value in place of its own, if it has one."""
    if not _mentions(table, name, short=short):
        return table
    option = name.removeprefix(OPTION)
    made = {key: value if key == name or (short and key == option) else kept for key, kept in table.items()}
    inner = table.get("options")
    if name != option and isinstance(inner, dict) and option in inner:
        made["options"] = {**inner, option: value}
    return made


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)

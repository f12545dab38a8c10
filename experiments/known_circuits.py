"""How well methods find a circuit that is known: ROC curves of ACDC, masks and scores against the truth.

    config -> model, task, true circuit -> each method at each of its settings -> rates -> table, figure, numbers

A config lists methods with their options; where an option is a list, the method runs once for each value, and its
circuits together make one curve. Methods that score are cut at every score. The comparisons of the ACDC paper (its
tables 2 and 3) are such configs, one each under `experiments/configs/`.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from circuits import tasks
from circuits.methods import METHODS, Method
from experiments import environment
from experiments.config import ABLATIONS, Config, require_shipped
from experiments.discover import SEARCH_SPLIT, enough_memory, stoppable, to_json
from experiments.errors import BadConfig
from experiments.nearest import did_you_mean, require_known
from experiments.progress_display import Display, Silence
from experiments.saved_runs import known_circuit
from graphs.atomic import read_text, write_text
from graphs.circuit import Circuit
from graphs.errors import WiretraceError

if TYPE_CHECKING:
    from experiments.estimate import Shape
    from patching.masked import MaskedRun
    from patching.scores import Scores

SCHEMA: Final = "wiretrace-known-circuit/1"
RESULTS: Final = "wiretrace-known-circuit-results/1"
LEVELS: Final[tuple[Literal["edge", "node"], ...]] = ("edge", "node")
_SETTINGS: Final = ("task", "model", "reference", "metric", "ablation", "prompts", "seed", "methods")


@dataclass(frozen=True)
class KnownCircuit:
    """What to compare on which circuit.

    Args:
        task: A name of `circuits.tasks`.
        model: As for `wiretrace discover`.
        methods: Name of a method to its options; at most one of them a list, which is swept.
        reference: A name of `circuits.reference`, or the path of a run or a circuit file; None for a compiled model's
            own circuit.
        metric: What runs are judged by; None for the task's own.
        ablation: What an ablated edge carries. `zero` also asks for edges whose value never changes.
        prompts: How many pairs.
        seed: Of the prompts.

    Raises:
        UnknownName, UnknownTask: A name is not known; the nearest are offered.
        BadConfig: A setting is missing or of the wrong type.
    """

    task: str
    model: str
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference: str | None = None
    metric: str | None = None
    ablation: str = "corrupt"
    prompts: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reference is not None and not isinstance(self.reference, str):
            raise BadConfig(f"expected the setting reference to be text; got {self.reference!r}.")
        if not self.methods:
            raise BadConfig("expected at least one table [methods.NAME]; there is none.")
        for name, options in self.methods.items():
            for each in _settings_of(METHODS[require_known("a method", name, METHODS)], options):
                self.search(name, each)
        require_known("an ablation", self.ablation, ABLATIONS)  # files of constants are for searches alone

    def search(self, method: str, options: Mapping[str, Any]) -> Config:
        """One run of one method, as `wiretrace discover` has it; everything is checked there.

        Raises:
            UnknownName, UnknownTask, BadConfig: As for this class.
        """
        shared = ("task", "model", "metric", "ablation", "prompts", "seed")
        known = {name: value for name in shared if (value := getattr(self, name)) is not None}
        return Config.from_dict(known | {"method": method, "options": options})

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> KnownCircuit:
        """A config from plain data.

        Raises:
            BadConfig: A setting is unknown or missing.
        """
        for name in settings:
            if name not in _SETTINGS:
                raise BadConfig(
                    f"expected settings out of {', '.join(_SETTINGS)}; got {name!r}.{did_you_mean(name, _SETTINGS)}"
                )
        for name, kind in (("task", str), ("model", str), ("methods", dict)):
            if not isinstance(settings.get(name), kind):
                raise BadConfig(f"expected {name!r} in the config, {'a table' if kind is dict else 'text'}.")
        return KnownCircuit(**settings)


@dataclass(frozen=True)
class Row:
    """One method on one level.

    Attributes:
        method: Its name.
        level: `edge` or `node`.
        auc: Area under the stairs through the Pareto front (the paper's, pessimistic).
        smooth_auc: Area under straight lines.
        points: (false positive rate, true positive rate).
        seconds: That the method took, for all its settings.
    """

    method: str
    level: str
    auc: float
    smooth_auc: float
    points: tuple[tuple[float, float], ...]
    seconds: float


def load(path: Path) -> KnownCircuit:
    """Read a config.

    Raises:
        BadConfig: It is not TOML, or not such a config.
    """
    try:
        settings = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadConfig(f"expected a TOML file; {path} is not one: {error}.") from error
    if settings.pop("schema", None) != SCHEMA:
        raise BadConfig(f"expected schema = {SCHEMA!r} in {path}. Copy one of experiments/configs/.")
    return KnownCircuit.from_dict(settings)


def compare(config: KnownCircuit, *, show: Display | None = None) -> list[Row]:
    """Run every method of a config and hold it against the true circuit.

    Raises:
        WiretraceError: The model or the true circuit cannot be found, a method refuses the run, or there is too little
            memory.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    show = show or Silence()
    rows: list[Row] = []
    with stoppable(), enough_memory():
        run, true = prepare(config)
        for name, options in config.methods.items():
            start = time.process_time()
            with show.steps(name, unit="step") as progress:
                found = _found(run, METHODS[name], options, progress)
            rows += _rows(name, found, true, seconds=time.process_time() - start)
    return rows


def prepare(config: KnownCircuit) -> tuple[MaskedRun, Circuit]:
    """The run and the true circuit of a config.

    Raises:
        WiretraceError: The model or the circuit is not there, or the circuit is of a model of another shape.
    """
    from patching import LensModel, MaskedRun

    require_shipped(config.model)
    model = LensModel.load(config.model)
    task = tasks.load(config.task).make(model, n=config.prompts, seed=config.seed, split=SEARCH_SPLIT)
    run = MaskedRun(model, task, metric=config.metric, ablation=config.ablation)
    true = reference(config)
    run.mask_of(true)
    return run, true


def reference(config: KnownCircuit) -> Circuit:
    """The true circuit: a compiled model's own, or the one that the config names.

    Raises:
        BadConfig: The model was neither compiled nor trained to a program, and the config names no circuit.
    """
    from circuits import reference as references
    from patching import compiled

    if config.reference is not None:
        named = known_circuit(config.reference)
        return named if isinstance(named, Circuit) else named.circuit
    if config.model in compiled.trained_names():
        return compiled.truth(config.model)
    if compiled.is_compiled(config.model):
        return compiled.truth(config.model, constants=config.ablation == "zero")
    raise BadConfig(
        f"expected a reference: nobody knows the circuit of {config.model} by construction. Name one of "
        f"{', '.join(references.names())}, or the file of a circuit."
    )


def outlook(config: KnownCircuit) -> str:
    """What would be run, and about what it would take, without running it or loading the model."""
    from experiments.estimate import known_shape, search_cost

    shape = known_shape(config.model) or _compiled_shape(config.model)
    lines = [f"{config.task}, {config.model}, {config.metric or 'its own metric'}, {config.ablation}, against "
             f"{config.reference or 'the circuit that it was compiled with'}:"]  # fmt: skip
    for name, options in config.methods.items():
        runs = _settings_of(METHODS[name], options)
        said = "its size is not known here"
        if shape is not None:
            each = search_cost(config.search(name, runs[0]), shape)
            least = "up to " if each.at_most else ""
            total, back = each.forwards * len(runs), each.backwards * len(runs)
            said = f"{least}{total:,} forwards and {back:,} backwards of one prompt"
        swept = "".join(f", {key} = {value}" for key, value in options.items())
        lines.append(f"  {name}{swept}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {said}")
    return "\n".join([*lines, "Nothing was written."])


def _compiled_shape(model: str) -> Shape | None:
    from experiments.estimate import Shape
    from patching import compiled

    return Shape.of(compiled.truth(model).graph.architecture) if compiled.is_compiled(model) else None


def _settings_of(method: Method, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options of each run of a method."""
    if not isinstance(options, Mapping):
        raise BadConfig(f"expected [methods.{method.name}] to be a table of options; got {options!r}.")
    swept = [name for name, value in options.items() if isinstance(value, list)]
    for name in options:
        if name not in method.options:
            raise BadConfig(f"expected options of {method.name} out of {', '.join(method.options)}; got {name!r}.")
    if len(swept) > 1:
        raise BadConfig(f"expected at most one list among the options of {method.name}; got {', '.join(swept)}.")
    if swept and (method.gives == "scores" or not options[swept[0]]):
        raise BadConfig(f"expected one value for {swept[0]} of {method.name}, which is cut at every score.")
    return [{**options, **({swept[0]: value} if swept else {})} for value in (options[swept[0]] if swept else [None])]


def _found(run: MaskedRun, method: Method, options: Mapping[str, Any], progress: Any) -> Scores | Sequence[Circuit]:
    from circuits import acdc

    if method.gives == "scores":
        return method.function()(run, **options, progress=progress)
    if method.name == "acdc" and isinstance(options.get("tau"), list):
        rest = {name: value for name, value in options.items() if name != "tau"}
        return acdc.sweep(run, taus=options["tau"], **rest, progress=progress)
    settings = _settings_of(method, options)
    found = []
    for number, each in enumerate(settings):
        found.append(method.function()(run, **each))
        progress(number + 1, len(settings))
    return found


def _rows(name: str, found: Scores | Sequence[Circuit], true: Circuit, *, seconds: float) -> list[Row]:
    from circuits.recovery import rocs

    curves = rocs(found, true).items()
    return [Row(name, level, curve.pessimistic_auc, curve.auc, curve.points, seconds) for level, curve in curves]


# ------------------------------------------------------------------------------------------------------- what is left


def write(config: KnownCircuit, rows: Sequence[Row], folder: Path) -> None:
    """Write `results.json` and the two figures.

    Raises:
        WriteFailed: The system refuses.
    """
    from graphs import plots

    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": RESULTS,
        "wiretrace": environment.version(),
        "config": {name: getattr(config, name) for name in _SETTINGS if getattr(config, name) is not None},
        "rows": [vars(row) for row in rows],
    }
    write_text(folder / "results.json", to_json(document))
    for level in LEVELS:
        curves = {row.method: row.points for row in rows if row.level == level}
        if not curves:
            continue
        title = f"{config.task}, {config.metric or 'its metric'}, {config.ablation}: {level}s"
        plots.roc(curves, folder / f"roc-{level}s.svg", title=title)


def table(results: Mapping[str, Sequence[Row]]) -> str:
    """A Markdown table: a line per comparison, a column per method and level, the best of each level in bold."""
    methods = list(dict.fromkeys(row.method for rows in results.values() for row in rows))
    heads = [f"{method} ({level}s)" for level in LEVELS for method in methods]
    lines = ["| comparison | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, rows in results.items():
        cells = []
        for level in LEVELS:
            found = {row.method: row.auc for row in rows if row.level == level}
            for method in methods:
                shown = f"{found[method]:.3f}" if method in found else "–"
                cells.append(f"**{shown}**" if method in found and found[method] == max(found.values()) else shown)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run configs and print their table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.known_circuits", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("configs", nargs="+", type=Path, help="TOML files, such as experiments/configs/*.toml")
    parser.add_argument("--out", type=Path, help="a folder for the numbers and figures of each; none by default")
    given = parser.parse_args(arguments)
    results: dict[str, Sequence[Row]] = {}
    try:
        loaded = {path.stem: load(path) for path in given.configs}
        for name, config in loaded.items():
            results[name] = compare(config)
            if given.out is not None:
                write(config, results[name], given.out / name)
    except WiretraceError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    sys.stdout.write(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Judge a circuit that is there already, of a run or of somebody else: `wiretrace evaluate`.

Task, model, ablation and metric are those of the run that found it unless said otherwise; prompts are of the held-out
split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuits import tasks
from experiments import saved_runs, size_curves
from experiments.config import Config, default_model
from experiments.discover import HELD_OUT_SPLIT, ablation_of, enough_memory, load_model, stoppable, to_json
from experiments.errors import BadConfig
from experiments.progress_display import Display, Silence
from experiments.run_directory import status
from graphs.atomic import write_text
from graphs.errors import BadFile

if TYPE_CHECKING:
    from circuits.curves import Curve
    from circuits.evaluation import Report
    from circuits.reference import Agreement
    from patching.scores import Scores

SCHEMA: Final = "wiretrace-judgement/1"
PROMPTS: Final = 100


@dataclass(frozen=True)
class Judgement:
    """What was asked of a circuit, and the answers.

    Attributes:
        config: Task, model, ablation, metric, seed and number of prompts (`held_out`).
        report: Faithfulness and the rest.
        tests: Hypothesis tests by name, if asked for.
        curves: Faithfulness against size with CPR and CMD, by absolute and by signed scores, if asked for.
        recovery: Against a known circuit, if one was given.
    """

    config: Config
    report: Report
    tests: Mapping[str, Any]
    curves: Mapping[str, Curve]
    recovery: Agreement | None

    def __str__(self) -> str:
        parts = [str(self.report)]
        parts += ["tests:\n" + "\n".join(f"  {test}" for test in self.tests.values())] if self.tests else []
        parts += [f"by size:\n{curve}" for curve in self.curves.values()]
        parts += [f"against the true circuit:\n{self.recovery}"] if self.recovery is not None else []
        return "\n\n".join(parts)

    def write(self, path: Path) -> None:
        """As JSON.

        Raises:
            WriteFailed: The system refuses.
        """
        document = {
            "schema": SCHEMA,
            "config": self.config.to_dict(),
            "report": self.report.to_dict(),
            "tests": {name: test.to_dict() for name, test in self.tests.items()},
            "curves": {name: curve.to_dict() for name, curve in self.curves.items()},
            "recovery": None if self.recovery is None else self.recovery.to_dict(),
        }
        write_text(path, to_json(document))


def settings_of(source: Path, **changes: Any) -> Config:
    """The settings of the run that a circuit is of, with changes; a file alone has none.

    Args:
        source: A run directory, or the file of a circuit.
        **changes: Settings that count instead; None leaves a setting alone.

    Raises:
        BadFile: There is nothing of that name.
        BadConfig: A file needs a task.
    """
    if not source.exists():
        raise BadFile(f"there is no run or file {source}; check the path")
    given = {name: value for name, value in changes.items() if value is not None}
    there = status(source) if source.is_dir() else None
    if there is not None and "options" in there.identity.get("config", {}):
        return replace(Config.from_dict(there.identity["config"]), **given)
    if "task" not in given:
        raise BadConfig(f"expected --task: {source} is no folder of a run, so nothing says what it is a circuit of.")
    given.setdefault("model", default_model(given["task"]))
    return Config(method="random", **given)


def judge(
    source: Path,
    config: Config,
    *,
    minimality: bool = False,
    knockout: bool = False,
    tests: bool = False,
    curve: bool = False,
    true: str | None = None,
    show: Display | None = None,
) -> Judgement:
    """Judge a circuit on held-out prompts.

    Args:
        source: A run directory, or a file of any format that circuits are read from.
        config: Task, model, ablation, metric, seed and `held_out` prompts.
        minimality: Also take out each edge alone.
        knockout: Also take its edges out of the whole model, one after the other.
        tests: Also test hypotheses about it.
        curve: Also judge circuits of other sizes from its run's scores.
        true: A known circuit to hold it against: a name of `circuits.reference`, a run directory or a file. With
            `curve`, the run's scores are held against it too.
        show: Where progress goes.

    Raises:
        WiretraceError: The circuit, the model or the task is not what it has to be; the message says what to do.
    """
    from circuits import evaluate
    from circuits.hypothesis_tests import battery
    from circuits.reference import compare
    from patching.masked import MaskedRun

    show = show or Silence()
    circuit = saved_runs.circuit_at(source)
    scores = _scores(source) if curve else None
    recovery = None if true is None else compare(circuit, saved_runs.known_circuit(true), scores=scores)
    with stoppable(), enough_memory():
        show.say(f"Loading {config.model} …")
        model = load_model(config)
        task = tasks.load(config.task).make(model, n=config.held_out, seed=config.seed, split=HELD_OUT_SPLIT)
        run = MaskedRun(model, task, ablation=ablation_of(config, model), metric=config.metric)
        with show.steps("evaluate", unit="run") as progress:
            options = {"minimality": minimality, "knockout": knockout, "seed": config.seed}
            report = evaluate(run, circuit, **options, progress=progress)
        found: Mapping[str, Any] = {}
        if tests:
            with show.steps("tests", unit="test") as progress:
                found = battery(run, circuit, seed=config.seed, progress=progress)
        curves = {} if scores is None else size_curves.both(run, scores, seed=config.seed)
    return Judgement(config, report, found, curves, recovery)


def _scores(source: Path) -> Scores:
    from circuits import mib
    from graphs.export.mib import read
    from patching.scores import Scores

    if source.name.lower().endswith((".pt", ".mib.json")):
        return mib.scores_from(mib.read_pt(source) if source.suffix == ".pt" else read(source))
    path = source / "scores.json" if source.is_dir() else source.with_name("scores.json")
    if not path.is_file():
        raise BadConfig(
            f"expected {path} for --curve; it is not there. Methods that score write one, such as atp; files of "
            "MIB and EAP-IG (.pt, .mib.json) hold their own."
        )
    return Scores.load(path)


def figure(judgement: Judgement, path: Path) -> None:
    """Draw the curves of a judgement.

    Raises:
        BadConfig: It has none.
        WriteFailed: The file cannot be written.
    """
    if not judgement.curves:
        raise BadConfig("expected --curve with --figure: there is nothing to draw without it.")
    config = judgement.config
    size_curves.draw(
        {name: curve.to_dict() for name, curve in judgement.curves.items()},
        path,
        title=f"{config.task}, {config.model}, {config.ablation}",
    )

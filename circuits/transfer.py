"""The same circuit judged elsewhere: other templates, tasks, ablations or metrics.

A circuit is found on some prompts under one ablation and one metric. Whether it is a circuit of the behaviour, or of
those choices, shows when they change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuits.evaluation import Report, evaluate
from graphs.circuit import Circuit
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Transfer:
    """Reports on one circuit, by the name of the run that it was judged on.

    Attributes:
        reports: in the order in which the runs were given.
        tasks: name of each run's task.
    """

    reports: Mapping[str, Report]
    tasks: Mapping[str, str]

    def to_frame(self) -> pd.DataFrame:
        """One row per run."""
        import pandas as pd

        figures = ("metric", "ablation", "prompts", "clean", "ablated", "circuit", "faithfulness", "completeness_gap",
                   "random_faithfulness", "random_paths", "kl_faithfulness")  # fmt: skip
        rows = []
        for name, report in self.reports.items():
            low, high = report.interval or (None, None)
            row = {"run": name, "task": self.tasks[name]} | {figure: getattr(report, figure) for figure in figures}
            rows.append(row | {"low": low, "high": high, "notes": "; ".join(report.notes)})
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {name: {"task": self.tasks[name]} | dict(report.to_dict()) for name, report in self.reports.items()}

    def __str__(self) -> str:
        width = max((len(name) for name in self.reports), default=0)
        lines = []
        for name, report in self.reports.items():
            low_high = report.interval
            around = "" if low_high is None else f" ({low_high[0]:.1%} to {low_high[1]:.1%})"
            rest = f"; left without it {_percent(report.completeness_gap)}; random {_percent(report.random_paths)}"
            lines.append(f"{name:<{width}}  faithfulness {_percent(report.faithfulness)}{around}{rest}")
            lines += [f"{'':<{width}}  note: {note}" for note in report.notes]
        return "\n".join(lines)


def across(
    circuit: Circuit,
    runs: Mapping[str, MaskedRun],
    *,
    random_circuits: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Transfer:
    """Evaluate a circuit on several runs.

    Cost: that of `evaluate`, per run.

    Args:
        circuit: the circuit.
        runs: by name, on models of the circuit's shape; they may differ in prompts, ablation, metric, even weights.
        random_circuits: as in `evaluate`.
        resamples: as in `evaluate`.
        seed: as in `evaluate`.
        progress: called with how many runs are done and in all.

    Raises:
        InvalidMask: the circuit does not fit a run.
        InvalidOption: no runs.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> runs = {name: MaskedRun(toy.model(), toy.task(), ablation=name) for name in ("corrupt", "zero")}
        >>> table = across(top_edges(atp.scores(runs["corrupt"]), n=3), runs).to_frame()
        >>> [round(value, 3) for value in table["faithfulness"]]
        [1.0, 0.6]
    """
    if not runs:
        raise InvalidOption("expected at least one run to judge the circuit on; got none.")
    reports: dict[str, Report] = {}
    for name, run in runs.items():
        reports[name] = evaluate(run, circuit, random_circuits=random_circuits, resamples=resamples, seed=seed)
        progress(len(reports), len(runs))
    return Transfer(reports, {name: run.task.name for name, run in runs.items()})


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"

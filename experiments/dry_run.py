"""What a config would run, and what that would cost: `wiretrace run CONFIG --dry-run`. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from experiments import decision_log, work
from experiments.config_file import build
from experiments.errors import BadRun
from experiments.estimate import Estimate, Speed, estimate, try_to_measure
from experiments.progress_display import Display, Silence, duration
from experiments.run_directory import DECISIONS, SAMPLES, SHARDS, differences, status
from experiments.store import Store
from experiments.store.rows import Row, read
from experiments.sweep import Planned
from graphs.errors import WiretraceError

if TYPE_CHECKING:
    from rich.table import Table

MOST_SHOWN: Final = 200
"""Rows of the table; of a larger sweep the first are shown."""


@dataclass(frozen=True)
class Expected:
    """One run that would be made.

    Attributes:
        planned: The run.
        state: How its folder stands, in words.
        to_do: Whether anything would be done.
        estimate: What that would cost, from the start.
    """

    planned: Planned
    state: str
    to_do: bool
    estimate: Estimate


@dataclass(frozen=True)
class DryRun:
    """What would be run.

    Attributes:
        runs: Each run, in order.
        speeds: Of each model that was timed, by name.
        missing: Why others were not, by name.
    """

    runs: tuple[Expected, ...]
    speeds: dict[str, Speed]
    missing: dict[str, str]

    def __str__(self) -> str:
        to_do = [run for run in self.runs if run.to_do]
        finished = sum(run.state == "finished" for run in self.runs)
        costs = [run.estimate.cost for run in to_do if run.estimate.cost is not None]
        times = [run.estimate.seconds for run in to_do if run.estimate.seconds is not None]
        lines = [f"{len(self.runs):,} runs: {finished:,} finished, {len(to_do):,} to do."]
        if costs:
            least = "up to " if any(cost.at_most for cost in costs) else ""
            forwards, backwards = (sum(getattr(cost, name) for cost in costs) for name in ("forwards", "backwards"))
            lines.append(
                f"To do: {least}{forwards:,} forwards and {backwards:,} backwards of one prompt"
                f"{_without(len(to_do) - len(costs), 'whose model is not known here')}."
            )
        if times:
            lines.append(
                f"Time: about {duration(sum(times))} one after the other"
                f"{_without(len(to_do) - len(times), 'of which no time is known')}."
            )
        for name, speed in self.speeds.items():
            lines.append(
                f"Measured now: {name} loads in {duration(speed.load)}; one prompt takes {_short(speed.forward)} "
                f"forward and {_short(speed.backward)} backward, {speed.prompts} at a time."
            )
        lines += [f"Not measured: {name}. {why}" for name, why in self.missing.items()]
        return "\n".join([*lines, "Nothing was written."])


def look(planned: Sequence[Planned], *, root: Path, timed: bool = True, show: Display | None = None) -> DryRun:
    """Look at what would be run.

    Args:
        planned: The runs.
        root: The store, whose earlier runs tell times.
        timed: Whether the models of runs that are still to do are loaded and timed.
        show: Where progress goes.
    """
    show = show or Silence()
    earlier = _earlier(root)
    speeds: dict[str, Speed] = {}
    missing: dict[str, str] = {}
    found = []
    for run in planned:
        config = build(run.settings)
        state, to_do = state_of(run)
        if timed and to_do and config.model not in speeds and config.model not in missing:
            show.say(f"Timing {config.model} …")
            speed, why = try_to_measure(config)
            speeds |= {} if speed is None else {config.model: speed}
            missing |= {} if speed is not None else {config.model: why}
        expected = estimate(config, earlier=earlier, speed=speeds.get(config.model), why="not measured")
        found.append(Expected(run, state, to_do, expected))
    return DryRun(tuple(found), speeds, missing)


def state_of(run: Planned) -> tuple[str, bool]:
    """How the folder of a run stands, in words, and whether anything would be done there."""
    there = status(run.folder)
    if there is None:
        try:
            names = {path.name for path in run.folder.iterdir()} - {SAMPLES, SHARDS}
            taken = any(not name.startswith(".") for name in names)
        except OSError:
            taken = False
        return ("in the way: files of no run", True) if taken else ("new", True)
    try:
        different = differences(there.identity, work.identity(build(run.settings)))
    except WiretraceError as error:  # a file that it names is gone
        return f"cannot be: {error}", True
    if different:
        return "in the way: another run", True
    state = read(run.folder.parent, run.folder.name)["state"]
    if state in ("finished", "damaged"):
        return ("finished", False) if state == "finished" else ("in the way: damaged", True)
    decisions = decision_log.count(run.folder / DECISIONS)
    shards = sum(len(list((run.folder / name).glob("shard-*.safetensors"))) for name in (SAMPLES, SHARDS))
    done = f" after {decisions:,} decisions" if decisions else f" after {shards:,} shards" if shards else ""
    return f"{there.state}{done}", True


def table(found: DryRun) -> Table:
    """The runs, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("run", "what", "state", "forwards", "backwards", "time", "known from"):
        grid.add_column(name, justify="right" if name in ("forwards", "backwards", "time") else "left", overflow="fold")
    for run in found.runs[:MOST_SHOWN]:
        cost, seconds = run.estimate.cost, run.estimate.seconds
        least = "≤ " if cost is not None and cost.at_most else ""
        figures = ("", "") if cost is None else (f"{least}{cost.forwards:,}", f"{cost.backwards:,}")
        cells = (
            run.planned.name,
            run.planned.label if run.planned.variant else "",
            run.state,
            *figures,
            "" if seconds is None else f"{least}{duration(seconds)}",
            run.estimate.source,
        )
        grid.add_row(*map(Text, cells))
    if len(found.runs) > MOST_SHOWN:
        grid.caption = f"… and {len(found.runs) - MOST_SHOWN:,} more"
    return grid


def _earlier(root: Path) -> list[Row]:
    try:
        return Store(root).rows(write=False)
    except BadRun:
        return []


def _without(count: int, words: str) -> str:
    return f", not counting {count:,} runs {words}" if count else ""


def _short(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"

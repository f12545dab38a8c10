"""The runs of a config: expanded, executed wherever that is asked for, and what became of each.

    file -> settings, with --set -> runs -> pieces of work -> executor -> run directories -> table

Finished runs are skipped and unfinished ones go on, so the same command goes on after anything.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from experiments import config_file
from experiments.config_file import KNOWN_CIRCUIT
from experiments.errors import BadConfig, Interrupted
from experiments.progress_display import Display, Silence, duration
from experiments.run_directory import plan
from experiments.store import listing
from experiments.store.rows import Row, read
from experiments.sweep import ROOT, Planned, expand, is_sweep
from graphs.errors import WiretraceError

if TYPE_CHECKING:
    from experiments.executors import Outcome
    from experiments.work import Unit

DEFAULT_EXECUTOR: Final = "process"


@dataclass(frozen=True)
class Asked:
    """A config file and how to run it, as the command line says.

    Attributes:
        path: The file.
        changes: Values of `--set`.
        out: `--out`: the store of a sweep, the run directory of a single run; None for the default.
        executor: A name of `experiments.executors.EXECUTORS`.
        workers: How many processes; None for as many as suit.
        address: Of a Ray cluster.
        retries: How often a piece of work is tried again; None for the default.
    """

    path: Path
    changes: tuple[str, ...] = ()
    out: Path | None = None
    executor: str = DEFAULT_EXECUTOR
    workers: int | None = None
    address: str | None = None
    retries: int | None = None

    def settings(self) -> dict[str, Any]:
        """The settings with the changes.

        Raises:
            WiretraceError: The file or a change is wrong.
        """
        return config_file.override(config_file.read(self.path), self.changes)

    def planned(self) -> list[Planned]:
        """The runs.

        Raises:
            WiretraceError: As `settings`, or a run cannot be.
        """
        runs = self.in_store(self.root)
        if self.out is None or is_sweep(self.settings()):
            return runs
        (run,) = runs
        return [Planned(run.settings, run.name, self.out, run.variant)]

    def in_store(self, store: Path) -> list[Planned]:
        """The runs, each in a folder of a store that has its name, also where there is but one.

        Raises:
            WiretraceError: As `settings`, or a run cannot be.
        """
        settings = self.settings()
        if settings.get("schema") == KNOWN_CIRCUIT:
            raise BadConfig(f"expected runs in {self.path}; it holds methods against a known circuit, which are one.")
        return expand(settings, root=store)

    @property
    def elsewhere(self) -> bool:
        """Whether anything is said of where and how work is done, and not only what."""
        said = (self.executor, self.workers, self.address, self.retries)
        return said != (DEFAULT_EXECUTOR, None, None, None)

    @property
    def root(self) -> Path:
        """The store of the runs."""
        return ROOT if self.out is None else self.out

    def command(self, *more: str) -> str:
        """The shell command again."""
        words = ["wiretrace", "run", str(self.path)]
        words += [word for change in self.changes for word in ("--set", change)]
        words += ["--out", str(self.out)] if self.out is not None else []
        words += ["--executor", self.executor] if self.executor != DEFAULT_EXECUTOR else []
        for name, value in (("workers", self.workers), ("ray-address", self.address), ("retries", self.retries)):
            words += [f"--{name}", str(value)] if value is not None else []
        return shlex.join([*words, *more])

    def report_command(self) -> str:
        """The shell command that makes a report of these runs."""
        words = ["wiretrace", "report", str(self.path)]
        words += [word for change in self.changes for word in ("--set", change)]
        words += ["--root", str(self.out)] if self.out is not None else []
        return shlex.join([*words, "--out", f"{self.path.stem}.html"])


@dataclass(frozen=True)
class Done:
    """What became of the runs.

    Attributes:
        planned: The runs.
        rows: The row of each, as its folder is now.
        failed: Run to why, of those that failed this time.
    """

    planned: tuple[Planned, ...]
    rows: tuple[Row, ...]
    failed: Mapping[str, str]

    def table(self, *, width: int | None = None) -> str:
        """The runs with their results."""
        return listing.as_text(self.rows, listing.shown_columns(self.rows), width=width)


def carry_out(asked: Asked, *, overwrite: bool = False, show: Display | None = None) -> Done:
    """Make all runs of a config; those that fail do not stop the others.

    Args:
        asked: The file and how to run it.
        overwrite: Make finished ones, and others that are in their folders, again. Nothing is removed before everything
            that can be checked is.
        show: Where progress goes.

    Raises:
        WiretraceError: The config, the executor or its options are wrong; nothing was run.
        Interrupted: Ctrl-C or SIGTERM; the text has the command that goes on.
    """
    from experiments import executors, work

    show = show or Silence()
    options = {} if asked.retries is None else {"retries": asked.retries}
    planned = asked.planned()
    show.say(f"{len(planned):,} run{'s' * (len(planned) != 1)}, in {asked.root}.")
    try:
        there = [run for run in planned if overwrite and run.folder.exists()]
        if there:
            settings = [run.settings for run in planned]
            executors.check(asked.executor, settings, workers=asked.workers, address=asked.address, **options)
        for run in there:
            plan(run.folder, {}, overwrite=True, resume=False)
        stages = work.together(_pieces_of(run, again=overwrite) for run in planned)
        for run in there:
            work.renew(run.settings, run.folder)
        with show.steps("runs", unit="piece") as progress:
            outcomes = executors.run(
                asked.executor,
                stages,
                workers=asked.workers,
                address=asked.address,
                say=show.say,
                progress=progress,
                told=_Teller(planned, show),
                **options,
            )
    except KeyboardInterrupt as stop:
        words = str(stop).removesuffix(" Give the command again to go on.")
        raise Interrupted(f"{words or 'Interrupted.'} Go on with: {asked.command()}") from None
    return Done(tuple(planned), tuple(map(row_of, planned)), _failed(planned, outcomes))


def pieces(planned: Sequence[Planned]) -> list[list[Unit]]:
    """The pieces of work of some runs, in stages."""
    from experiments import work

    return work.together(work.units(run.settings, run.folder) for run in planned)


def _pieces_of(run: Planned, *, again: bool) -> list[list[Unit]]:
    """The pieces of a run that is to be made here; one, which sees to it, where it is finished or cannot be cut."""
    from experiments import work

    whole = work.Unit(run.settings, str(run.folder))
    try:
        if again or not work.is_finished(whole):
            return work.units(run.settings, run.folder)
    except WiretraceError:  # of this run alone: its piece says so, and the others go on
        pass
    return [[whole]]


def one_piece(asked: Asked, number: int) -> bool:
    """Do one piece of all runs, as a task of a job array does; whether there was anything to do.

    Raises:
        BadConfig: There is no such piece.
        WiretraceError: It failed.
    """
    from experiments import work
    from experiments.executors import slurm

    return work.perform(slurm.piece(pieces(asked.planned()), number))


def row_of(run: Planned) -> Row:
    """The row of one run as its folder is now; what was asked for, if there is none."""
    if run.folder.is_dir():
        return read(run.folder.parent, run.folder.name)
    row: Row = {"run": run.name, "state": "missing"}
    return row | {name: run.settings.get(name) for name in ("task", "model", "method")}


class _Teller:
    """Says of each run when it is over."""

    def __init__(self, planned: Sequence[Planned], show: Display) -> None:
        self._runs = {str(run.folder): run for run in planned}
        self._show, self._over, self._seconds = show, 0, dict.fromkeys(self._runs, 0.0)

    def __call__(self, outcome: Outcome) -> None:
        folder = outcome.unit.folder
        run = self._runs[folder]
        self._seconds[folder] += outcome.seconds
        if outcome.unit.shard is not None and outcome.state != "failed":
            return
        if outcome.unit.shard is not None:
            self._show.say(f"{outcome.unit}: {outcome.error}")
            return
        self._over += 1
        self._show.say(f"[{self._over} of {len(self._runs)}] {run.label}: {self._words(run, outcome)}")

    def _words(self, run: Planned, outcome: Outcome) -> str:
        if outcome.state == "failed":
            return f"failed. {outcome.error}"
        row = row_of(run)
        names = ("edges", "faithfulness", "correlation", "strongest")
        found = ", ".join(f"{name} {listing.cell(name, row[name])}" for name in names if row.get(name) is not None)
        before = (
            "finished before"
            if outcome.state == "skipped"
            else f"finished in {duration(self._seconds[str(run.folder)])}"
        )
        return f"{before}{f': {found}' if found else ''}."


def _failed(planned: Sequence[Planned], outcomes: Sequence[Outcome]) -> dict[str, str]:
    labels = {str(run.folder): run.label for run in planned}
    found: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.state == "failed":
            found.setdefault(labels[outcome.unit.folder], outcome.error or "for no known reason")
    return found

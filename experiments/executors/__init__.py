"""Where pieces of work (`experiments.work`) are done: in this process, in local worker processes, on a Ray cluster.

    outcomes = run("workers", stages, workers=2)

Every executor does the same: a piece begins when the pieces of its run in earlier stages are done; one that is lost
with its worker, or fails for want of space or memory, is tried again a few times, later each time; one that fails for
good fails its run and no other. What is done stays done, so giving the same stages again goes on from there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from experiments.errors import BadConfig, CallbackFailed
from experiments.executors.schedule import Outcome, Schedule, Tell
from experiments.nearest import require_known
from experiments.work import Unit

EXECUTORS: Final[Mapping[str, str]] = {
    "process": "experiments.executors.process",
    "workers": "experiments.executors.workers",
    "ray": "experiments.executors.on_ray",
}
"""Names and modules. Each has `check(settings, *, workers, address)` and `run(schedule, *, workers, address)`."""

RETRIES: Final = 2


def check(
    name: str,
    settings: Sequence[Mapping[str, Any]],
    *,
    workers: int | None = None,
    retries: int = RETRIES,
    address: str | None = None,
) -> None:
    """Refuse what `run` would refuse, before anything is begun.

    Args:
        name: Of `EXECUTORS`.
        settings: Of every run.
        workers: As for `run`.
        retries: As for `run`.
        address: As for `run`.

    Raises:
        BadConfig: An option makes no sense, Ray is not installed, or its address does not answer.
    """
    _executor(name, workers=workers, retries=retries, address=address).check(settings, workers=workers, address=address)


def run(
    name: str,
    stages: Sequence[Sequence[Unit]],
    *,
    workers: int | None = None,
    retries: int = RETRIES,
    address: str | None = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    told: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Do all pieces of some runs.

    Args:
        name: Of `EXECUTORS`.
        stages: As `experiments.work.units` and `together` give them.
        workers: How many processes; None for one per GPU if there are any, else one per core. On an existing cluster
            of Ray, how many pieces at once; None for as many as it has room for.
        retries: How often a piece is tried again after its worker was lost or there was no space or memory.
        address: Of a Ray cluster, such as `10.0.0.1:6379`, `auto` or `ray://host:10001`; None for one of this machine.
        say: Told in a sentence what goes wrong and is tried again and, without `told`, which runs are finished.
        progress: Called with the pieces done and of all.
        told: Called with every outcome as it is known.

    Returns:
        What became of every piece, in their order.

    Raises:
        BadConfig: An option makes no sense, Ray is not installed, or its address does not answer.
        Interrupted: Ctrl-C or SIGTERM; all workers have ended, and what is done is kept.
        CallbackFailed: `say`, `progress` or `told` raised an error. It was not called again, and all work was done.
    """
    executor = _executor(name, workers=workers, retries=retries, address=address)
    tell = Tell(say=say, progress=progress, told=told)
    schedule = Schedule(stages, retries=retries, tell=tell)
    if not schedule.over:
        executor.check(schedule.settings, workers=workers, address=address)
        executor.run(schedule, workers=workers, address=address)
    if tell.broken is not None:
        raise CallbackFailed(
            f"a function that hears of progress failed: {tell.broken}. All pieces were seen to nevertheless.",
            schedule.outcomes,
        )
    return schedule.outcomes


def _executor(name: str, *, workers: int | None, retries: int, address: str | None) -> ModuleType:
    """The module of an executor, if the options make sense for any."""
    require_known("an executor", name, EXECUTORS)
    for what, value, least in (("workers", workers, 1), ("retries", retries, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise BadConfig(f"expected {what} to be a whole number of {least} or more; got {value!r}.")
    if address is not None and name != "ray":
        raise BadConfig(f"expected the executor ray for an address ({address}); got {name}.")
    return importlib.import_module(EXECUTORS[name])

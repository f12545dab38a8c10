"""Pieces of work one after the other, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from experiments import work
from experiments.errors import BadConfig, Interrupted
from experiments.executors.schedule import Schedule, attempt


def check(settings: Iterable[Mapping[str, Any]], *, workers: int | None, address: str | None) -> None:
    """Refuse what cannot be done.

    Raises:
        BadConfig: More than one worker is asked for.
    """
    if workers not in (None, 1):
        raise BadConfig(f"expected one worker in this process; got {workers}. Choose the executor workers.")


def run(schedule: Schedule, *, workers: int | None, address: str | None) -> None:
    """Do all pieces.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    from experiments.discover import stoppable

    near = ""
    try:
        with stoppable():
            while not schedule.over:
                piece = schedule.next(near)
                if piece is None:
                    time.sleep(schedule.pause() or 0.0)
                    continue
                near = piece.unit.folder
                schedule.report(piece, attempt(lambda unit=piece.unit: work.perform(unit)))
    except KeyboardInterrupt:
        raise Interrupted(stopped(schedule)) from None
    finally:
        work.forget()


def stopped(schedule: Schedule) -> str:
    """What to tell whoever stopped the work."""
    done = sum(outcome.state != "failed" for outcome in schedule.outcomes)
    return (
        f"Interrupted. {done:,} of {len(schedule.pieces):,} pieces are done and kept, and unfinished runs as far as "
        "they came. Give the command again to go on."
    )

"""The option `--track`: which trackers follow the runs of this command and of the processes that it starts."""

from __future__ import annotations

import os

import typer


def follow(context: typer.Context, names: list[str] | None) -> list[str] | None:
    """Ask for trackers until the command ends.

    Raises:
        typer.BadParameter: an unknown tracker, or one that is not installed.
    """
    if not names or context.resilient_parsing:
        return names
    from experiments import tracking
    from experiments.errors import BadConfig

    try:
        chosen = tracking.check(name for each in names for name in each.split(","))
    except BadConfig as error:
        raise typer.BadParameter(str(error)) from error
    before = os.environ.get(tracking.VARIABLE)
    os.environ[tracking.VARIABLE] = ",".join(chosen)

    def restore() -> None:
        if before is None:
            os.environ.pop(tracking.VARIABLE, None)
        else:
            os.environ[tracking.VARIABLE] = before

    context.call_on_close(restore)
    return names

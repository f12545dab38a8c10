"""Weights & Biases: off-line unless WANDB_MODE says otherwise.

`wandb sync RUN/tracking/wandb/wandb/offline-run-*` sends an off-line run later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from experiments.run_log import Entry
from experiments.tracking import Tracker, numbers

PROJECT: Final = "wiretrace"


def tracker(folder: Path, *, name: str, settings: Mapping[str, Any]) -> Tracker:
    """Send the events of one run to a run of Weights & Biases.

    Args:
        folder: where its files go.
        name: of the run.
        settings: its config.
    """
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=name,
        dir=str(folder),
        mode=os.environ.get("WANDB_MODE", "offline"),  # pyright: ignore[reportArgumentType]  # wandb refuses others
        config=dict(settings),
        settings=wandb.Settings(silent=True, console="off"),
    )
    failed = False

    def track(entry: Entry) -> None:
        nonlocal failed
        values, step = numbers(entry)
        if values:
            run.log({**values} if step is None else {**values, "done": step})
        if entry.event == "published":
            run.summary.update(values)
        failed = failed or entry.event in ("failed", "interrupted")
        if entry.event == "closed":
            run.finish(exit_code=int(failed))

    return track

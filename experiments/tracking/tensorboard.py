"""TensorBoard: scalars and text in an event file, to be looked at with `tensorboard --logdir RUN/tracking`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.run_log import Entry
from experiments.tracking import Tracker, numbers


def tracker(folder: Path, *, name: str, settings: Mapping[str, Any]) -> Tracker:
    """Write the events of one run into a folder.

    Args:
        folder: where the event file goes.
        name: of the run.
        settings: shown as a table of text.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(log_dir=str(folder))
    rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
    writer.add_text("settings", f"| {name} | |\n|---|---|\n{rows}", 0)

    def track(entry: Entry) -> None:
        values, step = numbers(entry)
        for key, value in values.items():
            writer.add_scalar(key, value, entry.number if step is None else step)
        if "text" in entry.fields:
            writer.add_text(entry.event, str(entry.fields["text"]), entry.number)
        if entry.event == "closed":
            writer.close()
        elif values:
            writer.flush()

    return track

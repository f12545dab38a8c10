"""What every training command does around a training: progress, Ctrl-C, errors in one sentence."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from graphs.errors import WiretraceError

Progress = Callable[[range], Iterable[int]]
"""Wraps the range of steps, as tqdm does."""


def carry_out(out: Path, train: Callable[[Progress], dict[str, Any]]) -> None:
    """Train with a progress bar, say what came out, and end the process with 1 on an error and 130 on Ctrl-C.

    Args:
        out: Folder to make, for the messages.
        train: Trains, given what wraps its steps; returns the record.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    from tqdm import tqdm

    try:
        record = train(lambda steps: tqdm(steps, desc="training", unit="step"))
    except WiretraceError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo(f"Stopped; {out} is as it was.", err=True)
        sys.exit(130)
    typer.echo(json.dumps(record["accuracy"], indent=2))
    typer.echo(f"{out}: {record['parameters']:,} parameters, trained in {record['seconds']:.0f} s")

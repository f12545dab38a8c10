"""Runs that tests kill: `python -m tests.experiments.executors.killed_driver ROOT` says `ready`, then waits for lines.

For every line it forks a process, which does all pieces, and says its number; then how it ended. A fork has everything
loaded, so that a kill hits work and not the loading of libraries. With `ROOT workers` it does all pieces in workers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from experiments import executors, work
from patching import LensModel
from tests.experiments.executors import small_runs

KILLED = {"coar": {**small_runs.COAR, "samples": 1_500}, "acdc": small_runs.ACDC}


def carry_out(root: Path, name: str) -> None:
    outcomes = executors.run(name, small_runs.stages(root, KILLED), workers=None if name == "process" else 2)
    assert not [outcome for outcome in outcomes if outcome.error], outcomes


def main(root: Path) -> None:
    torch.set_num_threads(1)
    LensModel.load("zoo:ioi")  # what is loaded once is not loaded again in every fork
    work.units(small_runs.COAR, root / "nowhere")
    tell("ready")
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            carry_out(root, "process")
            os._exit(0)
        tell(str(child))
        tell(str(os.waitpid(child, 0)[1]))


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        carry_out(Path(sys.argv[1]), sys.argv[2])
    else:
        main(Path(sys.argv[1]))

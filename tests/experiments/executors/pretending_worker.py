"""A worker that only pretends to work, as its pieces say: `python -m tests.experiments.executors.pretending_worker`.

Each attempt leaves a line in the file `attempts` of its folder; one that ends well leaves `done-SHARD`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from experiments import work
from experiments.executors import worker
from graphs.errors import WriteFailed


def perform(unit: work.Unit) -> bool:
    folder, settings = Path(unit.folder), unit.settings
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"done-{unit.shard}"
    if done.exists():
        return False
    with (folder / "attempts").open("a") as file:
        file.write(f"{unit.shard} {os.getpid()}\n")
    tried = (folder / "attempts").read_text().count(f"{unit.shard} ")
    if unit.shard is not None and unit.shard in settings.get("kills", ()):
        os.kill(os.getpid(), signal.SIGKILL)
    if unit.shard is not None and unit.shard in settings.get("kills_once", ()) and tried == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if settings.get("exits"):
        sys.stderr.write("something\nModuleNotFoundError: No module named 'torch'\n")
        sys.stderr.flush()
        os._exit(3)
    if settings.get("full_until", 0) >= tried:
        raise WriteFailed("cannot write: no space is left on the disk")
    if unit.shard is not None and unit.shard in settings.get("raises", ()):
        raise ValueError("a bug of the user's\nin two lines")
    os.write(1, b"printed by some library\n")
    time.sleep(settings.get("seconds", 0.0))
    done.write_text("")
    return True


if __name__ == "__main__":
    if os.environ.get("WIRETRACE_TEST_STILLBORN"):
        sys.exit("ImportError: libgomp.so.1: cannot open shared object file")
    work.perform = perform  # type: ignore[assignment]
    sys.exit(worker.main())

"""A worker process: pieces of work come in on standard input, a line of JSON each; answers go out on standard output.

It ends when its input ends, even in the midst of a piece, so that no worker outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from typing import BinaryIO

from experiments import work
from experiments.executors.schedule import attempt


def main() -> int:
    """Work until there is nothing more to do; returns the exit code."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not stand among the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pieces,), daemon=True).start()
    _write(out, {"ready": os.getpid()})
    try:
        while True:
            unit = work.Unit.from_dict(json.loads(pieces.get()))
            _write(out, asdict(attempt(lambda unit=unit: work.perform(unit))))
    except KeyboardInterrupt:
        return 130


def _read(pieces: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        pieces.put(line)
    os._exit(0)


def _write(out: BinaryIO, message: object) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())

"""Pieces of work in local processes: one for each GPU, or for each core.

Workers are fresh interpreters (`python -m experiments.executors.worker`) that get pieces and answer in lines of JSON.
A worker that dies, however it dies, loses one piece, which another gets. Workers end with this process, even if it is
killed: their standard input then ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from experiments import work
from experiments.errors import BadConfig, Interrupted
from experiments.executors.process import stopped
from experiments.executors.schedule import Answer, Piece, Schedule

ROOT: Final = Path(__file__).resolve().parents[2]
COMMAND: Final = (sys.executable, "-m", "experiments.executors.worker")
PATIENCE: Final = 10.0
"""Seconds that a worker has to save what it is doing when it is told to stop."""

DRIVERS: Final = ("nvidia[0-9]*", "kfd", "dxg")
"""Devices without one of which Linux has no GPU; to see that is faster than to load torch."""

STILLBORN: Final = 3
"""So many workers in a row that die before they are ready, and there is no use in starting more."""


@dataclass
class Worker:
    """A process, what it is doing, and what it said on standard error."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    listener: threading.Thread
    piece: Piece | None = None
    near: str = ""
    ready: bool = False
    number: int = 0

    def give(self, piece: Piece) -> bool:
        """Whether it could still be told."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(piece.unit.to_dict()).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return False
        self.piece, self.near = piece, piece.unit.folder
        return True

    def how_it_ended(self) -> str:
        """In words, with the last thing it said."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        last = f" ({lines[-1]})" if lines and code > 0 else ""
        how = f"killed by {_signal(-code)}" if code < 0 else f"ended with code {code}"
        return f"a worker was {how}{last}" if code < 0 else f"a worker {how}{last}"


def check(settings: Iterable[Mapping[str, Any]], *, workers: int | None, address: str | None) -> None:
    """Refuse what cannot be done.

    Raises:
        BadConfig: A run names a GPU by its number.
    """
    one_gpu_each(settings)


def run(schedule: Schedule, *, workers: int | None, address: str | None) -> None:
    """Do all pieces.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; all workers have ended.
    """
    from experiments.discover import stoppable

    work.forget()  # the model that planning loaded would lie beside those of the workers
    pool = Pool(schedule, places(schedule, workers))
    try:
        with stoppable():
            pool.go()
    except KeyboardInterrupt:
        pool.stop(PATIENCE)
        raise Interrupted(stopped(schedule)) from None
    finally:
        pool.stop(0.0)


def places(schedule: Schedule, workers: int | None) -> list[dict[str, str]]:
    """The environment that tells each worker where to compute: one GPU each, or none.

    Raises:
        BadConfig: A run names a GPU by its number.
    """
    gpus = _gpus() if one_gpu_each(schedule.settings) else []
    count = min(workers or len(gpus) or cores(), max(1, len(schedule.pieces)))
    return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {} for number in range(count)]


def one_gpu_each(settings: Iterable[Mapping[str, Any]]) -> bool:
    """Whether pieces may want a GPU, and each worker gets one of its own.

    Raises:
        BadConfig: A run names a GPU by its number, which means nothing to a worker that sees but one.
    """
    devices = {str(each.get("device") or "cuda") for each in settings}
    named = sorted(devices - {"cpu", "mps", "cuda", "cuda:0"})
    if named:
        raise BadConfig(f"expected device = cuda, since every worker gets a GPU of its own; got {named[0]}.")
    return bool(devices - {"cpu", "mps"})


def cores() -> int:
    """Cores that this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    """Numbers or names of the GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() and not name.strip().startswith("-")]
    if sys.platform == "linux" and not any(path for pattern in DRIVERS for path in Path("/dev").glob(pattern)):
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


class Pool:
    """The workers, and the events that they cause."""

    def __init__(self, schedule: Schedule, places: list[dict[str, str]]) -> None:
        self._schedule, self._places = schedule, places
        self._workers: dict[int, Worker] = {}
        self._events: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._made = self._stillborn = 0

    def go(self) -> None:
        """Keep all busy until nothing is left."""
        schedule = self._schedule
        while not schedule.over:
            self._hand_out()
            pause = schedule.pause()
            try:
                number, line = self._events.get(timeout=0.5 if pause is None else min(0.5, max(0.001, pause)))
            except queue.Empty:
                continue
            worker = self._workers[number]
            if line:
                self._heard(worker, json.loads(line))
            else:
                self._lost(worker)

    def _hand_out(self) -> None:
        """Give idle workers something to do, and start workers where there is more."""
        for worker in list(self._workers.values()):
            if worker.piece is None:
                piece = self._schedule.next(worker.near)
                if piece is None:
                    return
                self._give(worker, piece)
        while len(self._workers) < len(self._places):
            piece = self._schedule.next()
            if piece is None:
                return
            self._give(self._start(), piece)

    def _give(self, worker: Worker, piece: Piece) -> None:
        if not worker.give(piece):  # it is dead, which its pipe will tell
            self._schedule.put_back(piece)

    def _start(self) -> Worker:
        taken = {worker.number % len(self._places) for worker in self._workers.values()}
        place = next(number for number in range(len(self._places)) if number not in taken)
        number = place + len(self._places) * (self._made + 1)
        self._made += 1
        errors = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(self._places[place]),
            start_new_session=True,  # Ctrl-C is for this process, which tells the workers
        )
        listener = threading.Thread(target=self._listen, args=(number, process.stdout), daemon=True)
        worker = Worker(process, errors, listener, number=number)
        self._workers[number] = worker
        listener.start()
        return worker

    def _listen(self, number: int, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                if line.endswith(b"\n"):
                    self._events.put((number, line))
        self._events.put((number, b""))

    def _heard(self, worker: Worker, message: dict[str, Any]) -> None:
        if "ready" in message:
            worker.ready, self._stillborn = True, 0
        elif worker.piece is not None:
            piece, worker.piece = worker.piece, None
            self._schedule.report(piece, Answer(**message))

    def _lost(self, worker: Worker) -> None:
        del self._workers[worker.number]
        how = worker.how_it_ended()
        _close(worker)
        self._stillborn += not worker.ready
        if worker.piece is not None:
            self._schedule.lost(worker.piece, how)
        if self._stillborn >= STILLBORN * len(self._places):
            self._schedule.abandon(f"workers die as they start: {how}")

    def stop(self, patience: float) -> None:
        """End all workers, gently for some seconds."""
        workers = list(self._workers.values())
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + patience
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.wait()
            _close(worker)
        self._workers.clear()


def _close(worker: Worker) -> None:
    """Leave nothing open of a worker that has ended."""
    worker.listener.join(1.0)
    for stream in (worker.process.stdin, worker.errors):
        with contextlib.suppress(OSError):
            assert stream is not None
            stream.close()


def _environment(place: dict[str, str]) -> dict[str, str]:
    """Of a worker: this package is found wherever it is, and no library starts threads of its own."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | place


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"

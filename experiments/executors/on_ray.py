"""Pieces of work on a Ray cluster: one that runs already, or one of this machine that ends with the work.

Run directories are on a file system that all nodes share, under the same path; Wiretrace is installed on every node.
Ray moves nothing but pieces and answers, and its own retries are off: `Schedule` counts attempts for every executor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from experiments import tracking, work
from experiments.errors import BadConfig, FolderTaken, Interrupted
from experiments.executors.process import stopped
from experiments.executors.schedule import Answer, Piece, Schedule, attempt
from experiments.executors.workers import cores, one_gpu_each

TIME_LIMIT: Final = 30.0
"""Seconds within which an address must answer."""

NO_NODE: Final = 60.0
"""Seconds without any node before the work is given up."""

LOCAL: Final = "local"
"""The address of a cluster that is made on this machine."""

OBJECT_STORE: Final = 80 << 20
"""Bytes of a local cluster's object store, the least that Ray takes: answers are a few numbers."""


def check(settings: Iterable[Mapping[str, Any]], *, workers: int | None, address: str | None) -> None:
    """Refuse what cannot be done.

    Raises:
        BadConfig: Ray is not installed, nothing answers at the address, or a run names a GPU by its number.
    """
    one_gpu_each(settings)
    if not _ray().is_initialized() and _address(address) != LOCAL:
        check_address(_address(address))


def run(schedule: Schedule, *, workers: int | None, address: str | None) -> None:
    """Do all pieces.

    Raises:
        BadConfig: There is no cluster at the address after all.
        Interrupted: Ctrl-C or SIGTERM; no task of ours runs any more.
    """
    from experiments.discover import stoppable

    work.forget()  # the model that planning loaded would lie beside those of the workers
    ray = _ray()
    with _connected(ray, workers=workers, address=address):
        pending: dict[Any, Piece] = {}
        try:
            with stoppable():
                _go(ray, schedule, pending, workers=workers)
        except KeyboardInterrupt:
            raise Interrupted(stopped(schedule)) from None
        finally:
            for reference in pending:
                with contextlib.suppress(Exception):  # the cluster itself may be gone
                    ray.cancel(reference, force=True)


def _go(ray: Any, schedule: Schedule, pending: dict[Any, Piece], *, workers: int | None) -> None:
    """Keep the cluster busy until nothing is left."""
    resources = ray.cluster_resources()
    gpus = 1 if resources.get("GPU") and one_gpu_each(schedule.settings) else 0
    task = ray.remote(max_retries=0, num_cpus=1, num_gpus=gpus)(_perform)
    trackers = ",".join(tracking.asked())
    seen = time.monotonic()
    while not schedule.over:
        room = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0))
        now = time.monotonic()
        seen = now if room else seen
        if now - seen > NO_NODE:
            schedule.abandon(f"the cluster has had no node with a free core for {NO_NODE:.0f} seconds")
            return
        while len(pending) < (workers or room):
            piece = schedule.next()
            if piece is None:
                break
            pending[task.remote(piece.unit.to_dict(), os.getcwd(), trackers)] = piece
        pause = schedule.pause()
        wait = 0.5 if pause is None else min(0.5, max(0.001, pause))
        if not pending:
            time.sleep(wait)
            continue
        for reference in ray.wait(list(pending), num_returns=1, timeout=wait)[0]:
            _heard(ray, schedule, pending.pop(reference), reference)


def _heard(ray: Any, schedule: Schedule, piece: Piece, reference: Any) -> None:
    """A task has ended, in one way or another."""
    try:
        schedule.report(piece, Answer(**ray.get(reference)))
    except ray.exceptions.RayError as error:
        schedule.lost(piece, f"Ray said {type(error).__name__}: {str(error).strip().splitlines()[0]}")


def _perform(document: dict[str, Any], folder: str, trackers: str) -> dict[str, Any]:
    """What a worker of the cluster does: one piece, from the folder that paths are relative to, with its trackers."""

    def within() -> bool:
        if not Path(folder).is_dir():
            raise FolderTaken(
                f"expected the folder {folder} on the node {socket.gethostname()}; it is not there. Nodes must share "
                "the file system that runs are on."
            )
        with contextlib.chdir(folder):
            return work.perform(work.Unit.from_dict(document))

    if trackers:
        os.environ[tracking.VARIABLE] = trackers  # of this worker, which does nothing but pieces of ours
    return asdict(attempt(within))


# ----------------------------------------------------------------------------------------------------- the cluster


def _ray() -> Any:
    """The package.

    Raises:
        BadConfig: It is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BadConfig(
            "expected Ray for the executor ray; it is not installed. Try: pip install -e '.[ray]' (or choose the "
            "executor workers, which needs nothing)."
        ) from error
    return ray


@contextmanager
def _connected(ray: Any, *, workers: int | None, address: str | None) -> Iterator[None]:
    """A cluster for the block; one that was there before stays.

    Raises:
        BadConfig: Nothing answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = _address(address)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == LOCAL:
        options |= {
            "num_cpus": workers or cores(),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        }
    with _handlers_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray about its own future
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BadConfig(f"expected a Ray cluster at {address}; {str(error).splitlines()[0]}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _address(given: str | None) -> str:
    return given or os.environ.get("RAY_ADDRESS") or LOCAL


def check_address(address: str, *, limit: float = TIME_LIMIT) -> None:
    """See whether a cluster answers, without waiting for ever as Ray does.

    Args:
        address: `host:port`, `ray://host:port` or `auto`, which is not checked.
        limit: Seconds.

    Raises:
        BadConfig: It does not, or the address is none.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise BadConfig(
            f"expected the address of a Ray cluster as HOST:PORT, ray://HOST:PORT or auto; got {address!r}."
        )
    remedy = "Is it right, and is the cluster up (ray status)? Without an address, a cluster of this machine is made."
    try:
        socket.create_connection((host, int(port)), timeout=limit).close()
    except OSError as error:
        raise BadConfig(
            f"expected a Ray cluster at {address}; nothing answers within {limit:.0f} seconds ({error}). {remedy}"
        ) from error
    if address.startswith("ray://"):
        return
    try:
        check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        done = subprocess.run(check, capture_output=True, text=True, timeout=limit, check=False)
        said = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no"])[-1]
    except subprocess.TimeoutExpired:
        said = f"no answer within {limit:.0f} seconds"
    if said:
        raise BadConfig(
            f"expected a Ray cluster at {address}; what listens there does not answer as one ({said}). {remedy}"
        )


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray handles signals in its own way; afterwards they are handled as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)

"""Local workers: the same results as one process; workers that die, in every way; interruptions; no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import executors, work
from experiments.config_file import build
from experiments.errors import BadConfig
from experiments.executors import workers
from experiments.executors.schedule import Outcome, Schedule, Tell
from experiments.work import Unit
from tests.experiments.executors import small_runs

ROOT = Path(__file__).resolve().parents[3]
PRETENDING = (sys.executable, "-m", "tests.experiments.executors.pretending_worker")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that only pretend; further attempts come at once."""
    monkeypatch.setattr(workers, "COMMAND", PRETENDING)
    monkeypatch.setattr("experiments.executors.schedule.WAIT", 0.01)


def pieces(folder: Path, count: int, **settings: Any) -> list[list[Unit]]:
    return [[Unit(settings, str(folder), number) for number in range(count)], [Unit(settings, str(folder))]]


def children(parent: int) -> list[int]:
    """Living processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(above) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_workers_leave_what_one_process_leaves(in_process: Path, tmp_path: Path) -> None:
    told: list[Outcome] = []
    outcomes = executors.run("workers", small_runs.stages(tmp_path), workers=2, told=told.append)
    assert [outcome.error for outcome in outcomes] == [None] * 21
    assert len(told) == 21
    for name in small_runs.ALL:
        assert small_runs.left(tmp_path / name) == small_runs.left(in_process / name), name
    again = executors.run("workers", small_runs.stages(tmp_path), workers=2)
    assert {outcome.state for outcome in again} == {"skipped"}
    assert children(os.getpid()) == []


@pytest.mark.usefixtures("pretend")
class TestPretending:
    def test_all_workers_work_and_prints_do_no_harm(self, tmp_path: Path) -> None:
        outcomes = executors.run("workers", pieces(tmp_path, 12, seconds=0.2), workers=3)
        assert [outcome.state for outcome in outcomes] == ["finished"] * 13
        lines = (tmp_path / "attempts").read_text().split()
        assert len(set(lines[1::2])) == 3
        assert children(os.getpid()) == []

    def test_the_piece_of_a_killed_worker_is_given_to_another(self, tmp_path: Path) -> None:
        heard: list[str] = []
        outcomes = executors.run("workers", pieces(tmp_path, 5, kills_once=[1, 3]), workers=2, say=heard.append)
        assert [outcome.state for outcome in outcomes] == ["finished"] * 6
        assert [outcome.attempts for outcome in outcomes] == [1, 2, 1, 2, 1, 1]
        assert sum("a worker was killed by SIGKILL. Attempt 2 of 3" in line for line in heard) == 2

    def test_a_piece_that_kills_every_worker_fails_and_the_others_go_on(self, tmp_path: Path) -> None:
        stages = [[*pieces(tmp_path / "a", 4, kills=[2])[0], *pieces(tmp_path / "b", 2)[0]]]
        stages.append([Unit(stages[0][0].settings, str(tmp_path / "a")), Unit({}, str(tmp_path / "b"))])
        outcomes = executors.run("workers", stages, workers=2, retries=1)
        states = [outcome.state for outcome in outcomes]
        assert states == ["finished", "finished", "failed", "finished", "finished", "finished", "failed", "finished"]
        assert outcomes[2].error == "its worker was lost 2 times: a worker was killed by SIGKILL"
        assert (outcomes[2].attempts, outcomes[6].attempts) == (2, 0)
        assert "not begun" in str(outcomes[6].error)

    def test_an_error_of_the_user_s_is_the_last_line_of_its_traceback(self, tmp_path: Path) -> None:
        outcomes = executors.run("workers", pieces(tmp_path, 3, raises=[0]), workers=1)
        assert outcomes[0].error is not None
        assert outcomes[0].error.startswith("in two lines (pretending_worker.py, line ")
        assert [outcome.state for outcome in outcomes] == ["failed"] * 4
        assert (outcomes[0].attempts, outcomes[1].attempts) == (1, 0)

    def test_a_full_disk_is_waited_for_a_little(self, tmp_path: Path) -> None:
        outcomes = executors.run("workers", [[Unit({"full_until": 2}, str(tmp_path / "a"))]], workers=1)
        assert [(outcome.state, outcome.attempts) for outcome in outcomes] == [("finished", 3)]
        outcomes = executors.run("workers", [[Unit({"full_until": 9}, str(tmp_path / "b"))]], workers=1, retries=1)
        assert [(outcome.state, outcome.attempts) for outcome in outcomes] == [("failed", 2)]
        assert outcomes[0].error == "cannot write: no space is left on the disk"

    def test_workers_that_end_by_themselves_say_why(self, tmp_path: Path) -> None:
        outcomes = executors.run("workers", [[Unit({"exits": True}, str(tmp_path))]], workers=1, retries=0)
        assert outcomes[0].error == (
            "its worker was lost once: a worker ended with code 3 (ModuleNotFoundError: No module named 'torch')"
        )

    def test_workers_that_cannot_start_are_not_started_for_ever(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WIRETRACE_TEST_STILLBORN", "1")
        start = time.monotonic()
        outcomes = executors.run("workers", pieces(tmp_path, 50), workers=1, retries=10)
        assert {outcome.state for outcome in outcomes} == {"failed"}
        assert "workers die as they start: a worker ended with code 1 (ImportError: libgomp" in str(outcomes[7].error)
        assert time.monotonic() - start < 60

    def test_idle_workers_that_die_are_replaced(self, tmp_path: Path) -> None:
        """Killed between two pieces, when nobody waits for them."""
        killed: list[int] = []

        def kill(outcome: Outcome) -> None:
            if not killed:
                worker = children(os.getpid())[0]
                killed.append(worker)
                os.kill(worker, signal.SIGKILL)
                wait_for(lambda: not alive(worker))

        outcomes = executors.run("workers", pieces(tmp_path, 4), workers=1, told=kill)
        assert [outcome.state for outcome in outcomes] == ["finished"] * 5


STARTED = """
import sys
from experiments import executors
from experiments.executors import workers
from experiments.work import Unit
workers.COMMAND = {command!r}
try:
    executors.run("workers", [[Unit({{"seconds": 30.0}}, {folder!r}, n) for n in range(3)]], workers=2)
except KeyboardInterrupt as stopped:
    sys.exit(f"stopped: {{stopped}}")
"""


def started(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process with two workers that are busy, and the numbers of the workers."""
    code = STARTED.format(command=PRETENDING, folder=str(folder))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    log = folder / "attempts"
    wait_for(lambda: process.poll() is not None or (log.exists() and log.read_text().count("\n") == 2))
    assert process.poll() is None, process.communicate()[1]
    found = children(process.pid)
    assert len(found) == 2
    return process, found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_is_stopped_stops_its_workers(number: signal.Signals, tmp_path: Path) -> None:
    process, found = started(tmp_path)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert not any(map(alive, found))
    assert stderr.splitlines()[-1].startswith("stopped: Interrupted. 0 of 3 pieces are done and kept")


def test_workers_of_a_killed_process_end_too(tmp_path: Path) -> None:
    process, found = started(tmp_path)
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(alive, found)), 20.0)


@pytest.mark.usefixtures("pretend")
def test_the_model_that_planning_loaded_is_gone_before_workers_load_theirs(tmp_path: Path) -> None:
    work.units(small_runs.EXACT, tmp_path / "x")
    work._ready(build(small_runs.EXACT), small_runs.EXACT, 1)
    assert work._kept
    executors.run("workers", pieces(tmp_path / "y", 1), workers=1)
    assert not work._kept


def schedule_of(*devices: str | None) -> Schedule:
    stages = [[Unit({} if device is None else {"device": device}, f"/nowhere/{n}") for n, device in enumerate(devices)]]
    return Schedule(stages, retries=0, tell=Tell(say=None, progress=None, told=None))


def test_one_worker_for_each_gpu_or_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    on_gpus = [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert workers.places(schedule_of(None, "cuda", "cpu"), None) == on_gpus
    assert workers.places(schedule_of(None, None, None), 3) == [*on_gpus, on_gpus[0]]
    assert workers.places(schedule_of("cpu", "cpu"), 2) == [{}, {}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr(workers, "cores", lambda: 4)
    assert workers.places(schedule_of(*[None] * 9), None) == [{}] * 4
    assert workers.places(schedule_of(None, "cpu"), None) == [{}] * 2  # no more than there are pieces
    with pytest.raises(BadConfig, match="every worker gets a GPU of its own; got cuda:1"):
        workers.places(schedule_of("cuda:1"), 1)

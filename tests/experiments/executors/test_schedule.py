"""What begins when, what is tried again, and who hears of it: without any worker, on a clock that tests set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import executors
from experiments.errors import BadConfig, CallbackFailed, FolderBusy, UnknownName
from experiments.executors.schedule import Answer, Outcome, Piece, Schedule, Tell, attempt, said
from experiments.work import Unit
from graphs.errors import BadFile, WriteFailed
from patching.errors import OutOfMemory


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def unit(folder: str, shard: int | None = None) -> Unit:
    return Unit({}, f"/nowhere/{folder}", shard)


def two_runs() -> list[list[Unit]]:
    return [[unit("a", 0), unit("a", 1), unit("b", 0)], [unit("a"), unit("b")]]


def made(stages: list[list[Unit]], *, retries: int = 2, **heard: Callable[..., None]) -> tuple[Schedule, Clock]:
    clock = Clock()
    tell = Tell(say=heard.get("say"), progress=heard.get("progress"), told=heard.get("told"))
    return Schedule(stages, retries=retries, tell=tell, clock=clock, wait=1.0), clock


def taken(schedule: Schedule, near: str = "") -> Piece:
    piece = schedule.next(near)
    assert piece is not None
    return piece


def test_what_gathers_a_run_waits_for_its_own_shards_alone() -> None:
    schedule, _ = made(two_runs())
    first, second, other = (taken(schedule) for _ in range(3))
    assert [str(piece.unit) for piece in (first, second, other)] == [
        "/nowhere/a, shard 0", "/nowhere/a, shard 1", "/nowhere/b, shard 0",
    ]  # fmt: skip
    assert schedule.next() is None
    schedule.report(other, Answer())
    gathers = taken(schedule)
    assert str(gathers.unit) == "/nowhere/b"
    schedule.report(first, Answer())
    assert schedule.next() is None
    schedule.report(second, Answer(did=False))
    schedule.report(gathers, Answer())
    schedule.report(taken(schedule), Answer())
    assert schedule.over
    assert [outcome.state for outcome in schedule.outcomes] == ["finished", "skipped", *["finished"] * 3]


def test_a_worker_gets_more_of_the_run_whose_model_it_holds() -> None:
    schedule, _ = made([[unit("a", 0), unit("a", 1), unit("b", 0), unit("b", 1)]])
    taken(schedule)
    piece = schedule.next("/nowhere/b")
    assert piece is not None
    assert str(piece.unit) == "/nowhere/b, shard 0"
    assert schedule.next("/nowhere/gone") is not None


def test_a_lost_piece_is_tried_again_later_each_time_and_then_no_more() -> None:
    heard: list[str] = []
    schedule, clock = made(two_runs(), say=heard.append)
    for wait in (1.0, 2.0):
        piece = taken(schedule, "/nowhere/a")
        schedule.lost(piece, "a worker was killed by SIGKILL")
        assert schedule.pause() == pytest.approx(wait)
        schedule.put_back(taken(schedule))  # others go on meanwhile
        clock.now += wait
        assert schedule.pause() == 0.0
    piece = taken(schedule, "/nowhere/a")
    assert (piece.attempts, str(piece.unit)) == (3, "/nowhere/a, shard 0")
    schedule.lost(piece, "a worker was killed by SIGKILL")
    assert schedule.pause() is None
    for _ in range(3):
        schedule.report(taken(schedule), Answer())
    assert schedule.over
    states = [outcome.state for outcome in schedule.outcomes]
    assert states == ["failed", "finished", "finished", "failed", "finished"]
    assert schedule.outcomes[0].error == "its worker was lost 3 times: a worker was killed by SIGKILL"
    assert "not begun: /nowhere/a, shard 0" in str(schedule.outcomes[3].error)
    assert "Attempt 2 of 3 in 1.0 s" in heard[0]


def test_a_wrong_run_fails_at_once_and_alone() -> None:
    schedule, _ = made(two_runs())
    schedule.report(taken(schedule), Answer(False, 0.1, "expected a task", again=False))
    assert str(taken(schedule).unit) == "/nowhere/b, shard 0"  # shard 1 of a is not begun
    errors = [piece.outcome.error if piece.outcome else None for piece in schedule.pieces]
    assert errors[:2] == ["expected a task", "not begun: expected a task"]
    assert errors[3] == "not begun: /nowhere/a, shard 0: expected a task"


def test_no_space_is_waited_for_and_then_the_run_is_given_up() -> None:
    schedule, clock = made(two_runs(), retries=1)
    full = Answer(False, 0.1, "cannot write: no space is left", again=True)
    schedule.report(taken(schedule, "/nowhere/a"), full)
    second = taken(schedule, "/nowhere/a")
    clock.now += 1.0
    schedule.report(taken(schedule, "/nowhere/a"), full)
    assert second.outcome is None  # still being done
    schedule.report(second, Answer())
    assert [outcome.state for outcome in schedule.outcomes] == ["failed", "finished", "failed"]
    assert str(taken(schedule).unit) == "/nowhere/b, shard 0"


def test_nothing_is_left_when_it_is_abandoned() -> None:
    heard: list[str] = []
    schedule, _ = made(two_runs(), say=heard.append)
    schedule.lost(taken(schedule), "x")
    taken(schedule)
    schedule.abandon("the cluster is gone")
    assert schedule.over
    assert not [line for line in heard if "is finished" in line]
    assert schedule.next() is None
    assert {outcome.error for outcome in schedule.outcomes} == {"the cluster is gone"}


@given(st.lists(st.integers(0, 3), max_size=200), st.integers(0, 3))
def test_whatever_happens_every_piece_has_one_outcome(events: list[int], retries: int) -> None:
    """Answers, losses and failures in any order: nothing is forgotten, nothing begun before its turn."""
    told: list[Outcome] = []
    schedule, clock = made(two_runs(), retries=retries, told=told.append)
    script = iter(events)
    running: list[Piece] = []
    for _ in range(1_000):
        if schedule.over:
            break
        piece = schedule.next()
        if piece is not None:
            earlier = [p for p in schedule.pieces if p.unit.folder == piece.unit.folder and p.unit.shard is not None]
            assert piece.unit.shard is not None or all(p.outcome and p.outcome.error is None for p in earlier)
            running.append(piece)
            if next(script, 0) == 0:
                continue
        if running:
            how = next(script, 0)
            done = running.pop(0)
            if how == 1:
                schedule.lost(done, "gone")
            else:
                schedule.report(done, Answer(error=None if how == 0 else "bad", again=how == 2))
        clock.now += 100.0
    assert schedule.over
    assert len(told) == len(schedule.pieces) == len(schedule.outcomes) == 5
    assert all(outcome.attempts <= retries + 1 for outcome in told)


def test_errors_are_one_line() -> None:
    def divide() -> bool:
        return bool(1 / 0)

    answer = attempt(divide)
    assert answer.error is not None
    assert answer.error.startswith("ZeroDivisionError: division by zero (test_schedule.py, line ")
    assert not answer.again
    assert said(BadFile("there is no file")) == "there is no file"


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (WriteFailed("no space"), True),
        (FolderBusy("busy"), True),
        (OSError(5, "Input/output error"), True),
        (MemoryError(), True),
        (OutOfMemory("expected one of the prompts at a time to fit"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("shapes do not match"), False),
        (BadFile("no file"), False),
        (BadConfig("wrong"), False),
        (KeyError("x"), False),
    ],
)
def test_what_is_worth_another_attempt(error: Exception, again: bool) -> None:
    import torch  # noqa: F401

    def fail() -> bool:
        raise error

    assert attempt(fail).again is again


def test_an_interruption_is_no_answer() -> None:
    def stop() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(stop)


def test_progress_counts_pieces_and_says_when_a_run_is_finished() -> None:
    counts: list[tuple[int, int]] = []
    heard: list[str] = []
    schedule, clock = made(two_runs(), say=heard.append, progress=lambda done, total: counts.append((done, total)))
    for _ in range(5):
        piece = taken(schedule)
        clock.now += 10.0
        schedule.report(piece, Answer())
    assert counts == [(done, 5) for done in range(1, 6)]
    assert heard[0] == "/nowhere/a is finished: 4 of 5 pieces; about 10 s left."
    assert heard[-1] == "/nowhere/b is finished: 5 of 5 pieces."


def test_a_listener_that_fails_is_not_told_again_and_stops_nothing(tmp_path: Path) -> None:
    calls: list[Any] = []

    def broken(done: int, total: int) -> None:
        calls.append(done)
        raise RuntimeError("no such panel")

    heard: list[str] = []
    stages = [[Unit({"schema": "nonsense"}, str(tmp_path / name)) for name in "ab"]]
    with pytest.raises(CallbackFailed, match=r"progress raised RuntimeError: no such panel \(test_schedule") as caught:
        executors.run("process", stages, progress=broken, say=heard.append)
    assert calls == [1]
    assert [outcome.state for outcome in caught.value.outcomes] == ["failed", "failed"]
    assert any("it is not called again" in line for line in heard)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("workers", {"workers": 0}, "workers to be a whole number of 1 or more; got 0"),
        ("workers", {"retries": -1}, "retries to be a whole number of 0 or more; got -1"),
        ("workers", {"address": "here:1"}, "executor ray for an address"),
        ("process", {"workers": 2}, "one worker in this process; got 2"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=message):
        executors.run(name, [[Unit({"schema": "x"}, str(tmp_path / "a"))]], **options)


def test_an_unknown_executor_has_neighbours() -> None:
    with pytest.raises(UnknownName, match="Did you mean workers"):
        executors.run("worker", [])


def test_nothing_to_do_is_done() -> None:
    assert executors.run("workers", []) == []

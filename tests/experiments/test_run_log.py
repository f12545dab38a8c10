"""The log of a run: whole lines, in order, whatever happens to the process, the clock or the file."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import run_log
from experiments.errors import BadRun
from experiments.progress_display import Bars, Lines, Silence, bar
from experiments.run_directory import claimed
from experiments.run_log import LOG, Entry, RunLog, Told, read
from patching.chunks import LessMemory

ROOT = Path(__file__).parents[2]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = RunLog(tmp_path / LOG)
    log.write("said", text="Loading …")
    log.write("progress", done=3, total=9, left=0.5, what={"a": [1, None, True]})
    first, second = read(log.path)
    assert (first.event, first.fields, first.number, first.process) == ("said", {"text": "Loading …"}, 1, os.getpid())
    assert second.fields == {"done": 3, "total": 9, "left": 0.5, "what": {"a": [1, None, True]}}
    lines = log.path.read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2]


@given(st.dictionaries(st.sampled_from("abcde"), st.floats() | st.text() | st.integers() | st.none(), max_size=4))
@settings(max_examples=50, deadline=None)
def test_every_line_is_one_line_of_strict_json(fields: dict) -> None:
    entry = Entry(1, "2026-01-01T00:00:00.000Z", 1, "said", {k: run_log._plain(v) for k, v in fields.items()})
    line = entry.to_line()
    assert "\n" not in line
    assert Entry.of_line(line) == entry
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            assert entry.fields[name] == str(value)
        else:
            assert entry.fields[name] == value


@pytest.mark.parametrize("cut", [1, 5, 40, 10_000])
def test_a_torn_last_line_is_left_out_and_written_past(cut: int, tmp_path: Path) -> None:
    log = RunLog(tmp_path / LOG)
    for number in range(4):
        log.write("said", text=f"line {number}")
    data = log.path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    log.path.write_bytes(data[: max(last, len(data) - 1 - cut)])
    assert [entry.fields["text"] for entry in read(log.path)] == ["line 0", "line 1", "line 2"]
    RunLog(log.path).write("resumed")
    found = read(log.path)
    assert [entry.event for entry in found] == ["said", "said", "said", "resumed"]
    assert [entry.number for entry in found] == [1, 2, 3, 4]


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe\x00", b"[]\n{}\nnull\n", b'{"number": true}\n', b"[" * 100_000])
def test_what_is_no_log_is_no_trouble(junk: bytes, tmp_path: Path) -> None:
    path = tmp_path / LOG
    path.write_bytes(junk)
    assert read(path) == []
    assert RunLog(path).write("said").number == 1
    assert [entry.event for entry in read(path)] == ["said"]


def test_a_clock_that_goes_back_does_not_change_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(["2026-03-01T00:00:03.000Z", "2026-03-01T00:00:01.000Z", "2025-01-01T00:00:00.000Z"])
    monkeypatch.setattr(run_log, "_now", lambda: next(times))
    for text in ("first", "second", "third"):
        RunLog(tmp_path / LOG).write("said", text=text)  # each as a process of its own would
    found = read(tmp_path / LOG)
    assert [entry.fields["text"] for entry in found] == ["first", "second", "third"]
    assert [entry.number for entry in found] == [1, 2, 3]
    assert [entry.time for entry in found] != sorted(entry.time for entry in found)


WRITER = """
import sys
from pathlib import Path
from experiments.run_log import RunLog
log = RunLog(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    log.write("said", writer=sys.argv[3], at=number, text="x" * 300)
"""


def writer(path: Path, count: int, name: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), str(count), name]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_several_processes_write_whole_lines_with_numbers_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / LOG
    writers = [writer(path, 150, name) for name in "abc"]
    for process in writers:
        assert process.wait(timeout=120) == 0
        process.stdout.close()
    assert len(path.read_text().splitlines()) == 450
    found = read(path)
    assert sorted(entry.number for entry in found) == list(range(1, 451))
    for name in "abc":
        assert [entry.fields["at"] for entry in found if entry.fields["writer"] == name] == list(range(150))


def test_kill_9_leaves_at_most_one_torn_line(tmp_path: Path) -> None:
    path = tmp_path / LOG
    for wait in (0.01, 0.03, 0.08):
        process = writer(path, 1_000_000, str(wait))
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        process.stdout.close()
    lines = [line for line in path.read_text().split("\n") if line]
    found = read(path)
    assert found
    assert len(lines) - len(found) <= 3
    assert [entry.number for entry in found] == list(range(1, len(found) + 1))
    for wait in ("0.01", "0.03", "0.08"):
        places = [entry.fields["at"] for entry in found if entry.fields["writer"] == wait]
        assert places == list(range(len(places)))


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "no" / "such" / LOG)
    assert [log.write("said").number, log.write("said").number] == [1, 2]
    assert log.refused is not None
    assert str(log.path) in log.refused


# --- what goes into it ----------------------------------------------------------------------------------------------


def test_a_display_tells_the_log_what_it_shows(tmp_path: Path) -> None:
    log = RunLog(tmp_path / LOG)
    show = Told(Silence(), log.write, between=0.0)
    show.say("Loading …")
    with show.steps("acdc", unit="edge", done=2) as progress:
        for done in (3, 4):
            progress(done, 4)
    events = [(entry.event, dict(entry.fields)) for entry in read(log.path)]
    seconds = events[-1][1].pop("seconds")
    assert 0 <= seconds < 60
    assert events == [
        ("said", {"text": "Loading …"}),
        ("began", {"what": "acdc", "unit": "edge", "done": 2}),
        ("progress", {"what": "acdc", "unit": "edge", "done": 3, "total": 4}),
        ("ended", {"what": "acdc", "unit": "edge", "done": 4, "total": 4}),
    ]


def test_progress_is_told_now_and_then(tmp_path: Path) -> None:
    log = RunLog(tmp_path / LOG)
    with Told(Silence(), log.write).steps("acdc", unit="edge") as progress:
        for done in range(100_000):
            progress(done, 100_000)
    assert len(read(log.path)) <= 4


def test_a_run_directory_keeps_a_log_from_start_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder, {"config": {"tau": 0.1}}, overwrite=False, resume=False) as directory:
        directory.told(Silence()).say("Loading …")
        directory.publish(lambda staging: (staging / "report.json").write_text('{"a": {"b": 2}, "c": "x"}') and None)
        directory.set("finished")
    found = read(folder / LOG)
    assert [entry.event for entry in found] == ["started", "said", "published", "finished", "closed"]
    assert found[0].fields == {"config": {"tau": 0.1}}
    assert found[2].fields == {"files": ["report.json"], "numbers": {"a.b": 2}}


def test_a_failed_run_says_so_and_a_resumed_one_goes_on_in_the_same_log(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with contextlib.suppress(OSError), claimed(folder, {"config": {}}, overwrite=False, resume=False):
        (folder / "samples").mkdir()
        raise OSError("no space")
    with claimed(folder, {"config": {}}, overwrite=False, resume=True) as directory:
        directory.set("finished")
    events = [entry.event for entry in read(folder / LOG)]
    assert events == ["started", "failed", "closed", "resumed", "finished", "closed"]


def test_nothing_is_left_of_a_run_that_failed_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="no"), claimed(folder, {"config": {}}, overwrite=False, resume=False):
        raise ValueError("no")
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(ValueError, match="no"), claimed(folder, {"config": {}}, overwrite=False, resume=False):
        raise ValueError("no")
    assert list(folder.iterdir()) == []


def test_a_run_that_replaces_another_has_a_log_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in range(2):
        with claimed(folder, {"config": {"n": number}}, overwrite=True, resume=False) as directory:
            directory.set("finished")
    assert [entry.fields.get("config") for entry in read(folder / LOG)] == [{"n": 1}, None, None]


def test_short_memory_is_in_the_log_and_said_in_a_line(tmp_path: Path) -> None:
    said: list[str] = []

    class Show(Silence):
        def say(self, text: str) -> None:
            said.append(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with claimed(tmp_path / "run", {"config": {}}, overwrite=False, resume=False) as directory:
            directory.told(Show())
            warnings.warn("memory ran short with 8 masks at a time; going on with 4.", LessMemory, stacklevel=1)
            directory.set("finished")
    assert said == ["Note: memory ran short with 8 masks at a time; going on with 4."]
    assert "memory ran short" in [e.fields.get("text", "") for e in read(tmp_path / "run" / LOG)][1]


def test_a_folder_without_a_log_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(BadRun, match=r"no log\.jsonl"):
        run_log.of(tmp_path)


def test_an_entry_is_shown_without_what_a_terminal_would_obey() -> None:
    shown = str(Entry(1, "2026-01-01T00:00:00.000Z", 1, "said", {"text": "\x1b[31mred\x07"}))
    assert "\x1b" not in shown
    assert "\x07" not in shown


# --- bars for scripts -----------------------------------------------------------------------------------------------


def test_a_bar_for_a_script_writes_lines_into_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.progress_display.display", lambda quiet: Lines(sys.stderr, between=0.0))
    progress = bar("ACDC", unit="edge")
    for done in (1, 2, 4, 1, 4):  # twice the work with one callable
        progress(done, 4)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", about")[0] for line in lines] == [
        "ACDC: 1 of 4 edges (25%)",
        "ACDC: 2 of 4 edges (50%)",
        "ACDC: 1 of 4 edges (25%)",
    ]


def test_a_line_is_said_above_the_bar_and_not_into_it() -> None:
    stream = io.StringIO()
    show = Bars(stream)
    with show.steps("runs", unit="piece") as progress:
        progress(1, 4)
        show.say("[1 of 4] finished.")
        progress(4, 4)
    lines = [line.rpartition("\r")[2].rstrip() for line in stream.getvalue().split("\n")]
    assert lines[0] == "[1 of 4] finished."
    assert lines[1].startswith("runs: 100%")

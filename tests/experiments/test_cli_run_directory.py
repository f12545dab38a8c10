"""Run directories and decision logs by themselves: claims, plans, torn lines."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import decision_log
from experiments.config import Config
from experiments.decision_log import Log, Row, Writer
from experiments.errors import BadRun, FolderBusy, FolderTaken
from experiments.folder_lock import LOCK
from experiments.run_directory import claimed, differences, emptied, plan, results_of, shared, status
from experiments.saved_runs import circuit_at, saved

RUN = {"wiretrace": "1", "config": {"tau": 0.1}, "model_files": {"a": "0"}}
ROWS = [Row(f"m{layer}->logits", layer % 2 == 0, None if layer % 5 == 0 else layer / 7) for layer in range(12)]


def write(path, rows, *, run="mine"):
    with Writer(path, run=run, log=decision_log.read(path, run=run)) as writer:
        for row in rows:
            writer.append(row.name, row.kept, row.delta)


def decided(path, *, run="mine"):
    """What a log holds, times apart."""
    return [replace(row, seconds=0.0) for row in decision_log.read(path, run=run).rows]


def test_a_log_gives_its_rows_back(tmp_path):
    path = tmp_path / "log"
    write(path, ROWS[:5])
    write(path, ROWS[5:])
    assert decided(path) == decided(path, run=None) == ROWS
    times = [row.seconds for row in decision_log.read(path, run="mine").rows]
    assert times == sorted(times)
    assert decision_log.count(path) == len(ROWS)


@settings(deadline=None)
@given(cut=st.integers(0, 2000))
def test_a_log_cut_anywhere_is_its_beginning_and_can_go_on(cut, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "log"
    path.unlink(missing_ok=True)
    write(path, ROWS)
    path.write_bytes(path.read_bytes()[:cut])
    kept = decided(path)
    assert kept == ROWS[: len(kept)]
    assert decision_log.read(path, run="mine").damaged is None
    write(path, ROWS[len(kept) :])
    assert decided(path) == ROWS


def test_decisions_of_another_run_do_not_count(tmp_path):
    path = tmp_path / "log"
    write(path, ROWS)
    assert decision_log.read(path, run="other") == Log((), 0)
    write(path, ROWS[:1], run="other")
    assert decided(path, run="other") == ROWS[:1]


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"name":1,"kept":true,"delta":0}', b"\xff\xfe", b"[" * 99_999])
def test_what_comes_before_a_damaged_line_counts(tmp_path, line):
    path = tmp_path / "log"
    write(path, ROWS)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:4], line, *lines[4:], b""]))
    found = decision_log.read(path, run="mine")
    assert (decided(path), found.damaged) == (ROWS[:3], 5)
    write(path, ROWS[3:])
    assert decided(path) == ROWS


@settings(deadline=None)
@given(place=st.integers(0, 5000), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(place, bit, tmp_path_factory):
    """Whatever is read is a beginning of what was decided."""
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.unlink(missing_ok=True)
    write(path, ROWS)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    found = decided(path)
    assert found == ROWS[: len(found)]
    assert len(found) < len(ROWS)


def test_a_log_does_not_follow_a_link(tmp_path):
    from graphs.errors import WriteFailed

    (tmp_path / "precious").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(WriteFailed):
        write(tmp_path / "log", ROWS)
    assert (tmp_path / "precious").read_text() == "mine"


def test_plans(tmp_path):
    out = tmp_path / "run"

    def now(**flags):
        return plan(out, RUN, **({"overwrite": False, "resume": False} | flags))

    assert now() == now(resume=True) == now(overwrite=True) == "new"
    with claimed(out, RUN, overwrite=False, resume=False) as directory:
        pass
    assert now(resume=True) == "resume"
    assert now(overwrite=True) == "replace"
    with pytest.raises(FolderTaken, match=r"killed after nothing that is kept\. Go on with --resume"):
        now()
    (out / "shards").mkdir()
    (out / "shards" / "shard-000000.safetensors").touch()
    with pytest.raises(FolderTaken, match=r"killed after 1 shard\. Go on with --resume"):
        now()
    directory.set("finished")
    assert now() == now(resume=True) == "finished"
    with pytest.raises(FolderTaken, match=r"tau is 0\.1 there, 0\.2 here"):
        plan(out, RUN | {"config": {"tau": 0.2}}, overwrite=False, resume=True)


def test_a_claim_is_for_one_at_a_time(tmp_path):
    with (
        claimed(tmp_path / "run", RUN, overwrite=False, resume=False),
        pytest.raises(FolderTaken, match="another process"),
        claimed(tmp_path / "run", RUN, overwrite=True, resume=False),
    ):
        pytest.fail("claimed twice")
    with claimed(tmp_path / "run", RUN, overwrite=False, resume=True) as directory:
        assert directory.resumed


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_the_lock_is_on_a_file_which_goes_with_it(tmp_path):
    """Other machines see locks of files, not of folders: this one holds no lock of the folder."""
    import fcntl

    out = tmp_path / "run"
    out.mkdir()
    handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT)
    assert plan(out, RUN, overwrite=False, resume=False) == "new"
    fcntl.flock(handle, fcntl.LOCK_EX)
    for resume in (False, True):
        with pytest.raises(FolderBusy), claimed(out, RUN, overwrite=False, resume=resume):
            pytest.fail("claimed twice")
    with pytest.raises(FolderBusy), shared(out, RUN):
        pytest.fail("shared what another has alone")
    os.close(handle)
    with claimed(out, RUN, overwrite=False, resume=False):
        assert (out / LOCK).exists()
    assert not (out / LOCK).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_lock_is_taken_again_if_its_file_was_removed_meanwhile(tmp_path, monkeypatch):
    import fcntl

    flock, times = fcntl.flock, []

    def removed_before(handle, how):
        times.append(how)
        if len(times) == 1:
            (tmp_path / "run" / LOCK).unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with claimed(tmp_path / "run", RUN, overwrite=False, resume=False):
        assert len(times) >= 2
        with pytest.raises(FolderBusy), claimed(tmp_path / "run", RUN, overwrite=True, resume=False):
            pytest.fail("claimed twice")


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_where_there_can_be_no_such_file_the_folder_is_locked(tmp_path):
    out = tmp_path / "run"
    with claimed(out, RUN, overwrite=False, resume=False):
        pass
    (out / LOCK).mkdir()
    with (
        claimed(out, RUN, overwrite=False, resume=True),
        pytest.raises(FolderBusy),
        claimed(out, RUN, overwrite=True, resume=False),
    ):
        pytest.fail("claimed twice")


def test_nothing_is_put_into_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for claim in (shared(tmp_path, RUN), claimed(tmp_path, RUN, overwrite=True, resume=False)):
        with pytest.raises(FolderTaken, match="left alone"), claim:
            pytest.fail("claimed")
    with pytest.raises(FolderTaken, match="left alone"):
        emptied(tmp_path, RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_emptying_leaves_what_is_of_others(tmp_path):
    out = tmp_path / "run"
    with claimed(out, RUN, overwrite=False, resume=False) as directory:
        directory.publish(lambda folder: (folder / "circuit.json").write_text("{}") and None)
        directory.set("finished")
        with pytest.raises(FolderBusy):
            emptied(out, RUN)
    (out / "notes.txt").write_text("mine")
    other = RUN | {"config": {"tau": 0.2}}
    emptied(out, other)
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "status.json"]
    assert plan(out, other, overwrite=False, resume=True) == "resume"


def test_results_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync

    def sync(handle):
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    with claimed(tmp_path / "run", RUN, overwrite=False, resume=False) as directory:
        directory.publish(lambda folder: [(folder / name).write_text("{}") for name in ("circuit.json", "report.md")])
    assert {(tmp_path / "run" / name).stat().st_ino for name in ("circuit.json", "report.md")} <= synced


def a_run(folder, identity, state):
    with claimed(folder, identity, overwrite=False, resume=False) as directory:
        directory.set(state)
    return folder


def test_an_unfinished_run_is_gone_on_with_by_a_command_that_there_is(tmp_path):
    search = {"wiretrace": "1", "config": Config("ioi", "zoo:ioi").to_dict()}
    with pytest.raises(BadRun, match=r"is interrupted\. Go on with: wiretrace discover ioi .*--resume"):
        circuit_at(a_run(tmp_path / "search", search, "interrupted"))
    patch = RUN | {"command": "patch"}
    with pytest.raises(BadRun, match=r"is interrupted\. Give the command that began it again") as error:
        circuit_at(a_run(tmp_path / "patch", patch, "interrupted"))
    assert "--resume" not in str(error.value)
    with pytest.raises(FolderTaken, match="Give the command that began it again") as error:
        plan(tmp_path / "patch", patch, overwrite=False, resume=False)
    assert "--resume" not in str(error.value)
    with pytest.raises(BadRun, match="holds one of `wiretrace patch`"):
        circuit_at(a_run(tmp_path / "patched", patch, "finished"))


def test_results_that_are_gone_are_made_again_with_overwrite(tmp_path):
    search = {"wiretrace": "1", "config": Config("ioi", "zoo:ioi").to_dict()}
    with pytest.raises(BadRun, match=r"report\.json cannot be read .* Make the run again with --overwrite"):
        saved(a_run(tmp_path / "search", search, "finished"))
    for error in (FileNotFoundError(2, "No such file"), KeyError("worth"), ValueError("torn.")):
        with pytest.raises(BadRun, match=r"[^.]\. Make the run again with --overwrite\."), results_of(tmp_path):
            raise error


def test_results_appear_together_or_not_at_all(tmp_path):
    def half(folder):
        (folder / "circuit.json").write_text("{}")
        raise OSError(28, "No space left on device")

    with claimed(tmp_path / "run", RUN, overwrite=False, resume=False) as directory:
        with pytest.raises(ValueError, match="No space left"):
            directory.publish(half)
        assert names(directory.path) == ["log.jsonl", "status.json"]
        directory.publish(lambda folder: (folder / "circuit.json").write_text("{}") and None)
        assert (directory.path / "circuit.json").read_text() == "{}"


def test_results_of_a_replaced_run_are_gone_before_the_new_one_begins(tmp_path):
    with claimed(tmp_path / "run", RUN, overwrite=False, resume=False) as directory:
        directory.publish(lambda folder: (folder / "circuit.json").write_text("{}") and None)
        directory.set("finished")
    other = RUN | {"config": {"tau": 0.2}}
    with claimed(tmp_path / "run", other, overwrite=True, resume=False) as directory:
        assert names(directory.path) == ["log.jsonl", "status.json"]
        there = status(directory.path)
        assert there is not None
        assert (there.state, there.identity) == ("running", other)


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '{"schema": "wiretrace-run/1"}', "[" * 100_000, "\xff"])
def test_a_status_that_is_none_makes_no_run(tmp_path, content):
    (tmp_path / "status.json").write_text(content, encoding="latin-1")
    assert status(tmp_path) is None


def test_a_status_with_more_or_less_in_it_makes_no_run(tmp_path):
    with claimed(tmp_path / "run", RUN, overwrite=False, resume=False):
        record = json.loads((tmp_path / "run" / "status.json").read_text())
    for wrong in (record | {"state": "done"}, record | {"extra": 1}, record | {"identity": "a"}):
        (tmp_path / "run" / "status.json").write_text(json.dumps(wrong))
        assert status(tmp_path / "run") is None


def test_differences_are_said_in_words():
    assert differences(RUN, RUN) == []
    assert differences(RUN, RUN | {"wiretrace": "2"}) == ["wiretrace is 1 there, 2 here"]
    assert differences(RUN, RUN | {"config": {"tau": 0.1, "n": 3}}) == ["n is not set there, 3 here"]
    assert differences(RUN, RUN | {"model_files": {"a": "1"}}) == ["the model's files have changed since"]
    assert differences(RUN, RUN | {"model_files": {}}) == []
    some, others = ({"dictionary_files": {"m0": {"w": digest}}} for digest in "01")
    assert differences(some, others) == ["the dictionaries' files have changed since"]

"""Tests run as root too, where permissions do not bind: what the system refuses is simulated."""

from __future__ import annotations

import errno
import os
import time

import pytest
from hypothesis import given, settings

from graphs import atomic
from graphs.atomic import read_text, remove_leftovers, replacing, write_bytes, write_text
from graphs.circuit import Circuit
from graphs.components import Architecture
from graphs.errors import BadFile, WiretraceError, WriteFailed
from tests.graphs.strategies import TEXT


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    return path


def assert_untouched(path):
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def write_half(path, *, then):
    with replacing(path) as file:
        file.write(b"half")
        raise then


def refuse(monkeypatch, name, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, name, refused)


@settings(max_examples=50)
@given(TEXT)
def test_text_is_written_and_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text"
    path.write_bytes(b"old")
    if any("\ud800" <= character <= "\udfff" for character in text):
        with pytest.raises(WriteFailed, match="lone surrogate"):
            write_text(path, text)
        assert path.read_bytes() == b"old"
    else:
        write_text(path, text)
        assert path.read_bytes() == text.encode()
        assert read_text(path) == text.removeprefix("\ufeff")


def test_new_content_takes_the_place_of_the_old(old):
    write_bytes(old, b"new")
    assert old.read_bytes() == b"new"
    write_bytes(str(old), b"newer")
    assert old.read_bytes() == b"newer"
    assert os.listdir(old.parent) == [old.name]


def test_a_reader_never_sees_half_a_file(old):
    with replacing(old) as file:
        file.write(b"half")
        file.flush()
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == b"half"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(old, interruption):
    with pytest.raises(interruption):
        write_half(old, then=interruption)
    assert_untouched(old)


@pytest.mark.parametrize("name", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "permission denied; choose a folder that you may write to"),
        (errno.EROFS, "the file system is read-only"),
        (errno.ENOSPC, "no space is left on the disk"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_what_the_system_refuses_becomes_a_sentence(old, monkeypatch, name, number, said):
    with monkeypatch.context() as patched:
        refuse(patched, name, number)
        with pytest.raises(WriteFailed) as error:
            write_bytes(old, b"new")
    assert str(error.value).startswith(f"cannot write {old}: ")
    assert said in str(error.value)
    assert_untouched(old)


def test_a_disk_that_fills_up_while_writing_is_told(old):
    with pytest.raises(WriteFailed, match="no space is left"):
        write_half(old, then=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert_untouched(old)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_told(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(WriteFailed, match="permission denied"):
        write_bytes(tmp_path / "file", b"new")


def test_a_folder_that_cannot_be_flushed_is_no_failure(old, monkeypatch):
    flush, calls = os.fsync, []

    def only_the_file(descriptor):
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.EINVAL, "no")
        flush(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", only_the_file)
    write_bytes(old, b"new")
    assert old.read_bytes() == b"new"
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing/file", "its folder does not exist; make it first"),
        ("report.json/file", "a file, not a folder"),
        ("", "there is a folder at that path"),
        (".", "there is a folder at that path"),
        ("nul\0byte", "null byte"),
        ("bad\udcffname/file", "its folder does not exist"),
    ],
)
def test_paths_that_cannot_be_are_refused(old, path, said):
    with pytest.raises(WriteFailed) as error:
        write_bytes(f"{old.parent}/{path}", b"new")
    assert said in str(error.value)
    assert str(error.value).isprintable()
    assert_untouched(old)


def test_a_name_that_is_too_long_is_refused(old):
    with pytest.raises(WriteFailed, match="too long"):
        write_bytes(old.parent / ("x" * 5_000), b"new")
    assert_untouched(old)


def test_a_circuit_that_cannot_be_saved_leaves_the_old_one(tmp_path, monkeypatch):
    path, circuit = tmp_path / "circuit.json", Circuit(Architecture(1, 1), [])
    circuit.save(path)
    with monkeypatch.context() as patched:
        refuse(patched, "replace", errno.ENOSPC)
        with pytest.raises(WiretraceError, match="no space"):
            Circuit(Architecture(9, 9), []).save(path)
    assert Circuit.load(path) == circuit
    assert os.listdir(tmp_path) == ["circuit.json"]


def test_leftovers_of_killed_processes_are_found_by_their_age(tmp_path):
    for name in (".wiretrace-0123.part", ".wiretrace-4567.part", "mine.part", ".wiretrace-mine"):
        (tmp_path / name).write_bytes(b"")
    hour_ago = time.time() - 3_700
    os.utime(tmp_path / ".wiretrace-0123.part", (hour_ago, hour_ago))
    assert remove_leftovers(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == [".wiretrace-4567.part", ".wiretrace-mine", "mine.part"]
    assert remove_leftovers(tmp_path, older_than=-1) == 1
    assert remove_leftovers(tmp_path / "missing") == 0


# ----------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing", "there is no file .*missing; check the path"),
        ("missing/file", "there is no file"),
        ("", "is a folder"),
        ("report.json/file", "cannot read .*Not a directory"),
        ("nul\0byte", "cannot read .*null byte"),
    ],
)
def test_what_is_no_file_is_told(old, path, said):
    with pytest.raises(BadFile, match=said):
        read_text(f"{old.parent}/{path}")


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFile, match="not a regular file"):
        read_text(tmp_path / "pipe")


def test_files_that_are_too_large_or_no_text_are_refused(old):
    assert read_text(old, limit=3) == "old"
    with pytest.raises(BadFile, match="the most that is read"):
        read_text(old, limit=2)
    old.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(BadFile, match=r"not UTF-8 text \(byte 0\)"):
        read_text(old)


def test_a_file_that_may_not_be_read_is_told(old, monkeypatch):
    refuse(monkeypatch, "open", errno.EACCES)
    with pytest.raises(BadFile, match=r"cannot read .*Permission denied"):
        read_text(old)

"""The store: rows are what the directories say, whatever happens to them, to the index, the disk or the clock."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from experiments.errors import BadRun
from experiments.store import Store, frame, index
from experiments.store.rows import folders, read

ROOT = Path(__file__).resolve().parents[3]


def as_they_are(root: Path) -> list[dict]:
    """The rows without any index: what `Store.rows` must always give."""
    return [read(root, run) for run, _ in folders(root)]


@pytest.fixture
def runs(make, tmp_path) -> Path:
    for seed, method in enumerate(["atp", "acdc", "random"]):
        make(f"run-{method}", method=method, seed=seed, faithfulness=0.3 * (seed + 1))
    make("broken", state="failed", error="NoMemory: too little")
    make("deep/down/here", seed=9)
    return tmp_path / "runs"


def test_rows_are_settings_and_results(runs):
    rows = Store(runs).rows()
    assert [row["run"] for row in rows] == ["broken", "deep/down/here", "run-acdc", "run-atp", "run-random"]
    acdc = rows[2]
    assert (acdc["state"], acdc["command"], acdc["method"], acdc["seed"]) == ("finished", "discover", "acdc", 1)
    assert (acdc["options.tau"], acdc["edges"], acdc["share"]) == (0.05, 10, 0.1)
    assert acdc["faithfulness"] == pytest.approx(0.6)
    assert (acdc["seconds"], acdc["device"]) == (1.5, "cpu")
    assert rows[0]["error"] == "NoMemory: too little"
    assert "faithfulness" not in rows[0]


def test_the_index_changes_nothing(runs):
    first = Store(runs).rows()
    assert (runs / index.FILE).is_file()
    assert Store(runs).rows() == first == as_they_are(runs)


def test_the_index_is_used(runs, monkeypatch):
    Store(runs).rows()
    monkeypatch.setattr("experiments.store.read", lambda *_: pytest.fail("a run was read again"))
    assert len(Store(runs).rows()) == 5


CHANGES = {
    "moved": lambda runs: (runs / "run-atp").rename(runs / "moved"),
    "copied": lambda runs: shutil.copytree(runs / "run-atp", runs / "copied"),
    "deleted": lambda runs: shutil.rmtree(runs / "run-atp"),
    "report gone": lambda runs: (runs / "run-atp" / "report.json").unlink(),
    "status gone": lambda runs: (runs / "run-atp" / "status.json").unlink(),
    "report torn": lambda runs: (runs / "run-atp" / "report.json").write_text('{"evaluation": {'),
    "report of lists": lambda runs: (runs / "run-atp" / "report.json").write_text("[]"),
    "status torn": lambda runs: (runs / "run-atp" / "status.json").write_text("{"),
    "deep nesting": lambda runs: (runs / "run-atp" / "report.json").write_text("[" * 100_000),
    "touched back in time": lambda runs: os.utime(runs / "run-atp" / "report.json", (1, 1)),
    "replaced by a file": lambda runs: (shutil.rmtree(runs / "run-atp"), (runs / "run-atp").write_text("")),
    "a link to itself": lambda runs: (runs / "loop").symlink_to(runs),
    "a foreign folder": lambda runs: (runs / "notes" / "a").mkdir(parents=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_happens_to_directories_is_noticed(runs, change):
    Store(runs).rows()
    CHANGES[change](runs)
    store = Store(runs)
    assert store.rows() == as_they_are(runs)
    assert store.note is None
    assert Store(runs).rows() == as_they_are(runs)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("report gone", "there is no file"),
        ("status gone", "status.json is missing"),
        ("report torn", "cannot be read: JSONDecodeError"),
        ("status torn", "status.json cannot be read"),
        ("report of lists", "cannot be read: TypeError"),
    ],
)
def test_a_half_deleted_run_is_damaged_and_says_what_is_gone(runs, change, error):
    CHANGES[change](runs)
    (row,) = [row for row in Store(runs).rows() if row["run"] == "run-atp"]
    assert row["state"] == "damaged"
    assert error in str(row["error"])


def test_a_change_of_the_same_size_at_the_same_time_is_noticed(runs):
    path = runs / "run-atp" / "report.json"
    Store(runs).rows()
    before = path.stat()
    changed = path.read_text().replace('"n_edges": 10', '"n_edges": 77')
    (runs / "new").write_text(changed)
    os.utime(runs / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(runs / "new", path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    (row,) = [row for row in Store(runs).rows() if row["run"] == "run-atp"]
    assert row["edges"] == 77


def test_a_clock_that_goes_back_gives_no_negative_times(make, tmp_path):
    folder = make("a", state="failed")
    path = folder / "status.json"
    path.write_text(path.read_text().replace("2026-01-01T00:00:09Z", "2025-01-01T00:00:00Z"))
    (row,) = Store(tmp_path / "runs").rows()
    assert "seconds" not in row


# ------------------------------------------------------------------------------------------------- the index is bad


def other_version(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={version}")
    connection.commit()
    connection.close()


def torn_row(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE runs SET row = '{' WHERE run = 'run-atp'")
    connection.commit()
    connection.close()


BAD_INDEX = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"no database at all" * 500),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "older": lambda path: other_version(path, 0),
    "torn row": torn_row,
}


@pytest.mark.parametrize("kind", BAD_INDEX)
def test_a_bad_index_is_made_anew(runs, kind, monkeypatch):
    Store(runs).rows()
    BAD_INDEX[kind](runs / index.FILE)
    store = Store(runs)
    assert store.rows() == as_they_are(runs)
    assert store.note is None
    monkeypatch.setattr("experiments.store.read", lambda *_: pytest.fail("the index was not made anew"))
    assert len(Store(runs).rows()) == 5


@limits(max_examples=12, deadline=None)
@given(data=st.data())
def test_no_damage_of_the_index_changes_rows(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    folder = root / "a"
    folder.mkdir()
    (folder / "status.json").write_text("{")
    Store(root).rows()
    path = root / index.FILE
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 30))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    assert Store(root).rows() == as_they_are(root)


def test_a_newer_index_is_left_alone(runs):
    Store(runs).rows()
    other_version(runs / index.FILE, index.VERSION + 1)
    before = (runs / index.FILE).read_bytes()
    store = Store(runs)
    assert store.rows() == as_they_are(runs)
    assert "newer version" in str(store.note)
    assert (runs / index.FILE).read_bytes() == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_store_that_cannot_be_written_is_read_all_the_same(runs, number, monkeypatch):
    connect = sqlite3.connect

    def refused(name: str, **options: object) -> sqlite3.Connection:
        if "mode=rwc" in name:
            raise sqlite3.OperationalError(os.strerror(number))
        return connect(name, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(sqlite3, "connect", refused)
    store = Store(runs)
    assert store.rows() == as_they_are(runs)
    assert os.strerror(number) in str(store.note)
    assert not (runs / index.FILE).exists()
    with pytest.raises(BadRun, match=r"cannot write .*index\.sqlite"):
        store.rebuild()


def test_looking_without_writing_writes_nothing(runs):
    before = sorted(path.name for path in runs.iterdir())
    Store(runs).rows(write=False)
    assert sorted(path.name for path in runs.iterdir()) == before


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(BadRun, match="No such file"):
        Store(tmp_path / "nowhere").rows()
    assert Store(tmp_path).rows() == []
    assert list(tmp_path.iterdir()) == []


def test_one_run_is_a_store_of_one(runs):
    (row,) = Store(runs / "run-atp").rows()
    assert (row["run"], row["method"]) == (".", "atp")
    assert not (runs / "run-atp" / index.FILE).exists()


WRITER = """
import sys
from pathlib import Path
from experiments.store import Store
root = Path(sys.argv[1])
for turn in range(12):
    rows = Store(root).rows() if turn % 5 else Store(root).rebuild()
    assert len(rows) >= 5, len(rows)
print("done")
"""


def test_two_processes_index_at_once_and_one_more_is_killed(runs, make):
    words = [sys.executable, "-c", WRITER, str(runs)]
    others = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    doomed = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for turn in range(20):
        make(f"more-{turn}", seed=100 + turn)
        assert Store(runs).rows()[0]["run"] == "broken"
        if turn == 10:
            doomed.kill()
    doomed.communicate()
    for process in others:
        assert process.communicate(timeout=120)[0] == "done\n"
        assert process.returncode == 0
    store = Store(runs)
    assert store.rows() == as_they_are(runs)
    assert store.note is None
    assert len(store.rows()) == 25


def test_frame_is_one_row_per_run(runs):
    found = frame(runs)
    assert list(found["run"]) == [row["run"] for row in Store(runs).rows()]
    assert found.set_index("run").loc["run-acdc", "options.tau"] == 0.05
    assert Path(found["folder"][0]) == runs / "broken"
    assert found.loc[found["method"] == "random", "faithfulness"].item() == pytest.approx(0.9)
    assert found["faithfulness"].isna().sum() == 1


def test_five_hundred_runs_are_listed_in_a_moment(tmp_path, make):
    source = make("a", seed=1)
    status, report = ((source / name).read_text() for name in ("status.json", "report.json"))
    for number in range(500):
        folder = tmp_path / "runs" / f"b-{number:03}"
        folder.mkdir()
        (folder / "status.json").write_text(status)
        (folder / "report.json").write_text(report)
    assert len(Store(tmp_path / "runs").rows()) == 501
    start = time.process_time()
    assert len(Store(tmp_path / "runs").rows()) == 501
    assert time.process_time() - start < 0.5


def test_kinds_of_runs_have_their_own_results(make, tmp_path):
    folder = make("p")
    status = json.loads((folder / "status.json").read_text())
    status["identity"] |= {"command": "patch", "config": {"task": "ioi", "model": "m", "method": "exact", "kind": "z"}}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "effects.csv").write_text("layer,head,effect,importance\nL2,H5,-4.5,4.5\nL0,H1,0.1,0.1\n")
    other = make("c")
    status["identity"] |= {"command": "attribute", "config": {"task": "ioi", "model": "m", "keep": 0.8}}
    (other / "status.json").write_text(json.dumps(status))
    rows = [{"method": "coar", "ablated": share, "correlation": share} for share in (0.1, 0.2, 0.4)]
    (other / "report.json").write_text(json.dumps({"correlations": rows}))
    attribute, patch = Store(tmp_path / "runs").rows()
    assert (patch["command"], patch["strongest"], patch["effect"]) == ("patch", "L2 H5", -4.5)
    assert (attribute["command"], attribute["method"], attribute["correlation"]) == ("attribute", "coar", 0.2)

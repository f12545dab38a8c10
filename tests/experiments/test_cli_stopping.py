"""A run that is stopped, killed, or refused by the system: what it leaves, and how it goes on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import decision_log
from experiments.decision_log import Writer
from graphs.circuit import Circuit

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import time
from experiments import decision_log
from experiments.cli import app

append = decision_log.Writer.append

def slowly(writer, *row):
    append(writer, *row)
    time.sleep(0.05)

decision_log.Writer.append = slowly
app(prog_name="wiretrace")
"""


def state(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["state"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def started(model: Path, out: Path) -> subprocess.Popen[str]:
    """A real process that takes 50 ms for each decision, once it has made a few."""
    words = ["discover", "ioi", "--model", model, "--prompts", 8, "--held-out", 8, "--tau", 0.002, "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while decision_log.count(out / "decisions.jsonl") < 10:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "no decision in two minutes"
        time.sleep(0.02)
    return process


def assert_same_circuit(run: Path, expected: Path) -> None:
    """Edge for edge; scores up to the rounding by which a resumed walk may differ; provenance but for that rounding."""
    found, true = (Circuit.load(folder / "circuit.json") for folder in (run, expected))
    assert found.edges == true.edges
    assert dict(found.scores) == pytest.approx(dict(true.scores), abs=1e-6)
    rounded = {"guard": None, "rises": None}
    assert {**found.provenance, **rounded} == {**true.provenance, **rounded}


def test_a_killed_run_goes_on_to_the_same_circuit(tiny_model, finished_run, discover, tmp_path):
    out = tmp_path / "run"
    process = started(tiny_model, out)
    process.kill()
    process.communicate()
    assert state(out) == "running"
    made = decision_log.count(out / "decisions.jsonl")
    assert 10 <= made < 110
    with (out / "decisions.jsonl").open("ab") as file:
        file.write(b'{"edge":"m0->log')
    (out / ".wiretrace-0123456789abcdef.part").write_bytes(b"half a file")

    refused = discover(out)
    assert refused.exit_code == 1
    assert f"killed after {made} decisions" in refused.stderr
    assert "--resume" in refused.stderr

    result = discover(out, "--resume")
    assert result.exit_code == 0, result.stderr
    assert f"Going on after {made} decisions." in result.stderr
    assert_same_circuit(out, finished_run)
    assert state(out) == "finished"
    assert names(out) == names(finished_run)
    assert len((out / "decisions.jsonl").read_text().splitlines()) == 111
    assert json.loads((out / "report.json").read_text())["search"]["resumed_after"] == made


def test_ctrl_c_keeps_the_decisions_and_says_how_to_go_on(tiny_model, finished_run, wiretrace, tmp_path):
    out = tmp_path / "run"
    process = started(tiny_model, out)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("Interrupted. The ")
    assert state(out) == "interrupted"

    shown = wiretrace("show", out)
    assert shown.exit_code == 1
    assert "interrupted" in shown.stderr
    words = last.split("Go on with: wiretrace ")[1].split(" (or")[0].split()
    result = wiretrace(*words)
    assert result.exit_code == 0, result.stderr
    assert_same_circuit(out, finished_run)


@pytest.fixture
def at_decision(monkeypatch) -> Callable[[int, Callable[[], None]], None]:
    """Let something happen once the given number of decisions is in the log."""

    def arrange(number: int, happens: Callable[[], None]) -> None:
        append, made = Writer.append, [0]

        def counting(writer: Writer, *row: Any) -> None:
            append(writer, *row)
            made[0] += 1
            if made[0] == number:
                happens()

        monkeypatch.setattr(Writer, "append", counting)

    return arrange


def test_sigterm_is_as_ctrl_c(discover, at_decision, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    at_decision(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = discover(tmp_path / "run")
    assert result.exit_code == 130
    assert "The 7 decisions made so far are kept" in result.stderr
    assert state(tmp_path / "run") == "interrupted"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_first_run_of_a_hub_model_goes_on_after_its_decisions(
    discover, at_decision, uncached, finished_run, tmp_path
):
    def stop() -> None:
        raise KeyboardInterrupt

    at_decision(20, stop)
    assert discover(tmp_path / "run").exit_code == 130
    assert json.loads((tmp_path / "run" / "env.json").read_text())["model_files"]
    result = discover(tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.stderr
    assert "Going on after 20 decisions." in result.stderr
    assert_same_circuit(tmp_path / "run", finished_run)


def test_an_interrupted_exact_sweep_says_that_it_keeps_its_shards(discover, monkeypatch, tmp_path):
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.discover.selected", stop)
    result = discover(tmp_path / "run", "--method", "exact", "--n", 5)
    assert result.exit_code == 130
    assert "The 2 shards made so far are kept in" in result.stderr


@pytest.mark.parametrize("cut", [33, 110])
def test_a_run_goes_on_from_anywhere(discover, at_decision, finished_run, tmp_path, cut):
    def stop() -> None:
        raise KeyboardInterrupt

    at_decision(cut, stop)
    assert discover(tmp_path / "run").exit_code == 130
    result = discover(tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.stderr
    assert_same_circuit(tmp_path / "run", finished_run)


def test_an_interrupted_run_can_be_replaced(discover, at_decision, finished_run, tmp_path):
    def stop() -> None:
        raise KeyboardInterrupt

    at_decision(20, stop)
    assert discover(tmp_path / "run").exit_code == 130
    assert discover(tmp_path / "run", "--overwrite").exit_code == 0
    assert (tmp_path / "run" / "circuit.json").read_bytes() == (finished_run / "circuit.json").read_bytes()


def test_ctrl_c_while_loading_leaves_nothing(discover, monkeypatch, tmp_path):
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.discover.prepare", stop)
    result = discover(tmp_path / "run")
    assert (result.exit_code, result.stderr) == (130, "Stopped before anything was written.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_the_run_and_keeps_what_is_there(discover, monkeypatch, finished_run, tmp_path):
    write, lines = os.write, [0]

    def until_full(handle: int, data: bytes) -> int:
        if data.startswith(b'{"name"'):
            lines[0] += 1
            if lines[0] > 25:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if lines[0] == 25:
                return write(handle, data[:9])
        return write(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", until_full)
        result = discover(tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: cannot write")
    assert "No space left" in result.stderr
    assert state(tmp_path / "run") == "failed"
    assert discover(tmp_path / "run", "--resume").exit_code == 0
    assert_same_circuit(tmp_path / "run", finished_run)


def test_a_result_that_cannot_be_written_leaves_no_other_either(discover, monkeypatch, tmp_path):
    def refused(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("experiments.report.markdown", refused)
        result = discover(tmp_path / "run")
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert names(tmp_path / "run") == {"status.json", "config.toml", "env.json", "decisions.jsonl", "log.jsonl"}
    assert state(tmp_path / "run") == "failed"
    result = discover(tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.stderr


def test_a_run_that_fails_before_it_begins_leaves_nothing(discover, monkeypatch, tmp_path):
    def refused(path: Path, data: str) -> None:
        from graphs.errors import WriteFailed

        raise WriteFailed(f"cannot write {path}: no space is left on the disk")

    monkeypatch.setattr("experiments.run_directory.write_text", refused)
    result = discover(tmp_path / "run")
    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_method_that_refuses_leaves_nothing(discover, tmp_path):
    result = discover(tmp_path / "runs" / "new", "--method", "atp", "--metric", "kl", "--n", 5)
    assert result.exit_code == 1
    assert "kl" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback_and_the_decisions(discover, at_decision, tmp_path):
    def crash() -> None:
        raise ZeroDivisionError("a bug")

    at_decision(12, crash)
    with pytest.raises(ZeroDivisionError):
        discover(tmp_path / "run")
    assert state(tmp_path / "run") == "failed"
    assert "ZeroDivisionError" in (tmp_path / "run" / "status.json").read_text()
    assert discover(tmp_path / "run", "--resume").exit_code == 0


def test_running_out_of_memory_is_said_in_a_sentence(discover, at_decision, tmp_path):
    def exhausted() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    at_decision(3, exhausted)
    result = discover(tmp_path / "run")
    assert result.exit_code == 1
    assert "needs more memory" in result.stderr
    assert state(tmp_path / "run") == "failed"

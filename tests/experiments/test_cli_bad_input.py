"""Bad input: one sentence that helps, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from graphs.circuit import Circuit


def refused(result) -> str:
    """The sentence of a command that ended with exit code 1."""
    assert result.exit_code == 1, result.stdout + result.stderr
    assert result.stdout == ""
    said = result.stderr.splitlines()
    assert said[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr
    return said[-1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["discover", "oii"], "Did you mean ioi?"),
        (["discover", "ioi", "--model", "gpt2", "--method", "adcd"], "Did you mean acdc?"),
        (["discover", "ioi", "--model", "zoo:nothing"], "expected a model that ships"),
        (["discover", "ioi", "--model", ""], "expected the name of a model"),
        (["discover", "ioi", "--model", "gpt2", "--tau", "nan"], "expected tau to be a finite number; got nan"),
        (["discover", "ioi", "--model", "gpt2", "--tau", "inf"], "expected tau to be a finite number; got inf"),
        (["discover", "ioi", "--model", "gpt2", "--tau", "-0.1"], "expected tau to be 0 or more"),
        (["discover", "ioi", "--model", "gpt2", "--method", "atp", "--tau", "0.1"], "it takes none; got tau"),
        (["discover", "ioi", "--model", "gpt2", "--n", "10"], "Set tau instead"),
        (["discover", "ioi", "--model", "gpt2", "--method", "atp", "--n", "0"], "at least 1; got 0"),
        (["discover", "ioi", "--model", "gpt2", "--metric", "logit_diff"], "Did you mean logit_difference?"),
        (["discover", "ioi", "--model", "gpt2", "--ablation", "means"], "Did you mean mean"),
        (["discover", "ioi", "--model", "gpt2", "--prompts", "0"], "expected prompts to be from 1"),
        (["discover", "ioi", "--model", "gpt2", "--held-out", "-3"], "expected held-out to be from 1"),
        (["discover", "ioi", "--model", "gpt2", "--seed", "-1"], "expected seed to be from 0"),
        (["discover", "ioi", "--model", "gpt2", "--device", "gpu"], "expected a device such as cpu"),
        (["discover", "ioi", "--model", "gpt2", "-o", "absolute"], "NAME=VALUE"),
        (["discover", "ioi", "--model", "gpt2", "-o", "absolute=maybe"], "expected absolute to be true or false"),
        (
            ["discover", "ioi", "--model", "gpt2", "-o", "abs=true"],
            "it takes tau, absolute, order, merged, seed; got abs",
        ),
        (["discover", "ioi", "--model", "gpt2", "--overwrite", "--resume"], "not both"),
        (["run", "nothing.toml", "--out", "x"], "there is no file nothing.toml"),
        (["show", "."], "expected the folder of a run"),
        (["show", "nowhere"], "expected the folder of a run"),
        (["compare", "nowhere.json", "nowhere.json"], "there is no file nowhere.json"),
        (["export", "nowhere.json"], "expected --to with a format"),
        (["export", "nowhere.json", "--to", "bmp"], "expected a format out of"),
        (["export", "nowhere.json", "--to", "svg", "--out", "a.pdf"], "expected --out to end in .svg"),
    ],
)
def test_nothing_is_done_before_a_refusal(wiretrace, monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.discover.prepare", lambda *a, **k: pytest.fail("work was begun"))
    assert sentence in refused(wiretrace(*words))
    assert list(tmp_path.iterdir()) == []


def test_a_name_without_its_prefix_is_completed(wiretrace, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "Did you mean zoo:ioi?" in refused(wiretrace("discover", "ioi", "--model", "ioi"))
    assert "Did you mean zoo:docstring?" in refused(wiretrace("discover", "ioi", "--model", "docstrin"))
    assert "Did you mean zoo:ioi?" in refused(wiretrace("discover", "ioi", "--model", "ZOO:IOI"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["my model", "a:b", "gpt2/", "x" * 200, "x" * 300, "~nobody-has-this-name/model"])
def test_a_name_that_no_model_can_have_is_refused(wiretrace, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert "expected a " in refused(wiretrace("discover", "ioi", "--model", name))
    assert list(tmp_path.iterdir()) == []


def test_a_hub_name_without_a_network_fails_in_a_sentence(wiretrace, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "'gpt2' is neither" in refused(wiretrace("discover", "ioi", "--model", "gpt2"))
    assert list(tmp_path.iterdir()) == []


def test_truncated_weights_are_refused(discover, tiny_model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_model.iterdir():
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    assert "truncated" in refused(discover(tmp_path / "run", "--model", broken))
    assert not (tmp_path / "run").exists()


def test_more_edges_than_there_are(discover, tmp_path):
    said = refused(discover(tmp_path / "run", "--method", "atp", "--n", 111))
    assert "expected n to be at most 110" in said
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there(discover, tmp_path):
    assert "torch" in refused(discover(tmp_path / "run", "--device", "cuda:99"))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- output folders


def test_another_run_is_not_overwritten(finished_run, discover):
    before = {path.name: path.read_bytes() for path in finished_run.iterdir()}
    said = refused(discover(finished_run, "--tau", 0.5, "--seed", 3))
    assert "tau is 0.002 there, 0.5 here" in said
    assert "seed is 0 there, 3 here" in said
    assert "--overwrite" in said
    assert "--out" in said
    assert "another run" in refused(discover(finished_run, "--tau", 0.5, "--resume"))
    assert before == {path.name: path.read_bytes() for path in finished_run.iterdir()}


def test_a_changed_model_is_another_run(finished_run, discover, monkeypatch):
    monkeypatch.setattr("experiments.discover.digests", lambda name: {"model.safetensors": "0" * 64})
    assert "the model's files have changed" in refused(discover(finished_run))


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
@pytest.mark.parametrize("name", ["thesis.tex", "status.json", "circuit.json", ".hidden"])
def test_a_folder_of_something_else_is_never_touched(discover, tmp_path, name, flags):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text('{"schema": "of somebody else"}')
    assert "left alone" in refused(discover(out, *flags))
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, '{"schema": "of somebody else"}')]


def test_an_output_that_is_a_file_is_refused(discover, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "a file" in refused(discover(out))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_said_in_a_sentence(discover, tmp_path):
    tmp_path.chmod(0o555)
    try:
        assert "ermission" in refused(discover(tmp_path / "run"))
    finally:
        tmp_path.chmod(0o755)


def test_a_place_where_no_folder_can_be_made(discover, tmp_path, monkeypatch):
    def no(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", no)
    assert "Permission denied. Choose another --out." in refused(discover(tmp_path / "run"))


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_two_processes_do_not_share_a_folder(discover, tmp_path):
    import fcntl

    from experiments.folder_lock import LOCK

    out = tmp_path / "run"
    out.mkdir()
    handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "another process is writing" in refused(discover(out))
        assert [path.name for path in out.iterdir()] == [LOCK]
    finally:
        os.close(handle)
    assert discover(out).exit_code == 0


# -------------------------------------------------------------------------------------------------------- torn files


def test_a_damaged_log_counts_up_to_the_damage(discover, finished_run, monkeypatch, tmp_path):
    from experiments.decision_log import Writer

    append, made = Writer.append, [0]

    def stopping(writer, *row):
        append(writer, *row)
        made[0] += 1
        if made[0] == 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "append", stopping)
    assert discover(tmp_path / "run").exit_code == 130
    path = tmp_path / "run" / "decisions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:10], b'{"name": "m0->lo', *lines[12:]]))
    monkeypatch.undo()
    said = discover(tmp_path / "run", "--resume")
    assert said.exit_code == 0
    assert "damaged from line 11 on" in " ".join(said.output.split())
    found, whole = (Circuit.load(out / "circuit.json") for out in (tmp_path / "run", finished_run))
    assert found.edges == whole.edges


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": "wiretrace-report/1"}', "[" * 100_000])
def test_a_report_that_is_none_is_refused(finished_run, wiretrace, tmp_path, content):
    out = tmp_path / "run"
    out.mkdir()
    for path in finished_run.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    (out / "report.json").write_text(content)
    assert "expected the report of a run" in refused(wiretrace("show", out))


def test_hostile_text_in_a_report_does_not_reach_the_terminal(finished_run, wiretrace, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for path in finished_run.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    record = json.loads((out / "report.json").read_text())
    record["strongest"][0]["edge"] = "\x1b]0;owned\x07[bold]"
    record["notes"] = ["\x1b[2J"]
    (out / "report.json").write_text(json.dumps(record))
    result = wiretrace("show", out)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout

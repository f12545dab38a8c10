"""A user's own pairs on the command line: template, check, and runs that know which file they were made from."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from circuits.tasks.file_layouts import read
from experiments import task_files
from experiments.config import Config, default_model, is_default
from experiments.discover import identify
from experiments.errors import BadConfig
from graphs.errors import WiretraceError

SUFFIXES = ["json", "jsonl", "csv"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(result) -> str:
    assert result.exit_code == 1, result.stdout + result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") or "\nError: " in result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


# -------------------------------------------------------------------------------------------------------- template


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_template_is_sound_and_explains_itself(wiretrace, here, suffix):
    result = wiretrace("tasks", "--template", f"my_task.{suffix}")
    assert result.exit_code == 0
    assert f"wiretrace tasks --check my_task.{suffix}" in result.stdout
    text = Path(f"my_task.{suffix}").read_text()
    assert "mind the space before a word" in text
    assert "one token each" in text
    file = read(f"my_task.{suffix}")
    assert (file.unused, file.metric, file.name) == ((), "logit_difference", "my_task")
    assert file.of_split("train")
    assert file.of_split("held-out")


def test_templates_of_all_layouts_hold_the_same_pairs(wiretrace, here):
    for suffix in SUFFIXES:
        wiretrace("tasks", "--template", f"t.{suffix}")
    first, *others = ([(row.clean, row.corrupt, row.answers, row.wrong_answers) for row in read(f"t.{suffix}").rows]
                      for suffix in SUFFIXES)  # fmt: skip
    assert all(other == first for other in others)


def test_a_template_replaces_nothing(wiretrace, here):
    Path("mine.json").write_text("precious")
    assert "mine.json is there already" in refused(wiretrace("tasks", "--template", "mine.json"))
    assert Path("mine.json").read_text() == "precious"
    Path("link.csv").symlink_to("nowhere")
    assert "is there already" in refused(wiretrace("tasks", "--template", "link.csv"))
    assert "expected --template to end in .json, .jsonl, .csv" in refused(wiretrace("tasks", "--template", "mine.txt"))
    assert "its folder does not exist" in refused(wiretrace("tasks", "--template", "no/mine.json"))
    assert "--template or --check; got both" in refused(wiretrace("tasks", "--template", "a.json", "--check", "b.json"))
    assert "expected --check FILE with --model" in refused(wiretrace("tasks", "--model", "zoo:ioi"))
    assert sorted(path.name for path in here.iterdir()) == ["link.csv", "mine.json"]


# ----------------------------------------------------------------------------------------------------------- check


def test_a_check_says_what_is_there(wiretrace, here):
    wiretrace("tasks", "--template", "my_task.csv")
    said = wiretrace("tasks", "--check", "my_task.csv").stdout
    assert "CSV, 12 pairs, all of them sound" in said
    assert "10 train, 2 held-out" in said
    assert "1 right and 1 wrong for each prompt" in said
    assert "add --model to check" in said
    known = json.loads(wiretrace("tasks", "--check", "my_task.csv", "--json").stdout)
    assert known["facts"]["task"] == "my_task, judged by logit_difference"


def test_a_check_with_the_model_it_suits(wiretrace, here):
    wiretrace("tasks", "--template", "my_task.json")
    said = wiretrace("tasks", "--check", "my_task.json", "--model", "zoo:ioi").stdout
    assert "prompts of 14 to 15 tokens" in said
    assert "100.0% of 12 prompts" in said
    assert "0.0%, with the corrupt prompt" in said
    assert "Note" not in said


def test_a_check_with_a_model_that_cannot(wiretrace, here, tiny_model):
    wiretrace("tasks", "--template", "my_task.json")
    said = wiretrace("tasks", "--check", "my_task.json", "--model", tiny_model).stdout
    assert "rarely gives a right answer" in said
    assert "do not make the model worse" in said


def test_a_check_doubts_what_is_often_not_meant(wiretrace, here):
    rows = [
        {"clean": "a b ", "corrupt": "c d ", "answer": "x", "wrong_answer": "y", "split": "train", "source": 1},
        {"clean": "a b", "corrupt": "a b", "answer": "x", "wrong_answer": "y", "split": "train"},
        {"clean": "a b", "corrupt": "c b", "answer": " x", "wrong_answer": " y", "split": "train"},
    ]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = wiretrace("tasks", "--check", "t.jsonl").stdout
    assert "Note: Not used: 'source'." in said
    assert "Note: No row is in the split held-out" in said
    assert "same in row 2 (line 2), so nothing is ablated" in said
    assert "another row's, too, in rows 2 (line 2), 3 (line 3)." in said
    assert "ends in a blank in row 1 (line 1)" in said
    assert "without a space in row 2 (line 2): is ' word' meant?" in said


def test_a_check_lists_what_is_wrong(wiretrace, here):
    Path("t.csv").write_text("clean,corrupt,answer,wrong_answer\na,b,c,c\na,b,c,d\n,b,c,d\n")
    said = refused(wiretrace("tasks", "--check", "t.csv"))
    assert "t.csv: 2 of 3 rows cannot be used:\n  row 1 (line 2): " in said
    assert "  row 3 (line 4): clean is empty" in said
    assert "there is no file u.csv" in refused(wiretrace("tasks", "--check", "u.csv"))
    wiretrace("tasks", "--template", "v.csv")
    assert "expected a model that ships" in refused(wiretrace("tasks", "--check", "v.csv", "--model", "zoo:oii"))


# ------------------------------------------------------------------------------------------------------------ runs

FEW = ("--method", "atp", "--n", 20, "--prompts", 8)


def test_discover_takes_a_path(wiretrace, here, tiny_model):
    wiretrace("tasks", "--template", "my task.json")
    result = wiretrace("discover", "my task.json", "--model", tiny_model, *FEW)
    assert result.exit_code == 0
    assert "on 2 held-out prompts" in result.stdout
    folder = here / "runs" / "my task"
    page = (folder / "report.md").read_text()
    assert "Task: Pairs of prompts from a file: my task.json." in page
    assert "8 of the training split for the search, 2 held-out ones" in page
    # the same again is not run again; a changed file is another run, and is said to be
    again = ("discover", "my task.json", "--model", tiny_model, *FEW)
    assert "holds this run already, finished" in wiretrace(*again).stderr
    text = Path("my task.json").read_text()
    Path("my task.json").write_text(text.replace("gave a drink", "gave a book"))
    assert "the task's files have changed since" in refused(wiretrace(*again))
    assert wiretrace(*again, "--overwrite", "--quiet").stdout == f"{Path('runs') / 'my task'}\n"
    # what is there can be read without the file
    Path("my task.json").unlink()
    assert wiretrace("show", folder).exit_code == 0
    assert "there is no file 'my task.json'" in refused(wiretrace(*again)).replace("file my", "file 'my").replace(
        "json;", "json';"
    )


def test_a_config_file_holds_the_path(wiretrace, here, tiny_model):
    wiretrace("tasks", "--template", "my_task.csv")
    wiretrace("discover", "my_task.csv", "--model", tiny_model, *FEW, "--quiet")
    result = wiretrace("run", "runs/my_task/config.toml", "--out", "again")
    assert result.exit_code == 0
    first, second = (json.loads((Path(at) / "circuit.json").read_text()) for at in ("runs/my_task", "again"))
    assert first == second


def test_patch_and_attribute_take_a_path(wiretrace, here, tiny_model):
    wiretrace("tasks", "--template", "my_task.jsonl")
    made = wiretrace("patch", "my_task.jsonl", "--model", tiny_model, "--prompts", 4, "--quiet")
    assert made.stdout == f"{Path('runs') / 'my_task-patch-z'}\n"
    made = wiretrace("attribute", "my_task.jsonl", "--model", tiny_model, "--samples", 40, "--prompts", 4, "--quiet")
    assert made.stdout == f"{Path('runs') / 'my_task-attribute'}\n"
    Path("my_task.jsonl").unlink()
    for folder in ("my_task-patch-z", "my_task-attribute"):
        assert wiretrace("show", Path("runs") / folder).exit_code == 0


def test_a_bad_file_is_refused_before_a_model_is_loaded(wiretrace, here, monkeypatch):
    monkeypatch.setattr("experiments.discover.load_model", lambda *a: pytest.fail("a model was loaded"))
    monkeypatch.setattr("experiments.patch.load_model", lambda *a: pytest.fail("a model was loaded"))
    monkeypatch.setattr("experiments.attribute.load_model", lambda *a: pytest.fail("a model was loaded"))
    Path("bad.csv").write_text("clean,corrupt,answer\n")
    for command in ("discover", "patch", "attribute"):
        said = refused(wiretrace(command, "bad.csv", "--model", "gpt2"))
        assert "bad.csv: there is a header and no row below it." in said
        assert "there is no file nowhere.json" in refused(wiretrace(command, "nowhere.json", "--model", "gpt2"))
        assert "give --model with one that ships" in refused(wiretrace(command, "bad.csv"))
    assert [path.name for path in here.iterdir()] == ["bad.csv"]


def test_what_decides_a_run(here):
    assert task_files.identity("ioi") == {}
    assert "task_file" not in identify(Config("ioi", "zoo:ioi"))
    task_files.write_template(Path("t.json"))
    config = Config("t.json", "zoo:ioi")
    one = identify(config)
    Path("t.json").write_text(Path("t.json").read_text().replace("book", "map"))
    other = identify(config)
    assert one["task_file"] != other["task_file"]
    assert {**one, "task_file": ""} == {**other, "task_file": ""}


def test_a_path_never_leads_the_run_out_of_its_folder():
    for path in ("/etc/x.json", "../../x.json", "a/b/x.csv", ".json", "x.json/"):
        name = task_files.run_name(path)
        assert name
        assert "/" not in name
        assert name not in (".", "..")


# --------------------------------------------------------------------------------------------------- default models


def test_the_default_model_of_a_task(tmp_path, monkeypatch):
    def ships(name: str, **record: object) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "training.json").write_text(json.dumps(record))

    monkeypatch.setattr("experiments.model_files.ZOO", tmp_path)
    with pytest.raises(BadConfig, match="none ships for the task ioi"):
        default_model("ioi")
    assert default_model("reverse") == "zoo:reverse"
    ships("able", tasks=["ioi", "agreement"])
    ships("a_trained", task="ioi", truth="reverse")
    assert default_model("ioi") == "zoo:able"
    ships("small", tasks=["pronouns", "ioi"])
    assert (default_model("ioi"), default_model("pronouns"), default_model("agreement")) == ("zoo:small",) * 2 + (
        "zoo:able",
    )
    ships("ioi")
    assert (default_model("ioi"), default_model("pronouns")) == ("zoo:small", "zoo:small")
    assert is_default(Config("ioi", "zoo:small"))
    assert not is_default(Config("ioi", "zoo:ioi"))


def test_commands_name_every_model_but_the_default(here, monkeypatch):
    from experiments.config import PatchConfig, command_line, patch_command

    assert "--model zoo:ioi" in command_line(Config("ioi", "zoo:ioi"), out="x")
    assert "--model" not in command_line(Config("ioi", "zoo:small"), out="x")
    assert "--model zoo:ioi" in patch_command(PatchConfig("ioi", "zoo:ioi"), out="x")
    words = shlex.split(command_line(Config("my task.json", "zoo:ioi"), out="x"))
    assert words[:5] == ["wiretrace", "discover", "my task.json", "--model", "zoo:ioi"]


def test_settings_can_be_read_without_the_file(here):
    assert Config("gone.json", "zoo:ioi").task == "gone.json"
    with pytest.raises(WiretraceError, match="there is no file"):
        identify(Config("gone.json", "zoo:ioi"))

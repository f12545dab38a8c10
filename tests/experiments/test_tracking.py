"""Trackers: what they are told, that they write it, and that none of them can end a run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments import tracking
from experiments.cli import app
from experiments.errors import BadConfig
from experiments.progress_display import Silence
from experiments.run_directory import claimed, emptied
from experiments.run_log import LOG, Entry, read
from experiments.tracking import mlflow


@pytest.fixture(autouse=True)
def no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (tracking.VARIABLE, "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


class Heard(Silence):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def a_run(folder: Path, *, fail: bool = False) -> Heard:
    """A run that says something, goes three steps, and has a result."""
    heard = Heard()
    with claimed(folder, {"config": {"task": "ioi", "options": {"tau": 0.1}}}, overwrite=False, resume=False) as run:
        show = run.told(heard)
        show.say("Loading …")
        with show.steps("acdc", unit="edge") as progress:
            for done in (1, 2, 3):
                progress(done, 3)
        run.publish(lambda staging: (staging / "report.json").write_text('{"faithfulness": {"mean": 0.75}}') and None)
        run.set("failed" if fail else "finished")
    return heard


EVENTS = ["started", "said", "began", "ended", "published", "finished", "closed"]


# --- what trackers are told ----------------------------------------------------------------------------------------


def test_figures_are_shares_of_the_work_and_numbers_of_the_report() -> None:
    published = Entry(9, "", 1, "published", {"numbers": {"faithfulness.mean": 0.5, "n": 3}, "files": []})
    assert tracking.numbers(published) == ({"result/faithfulness.mean": 0.5, "result/n": 3}, None)
    ended = Entry(9, "", 1, "ended", {"what": "ACDC: edges", "done": 4, "total": 4})
    assert tracking.numbers(ended) == ({"progress/ACDC_ edges": 1.0}, 4)
    assert tracking.numbers(Entry(9, "", 1, "said", {"text": "3"})) == ({}, None)
    many = Entry(9, "", 1, "published", {"numbers": {f"n{i}": i for i in range(10_000)}})
    assert len(tracking.numbers(many)[0]) == tracking.MOST_NUMBERS


def made(monkeypatch: pytest.MonkeyPatch, tracker, name: str = "tensorboard") -> None:
    """Put a tracker of the test in the place of one of the table."""
    module = types.ModuleType("tests.a_tracker")
    module.tracker = tracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests.a_tracker", module)
    monkeypatch.setitem(tracking.TRACKERS, name, tracking.Kind("tests.a_tracker", "json", "Theirs"))
    monkeypatch.setenv(tracking.VARIABLE, name)


def test_a_tracker_gets_the_lines_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Entry] = []
    asked: dict = {}

    def tracker(folder: Path, *, name: str, settings):
        asked.update(folder=folder, name=name, settings=settings)
        return got.append

    made(monkeypatch, tracker)
    a_run(tmp_path / "run")
    assert [entry.event for entry in got] == EVENTS
    assert got == read(tmp_path / "run" / LOG)
    assert asked["name"] == "run"
    assert asked["folder"] == tmp_path / "run" / "tracking" / "tensorboard"
    assert asked["settings"] == {"config.task": "ioi", "config.options.tau": 0.1}


def test_trackers_of_a_run_that_is_discarded_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Entry] = []
    made(monkeypatch, lambda folder, *, name, settings: got.append)
    with pytest.raises(ValueError, match="no"), claimed(tmp_path / "run", {}, overwrite=False, resume=False):
        raise ValueError("no")
    assert [entry.event for entry in got] == ["started", "failed", "closed"]
    assert not (tmp_path / "run").exists()


def test_ctrl_c_closes_the_trackers_of_a_patching_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    got: list[Entry] = []
    made(monkeypatch, lambda folder, *, name, settings: got.append)
    monkeypatch.setattr("experiments.patch._effects", stop)
    done = CliRunner().invoke(app, ["patch", "ioi", "--n", "2", "--out", str(tmp_path / "run"), "--quiet"])
    assert done.exit_code == 130
    assert [entry.event for entry in got][-2:] == ["interrupted", "closed"]


def test_emptying_a_folder_starts_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path / "run")
    made(monkeypatch, lambda folder, *, name, settings: pytest.fail("a tracker was started"))
    emptied(tmp_path / "run", {"config": {}})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["status.json"]


@pytest.mark.parametrize("when", ["made", "started", "ended", "closed"])
def test_a_tracker_that_raises_is_told_of_once_and_ends_nothing(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tracker(folder: Path, *, name: str, settings):
        def track(entry: Entry) -> None:
            if entry.event == when:
                raise ConnectionError("the server\nis away")

        if when == "made":
            raise ConnectionError("the server\nis away")
        return track

    made(monkeypatch, tracker)
    heard = a_run(tmp_path / "run")
    told = [text for text in heard.said if text.startswith("Note:")]
    assert told == ["Note: tensorboard does not track this run (ConnectionError: the server). The run goes on."]
    events = [entry.event for entry in read(tmp_path / "run" / LOG)]
    assert events.count("warning") == 1
    assert [event for event in events if event != "warning"] == EVENTS
    assert (tmp_path / "run" / "report.json").exists()


def test_nothing_is_tracked_unless_it_is_asked_for(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    assert not (tmp_path / "run" / tracking.FOLDER).exists()


def test_unknown_trackers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(BadConfig, match="expected a tracker out of tensorboard, wandb, mlflow; got 'tensorbord'"):
        tracking.check(["tensorbord"])


def test_what_is_not_installed_is_refused_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else real(name, *rest)
    )
    with pytest.raises(BadConfig, match="pip install mlflow"):
        tracking.check(["mlflow"])


@pytest.mark.parametrize("command", ["discover", "patch", "attribute", "run"])
def test_commands_refuse_before_anything_is_loaded(command: str, tmp_path: Path) -> None:
    arguments = [command, "ioi" if command != "run" else str(tmp_path / "c.toml"), "--track", "tensorbord"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "'tensorbord'" in done.output
    assert all(name in done.output for name in tracking.TRACKERS)
    assert not (tmp_path / "run").exists()


def test_the_option_ends_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def tracker(folder: Path, *, name: str, settings):
        seen.append(os.environ.get(tracking.VARIABLE))
        return lambda entry: None

    made(monkeypatch, tracker)
    monkeypatch.delenv(tracking.VARIABLE)
    arguments = ["patch", "ioi", "--n", "2", "--out", str(tmp_path / "run"), "--track", "tensorboard", "--quiet"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert seen == ["tensorboard"]
    assert tracking.VARIABLE not in os.environ
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "run"), "--log"])
    events = [line.split()[1] for line in shown.stdout.splitlines()]
    assert (events[0], events[-1]) == ("started", "closed")


# --- the real tools -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_s_own_reader_finds_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: tracking)")
    monkeypatch.setenv(tracking.VARIABLE, "tensorboard")
    heard = a_run(tmp_path / "run")
    assert not [text for text in heard.said if text.startswith("Note:")]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "run" / "tracking" / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("progress/acdc")] == [(3, 1.0)]
    assert [event.value for event in found.Scalars("result/faithfulness.mean")] == [0.75]
    text = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| config.options.tau | 0.1 |" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (extra: tracking)")
    monkeypatch.setenv(tracking.VARIABLE, "wandb")
    heard = a_run(tmp_path / "run")
    assert not [text for text in heard.said if text.startswith("Note:")]
    files = list((tmp_path / "run" / "tracking" / "wandb").rglob("*.wandb"))
    assert len(files) == 1
    for _ in range(100):  # what it writes to the disk may come a little later
        if b"result/faithfulness.mean" in (data := files[0].read_bytes()):
            break
        time.sleep(0.2)
    assert b"result/faithfulness.mean" in data
    assert b"config.options.tau" in data


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_s_own_client_finds_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed (extra: tracking)")
    pytest.importorskip("sqlalchemy", reason="mlflow without its database")
    monkeypatch.setenv(tracking.VARIABLE, "mlflow")
    heard = a_run(tmp_path / "run", fail=True)
    assert not [text for text in heard.said if text.startswith("Note:")]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'tracking' / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("wiretrace").experiment_id])
    assert run.data.metrics == {"progress/acdc": 1.0, "result/faithfulness.mean": 0.75}
    assert run.data.params["config.options.tau"] == "0.1"
    assert run.info.status == "FAILED"


# --- their surface, where they are not installed --------------------------------------------------------------------


class Surface:
    """Records calls, and answers every one with itself."""

    def __init__(self, calls: list, path: str = "") -> None:
        self._calls, self._path = calls, path

    def __getattr__(self, name: str) -> Surface:
        return Surface(self._calls, f"{self._path}.{name}".lstrip("."))

    def __call__(self, *args, **options) -> Surface:
        self._calls.append((self._path, args, options))
        return Surface(self._calls, self._path)


def calls_of(name: str, package: str, module: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls):
    monkeypatch.setitem(sys.modules, package, module)
    made = importlib.import_module(f"experiments.tracking.{name}").tracker(
        tmp_path, name="ioi", settings={"config.tau": 0.1}
    )
    made(Entry(1, "", 1, "progress", {"what": "acdc", "done": 1, "total": 4}))
    made(Entry(2, "", 1, "published", {"numbers": {"faithfulness": 0.5}, "files": []}))
    made(Entry(3, "", 1, "interrupted", {}))
    made(Entry(4, "", 1, "closed", {}))
    return calls


def test_what_wandb_is_called_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list = []
    module = types.ModuleType("wandb")
    module.init = Surface(calls, "init")  # type: ignore[attr-defined]
    module.Settings = Surface([], "Settings")  # type: ignore[attr-defined]
    found = calls_of("wandb", "wandb", module, tmp_path, monkeypatch, calls)
    assert found[0][2] | {"settings": None} == {
        "project": "wiretrace", "name": "ioi", "dir": str(tmp_path), "mode": "offline",
        "config": {"config.tau": 0.1}, "settings": None,
    }  # fmt: skip
    assert found[1:] == [
        ("init.log", ({"progress/acdc": 0.25, "done": 1},), {}),
        ("init.log", ({"result/faithfulness": 0.5},), {}),
        ("init.summary.update", ({"result/faithfulness": 0.5},), {}),
        ("init.finish", (), {"exit_code": 1}),
    ]
    monkeypatch.setenv("WANDB_MODE", "online")
    calls.clear()
    calls_of("wandb", "wandb", module, tmp_path, monkeypatch, calls)
    assert calls[0][2]["mode"] == "online"


def test_what_mlflow_is_called_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list = []
    package, module = types.ModuleType("mlflow"), types.ModuleType("mlflow.tracking")
    module.MlflowClient = Surface(calls, "Client")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    found = calls_of("mlflow", "mlflow.tracking", module, tmp_path, monkeypatch, calls)
    assert found[0] == ("Client", (), {"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    named = [(path.split(".")[1], args[1:], options) for path, args, options in found if "log_" in path]
    assert named == [
        ("log_param", ("config.tau", "0.1"), {}),
        ("log_metric", ("progress/acdc", 0.25), {"step": 1}),
        ("log_metric", ("result/faithfulness", 0.5), {"step": 0}),
    ]
    assert found[-1][0] == "Client.set_terminated"
    assert found[-1][1][1] == "KILLED"


def test_workers_that_start_together_make_one_experiment_of_mlflow() -> None:
    class Client:
        """Another worker makes the experiment between the question and the making."""

        def __init__(self, *answers: str | None) -> None:
            self.answers = list(answers)

        def get_experiment_by_name(self, name: str) -> types.SimpleNamespace | None:
            answer = self.answers.pop(0)
            return None if answer is None else types.SimpleNamespace(experiment_id=answer)

        def create_experiment(self, name: str) -> str:
            raise RuntimeError("Experiment(name=wiretrace) already exists")

    assert mlflow._experiment(Client(None, "7")) == "7"
    with pytest.raises(RuntimeError, match="already exists"):
        mlflow._experiment(Client(None, None))

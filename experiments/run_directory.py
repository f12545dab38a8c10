"""A run directory: one run's settings, state, decisions and results.

    status.json      running, finished, failed or interrupted; what the run is; when
    config.toml      the settings: `wiretrace run config.toml --out FOLDER` makes the run again
    env.json         versions, device, digests of the model's files
    decisions.jsonl  every decision of a search, as it is made
    log.jsonl        what happened when (`run_log`); with --track, what trackers keep is in `tracking`
    circuit.json …   the results, which appear together when the run is finished
    .wiretrace-lock  while somebody writes (`folder_lock`)

A run belongs to its directory: a directory that holds anything else is never touched, one that holds another run only
when that is asked for, and one that a living process writes to not at all. Whatever way a process ends, the directory
is either empty, or says in `status.json` what it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from experiments import decision_log, tracking
from experiments.errors import BadConfig, BadRun, FolderTaken
from experiments.folder_lock import LOCK, locked
from experiments.progress_display import Display
from experiments.run_log import LOG, RunLog, Told, hearing
from graphs.atomic import read_text, remove_leftovers, write_text
from graphs.errors import BadFile, WriteFailed
from graphs.export import EXPORTS as FORMATS

SCHEMA: Final = "wiretrace-run/1"
STATUS: Final = "status.json"
CONFIG: Final = "config.toml"
ENVIRONMENT: Final = "env.json"
DECISIONS: Final = "decisions.jsonl"
SAMPLES: Final = "samples"
"""The folder of random ablations (`circuits.coar.sampling`), kept so that a run can go on or take more."""
SHARDS: Final = "shards"
"""The folder of pieces of an exact sweep (`experiments.exact_shards`)."""
RESULTS: Final = (
    *("circuit.json", "circuit.graphml", "circuit.svg", "circuit.html", "scores.json", "report.json"),
    *("effects.json", "effects.csv", "heatmap.svg"),
    *("attribution.safetensors", "attribution.csv", "weights.svg", "correlation.csv", "correlation.svg"),
    *("growth.svg", "interactions.csv", "interactions.svg", "attribution.graphml", "edit.json", "faithfulness.svg"),
    "report.md",
)
EXPORTS: Final = ("trace.svg", *(f"circuit{suffix}" for suffix in FORMATS))
"""What `wiretrace export` puts beside the results; out of date once the run is made anew."""

_STAGING: Final = ".wiretrace-results.part"
_FILES: Final = {"model_files": "model's", "task_file": "task's", "dictionary_files": "dictionaries'"}

State = Literal["running", "finished", "failed", "interrupted"]
Plan = Literal["new", "resume", "replace", "finished"]


@dataclass(frozen=True)
class Status:
    """What `status.json` says.

    Attributes:
        state: running (or killed while it ran), finished, failed or interrupted.
        identity: what decides the result: version, settings, digests of the model's files.
        started: when, in UTC.
        ended: when, or None.
        process: the number of the process that wrote it.
        error: the sentence that a failed run ended with.
    """

    state: State
    identity: Mapping[str, Any]
    started: str
    ended: str | None = None
    process: int | None = None
    error: str | None = None

    def to_json(self) -> str:
        """As the text of the file."""
        record = {"schema": SCHEMA, "wiretrace": self.identity.get("wiretrace")} | vars(self)
        return json.dumps(record, indent=2, allow_nan=False) + "\n"


def status(folder: Path) -> Status | None:
    """What a folder says of itself; None if it is not a run directory."""
    try:
        record = json.loads(read_text(folder / STATUS, limit=1_000_000))
    except (BadFile, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.pop("schema", None) != SCHEMA:
        return None
    record.pop("wiretrace", None)
    try:
        found = Status(**record)
    except TypeError:
        return None
    known = found.state in ("running", "finished", "failed", "interrupted")
    return found if known and isinstance(found.identity, dict) else None


def is_of(folder: Path, command: str) -> bool:
    """Whether a folder is a run directory of a command."""
    there = status(folder)
    return there is not None and there.identity.get("command") == command


def finished(folder: Path, command: str, *, remedy: str) -> Status:
    """What `status.json` says of a finished run of a command.

    Args:
        folder: The run directory.
        command: Its name after `wiretrace`.
        remedy: What to do about an unfinished run, as a sentence.

    Raises:
        BadRun: The folder is no run directory of this command, or its run is not finished.
    """
    there = status(folder)
    if there is None or there.identity.get("command") != command:
        raise BadRun(f"expected the folder of a run, as `wiretrace {command}` makes it; {folder} is not one.")
    if there.state != "finished":
        raise BadRun(f"the run in {folder} is unfinished. {remedy}")
    return there


def is_begun(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds this run, unfinished."""
    there = status(folder)
    return there is not None and there.state != "finished" and not differences(there.identity, identity)


@contextmanager
def results_of(folder: Path) -> Iterator[None]:
    """Results of a finished run that are gone or torn are said to be so, and what to do.

    Raises:
        BadRun: They cannot be read.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"there is no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise BadRun(
            f"expected the results of a finished run in {folder}; they cannot be read: {said}. Make the run again with "
            "--overwrite."
        ) from error


def done_so_far(folder: Path) -> str | None:
    """What an unfinished run keeps, counted; None if nothing."""
    shards = sum(len(list((folder / name).glob("shard-*.safetensors"))) for name in (SAMPLES, SHARDS))
    for count, noun in ((decision_log.count(folder / DECISIONS), "decision"), (shards, "shard")):
        if count:
            return f"{count:,} {noun}{'s' * (count != 1)}"
    return None


def plan(folder: Path, identity: Mapping[str, Any], *, overwrite: bool, resume: bool) -> Plan:
    """What a run of this identity may do with a folder; changes nothing.

    Args:
        folder: Where the run shall go.
        identity: What decides its result.
        overwrite: Another run that is there may be replaced.
        resume: An unfinished run that is there may be continued.

    Returns:
        `new` (the folder is absent or empty), `resume`, `replace`, or `finished` (this very run is there, complete).

    Raises:
        FolderTaken: None of these; the message says what to do.
        BadConfig: Both `overwrite` and `resume` are asked for.
    """
    if overwrite and resume:
        raise BadConfig("expected --overwrite (start again) or --resume (go on), not both.")
    if _is_free(folder):
        return "new"
    there = status(folder)
    if there is None:
        raise FolderTaken(
            f"expected an empty folder or one of a run; {folder} holds files that are not of a run, which are left "
            "alone. Choose another --out."
        )
    if overwrite:
        return "replace"
    different = differences(there.identity, identity)
    if different:
        raise FolderTaken(
            f"{folder} holds another run ({'; '.join(different)}). Choose another --out, or replace that run with "
            "--overwrite."
        )
    if there.state == "finished":
        return "finished"
    if resume:
        return "resume"
    go_on = "Give the command that began it again" if "command" in there.identity else "Go on with --resume"
    raise FolderTaken(
        f"{folder} holds this run, {_words(there.state)} after {done_so_far(folder) or 'nothing that is kept'}. "
        f"{go_on}, or start again with --overwrite."
    )


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """How two identities differ, setting by setting, in words."""
    said: list[str] = []
    for name in sorted({*there, *asked}):
        old, new = there.get(name), asked.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and name in ("config", "options"):
            said += differences(old, new)
        elif name in _FILES:
            if old and new and old != new:
                said.append(f"the {_FILES[name]} files have changed since")
        elif old != new:
            said.append(f"{name} is {_value(old)} there, {_value(new)} here")
    return said


def key_of(identity: Mapping[str, Any]) -> str:
    """A digest of what decides a result, which ties decisions and shards to their run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()


class RunDirectory:
    """A run directory that this process may write to; made by `claimed`.

    Attributes:
        path: The folder.
        identity: What decides the result.
        resumed: Whether an unfinished run is continued.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, started: str, resumed: bool) -> None:
        self.path, self.identity, self.resumed = path, identity, resumed
        self._started = started
        self._log: RunLog | None = RunLog(path / LOG)
        self._trackers: tracking.Trackers | None = None
        self._show: Display | None = None
        self._unsaid: list[str] = []

    def told(self, show: Display) -> Display:
        """A display that tells the log and the trackers, too, what it shows."""
        self._show = show
        for note in self._unsaid:
            show.say(f"Note: {note}")
        self._unsaid.clear()
        return Told(show, self.tell)

    def tell(self, event: str, **fields: Any) -> None:
        """Add a line to the log, and pass it on to the trackers."""
        if self._log is None:
            return
        entry = self._log.write(event, **fields)
        if self._trackers is not None:
            self._trackers.tell(entry)

    def track(self, names: Sequence[str]) -> None:
        """Let trackers follow from now on."""
        self._trackers = tracking.Trackers(self.path, self.identity, names, self._note) if names else None

    def _note(self, text: str) -> None:
        """Something that people should know, though the run goes on."""
        self.tell("warning", text=text)
        self._unsaid.append(text)
        if self._show is not None:
            self.told(self._show)

    def _hear(self, text: str, category: type[Warning]) -> bool:
        """Warnings go to the log; those about memory are said here too, others as Python does it."""
        if category.__name__ == "LessMemory" and self._show is not None:
            self._note(text)
            return True
        self.tell("warning", text=text, category=category.__name__)
        return False

    @property
    def key(self) -> str:
        """A digest of the identity, which ties decisions to their run."""
        return key_of(self.identity)

    def decisions(self) -> decision_log.Log:
        """What was decided so far."""
        return decision_log.read(self.path / DECISIONS, run=self.key)

    def writer(self, log: decision_log.Log) -> decision_log.Writer:
        """A log that goes on after what was decided so far."""
        return decision_log.Writer(self.path / DECISIONS, run=self.key, log=log)

    def set(self, state: State, *, error: str | None = None) -> None:
        """Say in `status.json` how the run stands.

        Raises:
            WriteFailed: The system refuses.
        """
        ended = None if state == "running" else now()
        written = Status(state, self.identity, self._started, ended, os.getpid(), error)
        write_text(self.path / STATUS, written.to_json())
        if state != "running":
            self.tell(state, **({} if error is None else {"text": error}))

    def write(self, name: str, text: str) -> None:
        """Write one file, whole or not at all."""
        write_text(self.path / name, text)

    def publish(self, make: Callable[[Path], None]) -> None:
        """Let `make` write the results into a folder given to it, then put them in place together.

        Raises:
            WriteFailed: A result cannot be written; none is then.
        """
        staging = self.path / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir()
            make(staging)
            names = sorted(path.name for path in staging.iterdir())
            for name in names:  # on the disk before they get their names, as `graphs.atomic` does it
                with (staging / name).open("r+b") as file:
                    os.fsync(file.fileno())
            for name in names:
                (staging / name).replace(self.path / name)
        except OSError as error:
            raise _refused(self.path, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self.tell(
            "published", files=names, numbers=_figures(self.path / "report.json") if "report.json" in names else {}
        )

    def clear(self) -> None:
        """Remove everything that a run puts here but its status; files of others stay.

        Raises:
            WriteFailed: The system refuses.
        """
        try:
            for name in (*RESULTS, *EXPORTS, DECISIONS, CONFIG, ENVIRONMENT, LOG):
                (self.path / name).unlink(missing_ok=True)
            for name in (SAMPLES, SHARDS, tracking.FOLDER):
                if (self.path / name).exists():
                    shutil.rmtree(self.path / name)
        except OSError as error:
            raise _refused(self.path, error) from error

    def discard(self, *, made: Sequence[Path], event: State = "failed") -> None:
        """Remove the whole run, as far as the system lets us, and the folders that were made for it.

        Args:
            made: these folders, the innermost first.
            event: what trackers are told before they are closed.
        """
        self.tell(event)
        self.tell("closed")
        self._log = self._trackers = None
        with suppress(WriteFailed):
            self.clear()
        for name in (STATUS, LOCK):
            with suppress(OSError):
                (self.path / name).unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def claimed(folder: Path, identity: Mapping[str, Any], *, overwrite: bool, resume: bool) -> Iterator[RunDirectory]:
    """A run directory for this process alone, marked as running; marked as failed if the block raises an error.

    A run that fails before its first decision leaves nothing behind. `KeyboardInterrupt` passes through: whoever
    catches it knows what to say, and sets the state.

    Args:
        folder: Where; it is made if it is absent, with the folders above it.
        identity: What decides the result.
        overwrite: Replace another run.
        resume: Continue an unfinished run.

    Raises:
        FolderTaken: As `plan`, or another process is writing there.
        WriteFailed: The folder cannot be made or written.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error
    with locked(folder):
        chosen = plan(folder, identity, overwrite=overwrite, resume=resume)
        if chosen == "finished":
            raise FolderTaken(f"{folder} holds this run already, finished. Do it again with --overwrite.")
        directory = _begin(folder, identity, chosen, made=made)
        directory.track(tracking.asked())
        directory.tell("resumed" if directory.resumed else "started", **identity)
        try:
            with hearing(directory._hear):
                yield directory
        except Exception as error:
            _record_failure(directory, error, made=made)
            raise
        finally:
            directory.tell("closed")


def emptied(folder: Path, identity: Mapping[str, Any]) -> None:
    """Remove what a run has left in a folder, so that this one can be made there from the start; other files stay.

    Raises:
        FolderTaken: It holds files that are not of a run.
        FolderBusy: A process is writing there.
        WriteFailed: The system refuses.
    """
    with locked(folder):
        plan(folder, identity, overwrite=True, resume=False)
        _begin(folder, identity, "replace", made=())


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _begin(folder: Path, identity: Mapping[str, Any], chosen: Plan, *, made: Sequence[Path]) -> RunDirectory:
    for place in (folder, folder / SAMPLES, folder / SHARDS):
        remove_leftovers(place, older_than=0.0)  # nobody else is writing now
    shutil.rmtree(folder / _STAGING, ignore_errors=True)
    before = status(folder) if chosen == "resume" else None
    started = before.started if before else now()
    directory = RunDirectory(folder, identity, started=started, resumed=before is not None)
    try:
        directory.set("running")  # from here on older files count as another run's, whenever we are killed
        if chosen == "replace":
            directory.clear()
    except WriteFailed:
        if made:
            directory.discard(made=made)
        raise
    return directory


def _record_failure(directory: RunDirectory, error: Exception, *, made: Sequence[Path]) -> None:
    with suppress(BadRun):
        pieces = any((directory.path / name).exists() for name in (SAMPLES, SHARDS))
        if not directory.decisions().rows and not pieces:
            directory.discard(made=made)
            return
    with suppress(WriteFailed):
        directory.set("failed", error=f"{type(error).__name__}: {error}")


@contextmanager
def shared(folder: Path, identity: Mapping[str, Any]) -> Iterator[bool]:
    """A run directory for this process beside others that compute other pieces of the same run.

    Nobody can claim it meanwhile. A folder that is new is marked as this run's.

    Args:
        folder: Where; it is made if it is absent.
        identity: What decides the result.

    Yields:
        Whether there is anything left to do: False if the run is finished.

    Raises:
        FolderBusy: A process is writing there that has it for itself.
        FolderTaken: It holds something else.
        WriteFailed: The folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error
    if plan(folder, identity, overwrite=False, resume=True) == "finished":
        yield False
        return
    with locked(folder, alone=False):
        chosen = plan(folder, identity, overwrite=False, resume=True)
        if chosen == "new":
            RunDirectory(folder, identity, started=now(), resumed=False).set("running")
        yield chosen != "finished"


def _is_free(folder: Path) -> bool:
    """Whether there is nothing, or nothing but random ablations, or what a killed process was about to write.

    Raises:
        FolderTaken: The path is a file, or a folder that cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        raise FolderTaken(f"expected a folder; {folder} is, or lies below, a file. Choose another --out.") from None
    except OSError as error:
        raise FolderTaken(f"cannot read {folder}: {error.strerror}. Choose another --out.") from error
    return all(
        name == LOCK or (name.startswith(".wiretrace-") and name.endswith(".part")) or _holds_shards(folder, name)
        for name in names
    )


def _holds_shards(folder: Path, name: str) -> bool:
    """Whether an entry is a folder of shards alone, which workers computed before the run that gathers them."""
    if name not in (SAMPLES, SHARDS) or not (folder / name).is_dir():
        return False
    return all(re.fullmatch(r"shard-[0-9]{6}\.safetensors|\.wiretrace-.*", each) for each in os.listdir(folder / name))


def _figures(path: Path) -> dict[str, Any]:
    """The numbers of a report, by name."""
    try:
        record = json.loads(read_text(path, limit=10_000_000))
    except (BadFile, ValueError, RecursionError):
        return {}
    named = tracking.flat(record) if isinstance(record, dict) else {}
    found = {name: value for name, value in named.items() if isinstance(value, int | float) and name[:7] != "config."}
    return {name: value for name, value in list(found.items())[: tracking.MOST_NUMBERS] if not isinstance(value, bool)}


def _refused(folder: Path, error: OSError) -> WriteFailed:
    return WriteFailed(f"cannot write to {folder}: {error.strerror or error}. Choose another --out.")


def _words(state: State) -> str:
    return {"running": "killed", "failed": "failed", "interrupted": "interrupted"}.get(state, state)


def _value(value: object) -> str:
    return "not set" if value is None else str(value)

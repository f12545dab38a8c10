"""The index of a store: rows of run directories in `index.sqlite`, each with the stamp of the files it was read from.

It is a cache and nothing else: whatever is wrong with it (missing, torn, of another version, locked, not writable), the
rows are read from the directories. SQLite's own locks keep writers apart; a file beside it, locked as run directories
are, keeps everybody out while a damaged index is thrown away. Both are given back by the system when a process is
killed.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from experiments.store.rows import Row

FILE: Final = "index.sqlite"
LOCK: Final = ".wiretrace-index.lock"
VERSION: Final = 1
PATIENCE: Final = 5.0
"""Seconds to wait for another process."""

_TABLE: Final = "CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, stamp TEXT, row TEXT, checksum INTEGER)"
_SIDES: Final = ("-wal", "-shm", "-journal")


class Unusable(Exception):
    """The index cannot be used now; the text says why."""


class Newer(Unusable):
    """A newer version of this program wrote it."""


def load(root: Path) -> dict[str, tuple[str, Row]]:
    """Run to stamp and row.

    Raises:
        Unusable: There is no index, or it cannot be read; `save` then makes a new one, unless it is `Newer`.
    """
    path = root / FILE
    if not path.is_file():
        raise Unusable("there is none")
    with _held(root, exclusive=False, make=False), _opened(path, write=False) as connection:
        _check_version(connection)
        rows = connection.execute("SELECT run, stamp, row, checksum FROM runs").fetchall()
    try:
        if any(_checksum(*texts) != checksum for *texts, checksum in rows):
            raise ValueError("a checksum is wrong")
        parsed = json.loads(
            f"[{','.join(text for _, _, text, _ in rows)}]"
        )  # at once: a third of the time of one by one
        if len(parsed) != len(rows) or not all(isinstance(row, dict) for row in parsed):
            raise ValueError("a row is no table")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable(f"it is damaged: {error}") from error
    return {run: (stamp, row) for (run, stamp, _, _), row in zip(rows, parsed, strict=True)}


def save(root: Path, changed: Mapping[str, tuple[str, Row]], gone: Sequence[str], *, anew: bool) -> None:
    """Put rows into the index and take others out.

    Args:
        root: The store.
        changed: Run to stamp and row.
        gone: Runs that are no longer there.
        anew: Throw away what there is, which could not be used.

    Raises:
        Unusable: It cannot be written.
    """
    path = root / FILE
    with _held(root, exclusive=anew):
        if anew:
            with _failures():
                for side in (*_SIDES, ""):  # the journal first: it must never be taken for that of the new file
                    (path.parent / f"{FILE}{side}").unlink(missing_ok=True)
        with _opened(path, write=True) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # says no where the file system cannot, which is fine
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version={VERSION}")
            connection.executemany("DELETE FROM runs WHERE run = ?", ((run,) for run in gone))
            connection.executemany(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)",
                (_line(run, stamp, row) for run, (stamp, row) in changed.items()),
            )
            connection.execute("COMMIT")


def _line(run: str, stamp: str, row: Row) -> tuple[str, str, str, int]:
    text = json.dumps(row, allow_nan=False)
    return run, stamp, text, _checksum(run, stamp, text)


def _checksum(run: str, stamp: str, text: str) -> int:
    """SQLite notices a torn page, but not a wrong letter."""
    return zlib.crc32(f"{run}\n{stamp}\n{text}".encode())


def _check_version(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise Newer(f"a newer version of Wiretrace wrote it (index {version}, here {VERSION})")
    if version != VERSION:
        raise Unusable(f"it is of another version ({version}, here {VERSION})")


@contextmanager
def _opened(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    """A connection; whatever SQLite has to complain about is said by `Unusable`."""
    with _failures(), closing(_connected(path, write=write)) as connection:
        yield connection


def _connected(path: Path, *, write: bool) -> sqlite3.Connection:
    name = f"file:{quote(os.fspath(path.absolute()))}"
    modes = ("?mode=rwc",) if write else ("?mode=rw", "?mode=ro&immutable=1")  # the last: the folder is read-only
    for number, mode in enumerate(modes, start=1):
        connection = sqlite3.connect(name + mode, uri=True, timeout=PATIENCE, isolation_level=None)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
            return connection
        except sqlite3.OperationalError:
            connection.close()
            if number == len(modes):
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError("a connection or an error was due")


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise Unusable(str(error) or type(error).__name__) from error


@contextmanager
def _held(root: Path, *, exclusive: bool, make: bool = True) -> Iterator[None]:
    """The lock beside the index; nothing where there are no locks or the folder is read-only.

    Args:
        root: The store.
        exclusive: Nobody else may use the index.
        make: Whether the file to lock is made if it is absent.

    Raises:
        Unusable: Another process has it for longer than is worth waiting.
    """
    try:
        import fcntl

        handle = os.open(root / LOCK, os.O_RDWR | (os.O_CREAT if make else 0), 0o666)
    except (ImportError, OSError):
        yield
        return
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Unusable("another process is making it anew") from None
                time.sleep(0.02)
            except OSError:  # no such locks on this file system
                break
        yield
    finally:
        with suppress(OSError):
            os.close(handle)

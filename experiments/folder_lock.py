"""The lock of a run directory: one process that has it alone, or several that compute pieces side by side.

.wiretrace-lock   in the directory while somebody writes; whoever had it alone removes it in the end
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from experiments.errors import FolderBusy
from graphs.errors import WriteFailed

LOCK: Final = ".wiretrace-lock"
_MOST_TRIES: Final = 100
_BUSY: Final = "another process is writing to {}. Wait for it, stop it, or choose another --out."


@contextmanager
def locked(folder: Path, *, alone: bool = True) -> Iterator[None]:
    """The folder's lock, which the system gives back when the process ends, however it ends.

    It is on a file in the folder, since other machines that share the folder (NFS) see no lock on the folder itself.

    Args:
        folder: The run directory.
        alone: Whether nobody else may hold it; else nobody who wants it alone.

    Raises:
        FolderBusy: Another process holds it.
        WriteFailed: The folder cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system: two processes in one folder are then the user's care
        yield
        return
    handle = _lock(folder, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    try:
        yield
    finally:
        if alone and _is_at(handle, folder / LOCK):
            with suppress(OSError):
                (folder / LOCK).unlink()
        os.close(handle)


def _lock(folder: Path, how: int) -> int:
    """Open the file of the lock and lock it; the folder itself where there can be no such file."""
    import fcntl

    for _ in range(_MOST_TRIES):
        handle, place = _opened(folder)
        try:
            fcntl.flock(handle, how)
        except BlockingIOError:
            os.close(handle)
            raise FolderBusy(_BUSY.format(folder)) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL):
                return handle
            os.close(handle)
            raise
        if _is_at(handle, place):
            return handle
        os.close(handle)  # whoever had it alone removed the file before we locked it
    raise FolderBusy(_BUSY.format(folder))


def _opened(folder: Path) -> tuple[int, Path]:
    try:
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666), folder / LOCK
    except OSError:  # a folder that nobody may write to, say
        try:
            return os.open(folder, os.O_RDONLY), folder
        except OSError as error:
            raise WriteFailed(f"cannot write to {folder}: {error.strerror or error}. Choose another --out.") from error


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False

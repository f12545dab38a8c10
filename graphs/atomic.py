"""Files written whole or not at all, and read whole or not at all.

A reader never sees half a file: the new content goes to a temporary name in the same folder, is flushed to the disk
and then takes the place of the old file in one step (`os.replace`). A crash leaves the old file and at worst one
temporary, which `remove_leftovers` finds by its name.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from graphs.errors import BadFile, WriteFailed

LARGEST_FILE: Final = 100_000_000
"""Readers refuse files of more bytes than this, rather than fill the memory with something that is no circuit."""

_PREFIX: Final = ".wiretrace-"
_SUFFIX: Final = ".part"
_REASONS: Final = {
    errno.ENOENT: "its folder does not exist; make it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "there is a folder at that path; give a file name",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOSPC: "no space is left on the disk; free some or choose another disk",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another disk",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    r"""A binary file to write to, which becomes `path` when the block ends well and vanishes when it does not.

    Args:
        path: Where the content shall stand. Its folder must exist; a file that is there is replaced.

    Raises:
        WriteFailed: If the system refuses; nothing has changed then.

    Example:
        >>> with replacing(folder / "table.csv") as file:
        ...     _ = file.write(b"a,b\n")
    """
    target = Path(path)
    temporary = target.parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
    try:
        if "\0" in str(target):
            raise ValueError("a path cannot hold a null byte")
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except (OSError, ValueError) as error:
        raise WriteFailed(f"cannot write {_shown(path)}: {_reason(error)}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteFailed(f"cannot write {_shown(path)}: {_reason(error)}") from error
        raise
    _sync_folder(target.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Make `data` the content of the file at `path`, or raise and leave the path as it was.

    Raises:
        WriteFailed: If the folder is missing, the disk full or the permission lacking.
    """
    with replacing(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], data: str) -> None:
    """Make `data`, encoded as UTF-8, the content of the file at `path`, or raise and leave the path as it was.

    Raises:
        WriteFailed: As `write_bytes`, and if the text holds a lone surrogate, which no file can.
    """
    try:
        encoded = data.encode("utf-8")
    except UnicodeEncodeError as error:
        raise WriteFailed(
            f"cannot write {_shown(path)}: the text holds a lone surrogate ({error.object[error.start]!a}) at "
            f"character {error.start:,}, which UTF-8 cannot hold; escape it first"
        ) from error
    write_bytes(path, encoded)


def read_text(path: str | os.PathLike[str], *, limit: int = LARGEST_FILE) -> str:
    """The text of a UTF-8 file.

    Args:
        path: A regular file.
        limit: The most bytes to accept.

    Raises:
        BadFile: If there is no such file, it is not a regular file, too large, or not UTF-8.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BadFile(f"{_shown(path)} is not a regular file; give the path of a file")
            data = file.read(limit + 1) if found.st_size <= limit else None  # a file may still grow
    except IsADirectoryError:
        raise BadFile(f"{_shown(path)} is a folder; give the path of a file in it") from None
    except FileNotFoundError:
        raise BadFile(f"there is no file {_shown(path)}; check the path") from None
    except BadFile:
        raise
    except (OSError, ValueError) as error:
        raise BadFile(f"cannot read {_shown(path)}: {_said(error)}") from error
    if data is None or len(data) > limit:
        raise BadFile(
            f"{_shown(path)} is larger than {limit / 1e6:,.0f} MB, the most that is read; is it the right file?"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(
            f"{_shown(path)} is not UTF-8 text (byte {error.start:,}); is it the right file, and whole?"
        ) from None


def remove_leftovers(folder: str | os.PathLike[str], *, older_than: float = 3600.0) -> int:
    """Delete the temporaries that a killed process left in `folder`.

    Args:
        folder: Only its own files are looked at, not those of folders within.
        older_than: Seconds; younger ones may belong to a process that is still writing.

    Returns:
        How many were deleted.
    """
    removed = 0
    for path in sorted(Path(folder).glob(f"{_PREFIX}*{_SUFFIX}")):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime >= older_than:
                path.unlink()
                removed += 1
    return removed


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError | ValueError) -> str:
    return _REASONS.get(error.errno or 0, _said(error)) if isinstance(error, OSError) else _said(error)


def _said(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _shown(path: object) -> str:
    """The path without characters that would garble a terminal."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else str(path)
    return text if isinstance(text, str) and text.isprintable() else ascii(text)

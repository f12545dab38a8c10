"""A model folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphs.errors import WiretraceError, WriteFailed

RECORD = "training.json"
"""The machine-readable half of the model card; also what marks a folder as one of ours to overwrite."""


class OutputExists(WiretraceError):
    """The output folder holds something already."""


@contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """Give a folder beside `out` that takes its place when the block ends well, and vanishes otherwise.

    Args:
        out: Where the folder goes; the one above it must exist.
        force: Replace what an earlier training left there.

    Yields:
        An empty folder to write into.

    Raises:
        OutputExists: `out` holds something, and `force` is not given or it is no model of ours.
        WriteFailed: The folder cannot be written.

    Example:
        >>> with new_folder(Path("model"), force=False) as folder:
        ...     _ = (folder / "training.json").write_text("{}")
        ...     Path("model").exists()
        False
        >>> (Path("model") / "training.json").read_text()
        '{}'
    """
    out = out.resolve()
    taken = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if taken and not force:
        raise OutputExists(f"expected a new folder; {out} exists. Choose another, or give --force to replace it.")
    if taken and not (out / RECORD).is_file():
        raise OutputExists(f"expected a folder made by this script; {out} has no {RECORD}. Choose another one.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise WriteFailed(
            f"cannot write in {out.parent}: {error.strerror}. Make that folder, or choose another."
        ) from error
    try:
        folder.chmod(0o755)
        yield folder
        for path in folder.iterdir():
            path.chmod(0o644)
        _take_place(folder, out)
    except OSError as error:
        raise WriteFailed(f"cannot write {out}: {error.strerror}. Nothing was left there.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_place(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`; what stood there goes, or stays if the renaming fails."""
    old = folder / ".replaced"
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(out / old.name, ignore_errors=True)

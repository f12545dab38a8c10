"""Runs in folders: what they are called, what they hold, a fast listing of thousands.

The directories are the truth. An index (`index.sqlite`) beside them makes listing fast; it is checked against the
directories every time, and can be thrown away at any time.

Example:
    >>> from experiments import store
    >>> store.Store(".").rows()  # no run in an empty folder
    []
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import BadRun
from experiments.store import index
from experiments.store.rows import Row, columns, folders, read

if TYPE_CHECKING:
    import pandas as pd


class Store:
    """A folder with run directories in it, at most four folders down.

    Attributes:
        root: The folder.
        note: Why the index could not be read or brought up to date last time, although it should have been; else None.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.note: str | None = None

    def rows(self, *, write: bool = True) -> list[Row]:
        """A row for each run directory, by path, as its files are now.

        Directories whose files are as the index says are not read again; of the others the index is told, as far as it
        can be written.

        Cost: three `stat` for each run, and reading those that are new or changed.

        Args:
            write: Whether the index may be brought up to date.

        Raises:
            BadRun: There is no such folder, or it cannot be read.
        """
        self.note = None
        try:
            known, anew = index.load(self.root), False
        except index.Newer as reason:
            self.note, known, anew, write = str(reason), {}, False, False
        except index.Unusable:
            known, anew = {}, True
        return self._brought_up_to_date(known, anew=anew, write=write)

    def rebuild(self) -> list[Row]:
        """Read every run directory anew, into a new index.

        Raises:
            BadRun: There is no such folder, it cannot be read, or the index cannot be written.
        """
        self.note = None
        rows = self._brought_up_to_date({}, anew=True, write=True)
        if self.note is not None:
            raise BadRun(f"cannot write {self.root / index.FILE}: {self.note}.")
        return rows

    def _brought_up_to_date(self, known: dict[str, tuple[str, Row]], *, anew: bool, write: bool) -> list[Row]:
        try:
            there = dict(folders(self.root))
        except OSError as error:
            raise BadRun(
                f"expected a folder with runs; cannot read {self.root}: {error.strerror or error}. Give the --out of "
                "`wiretrace run`."
            ) from error
        changed = {
            run: (stamp, read(self.root, run))
            for run, stamp in there.items()
            if run not in known or known[run][0] != stamp
        }
        gone = [run for run in known if run not in there]
        worth_it = bool(changed or gone) and "." not in there
        if write and worth_it:
            try:
                index.save(self.root, changed, gone, anew=anew)
            except index.Unusable as reason:
                self.note = str(reason)
        return [changed[run][1] if run in changed else known[run][1] for run in there]


def frame(root: str | os.PathLike[str] = "runs") -> pd.DataFrame:
    """Every run of a store as one table: a row for each, with its folder, state, settings and results.

    Settings are columns by their names, the method's options `options.NAME`; results are explained in
    `experiments.store.rows.RESULTS`. What a run does not have is missing.

    Args:
        root: The store.

    Raises:
        BadRun: There is no such folder.

    Example:
        >>> frame(".").empty
        True
    """
    import pandas as pd

    found = Store(root).rows()
    table = pd.DataFrame(found, columns=columns(found))
    table.insert(1, "folder", [os.fspath(Path(root) / str(row["run"])) for row in found])
    return table

"""The command `wiretrace report`: one page over the runs of a store, or of a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.errors import BadConfig
from experiments.run_config import Asked, row_of
from experiments.store import Store, listing
from experiments.store.rows import Row
from experiments.sweep import ROOT
from experiments.sweep_report import write


def report(
    source: Path, *, out: Path, root: Path | None = None, changes: Sequence[str] = (), where: Sequence[str] = ()
) -> list[Path]:
    """Write the page.

    Args:
        source: A store, or a config, whose runs are looked for in `root`.
        out: The page.
        root: For a config: the store of its runs.
        changes: For a config: as `--set` had them when it was run.
        where: Conditions on the runs.

    Returns:
        The files written.

    Raises:
        WiretraceError: There are no such runs, the config is wrong, or the page cannot be written.
    """
    if source.is_dir():
        if root is not None or changes:
            raise BadConfig(f"expected --root and --set with a config; {source} is a folder of runs.")
        rows: list[Row] = Store(source).rows()
        store, title = source, f"Runs in {source}"
    else:
        store, title = root or ROOT, source.stem.replace("_", " ")
        rows = [row_of(run) for run in Asked(source, tuple(changes)).in_store(store)]
    chosen = listing.chosen(rows, where=[listing.condition(each) for each in where])
    if not any(row["state"] != "missing" for row in chosen):
        raise BadConfig(f"expected runs to report on; there are none in {store}. Make some with `wiretrace run`.")
    return write(chosen, root=store, out=out, title=title)

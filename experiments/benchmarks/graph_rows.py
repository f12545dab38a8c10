"""Rows of pictures and pages: seconds of CPU for large circuits, and what importing `graphs` costs."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.benchmarks.measure import Row
from graphs import Architecture, Circuit, ComponentGraph, export, paths

IMPORT = "import time; start = time.process_time(); import graphs; print(time.process_time() - start)"


def circuit_of(n: int) -> Circuit:
    """Random edges of GPT-2 small's shape, with random scores."""
    shape, chance = Architecture(12, 12), random.Random(0)
    edges = chance.sample(ComponentGraph(shape).edges, n)
    return Circuit(shape, edges, {edge: chance.gauss(0, 1) for edge in edges})


def rows() -> Iterator[Row]:
    """Each against the seconds that it may take."""
    small, large = circuit_of(300), circuit_of(5_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield _row("layout and SVG of 300 edges", lambda: export(small, folder / "x.svg"), bar=1.0)
        yield _row("layout and SVG of 5,000 edges", lambda: export(large, folder / "x.svg"), bar=10.0,
                   note="the 1,500 strongest are drawn, and the legend says so")  # fmt: skip
        yield _row("interactive page of 5,000 edges", lambda: export(large, folder / "x.html"), bar=10.0)
        yield _row("the 10 best paths of 5,000 edges", lambda: paths(large, k=10), bar=10.0)
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    seconds = float(done.stdout)
    yield Row("import graphs", seconds * 1e3, 300.0, "ms CPU", seconds / 0.3, "≤ 1×", seconds <= 0.3)


def _row(name: str, work: Callable[[], object], *, bar: float, note: str = "") -> Row:
    work()
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    return Row(f"{name}, over {bar:g} s (GPT-2 small's shape)", seconds * 1e3, bar * 1e3, "ms CPU", seconds / bar,
               "≤ 1×", seconds <= bar, note=note)  # fmt: skip

"""What it costs to cut work into pieces, keep these in run directories and give them to workers; how commands answer.

Overheads are CPU time over calling the function itself; scaling is wall time of two workers over half of one's, all
with the workers' start, in which each loads torch and the model.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from experiments import executors, work
from experiments.benchmarks.measure import Row, medians
from experiments.config_file import build
from experiments.run_directory import Status

OVERHEAD: Final = 1.1
"""The most that a run's shards may cost, as a multiple of calling the function for each."""

SCALING: Final = 1.25
"""The most wall time that two workers may need, as a multiple of half of what one needs: an efficiency of 80 %."""

_BASE: Final = {"task": "ioi", "model": "zoo:ioi", "device": "cpu"}
COAR: Final = {"schema": "wiretrace-attribute/1", **_BASE, "samples": 1_024}
EXACT: Final = {"schema": "wiretrace-config/1", **_BASE, "method": "exact"}


def rows(*, repeats: int = 3, share: float = 1.0) -> Iterator[Row]:
    """All rows of executors and the store.

    Args:
        repeats: Measurements of each.
        share: Of the prompts, runs and folders; below 1 for a quick look.
    """
    yield overhead("COAR", {**COAR, "prompts": _some(32, share)}, _ablations, repeats=repeats)
    yield overhead("exact sweep", {**EXACT, "prompts": _some(32, share)}, _effects, repeats=repeats)
    yield scaling("COAR", [{**COAR, "prompts": _some(128, share), "samples": 4_096}])
    seeds = range(_some(3, share))
    yield scaling("exact sweeps", [{**EXACT, "prompts": _some(512, share), "seed": seed} for seed in seeds])
    yield command(["--help"], bar=1.0, repeats=5)
    with tempfile.TemporaryDirectory() as folder:
        count = _some(10_000, share)
        many_runs(Path(folder), count)
        yield command(["runs", folder], bar=2.0, repeats=repeats, note=f"{count:,} runs, in an index", shown="runs")


def overhead(name: str, settings: Mapping[str, Any], plain: Callable[[Any], object], *, repeats: int) -> Row:
    """Shards through the executor of this process into a run directory, over calling the function for each."""
    stages = work.units(settings, "nowhere")[:1]
    work.forget()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            outcomes = executors.run("process", work.together([work.units(settings, Path(folder) / "run")[:1]]))
            assert all(outcome.state == "finished" for outcome in outcomes), outcomes

    mine, theirs = medians(ours, lambda: plain(build(settings)), repeats=repeats)
    ratio, count = mine[0] / theirs[0], len(stages[0])
    return Row(
        f"{name}: {count} shards in a run directory over the function called {count} times (zoo:ioi)",
        mine[0], theirs[0], "ms CPU", ratio, f"≤ {OVERHEAD:g}×", ratio <= OVERHEAD, mine[1] / theirs[1],
        note=f"loading the model included in both; {(mine[0] - theirs[0]) / count:.1f} ms for each shard",
    )  # fmt: skip


def _ablations(config: Any) -> object:
    """The random ablations of an attribution, kept nowhere."""
    from circuits import coar
    from experiments import attribute
    from experiments.progress_display import Silence

    run, _seconds = attribute.prepare(config, show=Silence())
    sampling = attribute.sampling_of(config, run)
    return [coar.shard(run, sampling, index) for index in range(sampling.n_shards)]


def _effects(config: Any) -> object:
    """The effects of an exact sweep, kept nowhere."""
    from experiments import discover, exact_shards
    from patching import exact

    run = discover.search_run(discover.load_model(config), config)
    spans = [exact_shards.span(run.n_units, index) for index in range(exact_shards.n_shards(run.n_units))]
    return [exact.scores(run, only=run.units[span.start : span.stop]) for span in spans]


def scaling(name: str, settings: Sequence[Mapping[str, Any]]) -> Row:
    """Wall time of two workers over half of one's."""
    took = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            plans = [work.units(each, Path(folder) / str(number))[:1] for number, each in enumerate(settings)]
            work.forget()
            start = time.perf_counter()
            outcomes = executors.run("workers", work.together(plans), workers=workers)
            took[workers] = time.perf_counter() - start
            assert all(outcome.state == "finished" for outcome in outcomes), outcomes
    half, count = took[1] / 2, sum(len(plan[0]) for plan in plans)
    ratio = took[2] / half
    return Row(
        f"{name}: two workers over half of one's time, {count} shards of zoo:ioi",
        took[2] * 1e3, half * 1e3, "ms wall", ratio, f"≤ {SCALING:g}×", ratio <= SCALING, ratio,
        note=f"efficiency {1 / ratio:.0%}; each worker loads torch and the model for itself",
    )  # fmt: skip


def command(words: Sequence[str], *, bar: float, repeats: int, note: str = "", shown: str = "") -> Row:
    """Wall time of a command, from nothing to its last line; the first time, which fills caches, is not counted."""
    took = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "experiments", *words], check=True, capture_output=True)
        took.append(time.perf_counter() - start)
    seconds = statistics.median(took[1:])
    return Row(
        f"wiretrace {shown or ' '.join(words)}",
        seconds * 1e3, bar * 1e3, "ms wall", seconds / bar, f"≤ {bar:g} s", seconds <= bar, None, note,
    )  # fmt: skip


def many_runs(root: Path, count: int) -> None:
    """Run directories that nobody ran: what a store reads of finished searches."""
    config = {name: value for name, value in EXACT.items() if name != "schema"}
    for number in range(count):
        folder = root / f"ioi-zoo-ioi-atp-{number:08x}"
        folder.mkdir(parents=True)
        own = {**config, "method": "atp", "seed": number}
        identity = {"wiretrace": "0.1.0", "config": own, "model_files": {}}
        status = Status("finished", identity, "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z", 1)
        (folder / "status.json").write_text(status.to_json(), encoding="utf-8")
        judged = {
            "faithfulness": number / count,
            "interval": [0.1, 0.9],
            "n_edges": 10,
            "n_possible": 802,
            "n_nodes": 5,
        }
        document = {"schema": "wiretrace-report/1", "config": own, "evaluation": judged, "seconds": {"total": 1.0}}
        (folder / "report.json").write_text(json.dumps(document), encoding="utf-8")


def _some(number: int, share: float) -> int:
    return max(2, round(number * share))

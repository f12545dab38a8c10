"""Rows of memory: what each method on edges needs beyond the model, when its run is given a byte budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from circuits.methods import METHODS
from experiments.benchmarks.measure import Row, peak_bytes
from experiments.benchmarks.rows import random_task
from patching import LensModel, MaskedRun

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "acdc": {"tau": 0.05},
    "subnetwork_probing": {"steps": 2},
    "edge_pruning": {"steps": 2},
    "ugs": {"steps": 2},
}
"""Few steps: the second needs what the last one does."""


def rows(model: LensModel, *, budget: int, bar: float) -> Iterator[Row]:
    """The highest resident memory of each method, the run's own values included, over its budget.

    Args:
        model: a model of the benchmark.
        budget: bytes, as `MaskedRun` takes it.
        bar: the most that the ratio may be.
    """
    task = random_task(model)
    for method in METHODS.values():
        if "edge" not in method.levels:
            continue
        function, options = method.function(), OPTIONS.get(method.name, {})

        def work(function: Any = function, options: Mapping[str, Any] = options) -> Any:
            return function(MaskedRun(model, task, memory=budget), **options)

        work()  # what is made once and kept, such as compiled kernels, is not the method's
        peak = peak_bytes(work)
        yield Row(
            f"peak memory of {method.name}, with a budget of {budget >> 20} MiB ({model.name})",
            peak / 2**20, budget / 2**20, "MiB", peak / budget, f"≤ {bar:g}×", peak <= bar * budget,
            note="all values that the run keeps included",
        )  # fmt: skip

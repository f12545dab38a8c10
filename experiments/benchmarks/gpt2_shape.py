"""What ACDC and circuits cost at GPT-2 small's shape.

    python -m experiments.benchmarks.gpt2_shape --budget-seconds 300 --out FILE

12 layers, 12 heads, d=768, 32,491 edges, its whole vocabulary, random weights, 8 random prompts of 16 tokens. ACDC
decides edges until the budget is used up; what a whole search would take is extrapolated from that and labelled so.
Then circuits of some shares of the edges are run, over the model's own forward.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from circuits import acdc
from experiments.benchmarks import rows
from experiments.benchmarks.measure import machine
from graphs.atomic import write_text
from graphs.components import ComponentGraph
from graphs.nodes import Edge
from patching import LensModel, MaskedRun, Task

EXTRAPOLATION = (
    "an extrapolation, not a measurement: every edge still to come is taken to cost what the ones evaluated so far "
    "cost per layer from its receiver to the logits, and no receiver to be dead"
)


@dataclass(frozen=True)
class Pace:
    """How far a search came in its time.

    Attributes:
        model, metric, tau: what was searched.
        budget: seconds given.
        threads: of torch.
        edges: of the model.
        decided: edges decided on.
        evaluated: those of them that took an evaluation (the others' receivers were dead).
        kept: those that stay.
        finished: whether the search came to its end within the budget.
        seconds, cpu: wall and CPU seconds, from prompts on.
        forward, forward_cpu: wall and CPU seconds of a plain forward of the clean prompts (median).
        forwards_per_edge: CPU seconds per evaluated edge over those of a plain forward.
        layers_reached: lowest layer of a receiver that was evaluated; None if only the logits were.
        extrapolated_seconds: wall seconds of a whole search; see `extrapolation`. The true ones if it finished.
        extrapolation: what that number assumes.
    """

    model: str
    metric: str
    tau: float
    budget: float
    threads: int
    edges: int
    decided: int
    evaluated: int
    kept: int
    finished: bool
    seconds: float
    cpu: float
    forward: float
    forward_cpu: float
    forwards_per_edge: float | None
    layers_reached: int | None
    extrapolated_seconds: float | None
    extrapolation: str


class _TimeIsUp(Exception):
    """The budget is used up."""


def pace(
    model: LensModel,
    task: Task,
    *,
    tau: float,
    budget: float,
    metric: str = "logit_difference",
    clock: Callable[[], float] = time.perf_counter,
) -> Pace:
    """Search until the budget is used up.

    Args:
        model: What to search.
        task: Its prompts.
        tau: Threshold, in the metric's unit.
        budget: Seconds of the clock.
        metric: What the damage is measured by.
        clock: Seconds that pass.
    """
    forward, forward_cpu = _forward(model, task)
    decisions: list[acdc.Decision] = []
    start, cpu = clock(), time.process_time()

    def watch(decision: acdc.Decision) -> None:
        decisions.append(decision)
        if clock() - start >= budget:
            raise _TimeIsUp

    run = MaskedRun(model, task, metric=metric)
    with contextlib.suppress(_TimeIsUp):
        acdc.search(run, tau=tau, watch=watch)
    cpu, seconds = time.process_time() - cpu, clock() - start
    evaluated = [Edge.parse(decision.name) for decision in decisions if decision.delta is not None]
    finished = len(decisions) == run.n_units
    layers = [edge.target.layer for edge in evaluated if edge.target.layer is not None]
    return Pace(
        model=model.name, metric=metric, tau=tau, budget=budget, threads=torch.get_num_threads(), edges=run.n_units,
        decided=len(decisions), evaluated=len(evaluated), kept=sum(decision.kept for decision in decisions),
        finished=finished, seconds=seconds, cpu=cpu, forward=forward, forward_cpu=forward_cpu,
        forwards_per_edge=cpu / len(evaluated) / forward_cpu if evaluated else None,
        layers_reached=min(layers, default=None),
        extrapolated_seconds=extrapolate(run.graph, evaluated, decided=len(decisions), seconds=seconds),
        extrapolation="none needed: the search finished" if finished else EXTRAPOLATION,
    )  # fmt: skip


def extrapolate(graph: ComponentGraph, evaluated: Sequence[Edge], *, decided: int, seconds: float) -> float | None:
    """Seconds of a whole search, from those that some of the edges took; None if nothing was evaluated.

    An edge counts as many times as there are layers from its receiver to the logits (the logits themselves as one).
    ACDC decides on edges from the last receiver to the first.
    """
    layers = graph.architecture.n_layers

    def work(edge: Edge) -> int:
        return 1 if edge.target.layer is None else 1 + layers - edge.target.layer

    done = sum(map(work, evaluated))
    if not done:
        return None
    targets = [Edge(graph.sources[0], port.node, port.letter) for port in graph.targets]
    whole = sum(work(edge) * visible for edge, visible in zip(targets, graph.n_visible, strict=True))
    passed = 0
    left = decided
    for edge, visible in zip(reversed(targets), reversed(graph.n_visible), strict=True):
        passed += work(edge) * min(left, visible)
        left -= min(left, visible)
    return seconds + seconds / done * (whole - passed)


def _forward(model: LensModel, task: Task) -> tuple[float, float]:
    times: list[tuple[float, float]] = []
    for _ in range(4):
        wall, cpu = time.perf_counter(), time.process_time()
        model.logits(task.clean)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    walls, cpus = zip(*times[1:], strict=True)
    return statistics.median(walls), statistics.median(cpus)


def report(model: LensModel, *, tau: float, budget: float, repeats: int) -> dict[str, Any]:
    """The search's pace, and a row per share of edges for circuits."""
    reached = pace(model, rows.random_task(model), tau=tau, budget=budget)
    print(json.dumps(asdict(reached), indent=1), flush=True)
    measured = []
    for row in rows.circuit_run(model, repeats=repeats):
        measured.append(asdict(row))
        print(f"{row.ratio:6.3f}×  {row.name}: {row.ours:,.1f} against {row.floor:,.1f} {row.unit}", flush=True)
    return {"machine": machine(), "acdc": asdict(reached), "rows": measured}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpt2_shape", description=__doc__)
    parser.add_argument("--budget-seconds", type=float, default=300.0, help="for the search; circuits come on top")
    parser.add_argument("--tau", type=float, default=0.01, help="in logits")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of each circuit; the median counts")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args(arguments)
    for name in ("budget_seconds", "tau", "threads", "repeats"):
        if not getattr(options, name) > 0:
            parser.error(f"expected --{name.replace('_', '-')} above 0; got {getattr(options, name)}")
    torch.set_num_threads(options.threads)
    document = report(rows.gpt2_small(), tau=options.tau, budget=options.budget_seconds, repeats=options.repeats)
    if options.out is not None:
        write_text(options.out, json.dumps(document, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()

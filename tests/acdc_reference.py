"""ACDC as its paper writes it: one edge at a time, the whole model for each. What the fast search is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from graphs.nodes import Port
from patching.masked import MaskedRun


@dataclass(frozen=True)
class Step:
    """What happened to one edge, by number; delta is None where nothing was evaluated."""

    edge: int
    kept: bool
    delta: float | None


def sequential(
    run: MaskedRun, *, tau: float, absolute: bool = False, damage: Callable[[Tensor], float] | None = None
) -> tuple[Tensor, list[Step]]:
    """The mask of the circuit, and every decision in order."""
    damage = damage or (lambda mask: float(run.damage(run(mask))))
    graph, mask, steps = run.graph, run.ones(), []
    current = damage(mask)
    first = [sum(graph.n_visible[:target]) for target in range(len(graph.targets))]
    for target in reversed(range(len(graph.targets))):
        alive = feeds_something(run, mask, graph.targets[target])
        for edge in reversed(range(first[target], first[target] + graph.n_visible[target])):
            without = mask.clone()
            without[edge] = 0
            if not alive:
                mask = without
                steps.append(Step(edge, False, None))
                continue
            new = damage(without)
            delta = new - current
            kept = not (abs(delta) if absolute else delta) < tau
            if not kept:
                mask, current = without, new
            steps.append(Step(edge, kept, delta))
    return mask, steps


def feeds_something(run: MaskedRun, mask: Tensor, port: Port) -> bool:
    """Whether what reads at a port is still read by something: its head, or one of its group's heads."""
    if port.node.kind == "logits":
        return True
    readers = run.graph.query_heads(port.node) if port.node.kind == "kv" else (port.node,)
    return any(bool(mask[number]) for number, edge in enumerate(run.units) if edge.source in readers)


def ties(steps: list[Step], *, tau: float) -> list[float]:
    """Other thresholds at which the same search meets a delta that is exactly the threshold."""
    found: list[float] = []
    evaluated = [(step.delta, step.kept) for step in steps if step.delta is not None]
    for number, (delta, _kept) in enumerate(evaluated):
        same_so_far = all(kept == (not earlier < delta) for earlier, kept in evaluated[:number])
        if delta >= 0 and delta != tau and same_so_far:
            found.append(delta)
    return found

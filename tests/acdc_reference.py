"""ACDC as its paper writes it: one edge at a time, the whole model for each. What the fast search is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from graphs.nodes import Edge, Node, Port
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


def sequential_in_order(
    run: MaskedRun, names: list[str], *, tau: float, absolute: bool = False
) -> tuple[Tensor, list[Step]]:
    """The same loop over anything that has a name, in a given order: edges, edges of all ports, nodes, positions."""
    mask, steps = run.ones(), []
    current = float(run.damage(run(mask)))
    for number, name in enumerate(names):
        without = mask.clone()
        for row, unit in entries(run, name):
            without.view(-1, run.n_units)[row, unit] = 0
        if not reaches_an_answer(run, mask.reshape(-1, run.n_units) != 0, name):
            mask = without
            steps.append(Step(number, False, None))
            continue
        new = float(run.damage(run(without)))
        delta = new - current
        kept = not (abs(delta) if absolute else delta) < tau
        if not kept:
            mask, current = without, new
        steps.append(Step(number, kept, delta))
    return mask, steps


def place_of(name: str) -> tuple[str, int | None]:
    bare, at, place = name.partition("@")
    return bare, int(place) if at else None


def ports_of(run: MaskedRun, name: str) -> tuple[Node, list[Port]]:
    """The sender that a name speaks of, and the ports where it is read."""
    sender, _, reader = place_of(name)[0].partition("->")
    ports = [port for port in run.graph.targets if reader in (str(port), str(port.node))]
    return Node.parse(sender), ports


def entries(run: MaskedRun, name: str) -> list[tuple[int, int]]:
    """The rows and columns of the mask that a name stands for."""
    sender, ports = ports_of(run, name)
    row = place_of(name)[1] or 0
    if run.level == "node":
        return [(row, run.graph.source_index[sender])]
    return [(row, run.graph.number(Edge(sender, port.node, port.letter))) for port in ports]


def reaches_an_answer(run: MaskedRun, on: Tensor, name: str) -> bool:
    """Whether what a candidate carries is read by anything that is still there, position by position."""
    graph, (bare, place) = run.graph, place_of(name)
    answered = set(run.task.positions.tolist())
    if place is not None and run.ablation.is_run:
        clean, other = (
            run.model.embed(run.task.clean),
            run.ablation.embed(run.model, run.task, run.ablation.prompts(run.task)),
        )
        if not bool((clean[:, : place + 1] != other[:, : place + 1]).any()) and place < int(run.task.positions.min()):
            return False
    if run.level == "node":
        if place is None or place in answered:
            return True
        sender = Node.parse(bare)
        for reader in graph.sources[1:]:
            if not any(
                graph.source_index[sender] < graph.n_visible[graph.target_index[port]] for port in graph.readers(reader)
            ):
                continue
            rows = on[place:] if reader.kind == "head" else on[place : place + 1]
            if bool(rows[:, graph.source_index[reader]].any()):
                return True
        return False
    _, ports = ports_of(run, name)
    for port in ports:
        if port.node.kind == "logits" and (place is None or place in answered):
            return True
        writers = graph.query_heads(port.node) if port.node.kind == "kv" else (port.node,)
        rows = on if place is None else on[place:] if port.letter in ("k", "v") else on[place : place + 1]
        columns = [number for number, edge in enumerate(graph.edges) if edge.source in writers]
        if bool(rows[:, columns].any()):
            return True
    return False

"""What a search decides on, in which order, and which of it can still matter.

A *candidate* is what one decision is about: an edge, the q, k and v edges between two nodes together (``merged``), or a
node with all its outgoing edges; at every position or at one. It stands for some entries of a run's mask, so a search
over any of them is the same search. Candidates come in *stages*, from the logits back: the readers of one layer, none
of which feeds another of the same stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from graphs.nodes import Edge, Node, Port
from patching import atp
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.plan import Stage

ORDERS: dict[str, str] = {
    "paper": "receivers last to first (values, keys, queries; later heads first), senders latest first",
    "increasing": "receivers and senders of later layers first, within a layer the MLP, then heads by increasing index",
    "eap": "receivers last to first, senders by increasing absolute EAP score",
    "shuffle": "receivers of later layers first, within a layer in random order; senders in random order",
}
"""The orders in which edges can be walked. Another order can give another circuit, so it is part of the result."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one decision is about.

    Attributes:
        name: as in logs: ``m0->a1.h0<q>``, ``m0->a1.h0`` (merged), ``a1.h0`` (a node), each perhaps with ``@7``.
        entries: which entries of the flattened mask go with it.
        source: number of the node that writes.
    """

    name: str
    entries: tuple[int, ...]
    source: int


@dataclass(frozen=True, slots=True)
class Receiver:
    """Candidates that matter or not together: those read at one place.

    Attributes:
        ports: numbers of the targets that read there; for a node, none.
        position: of the reader; None for every position.
        candidates: in order.
    """

    ports: tuple[int, ...]
    position: int | None
    candidates: tuple[Candidate, ...]


class Agenda:
    """Everything that a search decides on, stage by stage.

    Args:
        run: over edges or nodes, perhaps by position.
        order: a key of `ORDERS`.
        merged: decide on the q, k and v edges between two nodes together.
        seed: of ``shuffle``.

    Raises:
        InvalidOption: the order is unknown, or the options do not go with the run.
    """

    def __init__(self, run: MaskedRun, *, order: str, merged: bool, seed: int) -> None:
        if order not in ORDERS:
            raise InvalidOption(f"expected an order out of {', '.join(ORDERS)}; got {order!r}.")
        if run.level not in ("edge", "node"):
            raise InvalidOption(f"expected a run over edges or nodes; got one over {run.level}s. Use run.edges().")
        if run.level == "node" and (merged or order == "eap"):
            raise InvalidOption("expected a run over edges for merged=True and order='eap'; use run.edges().")
        self.run, self.graph, self.order, self.merged = run, run.graph, order, merged
        self.seed = seed
        self.names = [str(node) for node in self.graph.sources]
        self.width = run.n_units
        self.places: Sequence[int | None] = range(run.mask_shape[0]) if run.per_position else (None,)
        self.scores = atp.scores(run.edges().everywhere()).importance.tolist() if order == "eap" else []
        self.first_edge = np.concatenate([[0], np.cumsum(self.graph.n_visible)]).tolist()

    @cached_property
    def n_candidates(self) -> int:
        """How many decisions there are."""
        if self.run.level == "node":
            return self.width * len(self.places)
        counts = (len(self._readers(stage, _random(0))) * stage.visible for stage in self.run.planner.stages)
        return sum(counts) * len(self.places)

    def stages(self) -> Iterator[list[Receiver]]:
        """The receivers of each stage, from the logits back; the same ones each time."""
        chance = _random(self.seed)
        late_first = list(reversed(self.run.planner.stages))
        if self.run.level == "edge":
            for stage in late_first:
                yield list(self._edge_stage(stage, chance))
            return
        for stage in late_first[1:]:  # the logits write nothing
            yield list(self._node_stage(list(range(stage.sources.start, stage.sources.stop)), chance))
        yield list(self._node_stage([0], chance))  # the input is read by all others

    def __iter__(self) -> Iterator[Candidate]:
        """All candidates in order."""
        for stage in self.stages():
            for receiver in stage:
                yield from receiver.candidates

    # --- making it ---------------------------------------------------------------------------------------------------

    def _node_stage(self, numbers: list[int], chance: torch.Generator) -> Iterator[Receiver]:
        """Nodes none of which reads another."""
        for number in self._arranged(numbers, chance):
            for place in self._late_first():
                name = _at(str(self.graph.sources[number]), place)
                yield Receiver((), place, (Candidate(name, (self._entry(number, place),), number),))

    def _edge_stage(self, stage: Stage, chance: torch.Generator) -> Iterator[Receiver]:
        """The readers of a stage with the edges into them."""
        for ports in self._readers(stage, chance):
            port = self.graph.targets[ports[0]]
            reader = str(port if len(ports) == 1 else port.node)
            for place in self._late_first():
                senders = self._senders(ports, stage.visible, chance)
                yield Receiver(ports, place, tuple(self._candidate(ports, reader, sender, place) for sender in senders))

    def _readers(self, stage: Stage, chance: torch.Generator) -> list[tuple[int, ...]]:
        """Numbers of the targets that are read together, reader by reader."""
        numbers = range(stage.targets.start, stage.targets.stop)
        letters: dict[str, list[tuple[int, ...]]] = {}
        if self.merged and stage.kind == "attention":
            nodes: dict[Node, list[int]] = {}
            for number in numbers:
                nodes.setdefault(self.graph.targets[number].node, []).append(number)
            for node, ports in nodes.items():  # where keys and values are grouped, their readers come before queries
                letters.setdefault("v" if node.kind == "kv" else "q", []).append(tuple(ports))
        else:
            for number in numbers:
                letters.setdefault(self.graph.targets[number].letter or "", []).append((number,))
        if self.order == "shuffle":
            readers = [ports for some in letters.values() for ports in some]
            return [readers[i] for i in torch.randperm(len(readers), generator=chance).tolist()]
        late_first = [letters[letter] for letter in ("", "v", "k", "q") if letter in letters]
        return [ports for some in late_first for ports in (some if self.order == "increasing" else reversed(some))]

    def _senders(self, ports: tuple[int, ...], visible: int, chance: torch.Generator) -> list[int]:
        if self.order != "eap":
            return self._arranged(list(range(visible)), chance)
        scores = [sum(self.scores[self.first_edge[port] + sender] for port in ports) for sender in range(visible)]
        return sorted(range(visible), key=lambda sender: (scores[sender], -sender))

    def _arranged(self, sources: list[int], chance: torch.Generator) -> list[int]:
        """Sources in the chosen order, latest layer first."""
        if self.order == "shuffle":
            return [sources[i] for i in torch.randperm(len(sources), generator=chance).tolist()]
        if self.order != "increasing":
            return sources[::-1]
        return sorted(sources, key=self._increasing)

    def _increasing(self, source: int) -> tuple[int, bool, int]:
        node = self.graph.sources[source]
        return (1 if node.layer is None else -node.layer, node.kind == "head", node.index or 0)

    def _late_first(self) -> Sequence[int | None]:
        return self.places[::-1]

    def _candidate(self, ports: tuple[int, ...], reader: str, sender: int, place: int | None) -> Candidate:
        entries = tuple(self._entry(self.first_edge[port] + sender, place) for port in ports)
        return Candidate(_at(f"{self.names[sender]}->{reader}", place), entries, sender)

    def _entry(self, unit: int, place: int | None) -> int:
        return unit if place is None else place * self.width + unit

    # --- what can still matter ---------------------------------------------------------------------------------------

    def alive(self, mask: Tensor, stage: Sequence[Receiver]) -> list[bool]:
        """Whether what each receiver of a stage reads can still reach an answer, by the edges that later readers kept.

        A node counts if it feeds anything; keys and values count at all positions up to one at which their heads do.
        The logits count where some prompt is answered, nodes as long as a later node or the logits read them there.
        Positions before the first at which any replacement differs from the clean run count for nothing.
        """
        rows = mask.reshape(-1, self.width).numpy() != 0
        feeding = self._feeding(rows)
        if self.run.level == "node":
            return [self._node_alive(feeding, receiver) for receiver in stage]
        later = np.logical_or.accumulate(feeding[::-1])[::-1]
        return [self._reader_alive(feeding, later, receiver) for receiver in stage]

    def _feeding(self, rows: Bool[np.ndarray, "place unit"]) -> Bool[np.ndarray, "place source"]:
        """Which nodes are read by anything (over nodes: which are kept)."""
        if self.run.level == "node":
            return rows
        result = np.zeros((len(rows), len(self.graph.sources)), dtype=bool)
        sources = self.run.edge_sources.numpy()
        for row, edges in zip(result, rows, strict=True):
            row[sources[edges]] = True
        return result

    def _reader_alive(self, feeding: np.ndarray, later: np.ndarray, receiver: Receiver) -> bool:
        place = receiver.position or 0
        if receiver.position is not None and place < self._first_place:
            return False
        for number in receiver.ports:
            port = self.graph.targets[number]
            if port.node.kind == "logits":
                if receiver.position is None or place in self._answered:
                    return True
            elif (later if port.letter in ("k", "v") else feeding)[place, self._writers(port)].any():
                return True
        return False

    def _node_alive(self, kept: np.ndarray, receiver: Receiver) -> bool:
        place = receiver.position
        if place is None or place in self._answered:
            return True
        if place < self._first_place:
            return False
        source = receiver.candidates[0].source
        for stage in self.run.planner.stages:
            if stage.kind == "logits" or stage.visible <= source:
                continue
            read = kept[place:, stage.sources] if stage.kind == "attention" else kept[place, stage.sources]
            if read.any():
                return True
        return False

    def _writers(self, port: Port) -> list[int]:
        """Numbers of the nodes that are computed from what is read at a port."""
        nodes = self.graph.query_heads(port.node) if port.node.kind == "kv" else (port.node,)
        return [self.graph.source_index[node] for node in nodes]

    @cached_property
    def _answered(self) -> set[int]:
        return set(self.run.task.positions.tolist())

    @cached_property
    def _first_place(self) -> int:
        return min(batch.start for batch in self.run.batches)

    # --- what is left ------------------------------------------------------------------------------------------------

    def edges(self, mask: Tensor) -> list[tuple[Edge, int]]:
        """The edges that a mask keeps, each with its entry of the flattened mask.

        Over nodes: the edges between kept nodes (and the logits), each with its source's entry.
        """
        rows = mask.reshape(-1, self.width)
        if self.run.level == "edge":
            kept = rows.nonzero().tolist()
            return [(self._edge(unit, place), self._entry(unit, self._place(place))) for place, unit in kept]
        feeding = rows.numpy() != 0
        later = np.logical_or.accumulate(feeding[::-1])[::-1]
        found = []
        for target, port in enumerate(self.graph.targets):
            for place in range(len(feeding)):
                if self._reader_alive(feeding, later, Receiver((target,), self._place(place), ())):
                    for source in np.flatnonzero(feeding[place, : self.graph.n_visible[target]]).tolist():
                        edge = Edge(self.graph.sources[source], port.node, port.letter, self._place(place))
                        found.append((edge, self._entry(source, self._place(place))))
        return found

    def _place(self, place: int) -> int | None:
        return place if self.run.per_position else None

    def _edge(self, unit: int, place: int) -> Edge:
        edge = self.graph.edge_at(unit)
        return Edge(edge.source, edge.target, edge.port, place) if self.run.per_position else edge


def _at(name: str, place: int | None) -> str:
    return name if place is None else f"{name}@{place}"


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

"""What has to be computed again when a mask changes: the incremental rule, on index arrays alone.

Three facts decide, each exact:

* *Reach.* A node is dirty iff an entry of its input column changed, or a dirty node feeds it through an edge whose
  mask is not 0. Clean nodes keep the values they have.
* *Need.* A node counts only if some path of edges with mask not 0 leads from it to the logits.
* *Where.* The logits are read at one position per prompt. What feeds only them, or only queries and MLPs that are
  themselves needed only there, is needed only there (`ANSWER`); keys and values are needed at every position (`FULL`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int8

from graphs.components import ComponentGraph

NONE, ANSWER, FULL = 0, 1, 2


@dataclass(frozen=True)
class Stage:
    """Readers that are computed together: the ports of one attention layer, one MLP, or the logits.

    ``targets`` and ``sources`` are slices of the graph's targets and sources; stages read the first ``visible``
    sources. The logits write no source.
    """

    kind: str
    layer: int
    targets: slice
    sources: slice
    visible: int


@dataclass(frozen=True)
class Plan:
    """For every source and target, whether to compute it and where it is needed."""

    need_sources: Int8[np.ndarray, " source"]
    need_targets: Int8[np.ndarray, " target"]
    dirty_sources: Bool[np.ndarray, " source"]
    dirty_targets: Bool[np.ndarray, " target"]


class Planner:
    """Makes plans for one model.

    ``joined`` models have a norm over the sum of a layer's heads, so its heads stand or fall together.
    """

    def __init__(self, graph: ComponentGraph, *, joined: bool) -> None:
        self.graph = graph
        self.joined = joined
        self.n_heads = graph.architecture.n_heads
        self.n_kv = graph.architecture.n_kv_heads
        self.n_sources, self.n_targets = len(graph.sources), len(graph.targets)
        self.stages = tuple(_stages(graph))

    def ports(self, stage: Stage) -> tuple[slice, slice, slice]:
        """The q, k and v targets of an attention stage."""
        start = stage.targets.start
        middle = start + self.n_heads
        return (
            slice(start, middle),
            slice(middle, middle + self.n_kv),
            slice(middle + self.n_kv, stage.targets.stop),
        )

    def groups(self, heads: np.ndarray) -> np.ndarray:
        """The key/value group of each head."""
        return heads // (self.n_heads // self.n_kv)

    def needs(self, on: Bool[np.ndarray, "target source"]) -> tuple[np.ndarray, np.ndarray]:
        """Where each source and target is needed, walking back from the logits."""
        sources = np.zeros(self.n_sources, dtype=np.int8)
        targets = np.zeros(self.n_targets, dtype=np.int8)
        for stage in reversed(self.stages):
            need = targets[stage.targets]
            if stage.kind == "logits":
                need[:] = ANSWER
            elif stage.kind == "mlp":
                need[:] = sources[stage.sources]
            else:
                heads = sources[stage.sources]
                if self.joined:
                    heads[:] = heads.max()
                queries, keys, values = self.ports(stage)
                targets[queries] = heads
                shared = FULL * (heads.reshape(self.n_kv, -1).max(1) > NONE)
                targets[keys] = shared
                targets[values] = shared
            visible = sources[: stage.visible]
            rows = on[stage.targets, : stage.visible]
            for level in (ANSWER, FULL):
                chosen = rows[need == level]
                if len(chosen):
                    np.maximum(visible, level * chosen.any(0), out=visible)
        return sources, targets

    def plan(self, on: Bool[np.ndarray, "target source"], changed: Bool[np.ndarray, "target source"]) -> Plan:
        """What to compute when ``changed`` entries of the mask change and entries ``on`` are not 0 after it."""
        need_sources, need_targets = self.needs(on)
        dirty_sources = np.zeros(self.n_sources, dtype=bool)
        dirty_targets = np.zeros(self.n_targets, dtype=bool)
        needed = need_targets > NONE
        direct = changed.any(1) & needed
        for stage in self.stages:
            seen = dirty_sources[: stage.visible]
            dirty = direct[stage.targets]
            if seen.any():
                dirty = dirty | ((on[stage.targets, : stage.visible] & seen).any(1) & needed[stage.targets])
            if not dirty.any():
                continue
            dirty_targets[stage.targets] = dirty
            if stage.kind == "mlp":
                dirty_sources[stage.sources] = dirty
            elif stage.kind == "attention":
                queries, keys, values = self.ports(stage)
                shared = dirty_targets[keys] | dirty_targets[values]
                heads = dirty_targets[queries] | np.repeat(shared, self.n_heads // self.n_kv)
                heads &= need_sources[stage.sources] > NONE
                if self.joined and heads.any():
                    heads[:] = True
                dirty_sources[stage.sources] = heads
        return Plan(need_sources, need_targets, dirty_sources, dirty_targets)


def _stages(graph: ComponentGraph) -> list[Stage]:
    shape = graph.architecture
    stages: list[Stage] = []
    ports = shape.n_heads + 2 * shape.n_kv_heads
    target, source = 0, 1
    for layer in range(shape.n_layers):
        kinds = [("attention", ports, shape.n_heads)] + ([("mlp", 1, 1)] if shape.has_mlp else [])
        for kind, reads, writes in kinds:
            visible = graph.n_visible[target]
            stages.append(Stage(kind, layer, slice(target, target + reads), slice(source, source + writes), visible))
            target, source = target + reads, source + writes
    stages.append(Stage("logits", shape.n_layers, slice(target, target + 1), slice(source, source), source))
    return stages

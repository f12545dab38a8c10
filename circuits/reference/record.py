"""What is known of a reference circuit, and how lists of heads become edges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.nodes import INPUT, Edge, Node, Port, head, mlp


@dataclass(frozen=True)
class Reference:
    """A circuit of the literature.

    Attributes:
        name: as in `REFERENCES`.
        model: whose it is, by its hub name.
        circuit: its edges, at every position.
        groups: name of a role to the heads (or MLPs) that play it.
        positions: role to the token at which it is played, where the source says so.
        published_edges: how many edges the source counts, those within heads included.
        source: where it is from.
    """

    name: str
    model: str
    circuit: Circuit
    groups: Mapping[str, tuple[Node, ...]]
    positions: Mapping[str, str]
    published_edges: int
    source: str

    @property
    def heads(self) -> tuple[Node, ...]:
        """Every head of the groups."""
        return tuple(node for nodes in self.groups.values() for node in nodes if node.kind == "head")


def heads(*names: str) -> tuple[Node, ...]:
    """Heads as papers write them: ``9.6`` is head 6 of layer 9."""
    return tuple(head(int(layer), int(index)) for layer, index in (name.split(".") for name in names))


def mlps(layers: Iterable[int]) -> tuple[Node, ...]:
    """The MLPs of some layers."""
    return tuple(mlp(layer) for layer in layers)


def joined(
    shape: Architecture, sources: Iterable[Node], targets: Iterable[Node], letters: str = "qkv"
) -> Iterator[Edge]:
    """Every edge of the model from some nodes into some others, at these ports of heads."""
    graph = ComponentGraph(shape)
    targets = tuple(targets)
    for source in sources:
        for target in targets:
            for letter in letters if target.kind == "head" else (None,):
                place = graph.target_index[Port(target, letter)]  # type: ignore[arg-type]
                if graph.source_index[source] < graph.n_visible[place]:
                    yield Edge(source, target, letter)  # type: ignore[arg-type]


def reference(
    name: str,
    *,
    model: str,
    shape: Architecture,
    edges: Iterable[Edge],
    groups: Mapping[str, tuple[Node, ...]],
    positions: Mapping[str, str],
    published_edges: int,
    source: str,
) -> Reference:
    """A reference, whose circuit says where it is from."""
    provenance = {"method": "reference", "model": model, "task": name, "source": source}
    circuit = Circuit(shape, edges, provenance=provenance)
    return Reference(name, model, circuit, groups, positions, published_edges, source)


EMBEDDING = (INPUT,)
"""The embeddings as the only source."""

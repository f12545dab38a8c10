"""The shape of a model, and every node and edge that a circuit of it could have.

Blocks read the residual stream and add to it, so a node can read whatever was written before it and nothing else.
Listing the writers (*sources*) in the order in which a model computes them makes what a reading port (*target*) can
see a prefix of that list, and an edge's number simple arithmetic:

    edge number = (edges of all earlier targets) + (number of the source)

Nothing here holds weights or scores; it is pure data, the same for every model of one shape.

Features of dictionaries are no components: how many there are is not part of an architecture, so they are not among
`sources` and `targets`, and edges between them have no number. `has_node`, `check_node` and `check_edge` know them
(`graphs.features` says which there can be).

Example:
    >>> gpt2_small = ComponentGraph(Architecture(n_layers=12, n_heads=12))
    >>> gpt2_small.n_edges, gpt2_small.n_edges + gpt2_small.n_direct_edges
    (32491, 32923)
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final

from graphs.errors import BadArchitecture, UnknownEdge, UnknownNode
from graphs.features import why_no_node, why_not
from graphs.nodes import INPUT, LOGITS, Edge, Letter, Node, Port, head, kv, mlp

LARGEST_SIZE: Final = 10_000
"""No model may have more layers, or more heads in a layer, than this: a hostile file must not exhaust memory."""

_MOST_NODES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a transformer: all that a circuit's graph depends on.

    Args:
        n_layers: Number of blocks, at least 1.
        n_heads: Query heads in each block, at least 1.
        n_kv_heads: Heads that have keys and values of their own; None means as many as there are query heads
            (multi-head attention), fewer is grouped-query attention, 1 is multi-query attention.
        has_mlp: False for attention-only models.
        parallel: True where attention and MLP of a block read the same residual stream (GPT-J, GPT-NeoX), so that
            an MLP does not see its own block's heads.

    Raises:
        BadArchitecture: If a size is not a whole number in range or the groups do not divide the heads.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int = field(default=None)  # pyright: ignore[reportAssignmentType]  # None becomes n_heads
    has_mlp: bool = True
    parallel: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_kv_heads", self.n_heads if self.n_kv_heads is None else self.n_kv_heads)
        for name in ("n_layers", "n_heads", "n_kv_heads"):
            object.__setattr__(self, name, _size(getattr(self, name), name=name))
        for name in ("has_mlp", "parallel"):
            if not isinstance(getattr(self, name), bool):
                raise BadArchitecture(f"{name} must be True or False; got {getattr(self, name)!r}")
        if self.n_heads % self.n_kv_heads:
            raise BadArchitecture(
                f"n_kv_heads must divide n_heads, so that every group serves equally many heads; "
                f"got {self.n_kv_heads} groups for {self.n_heads} heads"
            )
        if self.n_layers * (self.n_heads + 1) > _MOST_NODES:
            raise BadArchitecture(
                f"expected a model of at most {_MOST_NODES:,} heads; got {self.n_layers:,} layers of "
                f"{self.n_heads:,} heads"
            )

    @property
    def grouped(self) -> bool:
        """Whether heads share keys and values, which then are nodes of their own (`a3.kv1`)."""
        return self.n_kv_heads != self.n_heads

    @property
    def heads_per_group(self) -> int:
        """How many query heads share one pair of keys and values."""
        return self.n_heads // self.n_kv_heads

    def to_dict(self) -> dict[str, int | bool]:
        """The five fields as plain data, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_dict`.

        Raises:
            BadArchitecture: If a field is missing, unknown or out of range.
        """
        if not isinstance(fields, Mapping):
            raise BadArchitecture(f"an architecture is a table of its fields; got {type(fields).__name__}")
        known = Architecture.__slots__
        unknown = sorted(str(name) for name in fields if name not in known)
        missing = [name for name in ("n_layers", "n_heads") if name not in fields]
        if unknown or missing:
            said = [f"missing {name}" for name in missing] + [f"unknown {name[:40]!a}" for name in unknown[:3]]
            raise BadArchitecture(f"an architecture has the fields {', '.join(known)}; got {', '.join(said)}")
        return Architecture(**fields)


@dataclass(frozen=True)
class ComponentGraph:
    """Every node and edge that circuits of one architecture can have, in topological order.

    Building it costs time and memory for the nodes only; `edges` and `edge_index` make one object per edge when first
    asked for (32,491 for GPT-2 small), `edge_at` and `number` work without them.

    Args:
        architecture: The model's shape.

    Example:
        >>> graph = ComponentGraph(Architecture(n_layers=2, n_heads=2))
        >>> [str(source) for source in graph.sources]
        ['input', 'a0.h0', 'a0.h1', 'm0', 'a1.h0', 'a1.h1', 'm1']
        >>> [str(target) for target in graph.targets[:7]]
        ['a0.h0<q>', 'a0.h1<q>', 'a0.h0<k>', 'a0.h1<k>', 'a0.h0<v>', 'a0.h1<v>', 'm0']
        >>> graph.n_visible[:7]  # m0 reads the input and both heads
        (1, 1, 1, 1, 1, 1, 3)
    """

    architecture: Architecture

    @property
    def sources(self) -> tuple[Node, ...]:
        """The nodes that write, as the model computes them: input, a0.h0, ..., m0, a1.h0, ..."""
        return _sources(self.architecture)

    @property
    def targets(self) -> tuple[Port, ...]:
        """The ports that read: per layer all queries, all keys, all values, then the MLP; the logits last."""
        return _targets(self.architecture)

    @property
    def n_visible(self) -> tuple[int, ...]:
        """For each target, how many leading sources it can read."""
        return _n_visible(self.architecture)

    @property
    def source_index(self) -> Mapping[Node, int]:
        """Where each node stands in `sources`."""
        return _source_index(self.architecture)

    @property
    def target_index(self) -> Mapping[Port, int]:
        """Where each port stands in `targets`."""
        return _target_index(self.architecture)

    @cached_property
    def n_edges(self) -> int:
        """How many edges there are, keys and values of a group counted once."""
        return sum(self.n_visible)

    @property
    def n_direct_edges(self) -> int:
        """How many edges join a head's query, key and value to the head itself: 3 per head.

        The original ACDC counts them among a circuit's edges, so its totals are `n_edges + n_direct_edges`
        (arXiv 2304.14997: 32,923 for GPT-2 small). They are not edges here: they can be cut at the ports.
        """
        return 3 * self.architecture.n_layers * self.architecture.n_heads

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge, grouped by target, sources ascending."""
        return tuple(self._each_edge())

    @cached_property
    def edge_index(self) -> Mapping[Edge, int]:
        """Where each edge stands in `edges`."""
        return {edge: number for number, edge in enumerate(self.edges)}

    def edge_at(self, number: int) -> Edge:
        """The edge that stands at `number` in `edges`, without building them all.

        Raises:
            UnknownEdge: If there is no such number.
        """
        number = operator.index(number)
        if not 0 <= number < self.n_edges:
            raise UnknownEdge(f"edges are numbered 0 to {self.n_edges - 1:,}; got {number:,}")
        place = bisect_right(self._first_edge, number) - 1
        node, letter = self.targets[place]
        return Edge(self.sources[number - self._first_edge[place]], node, letter)

    def number(self, edge: Edge) -> int:
        """Where `edge` stands in `edges`; its position, if it has one, does not count.

        Raises:
            UnknownEdge: If this architecture has no such edge, or it is one between features, which have no number.
        """
        if edge.of_features:
            self.check_edge(edge)
            raise UnknownEdge(
                f"{edge} joins features of dictionaries, which are not among the edges between components that a "
                f"model's architecture lists"
            )
        place = self.target_index.get(edge.reads)
        source = self.source_index.get(edge.source)
        if place is None or source is None or source >= self.n_visible[place]:
            raise UnknownEdge(self._why_not(edge))
        return self._first_edge[place] + source

    def readers(self, node: Node) -> tuple[Port, ...]:
        """The ports whose values `node` is computed from; none for the input.

        A head is computed from its own query and from the key and value of its own or its group's.

        Raises:
            UnknownNode: If this architecture has no such node.
        """
        self.check_node(node)
        if node.kind == "input":
            return ()
        if node.kind == "kv":
            return (Port(node, "k"), Port(node, "v"))
        if node.kind == "head":
            owner = self.key_value_node(node)
            return (Port(node, "q"), Port(owner, "k"), Port(owner, "v"))
        return (Port(node),)

    def key_value_node(self, query_head: Node) -> Node:
        """The node whose ports read a head's keys and values: the head itself, or its group."""
        if not self.architecture.grouped or query_head.layer is None or query_head.index is None:
            return query_head
        return kv(query_head.layer, query_head.index // self.architecture.heads_per_group)

    def query_heads(self, group: Node) -> tuple[Node, ...]:
        """The heads that share the keys and values of a `kv` node, ascending."""
        self.check_node(group)
        if group.kind != "kv" or group.layer is None or group.index is None:
            raise UnknownNode(f"expected a key/value group such as a0.kv0; got {group}")
        share = self.architecture.heads_per_group
        return tuple(head(group.layer, group.index * share + member) for member in range(share))

    def has_node(self, node: Node) -> bool:
        """Whether `node` writes or reads in this architecture, or is a feature that a dictionary could have in it."""
        if node.site is not None:
            return why_no_node(node, self.architecture) is None
        return node in self.source_index or Port(node, "k" if node.kind == "kv" else None) in self.target_index

    def check_node(self, node: Node) -> None:
        """Raise unless this architecture has the node.

        Raises:
            UnknownNode: With what exists instead.
        """
        if not self.has_node(node):
            raise UnknownNode(self._no_node(node))

    def check_edge(self, edge: Edge) -> None:
        """Raise unless this architecture has the edge (at any position), or could have it between features.

        Raises:
            UnknownEdge: With what exists instead.
        """
        if not edge.of_features:
            self.number(edge)
        elif reason := why_not(edge, self.architecture):
            raise UnknownEdge(reason)

    @cached_property
    def _first_edge(self) -> tuple[int, ...]:
        return tuple(accumulate(self.n_visible[:-1], initial=0))

    def _each_edge(self) -> Iterator[Edge]:
        for (node, letter), visible in zip(self.targets, self.n_visible, strict=True):
            for source in self.sources[:visible]:
                yield Edge(source, node, letter)

    def _no_node(self, node: Node) -> str:
        shape = self.architecture
        if node.site is not None:
            return f"this model ({self}) has no place for {node}: {why_no_node(node, shape)}"
        layers = _span("m{}", shape.n_layers)
        if node.kind == "neuron":
            return f"{node} is a neuron, and this graph has whole MLPs: use m{node.layer}"
        if node.kind == "mlp":
            exists = f"its MLPs are {layers}" if shape.has_mlp else "it is attention-only and has no MLPs"
        elif node.kind == "kv" and not shape.grouped:
            exists = f"every head has keys and values of its own: use a{node.layer}.h{node.index}<k> or <v>"
        else:
            name, count = ("h", shape.n_heads) if node.kind == "head" else ("kv", shape.n_kv_heads)
            noun = "heads" if node.kind == "head" else "key/value groups"
            exists = f"its {noun} are a0.{name}0 to a{shape.n_layers - 1}.{name}{count - 1}"
        return f"this model ({self}) has no node {node}: {exists}"

    def _why_not(self, edge: Edge) -> str:
        """Say why the edge does not exist and which one may have been meant."""
        for end in (edge.source, edge.target):
            if not self.has_node(end):
                return f"no edge {edge}: {self._no_node(end)}"
        target, port = edge.target, edge.port
        if target.kind == "head" and port is None:
            near = [Edge(edge.source, place.node, place.letter) for place in self.readers(target)]
            return f"no edge {edge}: {target} reads in three places; use {', '.join(map(str, near))}"
        if target.kind == "head" and self.architecture.grouped and port != "q":
            near = Edge(edge.source, self.key_value_node(target), port)
            return f"no edge {edge}: keys and values are shared by a group of heads; use {near}"
        last = self.sources[self.n_visible[self.target_index[edge.reads]] - 1]
        own = " (its attention and MLP run in parallel)" if self.architecture.parallel and target.kind == "mlp" else ""
        return f"no edge {edge}: {edge.reads} reads only what is written before it{own}, input to {last}"

    def __str__(self) -> str:
        shape = self.architecture
        groups = f" in {shape.n_kv_heads} key/value groups" if shape.grouped else ""
        mlps = ("parallel MLPs" if shape.parallel else "MLPs") if shape.has_mlp else "no MLPs"
        return f"{shape.n_layers} layers, {shape.n_heads} heads{groups}, {mlps}"


def _size(value: Any, *, name: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        size = operator.index(value)
    except TypeError:
        raise BadArchitecture(f"{name} must be a whole number; got {value!r}") from None
    if not 1 <= size <= LARGEST_SIZE:
        raise BadArchitecture(f"{name} must be from 1 to {LARGEST_SIZE:,}; got {size}")
    return size


def _span(spelling: str, count: int) -> str:
    return spelling.format(0) if count == 1 else f"{spelling.format(0)} to {spelling.format(count - 1)}"


@lru_cache(maxsize=32)
def _sources(shape: Architecture) -> tuple[Node, ...]:
    sources = [INPUT]
    for layer in range(shape.n_layers):
        sources.extend(head(layer, index) for index in range(shape.n_heads))
        if shape.has_mlp:
            sources.append(mlp(layer))
    return tuple(sources)


@lru_cache(maxsize=32)
def _targets(shape: Architecture) -> tuple[Port, ...]:
    targets: list[Port] = []
    letters: tuple[Letter, ...] = ("k", "v")
    for layer in range(shape.n_layers):
        targets.extend(Port(head(layer, index), "q") for index in range(shape.n_heads))
        owners = [(kv if shape.grouped else head)(layer, index) for index in range(shape.n_kv_heads)]
        targets.extend(Port(owner, letter) for letter in letters for owner in owners)
        if shape.has_mlp:
            targets.append(Port(mlp(layer)))
    return (*targets, Port(LOGITS))


@lru_cache(maxsize=32)
def _source_index(shape: Architecture) -> Mapping[Node, int]:
    return MappingProxyType({source: number for number, source in enumerate(_sources(shape))})


@lru_cache(maxsize=32)
def _target_index(shape: Architecture) -> Mapping[Port, int]:
    return MappingProxyType({target: number for number, target in enumerate(_targets(shape))})


@lru_cache(maxsize=32)
def _n_visible(shape: Architecture) -> tuple[int, ...]:
    per_layer = shape.n_heads + shape.has_mlp
    visible: list[int] = []
    for layer in range(shape.n_layers):
        before = 1 + layer * per_layer
        visible.extend([before] * (shape.n_heads + 2 * shape.n_kv_heads))
        if shape.has_mlp:
            visible.append(before if shape.parallel else before + shape.n_heads)
    return (*visible, 1 + shape.n_layers * per_layer)

"""Random names, shapes and circuits for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.errors import UnknownEdge
from graphs.nodes import INPUT, LARGEST_NUMBER, LOGITS, SITES, Edge, Node, Port, error, feature

NUMBERS = st.one_of(st.integers(0, 30), st.integers(0, LARGEST_NUMBER))
HEADS = st.builds(Node, st.just("head"), NUMBERS, NUMBERS)
GROUPS = st.builds(Node, st.just("kv"), NUMBERS, NUMBERS)
NEURONS = st.builds(Node, st.just("neuron"), NUMBERS, NUMBERS)
MLPS = st.builds(Node, st.just("mlp"), NUMBERS)
WRITERS = st.one_of(st.just(INPUT), HEADS, NEURONS, MLPS)
NODES = st.one_of(WRITERS, GROUPS, st.just(LOGITS))
PORTS = st.one_of(
    st.builds(Port, HEADS, st.sampled_from(["q", "k", "v", None])),
    st.builds(Port, GROUPS, st.sampled_from(["k", "v"])),
    st.builds(Port, st.one_of(NEURONS, MLPS, st.just(LOGITS)), st.none()),
)
EDGES = st.builds(
    lambda source, port, position: Edge(source, port.node, port.letter, position),
    WRITERS,
    PORTS,
    st.one_of(st.none(), NUMBERS),
)

ARCHITECTURES = st.builds(
    lambda layers, groups, share, has_mlp, parallel: Architecture(layers, groups * share, groups, has_mlp, parallel),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)

# Every code point, lone surrogates and control characters included.
TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), FINITE, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def circuits(draw, *, positions=True, provenance=None, most=40):
    graph = ComponentGraph(draw(ARCHITECTURES))
    numbers = draw(st.lists(st.integers(0, graph.n_edges - 1), max_size=most))
    at = st.one_of(st.none(), st.integers(0, 5)) if positions else st.none()
    edges = [
        Edge(edge.source, edge.target, edge.port, draw(at)) for number in numbers if (edge := graph.edge_at(number))
    ]
    scored = draw(st.lists(st.sampled_from(edges), unique=True)) if edges else []
    scores = {edge: draw(FINITE) for edge in scored}
    table = draw(st.dictionaries(TEXT, JSON, max_size=3)) if provenance is None else provenance
    return Circuit(graph.architecture, edges, scores, table)


AT = st.one_of(st.none(), NUMBERS)
FEATURES = st.one_of(
    st.builds(feature, st.sampled_from(SITES[1:]), NUMBERS, NUMBERS, AT),
    st.builds(error, st.sampled_from(SITES[1:]), NUMBERS, AT),
    st.builds(feature, st.just("input"), st.none(), NUMBERS, AT),
    st.builds(error, st.just("input"), st.none(), AT),
)


def _at(shape: Architecture, index: int, positions: tuple[int | None, ...]) -> list[Node]:
    """Feature `index`, and for 0 the error term, at each site that a model of this shape has."""
    sites = [(site, layer) for layer in range(shape.n_layers) for site in SITES[1:] if site != "mlp" or shape.has_mlp]
    places = [(site, layer, at) for site, layer in [("input", None), *sites] for at in positions]
    return [feature(*place[:2], index, place[2]) if index else error(*place) for place in places]


@st.composite
def feature_circuits(draw, *, mixed=None, most=20, positions=(None, 0, 1, 4), provenance=None):
    """A circuit over features and error terms, and with `mixed` over components too; some nodes have scores."""
    plain = draw(circuits(provenance=provenance)) if (draw(st.booleans()) if mixed is None else mixed) else None
    shape = draw(ARCHITECTURES) if plain is None else plain.architecture
    graph = ComponentGraph(shape)
    at = draw(st.sampled_from([positions, positions[:1], positions[1:]]))
    pool = [node for index in draw(st.sampled_from([(0, 1), (0, 3, 70, 1042)])) for node in _at(shape, index, at)]
    pairs = draw(st.lists(st.tuples(st.sampled_from(pool), st.sampled_from([*pool, LOGITS])), max_size=most))
    edges = [edge for pair in pairs if (edge := _edge_of(graph, *pair))]
    scored = draw(st.lists(st.sampled_from(edges), unique=True)) if edges else []
    scores = {edge: draw(FINITE) for edge in scored}
    every = [*pool, *graph.sources, LOGITS]
    of_nodes = {node: draw(FINITE) for node in draw(st.lists(st.sampled_from(every), unique=True, max_size=6))}
    table = draw(st.dictionaries(TEXT, JSON, max_size=3)) if provenance is None else provenance
    if plain is None:
        return Circuit(shape, edges, scores, table, of_nodes)
    return Circuit(shape, (*plain.edges, *edges), {**plain.scores, **scores}, table, of_nodes)


def _edge_of(graph: ComponentGraph, one: Node, other: Node) -> Edge | None:
    """The edge between two of them, in the direction in which there is one."""
    for source, target in ((one, other), (other, one)):
        if source.site is None or target.site == "input":
            continue
        try:
            graph.check_edge(Edge(source, target))
        except UnknownEdge:
            continue
        return Edge(source, target)
    return None

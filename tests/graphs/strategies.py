"""Random names, shapes and circuits for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.nodes import INPUT, LARGEST_NUMBER, LOGITS, Edge, Node, Port

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

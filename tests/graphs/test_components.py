from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.components import Architecture, ComponentGraph
from graphs.errors import BadArchitecture, UnknownEdge, UnknownNode, WiretraceError
from graphs.nodes import INPUT, LOGITS, Edge, Node, Port, head, kv, mlp, neuron
from tests.graphs.strategies import ARCHITECTURES, EDGES, NODES

GPT2_SMALL = Architecture(12, 12)
GROUPED = Architecture(2, 4, 2)
PARALLEL = Architecture(2, 2, parallel=True)
ATTENTION_ONLY = Architecture(2, 2, has_mlp=False)
GRAPHS = ARCHITECTURES.map(ComponentGraph)


def names(items):
    return [str(item) for item in items]


@pytest.mark.parametrize(
    ("shape", "plain", "with_direct"),
    [
        (GPT2_SMALL, 32_491, 32_923),
        (Architecture(4, 8, has_mlp=False), None, 1_377),  # the docstring model of ACDC
        (Architecture(2, 8, has_mlp=False), None, 305),  # its induction model
        (Architecture(1, 1), 3 + 2 + 3, None),  # q, k, v read the input; m0 input and head; logits all three
    ],
)
def test_counts_are_those_of_the_literature(shape, plain, with_direct):
    graph = ComponentGraph(shape)
    assert plain in (None, graph.n_edges)
    assert with_direct in (None, graph.n_edges + graph.n_direct_edges)
    assert len(set(graph.edges)) == graph.n_edges


def test_sources_and_targets_stand_as_the_model_computes_them():
    graph = ComponentGraph(Architecture(2, 2))
    assert names(graph.sources) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    block = ["a{}.h0<q>", "a{}.h1<q>", "a{}.h0<k>", "a{}.h1<k>", "a{}.h0<v>", "a{}.h1<v>", "m{}"]
    assert names(graph.targets) == [*(name.format(layer) for layer in (0, 1) for name in block), "logits"]
    assert graph.n_visible == (1, 1, 1, 1, 1, 1, 3, 4, 4, 4, 4, 4, 4, 6, 7)


def test_groups_read_the_keys_and_values():
    graph = ComponentGraph(GROUPED)
    assert names(graph.targets[:9]) == [
        *(f"a0.h{index}<q>" for index in range(4)),
        *("a0.kv0<k>", "a0.kv1<k>", "a0.kv0<v>", "a0.kv1<v>", "m0"),
    ]
    assert graph.readers(head(1, 2)) == (Port(head(1, 2), "q"), Port(kv(1, 1), "k"), Port(kv(1, 1), "v"))
    assert graph.readers(kv(1, 0)) == (Port(kv(1, 0), "k"), Port(kv(1, 0), "v"))
    assert graph.query_heads(kv(1, 1)) == (head(1, 2), head(1, 3))
    assert kv(0, 0) not in graph.source_index


def test_an_mlp_of_a_parallel_block_does_not_see_its_own_heads():
    graph = ComponentGraph(PARALLEL)
    assert graph.n_visible[graph.target_index[Port(mlp(1))]] == 4  # input, a0.h0, a0.h1, m0
    with pytest.raises(UnknownEdge, match=r"parallel\), input to m0"):
        graph.check_edge(Edge(head(1, 0), mlp(1)))
    graph.check_edge(Edge(head(0, 0), mlp(1)))


def test_an_attention_only_model_has_no_mlps():
    graph = ComponentGraph(ATTENTION_ONLY)
    assert names(graph.sources) == ["input", "a0.h0", "a0.h1", "a1.h0", "a1.h1"]
    assert not graph.has_node(mlp(0))
    assert graph.n_visible == (1,) * 6 + (3,) * 6 + (5,)


@given(GRAPHS)
def test_edges_are_the_visible_prefixes_of_the_sources(graph):
    expected = [
        Edge(source, target.node, target.letter)
        for target, visible in zip(graph.targets, graph.n_visible, strict=True)
        for source in graph.sources[:visible]
    ]
    assert list(graph.edges) == expected
    assert graph.n_edges == len(expected) == len(set(expected))


@given(GRAPHS)
def test_a_port_sees_exactly_what_its_node_comes_after(graph):
    """Independent of the prefix rule: compare the stages at which a block reads and writes."""
    parallel = graph.architecture.parallel

    def written(node):
        return (-1, 0) if node == INPUT else (node.layer, 1 if node.kind == "mlp" else 0)

    def read(node):
        if node == LOGITS:
            return (graph.architecture.n_layers, 0)
        return (node.layer, 1 if node.kind == "mlp" and not parallel else 0)

    for target, visible in zip(graph.targets, graph.n_visible, strict=True):
        assert set(graph.sources[:visible]) == {s for s in graph.sources if written(s) < read(target.node)}


@given(GRAPHS)
def test_the_order_is_topological(graph):
    for edge in graph.edges:
        if edge.target.kind in ("head", "mlp"):
            assert graph.source_index[edge.source] < graph.source_index[edge.target]
        for port in graph.readers(edge.source):  # a port is read before what is computed from it is
            assert graph.target_index[port] < graph.target_index[edge.reads]


@given(GRAPHS, st.data())
def test_an_edge_and_its_number_are_inverse(graph, data):
    number = data.draw(st.integers(0, graph.n_edges - 1))
    edge = graph.edge_at(number)
    assert graph.number(edge) == number == graph.edge_index[edge]
    assert graph.edges[number] == edge
    assert graph.number(Edge(edge.source, edge.target, edge.port, 3)) == number


@pytest.mark.parametrize("number", [-1, 32_491, 10**30])
def test_numbers_out_of_range_are_refused(number):
    with pytest.raises(UnknownEdge, match="0 to 32,490"):
        ComponentGraph(GPT2_SMALL).edge_at(number)


def test_numbers_need_no_list_of_all_edges():
    graph = ComponentGraph(Architecture(100, 40))
    assert graph.number(graph.edge_at(graph.n_edges - 1)) == graph.n_edges - 1
    assert "edges" not in vars(graph)


@given(GRAPHS, EDGES)
def test_an_edge_is_known_or_refused(graph, edge):
    if edge.everywhere() in graph.edge_index:
        graph.check_edge(edge)
    else:
        with pytest.raises(UnknownEdge, match="no edge"):
            graph.check_edge(edge)


@given(GRAPHS, NODES)
def test_a_node_is_known_or_refused(graph, node):
    known = {*graph.sources, *(port.node for port in graph.targets)}
    assert graph.has_node(node) == (node in known)
    if node not in known:
        for question in (graph.check_node, graph.readers):
            with pytest.raises(UnknownNode, match=r"no node|whole MLPs"):
                question(node)


@pytest.mark.parametrize(
    ("shape", "node", "said"),
    [
        (GPT2_SMALL, head(12, 0), "no node a12.h0: its heads are a0.h0 to a11.h11"),
        (GPT2_SMALL, mlp(12), "its MLPs are m0 to m11"),
        (Architecture(1, 2), mlp(1), "its MLPs are m0"),
        (ATTENTION_ONLY, mlp(0), "attention-only"),
        (GPT2_SMALL, kv(3, 1), "use a3.h1<k> or <v>"),
        (GROUPED, kv(0, 2), "its key/value groups are a0.kv0 to a1.kv1"),
        (GPT2_SMALL, neuron(3, 7), "use m3"),
    ],
)
def test_the_refusal_of_a_node_says_what_exists(shape, node, said):
    with pytest.raises(UnknownNode) as error:
        ComponentGraph(shape).check_node(node)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("shape", "edge", "said"),
    [
        (GPT2_SMALL, "m3->a99.h0<q>", "its heads are a0.h0 to a11.h11"),
        (GPT2_SMALL, "m3->a9.h6", "use m3->a9.h6<q>, m3->a9.h6<k>, m3->a9.h6<v>"),
        (GPT2_SMALL, "m3->m3", "reads only what is written before it, input to a3.h11"),
        (GPT2_SMALL, "a5.h0->a5.h1<q>@3", "input to m4"),
        (GROUPED, "m0->a1.h3<k>", "use m0->a1.kv1<k>"),
        (GROUPED, "m0->a1.h3", "use m0->a1.h3<q>, m0->a1.kv1<k>, m0->a1.kv1<v>"),
        (ATTENTION_ONLY, "m0->logits", "attention-only"),
    ],
)
def test_the_refusal_of_an_edge_says_what_exists(shape, edge, said):
    with pytest.raises(UnknownEdge) as error:
        ComponentGraph(shape).check_edge(Edge.parse(edge))
    assert said in str(error.value)
    assert edge in str(error.value)


@pytest.mark.parametrize("node", [head(0, 0), mlp(0), Node("input")])
def test_only_groups_have_query_heads(node):
    with pytest.raises(UnknownNode, match="key/value group"):
        ComponentGraph(GROUPED).query_heads(node)


@given(ARCHITECTURES)
def test_an_architecture_survives_being_data(shape):
    assert Architecture.from_dict(shape.to_dict()) == shape


def test_heads_have_their_own_keys_unless_said_otherwise():
    assert Architecture(2, 4).n_kv_heads == 4
    assert not Architecture(2, 4).grouped
    assert Architecture.from_dict({"n_layers": 2, "n_heads": 4}) == Architecture(2, 4, 4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ((0, 1), "n_layers must be from 1"),
        ((1, 0), "n_heads must be from 1"),
        ((1, -3), "n_heads"),
        ((1.0, 1), "whole number"),
        ((True, 1), "whole number"),
        (("2", 1), "whole number"),
        ((None, 1), "whole number"),
        ((10**30, 1), "n_layers"),
        ((9_999, 9_999), "at most 1,000,000"),
        ((2, 4, 3), "must divide"),
        ((2, 2, 4), "must divide"),
        ((2, 2, 0), "n_kv_heads"),
        ((2, 2, 2, 1), "has_mlp"),
        ((2, 2, 2, True, "no"), "parallel"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(BadArchitecture, match=said):
        Architecture(*fields)


@pytest.mark.parametrize("fields", [None, [], "x", {}, {"n_layers": 1}, {"n_layers": 1, "n_heads": 1, "d_model": 8}])
def test_data_that_is_no_architecture_is_refused(fields):
    with pytest.raises(BadArchitecture, match="an architecture"):
        Architecture.from_dict(fields)
    assert issubclass(BadArchitecture, WiretraceError)

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.errors import BadName, WiretraceError
from graphs.nodes import INPUT, LARGEST_NUMBER, LOGITS, Edge, Node, Port, head, kv, mlp, neuron
from tests.graphs.strategies import EDGES, NODES, PORTS, TEXT

SPELLINGS = {
    "input": INPUT,
    "logits": LOGITS,
    "a9.h6": head(9, 6),
    "a3.kv1": kv(3, 1),
    "m3": mlp(3),
    "m3.n1021": neuron(3, 1021),
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_nodes_are_spelled_as_the_field_spells_them(text):
    assert str(SPELLINGS[text]) == text
    assert Node.parse(text) == SPELLINGS[text]


@pytest.mark.parametrize(
    ("text", "edge"),
    [
        ("a9.h6->m10", Edge(head(9, 6), mlp(10))),
        ("m3->a9.h6<q>", Edge(mlp(3), head(9, 6), "q")),
        ("m3->a3.kv1<k>", Edge(mlp(3), kv(3, 1), "k")),
        ("m3->a9.h6<q>@7", Edge(mlp(3), head(9, 6), "q", 7)),
        ("m3.n5->logits@0", Edge(neuron(3, 5), LOGITS, None, 0)),
    ],
)
def test_edges_are_spelled_as_the_field_spells_them(text, edge):
    assert str(edge) == text
    assert Edge.parse(text) == edge
    assert str(edge.reads) == text.split("->")[1].split("@")[0]


@given(NODES)
def test_parsing_inverts_the_spelling_of_nodes(node):
    assert Node.parse(str(node)) == node
    assert hash(Node.parse(str(node))) == hash(node)


@given(PORTS)
def test_parsing_inverts_the_spelling_of_ports(port):
    assert Port.parse(str(port)) == port


@given(EDGES)
def test_parsing_inverts_the_spelling_of_edges(edge):
    assert Edge.parse(str(edge)) == edge
    assert Edge.parse(str(edge)).everywhere() == edge.everywhere()
    assert str(edge.everywhere()) == str(edge).split("@")[0]


@given(st.lists(EDGES, max_size=8))
def test_different_edges_have_different_names(edges):
    assert len(set(edges)) == len(set(map(str, edges)))


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a9", "a9.", "a9.h", "a9.h6 ", " a9.h6", "a9.h6\n", "A9.h6", "a9.H6", "a09.h6", "a9.h06", "a-1.h0"),
        *("a1.5.h0", "m", "m03", "m3.", "m3.n", "Input", "logit", "a9h6", "a٣.h1", "a9.h6<q>", "a9.h6->m10"),
        *("a1234567890.h0", "m" + "9" * 100_000, "a0.h0\x00", None, 3, b"m3", ["m3"], Node),
    ],
)
def test_what_is_no_node_is_refused(text):
    with pytest.raises(BadName, match=r"expected a node: .*; got "):
        Node.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "->", "m0", "m0->", "->m0", "m0->m1->m2", "m0 -> m1", "m0->m1<q>", "m0->a1.h0<o>", "m0->a1.h0<>"),
        *("m0->a1.h0<q", "m0->a1.h0q>", "m0->a1.h0<q><k>", "m0->a1.h0@3<q>", "m0->a1.h0<q>@", "m0->a1.h0<q>@-1"),
        *("m0->a1.h0<q>@01", "m0->a1.h0<q>@1e3", "m0->a1.h0<q>@1@2", "m0@1->m1", "m0->input", "logits->m0"),
        *("a0.kv0->m1", "m0->a1.kv0", "m0->a1.kv0<q>", "m0->logits<v>", "m0->m1\n", "m0→m1", None, 7, b"m0->m1"),
    ],
)
def test_what_is_no_edge_is_refused(text):
    with pytest.raises(BadName):
        Edge.parse(text)


@pytest.mark.parametrize("text", ["", "a9.h6<q>@7", "m0<q>", "a0.kv0", "a0.kv0<q>", "input", "logits<k>", None])
def test_what_is_no_port_is_refused(text):
    with pytest.raises(BadName):
        Port.parse(text)


@given(TEXT)
def test_any_text_parses_or_is_refused_with_a_printable_sentence(text):
    for kind in (Node, Port, Edge):
        said = refusal(kind, text)
        assert said.isprintable()
        assert len(said) < 400


def refusal(kind, text):
    try:
        assert str(kind.parse(text)) == text
    except BadName as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("query", 0, 0), "kind is one of"),
        (([], 0, 0), "kind is one of"),
        (("head", 0), "index"),
        (("head",), "layer"),
        (("mlp", 3, 1), "no index"),
        (("input", 0), "no layer"),
        (("head", -1, 0), "from 0"),
        (("head", 0, LARGEST_NUMBER + 1), "from 0"),
        (("head", 0.0, 0), "whole number"),
        (("head", True, 0), "whole number"),
        (("head", "0", 0), "whole number"),
    ],
)
def test_nodes_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(BadName, match=said):
        Node(*fields)


@pytest.mark.parametrize("position", [-1, 1.0, True, "1", LARGEST_NUMBER + 1])
def test_positions_that_make_no_sense_are_refused(position):
    with pytest.raises(BadName, match="position"):
        Edge(mlp(0), mlp(1), None, position)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("L9H6", "a9.h6"),
        ("9.6", "a9.h6"),
        ("mlp3", "m3"),
        ("embed", "input"),
        ("a3 kv 1", "a3.kv1"),
        ("OUTPUT", "logits"),
    ],
)
def test_other_habits_get_a_suggestion(text, meant):
    with pytest.raises(BadName) as error:
        Node.parse(text)
    assert str(error.value).endswith(f"did you mean {meant}?")


@pytest.mark.parametrize("ends", [("m0", mlp(1)), (mlp(0), "m1"), (None, None)])
def test_an_edge_joins_nodes_and_not_their_names(ends):
    with pytest.raises(BadName, match="parse reads a name"):
        Edge(*ends)


def test_whole_numbers_of_other_types_become_int():
    class Numpyish:
        def __index__(self):
            return 4

    node = Node("head", Numpyish(), Numpyish())
    assert node == head(4, 4)
    assert type(node.layer) is int
    assert type(Edge(mlp(0), mlp(1), None, Numpyish()).position) is int


def test_names_are_values():
    edge = Edge.parse("m3->a9.h6<q>@7")
    assert pickle.loads(pickle.dumps(edge)) == edge  # noqa: S301  # as multiprocessing does
    assert repr(edge) == "Edge('m3->a9.h6<q>@7')"
    with pytest.raises(FrozenInstanceError):
        edge.port = "k"
    assert issubclass(BadName, WiretraceError)
    assert issubclass(WiretraceError, ValueError)

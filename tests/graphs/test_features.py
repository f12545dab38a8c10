"""Features and error terms as nodes: their names, where they can stand, what can lead to what, and scores of nodes."""

from __future__ import annotations

import itertools
import json
import pickle
import time

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import Architecture, Circuit, ComponentGraph, Edge, Node
from graphs.errors import BadCircuit, BadName, UnknownEdge, UnknownNode
from graphs.nodes import INPUT, LARGEST_NUMBER, LOGITS, Port, error, feature, head, kv, mlp
from tests.graphs.strategies import FEATURES, circuits, feature_circuits

SPELLINGS = {
    "a3.f12": Node("attn_feature", 3, 12),
    "m3.f1042": Node("mlp_feature", 3, 1042),
    "r3.f7": Node("resid_feature", 3, 7),
    "input.f5": Node("input_feature", None, 5),
    "a3.err": Node("attn_error", 3),
    "m0.err": Node("mlp_error", 0),
    "r11.err": Node("resid_error", 11),
    "input.err": Node("input_error"),
    "m3.f1042@5": Node("mlp_feature", 3, 1042, position=5),
    "input.err@0": Node("input_error", position=0),
}
SHAPE = Architecture(2, 2)


# --------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("text", SPELLINGS)
def test_features_are_spelled_as_agreed(text):
    assert str(SPELLINGS[text]) == text
    assert Node.parse(text) == SPELLINGS[text]
    assert repr(SPELLINGS[text]) == f"Node({text!r})"


def test_the_short_ways_to_make_them():
    assert feature("mlp", 3, 1042, position=5) == SPELLINGS["m3.f1042@5"]
    assert feature("input", None, 5) == SPELLINGS["input.f5"]
    assert error("resid", 11) == SPELLINGS["r11.err"]
    assert error("input", None, 0) == SPELLINGS["input.err@0"]
    assert [(node.site, node.is_error) for node in (feature("attn", 0, 1), error("mlp", 0), head(0, 1), INPUT)] == [
        ("attn", False), ("mlp", True), (None, False), (None, False)
    ]  # fmt: skip
    with pytest.raises(BadName, match=r"stands at the site input, attn, mlp or resid; got 'resid_post'"):
        feature("resid_post", 0, 1)


@given(FEATURES)
def test_parsing_inverts_the_spelling(node):
    assert Node.parse(str(node)) == node
    assert Node.parse(str(node.everywhere())) == node.everywhere()
    assert str(node.everywhere()) == str(node).split("@")[0]
    assert pickle.loads(pickle.dumps(node)) == node  # noqa: S301  # as multiprocessing does
    if node.site != "input":
        assert Port.parse(str(node)) == Port(node)


@given(FEATURES, st.one_of(FEATURES, st.just(LOGITS)))
def test_parsing_inverts_the_spelling_of_edges(source, target):
    if target.site == "input":
        with pytest.raises(BadName, match="no edge ends there"):
            Edge(source, target)
        return
    edge = Edge(source, target)
    assert Edge.parse(str(edge)) == edge
    assert str(edge) == f"{source}->{target}"
    assert (edge.position, edge.port, edge.of_features, edge.everywhere()) == (None, None, True, edge)


@given(st.lists(FEATURES, max_size=8))
def test_different_features_have_different_names(nodes):
    assert len(set(nodes)) == len(set(map(str, nodes)))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "m3.f",
            "m3.f-1",
            "m3.f01",
            "m3.F1",
            "M3.f1",
            "m3.f1@",
            "m3.f1@-1",
            "m3.f1@01",
            "m3.f1@1@2",
            "m3.f1 ",
            "m3.f٣",
        ),
        *("input.f", "input.err.", "logits.f1", "m.f1", "m3.error", "r3", "r3.n4", "r3.h1", "input0.f1", "m3.f1<q>"),
        *("m3@5", "a9.h6@7", "input@1", "m3.n5@2", "logits@0", "m3.f1234567890", "m3.f" + "9" * 100_000),
    ],
)
def test_what_is_no_feature_is_refused(text):
    with pytest.raises(BadName, match=r"expected a node: .*m3\.f7@5 or m3\.err; got "):
        Node.parse(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("mlp_out3.f12", "m3.f12"),
        ("resid_post3.f7", "r3.f7"),
        ("resid3/1042", "r3.f1042"),
        ("attn_out0.feature 3", "a0.f3"),
        ("M3.F12 @ 4", "m3.f12@4"),
        ("res2 error", "r2.err"),
        ("embed.f5", "input.f5"),
        ("resid_pre0.err@3", "input.err@3"),
        ("mlp3 latent 9", "m3.f9"),
    ],
)
def test_other_habits_get_a_suggestion(text, meant):
    with pytest.raises(BadName) as found:
        Node.parse(text)
    assert str(found.value).endswith(f"did you mean {meant}?")


def test_a_position_of_another_node_is_explained():
    with pytest.raises(BadName, match="only features and error terms stand at a position"):
        Node.parse("a9.h6@7")


def test_a_long_hostile_name_is_refused_at_once():
    start = time.perf_counter()
    for text in ("1" + "." * 200_000, "m3" + " " * 200_000 + "x", "resid" + "_" * 200_000):
        with pytest.raises(BadName):
            Node.parse(text)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("head", 3, 4, 5), "no position"),
        (("logits", None, None, 0), "no position"),
        (("mlp_error", 3, 4), "no index"),
        (("input_feature", 0, 4), "no layer"),
        (("mlp_feature", 3), "index"),
        (("resid_feature", None, 3), "layer"),
        (("mlp_feature", 3, 1, -1), "position"),
        (("mlp_feature", 3, 1, True), "position"),
        (("mlp_feature", 3, 1, LARGEST_NUMBER + 1), "position"),
        (("neuron_feature", 3, 1), "kind is one of"),
    ],
)
def test_features_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(BadName, match=said):
        Node(*fields)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("m3.f1->logits@4", "no position of its own"),
        ("m3.f1->a5.h0<q>", "leads to a feature, an error term or logits"),
        ("m3.f1->m5", "leads to a feature, an error term or logits"),
        ("m0->m1.f3", "read from other features"),
        ("input->r0.f3", "read from other features"),
        ("m3.f1->r3.f2<q>", "reads at one place"),
        ("r1.f1->input.f3", "no edge ends there"),
        ("logits->r1.f1", "does not write"),
    ],
)
def test_edges_of_features_lead_to_features_or_the_logits(text, said):
    with pytest.raises(BadName, match=said):
        Edge.parse(text)


# --------------------------------------------------------------------------------------- what can lead to what


def places(shape):
    """Oracle: the places of dictionaries as a model computes them, and the logits."""
    blocks = [[error("attn", layer), error("mlp", layer), error("resid", layer)] for layer in range(shape.n_layers)]
    kept = [place for block in blocks for place in block if shape.has_mlp or place.site != "mlp"]
    return [error("input", None), *kept, LOGITS]


@pytest.mark.parametrize(
    "shape", [SHAPE, Architecture(3, 1, has_mlp=False), Architecture(2, 2, parallel=True)], ids=str
)
def test_every_pair_of_places_against_the_order_of_the_model(shape):
    graph, order = ComponentGraph(shape), places(shape)
    for source, target in itertools.product(order[:-1], order[1:]):
        edge = Edge(source, target)
        beside = shape.parallel and (source.site, target.site) == ("attn", "mlp") and source.layer == target.layer
        if order.index(source) < order.index(target) and not beside:
            graph.check_edge(edge)
            assert Circuit(shape, [edge]).edges == (edge,)
        else:
            with pytest.raises(UnknownEdge, match=f"no edge {edge}: "):
                graph.check_edge(edge)
    assert Circuit(shape, [Edge(place, LOGITS) for place in order[:-1]]).nodes == tuple(order)


@given(st.one_of(st.none(), st.integers(0, 9)), st.one_of(st.none(), st.integers(0, 9)))
def test_nothing_flows_back_in_time(here, there):
    edge = Edge(feature("resid", 0, 1, here), feature("attn", 1, 2, there))
    if here is not None and there is not None and here > there:
        with pytest.raises(UnknownEdge, match=f"position {here} cannot reach the earlier position {there}"):
            ComponentGraph(SHAPE).check_edge(edge)
    else:
        ComponentGraph(SHAPE).check_edge(edge)


@pytest.mark.parametrize(
    ("shape", "name", "said"),
    [
        (SHAPE, "m2.f1->logits", r"no place for m2\.f1: its layers are 0 to 1"),
        (Architecture(1, 1), "r0.f1->r1.f1", r"no place for r1\.f1: its only layer is 0"),
        (Architecture(2, 1, has_mlp=False), "a0.f1->m0.f1", "attention-only"),
        (SHAPE, "m1.f1->a1.f1", r"m1\.f1 comes after it"),
        (SHAPE, "m1.f1@3->m1.f2@3", r"m1\.f1@3 is read at the same place"),
        (Architecture(1, 1, parallel=True), "a0.f1->m0.f1", "run in parallel"),
    ],
)
def test_edges_that_the_model_lacks_are_refused_with_the_reason(shape, name, said):
    with pytest.raises(UnknownEdge, match=said):
        Circuit(shape, [Edge.parse(name)])


def test_features_have_no_number_among_the_edges_of_components():
    graph, edge = ComponentGraph(SHAPE), Edge.parse("m0.f1->logits")
    assert graph.has_node(edge.source)
    assert not graph.has_node(feature("mlp", 2, 1))
    with pytest.raises(UnknownEdge, match="joins features of dictionaries"):
        graph.number(edge)
    with pytest.raises(UnknownNode, match=r"no place for m2\.f1: its layers are 0 to 1"):
        graph.check_node(feature("mlp", 2, 1))
    assert edge.source not in graph.source_index
    assert all(node.site is None for node in graph.sources)


# ------------------------------------------------------------------------------------------------------ circuits


@settings(max_examples=40)
@given(feature_circuits(), st.randoms())
def test_the_order_of_edges_and_nodes(circuit, rng):
    edges = list(circuit.edges)
    rng.shuffle(edges)
    again = Circuit(circuit.architecture, edges, circuit.scores, circuit.provenance, circuit.node_scores)
    assert again == circuit
    assert again.to_json() == circuit.to_json()
    kinds = [edge.of_features for edge in circuit.edges]
    assert kinds == sorted(kinds)  # those of components first
    place = {node: number for number, node in enumerate(circuit.nodes)}
    assert all(place[edge.source] < place[edge.target] for edge in circuit.edges)
    targets = [place[edge.target] for edge in circuit.edges if edge.of_features]
    assert targets == sorted(targets)
    assert nx.is_directed_acyclic_graph(circuit.to_networkx())


@settings(max_examples=40)
@given(feature_circuits())
def test_circuits_over_features_are_values(circuit):
    assert pickle.loads(pickle.dumps(circuit)) == circuit  # noqa: S301
    assert Circuit.from_json(circuit.to_json()) == circuit
    assert Circuit.from_networkx(circuit.to_networkx()) == circuit
    assert circuit.features == tuple(node for node in circuit.nodes if node.site)
    ends = {end for edge in circuit.edges for end in (edge.source, edge.target)}
    assert set(circuit.nodes) == ends | set(circuit.node_scores)
    assert len(circuit.nodes) == len(set(circuit.nodes))


@settings(max_examples=40)
@given(circuits())
def test_without_scores_of_nodes_nothing_is_written_of_them(circuit):
    assert set(json.loads(circuit.to_json())) == {"schema", "architecture", "provenance", "edges"}
    assert not any("score" in found or "position" in found for _, found in circuit.to_networkx().nodes(data=True))
    whole = Circuit(circuit.architecture, circuit.edges, circuit.scores, circuit.provenance, {LOGITS: 1.0})
    assert json.loads(whole.to_json())["nodes"] == [{"node": "logits", "score": 1.0}]
    assert whole != circuit


def test_what_a_file_holds():
    edge, alone = Edge.parse("m0.f7@3->logits"), Node.parse("a0.h1")
    circuit = Circuit(SHAPE, [edge], {edge: -0.5}, node_scores={edge.source: -1.5, alone: 0.25})
    assert json.loads(circuit.to_json())["nodes"] == [
        {"node": "a0.h1", "score": 0.25},
        {"node": "m0.f7@3", "score": -1.5},
    ]
    assert circuit.nodes == (alone, edge.source, LOGITS)
    assert dict(circuit.to_networkx().nodes(data=True))["m0.f7@3"] == {
        "kind": "mlp_feature", "layer": 0, "index": 7, "position": 3, "score": -1.5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "alone", "said"),
    [
        (["m0.f1->logits", "m0.err->logits"], [], "2 edges of 1 feature and 1 error term (2 layers, 2 heads, MLPs)"),
        (["m0.f1->r0.f3"], [], "1 edge of 2 features (2 layers, 2 heads, MLPs)"),
        (["m0.f1->logits", "m0->logits"], [], "1 of 46 edges between 2 nodes; 1 edge of 1 feature (2 layers,"),
        (["m0.f1->logits"], ["a0.h1"], "0 of 46 edges between 2 nodes; 1 edge of 1 feature (2 layers,"),
        ([], ["m0.f1"], "0 edges of 1 feature (2 layers,"),
        ([], ["a0.h1", "m1"], "0 of 46 edges between 2 nodes (2 layers,"),
        ([], [], "0 of 46 edges between 0 nodes (2 layers,"),
    ],
)
def test_a_circuit_says_its_size(names, alone, said):
    circuit = Circuit(SHAPE, map(Edge.parse, names), node_scores={Node.parse(name): 1.0 for name in alone})
    assert str(circuit).startswith(said)
    assert circuit.n_possible == 46


@pytest.mark.parametrize(
    ("scores", "wrong", "said"),
    [
        ({mlp(0): float("nan")}, BadCircuit, "the score of m0 must be finite"),
        ({mlp(0): "1"}, BadCircuit, "the score of m0 must be a number"),
        ({mlp(0): None}, BadCircuit, "the score of m0 must be a number"),
        ({"m0": 1.0}, BadCircuit, r"belong to Nodes; got one of 'm0' \(Node.parse reads a name\)"),
        ({mlp(2): 1.0}, UnknownNode, "its MLPs are m0 to m1"),
        ({kv(0, 0): 1.0}, UnknownNode, "keys and values of its own"),
        ({feature("attn", 2, 0): 1.0}, UnknownNode, "its layers are 0 to 1"),
    ],
)
def test_scores_that_make_no_sense_are_refused(scores, wrong, said):
    with pytest.raises(wrong, match=said):
        Circuit(SHAPE, [], node_scores=scores)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ({}, "'nodes' must be a list"),
        ([3], "a node must be an object such as"),
        ([{"node": "m0"}], "no 'score'"),
        ([{"node": "m0", "score": 1, "kind": "mlp"}], "an unknown 'kind'"),
        ([{"node": "m0", "score": None}], "must be a number"),
        ([{"node": "m0", "score": 1}, {"node": "m0", "score": 2}], "the node m0 comes twice"),
        ([{"node": "m3.f", "score": 1}], "expected a node"),
        ([{"node": "m3.f7", "score": 1}], "its layers are 0 to 1"),
    ],
)
def test_files_with_wrong_scores_of_nodes_are_refused(nodes, said):
    record = json.loads(Circuit(SHAPE, []).to_json()) | {"nodes": nodes}
    with pytest.raises(ValueError, match=said):
        Circuit.from_json(json.dumps(record))


@pytest.mark.parametrize("attribute", ["kind", "layer", "index", "position"])
def test_attributes_that_contradict_the_name_are_refused(attribute):
    g = Circuit(SHAPE, [Edge.parse("m0.f7@3->logits")]).to_networkx()
    g.nodes["m0.f7@3"][attribute] = 1
    with pytest.raises(BadCircuit, match=f"its attribute '{attribute}' says '1'"):
        Circuit.from_networkx(g)

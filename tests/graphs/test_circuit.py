from __future__ import annotations

import json
import math
import pickle
import random
from dataclasses import FrozenInstanceError

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.circuit import SCHEMA, Circuit, visible
from graphs.components import Architecture, ComponentGraph
from graphs.errors import BadCircuit, BadFile, UnknownEdge, WiretraceError
from graphs.nodes import Edge, Node
from tests.graphs.strategies import TEXT, circuits

SHAPE = Architecture(2, 2)
GROUPED = Architecture(2, 4, 2)


def made(*names, shape=SHAPE, scores=(), provenance=None):
    return Circuit(shape, map(Edge.parse, names), {Edge.parse(name): s for name, s in scores}, provenance)


def names(circuit):
    return [str(edge) for edge in circuit.edges]


EXAMPLE = made(
    *("input->a0.h1<q>", "a0.h1->m0", "m0->a1.h0<v>", "a1.h0->logits", "a1.h0->logits@3"),
    scores=[("input->a0.h1<q>", -0.31), ("a1.h0->logits", -1.5), ("a1.h0->logits@3", 0.1)],
    provenance={"model": "zoo:ioi", "task": "ioi", "method": "acdc", "tau": 0.02, "order": ["m1", "m0"]},
)


# ------------------------------------------------------------------------------------------------------ the record


@given(circuits(), st.randoms(use_true_random=False))
def test_order_and_repeats_do_not_matter(circuit, rng):
    edges = [*circuit.edges, *circuit.edges]
    rng.shuffle(edges)
    again = Circuit(circuit.architecture, edges, dict(circuit.scores), circuit.provenance)
    assert again == circuit
    assert hash(again) == hash(circuit)
    assert again.to_json() == circuit.to_json()


@given(circuits())
def test_edges_stand_in_the_order_of_the_graph(circuit):
    places = [(circuit.graph.edges.index(edge.everywhere()), edge.position) for edge in circuit.edges]
    assert places == sorted(places, key=lambda place: (place[0], -1 if place[1] is None else place[1]))
    assert list(circuit.scores) == [edge for edge in circuit.edges if edge in circuit.scores]


@given(circuits())
def test_nodes_are_topological(circuit):
    place = {node: number for number, node in enumerate(circuit.nodes)}
    assert set(place) == {end for edge in circuit.edges for end in (edge.source, edge.target)}
    assert all(place[edge.source] < place[edge.target] for edge in circuit.edges)
    assert all(place[group] < place[member] for group, member in circuit.structural_edges())


def test_a_circuit_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        EXAMPLE.edges = ()
    with pytest.raises(TypeError):
        EXAMPLE.scores[EXAMPLE.edges[0]] = 1.0
    source = {"options": {"tau": 1}}
    circuit = made(provenance=source)
    source["options"]["tau"] = 2
    assert circuit.provenance["options"] == {"tau": 1}


def test_a_circuit_survives_pickling():
    again = pickle.loads(pickle.dumps(EXAMPLE))  # noqa: S301  # as multiprocessing does
    assert again == EXAMPLE


def test_the_summary_is_one_line():
    assert str(EXAMPLE) == "zoo:ioi · ioi · acdc: 5 of 46 edges between 5 nodes (2 layers, 2 heads, MLPs)"
    assert repr(made()) == "<Circuit: 0 of 46 edges between 0 nodes (2 layers, 2 heads, MLPs)>"
    assert str(made(provenance={"model": "a\nb\x1b[31m", "task": 3})).startswith("a\\nb\\x1b[31m: 0 of")


@given(TEXT)
def test_what_is_visible_can_be_shown_and_stored(text):
    assert visible(text).isprintable()
    visible(text).encode("utf-8")
    assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None, "1", b"1", True, 1j, [1.0], 10**400])
def test_scores_are_finite_numbers(score):
    with pytest.raises(BadCircuit, match="the score of m0->logits must be"):
        made("m0->logits", scores=[("m0->logits", score)])


def test_only_kept_edges_have_scores():
    with pytest.raises(BadCircuit, match="not in the circuit, such as m1->logits"):
        made("m0->logits", scores=[("m1->logits", 1.0)])


def test_edges_the_model_does_not_have_are_refused():
    with pytest.raises(UnknownEdge, match=r"its heads are a0\.h0 to a1\.h1"):
        made("a7.h0->logits")
    with pytest.raises(BadCircuit, match="parse reads a name"):
        Circuit(SHAPE, ["m0->logits"])
    with pytest.raises(BadCircuit, match="expected an Architecture; got dict"):
        Circuit({"n_layers": 2}, [])


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "provenance",
    [
        *([1], "x", {"a": {1}}, {"a": object()}, {1: 2}, {"a": math.nan}, {"a": {"b": [math.inf]}}, {"a": b"x"}),
        *({"a": nested(99_999)}, {"a": 10**4_000}, {"a": {None: 1}}, {"\ud83d\ude00": 1, "😀": 2}),
    ],
)
def test_provenance_is_json(provenance):
    with pytest.raises(BadCircuit) as error:
        made(provenance=provenance)
    assert len(str(error.value)) < 500


# ---------------------------------------------------------------------------------------------------- JSON and files


@given(circuits())
def test_json_round_trip(circuit):
    text = circuit.to_json()
    assert text.isascii()
    assert Circuit.from_json(text) == circuit
    assert Circuit.from_json(text).to_json() == text


@settings(max_examples=30)
@given(circuit=circuits())
def test_file_round_trip(circuit, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "circuit.json"
    circuit.save(path)
    assert Circuit.load(path) == circuit
    assert path.read_text(encoding="ascii") == circuit.to_json()


def test_the_file_is_plain_json_with_a_schema():
    record = json.loads(EXAMPLE.to_json())
    assert record["schema"] == SCHEMA == "wiretrace-circuit/1"
    assert record["architecture"] == SHAPE.to_dict()
    assert record["provenance"]["order"] == ["m1", "m0"]
    assert record["edges"][0] == {"edge": "input->a0.h1<q>", "score": -0.31}


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path, text = tmp_path / "circuit.json", EXAMPLE.to_json()
    for cut in range(len(text) - 2):  # the last characters are } and a newline
        path.write_text(text[:cut], encoding="utf-8")
        with pytest.raises(BadFile, match=r"circuit\.json is not a circuit that can be read: .*(cut short|JSON)"):
            Circuit.load(path)


def test_damaged_bytes_give_our_error_or_a_circuit(tmp_path):
    rng = random.Random(0)
    path, whole = tmp_path / "circuit.json", EXAMPLE.to_json().encode()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            start = rng.randrange(len(data))
            data[start : start + rng.choice([0, 1, 1, 3])] = rng.randbytes(rng.choice([0, 1, 1, 2]))
        path.write_bytes(data)
        try:
            circuit = Circuit.load(path)
        except BadFile:
            refused += 1
        else:
            assert Circuit.from_json(circuit.to_json()) == circuit
    assert refused > 150


def changed(**changes):
    return json.dumps(json.loads(EXAMPLE.to_json()) | changes)


BAD_TEXTS = {
    "empty": ("", "cut short"),
    "blank": (" \n", "cut short"),
    "not JSON": ("<html>", "not JSON"),
    "a list": ("[]", "expected a JSON object"),
    "a number": ("3", "expected a JSON object"),
    "two documents": (EXAMPLE.to_json() * 2, "not JSON"),
    "no schema": ("{}", "got nothing"),
    "another schema": (changed(schema="circuit"), "not a Wiretrace circuit"),
    "a later schema": (changed(schema="wiretrace-circuit/2"), "another version of Wiretrace"),
    "a schema of the wrong kind": (changed(schema=[1]), "not a Wiretrace circuit"),
    "no edges": (json.dumps({"schema": SCHEMA}), "no 'edges'"),
    "an unknown key": (changed(extra=1), "unknown 'extra'"),
    "edges that are no list": (changed(edges={}), "'edges' must be a list"),
    "an edge that is no object": (changed(edges=["m0->logits"]), "must be an object"),
    "an edge without a name": (changed(edges=[{"score": 1}]), "no 'edge'"),
    "an edge with an unknown key": (changed(edges=[{"edge": "m0->logits", "sore": 1}]), "unknown 'sore'"),
    "a name that is no text": (changed(edges=[{"edge": 3}]), "expected an edge"),
    "a name that is no edge": (changed(edges=[{"edge": "m0"}]), "expected an edge"),
    "an unknown edge": (changed(edges=[{"edge": "m9->logits"}]), "its MLPs are m0 to m1"),
    "an impossible edge": (changed(edges=[{"edge": "m1->m0"}]), "input to a0.h1"),
    "an edge that comes twice": (changed(edges=[{"edge": "m0->logits"}] * 2), "comes twice"),
    "a score that is text": (changed(edges=[{"edge": "m0->logits", "score": "1"}]), "must be a number"),
    "a score that is not a number": (changed(edges=[{"edge": "m0->logits", "score": math.nan}]), "NaN is not JSON"),
    "a score that is too large": (changed(edges=[{"edge": "m0->logits", "score": 7}]).replace("7", "1e999"), "finite"),
    "an integer score beyond floats": (changed(edges=[{"edge": "m0->logits", "score": 10**400}]), "must be a number"),
    "an integer of many digits": (changed(provenance="HERE").replace('"HERE"', "9" * 5_000), "can be read"),
    "an infinite option": (changed(provenance={"tau": math.inf}), "Infinity is not JSON"),
    "an overflowing option": (changed(provenance={"tau": 8}).replace("8", "1e999"), "must be finite"),
    "provenance that is no table": (changed(provenance=[]), "provenance is a table"),
    "an architecture that is none": (changed(architecture=None), "an architecture is a table"),
    "an absurd architecture": (changed(architecture={"n_layers": 10**9, "n_heads": 1}), "n_layers must be from 1"),
    "a key that comes twice": (EXAMPLE.to_json().replace("{\n", '{"schema": 1,', 1), "comes twice"),
    "deep lists": ("[" * 100_000, "nested too deep"),
    "deep lists in a circuit": (changed(provenance="HERE").replace('"HERE"', "[" * 100_000), "nested too deep"),
    "deep and closed": (changed(provenance={"a": "HERE"}).replace('"HERE"', "[" * 500 + "]" * 500), "nested more than"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_bad_file_is_refused_with_the_reason(case, tmp_path):
    text, said = BAD_TEXTS[case]
    path = tmp_path / "circuit.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadFile) as error:
        Circuit.load(path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 600 + len(str(path))
    with pytest.raises(WiretraceError):
        Circuit.from_json(text)


@pytest.mark.parametrize("text", [None, 3, ["{"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(BadCircuit):
        Circuit.from_json(text)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "circuit.json"
    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.to_json().replace("\n", "\r\n").encode())
    assert Circuit.load(path) == EXAMPLE


# ---------------------------------------------------------------------------------------------------------- networkx


@given(circuits())
def test_networkx_round_trip(circuit):
    g = circuit.to_networkx()
    assert Circuit.from_networkx(g) == circuit
    assert g.graph["schema"] == SCHEMA
    assert sum(not structural for *_, structural in g.edges(data="structural")) == circuit.n_edges
    assert nx.is_directed_acyclic_graph(g)
    json.dumps(g.graph, allow_nan=False)


def test_the_attributes_are_the_documented_ones():
    names_ = ("input->a0.kv0<k>@2", "a0.h1->m0", "m0->logits")
    circuit = made(*names_, shape=GROUPED, scores=[("a0.h1->m0", -2)], provenance={"seed": 0})
    g = circuit.to_networkx()
    assert type(g) is nx.MultiDiGraph
    assert dict(g.nodes(data=True)) == {
        "input": {"kind": "input"},
        "a0.kv0": {"kind": "kv", "layer": 0, "index": 0},
        "a0.h1": {"kind": "head", "layer": 0, "index": 1},
        "m0": {"kind": "mlp", "layer": 0},
        "logits": {"kind": "logits"},
    }
    assert {(start, end, key): fields for start, end, key, fields in g.edges(keys=True, data=True)} == {
        ("input", "a0.kv0", "k@2"): {"port": "k", "structural": False, "position": 2},
        ("a0.h1", "m0", ""): {"port": "", "structural": False, "score": -2.0},
        ("m0", "logits", ""): {"port": "", "structural": False},
        ("a0.kv0", "a0.h1", "structural"): {"port": "", "structural": True},
    }
    assert g.graph == {"schema": SCHEMA, "architecture": GROUPED.to_dict(), "provenance": {"seed": 0}}


def damaged(change):
    g = EXAMPLE.to_networkx()
    change(g)
    return g


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g.graph.pop("schema"), "got nothing"),
        (lambda g: g.graph.pop("architecture"), "'architecture' is missing"),
        (lambda g: g.graph.update(architecture="{"), "must be a table or its JSON text"),
        (lambda g: g.graph.update(provenance="[" * 100_000), "nested too deep"),
        (lambda g: g.graph.update(provenance=3), "provenance is a table"),
        (lambda g: g.add_node("m9"), "no node m9"),
        (lambda g: g.add_node(3), "expected a node"),
        (lambda g: g.add_node("m1", kind="head"), "its name 'mlp'"),
        (lambda g: g.add_node("m1", layer=0), "its name 1"),
        (lambda g: g.add_edge("m1", "m0"), "no edge m1->m0"),
        (lambda g: g.add_edge("m0", "logits", port="z"), "'port' must be"),
        (lambda g: g.add_edge("m0", "logits", port=["q"]), "'port' must be"),
        (lambda g: g.add_edge("m0", "logits", position="x"), "whole number"),
        (lambda g: g.add_edge("m0", "logits", score=math.nan), "finite"),
        (lambda g: g.add_edge("m0", "logits", score="1"), "must be a number"),
        (lambda g: g.add_edge("m0", "logits", structural="yes"), "True or False"),
        (lambda g: g.add_edge("m0", "logits", structural=True), "joined structurally"),
        (lambda g: g.add_edge("a0.h1", "m0", key="again"), "comes twice"),
    ],
)
def test_a_graph_that_is_no_circuit_is_refused(change, said):
    with pytest.raises(WiretraceError) as error:
        Circuit.from_networkx(damaged(change))
    assert said in str(error.value)


def test_an_undirected_graph_is_refused():
    with pytest.raises(BadCircuit, match="directed"):
        Circuit.from_networkx(EXAMPLE.to_networkx().to_undirected())


# ----------------------------------------------------------------------------------------------------------- pruning


def on_a_path(circuit):
    """Oracle: networkx reachability in the circuit's own graph, structural edges included."""
    g = circuit.to_networkx()
    reached = {"input"} | (nx.descendants(g, "input") if "input" in g else set())
    useful = {"logits"} | (nx.ancestors(g, "logits") if "logits" in g else set())
    return [edge for edge in circuit.edges if str(edge.source) in reached and str(edge.target) in useful]


def on_a_path_by_position(circuit):
    """Oracle: the graph unrolled over positions, where keys and values are read by all later ones."""
    last = max((edge.position or 0 for edge in circuit.edges), default=0) + 2
    g = nx.DiGraph()
    for edge in circuit.edges:
        group = edge.target.kind == "kv"
        ends = circuit.graph.query_heads(edge.target) if group else (edge.target,)
        for here in range(last) if edge.position is None else (edge.position,):
            g.add_edge((edge.source, here), (edge, here))
            for there in range(here, last) if edge.port in ("k", "v") else (here,):
                g.add_edges_from(((edge, here), (end, there)) for end in ends)
    inputs = [(Node("input"), here) for here in range(last)]
    outputs = [(Node("logits"), here) for here in range(last)]
    g.add_edges_from([*(("start", place) for place in inputs), *((place, "end") for place in outputs)])
    both = nx.descendants(g, "start") & nx.ancestors(g, "end")
    return [edge for edge in circuit.edges if any((edge, here) in both for here in range(last))]


@settings(max_examples=300)
@given(circuits(positions=False, provenance={}))
def test_pruning_keeps_the_edges_on_a_path(circuit):
    pruned = circuit.prune()
    assert list(pruned.edges) == on_a_path(circuit)
    assert pruned.scores == {edge: score for edge, score in circuit.scores.items() if edge in set(pruned.edges)}
    assert pruned.prune() == pruned


@settings(max_examples=300)
@given(circuits(provenance={}))
def test_pruning_follows_positions(circuit):
    pruned = circuit.prune()
    assert list(pruned.edges) == on_a_path_by_position(circuit)
    assert pruned.prune() == pruned


@pytest.mark.parametrize(
    ("edges", "kept"),
    [
        ([], []),
        (["input->logits"], ["input->logits"]),
        (["input->m0"], []),
        (["m0->logits"], []),
        (["input->m0", "m0->logits", "m0->m1"], ["input->m0", "m0->logits"]),
        (["input->a0.h0<q>", "a0.h0->logits"], ["input->a0.h0<q>", "a0.h0->logits"]),
        (["input->m0@1", "m0->logits@2"], []),
        (["input->a0.h0<k>@1", "a0.h0->logits@2"], ["input->a0.h0<k>@1", "a0.h0->logits@2"]),
        (["input->a0.h0<k>@2", "a0.h0->logits@1"], []),
        (["input->a0.h0<q>@1", "a0.h0->logits@2"], []),
    ],
)
def test_pruning_by_hand(edges, kept):
    assert names(made(*edges).prune()) == kept


def test_a_path_runs_through_a_group_to_each_of_its_heads():
    edges = ["input->a0.kv0<k>", "a0.h1->logits"]
    assert names(made(*edges, shape=GROUPED).prune()) == edges
    assert names(made("input->a0.kv0<k>", "a0.h2->logits", shape=GROUPED).prune()) == []


def test_pruning_the_whole_of_a_model_takes_nothing():
    for shape in (Architecture(3, 4), Architecture(2, 4, 2, parallel=True), Architecture(2, 3, has_mlp=False)):
        circuit = Circuit(shape, ComponentGraph(shape).edges)
        assert circuit.prune() == circuit

"""Circuits over features, and scores of nodes, in every format; labels that people give."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings

from graphs import Architecture, Circuit, Edge, Node, export, load
from graphs.errors import BadCircuit, BadFile, BadOption
from graphs.export import cytoscape, dot, gexf, graphviz, neuronpedia, notebook
from graphs.labels import labels_of, tokens_of
from graphs.nodes import LOGITS, feature
from tests.graphs.format_samples import EXACT, HOSTILE, path_of
from tests.graphs.strategies import circuits, feature_circuits

SHAPE = Architecture(2, 2)
NAMES = (
    "input.f3@1->r0.f2@1",
    "r0.f2@1->a1.f5@4",
    "r0.err@1->a1.f5@4",
    "a1.f5@4->logits",
    "m1.f3->logits",
    "m0->logits",
)
EDGES = [Edge.parse(name) for name in NAMES]


def sample(provenance: dict | None = None) -> Circuit:
    of_nodes = {Node.parse("r0.f2@1"): -1.5, Node.parse("a0.h1"): 5e-324, Node.parse("a1.err"): 0.1 + 0.2}
    return Circuit(SHAPE, EDGES, {EDGES[0]: -0.5, EDGES[5]: 0.25}, provenance, of_nodes)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(circuit=feature_circuits())
def test_every_circuit_reads_back(name: str, shared: Path, circuit: Circuit) -> None:
    path = path_of(shared, name)
    export(circuit, path)
    again = load(path)
    assert again == circuit
    assert again.to_json() == circuit.to_json()  # to the last bit and in order


@pytest.mark.parametrize("name", EXACT)
def test_hostile_labels_read_back(name: str, tmp_path: Path) -> None:
    circuit = sample({"labels": {"r0.f2@1": HOSTILE, "a1.f5": "& <b>"}, "tokens": [HOSTILE] * 5})
    export(circuit, path_of(tmp_path, name))
    assert load(path_of(tmp_path, name)) == circuit


def test_networkx_reads_the_files_itself(tmp_path: Path) -> None:
    circuit = sample()
    for name, read in (("graphml", nx.read_graphml), ("gexf", nx.read_gexf)):
        export(circuit, path_of(tmp_path, name))
        graph = read(path_of(tmp_path, name))
        assert set(graph) == set(map(str, circuit.nodes))
        assert graph.nodes["r0.f2@1"]["score"] == -1.5
        assert graph.nodes["r0.f2@1"]["position"] == 1
        assert "score" not in graph.nodes["logits"]


def test_gexf_declares_what_it_uses_alone() -> None:
    plain = gexf.dumps(Circuit(SHAPE, EDGES[5:]))
    nodes = plain[plain.index('class="node"') : plain.index('class="edge"')]
    assert 'title="index"' in nodes
    assert 'title="score"' not in nodes
    assert 'title="score" type="double"' in gexf.dumps(sample()).split('class="edge"')[0]


def test_csv_without_the_comment_of_scores_reads_as_a_circuit_without_them(tmp_path: Path) -> None:
    export(sample(), tmp_path / "c.csv")
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert sum(line.startswith("# node_scores: ") for line in lines) == 1
    assert not any(mark in line.split(":", 2)[-1] for line in lines[3:4] for mark in "=+@;")
    (tmp_path / "c.csv").write_text("\n".join(line for line in lines if "node_scores" not in line))
    assert load(tmp_path / "c.csv") == Circuit(SHAPE, EDGES, sample().scores)


@pytest.mark.parametrize("table", ["[1]", '{"m0": "x"}', '{"m0": NaN}', '{"m9.f1": 1}', '{"paris": 1}'])
def test_csv_with_wrong_scores_of_nodes_is_refused(table: str, tmp_path: Path) -> None:
    export(Circuit(SHAPE, EDGES[5:]), tmp_path / "c.csv")
    text = (tmp_path / "c.csv").read_text().replace("source,", f"# node_scores: {table}\nsource,", 1)
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(BadFile):
        load(tmp_path / "c.csv")


# ----------------------------------------------------------------------------------------------------------- mib


def test_mib_refuses_features(tmp_path: Path) -> None:
    for circuit in (Circuit(SHAPE, EDGES[:1]), Circuit(SHAPE, [], node_scores={feature("mlp", 0, 1): 1.0})):
        with pytest.raises(BadCircuit, match=r"no features of dictionaries; got (input\.f3@1|m0\.f1)\. Save"):
            export(circuit, tmp_path / "c.mib.json", d_model=8)
    assert not list(tmp_path.iterdir())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(circuit=circuits(positions=False, provenance={"method": "acdc"}))
def test_mib_keeps_scores_of_nodes(shared: Path, circuit: Circuit) -> None:
    if not circuit.architecture.has_mlp:
        return
    writers = circuit.graph.sources[::2]
    of_nodes = {node: number / 7 - 1 for number, node in enumerate(writers)}
    whole = Circuit(circuit.architecture, circuit.edges, {}, circuit.provenance, of_nodes)
    export(whole, shared / "c.mib.json", d_model=8)
    assert load(shared / "c.mib.json") == whole


def test_mib_files_that_name_features_or_foreign_scores_are_refused(tmp_path: Path) -> None:
    export(Circuit(SHAPE, EDGES[5:], node_scores={Node.parse("m0"): 1.0}), tmp_path / "c.mib.json", d_model=8)
    good = json.loads((tmp_path / "c.mib.json").read_text())
    assert good["wiretrace"]["nodes"] == ["m0"]
    row = {"score": 1.0, "in_graph": True}
    for bad in (
        good | {"edges": good["edges"] | {"m0.f1->logits": row}},
        good | {"wiretrace": good["wiretrace"] | {"nodes": ["m1"]}},
        good | {"wiretrace": good["wiretrace"] | {"nodes": 3}},
    ):
        (tmp_path / "bad.mib.json").write_text(json.dumps(bad))
        with pytest.raises(BadFile):
            load(tmp_path / "bad.mib.json")


# --------------------------------------------------------------------------------------------------- neuronpedia


def test_neuronpedia_has_features_as_theirs() -> None:
    names = ("m1.f3@2->logits", "m1.err@2->logits", "r0.f3@1->m1.f3@2", "input.f9@1->r0.f3@1", "a1.f4->logits")
    edges = [Edge.parse(name) for name in names]
    made = {"labels": {"m1.f3": 'a "plural"'}}
    circuit = Circuit(SHAPE, edges, {edges[0]: -0.5}, made, {edges[0].source: -2.0})
    record = json.loads(neuronpedia.dumps(circuit, tokens=["The", " keys", " are"]))
    nodes = {node["node_id"]: node for node in record["nodes"]}
    assert set(nodes) == {"e_9_1", "r0_3_1", "a1_4_all", "1_3_2", "ERR_1_2", "logits"}
    assert nodes["1_3_2"] == {
        "node_id": "1_3_2", "feature": (1 + 3) * (1 + 3 + 1) // 2 + 3, "layer": "1", "ctx_idx": 2,
        "feature_type": "cross layer transcoder", "token_prob": 0.0, "is_target_logit": False, "run_idx": 0,
        "reverse_ctx_idx": 0, "jsNodeId": "1_3_2", "clerp": 'a "plural"', "influence": None, "activation": None,
        "name": "m1.f3@2", "score": -2.0,
    }  # fmt: skip
    assert (nodes["ERR_1_2"]["feature"], nodes["ERR_1_2"]["feature_type"]) == (-1, "mlp reconstruction error")
    assert (nodes["e_9_1"]["layer"], nodes["e_9_1"]["ctx_idx"], nodes["a1_4_all"]["ctx_idx"]) == ("E", 1, 2)
    assert {"source": "1_3_2", "target": "logits"}.items() <= record["links"][-2].items() | record["links"][-1].items()
    assert {link["source"] for link in record["links"]} | {"logits"} == set(nodes)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(circuit=feature_circuits())
def test_neuronpedia_ids_are_unique_and_links_join_them(circuit: Circuit) -> None:
    record = json.loads(neuronpedia.dumps(circuit))
    ids = [node["node_id"] for node in record["nodes"]]
    assert len(ids) == len(set(ids)) == len(circuit.nodes)
    assert all({link["source"], link["target"]} <= set(ids) for link in record["links"])
    columns = len(record["metadata"]["prompt_tokens"])
    assert all(0 <= node["ctx_idx"] < columns for node in record["nodes"])


def test_neuronpedia_strict_has_their_ids_and_refuses_what_they_would_confuse() -> None:
    edges = [Edge.parse(name) for name in ("m0.f5@2->m1.f3@2", "m1.f3@2->logits", "m1.err@2->logits")]
    record = json.loads(neuronpedia.dumps(Circuit(SHAPE, edges), strict=True, tokens=["a", "b", "c"]))
    assert {node["node_id"] for node in record["nodes"]} == {"0_5_2", "1_3_2", "0_1_2", "3_0_2"}
    assert all(len(node) == 13 for node in record["nodes"])
    for name, other in (("m0.f1@2->logits", "m1.err@2"), ("r1.f3@2->logits", "m1.f3@2")):
        with pytest.raises(BadCircuit, match=r"and .* would both be called .*without strict") as found:
            neuronpedia.dumps(Circuit(SHAPE, [*edges, Edge.parse(name)]), strict=True, tokens=["a", "b", "c"])
        assert other in str(found.value)


def test_neuronpedia_needs_a_token_for_each_position() -> None:
    circuit = Circuit(SHAPE, EDGES[:4])
    with pytest.raises(BadOption, match="one for each position; got 2, and a feature is at 4"):
        neuronpedia.dumps(circuit, tokens=["a", "b"])
    with pytest.raises(BadCircuit, match="a column for each up to"):
        neuronpedia.dumps(Circuit(SHAPE, [Edge.parse("m0.f1@999999999->logits")]))
    assert json.loads(neuronpedia.dumps(circuit))["metadata"]["prompt_tokens"][4] == "(position 4)"
    known = Circuit(SHAPE, EDGES[:4], provenance={"tokens": list("abcde")})
    assert json.loads(neuronpedia.dumps(known))["metadata"]["prompt_tokens"] == list("abcde")


# -------------------------------------------------------------------------------------------------------- labels


def test_labels_are_found_by_name_with_and_without_position() -> None:
    labels = {
        "r0.f2": "plain",
        "r0.f2@1": " at\none ",
        "a1.f5": "any",
        "a1.f5@4": "",
        "m1.f3": 7,
        "m0": "a movers' MLP",
    }
    found = labels_of(sample({"labels": labels}))
    assert {str(node): text for node, text in found.items()} == {"r0.f2@1": "at one", "m0": "a movers' MLP"}


@pytest.mark.parametrize("labels", [None, 3, [], "m0", {"m0": None}, {"m0": "\n"}])
def test_what_is_no_table_of_labels_is_passed_over(labels: object) -> None:
    assert labels_of(sample({"labels": labels})) == {}


@pytest.mark.parametrize("tokens", [None, "abcde", ["a"], [1, 2, 3, 4, 5], {"0": "a"}])
def test_what_is_no_prompt_is_passed_over(tokens: object) -> None:
    assert tokens_of(sample({"tokens": tokens})) == ()


def test_programs_for_graphs_show_labels(tmp_path: Path) -> None:
    circuit = sample({"labels": {"r0.f2": 'a "<b>" \\N & é'}})
    text = dot.dumps(circuit)
    assert "label=\"r0.f2@1\\na '&lt;b&gt;' /N &amp; &#233;\"" in text
    assert text.isascii()
    assert text.count('style="filled,rounded,dashed"') == 2  # the two error terms
    assert 'label="r0.f2@1 a ' in gexf.dumps(circuit) or "label='r0.f2@1 a " in gexf.dumps(circuit)
    data = {node["data"]["id"]: node["data"] for node in json.loads(cytoscape.dumps(circuit))["elements"]["nodes"]}
    assert data["r0.f2@1"]["label"] == 'a "<b>" \\N & é'
    assert "label" not in data["m1.f3"]
    if graphviz.shutil.which("dot"):
        graphviz.draw(circuit, tmp_path / "c.svg")
        drawn = (tmp_path / "c.svg").read_text()
        assert "&lt;b&gt;" in drawn
        assert "<b>" not in drawn


def test_a_notebook_says_the_size_and_the_strongest_nodes() -> None:
    shown = notebook.shown(sample({"labels": {"r0.f2": "<script>"}}))
    assert "1 of 46 edges between 3 nodes; 5 edges of 4 features and 2 error terms" in shown
    assert "r0.f2@1 -1.5, a1.err +0.3" in shown
    assert "<script>" not in shown
    assert str(LOGITS) in shown

"""Files that are no circuit, or hostile, are refused with a reason, in every format that is read."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import Circuit, Edge, Node, export, load
from graphs.errors import BadFile, UnknownEdge, WiretraceError
from graphs.export import csv, cytoscape, gexf
from graphs.importing import READERS
from graphs.schema import EDGE_TYPES, NODE_TYPES, circuit_of

from .format_samples import EXACT, SHAPES, path_of, some_circuit


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for hypothesis, which calls a test many times."""
    return tmp_path_factory.mktemp("formats")


@pytest.mark.parametrize("name", READERS)
def test_a_file_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    circuit = Circuit(SHAPES[0], [edge.everywhere() for edge in some_circuit(SHAPES[0]).edges])
    path = path_of(tmp_path, name)
    export(circuit, path, **({"d_model": 8} if name == "mib" else {}))
    whole = path.read_bytes()
    header = whole.index(b"\nsource,") + 1 if name == "csv" else len(whole)  # rows of CSV may end anywhere
    for length in range(0, min(len(whole.rstrip()), header) - 1, max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadFile, match="circuit"):
            load(path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"\xff\xfe", b"[]", b"{}", b"null", b"<a/>", b"a,b\n", b"digraph {}"]
)
def test_other_files_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = path_of(tmp_path, name)
    path.write_bytes(content)
    with pytest.raises(BadFile, match="circuit"):
        load(path)


@pytest.mark.parametrize("name", READERS)
def test_files_over_the_limit_are_refused_unread(name: str, tmp_path: Path) -> None:
    path = path_of(tmp_path, name)
    with path.open("wb") as file:
        os.truncate(file.fileno(), 50_000_000_000)  # sparse: no disk is used, and memory would not hold it
    begun = time.perf_counter()
    with pytest.raises(BadFile, match="larger than 100 MB"):
        load(path)
    assert time.perf_counter() - begun < 1.0


PIECES = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b'"',
    b"<a>",
    b"&#0;",
    b"&x;",
    b"]",
    b"}",
    b",",
    b"\\n",
    b"true",
    b"m0",
]


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(name: str, shared: Path, data: st.DataObject) -> None:
    """Whatever becomes of a few of its bytes, nothing but a `BadFile` is raised."""
    path = path_of(shared, name)
    export(some_circuit(n=4), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = start + data.draw(st.integers(0, 12))
        content[start:stop] = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from(PIECES)))
    path.write_bytes(content)
    try:
        assert isinstance(load(path), Circuit)
    except BadFile as error:
        assert path.name in str(error)  # noqa: PT017


PIECES = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b'"',
    b"<a>",
    b"&#0;",
    b"&x;",
    b"]",
    b"}",
    b",",
    b"\n",
    b"true",
    b"m0",
]
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
REACH = '<!DOCTYPE x SYSTEM "file:///etc/hostname">'


@pytest.mark.parametrize("name", ["graphml", "gexf"])
@pytest.mark.parametrize("declared", [BOMB, REACH, BOMB.lower(), '<!ENTITY % p SYSTEM "http://127.0.0.1/">'])
def test_declarations_in_xml_are_refused(name: str, declared: str, tmp_path: Path) -> None:
    path = path_of(tmp_path, name)
    export(some_circuit(), path)
    head, rest = path.read_text().split("\n", 1)
    path.write_text(f"{head}\n{declared}\n{rest}")
    with pytest.raises(BadFile, match="document type or entities"):
        load(path)


@pytest.mark.parametrize("name", ["graphml", "gexf", "json", "node-link", "dot"])
def test_deep_nesting_is_refused(name: str, tmp_path: Path) -> None:
    opening = {"graphml": "<a>", "gexf": "<a>", "dot": "digraph {" + "{"}.get(name, "[")
    path_of(tmp_path, name).write_text(opening * 200_000)
    with pytest.raises(BadFile):
        load(path_of(tmp_path, name))


@pytest.mark.parametrize("name", EXACT)
def test_an_unknown_version_is_refused(name: str, tmp_path: Path) -> None:
    path = path_of(tmp_path, name)
    export(some_circuit(), path)
    text = path.read_text()
    assert "wiretrace-circuit/1" in text
    path.write_text(text.replace("wiretrace-circuit/1", "wiretrace-circuit/99"))
    with pytest.raises(BadFile, match="another version of Wiretrace"):
        load(path)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-inf", "1e999", '"x"'])
def test_scores_that_are_no_finite_numbers_are_refused(name: str, value: str, tmp_path: Path) -> None:
    edge = Edge.parse("m0->logits")
    path = path_of(tmp_path, name)
    export(Circuit(SHAPES[0], [edge], {edge: -123.25}), path)
    text = path.read_text()
    path.write_text(text.replace("-123.25", value if name in ("json", "cytoscape") else value.strip('"')))
    assert path.read_text() != text
    with pytest.raises(BadFile):
        load(path)


def table(**changes: object) -> dict[str, object]:
    """A small graph in node-link form, with changes."""
    graph = {"schema": "wiretrace-circuit/1", "architecture": {"n_layers": 1, "n_heads": 2}}
    nodes = [{"id": "m0"}, {"id": "logits"}]
    edges = [{"source": "m0", "target": "logits", "port": "", "structural": False}]
    return {"directed": True, "multigraph": True, "graph": graph, "nodes": nodes, "edges": edges, **changes}


GRAPH = table()["graph"]
M0, LOGITS, WIRE = {"id": "m0"}, {"id": "logits"}, {"source": "m0", "target": "logits"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"directed": False}, "'directed' must be true"),
        ({"graph": {**GRAPH, "schema": None}}, "to be 'wiretrace-circuit/1'"),
        ({"graph": {"schema": "wiretrace-circuit/1"}}, "'architecture' is missing"),
        ({"graph": None}, "'graph' must be a JSON object; got nothing"),
        ({"graph": {**GRAPH, "architecture": {"n_layers": 1}}}, "missing n_heads"),
        ({"graph": {**GRAPH, "provenance": [1]}}, "provenance is a table"),
        ({"nodes": [M0, M0, LOGITS]}, "'m0' is listed twice"),
        ({"nodes": [M0]}, "'logits', which is not among the nodes"),
        ({"nodes": [{}]}, "lacks 'id'"),
        ({"nodes": [{"id": 3}]}, "a node's name must be text"),
        ({"nodes": [{"id": ["m0"]}]}, "a node's name must be text"),
        ({"nodes": [{"id": "paris"}, M0, LOGITS]}, "expected a node: input"),
        ({"nodes": [{"id": "m7"}, M0, LOGITS]}, "no node m7"),
        ({"nodes": [{"id": "m0", "kind": "head"}, LOGITS]}, "its attribute 'kind' says 'head'"),
        ({"nodes": [{"id": "m0", "layer": 4}, LOGITS]}, "its attribute 'layer' says '4'"),
        ({"nodes": 3}, "'nodes' must be a JSON list"),
        ({"edges": [WIRE, WIRE]}, "comes twice"),
        ({"edges": [{"source": "m0"}]}, "lacks 'target'"),
        ({"edges": [{**WIRE, "target": 3}]}, "an edge's end must be text"),
        ({"edges": [{**WIRE, "port": "x"}]}, "'port' must be q, k, v or empty"),
        ({"edges": [{**WIRE, "structural": 1}]}, "'structural' must be True or False"),
        ({"edges": [{**WIRE, "structural": True}]}, "only a group and one of its heads"),
        ({"edges": [{**WIRE, "position": 1.5}]}, "whole number as its position"),
        ({"edges": [{**WIRE, "score": "1"}]}, "must be a number"),
        ({"edges": [{"source": "logits", "target": "m0"}]}, "does not write"),
        ({"nodes": [M0, {"id": "a0.h0"}], "edges": [{"source": "m0", "target": "a0.h0", "port": "q"}]}, "before it"),
        ({"nodes": [M0], "edges": [{"source": "m0", "target": "m0"}]}, "before it"),
        (
            {"nodes": [{"id": "a0.h0"}, {"id": "input"}], "edges": [{"source": "input", "target": "a0.h0"}]},
            "three places",
        ),
        ({"edges": {"a": 1}}, "'edges' must be a JSON list"),
        ({"links": []}, "both 'edges' and 'links'"),
    ],
)
def test_graphs_from_elsewhere_are_refused_with_a_reason(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    """Undirected and cyclic graphs, unknown names, missing and wrong attributes."""
    path = tmp_path / "c.node-link.json"
    path.write_text(json.dumps(table()))
    assert load(path).n_edges == 1
    path.write_text(json.dumps(table(**changes)))
    with pytest.raises(BadFile) as caught:
        load(path)
    assert reason in str(caught.value)
    assert "c.node-link.json" in str(caught.value)


def test_a_disconnected_graph_is_a_circuit() -> None:
    names = ["input->a0.h0<q>", "m0->logits"]
    circuit = Circuit(SHAPES[0], [Edge.parse(name) for name in names])
    assert nx.number_weakly_connected_components(circuit.to_networkx()) == 2
    assert Circuit.from_networkx(circuit.to_networkx()) == circuit


def test_a_graph_with_one_edge_per_pair_loses_edges() -> None:
    """Which is why every format here holds several; a DiGraph is read for what it still has."""
    circuit = some_circuit(SHAPES[0], n=60)
    single = nx.DiGraph(circuit.to_networkx())
    assert single.number_of_edges() < circuit.n_edges
    assert Circuit.from_networkx(single).n_edges == single.number_of_edges()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("graph { m0 -- logits }", "expected a digraph"),
        ("strict digraph { }", "a strict graph has one edge between two nodes"),
        ("digraph { m0 -> logits -> m0 }", "one by one"),
        ("digraph { {m0} -> logits }", "one by one"),
        ("digraph { m0:n -> logits }", "one by one"),
        ("digraph { m0 [label=<b>] }", "line 1 cannot be read as DOT"),
        ("digraph { m0 [layer=x] }", "'layer' must be a whole number"),
        ("digraph { m0 [layer] }", "expected '='"),
        ("digraph { m0", "ends early"),
        ("digraph { } digraph { }", "something follows"),
        ('digraph { "m0', "line 1 cannot be read"),
        ("digraph { m0 }", "to be 'wiretrace-circuit/1'"),
        ("digraph " + "{" * 30, "nested more than"),
    ],
)
def test_dot_beyond_the_reader_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "c.gv").write_text(text)
    with pytest.raises(BadFile) as caught:
        load(tmp_path / "c.gv")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("# schema", "# shema", "to be 'wiretrace-circuit/1'"),
        ("# architecture", "# arch", "'architecture' is missing"),
        ("source,target", "from,to", "must be source,target,port,position,score"),
        ("m0,logits,,,", "m0,logits,,", "line 5: expected 5 cells; got 4"),
        ("m0,logits,,,", "m0,logits,,x,", "'position' must be a whole number"),
        ("m0,logits,,,", "=m0,logits,,,", "expected a node"),
        ("m0,logits,,,", '"m0,logits,,,', "is not CSV"),
        ("# provenance", "# provenance: {}\n# provenance", "comes twice"),
    ],
)
def test_edge_lists_with_a_mistake_are_refused(old: str, new: str, reason: str, tmp_path: Path) -> None:
    text = csv.dumps(Circuit(SHAPES[0], [Edge.parse("m0->logits")]))
    assert old in text
    (tmp_path / "c.csv").write_text(text.replace(old, new))
    with pytest.raises(BadFile) as caught:
        load(tmp_path / "c.csv")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<description>", "<keywords>", "not XML"),
        ('defaultedgetype="directed"', 'defaultedgetype="undirected"', "directed by default"),
        ('<edge id="m0-&gt;logits"', '<edge type="undirected" id="m0-&gt;logits"', "those of circuits are directed"),
        (' target="logits"', "", "lacks 'target'"),
        ('<node id="logits"', '<node id="m0"', "'m0' is listed twice"),
        ("<nodes>", "<nodes/><nodes>", "one element 'nodes' in 'graph'; got 2"),
        ('value="false"', 'value="maybe"', "must be true or false"),
    ],
)
def test_gexf_with_a_mistake_is_refused(old: str, new: str, reason: str, tmp_path: Path) -> None:
    text = gexf.dumps(Circuit(SHAPES[0], [Edge.parse("m0->logits")]))
    assert old in text
    (tmp_path / "c.gexf").write_text(text.replace(old, new))
    with pytest.raises(BadFile) as caught:
        load(tmp_path / "c.gexf")
    assert reason in str(caught.value)


def test_cytoscape_nodes_of_one_name_are_refused(tmp_path: Path) -> None:
    record = json.loads(cytoscape.dumps(Circuit(SHAPES[0], [Edge.parse("m0->logits")])))
    record["elements"]["nodes"][1]["data"]["name"] = "m0"
    (tmp_path / "c.cyjs").write_text(json.dumps(record))
    with pytest.raises(BadFile, match="'m0' is listed twice"):
        load(tmp_path / "c.cyjs")


def test_rows_are_checked_whatever_the_format() -> None:
    attributes = {"schema": "wiretrace-circuit/1", "architecture": {"n_layers": 1, "n_heads": 2}}
    with pytest.raises(UnknownEdge):
        circuit_of(attributes, None, [("m0", "m0", {})])
    with pytest.raises(WiretraceError, match="finite"):
        circuit_of(attributes, None, [("m0", "logits", {"score": float("nan")})])


def test_the_schema_is_what_graphs_hold() -> None:
    plain, feature = some_circuit(), Node.parse("m0.f7@5")
    graph = replace(plain, node_scores={feature: -0.5}).to_networkx()
    assert {key for _, found in plain.to_networkx().nodes(data=True) for key in found} == {"kind", "layer", "index"}
    assert {key for _, found in graph.nodes(data=True) for key in found} == set(NODE_TYPES)
    assert {key for *_, found in graph.edges(data=True) for key in found} == set(EDGE_TYPES)
    assert set(graph.graph) == {"schema", "architecture", "provenance"}

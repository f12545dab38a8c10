"""Formats of other programs: what is written reads back, and other readers agree."""

from __future__ import annotations

import csv as plain_csv
import io
import json
import shutil
import subprocess
import textwrap
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphs
from graphs import Architecture, Circuit, ComponentGraph, Edge, export, load
from graphs.errors import BadFile, BadOption, UnknownFormat
from graphs.export import EXPORTS, FORMATS, csv, cytoscape, dot, format_of, gexf, node_link
from graphs.strict_json import guarded

from .format_samples import EXACT, SHAPES, path_of, some_circuit
from .strategies import JSON, TEXT, circuits


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for hypothesis, which calls a test many times."""
    return tmp_path_factory.mktemp("formats")


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=25, deadline=None)
@given(circuit=circuits())
def test_every_circuit_reads_back(name: str, shared: Path, circuit: Circuit) -> None:
    path = path_of(shared, name)
    export(circuit, path)
    again = load(path)
    assert again == circuit
    assert again.provenance == circuit.provenance
    assert again.to_json() == circuit.to_json()  # to the last bit and in order


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_hostile_text_positions_and_groups_read_back(name: str, shape: Architecture, tmp_path: Path) -> None:
    circuit = some_circuit(shape)
    export(circuit, path_of(tmp_path, name))
    assert load(path_of(tmp_path, name)) == circuit


@pytest.mark.parametrize("name", EXACT)
def test_an_empty_circuit_reads_back(name: str, tmp_path: Path) -> None:
    for circuit in (Circuit(SHAPES[0], []), Circuit(SHAPES[1], [], provenance={"": ""})):
        export(circuit, path_of(tmp_path, name))
        assert load(path_of(tmp_path, name)) == circuit


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("pdf", "png")])
def test_the_same_circuit_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    circuit = some_circuit(SHAPES[0])
    if name == "mib":  # which has no positions
        circuit = Circuit(circuit.architecture, {edge.everywhere() for edge in circuit.edges})
    options = {"d_model": 8} if name == "mib" else {}
    other = Circuit(
        circuit.architecture, circuit.edges[::-1], dict(reversed(circuit.scores.items())), circuit.provenance
    )
    written = []
    for number, each in enumerate((circuit, circuit, other)):
        (tmp_path / str(number)).mkdir()
        export(each, path_of(tmp_path / str(number), name), **options)
        written.append(path_of(tmp_path / str(number), name).read_bytes())
    assert written[0] == written[1] == written[2]
    assert b"NaN" not in written[0]


@pytest.mark.parametrize("name", EXACT)
def test_scores_at_the_ends_of_the_range(name: str, tmp_path: Path) -> None:
    edges = ComponentGraph(SHAPES[0]).edges[:4]
    scores = dict(zip(edges, (5e-324, -1.7976931348623157e308, 0.1 + 0.2, -0.0), strict=True))
    circuit = Circuit(SHAPES[0], edges, scores)
    export(circuit, path_of(tmp_path, name))
    assert load(path_of(tmp_path, name)).to_json() == circuit.to_json()


@settings(max_examples=200, deadline=None)
@given(value=JSON, guard=st.sampled_from(["", ",;=+@"]))
def test_guarded_json_is_the_same_json(value: object, guard: str) -> None:
    text = guarded(value, guard=guard)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == json.loads(json.dumps(value))  # surrogates that form a character are joined by both


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_guarded_text_holds_no_mark(text: str) -> None:
    inside = guarded(text, guard=",;=+@")[1:-1]
    assert not set(inside) & set(',;=+@"')
    assert inside.count("\\") == inside.count("\\u")


# --------------------------------------------------------------------------------------------------- other readers


def rows_of(graph: nx.Graph) -> set[tuple[object, ...]]:
    return {
        (source, target, found.get("port") or "", found.get("score"), found.get("position"), found["structural"])
        for source, target, found in graph.edges(data=True)
    }


def as_networkx_reads_it(name: str, path: Path) -> nx.Graph:
    if name == "gexf":
        return nx.read_gexf(path, version="1.3")
    record = json.loads(path.read_text())
    return nx.cytoscape_graph(record) if name == "cytoscape" else nx.node_link_graph(record, edges="edges")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["gexf", "cytoscape", "node-link"])
def test_networkx_reads_the_same_graph(name: str, shape: Architecture, tmp_path: Path) -> None:
    circuit = some_circuit(shape)
    export(circuit, path_of(tmp_path, name))
    found, true = as_networkx_reads_it(name, path_of(tmp_path, name)), circuit.to_networkx()
    assert found.is_directed()
    assert found.is_multigraph()
    assert found.number_of_edges() == true.number_of_edges()
    assert rows_of(found) == rows_of(true)
    for node, attributes in true.nodes(data=True):
        assert {key: found.nodes[node].get(key) for key in attributes} == attributes


def test_node_link_is_what_networkx_writes(tmp_path: Path) -> None:
    circuit = some_circuit()
    assert json.loads(node_link.dumps(circuit)) == nx.node_link_data(circuit.to_networkx(), edges="edges")
    for edges in ("edges", "links"):  # as networkx before 3.4 called them
        (tmp_path / "c.json").write_text(json.dumps(nx.node_link_data(circuit.to_networkx(), edges=edges)))
        assert node_link.read(tmp_path / "c.json") == circuit


def test_edges_of_gexf_have_ids_of_their_own() -> None:
    circuit = some_circuit()
    keys = [cytoscape.edge_id(source, target, key) for source, target, key in circuit.to_networkx().edges(keys=True)]
    assert len(set(keys)) == len(keys)
    assert {str(edge) for edge in circuit.edges} <= set(keys)
    assert all(gexf.dumps(circuit).count(f'id="{key}"'.replace(">", "&gt;").replace("<", "&lt;")) == 1 for key in keys)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_reads_dot_and_gives_it_back(tmp_path: Path) -> None:
    circuit = some_circuit()
    export(circuit, tmp_path / "c.dot")
    for form in ("dot", "svg", "plain"):
        out = tmp_path / f"out.{form}"
        done = subprocess.run(["dot", f"-T{form}", tmp_path / "c.dot", "-o", out], capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
    assert dot.read(tmp_path / "out.dot") == circuit
    drawn = [line.split()[1:3] for line in (tmp_path / "out.plain").read_text().splitlines() if line.startswith("edge")]
    true = [[source, target] for source, target in circuit.to_networkx().edges()]
    assert sorted([name.strip('"') for name in row] for row in drawn) == sorted(true)


def test_dot_written_otherwise_reads_too(tmp_path: Path) -> None:
    text = r"""
    /* a comment; */ digraph { // another
    # and a third
    schema = "wiretrace-"+"circuit/1"; architecture="{\"n_layers\": 1, \"n_heads\": 1}"
    node [shape=box]; edge [color=red]
    subgraph cluster_0 { label=x; m0 [kind=mlp; layer=0][color=blue] }
    logits
    m0 -> logits [score=-.5, port=""]
    }"""
    (tmp_path / "c.dot").write_text(textwrap.dedent(text))
    edge = Edge.parse("m0->logits")
    assert load(tmp_path / "c.dot") == Circuit(Architecture(1, 1), [edge], {edge: -0.5})


def test_pandas_reads_the_edge_list(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    circuit = some_circuit()
    export(circuit, tmp_path / "c.csv")
    frame = pandas.read_csv(tmp_path / "c.csv", comment="#", keep_default_na=False)
    assert list(frame.columns) == list(csv.COLUMNS)
    assert [f"{row.source}->{row.target}" for row in frame.itertuples()] == [
        f"{edge.source}->{edge.target}" for edge in circuit.edges
    ]
    assert [float(score) for score in frame.score if score] == list(circuit.scores.values())


@settings(max_examples=50, deadline=None)
@given(circuit=circuits(), delimiter=st.sampled_from(",;\t"))
def test_no_cell_is_a_formula(circuit: Circuit, delimiter: str) -> None:
    text = csv.dumps(circuit)
    assert text.isascii()
    for row in plain_csv.reader(io.StringIO(text), delimiter=delimiter):
        for cell in map(str.strip, row):
            assert not cell.startswith(("=", "+", "@", "\t"))
            assert not cell.startswith("-") or cell.rstrip("]}").lstrip("-")[:1].isdigit()  # a number


@pytest.mark.parametrize("quoting", [plain_csv.QUOTE_MINIMAL, plain_csv.QUOTE_ALL])
def test_a_spreadsheet_may_save_the_edge_list(quoting: int, tmp_path: Path) -> None:
    circuit = some_circuit()
    cells = list(plain_csv.reader(io.StringIO(csv.dumps(circuit))))
    width = max(map(len, cells))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        plain_csv.writer(file, quoting=quoting).writerows([*row, *[""] * (width - len(row))] for row in cells)
    assert load(tmp_path / "c.csv") == circuit


def test_cytoscape_may_number_the_nodes(tmp_path: Path) -> None:
    circuit = some_circuit()
    record = json.loads(cytoscape.dumps(circuit))
    numbers = {item["data"]["id"]: str(62 + n) for n, item in enumerate(record["elements"]["nodes"])}
    for item in record["elements"]["nodes"]:
        item["data"] |= {"id": numbers[item["data"]["id"]], "SUID": 1, "selected": False}
    for item in record["elements"]["edges"]:
        item["data"] |= {end: numbers[item["data"][end]] for end in ("source", "target")} | {"id": "9", "SUID": 9}
    (tmp_path / "c.cyjs").write_text(json.dumps(record))
    assert load(tmp_path / "c.cyjs") == circuit


# -------------------------------------------------------------------------------------------- choosing the format


@pytest.mark.parametrize("suffix", EXPORTS)
def test_the_longest_suffix_says_the_format(suffix: str) -> None:
    name = format_of(f"a.b/c.json{suffix.upper()}")
    assert name in FORMATS
    assert EXPORTS[FORMATS[name]] == EXPORTS[suffix]


def test_a_format_may_be_named(tmp_path: Path) -> None:
    circuit = some_circuit()
    for name in EXACT:
        export(circuit, tmp_path / "circuit.json", format=name)
        assert load(tmp_path / "circuit.json", format=name) == circuit


@pytest.mark.parametrize("name", ["node-link", "neuronpedia", "cytoscape"])
def test_another_format_under_our_suffix_is_recognised(name: str, tmp_path: Path) -> None:
    export(some_circuit(), tmp_path / "circuit.json", format=name)
    with pytest.raises(BadFile, match=f"looks like {name}: load it with format='{name}'"):
        load(tmp_path / "circuit.json")


def test_unknown_formats_and_options(tmp_path: Path) -> None:
    circuit = some_circuit()
    with pytest.raises(UnknownFormat, match=r"ends in .*\.gexf.*format= as one of .*node-link"):
        export(circuit, tmp_path / "circuit")
    with pytest.raises(UnknownFormat, match="a format out of json, graphml"):
        export(circuit, tmp_path / "c.json", format="docx")
    with pytest.raises(UnknownFormat, match="files in svg are only written"):
        load(tmp_path / "c.svg")
    with pytest.raises(UnknownFormat, match="a format out of"):
        load(tmp_path / "c.json", format="docx")
    with pytest.raises(BadOption, match=r"mib has the options d_model.*missing a required"):
        export(circuit, tmp_path / "c.mib.json")
    with pytest.raises(BadOption, match="csv has no options; got an unexpected keyword argument 'title'"):
        export(circuit, tmp_path / "c.csv", title="x")
    assert not list(tmp_path.iterdir())
    assert graphs.load is load


def test_mib_files_load_as_circuits(tmp_path: Path) -> None:
    edge = Edge.parse("m0->logits")
    circuit = Circuit(SHAPES[0], [edge], {edge: -0.5})
    export(circuit, tmp_path / "c.mib.json", d_model=8)
    assert load(tmp_path / "c.mib.json") == circuit

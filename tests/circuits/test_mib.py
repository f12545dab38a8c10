"""The .pt graph file of EAP-IG and MIB: read without running what is in it, and what is written reads back."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from circuits import mib as pt
from graphs import Architecture, Circuit, ComponentGraph, Edge
from graphs.errors import BadFile
from graphs.export import mib
from graphs.nodes import Node
from patching import MaskedRun, atp
from patching.errors import InvalidOption
from tests import tiny
from tests.graphs import strategies

TARGETS = ["a0.h0<q>", "a0.h0<k>", "a0.h0<v>", "m0", "logits"]


def by_hand() -> dict[str, Any]:
    """One layer of one head, as `Graph.to_pt` lays it out; entries that are no edges hold what theirs may hold."""
    return {
        "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 4},
        "src_nodes": ["input", "a0.h0", "m0"],
        "dst_nodes": list(TARGETS),
        "edges_scores": torch.tensor([
            [0.5, 0.0, -2.0, 0.125, -0.75],
            [math.nan, 7.0, 7.0, 1.5, -3.0],
            [7.0, 7.0, 7.0, 7.0, 4.0],
        ]),
        "edges_in_graph": torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool(),
        "nodes_in_graph": torch.tensor([True, True, False]),
        "nodes_scores": torch.tensor([0.25, math.nan, -1.0]),
    }  # fmt: skip


def stored(record: object, folder: Path) -> Path:
    torch.save(record, folder / "graph.pt")
    return folder / "graph.pt"


def test_a_file_in_their_layout(tmp_path: Path) -> None:
    read = pt.read_pt(stored(by_hand(), tmp_path))
    assert read.circuit.architecture == Architecture(1, 1)
    assert {str(edge): score for edge, score in read.circuit.scores.items()} == {
        "input->a0.h0<v>": -2.0,
        "a0.h0->logits": -3.0,
    }
    assert {str(edge): score for edge, score in read.edges.items()} == {
        "input->a0.h0<q>": 0.5, "input->a0.h0<k>": 0.0, "input->a0.h0<v>": -2.0, "input->m0": 0.125,
        "a0.h0->m0": 1.5, "input->logits": -0.75, "a0.h0->logits": -3.0, "m0->logits": 4.0,
    }  # fmt: skip
    assert read.nodes == {Node.parse("input"): 0.25, Node.parse("m0"): -1.0}
    assert read.d_model == 4
    turned = pt.read_pt(tmp_path / "graph.pt", of_loss=True)
    assert turned.edges[Edge.parse("m0->logits")] == -4.0
    assert turned.nodes[Node.parse("m0")] == 1.0


def test_what_is_written_has_their_layout(tmp_path: Path) -> None:
    hand = by_hand()
    read = pt.read_pt(stored(hand, tmp_path))
    pt.write_pt(read.circuit, tmp_path / "ours.pt", d_model=4, edges=read.edges, nodes=read.nodes)
    ours = torch.load(tmp_path / "ours.pt", weights_only=True)
    for key in ("cfg", "src_nodes", "dst_nodes"):
        assert ours[key] == hand[key]
    assert torch.equal(ours["edges_in_graph"], hand["edges_in_graph"])
    assert torch.equal(ours["nodes_in_graph"], hand["nodes_in_graph"])
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()
    assert torch.equal(ours["edges_scores"][real].float(), hand["edges_scores"][real])
    assert torch.equal(ours["nodes_scores"].float().nan_to_num(9), hand["nodes_scores"].nan_to_num(9))


class Hostile:
    """What an attacker would put into a file: reading it as a pickle makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("key", ["cfg", "nodes_scores", "anything"])
def test_a_hostile_file_is_refused_and_nothing_of_it_runs(key: str, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    path = stored(by_hand() | {key: Hostile(trap)}, tmp_path)
    with pytest.raises(BadFile, match="could run code"):
        pt.read_pt(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert trap.exists()


@settings(max_examples=40, deadline=None)
@given(circuit=strategies.circuits(positions=False), data=st.data())
def test_what_is_written_reads_back_as_from_json(circuit: Circuit, data: st.DataObject, tmp_path_factory: Any) -> None:
    assume(circuit.architecture.has_mlp)
    assume(all(abs(score) < 1e300 for score in circuit.scores.values()))  # shares of more may add up to infinity
    floats = st.floats(-1e300, 1e300)
    more = data.draw(st.dictionaries(st.sampled_from(circuit.graph.edges), floats, max_size=5))
    nodes = data.draw(st.dictionaries(st.sampled_from(circuit.graph.sources), floats, max_size=3))
    folder = tmp_path_factory.mktemp("mib")
    pt.write_pt(circuit, folder / "graph.pt", d_model=8, edges=more, nodes=nodes)
    mib.write(circuit, folder / "graph.json", d_model=8, edges=more, nodes=nodes)
    assert pt.read_pt(folder / "graph.pt") == mib.read(folder / "graph.json")
    assert pt.read_pt(folder / "graph.pt").circuit.edges == circuit.edges


def test_scores_of_a_method_come_back() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    edges, nodes = atp.scores(run), atp.scores(run.nodes())
    circuit = Circuit(edges.architecture, [], provenance={"method": "atp"})
    scored = mib.checked(
        circuit,
        d_model=run.model.d_model,
        edges={edge: float(value) for edge, value in zip(run.graph.edges, edges.values, strict=True)},
        nodes={node: float(value) for node, value in zip(run.graph.sources, nodes.values, strict=True)},
    )
    assert torch.equal(pt.scores_from(scored).values, edges.values)
    again = pt.scores_from(scored, level="node")
    assert torch.equal(again.values, nodes.values)
    assert again.level == "node"
    assert again.provenance["method"] == "atp"


def test_scores_need_every_unit(tmp_path: Path) -> None:
    read = pt.read_pt(stored(by_hand(), tmp_path))
    assert pt.scores_from(read)["a0.h0->logits"] == -3.0
    with pytest.raises(InvalidOption, match=r"1 of 3 have none, such as a0\.h0"):
        pt.scores_from(read, level="node")
    with pytest.raises(InvalidOption, match="edge or node"):
        pt.scores_from(read, level="neuron")  # type: ignore[arg-type]


def test_a_group_is_written_for_each_of_its_heads(tmp_path: Path) -> None:
    key = Edge.parse("input->a0.kv1<k>")
    circuit = Circuit(Architecture(1, 4, 2), [key], {key: -0.5})
    pt.write_pt(circuit, tmp_path / "graph.pt", d_model=8)
    record = torch.load(tmp_path / "graph.pt", weights_only=True)
    columns = record["edges_in_graph"].any(0).nonzero().flatten().tolist()
    assert [record["dst_nodes"][column] for column in columns] == ["a0.h2<k>", "a0.h3<k>"]
    assert record["edges_scores"].sum() == -0.5
    assert pt.read_pt(tmp_path / "graph.pt").circuit == circuit
    del record[mib.OURS]
    record["edges_in_graph"][0, columns[0]] = False
    with pytest.raises(BadFile, match="some heads"):
        pt.read_pt(stored(record, tmp_path), n_kv_heads=2)
    assert pt.read_pt(tmp_path / "graph.pt").circuit.architecture == Architecture(1, 4)


def _wrong(key: str, value: Any) -> dict[str, Any]:
    record = by_hand()
    if value is None:
        del record[key]
    else:
        record[key] = value
    return record


BAD_SCORES = torch.zeros(3, 5).index_put((torch.tensor([0]), torch.tensor([4])), torch.tensor(math.nan))
WRONG = {
    "no scores": (_wrong("edges_scores", None), "lacks edges_scores"),
    "a list": ([1], "holds a list"),
    "shape": (_wrong("edges_scores", torch.zeros(3, 4)), r"shape \[3, 5\]"),
    "no tensor": (_wrong("edges_in_graph", [[1.0]]), "tensor of shape"),
    "other cfg": (_wrong("cfg", {"n_layers": 2, "n_heads": 1}), r"shape \[5, 9\]"),
    "huge cfg": (_wrong("cfg", {"n_layers": 10_000, "n_heads": 90}), r"shape \[910001,"),
    "absurd cfg": (_wrong("cfg", {"n_layers": 10**12, "n_heads": 1}), "1 to 10,000"),
    "names in words": (_wrong("src_nodes", "input"), "src_nodes must be"),
    "other order": (_wrong("dst_nodes", TARGETS[::-1]), "dst_nodes must be"),
    "NaN": (_wrong("edges_scores", BAD_SCORES), "finite"),
    "infinite node": (_wrong("nodes_scores", torch.full((3,), math.inf)), "finite or NaN"),
    "half a node": (_wrong("neurons_in_graph", torch.tensor([[1, 0, 1, 1]] * 3).bool()), "some dimensions"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_says_what_is_wrong(case: str, tmp_path: Path) -> None:
    record, said = WRONG[case]
    with pytest.raises(BadFile, match=said) as caught:
        pt.read_pt(stored(record, tmp_path))
    assert "graph.pt" in str(caught.value)


def test_no_file_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "graph.pt"
    with pytest.raises(BadFile, match="no file"):
        pt.read_pt(path)
    for text in (b"", b"{}", b"PK\x03\x04 cut short"):
        path.write_bytes(text)
        with pytest.raises(BadFile, match=r"graph\.pt"):
            pt.read_pt(path)
    whole = stored(by_hand(), tmp_path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile, match=r"graph\.pt"):
        pt.read_pt(path)
    with path.open("wb") as file:
        file.truncate(100_000_001)
    with pytest.raises(BadFile, match="larger than 100 MB"):
        pt.read_pt(path)


def test_gpt2_small_has_their_sizes(tmp_path: Path) -> None:
    circuit = Circuit(Architecture(12, 12), [Edge.parse("m3->a9.h6<q>")])
    pt.write_pt(circuit, tmp_path / "graph.pt", d_model=768)
    record = torch.load(tmp_path / "graph.pt", weights_only=True)
    assert tuple(record["edges_scores"].shape) == (157, 445)  # 1 + L (H + 1) and L (3 H + 1) + 1
    assert tuple(record["edges_in_graph"].nonzero()[0]) == (1 + 3 * 13 + 12, 9 * 37 + 6)
    assert len(ComponentGraph(circuit.architecture).edges) == 32491

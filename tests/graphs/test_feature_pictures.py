"""Figures, TikZ and pages of circuits over features: rows for sites, columns for positions, dashes for error terms."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphs import Architecture, Circuit, Edge, Node
from graphs.errors import BadOption
from graphs.export import figure, html, tikz
from graphs.export.comparison import compared
from graphs.export.looks import BOX_DASHES, HELPS, HURTS, paler
from graphs.export.picture import MOST_ALONE, merged, picture, strongest
from graphs.layout import Layout, layout
from graphs.nodes import LOGITS, feature, head
from tests.graphs.page_samples import HOSTILE, MADE
from tests.graphs.page_samples import over_features as sample
from tests.graphs.strategies import feature_circuits
from tests.graphs.test_html import record
from tests.graphs.test_picture import check_nothing_overlaps

SHAPE = Architecture(3, 4)
HELPS_TO, HURTS_TO = "node helps (to −1)", "node hurts (to +1.2)"


def check_plan(circuit: Circuit, plan: Layout) -> None:
    assert set(plan.boxes) == {*circuit.nodes, Node("input"), LOGITS}
    for wire in plan.wires:
        assert plan.boxes[wire.edge.source].top < plan.boxes[wire.edge.target].bottom
        heights = [y for _, y in wire.path]
        assert heights == sorted(heights)
    columns = {column.position: column for column in plan.columns}
    for one, two in itertools.pairwise(plan.columns):
        assert one.right < two.left
    for node in circuit.features:
        box = plan.boxes[node]
        if columns:
            column = columns[node.position]
            assert column.left - 1e-6 <= box.x - box.width / 2
            assert box.x + box.width / 2 <= column.right + 1e-6
        else:
            assert node.position is None
        shelf = next(shelf for shelf in plan.shelves if (shelf.layer, shelf.site) == (node.layer, node.site))
        assert shelf.bottom - 1e-6 <= box.bottom
        assert box.top <= shelf.top + 1e-6
        beside = [
            other for other in circuit.features if plan.boxes[other].y == box.y and other.position == node.position
        ]
        assert all(plan.boxes[other].x < box.x for other in beside if node.is_error and not other.is_error)
    for one, two in itertools.pairwise(plan.shelves):
        assert one.top < two.bottom


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(circuit=feature_circuits(provenance=MADE), width=st.sampled_from([None, 6.9]))
def test_nothing_lies_on_anything_else(circuit: Circuit, width: float | None) -> None:
    shown = picture(circuit, width=width)
    check_nothing_overlaps(shown)
    once, _ = merged(circuit)
    check_plan(once, shown.plan)


@pytest.mark.parametrize("width", [None, 4.0])
@pytest.mark.parametrize("made", [MADE, None], ids=["labelled", "plain"])
def test_a_picture_of_some_size(made: dict | None, width: float | None) -> None:
    circuit = sample(made)
    shown = picture(circuit, width=width, title="Agreement")
    check_nothing_overlaps(shown)
    check_plan(circuit, shown.plan)
    heads = [column.heading for column in shown.plan.columns]
    assert heads == (["1: The", "2: keys", "4: cabinet"] if made else ["position 1", "position 2", "position 4"])
    assert [words.text for words in shown.headings] == heads


@pytest.mark.parametrize("parallel", [False, True])
def test_many_features_in_few_cells(parallel: bool) -> None:
    shape = Architecture(2, 2, parallel=parallel)
    nodes = [
        feature(site, layer, index, at)
        for site in ("attn", "resid")
        for layer in (0, 1)
        for index in range(40)
        for at in (0, 7)
    ]
    edges = [Edge(node, LOGITS) for node in nodes[::3]]
    circuit = Circuit(shape, edges, node_scores=dict.fromkeys(nodes, 1.0))
    for sizes in (None, 5.0):
        plan = layout(circuit, width=None if sizes is None else sizes * 72)
        check_plan(circuit, plan)
        assert plan.width <= (800 if sizes is None else sizes * 72 + 1e-6)


def test_a_width_without_room_for_the_positions_is_refused() -> None:
    circuit = Circuit(SHAPE, [Edge(feature("resid", 0, 1042, at), LOGITS) for at in range(40)])
    with pytest.raises(BadOption, match="room for 40 columns of positions, at least"):
        picture(circuit, width=3.3)


def test_components_and_features_stand_in_one_picture() -> None:
    names = ("input->a0.h1<v>", "a0.h1->m0", "m0->a1.h2<q>", "a1.h2->m2", "m2->logits")
    edges = [Edge.parse(name) for name in names]
    circuit = Circuit(SHAPE, (*sample().edges, *edges), provenance=MADE)
    shown = picture(circuit)
    check_nothing_overlaps(shown)
    check_plan(circuit, shown.plan)
    bands = {band.layer: band for band in shown.plan.bands}
    for node in circuit.nodes:
        if node.layer is not None:
            box = shown.plan.boxes[node]
            assert bands[node.layer].bottom < box.bottom < box.top < bands[node.layer].top


# --------------------------------------------------------------------------------------------------------- looks


def test_error_terms_are_dashed_and_nodes_filled_by_their_effect() -> None:
    circuit = sample()
    shown = picture(circuit)
    largest = max(map(abs, circuit.node_scores.values()))
    for node in circuit.features:
        look = shown.looks[node]
        assert look.dashes == (BOX_DASHES if node.is_error else None)
        score = circuit.node_scores.get(node, 0.0)
        share = 0.12 + 0.43 * (abs(score) / largest) ** 0.5
        assert look.fill == (paler(HELPS if score < 0 else HURTS, share) if score else "#FFFFFF"), node
    said = [entry.text for entry in shown.legend]
    assert {"feature", "err: what the dictionary misses", HELPS_TO, HURTS_TO} <= set(said)
    assert not any("node" in entry.text for entry in picture(sample(scored=False)).legend)


def test_groups_and_ports_leave_the_effects_of_nodes_out() -> None:
    circuit = sample()
    grouped = picture(circuit, groups={"plural": ["r0.f3@1", "r0.f3@2"]})
    fills = {grouped.looks[Node.parse(name)].fill for name in ("r0.f3@1", "r0.f3@2")}
    assert len(fills) == 1
    assert grouped.looks[Node.parse("r0.f17@4")].fill == "#FFFFFF"
    assert grouped.looks[Node.parse("m2.err@4")].dashes == BOX_DASHES
    plain = picture(circuit, colour="port")
    assert not any(entry.text.startswith("node") for entry in plain.legend)


def test_nodes_without_edges_are_drawn_the_strongest_of_many() -> None:
    some = Circuit(SHAPE, [], node_scores={head(0, 1): -1.0, feature("mlp", 0, 3): 2.0})
    assert set(picture(some).plan.boxes) == {*some.nodes, Node("input"), LOGITS}
    nodes = {feature("mlp", 0, index): float(index) for index in range(500)}
    many = Circuit(SHAPE, [], node_scores=nodes)
    assert set(strongest(many, n=10).node_scores) == {
        feature("mlp", 0, index) for index in range(500 - MOST_ALONE, 500)
    }
    assert f"{MOST_ALONE} of 500 nodes are drawn." in [entry.text for entry in picture(many).legend]


def test_two_feature_circuits_in_one_picture() -> None:
    a = sample()
    b = Circuit(SHAPE, [*a.edges[5:], Edge.parse("r1.f7@4->logits")])
    named = Circuit(SHAPE, b.edges, provenance={"labels": {"r1.f7": "other"}})
    shown = compared(a, named)
    assert shown.text(Node.parse("r1.f7@4")) == "f7 other"
    check_nothing_overlaps(shown)
    texts = [entry.text for entry in shown.legend]
    assert f"both ({a.n_edges - 5})" in texts
    assert "only b (1)" in texts


# --------------------------------------------------------------------------------------------------------- files


def test_an_svg_has_labels_as_text_and_names_as_ids() -> None:
    circuit = sample(MADE)
    root = ET.fromstring(figure.svg(circuit))
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"f3 plural noun", "f90", "err", "1: The", "attn", "MLP", "resid", "embed", "layer 1"} <= texts
    assert any(text.startswith("f8 </script>") for text in texts)
    ids = {element.get("id") for element in root.iter()}
    assert {str(node) for node in circuit.nodes} <= ids
    assert {str(edge) for edge in circuit.edges} <= ids


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_circuit_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    circuit = sample(MADE)
    turned = Circuit(SHAPE, circuit.edges[::-1], circuit.scores, MADE, dict(reversed(circuit.node_scores.items())))
    for name, each in (("a", circuit), ("b", turned)):
        figure.write(each, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_tikz_draws_the_same_picture() -> None:
    circuit = sample(MADE)
    text = tikz.dumps(circuit)
    assert text.isascii()
    shown = picture(circuit)
    errors = sum(node.is_error for node in circuit.nodes)
    assert text.count("dash pattern=on 1.6bp off 1.1bp") == errors + 1  # and the legend's
    labels = re.findall(r"font=\\fontsize\{6\.5bp\}.* at \([^)]*\) \{(.*)\};", text)
    assert sorted(labels) == sorted(tikz.escaped(shown.text(node)) for node in shown.plan.boxes if shown.text(node))
    assert all(f"{{{tikz.escaped(words.text)}}};" in text for words in shown.headings)


def test_a_page_holds_the_features() -> None:
    circuit = sample(MADE)
    page = html.dumps(circuit)
    assert page == html.dumps(sample(MADE))
    data = record(page)
    nodes = {node["name"]: node for node in data["nodes"]}
    assert set(nodes) == set(map(str, circuit.nodes))
    one = nodes["a1.f1042@4"]
    assert one.items() >= {
        "kind": "attn_feature", "layer": 1, "index": 1042, "position": 4, "site": "attention output",
        "called": "WWWW subject is plural", "score": circuit.node_scores[Node.parse("a1.f1042@4")],
    }.items()  # fmt: skip
    assert one["text"].startswith("f1042 WWWW")
    assert nodes["m2.err@4"]["text"] == "err"
    assert "text" not in nodes["logits"]
    assert [column[0] for column in data["columns"]] == ["1: The", "2: keys", "4: cabinet"]
    assert len(data["walls"]) == 2
    assert [name for name, _ in data["shelves"]] == [
        "embed",
        *["attn", "MLP", "resid"],
        *["attn", "resid"],
        "MLP",
        "resid",
    ]
    assert data["prompt"]["tokens"] == MADE["tokens"]
    assert HOSTILE not in page
    assert "<img" not in page
    assert nodes["r2.f8@4"]["called"].startswith("</script>")


def test_the_page_of_a_circuit_of_components_is_without_all_that() -> None:
    edge = Edge.parse("m0->logits")
    data = record(html.dumps(Circuit(SHAPE, [edge], {edge: 1.0}, {"tokens": ["a"]})))
    assert not {"shelves", "columns", "walls"} & set(data)
    assert set(data["nodes"][0]) == {"name", "kind", "layer", "x", "y", "w", "h"}
    assert data["prompt"] is None


def test_a_page_of_two_circuits_has_both_scores_of_a_node() -> None:
    a = sample()
    b = Circuit(SHAPE, a.edges[3:], node_scores={Node.parse("r0.f3@1"): 9.0, Node.parse("m1.f1"): 2.0})
    data = record(html.dumps(a, other=b))
    nodes = {node["name"]: node for node in data["nodes"]}
    assert nodes["r0.f3@1"]["scores"] == [a.node_scores[Node.parse("r0.f3@1")], 9.0]
    assert nodes["m1.f1"] | {"score": 2.0, "scores": [None, 2.0]} == nodes["m1.f1"]

"""What a picture shows: signs, groups, positions, and nothing on anything else, at any width."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import Architecture, Circuit, ComponentGraph, Edge
from graphs.errors import BadName, BadOption, UnknownNode
from graphs.export import figure
from graphs.export.looks import DASHES, GROUP_LOOKS, HELPS, HURTS, MARKS, PORT_COLOURS, UNKNOWN, Line, Look
from graphs.export.picture import Picture, merged, picture, strongest
from graphs.layout import layout

from .strategies import circuits

SHAPE = Architecture(2, 2)
EDGES = [Edge.parse(name) for name in ("input->a0.h1<q>", "input->a0.h1<v>", "a0.h1->m1", "m1->logits")]
Rectangle = tuple[float, float, float, float]
SHAPES = (Architecture(12, 12), Architecture(3, 32, 8), Architecture(40, 4, parallel=True), Architecture(2, 40))


@cache
def measured(text: str, size: float) -> float:
    """The true width of a text in the font of the figures, as matplotlib measures it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size, prop=FontProperties(family="DejaVu Sans")).get_extents().width)


def apart(a: Rectangle, b: Rectangle) -> bool:
    return a[2] <= b[0] + 1e-6 or b[2] <= a[0] + 1e-6 or a[3] <= b[1] + 1e-6 or b[3] <= a[1] + 1e-6


def check_nothing_overlaps(shown: Picture) -> None:
    plan, sizes = shown.plan, shown.sizes
    boxes = [(box.x - box.width / 2, box.bottom, box.x + box.width / 2, box.top) for box in plan.boxes.values()]
    labels = []
    for label in shown.labels:
        half = measured(label.text, sizes.small) / 2
        labels.append((label.x - half, label.y - sizes.small / 2, label.x + half, label.y + sizes.small / 2))
    assert all(apart(a, b) for a, b in itertools.combinations([*boxes, *labels], 2))
    assert all(left >= -1e-6 and right <= plan.width + 1e-6 for left, _, right, _ in [*boxes, *labels])
    for box in plan.boxes.values():
        assert measured(sizes.label(box.node), sizes.font) <= box.width - 1.5, box
    for _, row in itertools.groupby(shown.legend, key=lambda entry: entry.row):
        end = 0.0
        for entry in row:
            assert entry.x >= end
            start = entry.x + (0 if entry.sample is None else shown.sample_width + 4)
            end = start + measured(entry.text, sizes.small)
            assert end <= plan.width + 1e-6


@st.composite
def large_circuits(draw) -> Circuit:
    graph = ComponentGraph(draw(st.sampled_from(SHAPES)))
    n, seed = draw(st.sampled_from((1, 10, 50, 300))), draw(st.integers(0, 10**6))
    edges = [graph.edge_at((seed + number * 7919) % graph.n_edges) for number in range(n)]
    at = draw(st.sampled_from(((None,), (3,), (1, 2, 11))))
    edges = [Edge(edge.source, edge.target, edge.port, place) for edge in edges for place in at]
    return Circuit(graph.architecture, edges, {edge: (hash_of(edge) - 50) / 10 for edge in edges[::2]})


def hash_of(edge: Edge) -> int:
    return sum(map(ord, str(edge))) % 101


@settings(max_examples=14, deadline=None)
@given(circuit=large_circuits(), width=st.sampled_from((None, 3.3, 6.9)))
def test_nothing_lies_on_anything_else(circuit: Circuit, width: float | None) -> None:
    shown = picture(circuit, width=width, title="A title of some length, " * 3)
    check_nothing_overlaps(shown)
    if width is not None:
        assert shown.left + shown.plan.width + shown.right == pytest.approx(72 * width)


@settings(max_examples=30, deadline=None)
@given(circuit=circuits(provenance={}), width=st.sampled_from((None, 1.5, 3.3)))
def test_small_circuits_too(circuit: Circuit, width: float | None) -> None:
    names = ["x" * 200, "é中 $x^2$"]
    groups = dict(zip(names, ([node] for node in circuit.nodes), strict=False))
    check_nothing_overlaps(picture(circuit, width=width, groups=groups))


@pytest.mark.parametrize("n", [10, 50])
def test_in_a_column_no_text_is_smaller_than_five_points(n: int) -> None:
    edges = ComponentGraph(SHAPES[0]).edges[:: 32_491 // n][:n]
    root = ET.fromstring(figure.svg(Circuit(SHAPES[0], edges), width=3.3, title="T", groups={"g": ["a3.h3"]}))
    sizes = [
        float(size)
        for element in root.iter("{http://www.w3.org/2000/svg}text")
        for size in re.findall(r"([\d.]+)px", element.get("style", ""))
    ]
    assert len(sizes) >= n / 2
    assert min(sizes) >= 5.0
    assert float(root.get("width", "").removesuffix("pt")) == pytest.approx(3.3 * 72)
    assert float(root.get("height", "").removesuffix("pt")) < 9 * 72  # fits on a page


def test_colours_tell_signs_and_dashes_what_is_not_scored() -> None:
    circuit = Circuit(SHAPE, EDGES, dict(zip(EDGES, (-2.0, 1.0, 0.0), strict=False)))
    shown = picture(circuit)
    lines = [shown.lines[edge] for edge in circuit.edges]
    assert [line.colour for line in lines] == [HELPS, HURTS, UNKNOWN, UNKNOWN]
    assert [line.dashes for line in lines] == [None, None, None, DASHES]
    assert lines[0].width > lines[1].width > lines[3].width
    assert {entry.text for entry in shown.legend} >= {
        "helps", "hurts", "no effect", "not scored", "read as query", "read as value", "effect ±2",
    }  # fmt: skip
    assert {(str(node), port) for node, port in shown.ports} == {("a0.h1", "q"), ("a0.h1", "v")}


def test_ports_may_be_the_colours() -> None:
    shown = picture(Circuit(SHAPE, EDGES, {EDGES[0]: 1.0}), colour="port")
    assert [shown.lines[edge].colour for edge in EDGES] == [PORT_COLOURS[edge.port] for edge in EDGES]
    assert not shown.ports
    with pytest.raises(BadOption, match="'effect' or 'port'; got 'sign'"):
        picture(Circuit(SHAPE, EDGES), colour="sign")  # pyright: ignore[reportArgumentType]


def test_every_mark_and_arrow_is_drawn_at_its_port() -> None:
    text = figure.svg(Circuit(SHAPE, EDGES, {EDGES[0]: 1.0}))
    assert text.count(MARKS["q"].lower()) == text.count(MARKS["v"].lower()) == 2  # on the box and in the legend
    assert MARKS["k"].lower() not in text
    assert text.count("stroke-dasharray") == 3 + 1  # three unscored edges and the legend's sample


def test_groups_fill_boxes_and_stand_in_the_legend() -> None:
    circuit = Circuit(SHAPE, EDGES)
    shown = picture(circuit, groups={"movers": ["a0.h1", "a1.h0"], "rest": [EDGES[-1].source]})
    looks = {str(node): look for node, look in shown.looks.items()}
    assert looks["a0.h1"][1:3] == GROUP_LOOKS[0]
    assert looks["m1"][1:3] == GROUP_LOOKS[1]
    assert looks["logits"] == picture(circuit).looks[EDGES[-1].target]
    entries = {entry.text: entry.sample for entry in shown.legend if isinstance(entry.sample, Look)}
    sample = entries["movers (1 of 2 here)"]
    assert sample is not None
    assert sample[1:3] == GROUP_LOOKS[0]
    assert "rest" in entries


@pytest.mark.parametrize(
    ("groups", "error", "said"),
    [
        ({"g": ["a9.h9"]}, UnknownNode, "no node a9.h9"),
        ({"g": ["head nine"]}, BadName, "expected a node"),
        ({"g": ["m0"], "h": ["m0"]}, BadOption, "m0 in 'g' and 'h'"),
        ({"g": "m0"}, BadOption, "expected groups as"),
        ({" ": ["m0"]}, BadOption, "expected groups as"),
        ({str(number): ["m0"] for number in range(9)}, BadOption, "at most 8 groups"),
    ],
)
def test_bad_groups(groups: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        picture(Circuit(SHAPE, EDGES), groups=groups)


@pytest.mark.parametrize("width", [0, -1, 1.0, float("nan"), float("inf"), True, "3.3"])
def test_bad_widths(width: object) -> None:
    with pytest.raises(BadOption, match=r"width in inches, from 1\.5 to 50"):
        picture(Circuit(SHAPE, EDGES), width=width)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadOption, match=r"at least \d+ points; got 10"):
        layout(Circuit(SHAPE, EDGES), width=10.0)


def test_several_positions_are_one_line() -> None:
    edges = [Edge.parse(f"m0->logits@{place}") for place in (3, 7, 12)] + [Edge.parse("input->m0@3")]
    circuit = Circuit(SHAPE, edges, dict(zip(edges, (-1.0, 2.0, 0.5, 0.1), strict=True)))
    once, names = merged(circuit)
    assert sorted(names.values()) == ["input->m0@3", "m0->logits@3,7,12"]
    assert once.scores[edges[0].everywhere()] == 2.0
    shown = picture(circuit)
    assert len(shown.plan.wires) == 2
    assert sorted(label.text for label in shown.labels) == ["@3", "×3"]
    assert "m0-&gt;logits@3,7,12" in figure.svg(circuit)


def test_the_strongest_come_first_and_what_is_not_scored_last() -> None:
    circuit = Circuit(SHAPE, EDGES, {EDGES[1]: -0.5, EDGES[3]: 0.1})
    assert strongest(circuit, n=2).edges == (EDGES[1], EDGES[3])
    assert strongest(circuit, n=3).edges == (EDGES[0], EDGES[1], EDGES[3])
    assert strongest(circuit, n=4) is circuit


def test_lines_of_the_legend_are_as_wide_as_they_say() -> None:
    circuit = Circuit(SHAPE, EDGES, {EDGES[0]: -10.0, EDGES[1]: 3.0})
    shown = picture(circuit)
    samples = {entry.text: entry.sample for entry in shown.legend if isinstance(entry.sample, Line)}
    assert samples["effect ±10"].width == shown.lines[EDGES[0]].width
    assert samples["effect ±3"].width == shown.lines[EDGES[1]].width

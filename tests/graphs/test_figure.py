"""Figures: the same bytes every time, valid files, selectable text, no box on another."""

from __future__ import annotations

import itertools
import random
import re
import xml.etree.ElementTree as ElementTree
from html import escape
from pathlib import Path

import pytest

from graphs import Architecture, Circuit, ComponentGraph
from graphs.export import figure
from graphs.layout import layout

SHAPES = {
    "small": Architecture(2, 4),
    "grouped": Architecture(3, 8, 2),
    "parallel": Architecture(3, 4, parallel=True),
    "attention-only": Architecture(4, 8, has_mlp=False),
    "gpt2": Architecture(12, 12),
}


def drawn(shape: Architecture, *, n: int, provenance: dict[str, object] | None = None) -> Circuit:
    rng = random.Random(0)
    edges = ComponentGraph(shape).edges
    chosen = rng.sample(edges, min(n, len(edges)))
    return Circuit(shape, chosen, {edge: rng.gauss(0, 1) for edge in chosen}, provenance)


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png"])
def test_the_same_circuit_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    circuit = drawn(SHAPES["grouped"], n=40)
    for name in ("a", "b"):
        figure.write(circuit, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("name", SHAPES)
def test_an_svg_is_valid_and_its_text_is_text(name: str) -> None:
    circuit = drawn(SHAPES[name], n=25)
    root = ElementTree.fromstring(figure.svg(circuit))
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {str(node) for node in circuit.nodes} <= texts


@pytest.mark.parametrize("n", [10, 300])
@pytest.mark.parametrize("name", SHAPES)
def test_no_box_lies_on_another(name: str, n: int) -> None:
    boxes = list(layout(drawn(SHAPES[name], n=n)).boxes.values())
    for a, b in itertools.combinations(boxes, 2):
        apart_x = abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-9
        apart_y = abs(a.y - b.y) >= (a.height + b.height) / 2 - 1e-9
        assert apart_x or apart_y, (a, b)


def test_a_hostile_title_is_shown_not_read() -> None:
    text = figure.svg(drawn(SHAPES["small"], n=5), title="</svg><script>alert(1)</script> $x^2$ & é")
    ElementTree.fromstring(text)
    assert "<script" not in text


def test_a_notebook_shows_figure_and_summary_escaped() -> None:
    html = drawn(SHAPES["small"], n=5, provenance={"model": "<script>x</script>"})._repr_html_()
    assert "<svg" in html
    assert "<script" not in html


def large(shape: Architecture, *, n: int) -> Circuit:
    graph, rng = ComponentGraph(shape), random.Random(0)
    edges = [graph.edge_at(rng.randrange(graph.n_edges)) for _ in range(n)]
    hostile: dict[str, str] = dict.fromkeys(
        ("model", "task", "method"), "</td><script>alert(1)</script>\u202e\x00" * 5000
    )
    return Circuit(shape, edges, {edge: rng.gauss(0, 1) for edge in edges}, hostile)


@pytest.mark.parametrize("shape", [SHAPES["gpt2"], Architecture(36, 32, 8)])
def test_what_a_notebook_stores_is_small_and_says_what_it_left_out(shape: Architecture) -> None:
    circuit = large(shape, n=2_000)
    html = circuit._repr_html_()
    assert len(html.encode()) < 400_000
    assert "<script" not in html
    drawn = set(re.findall(r'<g id="([^"]*-&gt;[^"]*)"', html))
    assert f"The strongest {len(drawn)} of {circuit.n_edges:,} edges are drawn." in html
    assert 50 <= len(drawn) <= 200
    strongest = max(circuit.scores, key=lambda edge: abs(circuit.scores[edge]))
    assert f"{escape(str(strongest))} {circuit.scores[strongest]:+.3g}" in html
    ElementTree.fromstring(re.sub(r"xlink:", "", html))


def test_a_small_circuit_is_drawn_whole_in_a_notebook() -> None:
    circuit = drawn(SHAPES["small"], n=30)
    html = circuit._repr_html_()
    assert set(re.findall(r'<g id="([^"]*-&gt;[^"]*)"', html)) == {escape(str(edge)) for edge in circuit.edges}
    assert "strongest 30" not in html


def test_a_circuit_opens_as_a_page() -> None:
    circuit = drawn(SHAPES["small"], n=5)
    shown = circuit.view()
    assert "a0" in str(getattr(shown, "_repr_html_", lambda: shown)())


def test_too_many_edges_are_cut_and_it_is_said() -> None:
    circuit = drawn(SHAPES["gpt2"], n=figure.MOST_EDGES + 200)
    text = "".join(ElementTree.fromstring(figure.svg(circuit)).itertext())
    assert f"{circuit.n_edges:,}" in text


def test_the_empty_circuit_draws() -> None:
    assert "input" in figure.svg(Circuit(SHAPES["small"], []))

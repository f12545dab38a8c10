"""Drawings of two circuits and of frequencies: every edge once, with the look of what it is in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from typer.testing import CliRunner

from graphs import Architecture, Circuit, ComponentGraph, Edge
from graphs.compare import compare
from graphs.consensus import consensus
from graphs.errors import BadCircuit, BadOption, UnknownEdge, UnknownFormat
from graphs.export import comparison
from graphs.export.comparison import agreed, compared, draw_comparison, draw_consensus

from .strategies import circuits

SHAPE = Architecture(2, 2)
EDGES = [Edge.parse(name) for name in ("input->a0.h1<q>", "input->a0.h1<v>", "a0.h1->m1", "m1->logits")]


@settings(max_examples=30, deadline=None)
@given(both=circuits(provenance={}, positions=False, most=12))
def test_each_edge_looks_like_what_it_is_in(both: Circuit) -> None:
    a, b = (Circuit(both.architecture, both.edges[part]) for part in (slice(0, 8), slice(4, None)))
    shown, groups = compared(a, b, names=("one", "two")), compare(a, b)
    for edges, line in (
        (groups.both, comparison._BOTH),
        (groups.only_a, comparison._ONLY_A),
        (groups.only_b, comparison._ONLY_B),
    ):
        assert {edge for edge, used in shown.lines.items() if used == line} == set(edges)
    texts = {entry.text for entry in shown.legend}
    counts = {f"both ({len(groups.both)})", f"only one ({len(groups.only_a)})", f"only two ({len(groups.only_b)})"}
    assert texts >= counts


def test_colour_is_never_alone() -> None:
    lines = (comparison._BOTH, comparison._ONLY_A, comparison._ONLY_B)
    assert len({line.colour for line in lines}) == len({line.dashes for line in lines}) == 3


def test_positions_are_not_compared_and_it_is_said() -> None:
    a, b = (Circuit(SHAPE, [Edge.parse(f"m0->logits@{place}")]) for place in (1, 2))
    shown = compared(a, b)
    assert list(shown.lines.values()) == [comparison._BOTH]
    assert "Positions are not compared." in {entry.text for entry in shown.legend}


def test_of_large_circuits_the_strongest_in_either_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MOST_EDGES", 2)
    a = Circuit(SHAPE, EDGES[:2], {EDGES[0]: 0.1, EDGES[1]: -3.0})
    b = Circuit(SHAPE, EDGES[1:], {EDGES[1]: 0.0, EDGES[3]: 2.0})
    shown = compared(a, b)
    assert set(shown.lines) == {EDGES[1], EDGES[3]}
    assert "The strongest 2 of 4 edges are drawn." in {entry.text for entry in shown.legend}
    assert set(agreed({EDGES[0]: 0.2, EDGES[1]: 0.9, EDGES[2]: 0.8}, architecture=SHAPE).lines) == {EDGES[1], EDGES[2]}


def test_frequent_edges_are_wider_and_more_opaque() -> None:
    shares = dict(zip(EDGES, (1.0, 0.5, 0.05, 0.0), strict=True))
    shown = agreed(shares, architecture=SHAPE, least=0.1)
    assert set(shown.lines) == set(EDGES[:2])
    often, rarer = (shown.lines[edge] for edge in EDGES[:2])
    assert often.opacity > rarer.opacity
    assert often.width > rarer.width
    assert "Left out, since in less than 10%: 1." in {entry.text for entry in shown.legend}


def test_a_consensus_knows_its_architecture() -> None:
    found = consensus([Circuit(SHAPE, EDGES), Circuit(SHAPE, EDGES[:2])])
    shown = agreed(found)
    assert shown == agreed(found.frequencies, architecture=SHAPE)
    assert [shown.lines[edge].share for edge in EDGES] == [1.0, 1.0, 0.5, 0.5]


def test_bad_input(tmp_path: Path) -> None:
    circuit, path = Circuit(SHAPE, EDGES), tmp_path / "x.svg"
    with pytest.raises(BadCircuit, match="one shape"):
        draw_comparison(circuit, Circuit(Architecture(3, 2), EDGES), path)
    with pytest.raises(BadOption, match="names as two texts"):
        draw_comparison(circuit, circuit, path, names=("a", ""))
    with pytest.raises(UnknownFormat):
        draw_comparison(circuit, circuit, tmp_path / "x.gif")
    for share in (1.5, -0.1, float("nan")):
        with pytest.raises(BadCircuit, match="from 0 to 1; got"):
            draw_consensus({EDGES[0]: share}, path, architecture=SHAPE)
    with pytest.raises(BadOption, match="expected architecture="):
        draw_consensus({EDGES[0]: 0.5}, path)
    with pytest.raises(BadOption, match="least from 0 to 1"):
        draw_consensus({EDGES[0]: 0.5}, path, architecture=SHAPE, least=2.0)
    with pytest.raises(UnknownEdge):
        draw_consensus({Edge.parse("m7->logits"): 0.5}, path, architecture=SHAPE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_the_same_input_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    graph = ComponentGraph(SHAPE)
    a, b = Circuit(SHAPE, graph.edges[::3]), Circuit(SHAPE, graph.edges[::2])
    for name in "12":
        draw_comparison(a, b, tmp_path / f"{name}.{suffix}", groups={"g": ["m0"]}, title="t & <u>", width=3.3)
        frequencies = dict.fromkeys(a.edges if name == "1" else reversed(a.edges), 0.5)
        draw_consensus(frequencies, tmp_path / f"often{name}.{suffix}", architecture=SHAPE)
    for start in ("", "often"):
        assert (tmp_path / f"{start}1.{suffix}").read_bytes() == (tmp_path / f"{start}2.{suffix}").read_bytes()


def test_the_command_line_draws_it(tmp_path: Path) -> None:
    from experiments.cli import app

    a, b, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "both.svg"
    Circuit(SHAPE, EDGES).save(a)
    Circuit(SHAPE, EDGES[1:]).save(b)
    result = CliRunner().invoke(app, ["compare", str(a), str(b), "--out", str(out), "--width", "3.3"])
    assert result.exit_code == 0, result.output
    assert f"Figure: {out}" in result.output
    text = out.read_text(encoding="utf-8")
    assert "only a (1)" in text
    assert re.search(r'width="237\.6pt"', text)
    assert CliRunner().invoke(app, ["compare", str(a), str(b), "--out", str(tmp_path / "x.gif")]).exit_code == 1

"""Graphviz, where it is: the same nodes and edges as the circuit, and clear words where it is not."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from graphs import Architecture, Circuit, Edge
from graphs.errors import BadOption, UnknownFormat
from graphs.export.graphviz import draw

CIRCUIT = Circuit(
    Architecture(2, 2),
    edges := [Edge.parse(name) for name in ("input->a0.h1<v>", "a0.h1->m1", "m1->logits")],
    dict(zip(edges, (-1.0, 0.5, -2.0), strict=True)),
)
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


@needs_dot
def test_it_draws_every_node_and_edge(tmp_path):
    draw(CIRCUIT, tmp_path / "x.svg")
    svg = (tmp_path / "x.svg").read_text()
    ET.fromstring(svg)
    titles = set(re.findall(r"<title>(.*?)</title>", svg))
    assert {str(node) for node in CIRCUIT.nodes} <= titles
    assert len([title for title in titles if "&#45;&gt;" in title]) == CIRCUIT.n_edges


@needs_dot
def test_other_programs_and_forms(tmp_path):
    draw(CIRCUIT, tmp_path / "x.png", program="neato")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadOption, match="Install Graphviz"):
        draw(CIRCUIT, tmp_path / "x.svg")
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(tmp_path):
    with pytest.raises(BadOption, match="out of dot, neato"):
        draw(CIRCUIT, tmp_path / "x.svg", program="rm")
    with pytest.raises(UnknownFormat):
        draw(CIRCUIT, tmp_path / "x.txt")


def test_a_program_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "dot").write_text("#!/bin/sh\necho no luck >&2\nexit 3\n")
    (folder / "dot").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (tmp_path / "x.svg").write_text("before")
    with pytest.raises(BadOption, match="no luck"):
        draw(CIRCUIT, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text() == "before"

"""`wiretrace paths` lists the best paths of a run's circuit, or of a circuit file."""

from __future__ import annotations

import pytest

from graphs import Architecture, Circuit, Edge, load, paths

NAMES = {"input->m0": -1.0, "m0->logits": -0.5, "input->a0.h0<q>": 2.0, "a0.h0->logits": 0.3, "m0->m1": 3.0}


@pytest.fixture
def circuit_file(tmp_path):
    scores = {Edge.parse(name): score for name, score in NAMES.items()}
    path = tmp_path / "mine.json"
    Circuit(Architecture(2, 2), scores, scores).save(path)
    return path


def test_by_hand(circuit_file, wiretrace):
    result = wiretrace("paths", circuit_file)
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "input -> m0 -> logits        0.5",
            "input -> a0.h0<q> -> logits  0.3",
        ],
    ), result.stderr
    swapped = wiretrace("paths", circuit_file, "--k", 1, "--by", "product")
    assert swapped.stdout == "input -> a0.h0<q> -> logits  0.6\n"


def test_the_paths_of_a_run(finished_run, wiretrace):
    circuit = load(finished_run / "circuit.json")
    for by in ("bottleneck", "product"):
        result = wiretrace("paths", finished_run, "--k", 7, "--by", by)
        assert result.exit_code == 0, result.stderr
        expected = paths(circuit, k=7, by=by)
        assert expected
        assert [line.split() for line in result.stdout.splitlines()] == [str(path).split() for path in expected]
    assert len(wiretrace("paths", finished_run).stdout.splitlines()) == len(paths(circuit))


def test_a_circuit_without_scores_is_ranked_by_length(circuit_file, wiretrace, tmp_path):
    circuit = load(circuit_file)
    Circuit(circuit.architecture, circuit.edges).save(tmp_path / "bare.json")
    lines = wiretrace("paths", tmp_path / "bare.json").stdout.splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("Note: the circuit has no scores")


def test_no_path_is_said(circuit_file, wiretrace, tmp_path):
    circuit = load(circuit_file)
    Circuit(circuit.architecture, circuit.edges[:1]).save(tmp_path / "dead.json")
    assert wiretrace("paths", tmp_path / "dead.json").stdout == "No path leads from the input to the logits.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--by", "sum"), "by bottleneck or product; got 'sum'"),
        (("--k", 0), "whole number of paths from 1"),
    ],
)
def test_what_cannot_be_ranked_is_said_in_a_sentence(circuit_file, wiretrace, words, said):
    result = wiretrace("paths", circuit_file, *words)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert said in result.stderr


def test_the_page_of_a_run(finished_run, discover, wiretrace, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    path = tmp_path / "page.html"
    shown = wiretrace("view", finished_run, "--out", path)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.strip() == str(path)
    assert opened == [path.resolve().as_uri()]
    assert path.read_text() == (finished_run / "circuit.html").read_text()  # the same example
    assert discover(tmp_path / "atp", "--method", "atp", "--n", 20).exit_code == 0
    both = wiretrace("view", finished_run, "--other", tmp_path / "atp", "--out", path, "--plain", "--no-open")
    assert both.exit_code == 0, both.stderr
    assert len(opened) == 1
    assert path.read_text() != (finished_run / "circuit.html").read_text()
    assert wiretrace("view", tmp_path, "--no-open").exit_code == 1


def test_figures_for_a_column(finished_run, wiretrace, tmp_path):
    words = ("--width", 3.3, "--group", "early=m0,a0.h0", "--title", "A title", "--out", tmp_path / "column.svg")
    shown = wiretrace("export", finished_run, *words)
    assert shown.exit_code == 0, shown.stderr
    svg = (tmp_path / "column.svg").read_text()
    assert "A title" in svg
    assert "early" in svg
    assert (
        "expected --group as NAME=NODE,NODE" in wiretrace("export", finished_run, "--to", "svg", "--group", "x").stderr
    )
    assert "has no options" in wiretrace("export", finished_run, "--to", "csv", "--width", 3).stderr


def test_a_layout_by_graphviz(finished_run, wiretrace, tmp_path, monkeypatch):
    import shutil

    if shutil.which("dot"):
        shown = wiretrace("export", finished_run, "--out", tmp_path / "dot.svg", "--graphviz")
        assert shown.exit_code == 0, shown.stderr
        assert "a0.h0" in (tmp_path / "dot.svg").read_text()
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = wiretrace("export", finished_run, "--out", tmp_path / "x.svg", "--graphviz")
    assert refused.exit_code == 1
    assert "Install Graphviz" in refused.stderr

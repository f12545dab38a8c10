"""The measurements at GPT-2 small's shape, on a tiny one: counts are the search's own, and extrapolation adds up."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from circuits import acdc
from experiments.benchmarks import gpt2_shape, rows
from graphs import Architecture, ComponentGraph
from patching import LensModel, MaskedRun


@pytest.fixture(scope="module")
def model() -> LensModel:
    return rows.random_gpt2(layers=2, heads=4, width=32, vocabulary=50)


def test_a_search_that_finishes_is_not_extrapolated(model: LensModel) -> None:
    task = rows.random_task(model)
    decisions: list[acdc.Decision] = []
    circuit = acdc.search(MaskedRun(model, task), tau=1e-4, watch=decisions.append)
    pace = gpt2_shape.pace(model, task, tau=1e-4, budget=1e9)
    assert pace.finished
    assert (pace.edges, pace.decided, pace.kept) == (110, 110, circuit.n_edges)
    assert pace.evaluated == sum(decision.delta is not None for decision in decisions) > pace.kept
    assert pace.extrapolated_seconds == pytest.approx(pace.seconds)
    assert "not a measurement" not in pace.extrapolation
    assert pace.forwards_per_edge == pytest.approx(pace.cpu / pace.evaluated / pace.forward_cpu)
    assert pace.layers_reached == 0


def test_the_budget_ends_a_search(model: LensModel) -> None:
    """A clock of one second per look ends the search at the tenth decision, all of them about the logits or m1."""
    ticks = itertools.count()
    pace = gpt2_shape.pace(model, rows.random_task(model), tau=0.01, budget=10.0, clock=lambda: float(next(ticks)))
    assert (pace.decided, pace.evaluated, pace.finished) == (10, 10, False)
    assert pace.layers_reached is None
    assert pace.seconds == 11.0
    # 10 edges of depth 1; the last of the 11 into the logits, and those into each layer's ports, are left
    left = 1 + 2 * (10 + 3 * 4 * 6) + 3 * (5 + 3 * 4 * 1)
    assert pace.extrapolated_seconds == pytest.approx(11.0 + 1.1 * left)
    assert "an extrapolation, not a measurement" in pace.extrapolation


def test_extrapolation_weighs_edges_by_the_layers_they_reach() -> None:
    graph = ComponentGraph(Architecture(1, 1))
    # logits: 3 edges of depth 1; m0: 2 and q, k, v: 3 edges of depth 2. Four are decided, one of m0's among them.
    edges = list(reversed(graph.edges))
    assert [str(edge) for edge in edges[:4]] == ["m0->logits", "a0.h0->logits", "input->logits", "a0.h0->m0"]
    assert gpt2_shape.extrapolate(graph, edges[:4], decided=4, seconds=5.0) == pytest.approx(5.0 + 2 * 4)
    assert gpt2_shape.extrapolate(graph, edges[:3], decided=4, seconds=3.0) == pytest.approx(3.0 + 2 * 4)
    assert gpt2_shape.extrapolate(graph, [], decided=0, seconds=1.0) is None


def test_the_shape_is_gpt2_smalls() -> None:
    assert ComponentGraph(Architecture(12, 12)).n_edges == 32491


def test_main_writes_figures(
    model: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "gpt2_small", lambda: model)
    out = tmp_path / "figures.json"
    gpt2_shape.main(["--budget-seconds", "60", "--threads", "1", "--repeats", "1", "--out", str(out)])
    document = json.loads(out.read_text())
    assert document["acdc"]["decided"] == 110
    assert len(document["rows"]) == 4
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 for row in document["rows"])
    assert "100.0% of the edges" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpt2_shape.main(["--budget-seconds", "0"])
    assert "--budget-seconds above 0" in capsys.readouterr().err

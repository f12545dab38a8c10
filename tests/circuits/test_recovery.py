"""Recovery of a known circuit: counts by hand, Mann and Whitney by brute force, stairs by integration."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import acdc
from circuits.recovery import auroc, pareto, pessimistic_auc, recover, roc
from circuits.select import edges_above, top_edges
from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.nodes import Edge
from patching import atp, toy
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.scores import Scores

SHAPE = Architecture(n_layers=2, n_heads=2, n_kv_heads=1)
GRAPH = ComponentGraph(SHAPE)
TRUE = Circuit(SHAPE, map(Edge.parse, ("input->a0.h0<q>", "a0.h0->a1.kv0<k>", "a1.h1->logits", "input->logits")))


def circuit(*names: str) -> Circuit:
    return Circuit(SHAPE, map(Edge.parse, names))


def test_counts_by_hand() -> None:
    """Two of four edges, one more; nodes input, a0.h0, a1.h1 against input, m0, a1.h1."""
    found = recover(circuit("input->m0", "a1.h1->logits", "input->logits"), TRUE)
    edges, nodes = found.edges, found.nodes
    assert (edges.found_and_true, edges.found_only, edges.true_only, edges.neither) == (2, 1, 2, GRAPH.n_edges - 5)
    assert (edges.precision, edges.recall, edges.f1) == pytest.approx((2 / 3, 1 / 2, 4 / 7))
    assert edges.false_positive_rate == pytest.approx(1 / (GRAPH.n_edges - 4))
    assert (nodes.found_and_true, nodes.found_only, nodes.true_only, nodes.neither) == (2, 1, 1, 3)
    assert "edges: 2 of 4 found, 1 more; precision 66.7%, recall 50.0%" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_rates_that_would_divide_by_zero_are_undefined() -> None:
    assert recover(circuit(), TRUE).edges.precision is None
    assert recover(TRUE, circuit()).edges.recall is None
    assert recover(Circuit(SHAPE, GRAPH.edges), Circuit(SHAPE, GRAPH.edges)).edges.false_positive_rate is None
    assert recover(TRUE, TRUE).edges.f1 == 1.0


def test_positions_do_not_count() -> None:
    assert recover(circuit("a1.h1->logits@3", "a1.h1->logits@4"), TRUE).edges.found_and_true == 1


def mann_whitney(values: torch.Tensor, positive: torch.Tensor) -> float:
    """Every pair of a positive and another."""
    pairs = [(float(a), float(b)) for a in values[positive] for b in values[~positive]]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


RANKED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=20)


@settings(max_examples=60)
@given(RANKED)
def test_auroc_is_mann_and_whitney(rows: list[tuple[int, bool]]) -> None:
    values = torch.tensor([value for value, _ in rows], dtype=torch.float64)
    positive = torch.tensor([flag for _, flag in rows])
    if bool(positive.all()) or not bool(positive.any()):
        with pytest.raises(InvalidOption, match=r"some positive units and some others"):
            auroc(values, positive)
        return
    assert auroc(values, positive) == pytest.approx(mann_whitney(values, positive))
    assert auroc(values, positive) + auroc(-values, positive) == pytest.approx(1.0)


def test_auroc_is_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 10, (200,), generator=generator).double()
    positive = torch.rand(200, generator=generator) < 0.2
    assert auroc(values, positive) == pytest.approx(sklearn.roc_auc_score(positive.numpy(), values.numpy()))


def test_auroc_refuses_what_has_no_order() -> None:
    flags = torch.tensor([True, False, False])
    with pytest.raises(InvalidOption, match=r"1 of 3 are not numbers"):
        auroc(torch.tensor([float("nan"), 0.0, 1.0]), flags)
    with pytest.raises(InvalidOption, match=r"got \(2,\) values and \(3,\) flags"):
        auroc(torch.tensor([0.0, 1.0]), flags)
    assert auroc(torch.tensor([torch.inf, -torch.inf, 0.0]), flags) == 1.0


def test_one_circuit_is_a_curve_of_one_point() -> None:
    assert roc(TRUE, TRUE) == roc([TRUE], TRUE)
    assert roc(TRUE, TRUE).pessimistic_auc == 1.0


def rounded(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return sorted({(round(x, 12), round(y, 12)) for x, y in points})


@pytest.mark.parametrize("signed", [False, True])
def test_points_of_scores_are_circuits_above_each_threshold(signed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = Scores(SHAPE, "edge", torch.randint(-4, 5, (GRAPH.n_edges,), generator=generator).double())
    keys = -scores.values if signed else scores.importance
    thresholds = sorted(set(keys.tolist()), reverse=True)
    for level in ("edge", "node"):
        expected = [(0.0, 0.0)]
        for threshold in thresholds:
            above = edges_above(scores, threshold=threshold, signed=signed, prune=False)
            found = recover(above, TRUE)
            overlap = found.edges if level == "edge" else found.nodes
            expected.append((overlap.false_positive_rate, overlap.recall))
        found = roc(scores, TRUE, level=level, signed=signed)
        assert rounded(found.points) == rounded(expected)
    positive = torch.tensor([edge in set(TRUE.edges) for edge in GRAPH.edges])
    assert roc(scores, TRUE, signed=signed).auc == pytest.approx(mann_whitney(keys, positive))


def test_scores_of_nodes() -> None:
    """input, a0.h0 and a1.h1 are true; a0.h1 scores above the last of them: 11 of 12 pairs are in order."""
    values = torch.tensor([9.0, -8.0, 5.0, 0.0, 0.0, 4.0, 0.0], dtype=torch.float64)
    found = roc(Scores(SHAPE, "node", values), TRUE, level="node")
    assert found.auc == pytest.approx(11 / 12)
    assert (found.positives, found.negatives) == (3, 4)


def test_the_assertions_of_the_acdc_code() -> None:
    cases = [
        ([0, 1], [0, 1], 0.0),  # no step before 1: no area
        ([0, 0.5, 1], [0, 0.5, 1], 0.25),  # height 1/2 from 1/2 on
        ([0, 0.25, 1], [0, 0.25, 1], 0.1875),  # 1/4 from 1/4 on
        ([0, 0.25, 0.5, 1], [0, 0.25, 0.5, 1], 0.3125),  # 1/4 over 1/4, then 1/2 over 1/2
        ([0, 0.25, 0.75, 1], [0, 0.25, 0.5, 1], 0.25),  # 1/4 over 1/2, then 1/2 over 1/4
    ]
    for xs, ys, area in cases:
        assert pessimistic_auc(zip(xs, ys, strict=True)) == pytest.approx(area)


RATES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=8)


@settings(max_examples=60)
@given(RATES)
def test_stairs_are_the_best_point_so_far_integrated(eighths: list[tuple[int, int]]) -> None:
    points = [(x / 8, y / 8) for x, y in eighths]
    best = [max([y for px, y in points if px <= step / 8], default=0.0) for step in range(8)]
    assert pessimistic_auc(points) == pytest.approx(sum(best) / 8)
    front = pareto(points)
    assert (front[0], front[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert all(left[0] <= right[0] and left[1] <= right[1] for left, right in pairwise(front))
    for x, y in points:
        assert any(fx <= x and fy >= y for fx, fy in front)


def test_a_sweep_of_circuits() -> None:
    """Nested circuits of scores give the same pessimistic area as the scores; a bad circuit changes nothing."""
    generator = torch.Generator().manual_seed(2)
    scores = Scores(SHAPE, "edge", torch.randint(-9, 10, (GRAPH.n_edges,), generator=generator).double())
    sweep = [edges_above(scores, threshold=threshold, prune=False) for threshold in range(10)]
    found, expected = roc(sweep, TRUE), roc(scores, TRUE)
    assert found.pessimistic_auc == pytest.approx(expected.pessimistic_auc)
    others = Circuit(SHAPE, set(GRAPH.edges) - set(TRUE.edges))
    assert roc([*sweep, others], TRUE).pessimistic_auc == pytest.approx(found.pessimistic_auc)
    assert roc([TRUE], TRUE).auc == pytest.approx(1.0)
    assert roc([others], TRUE).pessimistic_auc == pytest.approx(0.0)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_sweep_of_acdc_finds_the_circuit_of_toy() -> None:
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 3)))
    true = Circuit(run.graph.architecture, map(Edge.parse, ("input->a0.h1<v>", "a0.h1->logits", "input->logits")))
    found = roc([acdc.search(run, tau=tau) for tau in (0.01, 0.1, 1.2)], true)
    assert found.pessimistic_auc == pytest.approx(1.0)
    assert recover(top_edges(atp.scores(run), n=3), true).edges.f1 == 1.0


def test_another_architecture_is_refused() -> None:
    other = Circuit(Architecture(2, 2), ())
    for call in (
        lambda: recover(other, TRUE),
        lambda: roc([other], TRUE),
        lambda: roc(Scores(Architecture(2, 2), "edge", torch.zeros(other.n_possible)), TRUE),
    ):
        with pytest.raises(InvalidOption, match=r"same model shape; what was found has .* own model only"):
            call()


def test_bad_input_is_refused() -> None:
    scores = Scores(SHAPE, "node", torch.zeros(7))
    with pytest.raises(InvalidOption, match=r"scores of edges; got scores of nodes"):
        roc(scores, TRUE)
    with pytest.raises(InvalidOption, match=r"at least one circuit"):
        roc([], TRUE)
    with pytest.raises(InvalidOption, match=r"level 'edge' or 'node'; got 'head'"):
        roc(scores, TRUE, level="head")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=r"some of the model's .* edges and not all; got 0"):
        roc([TRUE], circuit())
    with pytest.raises(InvalidOption, match=r"rates from 0 to 1"):
        pessimistic_auc([(0.5, 1.5)])

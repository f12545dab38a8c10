"""CPR and CMD: by hand, by the definition spelled out again, and at the ends."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.curves import FRACTIONS, curve, trapezoid, weighted_edges
from circuits.select import edges_above, greedy_edges, top_edges, top_nodes
from circuits.tasks import ioi
from graphs.circuit import Circuit
from graphs.components import Architecture
from graphs.nodes import Edge
from patching import atp, exact, toy
from patching.errors import InvalidMask, InvalidOption
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.scores import Scores
from tests import tiny


def test_a_worked_example() -> None:
    """Nine edges by rank: head 1's value, its write, input->logits, and six that do nothing.

    One edge is a dead end: f = 0. Two leave head 1 alone clean: metrics 3.5, 1.5, 2 and 1, so
    f = (2 - 1.25) / (2.5 - 1.25) = 0.6. With the third the metric is that of the model on average: f = 1.
    CPR = 0.1 * (0 + 0.6) / 2 + 0.1 * (0.6 + 1) / 2 + 0.6 * 1 = 0.71,
    CMD = 0.1 * (1 + 0.4) / 2 + 0.1 * (0.4 + 0) / 2 + 0.6 * 0 = 0.09.
    """
    run = MaskedRun(toy.model(), toy.task())
    found = curve(run, atp.scores(run), fractions=(0.2, 0.3, 0.4, 1.0))
    assert found.asked == (1, 2, 3, 9)
    assert found.edges == (0, 2, 3, 9)
    assert found.weighted_edges == (0.0, 2.0, 3.0, 9.0)
    assert found.faithfulness == pytest.approx((0.0, 0.6, 1.0, 1.0))
    assert found.cpr == pytest.approx(0.71)
    assert found.cmd == pytest.approx(0.09)
    assert (found.method, found.metric, found.prompts, found.selection) == ("atp", "logit_difference", 4, "top_edges")


@pytest.mark.parametrize("signed", [False, True])
def test_the_definition_spelled_out(signed: bool) -> None:
    """One run per fraction, plain sums; unclipped, so f below 0 and above 1 count as they are."""
    run = MaskedRun(tiny.model("gpt2"), tiny.task(n=4))
    scores = atp.scores(run)
    found = curve(run, scores, signed=signed, random_rankings=0, resamples=10)
    clean, ablated = float(run.clean_metric.mean()), float(run(run.zeros()).mean())
    order = sorted(
        range(len(scores)), key=lambda i: float(scores.values[i]) if signed else -abs(float(scores.values[i]))
    )
    shares = []
    for fraction in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1):
        chosen = Circuit(scores.architecture, [scores.units[i] for i in order[: int(fraction * len(scores))]])
        value = float(run(run.mask_of(chosen.prune())).mean())
        shares.append((value - ablated) / (clean - ablated))
    assert found.faithfulness == pytest.approx(shares)
    assert min(shares) < 0 or max(shares) > 1
    area = distance = 0.0
    for i in range(len(FRACTIONS) - 1):
        width = FRACTIONS[i + 1] - FRACTIONS[i]
        area += width * (shares[i] + shares[i + 1]) / 2
        distance += width * (abs(1 - shares[i]) + abs(1 - shares[i + 1])) / 2
    assert (found.cpr, found.cmd) == pytest.approx((area, distance))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 1)), min_size=2, max_size=6))
def test_a_trapezoid_is_the_integral_of_the_line(points: list[tuple[float, float]]) -> None:
    values, steps = zip(*points, strict=True)
    places = [math.fsum(steps[: i + 1]) for i in range(len(steps))]
    expected = float(
        torch.trapezoid(torch.tensor(values, dtype=torch.float64), torch.tensor(places, dtype=torch.float64))
    )
    assert trapezoid(values, places) == pytest.approx(expected, abs=1e-12)
    assert trapezoid([1.0] * len(places), places) == pytest.approx(places[-1] - places[0])


def test_the_whole_model_is_1_and_a_perfect_method_has_the_largest_area() -> None:
    run = MaskedRun(tiny.model("llama"), tiny.task())
    found = curve(run, atp.scores(run), selection=lambda scores, n, signed: edges_above(scores, threshold=0.0))
    assert found.faithfulness == pytest.approx([1.0] * len(FRACTIONS))
    assert found.cpr == pytest.approx(0.999)
    assert found.cmd == pytest.approx(0.0, abs=1e-9)
    assert found.cpr_interval == pytest.approx((0.999, 0.999))
    nothing = curve(run, atp.scores(run), selection=lambda scores, n, signed: top_edges(scores, n=0))
    assert (nothing.cpr, nothing.cmd) == pytest.approx((0.0, 0.999))
    assert any("10 smallest of 10 circuits have no edges" in note for note in nothing.notes)


def test_intervals_hold_the_estimates_and_seeds_repeat() -> None:
    run = MaskedRun(tiny.model("llama"), tiny.task(n=8))
    scores = atp.scores(run)
    first, again, other = (curve(run, scores, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.faithfulness == other.faithfulness
    assert first.random_cpr != other.random_cpr
    assert first.cpr_interval[0] <= first.cpr <= first.cpr_interval[1]
    for value, interval in zip(first.faithfulness, first.intervals, strict=True):
        assert interval[0] - 1e-9 <= value <= interval[1] + 1e-9
    chunked = curve(MaskedRun(tiny.model("llama"), tiny.task(n=8), memory=1), scores)
    assert chunked.faithfulness == pytest.approx(first.faithfulness, abs=1e-9)
    assert (chunked.cpr, chunked.random_cmd) == pytest.approx((first.cpr, first.random_cmd))
    json.dumps(first.to_dict(), allow_nan=False)
    assert first.to_frame().shape == (10, 7)
    assert "CPR" in str(first)


def test_all_masks_go_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    scores, calls = atp.scores(run), []
    plain = MaskedRun.__call__
    monkeypatch.setattr(MaskedRun, "__call__", lambda self, mask: calls.append(mask.shape) or plain(self, mask))
    curve(run, scores, random_rankings=2)
    assert calls == [(30, run.n_units)]


def test_other_selections_and_levels() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    edges, nodes = atp.scores(run), exact.scores(run.nodes())
    greedy = curve(run, edges, selection=greedy_edges, random_rankings=0)
    assert greedy.edges == tuple(greedy_edges(edges, n=n, signed=False).n_edges for n in greedy.asked)
    by_node = curve(run, nodes, fractions=(0.3, 1.0), random_rankings=0)
    assert (by_node.selection, by_node.asked) == ("top_nodes", (3, 11))
    assert by_node.edges[0] == top_nodes(nodes, n=3).n_edges
    by_neuron = curve(run, atp.scores(run.neurons()), fractions=(0.005, 1.0), random_rankings=0)
    assert by_neuron.weighted_edges[1] == run.n_units


def test_edges_of_neurons_are_weighted_by_their_share() -> None:
    shape = Architecture(1, 1)
    edges = [Edge.parse(name) for name in ("input->m0", "m0->logits", "input->logits")]
    chosen = {"selection": {"neurons": {"m0": 3}, "neurons_per_mlp": 12}}
    assert weighted_edges(Circuit(shape, edges, None, chosen)) == 2.25
    assert weighted_edges(Circuit(shape, edges)) == 3.0


def test_no_gap_is_said() -> None:
    run = MaskedRun(toy.model(), toy.task())
    task = run.task
    same = task.__class__("same", task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    found = curve(MaskedRun(toy.model(), same), atp.scores(run))
    assert (found.cpr, found.cmd, found.cpr_interval, found.random_cpr) == (None,) * 4
    assert set(found.faithfulness) == {None}
    assert "no share is defined" in found.notes[0]
    assert "undefined" in str(found)


@pytest.mark.parametrize("fractions", [(0.5,), (0.5, 0.2), (0.0, 0.5), (0.5, 1.5)])
def test_bad_fractions_are_refused(fractions: tuple[float, ...]) -> None:
    run = MaskedRun(toy.model(), toy.task())
    with pytest.raises(InvalidOption, match=r"two or more ascending fractions above 0 and at most 1"):
        curve(run, atp.scores(run), fractions=fractions)


def test_scores_of_another_model_are_refused() -> None:
    run = MaskedRun(toy.model(), toy.task())
    shape = Architecture(1, 2)
    scores = Scores(shape, "edge", torch.ones(Circuit(shape, ()).n_possible, dtype=torch.float64))
    with pytest.raises(InvalidMask, match=r"circuit of a model with"):
        curve(run, scores)


def test_on_the_model_that_ships() -> None:
    """Scores of one split, judged on the other: far better than random rankings (reduced)."""
    model = LensModel.load("zoo:ioi")
    search, judge = (MaskedRun(model, ioi.make(model, n=8, seed=0, split=split)) for split in ("train", "held-out"))
    found = curve(judge, atp.scores(search), fractions=(0.02, 0.1, 0.3, 1.0), random_rankings=1)
    assert found.faithfulness[-1] == pytest.approx(1.0, abs=1e-4)
    assert found.cpr > found.random_cpr + 0.2
    assert found.cmd < found.random_cmd - 0.2

"""Taking edges out of a circuit one by one, and out of the model one after the other."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from circuits.evaluation import evaluate
from circuits.knockout import knock_out, minimality
from circuits.select import top_edges
from graphs.circuit import Circuit
from graphs.nodes import Edge
from patching import atp, toy
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests import tiny


def test_minimality_by_hand() -> None:
    """Clean metrics 2.5, 2.5, 3, 2. Without head 1's value or write: 1, 1, 1.5, 3.5; without input->logits: 2.5, 1.5,
    2, 2.
    """
    run = MaskedRun(toy.model(), toy.task())
    found = minimality(run, top_edges(atp.scores(run), n=3))
    assert [(row.edge, row.effect, row.share) for row in found.rows] == [
        ("input->a0.h1<v>", -0.75, -0.6), ("a0.h1->logits", -0.75, -0.6), ("input->logits", -0.5, -0.4),
    ]  # fmt: skip
    assert found.to_frame()["edge"].tolist() == [row.edge for row in found.rows]
    assert "input->a0.h1<v>" in found.unproven  # head 1 harms the last prompt, so the interval reaches above 0


def test_an_edge_whose_effect_is_sure_is_not_unproven() -> None:
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 3)))
    found = minimality(run, Circuit(run.graph.architecture, map(Edge.parse, ("input->a0.h1<v>", "a0.h1->logits"))))
    assert found.unproven == ()
    assert found.rows[0].interval == pytest.approx((-1.5, -1.5))


@pytest.mark.parametrize("places", [(None,), (2, 3, None), (1, 4, 6)])
def test_minimality_is_a_run_without_each_edge(places: tuple[int | None, ...]) -> None:
    """Also where an edge is at one position and at all: without the one, the other still holds the place."""
    run = MaskedRun(tiny.model("llama"), tiny.task(n=4))
    names = ("input->m0", "m0->a1.kv0<v>", "a1.h1->logits", "m0->logits")
    edges = [Edge.parse(name if at is None else f"{name}@{at}") for name in names for at in places]
    circuit = Circuit(run.graph.architecture, edges)
    view = run if places == (None,) else run.positions()
    found = {row.edge: row.effect for row in minimality(run, circuit).rows}
    whole = view(view.mask_of(circuit)).mean()
    for edge in circuit.edges:
        rest = Circuit(circuit.architecture, [other for other in circuit.edges if other != edge])
        assert found[str(edge)] == pytest.approx(float(view(view.mask_of(rest)).mean() - whole), abs=1e-9)


@pytest.mark.parametrize("at", ["", "@3"])
def test_the_curve_is_the_model_without_the_first_edges(at: str) -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(n=4))
    plain = top_edges(atp.scores(run), n=30)
    scores = {Edge.parse(f"{edge}{at}"): score for edge, score in plain.scores.items()}
    circuit = Circuit(plain.architecture, scores, scores)
    view = run.positions() if at else run
    found = knock_out(run, circuit, points=7, random_orders=2)
    assert found.ranked_by == "scores"
    assert found.removed[0] == 0
    assert found.removed[-1] == circuit.n_edges
    importance = [abs(scores[Edge.parse(edge)]) for edge in found.order]
    assert importance == sorted(importance, reverse=True)
    gap = float((run.clean_metric - run.corrupt_metric).mean())
    for removed, left in zip(found.removed, found.left, strict=True):
        gone = Circuit(plain.architecture, [Edge.parse(edge) for edge in found.order[:removed]])
        value = float((view(1 - view.mask_of(gone)) - run.corrupt_metric).mean())
        assert left == pytest.approx(value / gap)
    assert found.left[-1] == pytest.approx(evaluate(run, circuit).completeness_gap)
    assert found.random is not None
    assert found.random[0] == pytest.approx(1.0)
    assert found.to_frame()["removed"].tolist() == list(found.removed)
    json.dumps(asdict(found), allow_nan=False)


def test_without_scores_the_order_is_what_each_edge_does() -> None:
    run = MaskedRun(toy.model(), toy.task())
    scored = top_edges(atp.scores(run), n=3)
    found = knock_out(run, Circuit(scored.architecture, scored.edges), random_orders=0)
    assert (found.ranked_by, found.random) == ("minimality", None)
    assert found.order == tuple(row.edge for row in minimality(run, scored).rows)
    assert found.left == pytest.approx((1.0, 0.4, 0.4, 0.0))
    assert "less than half is left once 1 of 3 edges are gone" in str(found)


def test_nothing_to_take_out() -> None:
    run = MaskedRun(toy.model(), toy.task())
    empty = Circuit(run.graph.architecture, ())
    assert minimality(run, empty).rows == ()
    assert knock_out(run, empty).left == (1.0,)


def test_no_gap_no_share() -> None:
    run = MaskedRun(toy.model(), toy.task(), metric="logit_difference")
    same = MaskedRun(run.model, run.task.__class__("same", *(run.task.clean,) * 2, run.task.answers,
                                                   run.task.wrong_answers, run.task.positions))  # fmt: skip
    circuit = top_edges(atp.scores(run), n=3)
    assert {row.share for row in minimality(same, circuit).rows} == {None}
    assert set(knock_out(same, circuit).left) == {None}


def test_chunks_and_seeds() -> None:
    """More edges than one block of masks; memory and seeds change nothing but the draws."""
    circuit = Circuit(tiny.model("gpt2").graph.architecture, tiny.model("gpt2").graph.edges[:80])
    runs = [MaskedRun(tiny.model("gpt2"), tiny.task(), memory=memory) for memory in (1 << 27, 1)]
    effects = [{row.edge: row.effect for row in minimality(run, circuit).rows} for run in runs]
    assert effects[0] == pytest.approx(effects[1], abs=1e-9)
    seen: list[tuple[int, int]] = []
    minimality(runs[0], circuit, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 80), (80, 80)]
    scored = top_edges(atp.scores(runs[0]), n=10)
    first, again, other = (knock_out(runs[0], scored, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.random != other.random


@pytest.mark.parametrize("options", [{"points": 0}, {"random_orders": -1}])
def test_counts_out_of_range_are_refused(options: dict[str, int]) -> None:
    run = MaskedRun(toy.model(), toy.task())
    with pytest.raises(InvalidOption, match=r"points of at least 1 and random_orders of at least 0"):
        knock_out(run, top_edges(atp.scores(run), n=3), **options)  # type: ignore[arg-type]
    assert torch.is_grad_enabled()

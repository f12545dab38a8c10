"""Stability over prompts: counts by hand, the bound by simulation, and runs on resampled prompts."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import torch

from circuits.select import top_edges, top_nodes
from circuits.stability import bootstrap, expected_false, inclusion, on_rows, stability_selection, stable
from graphs.circuit import Circuit
from graphs.nodes import Edge
from patching import atp, toy
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests import tiny


def first_n(run: MaskedRun, n: int) -> Circuit:
    return Circuit(run.graph.architecture, run.graph.edges[:n], {edge: float(n) for edge in run.graph.edges[:n]})


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_a_run_on_rows_is_those_rows_of_the_run(ablation: str) -> None:
    run = MaskedRun(tiny.model("llama"), tiny.task(n=5), ablation=ablation)
    rows = torch.tensor([3, 0, 3])
    mask = torch.rand(run.n_units, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    torch.testing.assert_close(on_rows(run, rows)(mask), run(mask)[rows], rtol=0, atol=1e-9)


def test_views_metric_and_ablation_are_kept() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(n=4), ablation="mean", metric="kl").nodes().positions()
    other = on_rows(run, torch.tensor([1, 1]))
    assert (other.level, other.per_position, other.metric.name, other.ablation.name) == ("node", True, "kl", "mean")
    assert other.mask_shape == run.mask_shape


def test_a_method_that_does_not_look_at_prompts_is_stable() -> None:
    run = MaskedRun(toy.model(), toy.task())
    found = bootstrap(lambda run: first_n(run, 4), run, resamples=6)
    assert found.jaccard == 1.0
    assert set(found.frequencies.values()) == {1.0}
    assert found.consensus(share=1.0).edges == found.whole.edges == run.graph.edges[:4]
    assert found.consensus().scores[run.graph.edges[0]] == 4.0
    selected = stability_selection(lambda run: first_n(run, 2), run, resamples=6, threshold=0.75)
    assert selected.circuit.edges == run.graph.edges[:2]
    assert selected.expected_false == pytest.approx(4 / (0.5 * 9))


def test_jaccards_and_frequencies_by_hand() -> None:
    """Circuits of 1, 2, 3, ... edges in turn, each within the next: Jaccard is the ratio of sizes."""
    run = MaskedRun(toy.model(), toy.task())
    sizes = iter([3, 1, 2, 4])  # all prompts first
    found = bootstrap(lambda run: first_n(run, next(sizes)), run, resamples=3)
    assert found.sizes == (1, 2, 4)
    assert found.jaccards == pytest.approx((1 / 2, 1 / 4, 2 / 4))
    assert found.jaccards_with_whole == pytest.approx((1 / 3, 2 / 3, 3 / 4))
    assert list(found.frequencies.values()) == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3])
    assert found.consensus(share=0.5).n_edges == 2
    assert found.consensus(share=0.5).scores == pytest.approx(
        {run.graph.edges[0]: (1 + 2 + 4) / 3, run.graph.edges[1]: (2 + 4) / 2}
    )
    assert found.to_frame()["in_whole"].tolist() == [True, True, True, False]
    assert "Jaccard 0.417 between pairs (0.250 to 0.500)" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_bootstrap_is_the_method_on_each_draw() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(n=6))

    def method(run: MaskedRun) -> Circuit:
        return top_edges(atp.scores(run), n=20)

    seen: list[tuple[int, int]] = []
    found = bootstrap(method, run, resamples=4, seed=5, progress=lambda *step: seen.append(step))
    generator = torch.Generator().manual_seed(5)
    draws = [torch.randint(0, 6, (6,), generator=generator) for _ in range(4)]
    expected = [method(MaskedRun(run.model, run.task.subset(rows))) for rows in draws]
    assert [each.edges for each in found.circuits] == [each.edges for each in expected]
    shared = [len({*a.edges} & {*b.edges}) / len({*a.edges} | {*b.edges}) for a, b in combinations(expected, 2)]
    assert found.jaccards == pytest.approx(shared)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert bootstrap(method, run, resamples=4, seed=5).frequencies == found.frequencies
    assert bootstrap(method, run, resamples=4, seed=6).circuits != found.circuits


def test_scores_need_a_selection() -> None:
    run = MaskedRun(toy.model(), toy.task())
    found = bootstrap(atp.scores, run, select=lambda scores: top_edges(scores, n=3), resamples=3)
    assert found.whole.edges == top_edges(atp.scores(run), n=3).edges
    nodes = bootstrap(atp.scores, run.nodes(), select=lambda scores: top_nodes(scores, n=2), resamples=3)
    assert nodes.whole.n_edges > 0
    with pytest.raises(InvalidOption, match=r"gives a Circuit; got Scores.*select=lambda"):
        bootstrap(atp.scores, run, resamples=2)


def test_halves_have_half_the_prompts_once_each() -> None:
    run = MaskedRun(toy.model(), toy.task())
    seen = []

    def method(run: MaskedRun) -> Circuit:
        seen.append(tuple(tuple(row) for row in run.task.clean.tolist()))
        return first_n(run, 2)

    found = stability_selection(method, run, resamples=8, seed=1)
    assert all(len(prompts) == 2 for prompts in seen)
    assert (found.mean_selected, found.candidates) == (2.0, 9)
    assert found.circuit.provenance["stability"]["threshold"] == 0.7
    assert "the bound says nothing" not in str(found) or found.expected_false >= 2
    json.dumps(found.to_dict(), allow_nan=False)


def test_positions_are_candidates_too() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(n=4)).positions()
    edge = Edge.parse("input->logits@3")
    found = stability_selection(lambda run: Circuit(run.graph.architecture, [edge]), run, resamples=2)
    assert found.candidates == run.graph.n_edges * tiny.LENGTH


@pytest.mark.parametrize("threshold", [0.6, 0.75, 0.9])
def test_the_bound_holds(threshold: float) -> None:
    """4 true units found in 9 of 10 resamples, other places filled by false ones, some favoured each time."""
    generator = torch.Generator().manual_seed(0)
    false_kept, bounds, true_kept = [], [], []
    for _ in range(60):
        keys = torch.rand(30, 200, generator=generator) + 0.6 * torch.rand(200, generator=generator)
        keys[:, :4] = torch.where(torch.rand(30, 4, generator=generator) < 0.9, 9.0, 0.0)
        chosen = torch.zeros(30, 200, dtype=torch.bool).scatter(1, keys.topk(10).indices, True)
        kept, bound = stable(chosen, threshold=threshold)
        false_kept.append(float(kept[4:].sum()))
        true_kept.append(float(kept[:4].double().mean()))
        bounds.append(bound)
    assert sum(false_kept) / 60 <= min(bounds)
    assert min(bounds) == pytest.approx(100 / ((2 * threshold - 1) * 200))
    if threshold < 0.9:
        assert sum(true_kept) / 60 > 0.9


def test_the_bound_by_hand() -> None:
    assert expected_false(10, 1000, threshold=0.75) == pytest.approx(0.2)
    assert expected_false(10, 1000, threshold=1.0) == pytest.approx(0.1)
    assert inclusion([]) == {}


@pytest.mark.parametrize("threshold", [0.5, 1.1, 0.0])
def test_thresholds_out_of_range_are_refused(threshold: float) -> None:
    run = MaskedRun(toy.model(), toy.task())
    with pytest.raises(InvalidOption, match=r"threshold above 0.5 and at most 1"):
        stability_selection(lambda run: first_n(run, 2), run, threshold=threshold)
    with pytest.raises(InvalidOption, match=r"threshold above 0.5 and at most 1"):
        expected_false(1, 2, threshold=threshold)


def test_too_little_to_draw_from_is_refused() -> None:
    run = MaskedRun(toy.model(), toy.task())
    with pytest.raises(InvalidOption, match=r"at least 2 resamples; got 1"):
        bootstrap(lambda run: first_n(run, 2), run, resamples=1)
    with pytest.raises(InvalidOption, match=r"at least 2 prompts"):
        bootstrap(lambda run: first_n(run, 2), on_rows(run, torch.tensor([0])))
    with pytest.raises(InvalidOption, match=r"share above 0 and at most 1; got 0"):
        bootstrap(lambda run: first_n(run, 2), run, resamples=2).consensus(share=0)

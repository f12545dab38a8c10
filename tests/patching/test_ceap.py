"""CEAP: complete over random cuts, with its order of convergence, against conductance at sites and ports by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from patching import atp, ceap, exact, gradients, toy
from patching.activation import SiteRun
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests import tiny
from tests.oracle import EVERY_LOGIT
from tests.patching.first_order_checks import (
    FAMILIES,
    SAME,
    cuts,
    edges_by_hand,
    ends,
    levels_of,
    per_mlp,
    per_node,
    port_gradients_by_hand,
    run_of,
)
from tests.patching.test_exact import without_norm


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edges_of_any_cut_add_up_to_the_whole_effect(family: str) -> None:
    """And the error falls with the square of the steps."""
    run = run_of(family)
    whole = float((run.corrupt_metric - run.clean_metric).mean())
    made = {steps: ceap.scores(run, steps=steps) for steps in (12, 36)}
    worst = dict.fromkeys(made, 0.0)
    for seed in range(3):
        for inside, across in cuts(run, seed=seed):
            assert "input" in inside
            for steps, found in made.items():
                worst[steps] = max(worst[steps], abs(float(found.values[across].sum()) - whole))
    assert worst[36] < 0.02 * abs(whole)
    assert worst[36] < worst[12] / 6  # 9 in the limit


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        ("trapezoid", 2),
        pytest.param("left", 1, marks=pytest.mark.slow),
        pytest.param("right", 1, marks=pytest.mark.slow),
    ],
)
def test_the_order_of_convergence(rule: str, order: int) -> None:
    """Halving the intervals divides the error of the trapezoid by 4, that of either end by 2."""
    run = run_of("llama", n=1)
    whole = float((run.corrupt_metric - run.clean_metric).mean())
    (_, across) = list(cuts(run, seed=0))[2]
    errors = [abs(float(ceap.scores(run, steps=steps, rule=rule).values[across].sum()) - whole) for steps in (32, 64)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_attribution_patching_is_not_complete() -> None:
    """So the test above could fail."""
    run = run_of("gpt2")
    whole = float((run.corrupt_metric - run.clean_metric).mean())
    plain = atp.scores(run).values
    assert max(abs(float(plain[across].sum()) - whole) for _, across in cuts(run, seed=0)) > 0.1 * abs(whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_what_autograd_gives_at_every_port(family: str) -> None:
    """Interval by interval, as the definition says."""
    run = run_of(family)
    clean, replaced = ends(run)
    (batch,) = run.batches
    points = [port_gradients_by_hand(batch, clean + k / 3 * (replaced - clean)) for k in range(4)]
    expected = {rule: torch.zeros(run.n_units, dtype=torch.float64) for rule in ceap.RULES}
    for (before, slopes), (after, later) in pairwise(points):
        step = (after - before).detach()
        expected["left"] += edges_by_hand(run, step, slopes)
        expected["right"] += edges_by_hand(run, step, later)
    expected["trapezoid"] = (expected["left"] + expected["right"]) / 2
    for rule, values in expected.items():
        torch.testing.assert_close(ceap.scores(run, steps=3, rule=rule).values, values, rtol=0, atol=SAME)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_node_is_the_sum_of_its_edges(family: str) -> None:
    run = run_of(family)
    found = ceap.scores(run, steps=3)
    torch.testing.assert_close(per_node(run, found), ceap.scores(run.nodes(), steps=3).values, rtol=0, atol=SAME)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_nodes_and_neurons_are_the_conductance_of_sites(family: str) -> None:
    run = run_of(family, n=3)
    sites = SiteRun(run.model, run.task, metric=EVERY_LOGIT)
    nodes, neurons = ceap.scores(run.nodes(), steps=4), ceap.scores(run.neurons(), steps=4)
    hidden = gradients.conductance(sites, "neurons", parts=True, steps=4).mean
    torch.testing.assert_close(neurons.values, hidden.flatten(), rtol=0, atol=SAME)
    outputs = gradients.conductance(sites, "mlp_out", steps=4).mean
    for layer, value in enumerate(outputs.tolist()):
        assert nodes[f"m{layer}"] == pytest.approx(value, abs=SAME)
    if run.model.blocks[0].attention.post is None:  # else z is divided by the norm's scale, and no node
        z = gradients.conductance(sites, "z", steps=4).mean
        for layer, head in torch.cartesian_prod(torch.arange(z.shape[0]), torch.arange(z.shape[1])).tolist():
            assert nodes[f"a{layer}.h{head}"] == pytest.approx(float(z[layer, head]), abs=SAME)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_neurons_of_a_layer_add_up_to_its_node(family: str) -> None:
    run = run_of(family)
    nodes = ceap.scores(run.nodes(), steps=3)
    for layer, total in per_mlp(run, ceap.scores(run.neurons(), steps=3)).items():
        assert total == pytest.approx(nodes[f"m{layer}"], abs=SAME)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_to_the_left_is_attribution_patching(family: str) -> None:
    for level in levels_of(family):
        run = run_of(family, level=level)
        found = ceap.scores(run, steps=1, rule="left")
        torch.testing.assert_close(found.values, atp.scores(run).values, rtol=0, atol=SAME)


def test_exact_in_a_linear_model() -> None:
    run = MaskedRun(without_norm(uniform=True, layers=3), tiny.task())
    for view in (run, run.nodes()):
        for options in ({}, {"steps": 2, "rule": "left"}):
            found = ceap.scores(view, **options)
            torch.testing.assert_close(found.values, exact.scores(view).values, rtol=0, atol=SAME)


def test_memory_changes_nothing_and_progress_counts_points() -> None:
    for level in ("edge", "node", "neuron"):
        seen: list[tuple[int, int]] = []
        whole = ceap.scores(run_of("gemma2", level=level, n=3), steps=2)
        small = ceap.scores(
            run_of("gemma2", level=level, n=3, memory=1),
            steps=2,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        )
        torch.testing.assert_close(small.values, whole.values, rtol=0, atol=SAME)
        assert seen == [(done, 9) for done in range(1, 10)]


def test_kl_is_complete_too() -> None:
    """It is 0 at the clean run, so the sums are the KL of the corrupt run."""
    run = MaskedRun(tiny.model("llama"), tiny.task(n=2), metric="kl")
    whole = float(run.corrupt_metric.mean())
    found = ceap.scores(run, steps=24).values
    for _, across in cuts(run, seed=1):
        assert float(found[across].sum()) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize(
    ("options", "ablation", "message"),
    [
        ({"rule": "midpoint"}, "corrupt", "rule out of trapezoid, left, right for ceap; got 'midpoint'"),
        ({"rule": "gauss"}, "corrupt", "rule out of left, right, midpoint, trapezoid; got 'gauss'"),
        ({"steps": 0}, "corrupt", "at least one step"),
        ({}, "mean", "an ablation that is a run of its own .* there is none of mean"),
        ({}, "zero", "an ablation that is a run of its own .* there is none of zero"),
    ],
)
def test_bad_options(options: dict[str, Any], ablation: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        ceap.scores(MaskedRun(toy.model(), toy.task(), ablation=ablation), **options)


def test_kl_at_the_clean_run_alone_is_refused() -> None:
    run = MaskedRun(toy.model(), toy.task(), metric="kl")
    with pytest.raises(InvalidOption, match="kl is at its minimum"):
        ceap.scores(run, steps=1, rule="left")
    assert float(ceap.scores(run, steps=1, rule="right").importance.max()) > 0

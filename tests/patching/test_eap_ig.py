"""EAP-IG against autograd with a leaf at every port, masked runs, estimates at sites, and exact effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from patching import atp, eap_ig, exact, gradients, toy
from patching.activation import SiteRun
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests import tiny
from tests.oracle import EVERY_LOGIT
from tests.patching.first_order_checks import (
    FAMILIES,
    SAME,
    edges_by_hand,
    ends,
    levels_of,
    per_mlp,
    per_node,
    port_gradients_by_hand,
    run_of,
)
from tests.patching.test_exact import without_norm

METHODS: list[Callable[..., Any]] = [eap_ig.inputs, eap_ig.activations, eap_ig.clean_corrupted]


def few(method: Callable[..., Any]) -> dict[str, int]:
    """Options for few steps."""
    return {} if method is eap_ig.clean_corrupted else {"steps": 2}


# --- inputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_what_autograd_gives_at_every_port(family: str) -> None:
    """The mean over the authors' points k/5 from the corrupt end, k = 0 to 4, by a leaf for each port."""
    run = run_of(family)
    clean, replaced = ends(run)
    (batch,) = run.batches
    changes = port_gradients_by_hand(batch, replaced)[0].detach() - port_gradients_by_hand(batch, clean)[0].detach()
    expected = torch.zeros(run.n_units, dtype=torch.float64)
    for k in range(5):
        _, slopes = port_gradients_by_hand(batch, replaced + k / 5 * (clean - replaced))
        expected += edges_by_hand(run, changes, slopes) / 5
    torch.testing.assert_close(eap_ig.inputs(run).values, expected, rtol=0, atol=SAME)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_from_clean_is_attribution_patching(family: str) -> None:
    for level in levels_of(family):
        run = run_of(family, level=level)
        plain = atp.scores(run)
        found = eap_ig.inputs(run, steps=1, rule="left")
        torch.testing.assert_close(found.values, plain.values, rtol=0, atol=SAME)
        torch.testing.assert_close(found.standard_error, plain.standard_error, rtol=0, atol=SAME)


def test_one_step_of_the_trapezoid_is_clean_corrupted() -> None:
    run = run_of("llama")
    one, other = eap_ig.inputs(run, steps=1, rule="trapezoid"), eap_ig.clean_corrupted(run)
    torch.testing.assert_close(one.values, other.values, rtol=0, atol=SAME)


def test_the_rule_from_the_other_end_is_the_swapped_task() -> None:
    """Changes turn their sign, points stay."""
    run = run_of("gpt2")
    back = MaskedRun(run.model, run.task.swapped(), metric=EVERY_LOGIT)
    for rule, mirrored in (("left", "right"), ("midpoint", "midpoint")):
        there = eap_ig.inputs(run, steps=3, rule=rule)
        other = eap_ig.inputs(back, steps=3, rule=mirrored)
        torch.testing.assert_close(there.values, -other.values, rtol=0, atol=SAME)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_input_node_has_the_whole_effect(family: str) -> None:
    """Integrated gradients at the embeddings are complete."""
    run = run_of(family, level="node")
    whole = float((run.corrupt_metric - run.clean_metric).mean())
    coarse, fine = (eap_ig.inputs(run, steps=steps, rule="midpoint")["input"] - whole for steps in (16, 64))
    assert abs(fine) < 0.02 * abs(whole)
    assert abs(fine) < 0.2 * abs(coarse)


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_node_is_the_sum_of_its_edges(family: str, method: Callable[..., Any]) -> None:
    run = run_of(family)
    edges, nodes = method(run, **few(method)), method(run.nodes(), **few(method))
    torch.testing.assert_close(per_node(run, edges), nodes.values, rtol=0, atol=SAME)


@pytest.mark.parametrize("method", [eap_ig.inputs, eap_ig.clean_corrupted])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_neurons_of_a_layer_add_up_to_its_node(family: str, method: Callable[..., Any]) -> None:
    run = run_of(family)
    nodes = method(run.nodes())
    for layer, total in per_mlp(run, method(run.neurons())).items():
        assert total == pytest.approx(nodes[f"m{layer}"], abs=SAME)


@pytest.mark.parametrize(
    ("method", "theirs"), [(eap_ig.inputs, gradients.inputs), (eap_ig.activations, gradients.activations)]
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_nodes_and_neurons_are_those_of_sites(
    family: str, method: Callable[..., Any], theirs: Callable[..., Any]
) -> None:
    """Estimates at z, MLP outputs and neurons, made by visiting a run; z is no node where a norm follows attention."""
    run = run_of(family, n=3)
    sites = SiteRun(run.model, run.task, metric=EVERY_LOGIT)
    layers, options = range(run.graph.architecture.n_layers), {"steps": 3, "rule": "midpoint"}
    nodes, neurons = method(run.nodes(), **options), method(run.neurons(), **options)
    outputs = theirs(sites, "mlp_out", **options).mean
    hidden = theirs(sites, "neurons", parts=True, **options).mean
    torch.testing.assert_close(neurons.values, hidden.flatten(), rtol=0, atol=SAME)
    for layer in layers:
        assert nodes[f"m{layer}"] == pytest.approx(float(outputs[layer]), abs=SAME)
    if run.model.blocks[0].attention.post is None:
        z = theirs(sites, "z", **options).mean
        for layer in layers:
            for head in range(z.shape[1]):
                assert nodes[f"a{layer}.h{head}"] == pytest.approx(float(z[layer, head]), abs=SAME)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layers", [1, 3])
def test_exact_in_a_linear_model(method: Callable[..., Any], layers: int) -> None:
    run = MaskedRun(without_norm(uniform=True, layers=layers), tiny.task())
    for view in (run, run.nodes()):
        torch.testing.assert_close(method(view).values, exact.scores(view).values, rtol=0, atol=SAME)


# --- activations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "ablation"),
    [*((family, "corrupt") for family in FAMILIES), ("gpt2", "zero"), ("gemma2", "mean-positional")],
)
def test_activations_are_gradients_of_masked_runs(family: str, ablation: str) -> None:
    """With all edges from a stage at mask 1 - α, minus the gradient with respect to these entries."""
    run = run_of(family, ablation=ablation)
    expected = torch.zeros(run.n_units, dtype=torch.float64)
    stages = [(0, 1), *((stage.sources.start, stage.sources.stop) for stage in run.planner.stages)]
    for start, stop in stages:
        own = (run.edge_sources >= start) & (run.edge_sources < stop)
        for alpha in (0.25, 0.75):
            mask = torch.where(own, 1 - alpha, run.ones())
            expected -= torch.where(own, run.gradient(mask) / 2, 0)
    found = eap_ig.activations(run, steps=2, rule="midpoint")
    torch.testing.assert_close(found.values, expected, rtol=0, atol=SAME)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_a_stage_adds_up_to_ablating_it(family: str) -> None:
    run = run_of(family, level="node")
    stages = [(0, 1), *((stage.sources.start, stage.sources.stop) for stage in run.planner.stages[:-1])]
    errors = []
    for steps in (4, 16):
        found = eap_ig.activations(run, steps=steps).values
        for start, stop in stages:
            mask = run.ones()
            mask[start:stop] = 0
            true = float((run(mask) - run.clean_metric).mean())
            errors.append(abs(float(found[start:stop].sum()) - true))
    coarse, fine = errors[: len(stages)], errors[len(stages) :]
    assert max(fine) < 0.15 * max(coarse)


# --- metrics, batches, bad inputs -----------------------------------------------------------------------------------


def test_kl_is_welcome_where_a_point_is_not_the_clean_run() -> None:
    """It is refused where all are: its gradient is 0 there."""
    run = MaskedRun(tiny.model("gpt2"), tiny.task(), metric="kl")
    for method in METHODS:
        assert float(method(run).importance.max()) > 0.01
    assert float(eap_ig.inputs(run, steps=2, rule="left").importance.max()) > 0.01
    for method in (eap_ig.inputs, eap_ig.activations):
        with pytest.raises(InvalidOption, match="gradient at the clean run is not zero; kl is at its minimum"):
            method(run, steps=1, rule="left")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ablation", ["corrupt", "mean"])
def test_memory_changes_nothing(method: Callable[..., Any], ablation: str) -> None:
    for level in ("edge", "node", "neuron"):
        whole, small = (
            method(run_of("gemma2", level=level, memory=memory, ablation=ablation), **few(method))
            for memory in (1 << 28, 1)
        )
        torch.testing.assert_close(small.values, whole.values, rtol=0, atol=SAME)


def test_progress_counts_gradients() -> None:
    for method, count in ((eap_ig.inputs, 2 * 2), (eap_ig.activations, 2 * 2 * 5), (eap_ig.clean_corrupted, 2 * 2)):
        seen: list[tuple[int, int]] = []
        run = run_of("gpt2", memory=1)
        method(run, progress=lambda done, total, seen=seen: seen.append((done, total)), **few(method))
        assert seen == [(done, count) for done in range(1, count + 1)]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (eap_ig.inputs, {"rule": "simpson"}, "rule out of left, right, midpoint, trapezoid; got 'simpson'"),
        (eap_ig.inputs, {"steps": 0}, "at least one step, a whole number; got 0"),
        (eap_ig.activations, {"steps": True}, "at least one step, a whole number; got True"),
    ],
)
def test_bad_options(method: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        method(MaskedRun(toy.model(), toy.task()), **options)


@pytest.mark.parametrize("method", METHODS)
def test_positions_are_refused(method: Callable[..., Any]) -> None:
    with pytest.raises(InvalidOption, match="expected a run over edges, nodes or neurons; scores by position"):
        method(MaskedRun(toy.model(), toy.task()).positions())

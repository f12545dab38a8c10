"""RelP on edges, nodes and neurons: against autograd through the twin, RelP at sites, and its rules."""

from __future__ import annotations

import pytest
import torch

from patching import atp, exact, gradients, relp
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
    per_mlp,
    per_node,
    port_gradients_by_hand,
    run_of,
)
from tests.patching.test_exact import without_norm

EVERY = [*FAMILIES, "qwen3"]  # its queries and keys are normed


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("family", EVERY)
def test_scores_are_what_autograd_gives_at_every_port_of_the_twin(family: str, constant: bool) -> None:
    run = run_of(family)
    clean, replaced = ends(run)
    (batch,) = run.batches
    changes = port_gradients_by_hand(batch, replaced)[0] - port_gradients_by_hand(batch, clean)[0]
    twin = relp.relevance_model(run.model, constant_patterns=constant)
    _, slopes = port_gradients_by_hand(batch, clean, model=twin)
    expected = edges_by_hand(run, changes.detach(), slopes)
    found = relp.scores(run, constant_patterns=constant)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=SAME)
    for edge, value in zip(run.units, found.importance.tolist(), strict=True):
        assert edge.port not in ("q", "k") or (value == 0) == constant
    assert float((found.values - atp.scores(run).values).abs().max()) > 1e-3


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_nodes_and_neurons_are_those_of_sites(family: str, constant: bool) -> None:
    run = run_of(family, n=3)
    sites = SiteRun(run.model, run.task, metric=EVERY_LOGIT)
    nodes = relp.scores(run.nodes(), constant_patterns=constant)
    neurons = relp.scores(run.neurons(), constant_patterns=constant)
    hidden = gradients.relp(sites, "neurons", parts=True, constant_patterns=constant).mean
    torch.testing.assert_close(neurons.values, hidden.flatten(), rtol=0, atol=SAME)
    outputs = gradients.relp(sites, "mlp_out", constant_patterns=constant).mean
    for layer, value in enumerate(outputs.tolist()):
        assert nodes[f"m{layer}"] == pytest.approx(value, abs=SAME)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("family", EVERY)
def test_a_node_is_the_sum_of_its_edges(family: str, constant: bool) -> None:
    run = run_of(family)
    edges = relp.scores(run, constant_patterns=constant)
    nodes = relp.scores(run.nodes(), constant_patterns=constant)
    torch.testing.assert_close(per_node(run, edges), nodes.values, rtol=0, atol=SAME)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_neurons_of_a_layer_add_up_to_its_node(family: str) -> None:
    """Behind a norm too only where its scale does not differ between clean and corrupt: gemma's is left out."""
    run = run_of(family)
    nodes = relp.scores(run.nodes())
    totals = per_mlp(run, relp.scores(run.neurons()))
    if family == "gemma2":
        assert max(abs(total - nodes[f"m{layer}"]) for layer, total in totals.items()) > 1e-3
        return
    for layer, total in totals.items():
        assert total == pytest.approx(nodes[f"m{layer}"], abs=SAME)


def test_the_twin_s_norm_pulls_back_what_autograd_does() -> None:
    from patching.blocks import Norm

    generator = torch.Generator().manual_seed(0)
    x, gradient, weight, bias = torch.randn(4, 3, 8, generator=generator, dtype=torch.float64)
    for centered in (True, False):
        norm = relp._linear_norm(Norm(weight[0], bias[0] if centered else None, 1e-5, centered))
        leaf = x.clone().requires_grad_(True)
        (expected,) = torch.autograd.grad(norm(leaf), leaf, gradient)
        torch.testing.assert_close(norm.pull_back(x, gradient), expected, rtol=0, atol=1e-12)


def test_attention_only_without_norms_is_attribution_patching_and_uniform_is_exact() -> None:
    run = MaskedRun(without_norm(), tiny.task())
    torch.testing.assert_close(relp.scores(run).values, atp.scores(run).values, rtol=0, atol=SAME)
    linear = MaskedRun(without_norm(uniform=True, layers=3), tiny.task())
    for view in (linear, linear.nodes()):
        torch.testing.assert_close(relp.scores(view).values, exact.scores(view).values, rtol=0, atol=SAME)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_any_ablation_and_memory(ablation: str) -> None:
    for level in ("edge", "node", "neuron"):
        whole, small = (
            relp.scores(
                run_of("gemma2", level=level, n=4 if ablation == "resample" else 2, ablation=ablation, memory=memory)
            )
            for memory in (1 << 28, 1)
        )
        torch.testing.assert_close(small.values, whole.values, rtol=0, atol=SAME)
        assert float(whole.importance.max()) > 0


def test_kl_is_refused() -> None:
    with pytest.raises(InvalidOption, match="kl is at its minimum"):
        relp.scores(MaskedRun(tiny.model("gpt2"), tiny.task(), metric="kl"))

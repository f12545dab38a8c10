"""Exact patching: every single edge and node against the model's own code, and what holds of effects in general."""

from __future__ import annotations

import pytest
import torch

from graphs.errors import UnknownEdge, UnknownNode
from graphs.nodes import Edge
from patching import exact, toy
from patching.activation import SiteRun, sweep
from patching.errors import InvalidOption
from patching.lens import LensModel, native_bridge
from patching.masked import MaskedRun
from tests import tiny
from tests.oracle import Oracle, logit_difference, tolerance

THOROUGH = {"gpt2", "mistral", "gemma2"}


def check_edges(family: str, *, every: int) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(prefix=2))
    oracle = Oracle(run.model)
    replacement = oracle.sources(run.task.corrupt)
    clean = oracle.measure(run.task, run.ones().unbind(), replacement=replacement, metric=logit_difference)
    effects = exact.scores(run)
    for number in range(0, run.n_units, every):
        mask = run.ones()
        mask[number] = 0
        ablated = oracle.measure(run.task, mask.unbind(), replacement=replacement, metric=logit_difference)
        expected = ablated - clean
        name = run.units[number]
        assert effects[name] == pytest.approx(float(expected.mean()), abs=tolerance(family)), name
        assert effects.standard_error is not None
        assert float(effects.standard_error[number]) == pytest.approx(
            float(expected.std() / 3**0.5), abs=tolerance(family)
        )


def test_single_edges_are_what_the_oracle_computes(family: str) -> None:
    check_edges(family, every=2 if family in THOROUGH else 7)


@pytest.mark.slow
def test_all_single_edges_are_what_the_oracle_computes(family: str) -> None:
    check_edges(family, every=1)


def test_single_nodes_are_what_the_oracle_computes(family: str) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(prefix=2))
    oracle = Oracle(run.model)
    replacement = oracle.sources(run.task.corrupt)
    clean = oracle.measure(run.task, run.ones().unbind(), replacement=replacement, metric=logit_difference)
    effects = exact.scores(run.nodes())
    for number, node in enumerate(run.graph.sources):
        mask = (run.edge_sources != number).double()
        ablated = oracle.measure(run.task, mask.unbind(), replacement=replacement, metric=logit_difference)
        assert effects[node] == pytest.approx(float((ablated - clean).mean()), abs=tolerance(family)), node


def test_edges_into_the_logits_of_all_nodes_make_the_direct_part() -> None:
    """Without norm and heads' nonlinearity, direct effects add up to what ablating all of them does."""
    model = without_norm()
    run = MaskedRun(model, tiny.task())
    effects = exact.scores(run)
    direct = [number for number, edge in enumerate(run.units) if edge.target.kind == "logits"]
    mask = run.ones()
    mask[direct] = 0
    expected = float((run(mask) - run.clean_metric).mean())
    assert float(effects.values[direct].sum()) == pytest.approx(expected, abs=1e-10)


def without_norm(*, uniform: bool = False, layers: int = 2) -> LensModel:
    """Attention only, nothing normed; with uniform attention it is linear in what each token brings."""
    bridge = native_bridge(
        d_model=8, d_head=4, n_layers=layers, n_ctx=16, n_heads=2, d_vocab=tiny.VOCAB, attn_only=True, act_fn="relu",
        normalization_type=None, dtype=torch.float64,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in bridge.original_model.named_parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if uniform and any(f".{letter}." in name for letter in "qk"):
                parameter.zero_()
    return LensModel.wrap(bridge, name="without norm")


def test_in_a_linear_model_effects_add_up() -> None:
    """Noising equals denoising (P1.3), and a node's effect is the sum over its edges (P1.7)."""
    model, task = without_norm(uniform=True), tiny.task()
    run, swapped = MaskedRun(model, task), MaskedRun(model, task.swapped())
    nodes, edges = exact.scores(run.nodes()), exact.scores(run)
    torch.testing.assert_close(exact.scores(swapped.nodes()).values, -nodes.values, rtol=0, atol=1e-10)
    total = torch.zeros_like(nodes.values).index_add(0, run.edge_sources, edges.values)
    torch.testing.assert_close(total, nodes.values, rtol=0, atol=1e-10)
    assert float(nodes.importance.min()) > 1e-4


def test_an_edge_that_carries_no_change_has_no_effect() -> None:
    """Identical prompts: every effect is zero."""
    task = tiny.task()
    run = MaskedRun(
        tiny.model("gpt2"), type(task)("same", task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    )
    assert float(exact.scores(run).importance.max()) < 1e-11


def test_only_some_units() -> None:
    run = MaskedRun(tiny.model("llama"), tiny.task())
    every = exact.scores(run)
    chosen = ["m0->a1.h2<q>", "a0.h3->a1.kv1<k>", Edge.parse("input->logits")]
    some = exact.scores(run, only=chosen)
    for edge in chosen:
        assert some[edge] == pytest.approx(every[edge], abs=1e-12)
    assert int((some.values != 0).sum()) == 3
    assert some.provenance["options"] == {"only": ["m0->a1.h2<q>", "a0.h3->a1.kv1<k>", "input->logits"]}
    assert not exact.scores(run, only=[]).values.any()


def test_unknown_units_are_refused() -> None:
    run = MaskedRun(tiny.model("llama"), tiny.task())
    with pytest.raises(UnknownEdge, match=r"keys and values are shared by a group of heads; use m0->a1.kv1<k>"):
        exact.scores(run, only=["m0->a1.h2<k>"])
    with pytest.raises(UnknownNode, match=r"node that writes"):
        exact.scores(run.nodes(), only=["a9.h0"])


def test_progress_counts_units() -> None:
    seen: list[tuple[int, int]] = []
    exact.scores(MaskedRun(toy.model(), toy.task(), memory=1), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 9) for done in range(1, 10)]


def test_a_run_by_position_is_refused() -> None:
    with pytest.raises(InvalidOption):
        exact.scores(MaskedRun(toy.model(), toy.task()).positions())


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_neurons_are_what_a_sweep_over_sites_measures(family: str, ablation: str) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(n=2, prefix=2), ablation=ablation).neurons()
    swept = sweep(SiteRun(run.model, run.task, ablation=ablation), "neurons", parts=True)
    found = exact.scores(run)
    torch.testing.assert_close(found.values, swept.mean.flatten(), rtol=0, atol=1e-12)
    some = exact.scores(run, only=["m1.n3", "m0.n0"])
    assert some["m1.n3"] == pytest.approx(found["m1.n3"], abs=1e-12)
    assert some["m0.n0"] == pytest.approx(found["m0.n0"], abs=1e-12)
    assert int((some.values != 0).sum()) == 2
    with pytest.raises(UnknownNode):
        exact.scores(run, only=["m0"])

"""Integrated gradients, conductance and RelP: completeness, the cases where they are AtP, and their rules by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from patching import atp_star, gradients
from patching.activation import SiteRun, sweep
from patching.errors import InvalidOption
from patching.gradients import _gradients
from patching.lens import LensModel
from patching.relp import relevance_model, straight
from patching.sites import Start, forward
from tests import tiny
from tests.oracle import EVERY_LOGIT
from tests.patching.test_activation import kinds_of
from tests.patching.test_exact import without_norm

SAME = 1e-10
PATHS: list[Callable[..., Any]] = [gradients.inputs, gradients.conductance, gradients.activations]


def run_of(family: str, **options: object) -> SiteRun:
    return SiteRun(tiny.model(family), tiny.task(n=3, prefix=1), metric=EVERY_LOGIT, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("rule", gradients.RULES)
def test_rules_integrate_what_they_must(rule: str, steps: int) -> None:
    points = gradients.quadrature(rule, steps)
    assert sum(weight for _, weight in points) == pytest.approx(1)
    assert all(0 <= alpha <= 1 for alpha, _ in points)
    slope = sum(weight * alpha for alpha, weight in points)
    error = {"left": -0.5, "right": 0.5, "midpoint": 0.0, "trapezoid": 0.0}[rule] / steps
    assert slope == pytest.approx(0.5 + error)


@pytest.mark.parametrize("method", PATHS)
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_one_step_to_the_left_is_atp(family: str, method: Callable[..., Any]) -> None:
    run = run_of(family)
    for kind in kinds_of(run.model):
        plain = atp_star.scores(run, kind, positions=True, qk_fix=False, grad_drop=False)
        found = method(run, kind, steps=1, rule="left", positions=True)
        torch.testing.assert_close(found.values, plain.values, rtol=0, atol=SAME)
        assert (found.axes, found.labels) == (plain.axes, plain.labels)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "llama"])
def test_conductance_is_complete_over_every_cut(family: str) -> None:
    """The error of the trapezoid rule falls with the square of the steps."""
    run = run_of(family)
    whole = run.source_metric - run.base_metric
    for kind in set(kinds_of(run.model)) & {"resid_pre", "resid_mid", "resid_post"}:
        coarse, fine = (gradients.conductance(run, kind, steps=steps).values - whole[:, None] for steps in (32, 128))
        assert float(fine.abs().max()) < 0.01 * float(whole.abs().max())
        assert float(fine.abs().max()) < max(0.2 * float(coarse.abs().max()), 1e-6)


def test_input_gradients_are_not_complete() -> None:
    run = run_of("gpt2")
    whole = run.source_metric - run.base_metric
    found = gradients.inputs(run, "resid_post", steps=128, rule="midpoint").values
    assert float((found[:, 0] - whole).abs().max()) > 0.05 * float(whole.abs().max())
    first = gradients.inputs(run, "resid_pre", steps=128, rule="midpoint").values[:, 0]  # but at the input they are
    assert float((first - whole).abs().max()) < 0.01 * float(whole.abs().max())


@pytest.mark.parametrize("kind", ["z", "q", "k", "neurons", "resid_pre", "mlp_out"])
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_activations_add_up_to_patching_the_layer(family: str, kind: str) -> None:
    run = run_of(family)
    joint = sweep(run, kind, parts=False).values
    errors = [
        float((gradients.activations(run, kind, steps=steps, parts=False).values - joint).abs().max())
        for steps in (16, 64)
    ]
    assert errors[1] < 0.02 * float(joint.abs().max())
    assert errors[1] < max(0.3 * errors[0], 1e-9)


@pytest.mark.parametrize("method", [*PATHS, gradients.relp])
def test_in_a_linear_model_all_are_exact(method: Callable[..., Any]) -> None:
    run = SiteRun(without_norm(uniform=True, layers=3), tiny.task(n=3))
    for kind in ("z", "v", "resid_pre"):
        exact = sweep(run, kind, positions=True)
        torch.testing.assert_close(method(run, kind, positions=True).values, exact.values, rtol=0, atol=SAME)


def test_any_ablation_for_activations_but_only_runs_for_paths_of_inputs() -> None:
    run = run_of("gpt2", ablation="mean")
    assert gradients.activations(run, "z").mean.shape == (2, 4)
    for method in (gradients.inputs, gradients.conductance):
        with pytest.raises(InvalidOption, match="no path of inputs to mean"):
            method(run, "z")


# --- RelP -----------------------------------------------------------------------------------------------------------


def test_relevance_changes_no_value(family: str) -> None:
    run = run_of(family)
    part, twin = run.parts[0], relevance_model(run.model)
    final = forward(twin, part.contexts, Start(0, 0, 0, part.embedded), lambda _k, _l, v, _n: v, answer=part.answer)
    torch.testing.assert_close(twin.readout.logits(final), run.model.readout.logits(part.record(part.embedded)[1]))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3"])
def test_relevance_is_conserved_where_there_are_no_biases(family: str) -> None:
    """With every rule on, a model of products alone is homogeneous: Σ x · g is the logit, at any depth."""
    run = SiteRun(tiny.model(family), tiny.task(n=3, prefix=1))
    part, twin = run.parts[0], relevance_model(run.model)
    if run.model.readout.softcap is not None:
        pytest.skip("a soft cap on the logits is no product")
    for kind in ("resid_pre", "resid_mid", "resid_post"):
        values, slopes = _gradients(part, kind, part.embedded, model=twin, constant_patterns=True)
        for value, slope in zip(values, slopes, strict=True):
            torch.testing.assert_close((value * slope).sum((-1, -2)), run.base_metric, rtol=0, atol=1e-8)


def test_the_identity_rule_by_hand() -> None:
    x = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    y = straight(torch.nn.functional.silu, x)
    torch.testing.assert_close(y, torch.nn.functional.silu(x))
    (slope,) = torch.autograd.grad(y.sum(), x)
    expected = torch.sigmoid(x)  # silu(x) / x, also at 0
    torch.testing.assert_close(slope, expected.detach(), rtol=0, atol=1e-6)


def test_relevance_differs_from_atp_and_is_recorded() -> None:
    run = run_of("gpt2")
    plain = atp_star.scores(run, "mlp_out", qk_fix=False, grad_drop=False)
    found = gradients.relp(run, "mlp_out")
    assert float((found.values - plain.values).abs().max()) > 1e-3
    assert found.provenance["method"] == "relp"
    held = gradients.relp(run, "q", constant_patterns=True)
    assert bool((held.values == 0).all())  # queries act through the pattern alone


# --- the rest -------------------------------------------------------------------------------------------------------


def test_batches_and_progress() -> None:
    whole, small = run_of("llama"), run_of("llama", memory=1)
    for method in [*PATHS, gradients.relp]:
        seen: list[tuple[int, int]] = []
        one = method(whole, "z")
        other = method(small, "z", progress=lambda done, total, seen=seen: seen.append((done, total)))
        torch.testing.assert_close(one.values, other.values, rtol=0, atol=SAME)
        assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (gradients.inputs, {"rule": "simpson"}, "rule out of left, right, midpoint, trapezoid"),
        (gradients.inputs, {"steps": 0}, "at least one step"),
        (gradients.conductance, {"rule": "midpoint"}, "rule out of trapezoid, left, right"),
        (gradients.activations, {"positions": []}, "at least one position"),
    ],
)
def test_bad_options(method: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        method(run_of("gpt2"), "z", **options)


def test_a_dead_neuron_gets_nothing_and_names_do_not_matter() -> None:
    """Conductance by neuron: 0 where the output weights are 0, and permuted when neurons are (P5.3)."""
    hugging_face = tiny.hugging_face("gpt2")
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hugging_face.transformer.h[0].mlp.c_proj.weight[7] = 0.0
        plain = LensModel.wrap(copy.deepcopy(hugging_face), name="plain")
        mlp = hugging_face.transformer.h[0].mlp
        mlp.c_fc.weight.copy_(mlp.c_fc.weight[:, order].clone())
        mlp.c_fc.bias.copy_(mlp.c_fc.bias[order].clone())
        mlp.c_proj.weight.copy_(mlp.c_proj.weight[order].clone())
        permuted = LensModel.wrap(hugging_face, name="permuted")
    one, other = (
        gradients.conductance(SiteRun(model, tiny.task(n=2)), "neurons", parts=True).values[:, 0]
        for model in (plain, permuted)
    )
    assert bool((one[:, 7] == 0).all())
    assert int((one != 0).all(0).sum()) == 127
    torch.testing.assert_close(other, one[:, order], rtol=0, atol=SAME)

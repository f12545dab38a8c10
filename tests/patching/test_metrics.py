"""Metrics against torch's own functions and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patching import metrics, toy
from patching.activation import SiteRun
from patching.blocks import Readout, identity_norm
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.metrics import METRICS, Metric, Prediction

LOGITS = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.0, 0.0, math.log(2), 0.0]], dtype=torch.float64)


def prediction(
    logits: Tensor = LOGITS, *, answers: list[list[int]], wrong: list[list[int]], clean: Tensor | None = None
) -> Prediction:
    """Logits that are the residual itself."""
    readout = Readout(identity_norm, torch.eye(logits.shape[-1], dtype=logits.dtype), None, None)
    clean = None if clean is None else torch.log_softmax(clean, -1)
    return Prediction(logits, readout, torch.tensor(answers), torch.tensor(wrong), clean)


def test_logit_difference_by_hand() -> None:
    value = metrics.get("logit_difference")(prediction(answers=[[1], [2]], wrong=[[0, 3], [0, 1]]))
    assert value.tolist() == pytest.approx([2.0 - 0.0, math.log(2)])


def test_padded_answers_do_not_count() -> None:
    one = prediction(answers=[[1], [2]], wrong=[[0], [3]])
    padded = prediction(answers=[[1, -1], [2, -1]], wrong=[[-1, 0], [3, -1]])
    for metric in METRICS.values():
        if not metric.needs_clean:
            assert torch.equal(metric(one), metric(padded)), metric.name


def test_no_wrong_answers_count_as_zero() -> None:
    nothing = prediction(answers=[[1], [2]], wrong=[[-1], [-1]])
    assert metrics.get("logit_difference")(nothing).tolist() == pytest.approx([2.0, math.log(2)])
    assert metrics.get("probability_difference")(nothing).tolist() == metrics.get("probability")(nothing).tolist()


def test_probability_of_the_second_prompt_by_hand() -> None:
    """Logits 0, 0, log 2, 0 are probabilities 1/5, 1/5, 2/5, 1/5."""
    found = prediction(answers=[[1, 0], [2, 0]], wrong=[[3], [1]])
    assert float(metrics.get("probability")(found)[1]) == pytest.approx(3 / 5)
    assert float(metrics.get("log_probability")(found)[1]) == pytest.approx(math.log(3 / 5))
    assert float(metrics.get("loss")(found)[1]) == pytest.approx(-math.log(3 / 5))
    assert float(metrics.get("probability_difference")(found)[1]) == pytest.approx(2 / 5)


def test_loss_is_cross_entropy() -> None:
    found = prediction(answers=[[1], [2]], wrong=[[0], [0]])
    expected = F.cross_entropy(LOGITS, torch.tensor([1, 2]), reduction="none")
    torch.testing.assert_close(metrics.get("loss")(found), expected)


def test_kl_is_torch_s() -> None:
    other = LOGITS.flip(0) + 0.3
    found = metrics.get("kl")(prediction(other, answers=[[1], [2]], wrong=[[0], [0]], clean=LOGITS))
    logs = torch.log_softmax(other, -1), torch.log_softmax(LOGITS, -1)
    expected = F.kl_div(*logs, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(found, expected)
    assert bool((found > 0).all())


def test_kl_of_the_clean_run_is_zero_with_zero_gradient() -> None:
    logits = LOGITS.clone().requires_grad_(True)
    value = metrics.get("kl")(prediction(logits, answers=[[1], [2]], wrong=[[0], [0]], clean=LOGITS))
    assert value.tolist() == pytest.approx([0.0, 0.0], abs=1e-15)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_take_samples_and_are_double(name: str) -> None:
    single = LOGITS.float().expand(3, 2, 4)
    value = metrics.get(name)(prediction(single, answers=[[1], [2]], wrong=[[0], [0]], clean=LOGITS))
    assert value.shape == (3, 2)
    assert value.dtype == torch.float64


@pytest.mark.parametrize("name", METRICS)
def test_what_is_declared_of_a_metric_holds(name: str) -> None:
    """Whether high is good, and whether the gradient at the clean run vanishes."""
    metric = metrics.get(name)
    assert metric.name == name
    run = MaskedRun(toy.model(), toy.task(), metric=name)
    slope = run.gradient(run.ones())
    assert metric.zero_gradient_when_clean == bool((slope.abs() < 1e-12).all())
    better, worse = (
        metric(prediction(LOGITS[1:], answers=[[answer]], wrong=[[3 - answer]], clean=clean))
        for answer, clean in ((2, LOGITS[1:]), (1, LOGITS[:1]))
    )
    assert metric.higher_is_better == bool(better > worse)
    assert float(metric.damage(worse, better)) > 0


@pytest.mark.parametrize("name", ["probability", "kl"])
def test_bounds_hold_under_any_mask(name: str) -> None:
    """No ablation takes more probability than there is (P1.5), and no divergence is negative."""
    run = MaskedRun(toy.model(), toy.task(), metric=name)
    generator = torch.Generator().manual_seed(0)
    values = run(torch.rand(50, run.n_units, generator=generator, dtype=torch.float64))
    assert bool((values >= -1e-12).all())


def test_get_takes_a_metric_or_its_name() -> None:
    assert metrics.get(METRICS["kl"]) is metrics.get("kl")
    with pytest.raises(InvalidOption, match=r"logit_difference, .*kl; got 'KL'"):
        metrics.get("KL")


@pytest.mark.parametrize("run", [MaskedRun, SiteRun])
def test_a_metric_must_give_one_value_per_prompt(run: type) -> None:
    pooled = Metric("pooled", True, lambda prediction: prediction.logit_difference().mean(-1))
    with pytest.raises(InvalidOption, match=r"'pooled' to give one value per prompt, of shape \[4\] here; got \[\]"):
        run(toy.model(), toy.task(), metric=pooled)


def test_the_margin_leaves_every_answer_out_of_the_others() -> None:
    """By hand: logits are the residual itself."""
    readout = Readout(lambda x: x, torch.eye(5, dtype=torch.float64), None, None)
    residual = torch.tensor([[1.0, 4.0, 2.0, 3.0, 0.0], [5.0, 1.0, 2.0, 4.5, 0.0]], dtype=torch.float64)
    answers = torch.tensor([[2, 1], [3, -1]])
    prediction = Prediction(residual, readout, answers, torch.tensor([[0], [0]]))
    assert METRICS["margin"](prediction).tolist() == [1.0, -0.5]
    assert METRICS["margin"].higher_is_better

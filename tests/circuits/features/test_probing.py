"""Probes against scikit-learn, the gradient of their own loss, and planted features."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.features.probing import Probe, f1, fit, k_sparse, mean_difference
from patching.errors import InvalidOption, NotFinite


def drawn(rows: int, width: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    labels = x[:, 0] + 0.7 * torch.randn(rows, generator=generator) > 0.4
    labels[0], labels[1] = True, False
    return x, labels


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 40), st.integers(1, 60), st.floats(1e-3, 1e2), st.booleans(), st.integers(0, 9999))
def test_the_gradient_is_zero(rows, width, penalty, balanced, seed):
    x, labels = drawn(rows, width, seed)
    probe = fit(x, labels, penalty=penalty, balanced=balanced)
    weight, bias = probe.weight.clone().requires_grad_(True), torch.tensor(probe.bias, requires_grad=True)
    sides = labels.double() * 2 - 1
    shares = torch.ones(rows, dtype=torch.float64)
    if balanced:
        shares = torch.where(labels, rows / 2 / labels.sum(), rows / 2 / (~labels).sum())
    loss = (shares * torch.log1p((-sides * (x @ weight + bias)).exp())).sum() + penalty / 2 * weight.pow(2).sum()
    slopes = torch.autograd.grad(loss, (weight, bias))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-6 * max(1.0, penalty)


@pytest.mark.parametrize(("rows", "width"), [(200, 10), (60, 150)])
@pytest.mark.parametrize("balanced", [False, True])
def test_scikit_learn_agrees(rows, width, balanced):
    linear_model = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    x, labels = drawn(rows, width)
    probe = fit(x, labels, penalty=0.5, balanced=balanced)
    theirs = linear_model.LogisticRegression(
        C=2.0, tol=1e-10, max_iter=10_000, class_weight="balanced" if balanced else None
    ).fit(x.numpy(), labels.numpy())
    assert probe.weight.numpy() == pytest.approx(theirs.coef_[0], abs=1e-5)
    assert probe.bias == pytest.approx(theirs.intercept_[0], abs=1e-5)
    new, truth = drawn(100, width, seed=5)
    assert (probe.predict(new).numpy() == theirs.predict(new.numpy())).all()
    assert probe.accuracy(new, truth) == pytest.approx(theirs.score(new.numpy(), truth.numpy()))
    said = probe.predict(new).numpy()
    assert probe.balanced_accuracy(new, truth) == pytest.approx(metrics.balanced_accuracy_score(truth.numpy(), said))
    assert f1(probe.predict(new), truth) == pytest.approx(metrics.f1_score(truth.numpy(), said))


def test_rotating_the_activations_rotates_the_probe():
    x, labels = drawn(50, 8)
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    first, second = fit(x, labels), fit(x @ turn, labels)
    assert torch.allclose(first.weight @ turn, second.weight, atol=1e-8)


def test_large_activations_and_a_weak_penalty_settle():
    x, labels = drawn(120, 30)
    probe = fit(1e4 * x, x[:, 3] > 0, penalty=1e-6)
    assert probe.accuracy(1e4 * x, x[:, 3] > 0) == 1.0
    assert fit(torch.zeros(4, 2), torch.tensor([True, True, True, False])).bias == pytest.approx(
        torch.tensor(3.0).log()
    )
    assert labels.any()


def test_logits_carry_gradients():
    probe = Probe(torch.tensor([2.0, -1.0], dtype=torch.float64), 1.0)
    x = torch.zeros(3, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(probe.logits(x).sum(), x)
    assert slope.tolist() == [[2.0, -1.0]] * 3


def test_bad_probes():
    x, labels = drawn(10, 3)
    with pytest.raises(InvalidOption, match="both classes"):
        fit(x, torch.ones(10, dtype=torch.bool))
    with pytest.raises(InvalidOption, match="penalty above 0"):
        fit(x, labels, penalty=0.0)
    with pytest.raises(InvalidOption, match="one label per example"):
        fit(x, labels[:4])
    with pytest.raises(NotFinite):
        fit(x / 0, labels)


def planted(rows: int, seed: int):
    """Feature 3 is the label, 7 agrees four times in five, the others are noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(rows, generator=generator) < 0.5
    features = 0.3 * torch.rand(rows, 12, generator=generator)
    features[:, 3] += 2.0 * labels
    agree = torch.rand(rows, generator=generator) < 0.8
    features[:, 7] += 1.0 * (labels == agree)
    return features, labels


def test_k_sparse_finds_what_was_planted():
    train, labels = planted(400, 0)
    test, truth = planted(300, 1)
    found = k_sparse(train, labels, test, truth, k=(1, 2, 5))
    assert found.latents[:2].tolist() == [3, 7]
    assert found.accuracy[0] == 1.0
    assert found.f1[0] == 1.0
    assert found.dense == 1.0
    assert found.majority == pytest.approx(max(float(truth.double().mean()), float((~truth).double().mean())))
    assert found.split() == (3,)
    without = [column for column in range(12) if column != 3]
    second = k_sparse(train[:, without], labels, test[:, without], truth, k=(1,))
    agreeing = float(((test[:, 7] > 0.65) == truth).double().mean())
    assert second.accuracy[0] == pytest.approx(agreeing)  # no probe on it can know more than it does
    assert "all" in str(found)
    assert len(found.to_frame()) == 3


def test_a_label_split_over_two_features_needs_both():
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(0, 4, (400,), generator=generator)  # 0, 1: the label by one of two features; 2, 3: without
    labels = which < 2
    features = torch.zeros(400, 5)
    features[:, 1], features[:, 4] = 2.2 * (which == 0), 2.0 * (which == 1)
    found = k_sparse(features, labels, features, labels, k=(1, 2, 3))
    assert found.accuracy[0] == pytest.approx(1 - float((which == 1).double().mean()))
    assert found.accuracy[1] == 1.0
    assert set(found.split()) == {1, 4}


def test_mean_differences_and_bad_k():
    features, labels = planted(50, 2)
    expected = features[labels].double().mean(0) - features[~labels].double().mean(0)
    assert torch.allclose(mean_difference(features, labels), expected)
    for k in ((), (0,), (2, 1), (13,)):
        with pytest.raises(InvalidOption, match="ascending order"):
            k_sparse(features, labels, features, labels, k=k)
    assert f1(torch.zeros(3).bool(), torch.zeros(3).bool()) == 0.0

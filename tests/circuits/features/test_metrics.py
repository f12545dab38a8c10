"""Reconstruction statistics against numpy formulas, by-hand numbers, and batches cut differently."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.features import create
from circuits.features.metrics import (
    Reconstruction,
    density_histogram,
    mcc,
    mmcs,
    report,
    to_frame,
)
from patching.errors import InvalidOption, NotFinite

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(200, 6, generator=GENERATOR) + 3.0
GUESS = 0.7 * X + 0.3 * torch.randn(200, 6, generator=GENERATOR)
FEATURES = torch.randn(200, 9, generator=GENERATOR).relu() * (torch.arange(9) > 1)  # two are dead


def seen(*cuts: int, x=X, guess=GUESS, features=FEATURES) -> Reconstruction:
    found = Reconstruction(features.shape[1])
    edges = [0, *cuts, len(x)]
    for low, high in itertools.pairwise(edges):
        found.update(x[low:high], guess[low:high], features[low:high])
    return found


def test_formulas_in_numpy():
    x, guess, features = (value.double().numpy() for value in (X, GUESS, FEATURES))
    found = seen(50, 51, 130)
    squared = ((x - guess) ** 2).sum(-1).mean()
    variance = (x**2).sum(-1).mean() - (x.mean(0) ** 2).sum()
    lengths, guessed = np.linalg.norm(x, axis=-1), np.linalg.norm(guess, axis=-1)
    assert found.tokens == 200
    assert found.explained_variance == pytest.approx(1 - squared / variance, abs=1e-12)
    assert found.mean_squared_error == pytest.approx(squared, rel=1e-12)
    assert found.relative_error == pytest.approx(squared / (x**2).sum(-1).mean(), rel=1e-12)
    assert found.l2_ratio == pytest.approx((guessed / lengths).mean(), rel=1e-12)
    assert found.relative_bias == pytest.approx((guess**2).sum() / (x * guess).sum(), rel=1e-12)
    assert found.cosine == pytest.approx(((x * guess).sum(-1) / lengths / guessed).mean(), rel=1e-12)
    assert found.l0 == pytest.approx((features != 0).sum(-1).mean())
    assert found.density.numpy() == pytest.approx((features != 0).mean(0))
    assert found.dead == pytest.approx(2 / 9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=6).map(sorted))
def test_batches_do_not_matter(cuts):
    one, many = seen(), seen(*cuts)
    for name in ("explained_variance", "relative_error", "l2_ratio", "relative_bias", "cosine", "l0"):
        assert getattr(many, name) == pytest.approx(getattr(one, name), rel=1e-12)
    assert torch.equal(one.fired, many.fired)


def test_a_large_mean_costs_no_digits():
    centred = X.double() - X.double().mean(0)
    moved, guess = centred + 1e6, (0.5 * centred) + 1e6
    assert seen(37, x=moved, guess=guess).explained_variance == pytest.approx(0.75, abs=1e-9)


def test_perfect_mean_and_shrunk():
    assert seen(guess=X).explained_variance == 1.0
    mean = X.double().mean(0).expand(200, 6)
    assert seen(7, x=X.double(), guess=mean).explained_variance == pytest.approx(0.0, abs=1e-12)
    shrunk = seen(x=X.double(), guess=0.8 * X.double())
    assert shrunk.l2_ratio == pytest.approx(0.8)
    assert shrunk.relative_bias == pytest.approx(0.8)  # .64 / .8
    assert shrunk.cosine == pytest.approx(1.0)


def test_a_constant_error_is_not_forgiven():
    """Where only variances are compared, a constant error goes unseen; here it counts."""
    x = X.double() - X.double().mean(0)
    error = torch.full_like(x, 2.0)
    variance = float(x.pow(2).sum(-1).mean())
    assert seen(x=x, guess=x + error).explained_variance == pytest.approx(1 - 24 / variance)


def test_nothing_to_explain_is_nan():
    same = torch.ones(5, 6)
    found = seen(x=same, guess=same, features=FEATURES[:5])
    assert math.isnan(found.explained_variance)
    zero = seen(x=0 * same, guess=same, features=FEATURES[:5])
    assert math.isnan(zero.l2_ratio)
    assert math.isnan(zero.cosine)


def test_bad_values_and_shapes():
    found = Reconstruction(3)
    with pytest.raises(InvalidOption, match="3 features for each token"):
        found.update(X, GUESS, FEATURES)
    bad = X.clone()
    bad[0, 0] = torch.nan
    with pytest.raises(NotFinite, match="finite activations"):
        Reconstruction(9).update(bad, GUESS, FEATURES)


def test_histogram_by_hand():
    density = torch.tensor([0.0, 1e-3, 0.005, 0.01, 0.0999, 1.0], dtype=torch.float64)
    bins = {round(math.log10(low)): count for low, _, count in density_histogram(density)}
    assert bins[-3] == 2
    assert bins[-2] == 2
    assert bins[-1] == 1
    assert sum(bins.values()) == 5


def test_matches_with_planted_features_by_hand():
    planted = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    learned = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, -1.0]])
    assert mmcs(learned, planted) == pytest.approx(0.5)  # 1 and max(0, 0, -1) = 0
    assert mcc(learned, planted) == pytest.approx(1.0)  # the sign does not count
    twins = torch.tensor([[0.8, 0.6], [0.8, 0.6]])  # one direction for both, twice
    assert mmcs(twins, planted) == pytest.approx(0.7)
    assert mcc(twins, planted) == pytest.approx(0.7)
    single = torch.tensor([[1.0, 1.0]])
    assert mmcs(single, planted) == pytest.approx(0.5**0.5)  # counts for both
    assert mcc(single, planted) == pytest.approx(0.5**0.5 / 2)  # has only one partner


def test_planted_recovery_is_permutation_and_scale_invariant():
    planted = torch.nn.functional.normalize(torch.randn(12, 8, generator=GENERATOR), dim=-1)
    order = torch.randperm(12, generator=GENERATOR)
    learned = planted[order] * torch.rand(12, 1, generator=GENERATOR).add(0.1)
    assert mmcs(learned, planted) == pytest.approx(1.0)
    assert mcc(learned, planted) == pytest.approx(1.0)
    random = torch.randn(12, 8, generator=GENERATOR)
    assert mmcs(random, planted) < 0.85  # the control


def test_report_of_identity_and_of_a_hand_made_dictionary():
    identity = report(create("identity", d_in=6, n_features=6), X)
    assert (identity.explained_variance, identity.l0, identity.dead) == (1.0, 6.0, 0.0)
    dictionary = create("relu", d_in=2, n_features=3)
    with torch.no_grad():
        dictionary.W_enc.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        dictionary.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5], [1.0, 1.0]]))
    x = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    found = report(dictionary, x, planted=torch.eye(2), batch=3)
    # errors: 0, 1, .25, 0; mean of x (.75, .75); E|x|² = 10 / 4, |E x|² = 1.125
    assert found.l0 == 1.0
    assert found.dead == pytest.approx(1 / 3)
    assert found.explained_variance == pytest.approx(1 - (1.25 / 4) / (2.5 - 1.125))
    assert (found.mmcs, found.mcc) == (1.0, 1.0)
    text = str(found)
    assert "explained variance" in text
    assert "MMCS" in text
    assert "33.3%" in text
    assert to_frame({"mine": found})["l0"].tolist() == [1.0]


def test_report_reads_streams_and_pairs():
    transcoder = create("transcoder", d_in=6, n_features=4, d_out=2)
    target = X[:, :2]
    whole = report(transcoder, X, targets=target)
    streamed = report(transcoder, ((X[low : low + 50], target[low : low + 50]) for low in range(0, 200, 50)))
    assert whole.explained_variance == pytest.approx(streamed.explained_variance, rel=1e-9)
    with pytest.raises(InvalidOption, match="expected targets"):
        report(transcoder, X)
    with pytest.raises(InvalidOption, match="at least one token"):
        report(transcoder, [])
    with pytest.raises(InvalidOption, match="a target for each"):
        report(transcoder, X, targets=target[:3])

"""The planted truth is what the samples say it is."""

from __future__ import annotations

import math

import pytest
import torch

from circuits.features import toys
from patching.errors import InvalidOption


def test_samples_are_sums_of_features():
    toy = toys.superposition(8, 16, 0.05, seed=3)
    codes = toy.codes(500, seed=1)
    by_hand = torch.zeros(500, 8)
    for row, feature in codes.nonzero().tolist():
        by_hand[row] += codes[row, feature] * toy.features[feature]
    assert torch.allclose(toy.sample(500, seed=1), by_hand, atol=1e-6)
    assert torch.allclose(toy.features.norm(dim=-1), torch.ones(16))


def test_features_come_as_often_and_as_strongly_as_said():
    toy, n = toys.superposition(8, 16, 0.05, spread=0.25), 40_000
    codes = toy.codes(n)
    on = codes > 0
    deviation = math.sqrt(0.05 * 0.95 / n)
    assert float((on.double().mean(0) - 0.05).abs().max()) < 4.5 * deviation
    assert float(on.double().sum(-1).mean()) == pytest.approx(toy.true_l0, abs=0.03) == pytest.approx(0.8, abs=0.03)
    sizes = codes[on]
    assert 0.75 <= float(sizes.min()) < 0.76 < 1.24 < float(sizes.max()) <= 1.25
    assert float(sizes.mean()) == pytest.approx(1.0, abs=0.01)


def test_a_child_never_comes_without_its_parent():
    toy, n = toys.absorption(12, 4, 0.2, children=2, given_parent=0.5), 20_000
    assert toy.parents == (-1, 0, 0, -1, 3, 3, -1, 6, 6, -1, 9, 9)
    on = toy.codes(n) > 0
    for child, parent in enumerate(toy.parents):
        rate = float(on[:, child].double().mean())
        assert rate == pytest.approx(0.2 if parent < 0 else 0.1, abs=4.5 * math.sqrt(0.25 / n))
        if parent >= 0:
            assert not bool((on[:, child] & ~on[:, parent]).any())
    assert toy.true_l0 == pytest.approx(4 * (0.2 + 2 * 0.1))
    assert torch.allclose(toy.features @ toy.features.T, torch.eye(12), atol=1e-6), "orthogonal where it can be"


def test_more_children_than_dimensions_are_random_directions():
    toy = toys.absorption(4, 4, 0.2)
    assert torch.allclose(toy.features.norm(dim=-1), torch.ones(8))


def test_the_control_keeps_every_coordinate_and_loses_the_features():
    toy, n = toys.superposition(8, 12, 0.1, seed=1), 30_000
    real, control = toy.sample(n), toy.scrambled().sample(n)
    for column in range(8):
        for share in (0.05, 0.5, 0.95):
            expected = float(real[:, column].quantile(share))
            assert float(control[:, column].quantile(share)) == pytest.approx(expected, abs=0.05)
    covariance = torch.cov(control.T) - torch.diag(torch.cov(control.T).diag())
    assert float(covariance.abs().max()) < 0.01
    assert float((torch.cov(real.T) - torch.diag(torch.cov(real.T).diag())).abs().max()) > 0.03


def test_noise_has_its_size():
    toy = toys.superposition(8, 16, 0.0, noise=0.3)
    assert float(toy.sample(20_000).std()) == pytest.approx(0.3, rel=0.02)


def test_a_seed_gives_the_same_samples_and_another_one_others():
    toy = toys.superposition(8, 16, 0.1, seed=2)
    assert torch.equal(toy.sample(20, seed=1), toys.superposition(8, 16, 0.1, seed=2).sample(20, seed=1))
    assert not torch.equal(toy.sample(20, seed=1), toy.sample(20, seed=2))
    assert not torch.equal(toy.features, toys.superposition(8, 16, 0.1, seed=3).features)


def test_a_stream_can_be_entered_anywhere():
    batches = toys.superposition(8, 16, 0.1).batches(4, seed=5)
    first = [batch for _, batch in zip(range(6), batches, strict=False)]
    later = [batch for _, batch in zip(range(3), batches.from_step(3), strict=False)]
    assert all(torch.equal(one, other) for one, other in zip(first[3:], later, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((0, 4, 0.1), {}, "d_in"),
        ((4, True, 0.1), {}, "n_features"),
        ((4, 4, 1.5), {}, "probability"),
        ((4, 4, 0.1), {"spread": 1.0}, "spread"),
        ((4, 4, 0.1), {"noise": -1.0}, "noise"),
        ((4, 4, math.nan), {}, "probability"),
    ],
)
def test_bad_toys_are_refused(arguments, options, said):
    with pytest.raises(InvalidOption, match=said):
        toys.superposition(*arguments, **options)


def test_bad_samples_are_refused():
    toy = toys.superposition(4, 4, 0.1)
    with pytest.raises(InvalidOption, match="n to be"):
        toy.sample(0)
    with pytest.raises(InvalidOption, match="batch"):
        toy.batches(-1)
    with pytest.raises(InvalidOption, match="children"):
        toys.absorption(4, 2, 0.1, children=0)

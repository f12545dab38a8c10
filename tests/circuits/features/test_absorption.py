"""Absorption: planted by hand, absent from the control, and against each example's definition in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from circuits.features import toys
from circuits.features.absorption import absorption, of_concept
from circuits.features.concept_erasure import Pooled
from patching.errors import InvalidOption


def family(rows: int, *, absorbed: bool, seed: int = 0) -> tuple[Pooled, torch.Tensor, torch.Tensor]:
    """A parent (feature 0) and a child (1) that implies it, and an unrelated feature (2), with two dictionaries.

    The faithful one has one direction for each. The absorbing one writes parent + child by the child's feature and
    leaves the parent's off wherever the child is on.
    """
    toy = toys.absorption(8, 2, 0.5, given_parent=0.4, spread=0.0, seed=seed)
    codes = toy.codes(rows, seed=seed).double()
    directions = toy.features.double()
    x = codes @ directions
    if absorbed:
        rows_of, features = directions.clone(), codes.clone()
        rows_of[1] = directions[0] + directions[1]
        features[:, 0] *= codes[:, 1] == 0
        assert torch.allclose(features @ rows_of, x)  # the same activations
        return Pooled(x, features, rows_of), codes, directions
    return Pooled(x, codes, directions), codes, directions


def test_all_of_the_childs_examples_are_absorbed():
    data, codes, directions = family(500, absorbed=True)
    parent = codes[:, 0] > 0
    found = absorption(data, parent, direction=directions[0], main=[0])
    child = (codes[:, 1] > 0)[parent]
    assert torch.equal(found.full, child)
    assert found.full_rate == pytest.approx(float(child.double().mean()))
    assert torch.equal(found.fraction, child.double())
    assert set(found.absorber[child].tolist()) == {1}
    assert found.examples.tolist() == parent.nonzero().flatten().tolist()
    assert "main features f0" in str(found)


def test_a_faithful_dictionary_absorbs_nothing():
    data, codes, directions = family(500, absorbed=False)
    found = absorption(data, codes[:, 0] > 0, direction=directions[0], main=[0])
    assert found.full_rate == 0.0
    assert found.mean_fraction == 0.0


@pytest.mark.parametrize("absorbed", [True, False])
def test_probes_find_the_concept_by_themselves(absorbed):
    """One feature is found; the parent's alone has an F1 of about 3/4 in the absorbing dictionary, 1 in the other."""
    train, codes, _ = family(600, absorbed=absorbed)
    test, others, _ = family(400, absorbed=absorbed)
    found = of_concept(train, codes[:, 0] > 0, test, others[:, 0] > 0, most=2, threshold=0.6)
    assert found.main == (0,)
    children = float((others[others[:, 0] > 0][:, 1] > 0).double().mean())
    assert found.full_rate == pytest.approx(children if absorbed else 0.0)
    assert of_concept(train, codes[:, 0] > 0, test, others[:, 0] > 0, most=2).main == ((0, 1) if absorbed else (0,))


def test_split_main_features_are_not_absorption():
    """With both features named as the concept's own, nothing is absorbed: the concept is merely split."""
    data, codes, directions = family(300, absorbed=True)
    found = absorption(data, codes[:, 0] > 0, direction=directions[0], main=[0, 1])
    assert found.full_rate == 0.0
    assert found.mean_fraction == 0.0


def by_definition(x, features, rows, direction, main, *, share=0.4):
    """One example, in plain Python, as the papers say it."""
    unit = [float(value) for value in direction / direction.norm()]
    dot = [sum(a * b for a, b in zip(row.tolist(), unit, strict=True)) for row in rows]
    cosines = [one / float(row.norm()) for one, row in zip(dot, rows, strict=True)]
    parts = [float(f) * one for f, one in zip(features, dot, strict=True)]
    whole = sum(a * b for a, b in zip(x.tolist(), unit, strict=True))
    top = max(range(len(parts)), key=lambda i: parts[i])
    silent = all(abs(float(features[i])) < 1e-8 for i in main)
    full = silent and whole >= 0 and cosines[top] >= 0.025 and parts[top] >= share * whole and parts[top] > 0
    own = sum(parts[i] for i in main)
    others = sorted(
        (parts[i] for i in range(len(parts)) if i not in main and cosines[i] >= 0.1 and parts[i] > 0), reverse=True
    )
    given = sum(others[:3])
    if own >= whole or given < share * whole:
        return full, 0.0
    if own <= 0:
        return full, 1.0
    taken = min(given, whole - own)
    return full, min(1.0, max(0.0, taken / (taken + own)))


@pytest.mark.parametrize("seed", range(4))
def test_random_dictionaries_follow_the_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(9, 5, generator=generator, dtype=torch.float64) + 0.4
    features = torch.randn(60, 9, generator=generator, dtype=torch.float64).relu()
    features[:20, :2] = 0
    x = features @ rows + 0.3 * torch.randn(60, 5, generator=generator, dtype=torch.float64)
    direction = torch.randn(5, generator=generator, dtype=torch.float64) + 0.5
    found = absorption(Pooled(x, features, rows), torch.ones(60).bool(), direction=direction, main=[0, 1])
    expected = [by_definition(x[i], features[i], rows, direction, [0, 1]) for i in range(60)]
    assert found.full.tolist() == [one[0] for one in expected]
    assert found.fraction.tolist() == pytest.approx([one[1] for one in expected], abs=1e-12)


def test_only_examples_that_the_probe_gets_right_count():
    data, codes, directions = family(100, absorbed=True)
    parent = codes[:, 0] > 0
    none = absorption(data, parent, direction=directions[0], main=[0], right=torch.zeros(100).bool())
    assert len(none.full) == 0
    assert math.isnan(none.full_rate)
    assert math.isnan(none.mean_fraction)


def test_bad_input():
    data, codes, directions = family(20, absorbed=False)
    for main in ([], [4], [-1]):
        with pytest.raises(InvalidOption, match="main features"):
            absorption(data, codes[:, 0] > 0, direction=directions[0], main=main)
    with pytest.raises(InvalidOption, match="direction of width"):
        absorption(data, codes[:, 0] > 0, direction=0 * directions[0], main=[0])

"""The best matching against brute force and scipy."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.features.assignment import best_matching
from patching.errors import NotFinite

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6), st.booleans())


def table(rows: int, columns: int, seed: int, ties: bool) -> torch.Tensor:
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.round() if ties else drawn


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_no_other_matching_is_better(shape):
    weights = table(*shape)
    rows, columns = best_matching(weights)
    small = min(weights.shape)
    assert len(rows) == len(set(rows.tolist())) == len(set(columns.tolist())) == small
    assert rows.tolist() == sorted(rows.tolist())
    wide = weights if weights.shape[0] <= weights.shape[1] else weights.T
    best = max(
        sum(float(wide[row, column]) for row, column in enumerate(chosen))
        for chosen in itertools.permutations(range(wide.shape[1]), small)
    )
    assert float(weights[rows, columns].sum()) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("shape", [(60, 60), (40, 150), (150, 40), (1, 5)])
def test_scipy_agrees(shape):
    optimize = pytest.importorskip("scipy.optimize")
    weights = table(*shape, seed=1, ties=False)
    rows, columns = best_matching(weights)
    theirs = optimize.linear_sum_assignment(weights.numpy(), maximize=True)
    assert (rows.tolist(), columns.tolist()) == (theirs[0].tolist(), theirs[1].tolist())


def test_not_finite():
    with pytest.raises(NotFinite):
        best_matching(torch.tensor([[1.0, torch.nan]]))

"""Resampling: closed forms for two prompts, coverage, and gaps that come and go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits.bootstrap import Scale, percentiles, resampled
from patching.errors import InvalidOption

FINITE = st.floats(-100, 100, allow_nan=False)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_weights_are_shares_of_draws() -> None:
    weights = resampled(5, resamples=200, generator=seeded())
    torch.testing.assert_close(weights.sum(-1), torch.ones(200, dtype=torch.float64))
    assert set((weights * 5).flatten().round(decimals=9).tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    rows = torch.randint(0, 5, (200, 5), generator=seeded())
    values = tensor(1, 2, 4, 8, 16)
    torch.testing.assert_close(weights @ values, values[rows].mean(-1))


def test_two_prompts_have_three_resamples() -> None:
    """Both the first (1/4), both the second (1/4), or one of each: 95 % reach from end to end."""
    scale = Scale.between(tensor(3, 5), tensor(1, 1), resamples=2000, generator=seeded())
    assert scale.gap == pytest.approx(3.0)
    assert scale.mean_interval(tensor(10, 20)) == (10.0, 20.0)
    assert scale.share(tensor(2, 3)) == pytest.approx(0.5)
    assert scale.share_interval(tensor(2, 2)) == pytest.approx((0.25, 0.5))  # 1/4 and 1/2 of the gap


@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=6))
def test_the_ends_of_the_scale(rows: list[tuple[float, float]]) -> None:
    clean, ablated = (tensor(*column) for column in zip(*rows, strict=True))
    scale = Scale.between(clean, ablated, resamples=50, generator=seeded())
    if scale.gap is None:
        assert scale.share(clean) is None
        assert scale.share_interval(clean) is None
    else:
        assert scale.share(clean) == pytest.approx(1.0)
        assert scale.share(ablated) == pytest.approx(0.0)
        torch.testing.assert_close(scale.shares(clean), torch.ones_like(scale.shares(clean)))


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    """Of 300 samples of 40 normal values, 95 % and a little less, as is known of percentile intervals."""
    generator = seeded(1)
    held = 0
    for _ in range(300):
        values = torch.randn(40, generator=generator, dtype=torch.float64) + 2
        scale = Scale.between(values, values * 0, resamples=400, generator=generator)
        low, high = scale.mean_interval(values)
        held += low <= 2 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_gaps_that_change_sign_are_counted() -> None:
    """Of gaps 1 and -0.5, one of each and twice the first are positive: 3 of 4 resamples."""
    scale = Scale.between(tensor(1, -0.5), tensor(0, 0), resamples=4000, generator=seeded())
    assert scale.unsteady == pytest.approx(0.25, abs=0.03)
    lost = Scale.between(tensor(1, -1, 1), tensor(0, 0, 1), resamples=10, generator=seeded())
    assert lost.gap is None
    assert lost.unsteady == 0.0


def test_one_prompt_has_no_interval() -> None:
    scale = Scale.between(tensor(1), tensor(0), resamples=100, generator=seeded())
    assert scale.share(tensor(0.5)) == 0.5
    assert scale.share_interval(tensor(0.5)) is None
    assert scale.mean_interval(tensor(0.5)) is None
    assert percentiles(tensor(3.0)) is None


def test_a_negative_number_of_resamples_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"counts of 0 or more; got resamples=-1"):
        Scale.between(tensor(1, 2), tensor(0, 0), resamples=-1, generator=seeded())

"""Logit effects and neighbours: against runs of the model and against plain sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.features import create
from circuits.features.effects import first_of, logit_effects, neighbours
from circuits.features.reading import directions
from patching import toy
from patching.errors import InvalidOption
from tests import tiny


@settings(deadline=None, max_examples=80)
@given(row=st.lists(st.integers(-2, 2), min_size=1, max_size=9), others=st.integers(0, 2), k=st.integers(0, 9))
def test_first_of_is_a_stable_sort(row, others, k):
    k = min(k, len(row))
    values = torch.tensor([row, *[[0] * len(row)] * others], dtype=torch.float32)
    found = first_of(values, k)
    for place, each in enumerate(values.tolist()):
        want = sorted(range(len(row)), key=lambda column: (-each[column], column))[:k]
        assert found.places[place].tolist() == want
        assert found.values[place].tolist() == [each[column] for column in want]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logit_effects_are_slopes_of_the_readout_at_unit_scale(family):
    """The norm's linear part at a residual r of scale 1: logits(r + h v) - logits(r) = h · effect + O(h²) along
    directions that keep the scale, so v is made orthogonal to the normed residual first.
    """
    model = tiny.model(family)
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(32, generator=generator, dtype=torch.float64)
    norm = model.readout.norm
    centred = residual - residual.mean() if norm.centered else residual
    residual = centred / centred.pow(2).mean().sqrt()
    dictionary = create("relu", d_in=32, n_features=5, dtype=torch.float64)
    with torch.no_grad():
        rows = dictionary.W_dec - dictionary.W_dec.mean(-1, keepdim=True) * norm.centered
        rows = rows - (rows @ residual)[:, None] * residual / residual.dot(residual)
        dictionary.W_dec.copy_(rows + (3.0 if norm.centered else 0.0))  # a constant, which centring takes away
    raised, lowered = logit_effects(dictionary, model, k=50)
    step = 1e-5
    for feature in range(5):
        moved = model.readout.logits(residual + step * dictionary.W_dec.detach()[feature])
        back = model.readout.logits(residual - step * dictionary.W_dec.detach()[feature])
        slope = (moved - back) / (2 * step)
        assert torch.allclose(raised.values[feature], slope[raised.places[feature]], rtol=2e-5, atol=1e-6)
        assert torch.allclose(lowered.values[feature], slope[lowered.places[feature]], rtol=2e-5, atol=1e-6)
        assert raised.values[feature].tolist() == sorted(raised.values[feature].tolist(), reverse=True)
        assert lowered.values[feature].tolist() == sorted(lowered.values[feature].tolist())


def test_direct_effects_are_the_direction_times_the_unembedding():
    model = tiny.model("gpt2")
    dictionary = create("relu", d_in=32, n_features=6, dtype=torch.float64)
    raised, _ = logit_effects(dictionary, model, k=3, through_norm=False, memory=1)
    logits = dictionary.W_dec.detach() @ model.readout.unembed
    assert torch.allclose(raised.values, logits.topk(3).values)
    through, _ = logit_effects(dictionary, model, k=3)
    assert not torch.allclose(through.values, raised.values)


def test_directions_of_rescaled_topk_have_length_one():
    dictionary = create("topk", d_in=4, n_features=6, k=2, rescale=True, dtype=torch.float64)
    with torch.no_grad():
        dictionary.W_dec.mul_(torch.arange(1.0, 7.0, dtype=torch.float64)[:, None])
    unit = torch.eye(6, dtype=torch.float64)
    written = dictionary.decode(unit) - dictionary.decode(torch.zeros(6, dtype=torch.float64))
    assert torch.allclose(directions(dictionary), written)


@pytest.mark.parametrize("memory", [1, 1 << 20])
def test_neighbours_are_the_largest_cosines(memory):
    dictionary = create("relu", d_in=6, n_features=15, seed=1, dtype=torch.float64)
    with torch.no_grad():
        dictionary.W_dec[3] = 5 * dictionary.W_dec[8]
        dictionary.W_dec[4] = 0.0
    found = neighbours(dictionary, k=4, memory=memory)
    matrix = torch.nn.functional.cosine_similarity(dictionary.W_dec[:, None], dictionary.W_dec[None], dim=-1)
    matrix = matrix.detach().fill_diagonal_(-9)
    assert torch.allclose(found.values, matrix.topk(4).values, atol=1e-9)
    assert (int(found.places[3, 0]), int(found.places[8, 0])) == (8, 3)
    assert found.values[4].tolist() == [0.0] * 4
    assert found.places[4].tolist() == [0, 1, 2, 3]
    assert neighbours(create("relu", d_in=6, n_features=1), k=4).places.shape == (1, 0)


def test_directions_elsewhere_have_no_logit_effects():
    with pytest.raises(InvalidOption, match="of width 4; got 9"):
        logit_effects(create("identity", d_in=9, n_features=9), toy.model())

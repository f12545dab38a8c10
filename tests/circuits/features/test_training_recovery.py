"""Planted features come out of training, and do not come out of the controls."""

from __future__ import annotations

import pytest
import torch

from circuits.features import create, toys
from circuits.features.dictionary import Dictionary
from circuits.features.losses import Weighting
from circuits.features.metrics import mcc, mmcs
from circuits.features.toys import Toy
from circuits.features.training import Recipe, Training, train

RECIPE = Recipe(scale=1.0, dead_after=2000)
JUMP = Recipe(scale=1.0, dead_after=2000, warmup=0.5, weighting=Weighting(bandwidth=0.3))
SMALL = toys.superposition(8, 16, 0.05, seed=1)

# architecture, features, options, sparsity, recipe
CASES = {
    "relu": ("relu", 16, {}, 0.4, RECIPE),
    "topk": ("topk", 16, {"k": 2}, None, RECIPE),
    "batchtopk": ("batchtopk", 24, {"k": 0.8}, None, RECIPE),
    "jumprelu": ("jumprelu", 24, {"threshold": 0.1}, 0.15, JUMP),
    "gated": ("gated", 16, {}, 1.0, RECIPE),
}


def learn(case: str, toy: Toy = SMALL, *, steps: int = 1000, batch: int = 256, lr: float = 1e-2, **changes) -> Training:
    architecture, width, options, sparsity, recipe = CASES[case]
    width = width * toy.n_features // SMALL.n_features
    options = options | changes
    sparsity = options.pop("sparsity", sparsity)
    dictionary = create(architecture, d_in=toy.d_in, n_features=width, seed=1, **options)
    return train(dictionary, toy.batches(batch), steps=steps, lr=lr, sparsity=sparsity, recipe=recipe)


def l0(dictionary: Dictionary, x: torch.Tensor) -> float:
    return float((dictionary.encode(x) != 0).double().sum(-1).mean())


@pytest.mark.parametrize("case", CASES)
def test_planted_features_are_found(case):
    training = learn(case)
    assert mmcs(training.dictionary.W_dec, SMALL.features) >= 0.95
    x = SMALL.sample(4000, seed=77)
    assert l0(training.dictionary, x) <= 2.5 * SMALL.true_l0
    error = x - training.dictionary.reconstruct(x)
    assert 1 - float(error.square().sum() / (x - x.mean(0)).square().sum()) > 0.85


def test_without_a_penalty_they_are_not_found():
    """The control of the objective: the same training, lambda = 0."""
    training = learn("relu", sparsity=0.0)
    assert mmcs(training.dictionary.W_dec, SMALL.features) < 0.9
    assert l0(training.dictionary, SMALL.sample(1000, seed=77)) > 8


def test_where_there_are_no_features_none_are_found():
    """The control of the measure: coordinates that have nothing to do with one another."""
    training = learn("relu", SMALL.scrambled(), steps=400)
    assert mmcs(training.dictionary.W_dec, SMALL.features) < 0.9


def test_matryoshka_orders_parents_before_children():
    """The first prefix has room for the parents alone, and learns these."""
    toy = toys.absorption(12, 4, 0.2, given_parent=0.25, seed=0)
    dictionary = create("matryoshka", d_in=12, n_features=12, k=1.0, prefixes=(4, 12), seed=0)
    trained = train(dictionary, toy.batches(256), steps=500, lr=1e-2, recipe=RECIPE).dictionary
    parents = toy.features[[i for i, parent in enumerate(toy.parents) if parent < 0]]
    children = toy.features[[i for i, parent in enumerate(toy.parents) if parent >= 0]]
    assert mmcs(trained.W_dec[:4], parents) > 0.9
    assert mmcs(trained.W_dec[:4], children) < 0.6
    assert mmcs(trained.W_dec, children) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_planted_features_are_found_in_16_dimensions(case):
    toy = toys.superposition(16, 32, 0.04, seed=1)
    changes = {"k": 1.3} if case == "batchtopk" else {}
    training = learn(case, toy, steps=1500, batch=512, **changes)
    assert mmcs(training.dictionary.W_dec, toy.features) >= 0.95
    if CASES[case][1] == 16:
        assert mcc(training.dictionary.W_dec, toy.features) >= 0.95

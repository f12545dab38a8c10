"""Uniform gradient sampling: its gradient against the exact one by enumeration, and circuits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from circuits import ugs
from patching import toy
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests.circuits.test_learned_mask import PLAIN, TRAINED, better_than_random, damage_of, plain_run, trained_run

P = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)


def multilinear(masks: Tensor) -> Tensor:
    """Linear in each entry, with interactions: for such a loss the estimate has no bias at all."""
    one, two, three = masks.unbind(-1)
    return 2 * one - two + 3 * one * three - 4 * two * three + one * two * three


def curved(masks: Tensor) -> Tensor:
    return torch.tanh(3 * masks.sum(-1) - 4) + masks.prod(-1) ** 2


def draws(count: int, *lead: int) -> Tensor:
    return torch.rand(count, *lead, len(P), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_gradient_is_that_of_the_expected_loss_of_coins() -> None:
    """d/dp Σ over all 0/1 masks of their probability times the loss, by autograd through the probabilities."""
    leaf = P.clone().requires_grad_(True)
    theta, expected = torch.sigmoid(leaf), torch.zeros((), dtype=torch.float64)
    for coins in itertools.product((0.0, 1.0), repeat=3):
        mask = torch.tensor(coins, dtype=torch.float64)
        expected = expected + (mask * theta + (1 - mask) * (1 - theta)).prod() * multilinear(mask)
    exact = torch.autograd.grad(expected, leaf)[0]
    leaf = P.clone().requires_grad_(True)
    found = torch.autograd.grad(multilinear(ugs.sample(leaf, draws(400_000))).mean(), leaf)[0]
    assert found.tolist() == pytest.approx(exact.tolist(), abs=0.01)


def test_value_of_a_sample_is_what_its_number_says() -> None:
    """θ = 1/2, so the window is 1/4 wide: below 3/8 the mask is 1, above 5/8 it is 0, in between it falls evenly."""
    numbers = torch.tensor([[0.0], [0.374], [0.4375], [0.5], [0.5625], [0.626], [1.0]], dtype=torch.float64)
    masks = ugs.sample(torch.zeros(1, dtype=torch.float64), numbers)
    assert masks.flatten().tolist() == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0, 0])


def test_share_of_each_kind_of_sample() -> None:
    """The mean mask is θ, and θ (1 - θ) of the masks lie in between."""
    masks, theta = ugs.sample(P, draws(400_000)), torch.sigmoid(P)
    assert masks.mean(0).tolist() == pytest.approx(theta.tolist(), abs=0.003)
    between = ((masks > 0) & (masks < 1)).double().mean(0)
    assert between.tolist() == pytest.approx((theta * (1 - theta)).tolist(), abs=0.003)


def test_counting_the_samples_in_the_window_reduces_the_spread() -> None:
    """Of 16 masks at a time: the mean estimate stays (but for steps with an empty window), the spread shrinks."""
    numbers = draws(1500, 16)

    def estimates(reweighted: bool) -> Tensor:
        made = []
        for few in numbers:
            leaf = P.clone().requires_grad_(True)
            theta = torch.sigmoid(leaf)
            width = (theta * (1 - theta)).detach()
            plain = 1 - ((few - theta) / width + 0.5).clamp(0, 1)
            masks = ugs.sample(leaf, few) if reweighted else plain
            made.append(torch.autograd.grad((curved(masks) + 5 * masks.sum(-1)).mean(), leaf)[0])
        return torch.stack(made)

    with_counts, without = estimates(True), estimates(False)
    assert (with_counts.std(0) < 0.7 * without.std(0)).all()
    empty = (1 - torch.sigmoid(P) * (1 - torch.sigmoid(P))) ** 16  # no sample in the window
    gap = with_counts.mean(0) - without.mean(0) * (1 - empty)
    spread = (with_counts.var(0) + without.var(0)).sqrt() / len(numbers) ** 0.5
    assert (gap.abs() < 4 * spread).all()


def test_a_unit_outside_every_window_has_no_gradient() -> None:
    leaf = P.clone().requires_grad_(True)
    masks = ugs.sample(leaf, torch.tensor([[0.0, 0.999, 0.88]], dtype=torch.float64))
    gradient = torch.autograd.grad(masks.sum(), leaf)[0]
    assert gradient[:2].tolist() == [0.0, 0.0]
    assert gradient[2] > 0


@pytest.mark.parametrize(("metric", "price"), [("logit_difference", 0.1), ("kl", 0.02)])
def test_it_finds_the_plain_circuit(metric: str, price: float) -> None:
    run = plain_run(metric=metric)
    mask = ugs.learn(run, regularisation=price, samples=2, steps=80)
    assert [str(edge) for edge in mask.circuit.edges] == PLAIN
    assert damage_of(run, mask.circuit) == pytest.approx(0, abs=1e-9)


def test_dangling_edges_are_dropped_and_counted() -> None:
    """The toy's second prompt with answer and wrong answer exchanged, and one large step.

    Then the plain edges hurt and go. The others have no slope at all and stay where they start, above 1/2: among
    them the query and the key of head 1, which feeds nothing any more.
    """
    task = toy.task().subset(slice(1, 2))
    exchanged = type(task)("toy", task.clean, task.corrupt, task.wrong_answers, task.answers, task.positions)
    run = MaskedRun(toy.model(), exchanged)
    mask = ugs.learn(run, regularisation=0.0, samples=64, steps=1, lr=5.0)
    kept = [str(edge) for edge, keep in zip(run.units, (mask.probability > 0.5).tolist(), strict=True) if keep]
    assert set(kept) == set(map(str, run.units)) - set(PLAIN)
    assert [str(edge) for edge in mask.circuit.edges] == [
        "input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->logits",
    ]  # fmt: skip
    selection = mask.circuit.provenance["selection"]
    assert (selection["units_kept"], selection["dangling_edges_removed"]) == (6, 2)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_the_same_seed_the_same_numbers(level: str) -> None:
    def learn(seed: int) -> object:
        run = MaskedRun(toy.model(), toy.task())
        return ugs.learn(run.nodes() if level == "node" else run, steps=10, seed=seed)

    first, again, other = learn(1), learn(1), learn(2)
    assert torch.equal(first.probability, again.probability)  # type: ignore[attr-defined]
    assert first.training == again.training  # type: ignore[attr-defined]
    assert first.losses != other.losses  # type: ignore[attr-defined]


@TRAINED
def test_on_a_trained_model_it_beats_random_circuits() -> None:
    run = trained_run(metric="kl")
    mask = ugs.learn(run, regularisation=0.01, samples=2, steps=40, lr=0.3)
    assert 0.02 < mask.circuit.n_edges / run.n_units < 0.6
    better_than_random(run, mask.circuit)


@pytest.mark.parametrize(
    ("name", "value"),
    [("samples", 0), ("samples", 1.5), ("steps", 0), ("lr", -1.0), ("seed", -1), ("regularisation", -0.5)],
)
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=rf"expected {name} to be .*; got "):
        ugs.search(plain_run(), **{name: value})  # type: ignore[arg-type]


def test_runs_by_position_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"expected a run over edges or nodes at all positions"):
        ugs.search(plain_run().positions())

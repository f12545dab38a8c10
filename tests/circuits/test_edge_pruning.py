"""Edge Pruning: the size asked for exactly, the schedule, and circuits that beat random ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits import edge_pruning
from circuits.edge_pruning import highest
from circuits.learned_mask import HARD_CONCRETE
from patching import toy
from patching.errors import InvalidOption, NotFinite
from patching.masked import MaskedRun
from patching.metrics import Metric
from tests import tiny
from tests.circuits.test_learned_mask import PLAIN, TRAINED, better_than_random, damage_of, plain_run, trained_run


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_highest_keeps_exactly_that_many_and_none_lower(numbers: list[int], data: st.DataObject) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    count = data.draw(st.integers(0, len(numbers)))
    kept, threshold = highest(values, count)
    assert int(kept.sum()) == count
    inside, outside = values[kept].tolist(), values[~kept].tolist()
    assert not inside or not outside or min(inside) >= max(outside)
    if threshold is not None and min(inside) > max(outside):
        assert ((values > threshold) == kept).all()


def test_the_threshold_is_where_a_bisection_ends() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept, threshold = highest(values, 20)
    low, high = 0.0, 1.0
    while (count := int((values > (low + high) / 2).sum())) != 20:
        low, high = ((low + high) / 2, high) if count > 20 else (low, (low + high) / 2)
    assert ((values > (low + high) / 2) == kept).all()
    assert threshold is not None
    assert ((values > threshold) == kept).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9, 1.0])
def test_the_size_is_met_exactly(family: str, sparsity: float) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(n=2, prefix=1))
    mask = edge_pruning.learn(run, sparsity=sparsity, steps=4)
    assert mask.circuit.n_edges == round((1 - sparsity) * run.n_units)
    lowest = min(float(mask.probability[run.graph.number(edge)]) for edge in mask.circuit.edges) if sparsity < 1 else 2
    dropped = set(run.units) - set(mask.circuit.edges)
    assert all(float(mask.probability[run.graph.number(edge)]) <= lowest for edge in dropped)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
def test_it_finds_the_plain_circuit(metric: str) -> None:
    run = plain_run(metric=metric)
    mask = edge_pruning.learn(run, sparsity=2 / 3, steps=90)
    assert [str(edge) for edge in mask.circuit.edges] == PLAIN
    assert damage_of(run, mask.circuit) == pytest.approx(0, abs=1e-9)


def test_the_lagrangian_drives_the_masks_to_the_target() -> None:
    """Without it they would stay: on the toy nothing else has a price."""
    chosen = edge_pruning.learn(plain_run(), sparsity=2 / 3, steps=300).circuit.provenance["selection"]
    assert chosen["sparsity_expected_of_the_masks"] == pytest.approx(2 / 3, abs=0.05)
    free = edge_pruning.learn(plain_run(), sparsity=0.0, steps=40).circuit.provenance["selection"]
    assert free["sparsity_expected_of_the_masks"] < 0.2


def test_the_first_losses_by_hand() -> None:
    """Multipliers start at 0, so the first loss is the damage; Adam's first step moves each by its learning rate."""
    run = plain_run()
    mask = edge_pruning.learn(run, sparsity=0.5, steps=2, lr=1e-9)
    assert mask.losses[0] == mask.training.damages[0]
    start = torch.full((), HARD_CONCRETE.start(edge_pruning.START), dtype=torch.float64)
    gap = 1 - float(HARD_CONCRETE.open(start)) - 0.5  # warm-up is over at the second step: 60 % of 2 is 1
    multipliers = edge_pruning.MULTIPLIER_LR * math.copysign(1, gap) * gap + edge_pruning.MULTIPLIER_LR * gap**2
    assert mask.losses[1] - mask.training.damages[1] == pytest.approx(multipliers, abs=1e-6)


def test_the_same_seed_the_same_numbers() -> None:
    first, again, other = (edge_pruning.learn(plain_run(), sparsity=0.5, steps=12, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.probability, again.probability)
    assert (first.training, first.circuit) == (again.training, again.circuit)
    assert first.losses != other.losses


@TRAINED
def test_on_a_trained_model_it_beats_random_circuits() -> None:
    run = trained_run(metric="kl")
    circuit = edge_pruning.learn(run, sparsity=0.8, steps=50, lr=0.3).circuit
    assert circuit.n_edges == round(0.2 * run.n_units)
    better_than_random(run, circuit)


@pytest.mark.parametrize("value", [-0.1, 1.01, math.nan, "0.9", True, None])
def test_a_sparsity_that_is_no_share_is_refused(value: object) -> None:
    with pytest.raises(InvalidOption, match=r"expected sparsity to be .*; got "):
        edge_pruning.search(plain_run(), sparsity=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("steps", "9"), ("lr", 0.0), ("seed", -1)])
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=rf"expected {name} to be .*; got "):
        edge_pruning.search(plain_run(), **{name: value})  # type: ignore[arg-type]


def test_other_runs_and_metrics_are_refused() -> None:
    run = MaskedRun(toy.model(), toy.task())
    for view in (run.nodes(), run.positions()):
        with pytest.raises(InvalidOption, match=r"expected a run over edges at all positions; got one over"):
            edge_pruning.search(view)
    right = Metric("accuracy", True, lambda p: (p.logits.argmax(-1) == p.answers[:, 0]).double())
    with pytest.raises(InvalidOption, match=r"expected a metric with a gradient; accuracy has none"):
        edge_pruning.search(plain_run(metric=right))


def test_divergence_names_the_step() -> None:
    fragile = Metric("log of the difference", True, lambda p: p.logit_difference().log())
    with pytest.raises(NotFinite, match=r"step \d+ of the search: expected a finite log of the difference"):
        edge_pruning.learn(plain_run(metric=fragile), sparsity=1.0, steps=100, lr=0.5)

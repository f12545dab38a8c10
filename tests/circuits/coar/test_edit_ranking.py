"""Welch's t against scipy, the ranking against brute force on an additive model, and the choice of k by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.coar.edit import Edit
from circuits.coar.ranking import choose, rank, welch_t
from graphs.nodes import head
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.metrics import METRICS
from tests.circuits.coar import additive


def random_weights(prompts: int, units: int, seed: int) -> torch.Tensor:
    return torch.randn(prompts, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- tau ------------------------------------------------------------------------------------------------------------


def test_tau_by_hand():
    targets, references = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0], [6.0]])
    assert welch_t(targets, references).item() == pytest.approx((2 - 2) / math.sqrt(1 / 2 + 8 / 3))
    targets = torch.tensor([[5.0], [3.0]])
    assert welch_t(targets, references).item() == pytest.approx((4 - 2) / math.sqrt(1 / 2 + 8 / 3))


@settings(max_examples=40)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 1000))
def test_tau_is_scipys_welch_t_with_population_variances(n_targets, n_references, seed):
    stats = pytest.importorskip("scipy.stats")
    targets, references = random_weights(n_targets, 5, seed), 2 * random_weights(n_references, 5, seed + 1) + 0.3

    def with_sample_variance_of_population(rows: torch.Tensor) -> torch.Tensor:
        """scipy divides by n - 1: shrink the deviations so that this gives the variance with n."""
        mean, count = rows.mean(0), len(rows)
        return mean + (rows - mean) * math.sqrt((count - 1) / count)

    pair = [with_sample_variance_of_population(rows).numpy() for rows in (targets, references)]
    expected = stats.ttest_ind(*pair, equal_var=False).statistic
    assert welch_t(targets, references).numpy() == pytest.approx(expected, rel=1e-9)


def test_one_target_has_no_variance_of_its_own():
    references = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    tau = welch_t(torch.tensor([[1.0, 3.0]]), references)
    assert tau[0].item() == pytest.approx((1 - 2) / math.sqrt((8 / 3) / 3))
    assert tau[1].item() == math.inf  # nobody varies, the means differ


def test_zero_denominators_give_signed_infinities_and_zero():
    targets, references = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.2, 0.2, 0.2], [0.2, 0.2, 0.2]])
    assert welch_t(targets, references).tolist() == [-math.inf, 0.0, math.inf]


def test_constant_columns_have_no_rounded_variance():
    """The mean of three times 0.1 is not 0.1 in floating point; the variance is 0 all the same."""
    rows = torch.full((3, 1), 0.1, dtype=torch.float64)
    assert welch_t(rows + 1, rows).item() == math.inf


# --- ranking --------------------------------------------------------------------------------------------------------


def test_raise_takes_the_lowest_and_lower_the_highest():
    weights = torch.tensor([[-2.0, 3.0, 0.0], [0.0, 1.0, 1.0], [0.2, 1.2, 3.0]])
    up = rank(additive.attribution(weights), targets=[0], references=[1, 2])
    down = rank(additive.attribution(weights), targets=[0], references=[1, 2], direction="lower")
    assert [str(unit) for unit in up.units] == ["a0.h0", "a0.h2", "a0.h1"]
    assert down.units == tuple(reversed(up.units))
    assert up.predicted(2) == pytest.approx((2.0, -0.1 - 2.0))
    assert up.first(0) == ()
    assert up.predicted(0) == (0.0, 0.0)


def test_infinite_taus_are_ordered_by_the_difference_of_means():
    weights = torch.tensor([[-1.0, -3.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    found = rank(additive.attribution(weights), targets=[0], references=[1])
    assert [unit.index for unit in found.units] == [1, 3, 0, 2]
    assert found.tau.tolist() == [-math.inf] * 3 + [math.inf]


def test_equal_units_stay_in_the_attributions_order():
    found = rank(additive.attribution(torch.ones(4, 5)), targets=[0, 1], references=[2, 3])
    assert [unit.index for unit in found.units] == [0, 1, 2, 3, 4]


def test_rows_can_be_numbers_slices_flags_or_another_attribution():
    weights = random_weights(6, 4, 0)
    whole = additive.attribution(weights)
    expected = rank(whole, targets=[0, 1], references=[2, 3, 4, 5])
    flags = torch.tensor([True, True, False, False, False, False])
    other = additive.attribution(weights[2:])
    for targets, references in ((slice(0, 2), slice(2, None)), (flags, ~flags), ([0, 1], other), ([-6, -5], other)):
        found = rank(whole, targets=targets, references=references)
        assert found.units == expected.units
        assert torch.equal(found.tau, expected.tau)


def test_among_ranks_only_some():
    weights = random_weights(4, 5, 1)
    everything = rank(additive.attribution(weights), targets=[0], references=[1, 2, 3])
    some = rank(additive.attribution(weights), targets=[0], references=[1, 2, 3], among=[head(0, 4), head(0, 1)])
    assert some.units == tuple(unit for unit in everything.units if unit.index in (1, 4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": [], "references": [1]}, "at least one row of targets"),
        ({"targets": [0], "references": []}, "at least one row of references"),
        ({"targets": [9], "references": [1]}, "rows of targets from 0 to 3; got \\[9\\]"),
        ({"targets": [0, 1], "references": [1, 2]}, "rows \\[1\\] are in both"),
        ({"targets": [0, -2], "references": [2]}, "rows \\[2\\] are in both"),
        ({"targets": torch.tensor([True]), "references": [1]}, "4 flags for targets"),
        ({"targets": [0], "references": [1], "direction": "up"}, "raise or lower"),
        ({"targets": [0], "references": [1], "among": [head(7, 7)]}, "a7.h7"),
        ({"targets": [0], "references": [1], "among": []}, "it is empty"),
        ({"targets": [0], "references": [3]}, "finite weights; those of references \\[3\\]"),
        ({"targets": [0], "references": SimpleNamespace(units=(), weights=torch.ones(1, 0))}, "same units"),
    ],
)
def test_bad_rankings_are_refused(options, words):
    weights = random_weights(4, 3, 0)
    weights[3, 1] = math.nan
    with pytest.raises(InvalidOption, match=words):
        rank(additive.attribution(weights), **options)


# --- on an additive model: P4.5 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_predicted_change_is_the_realised_change(seed):
    weights = random_weights(5, 8, seed)
    model = additive.model(weights)
    run = ComponentRun(model, additive.task(range(5), prompts=5), components=("heads",), ablation="zero")
    assert torch.allclose(run.clean_metric, weights.sum(1))
    ranking = rank(additive.attribution(weights), targets=[0, 1], references=[2, 3, 4])
    for k in range(9):
        edit = Edit(ranking.first(k))
        change = run(run.mask_without(ranking.first(k))) - run.clean_metric
        assert torch.allclose(change, edit.predicted(additive.attribution(weights)), atol=1e-12)
        assert (change[:2].mean().item(), change[2:].mean().item()) == pytest.approx(ranking.predicted(k), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_first_k_is_the_best_subset_of_size_k(seed, direction):
    """One target, reference variances equal in every unit: no subset widens its lead over the references more."""
    weights = random_weights(3, 7, seed)
    weights[2] = weights[1] + 0.5  # two references that differ by the same everywhere
    run = ComponentRun(
        additive.model(weights), additive.task(range(3), prompts=3), components=("heads",), ablation="zero"
    )
    ranking = rank(additive.attribution(weights), targets=[0], references=[1, 2], direction=direction)
    sign = 1 if direction == "raise" else -1
    for k in range(1, 7):
        subsets = [tuple(map(run.units.__getitem__, chosen)) for chosen in itertools.combinations(range(7), k)]
        change = run(torch.stack([run.mask_without(units) for units in subsets])) - run.clean_metric
        lead = sign * (change[:, 0] - change[:, 1:].mean(1))
        assert set(subsets[int(lead.argmax())]) == set(ranking.first(k))


def test_the_estimated_weights_give_the_same_edit():
    from circuits import coar

    weights = random_weights(6, 8, 3)
    run = ComponentRun(
        additive.model(weights), additive.task(range(6), prompts=6), components=("heads",), ablation="zero"
    )
    found = coar.attribute(run, samples=100, keep=0.7, seed=0)
    assert torch.allclose(found.weights, weights, atol=1e-9)
    exact, estimated = (
        rank(each, targets=[0, 1, 2], references=[3, 4, 5]) for each in (additive.attribution(weights), found)
    )
    assert exact.units == estimated.units
    assert Edit(exact.first(3)).predicted(found).tolist() == pytest.approx((-weights[:, _of(exact, 3)].sum(1)).tolist())


def _of(ranking, k):
    return [unit.index for unit in ranking.first(k)]


# --- how many -------------------------------------------------------------------------------------------------------


class Curve:
    """A run whose outputs are known for every number of ablated units."""

    def __init__(self, outputs: list[list[float]], metric: str = "logit_difference") -> None:
        self.outputs = torch.tensor(outputs)
        self.units = tuple(head(0, i) for i in range(len(outputs) - 1))
        self.metric = METRICS[metric]
        self.asked: list[list[float]] = []

    def __call__(self, mask: torch.Tensor) -> torch.Tensor:
        self.asked.append(mask.tolist())
        return self.outputs[int((mask == 0).sum())]


TARGET = [[0.0, 0.0], [1.0, 1.0], [2.0, 4.0], [2.0, 2.0]]  # means 0, 1, 3, 2
REFERENCE = [[0.0], [-0.1], [-0.5], [-2.0]]


def ranking_of(weights: list[float], direction: str = "raise"):
    rows = torch.tensor([weights, [0.0] * len(weights)])
    return rank(additive.attribution(rows), targets=[0], references=[1], direction=direction)


@pytest.mark.parametrize(
    ("options", "k"),
    [
        ({"max_damage": 0.0}, 0),
        ({"max_damage": 0.2}, 1),
        ({"max_damage": 0.6}, 2),
        ({"max_damage": 9.0}, 2),
        ({"max_damage": 9.0, "goal": 0.5}, 1),
        ({"max_damage": 9.0, "goal": 2.5}, 2),
        ({"max_damage": 0.2, "goal": 2.5}, 1),  # out of reach within the limit: the best there
        ({"max_damage": 9.0, "ks": [1, 3]}, 3),
        ({"max_damage": 9.0, "measure": "above-zero"}, 1),  # all right from k = 1 on: the smallest
    ],
)
def test_k_by_hand(options, k):
    found = choose(Curve(TARGET), ranking_of([-3.0, -2.0, -1.0]), references=Curve(REFERENCE), **options)
    assert found.k == k
    assert len(found.units) == k
    assert found.ks == tuple(sorted({0, *options.get("ks", range(4))}))
    if "measure" not in options:
        assert found.target.tolist() == [[0.0, 1.0, 3.0, 2.0][each] for each in found.ks]
        assert found.damage.tolist() == pytest.approx([[0.0, 0.1, 0.5, 2.0][each] for each in found.ks])


def test_lowering_looks_for_the_lowest():
    falling = [[-value for value in row] for row in TARGET]
    ranking = ranking_of([3.0, 2.0, 1.0], "lower")
    found = choose(Curve(falling), ranking, references=Curve(REFERENCE), max_damage=0.6)
    assert found.k == 2
    assert "lowest target mean" in found.rule
    assert choose(Curve(falling), ranking, references=Curve(REFERENCE), max_damage=0.6, goal=-0.5).k == 1


def test_damage_follows_the_metrics_sense():
    """References that are judged by a loss are damaged where it rises, so -2 is no damage at all."""
    found = choose(
        Curve(TARGET), ranking_of([-3.0, -2.0, -1.0]), references=Curve(REFERENCE, metric="loss"), max_damage=0.0
    )
    assert found.k == 2
    assert found.damage.tolist() == pytest.approx([0.0, -0.1, -0.5, -2.0])


def test_masks_follow_the_ranking_and_progress_is_told():
    run, told = Curve(TARGET), []
    choose(
        run, ranking_of([-1.0, -3.0, -2.0]), references=Curve(REFERENCE), max_damage=1.0,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert run.asked == [[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_curve_is_kept_as_a_table():
    found = choose(Curve(TARGET), ranking_of([-3.0, -2.0, -1.0]), references=Curve(REFERENCE), max_damage=0.6)
    table = found.to_frame()
    assert table["k"].tolist() == [0, 1, 2, 3]
    assert table["target"].tolist() == [0.0, 1.0, 3.0, 2.0]
    assert found.ranking.to_frame()["unit"].tolist() == ["a0.h0", "a0.h1", "a0.h2"]
    assert "k=2" in repr(found)


def test_on_an_additive_model_the_curve_is_the_prediction():
    weights = random_weights(4, 6, 5)
    model = additive.model(weights)
    runs = [
        ComponentRun(model, additive.task(rows, prompts=4), components=("heads",), ablation="zero")
        for rows in ([0], [1, 2, 3])
    ]
    ranking = rank(additive.attribution(weights), targets=[0], references=[1, 2, 3])
    found = choose(runs[0], ranking, references=runs[1], max_damage=math.inf)
    predicted = [ranking.predicted(k) for k in found.ks]
    assert (found.target - found.target[0]).tolist() == pytest.approx([target for target, _ in predicted])
    assert (found.reference - found.reference[0]).tolist() == pytest.approx([reference for _, reference in predicted])
    assert found.k == max(found.ks, key=lambda k: predicted[k][0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_damage": -1.0}, "0 or more"),
        ({"max_damage": math.nan}, "0 or more"),
        ({"max_damage": 1.0, "measure": "median"}, "mean, above-zero"),
        ({"max_damage": 1.0, "ks": [4]}, "k from 0 to 3"),
        ({"max_damage": 1.0, "ks": [-1]}, "0 or more; got -1"),
    ],
)
def test_bad_choices_are_refused(options, words):
    with pytest.raises(InvalidOption, match=words):
        choose(Curve(TARGET), ranking_of([-3.0, -2.0, -1.0]), references=Curve(REFERENCE), **options)


def test_runs_must_have_the_ranked_units_and_a_sense():
    ranking = ranking_of([-3.0, -2.0, -1.0])
    with pytest.raises(InvalidOption, match=r"it has no a0\.h2"):
        choose(Curve(TARGET), ranking, references=Curve(REFERENCE[:3]), max_damage=1.0)
    with pytest.raises(InvalidOption, match="above-zero"):
        choose(Curve(TARGET, metric="loss"), ranking, references=Curve(REFERENCE), max_damage=1.0, measure="above-zero")
    with pytest.raises(dataclasses.FrozenInstanceError):
        ranking.tau = None

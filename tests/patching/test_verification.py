"""Verification: costs against a simulated search, statistics against plain numpy, the bound against its coverage."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patching import verification
from patching.errors import InvalidOption, NotFinite
from patching.verification import (
    Estimate,
    blocks,
    compare,
    cost_of_verified_recall,
    hierarchical,
    iterative,
    subsampling,
    t_quantile,
)


class Additive:
    """A model whose units do not interact, for two prompts of different strength, that counts its runs."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.double()
        self.seen: list[Tensor] = []

    def __call__(self, chosen: Tensor) -> Tensor:
        self.seen += chosen.clone()
        effect = chosen.double() @ self.weights
        return torch.stack([0.5 * effect, 1.5 * effect], dim=1)


def planted(n_units: int, **effects: float) -> Tensor:
    """Zeros but for `u7=2.0` and the like."""
    weights = torch.zeros(n_units, dtype=torch.float64)
    for name, effect in effects.items():
        weights[int(name[1:])] = effect
    return weights


def never(chosen: Tensor) -> Tensor:
    raise AssertionError("nothing may be run")


# ------------------------------------------------------------------------------------------------------- recall


def searched(importance: list[float], true: list[float], k: int) -> int:
    """How many units a person patches who works down the list until the true top k are all found."""
    wanted = set(sorted(range(len(true)), key=lambda unit: (-abs(true[unit]), unit))[:k])
    for runs, unit in enumerate(sorted(range(len(true)), key=lambda unit: (-importance[unit], unit)), start=1):
        wanted.discard(unit)
        if not wanted:
            return runs
    raise AssertionError


numbers = st.integers(0, 6).map(float)  # few values, so that ties are common


@given(st.lists(st.tuples(numbers, numbers, st.sampled_from([-1, 1])), min_size=1, max_size=12), st.integers(0, 9))
def test_the_cost_is_that_of_working_down_the_list(units: list[tuple[float, float, int]], cost: int) -> None:
    importance, true = [unit[0] for unit in units], [unit[1] * unit[2] for unit in units]
    estimate = Estimate("some", torch.tensor(importance), float(cost))
    recall = cost_of_verified_recall(estimate, torch.tensor(true))
    expected = [cost + searched(importance, true, k) for k in range(1, len(units) + 1)]
    assert recall.cost.tolist() == expected
    assert recall.relative.tolist() == pytest.approx([runs / k for k, runs in enumerate(expected, start=1)])


def test_an_example_by_hand() -> None:
    estimate = Estimate("cheap", torch.tensor([0.1, 0.9, 0.5, 0.2]), 2.0)  # order 1, 2, 3, 0
    recall = cost_of_verified_recall(estimate, torch.tensor([0.0, 3.0, -1.0, 2.0]))  # truly 1, 3, 2, 0
    assert recall.name == "cheap"
    assert recall.estimate_cost == 2
    assert recall.cost.tolist() == [3, 5, 5, 6]
    assert recall.relative.tolist() == pytest.approx([3, 5 / 2, 5 / 3, 6 / 4])
    logs = math.log(3) + math.log(5 / 2) / 2 + math.log(5 / 3) / 3 + math.log(6 / 4) / 4
    assert recall.aggregate == pytest.approx(math.exp(logs / (1 + 1 / 2 + 1 / 3 + 1 / 4)))
    first = cost_of_verified_recall(estimate, torch.tensor([0.0, 3.0, -1.0, 2.0]), k=2)
    assert first.cost.tolist() == [3, 5]
    assert first.aggregate == pytest.approx((3 * math.sqrt(5 / 2)) ** (1 / 1.5))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_an_oracle_costs_one_run_per_unit(effects: list[float]) -> None:
    true = torch.tensor(effects, dtype=torch.float64)
    recall = cost_of_verified_recall(Estimate("oracle", true.abs()), true)
    assert recall.relative.tolist() == [1.0] * len(effects)
    assert recall.aggregate == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 9)), min_size=1, max_size=12),
    st.sampled_from([1e-3, 0.25, 1e6]),
)
def test_neither_scale_nor_the_sign_of_the_truth_matters(units: list[tuple[int, int]], scale: float) -> None:
    importance, true = torch.tensor(units, dtype=torch.float64).T
    plain = cost_of_verified_recall(Estimate("some", importance, 3.0), true)
    scaled = cost_of_verified_recall(Estimate("some", importance * scale, 3.0), -true / scale)
    assert torch.equal(plain.cost, scaled.cost)
    assert plain.aggregate == scaled.aggregate


def test_a_random_order_finds_the_first_unit_halfway() -> None:
    true = planted(9, u4=1.0)
    first = [float(cost_of_verified_recall(iterative(9, seed=seed), true, k=1).cost) for seed in range(600)]
    assert set(first) == set(range(1, 10))
    assert np.mean(first) == pytest.approx(5, abs=4 * math.sqrt(80 / 12 / 600))


def test_an_uninformed_order_is_free_and_without_ties() -> None:
    estimate = iterative(50, seed=3)
    assert estimate.cost == 0
    assert len(set(estimate.importance.tolist())) == 50
    assert torch.equal(estimate.importance, iterative(50, seed=3).importance)
    assert not torch.equal(estimate.importance, iterative(50, seed=4).importance)


# -------------------------------------------------------------------------------------------------- subsampling


@settings(max_examples=40)
@given(
    st.integers(1, 6),
    st.integers(40, 90),
    st.sampled_from([0.3, 0.5, 0.7]),
    st.integers(0, 2**32),
    st.sampled_from([1, 7, 64, 1000]),
    st.sampled_from([0.0, 1e7]),
)
def test_statistics_are_those_of_the_subsets_that_were_run(
    n_units: int, samples: int, share: float, seed: int, chunk: int, common: float
) -> None:
    noise = np.random.default_rng(seed).standard_normal((samples, 3)) + common
    masks: list[np.ndarray] = []

    def patched(chosen: Tensor) -> Tensor:
        masks.extend(chosen.numpy())
        return torch.from_numpy(noise[len(masks) - len(chosen) : len(masks)])

    found = subsampling(patched, n_units, samples=samples, share=share, seed=seed, chunk=chunk)
    assert len(masks) == samples
    effects, table = noise.mean(1), np.array(masks)
    for unit in range(n_units):
        inside, outside = effects[table[:, unit]], effects[~table[:, unit]]
        assert (int(found.count_in[unit]), int(found.count_out[unit])) == (len(inside), len(outside))
        assert float(found.mean_in[unit]) == pytest.approx(inside.mean(), rel=1e-12)
        assert float(found.variance_in[unit]) == pytest.approx(inside.var(ddof=1), rel=1e-6)
        assert float(found.variance_out[unit]) == pytest.approx(outside.var(ddof=1), rel=1e-6)
        assert float(found.effects[unit]) == pytest.approx(inside.mean() - outside.mean(), rel=1e-6, abs=1e-7)
        a, b = inside.var(ddof=1) / len(inside), outside.var(ddof=1) / len(outside)
        assert float(found.standard_error[unit]) == pytest.approx(math.sqrt(a + b), rel=1e-6)
        welch = (a + b) ** 2 / (a**2 / (len(inside) - 1) + b**2 / (len(outside) - 1))
        assert float(found.freedom[unit]) == pytest.approx(max(welch, 1), rel=1e-6)


def test_subsets_depend_on_the_seed_and_not_on_the_chunk() -> None:
    def drawn(*, seed: int = 0, chunk: int = 64) -> Tensor:
        model = Additive(torch.ones(5))
        subsampling(model, 5, samples=150, share=0.3, seed=seed, chunk=chunk)
        return torch.stack(model.seen)

    assert torch.equal(drawn(chunk=64), drawn(chunk=11))
    assert not torch.equal(drawn(seed=0), drawn(seed=1))
    assert float(drawn().double().mean()) == pytest.approx(0.3, abs=0.07)


def test_without_interactions_the_effects_of_single_units_are_recovered() -> None:
    weights = torch.linspace(-1, 1, 20, dtype=torch.float64)
    found = subsampling(Additive(weights), 20, samples=4000, share=0.2)
    assert float(found.standard_error.max()) < 0.12
    assert bool(((found.effects - weights).abs() < 4 * found.standard_error).all())
    estimate = found.estimate()
    assert (estimate.name, estimate.cost) == ("subsampling", 4000)
    assert torch.equal(estimate.importance, found.effects.abs())
    assert estimate.provenance == {"method": "subsampling", "samples": 4000, "share": 0.2, "seed": 0}


def test_with_interactions_the_average_over_subsets_is_recovered() -> None:
    def patched(chosen: Tensor) -> Tensor:
        first, second = chosen[:, :1].double(), chosen[:, 1:2].double()
        return first - 3 * first * second

    found = subsampling(patched, 3, samples=8000, share=0.25)
    average = torch.tensor([1 - 3 * 0.25, -3 * 0.25, 0], dtype=torch.float64)  # alone they would be 1, 0, 0
    assert float(found.standard_error.max()) < 0.04
    assert bool(((found.effects - average).abs() < 4 * found.standard_error).all())


def test_too_few_samples_are_refused_before_anything_is_run_and_enough_are_named() -> None:
    with pytest.raises(InvalidOption, match="at least 2 subsets") as refused:
        subsampling(never, 100, samples=30)
    advised = int(re.findall(r"take samples=([\d,]+)", str(refused.value))[0].replace(",", ""))
    assert 100 < advised < 1000
    refusals = 0
    for seed in range(40):
        try:
            subsampling(Additive(torch.ones(100)), 100, samples=advised, seed=seed, chunk=1000)
        except InvalidOption:
            refusals += 1
    assert refusals <= 3


def test_units_that_are_nearly_always_patched_are_refused_too() -> None:
    with pytest.raises(InvalidOption, match="out of at least 2"):
        subsampling(never, 3, samples=20, share=0.999)


def test_progress_is_reported() -> None:
    heard: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        heard.append((done, total))

    subsampling(Additive(torch.ones(2)), 2, samples=100, share=0.5, chunk=40, progress=report)
    assert heard == [(40, 100), (80, 100), (100, 100)]


# -------------------------------------------------------------------------------------------------------- bound


@pytest.mark.parametrize(
    ("confidence", "freedom", "expected"),
    [  # printed tables; nu = 1 and 2 from their closed forms
        (0.90, 1, 3.0776835),
        (0.975, 1, math.tan(math.pi * 0.475)),
        (0.9999, 1, math.tan(math.pi * 0.4999)),
        (0.90, 2, 0.8 / math.sqrt(2 * 0.9 * 0.1)),
        (0.9999, 2, 0.9998 / math.sqrt(2 * 0.9999 * 0.0001)),
        (0.90, 3, 1.6377444),
        (0.95, 5, 2.0150484),
        (0.975, 10, 2.2281389),
        (0.99, 30, 2.4572615),
        (0.995, 120, 2.6174211),
        (0.5, 7, 0.0),
        (0.95, 1e12, 1.6448536),
    ],
)
def test_quantiles_of_the_t_distribution(confidence: float, freedom: float, expected: float) -> None:
    value = float(t_quantile(confidence, torch.tensor(freedom, dtype=torch.float64)))
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(st.floats(0.51, 0.9999), st.floats(1, 400))
def test_a_quantile_has_its_probability_below_it(confidence: float, freedom: float) -> None:
    (value,) = t_quantile(confidence, torch.tensor([freedom], dtype=torch.float64)).tolist()
    log_constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    knots = np.linspace(0, math.asinh(value), 4001)  # Simpson's rule in asinh(t), where heavy tails are short
    t = np.sinh(knots)
    density = np.exp(log_constant - (freedom + 1) / 2 * np.log1p(t**2 / freedom)) * np.cosh(knots)
    weights = np.array([1.0] + [4.0, 2.0] * 1999 + [4.0, 1.0])
    below = 0.5 + float(density @ weights) * knots[1] / 3
    assert below == pytest.approx(confidence, abs=1e-9)


def test_quantiles_keep_the_shape_and_fall_with_the_freedom() -> None:
    freedom = torch.linspace(1, 1000, 40_000, dtype=torch.float64).reshape(2, -1)
    values = t_quantile(0.9, freedom)
    assert values.shape == freedom.shape
    assert bool((values.flatten().diff() < 0).all())


def test_the_bound_covers_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(12, generator=generator, dtype=torch.float64)
    weights[5] = 2.5  # the one that counts
    others = [unit for unit in range(12) if unit != 5]
    repetitions = 300
    missed = missed_alone = 0
    for seed in range(repetitions):
        found = subsampling(Additive(weights), 12, samples=60, share=0.3, seed=seed)
        missed += found.bound(confidence=0.9).bound < 2.5
        missed_alone += found.bound(confidence=0.9, verified=others).bound < 2.5
    slack = 3 * math.sqrt(0.1 * 0.9 / repetitions)
    assert missed_alone / repetitions == pytest.approx(0.1, abs=slack)
    assert missed <= missed_alone


def test_the_bound_is_the_largest_of_the_units_own() -> None:
    found = subsampling(Additive(planted(6, u1=3.0, u4=-2.0, u2=0.5)), 6, samples=400, share=0.3)
    own = found.effects.abs() + t_quantile(0.95, found.freedom) * found.standard_error
    everything = found.bound(confidence=0.95)
    assert (everything.unit, everything.bound) == (1, pytest.approx(float(own[1])))
    rest = found.bound(confidence=0.95, verified=[1])
    assert (rest.unit, rest.bound, rest.confidence) == (4, pytest.approx(float(own[4])), 0.95)
    assert found.bound(confidence=0.99, verified=[1]).bound > rest.bound
    for part in ("95%", "5 units", f"{rest.bound:.4g} (unit 4)", "average", "probability 0.3", "only if units do not"):
        assert part in rest.statement


def test_units_that_do_nothing_have_the_bound_zero() -> None:
    found = subsampling(Additive(torch.zeros(4)), 4, samples=50, share=0.5)
    assert found.bound().bound == 0


def test_bounds_that_make_no_sense_are_refused() -> None:
    found = subsampling(Additive(torch.ones(3)), 3, samples=50, share=0.5)
    with pytest.raises(InvalidOption, match="to below 1, such as"):
        found.bound(confidence=1.0)
    with pytest.raises(InvalidOption, match="to below 1, such as"):
        found.bound(confidence=0.4)
    with pytest.raises(InvalidOption, match="from 0 to 2; got 3"):
        found.bound(verified=[0, 3])
    with pytest.raises(InvalidOption, match="from 0 to 2; got -1"):
        found.bound(verified=[-1])
    with pytest.raises(InvalidOption, match="Nothing can be missed"):
        found.bound(verified=[0, 1, 2])
    with pytest.raises(InvalidOption, match="at least 1 degree of freedom"):
        t_quantile(0.9, torch.tensor([0.5]))


# ------------------------------------------------------------------------------------------ blocks and hierarchical


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99), st.sampled_from([1, 3, 64]))
def test_blocks_are_a_partition_and_members_share_the_effect(n_units: int, size: int, seed: int, chunk: int) -> None:
    model = Additive(torch.linspace(-2, 1, n_units))
    found = blocks(model, n_units, size=size, seed=seed, chunk=chunk)
    rows = torch.stack(model.seen)
    assert found.cost == len(rows) == math.ceil(n_units / size)
    assert rows.sum(0).tolist() == [1] * n_units
    assert int(rows.sum(1).max()) == min(size, n_units)
    expected = rows.T.double() @ (rows.double() @ model.weights).abs()
    assert torch.allclose(found.importance, expected)


def test_blocks_narrow_the_search_to_those_that_hold_an_effect() -> None:
    weights = planted(60, u7=2.0, u41=-1.0)
    found = blocks(Additive(weights), 60, size=5)
    assert found.cost == 12
    assert int((found.importance > 0).sum()) <= 10
    assert float(found.importance[7]) > 0
    recall = cost_of_verified_recall(found, weights, k=2)
    assert float(recall.cost[1]) <= 12 + 10 < 60


@given(
    st.integers(1, 40),
    st.integers(2, 5),
    st.integers(0, 60),
    st.integers(0, 99),
)
def test_hierarchical_keeps_to_its_budget_and_spreads_the_whole_effect(
    n_units: int, branching: int, extra: int, seed: int
) -> None:
    model = Additive(torch.linspace(0, 1, n_units))
    budget = min(branching, n_units) + extra
    found = hierarchical(model, n_units, budget=budget, branching=branching, seed=seed)
    assert found.cost == len(model.seen) <= budget
    assert float(found.importance.sum()) == pytest.approx(float(model.weights.sum()))
    if budget >= 2 * n_units:
        assert torch.allclose(found.importance, model.weights)


def test_hierarchical_goes_straight_to_a_single_effect() -> None:
    for unit in range(0, 64, 7):
        weights = planted(64, **{f"u{unit}": -3.0})
        found = hierarchical(Additive(weights), 64, budget=12)
        assert found.cost == 12  # two runs on each of log2(64) levels
        assert torch.equal(found.importance, weights.abs())


def test_hierarchical_is_cheaper_than_brute_force() -> None:
    weights = planted(256, u3=3.0, u100=-2.0, u222=1.0)
    found = hierarchical(Additive(weights), 256, budget=48)
    assert found.cost == 48
    recall = cost_of_verified_recall(found, weights, k=3)
    assert recall.cost.tolist() == [49, 50, 51]
    brute_force = [float(cost_of_verified_recall(iterative(256, seed=seed), weights, k=3).cost[2]) for seed in range(9)]
    assert min(brute_force) > 51


def test_hierarchical_looks_into_the_largest_block_first() -> None:
    model = Additive(planted(16, u0=1.0, u5=5.0))
    hierarchical(model, 16, budget=16)
    sizes = [int(row.sum()) for row in model.seen]
    assert sizes[:2] == [8, 8]
    for number in range(2, 8, 2):  # until unit 5 stands alone, each split is of a block that holds it
        pair = model.seen[number] | model.seen[number + 1]
        assert bool(pair[5])


# ----------------------------------------------------------------------------------------------------- comparison


def example() -> verification.Comparison:
    true = torch.linspace(-1, 0.9, 30, dtype=torch.float64)
    return compare([Estimate("oracle", true.abs()), Estimate("a_$x^2$ & <b>", true + 1, 6.0), iterative(30)], true)


def test_a_table_has_one_row_per_method() -> None:
    table = example().to_frame()
    assert table.columns.tolist() == ["method", "estimate_cost", "aggregate", "relative@1", "relative@10"]
    assert table["method"].tolist() == ["oracle", "a_$x^2$ & <b>", "iterative"]
    assert table.loc[0].tolist()[1:] == [0, 1, 1, 1]
    assert table.loc[1, "relative@1"] == 6 + 30  # the last in its order is truly the first
    assert "relative@100" in compare([iterative(100)], torch.rand(100)).to_frame()
    assert "relative@10" not in compare([iterative(100)], torch.rand(100), k=9).to_frame()
    assert "&lt;b&gt;" in example()._repr_html_()
    assert [len(recall.cost) for recall in compare([iterative(100)], torch.rand(100), k=9).recalls] == [9]


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")])
def test_a_figure_is_written(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"recall{suffix}"
    example().plot(path, dpi=60)
    first = path.read_bytes()
    assert first.startswith(start)
    assert len(first) > 2000
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "black"}):
        example().plot(str(path), dpi=60)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_figure_shows_names_as_they_are(tmp_path: Path) -> None:
    example().plot(tmp_path / "recall.svg")
    text = (tmp_path / "recall.svg").read_text(encoding="utf-8")
    assert "a_$x^2$ &amp; &lt;b&gt;" in text
    assert "oracle" in text


def test_a_figure_draws_the_relative_costs() -> None:
    comparison = example()
    (axes,) = verification._figure(comparison.recalls).axes
    drawn = [np.asarray(line.get_ydata()).tolist() for line in axes.lines]
    for recall in comparison.recalls:
        assert recall.relative.tolist() in drawn
    assert drawn[-1] == [1.0, 1.0]
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 4
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_many_lines_stay_apart_and_one_point_is_seen(tmp_path: Path) -> None:
    true = torch.rand(4)
    many = compare([Estimate(f"method {number}", true) for number in range(24)], true, k=1)
    (axes,) = verification._figure(many.recalls).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 25
    assert all(line.get_marker() == "o" for line in axes.lines[:-1])


@pytest.mark.parametrize("name", ["recall.jpg", "recall"])
def test_an_unknown_format_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidOption, match=r"expected .* \.svg, \.pdf, \.png; got .*recall"):
        example().plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: iterative(0), "n_units of at least 1; got 0"),
        (lambda: Estimate("x", torch.tensor([-1.0])), "Pass effects.abs()"),
        (lambda: Estimate("x", torch.tensor([math.nan])), "one finite importance"),
        (lambda: Estimate("x", torch.tensor([])), "one finite importance"),
        (lambda: Estimate("x", torch.ones(2), -1.0), "cost of at least 0"),
        (lambda: Estimate("x", torch.ones(2), math.nan), "cost of at least 0"),
        (lambda: subsampling(never, 3, samples=0), "samples of at least 1"),
        (lambda: subsampling(never, 3, samples=9, chunk=0), "chunk of at least 1"),
        (lambda: subsampling(never, 3, samples=9, share=0.0), "share between 0 and 1"),
        (lambda: subsampling(never, 3, samples=9, share=1.0), "share between 0 and 1"),
        (lambda: blocks(never, 3, size=0), "size of at least 1"),
        (lambda: hierarchical(never, 3, budget=1), "budget of at least 2; got 1"),
        (lambda: hierarchical(never, 3, budget=9, branching=1), "branching of at least 2"),
        (lambda: blocks(lambda chosen: torch.ones(len(chosen)), 3, size=1), "add a last axis"),
        (lambda: blocks(lambda chosen: torch.ones(1, 2), 3, size=1), "(3, …); got (1, 2)"),
        (lambda: cost_of_verified_recall(iterative(3), torch.ones(4)), "expected 3 finite true effects"),
        (lambda: cost_of_verified_recall(iterative(1), torch.tensor([math.inf])), "with NaN or infinity"),
        (lambda: cost_of_verified_recall(iterative(3), torch.ones(3), k=4), "k from 1 to 3"),
        (lambda: compare([], torch.ones(3)), "at least one estimate"),
        (lambda: compare([iterative(3), iterative(3, seed=1)], torch.ones(3)), "'iterative' twice"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(words)):
        call()


def test_effects_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NotFinite, match="finite effects of joint patching"):
        blocks(lambda chosen: torch.full((len(chosen), 1), math.nan), 3, size=1)

"""Tests of circuits: published values, exact enumeration, calibration under the null, power on planted cases."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import acdc, hsic
from circuits.binomial import at_least, at_most, binomial, clopper_pearson
from circuits.hypothesis_tests import (
    battery,
    equivalence,
    hsic_test,
    independence,
    minimality,
    necessity,
    sign_test,
    sufficiency,
)
from circuits.inflation import compare_with_reference
from circuits.select import top_edges
from circuits.tasks import ioi
from graphs.circuit import Circuit
from graphs.nodes import Edge
from patching import atp, toy
from patching.errors import InvalidMask, InvalidOption
from patching.lens import LensModel
from patching.masked import MaskedRun
from tests import tiny


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def circuit_of(run: MaskedRun, *names: str) -> Circuit:
    return Circuit(run.graph.architecture, map(Edge.parse, names))


def furthest_from_uniform(p_values: list[float]) -> float:
    """Kolmogorov's distance, of the upper steps: how much too often p-values are small."""
    ordered = sorted(p_values)
    return max((number + 1) / len(ordered) - p for number, p in enumerate(ordered))


# --- the binomial ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.sampled_from([0.1, 0.5, 0.6, 0.9]))
@settings(max_examples=30)
def test_tails_are_sums(trials: int, chance: float) -> None:
    pascal = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials + 1)]
    for k in range(trials + 1):
        assert binomial(k, trials, chance) == pytest.approx(pascal[k], rel=1e-10)
        assert at_most(k, trials, chance) == pytest.approx(sum(pascal[: k + 1]), abs=1e-12)
        assert at_least(k, trials, chance) == pytest.approx(sum(pascal[k:]), abs=1e-12)


def test_many_trials() -> None:
    """Where the coefficient would overflow: sums to 1, and the normal approximation with its continuity correction."""
    assert at_most(5000, 5000, 0.5) == 1.0
    assert math.fsum(binomial(k, 5000, 0.3) for k in range(5001)) == pytest.approx(1.0, abs=1e-10)
    z = (2550.5 - 2500) / math.sqrt(5000) * 2
    assert at_least(2551, 5000, 0.5) == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)), rel=1e-3)
    assert binomial(400, 1001, 0.4) == pytest.approx(binomial(400, 1000, 0.4) * 1001 / 601 * 0.6, rel=1e-9)


def test_tables() -> None:
    """Intervals of Clopper and Pearson as printed in tables: 8 of 10, 0 of 10 (1 - 0.025**0.1), 5 of 20."""
    for (successes, trials), expected in {
        (8, 10): (0.4439, 0.9748), (0, 10): (0.0, 0.3085), (10, 10): (0.6915, 1.0), (5, 20): (0.0866, 0.4910),
    }.items():  # fmt: skip
        assert clopper_pearson(successes, trials) == pytest.approx(expected, abs=5e-5)
    assert clopper_pearson(0, 10)[1] == pytest.approx(1 - 0.025**0.1)


def test_the_interval_holds_the_chance() -> None:
    """By enumeration of all outcomes, for every chance: at least 95 %."""
    intervals = [clopper_pearson(k, 15) for k in range(16)]
    for step in range(1, 40):
        chance = step / 40
        held = sum(binomial(k, 15, chance) for k, (low, high) in enumerate(intervals) if low <= chance <= high)
        assert held >= 0.95


def test_scipy_agrees() -> None:
    stats = pytest.importorskip("scipy.stats")
    for wins, trials in ((3, 11), (40, 64), (100, 200)):
        differences = torch.tensor([1.0] * wins + [-1.0] * (trials - wins))
        assert sign_test(differences).p_value == pytest.approx(stats.binomtest(wins, trials, 0.5).pvalue)
        less = stats.binomtest(wins, trials, 0.9, alternative="less").pvalue
        assert at_most(wins, trials, 0.9) == pytest.approx(less, rel=1e-9)
        interval = stats.binomtest(wins, trials).proportion_ci(method="exact")
        assert clopper_pearson(wins, trials) == pytest.approx((interval.low, interval.high), abs=1e-9)


# --- equivalence ----------------------------------------------------------------------------------------------------


def test_sign_test_by_hand() -> None:
    """5 of 6 above 0, one tie left out: (1 + 6 + 6 + 1) / 64. Within 0.1, the same tails at 0.6."""
    differences = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, -1.0, 0.0])
    result = sign_test(differences)
    assert (result.statistic, result.sample) == (pytest.approx(5 / 6), 6)
    assert result.p_value == pytest.approx(14 / 64)
    assert "1 prompts tie" in result.note
    wider = sum(math.comb(6, k) * 0.6**k * 0.4 ** (6 - k) for k in (0, 1, 5, 6))
    assert sign_test(differences, epsilon=0.1).p_value == pytest.approx(wider)


@pytest.mark.parametrize(("epsilon", "chance"), [(0.0, 0.5), (0.1, 0.6), (0.1, 0.4), (0.1, 0.47), (0.2, 0.55)])
def test_sign_test_holds_its_level(epsilon: float, chance: float) -> None:
    """Exactly: over all outcomes of 25 prompts, P(p <= alpha) <= alpha for every alpha, anywhere in the null."""
    outcomes = [
        (sign_test(torch.tensor([1.0] * k + [-1.0] * (25 - k)), epsilon=epsilon).p_value, binomial(k, 25, chance))
        for k in range(26)
    ]
    for alpha in [p for p, _ in outcomes]:
        assert sum(weight for p, weight in outcomes if p <= alpha) <= alpha + 1e-12


def test_sign_test_has_power() -> None:
    assert sign_test(-torch.ones(30), epsilon=0.1).p_value < 1e-5
    low, high = sign_test(-torch.ones(30)).interval
    assert low == 0.0
    assert high < 0.12


def test_equivalence_of_circuits() -> None:
    """The model equals itself everywhere. Head 1 alone (3.5, 1.5, 2, 1) beats the model (2.5, 2.5, 3, 2) once in four;
    by a loss, where lower is better, the circuit that loses most is still the one that is beaten.
    """
    run = MaskedRun(toy.model(), toy.task())
    same = equivalence(run, Circuit(run.graph.architecture, run.graph.edges))
    assert (same.p_value, same.note, same.interval) == (1.0, "equal on all 4 prompts", None)
    head = equivalence(run, circuit_of(run, "input->a0.h1<v>", "a0.h1->logits"))
    assert (head.statistic, head.sample) == (0.25, 4)
    nothing = Circuit(run.graph.architecture, ())
    for metric in ("log_probability", "loss"):
        result = equivalence(MaskedRun(toy.model(), toy.task(), metric=metric), nothing)
        assert result.statistic == 0.25  # only on the last prompt is the corrupt run better


# --- independence ---------------------------------------------------------------------------------------------------


def test_hsic_by_the_definition() -> None:
    """trace(K H L H) / (n - 1)^2 with matrices written out."""
    generator = seeded()
    left, right = torch.randn(2, 9, generator=generator, dtype=torch.float64)

    def kernel(values: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(values[:, None], values[:, None])
        width = torch.cat([distances[i, i + 1 :] for i in range(9)]).median()
        return torch.exp(-(distances**2) / (2 * width**2))

    centre = torch.eye(9, dtype=torch.float64) - 1 / 9
    expected = torch.trace(kernel(left) @ centre @ kernel(right) @ centre) / 64
    assert hsic.hsic(left, right) == pytest.approx(float(expected))
    assert hsic.hsic(left, right) == pytest.approx(hsic.hsic(right, left))
    assert hsic.hsic(left * 7 + 3, right) == pytest.approx(hsic.hsic(left, right))


def test_hsic_holds_its_level() -> None:
    """Independent samples, 300 times: p-values are uniform on 1/50, ..., 1 up to chance (Kolmogorov at 1 %: 0.094)."""
    generator = seeded(2)
    p_values = []
    for draw in range(300):
        left, right = torch.randn(2, 20, generator=generator, dtype=torch.float64)
        p_values.append(hsic.p_value(left.exp(), right, permutations=49, seed=draw))
    assert furthest_from_uniform(p_values) < 0.094
    assert furthest_from_uniform([1 + 1 / 50 - p for p in p_values]) < 0.094
    assert min(p_values) >= 1 / 50


def test_hsic_has_power_against_dependence_without_correlation() -> None:
    generator = seeded(3)
    rejected = 0
    for draw in range(30):
        left = torch.randn(40, generator=generator, dtype=torch.float64)
        right = left**2 + 0.3 * torch.randn(40, generator=generator, dtype=torch.float64)
        rejected += hsic.p_value(left, right, permutations=99, seed=draw) <= 0.05
    assert rejected >= 28


def test_exact_permutation_p_value() -> None:
    """All 24 orders of 4 examples: the sampled p-value comes to the share that is at least as large."""
    from itertools import permutations

    left = torch.tensor([0.0, 1.0, 3.0, 3.5], dtype=torch.float64)
    right = torch.tensor([1.0, 2.0, 7.0, 9.0], dtype=torch.float64)
    observed = hsic.hsic(left, right)
    share = sum(hsic.hsic(left, right[list(order)]) >= observed - 1e-12 for order in permutations(range(4))) / 24
    assert hsic.p_value(left, right, permutations=4000, seed=0) == pytest.approx(share, abs=0.02)


def test_a_metric_that_is_constant_is_said() -> None:
    result = hsic_test(torch.ones(5), torch.arange(5.0))
    assert (result.p_value, result.note) == (1.0, "the metric without the circuit is the same on every prompt")
    with pytest.raises(InvalidOption, match=r"3 or more examples; got 1000 and 2 and 2"):
        hsic_test(torch.ones(2), torch.ones(2))
    with pytest.raises(InvalidOption, match=r"at least 1 permutation"):
        hsic_test(torch.ones(4), torch.ones(4), permutations=0)


def test_an_empty_circuit_leaves_the_model_which_depends_on_itself() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(n=20))
    empty = Circuit(run.graph.architecture, ())
    first, again, other = (independence(run, empty, permutations=199, seed=seed) for seed in (0, 0, 1))
    assert first.p_value <= 0.01
    assert first == again
    assert other.p_value <= 0.01
    assert independence(run, Circuit(run.graph.architecture, run.graph.edges), permutations=9).statistic >= 0


# --- minimality -----------------------------------------------------------------------------------------------------


def test_edge_p_values_by_hand() -> None:
    """Effects 0, 2.5 and 9 against 0, 1, 2, 3 at the median: 0, 3 and 4 are smaller; an equal one is not."""
    reference = torch.arange(4.0)
    found = compare_with_reference(["a", "b", "c", "d"], torch.tensor([0.0, 2.5, 9.0, 1.0]), reference, 0.5, {})
    assert {each.edge: each.larger_than for each in found.edges} == {"a": 0.0, "b": 0.75, "c": 1.0, "d": 0.25}
    assert [each.p_value for each in found.edges] == pytest.approx([1 / 16, 5 / 16, 15 / 16, 1.0])
    assert found.p_value == pytest.approx(4 / 16)
    assert found.needless(alpha=0.3) == ("a",)
    assert found.needless() == ()


def test_minimality_holds_its_level_for_all_edges_together() -> None:
    """Ten edges with effects right at the quantile, the edge of the null: at most 5 % of 400 circuits fail."""
    generator, quantile = seeded(4), 0.8
    names, options = [str(number) for number in range(10)], {}
    rejected, single = 0, []
    for _ in range(400):
        reference = torch.rand(60, generator=generator, dtype=torch.float64)
        found = compare_with_reference(
            names, torch.full((10,), quantile, dtype=torch.float64), reference, quantile, options
        )
        rejected += found.p_value <= 0.05
        single.append(found.edges[0].p_value)
    assert rejected / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert furthest_from_uniform(single) < 1.63 / math.sqrt(400)


def test_a_planted_needless_edge_is_found() -> None:
    """Queries do nothing in the toy model; the other three edges do more than anything added at random."""
    run = MaskedRun(toy.model(), toy.task())
    needed = ("input->a0.h1<v>", "a0.h1->logits", "input->logits")
    planted = minimality(run, circuit_of(run, *needed, "input->a0.h1<q>"), reference=60, seed=1)
    assert planted.needless() == ("input->a0.h1<q>",)
    assert planted.edges[0].effect == 0.0
    clean = minimality(run, circuit_of(run, *needed), reference=60, seed=1)
    assert clean.needless() == ()
    assert clean.p_value == 1.0
    assert clean.to_frame()["edge"].tolist() == [each.edge for each in clean.edges]
    assert "0 of 3 edges shown needless" in str(clean)
    json.dumps(planted.to_dict(), allow_nan=False)


def test_reference_effects_are_edges_of_inflated_circuits() -> None:
    """Drawn again and run one by one."""
    from circuits.inflation import _inflated

    run = MaskedRun(tiny.model("llama"), tiny.task())
    circuit = top_edges(atp.scores(run), n=25)
    found = minimality(run, circuit, reference=8, seed=3)
    own = run.mask_of(circuit)
    expected = []
    for path, removed in _inflated(run, own > 0, 8, seeded(3)):
        assert not own[removed]
        assert path[removed]
        inflated = torch.maximum(own, path.double())
        without = inflated.clone()
        without[removed] = 0
        expected.append(abs(float((run(inflated) - run(without)).mean())))
    assert list(found.reference) == pytest.approx(expected, abs=1e-9)
    for each in found.edges:
        without = own.clone()
        without[run.graph.number(Edge.parse(each.edge))] = 0
        assert each.effect == pytest.approx(abs(float((run(own) - run(without)).mean())), abs=1e-9)
    assert minimality(run, circuit, reference=8, seed=3) == found
    assert minimality(run, circuit, reference=8, seed=4).reference != found.reference
    chunked = minimality(MaskedRun(tiny.model("llama"), tiny.task(), memory=1), circuit, reference=8, seed=3)
    assert list(chunked.reference) == pytest.approx(expected, abs=1e-9)


def test_the_whole_model_cannot_be_inflated() -> None:
    run = MaskedRun(toy.model(), toy.task())
    found = minimality(run, Circuit(run.graph.architecture, run.graph.edges), reference=5)
    assert (found.p_value, found.reference) == (1.0, ())
    assert "nothing to compare with" in found.note
    assert max(each.effect for each in found.edges) == pytest.approx(0.75)
    json.dumps(found.to_dict(), allow_nan=False)


# --- against random circuits ----------------------------------------------------------------------------------------


def test_sufficiency_and_necessity_by_hand() -> None:
    """The statistics are counts over the same random circuits, run one by one."""
    from circuits.random_circuits import random_paths

    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    circuit = top_edges(atp.scores(run), n=30)
    generator = seeded(5)
    others = [random_paths(run.graph, n=circuit.n_edges, generator=generator).double() for _ in range(12)]
    own, clean = run.mask_of(circuit), run.clean_metric.mean()
    for test, change in ((sufficiency, lambda mask: mask), (necessity, lambda mask: 1 - mask)):
        result = test(run, circuit, reference=12, quantile=0.5, seed=5)
        mine = abs(run(change(own)).mean() - clean)
        theirs = [abs(run(change(mask)).mean() - clean) for mask in others]
        beaten = sum(bool(mine < other if test is sufficiency else mine > other) for other in theirs)
        assert result.statistic == pytest.approx(beaten / 12)
        assert result.p_value == pytest.approx(sum(math.comb(12, k) for k in range(beaten, 13)) / 2**12)


def test_few_random_circuits_cannot_show_anything() -> None:
    run = MaskedRun(toy.model(), toy.task())
    result = sufficiency(run, top_edges(atp.scores(run), n=3), reference=10)
    assert "p-value cannot be below 0.35" in result.note
    assert not result.rejects()
    assert not result.ideal


def test_on_the_model_that_ships() -> None:
    """What ACDC finds passes against random paths; random edges do not (reduced)."""
    model = LensModel.load("zoo:ioi")
    search, judge = (MaskedRun(model, ioi.make(model, n=6, seed=0, split=split)) for split in ("train", "held-out"))
    circuit = acdc.search(search, tau=0.2)
    for test in (sufficiency, necessity):
        assert test(judge, circuit, reference=40, quantile=0.8).rejects()
    random = Circuit(model.graph.architecture, model.graph.edges[:: model.graph.n_edges // circuit.n_edges])
    assert not sufficiency(judge, random, reference=40, quantile=0.8).rejects()


def test_all_tests_together() -> None:
    run = MaskedRun(toy.model(), toy.task())
    seen: list[tuple[int, int]] = []
    found = battery(run, top_edges(atp.scores(run), n=3), reference=5, progress=lambda *step: seen.append(step))
    assert list(found) == ["equivalence", "independence", "minimality", "sufficiency", "necessity"]
    assert seen[-1] == (5, 5)
    for name, result in found.items():
        assert 0 < result.p_value <= 1
        assert str(result).startswith(f"{name}: p = ")
        json.dumps(result.to_dict(), allow_nan=False)


def test_bad_input_is_refused() -> None:
    run = MaskedRun(toy.model(), toy.task())
    circuit = top_edges(atp.scores(run), n=3)
    for test in (minimality, sufficiency, necessity):
        with pytest.raises(InvalidOption, match=r"reference of at least 1 and a quantile between 0 and 1"):
            test(run, circuit, reference=0)
        with pytest.raises(InvalidOption, match=r"reference of at least 1 and a quantile between 0 and 1"):
            test(run, circuit, quantile=1.0)
        with pytest.raises(InvalidOption, match=r"edges at every position"):
            test(run, circuit_of(run, "input->logits@1"))
        with pytest.raises(InvalidMask, match=r"circuit of a model with"):
            test(MaskedRun(tiny.model("gpt2"), tiny.task()), circuit)
    with pytest.raises(InvalidOption, match=r"circuit with edges; got one without"):
        minimality(run, circuit_of(run))
    with pytest.raises(InvalidOption, match=r"epsilon from 0 to below 0.5; got 0.5"):
        equivalence(run, circuit, epsilon=0.5)

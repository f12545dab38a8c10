"""Is a circuit what it claims to be? Statistical tests with p-values, against the model and against random circuits.

Three tests ask for an ideal circuit, and reject when the data show that it is not one:

* `equivalence`: circuit and model beat each other equally often,
* `independence`: what the model without the circuit does tells nothing about what the model does,
* `minimality`: no edge matters less than edges added at random.

Two ask for less, and reject when the data show that the circuit is better than chance:

* `sufficiency`: the circuit is more faithful than random circuits of its size,
* `necessity`: taking it out does more harm than taking out random circuits of its size.

A test that does not reject proves nothing: with few prompts it has little power. Results say how large the sample was,
and `equivalence` gives an interval for what it estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits import hsic
from circuits.binomial import at_least, binomial, clopper_pearson
from circuits.bootstrap import Interval
from circuits.inflation import MinimalityResult, check_reference, minimality
from circuits.knockout import edge_run, in_blocks
from circuits.random_circuits import random_paths
from graphs.circuit import Circuit
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent

__all__ = ["MinimalityResult", "TestResult", "battery", "equivalence", "hsic_test", "independence", "minimality",
           "necessity", "sign_test", "sufficiency"]  # fmt: skip


@dataclass(frozen=True)
class TestResult:
    """The outcome of one test.

    Attributes:
        name: of the test.
        null: the hypothesis that a small p-value speaks against.
        ideal: whether rejecting it speaks against the circuit (the three ideal tests) instead of for it.
        statistic: what was computed.
        p_value: probability of a statistic at least as extreme if the null hypothesis held (at most).
        sample: prompts or random circuits that the statistic is made of.
        interval: 95 % interval of what the statistic estimates, where there is one.
        options: of the test, with its seed.
        note: what a reader should know; empty if nothing.
    """

    __test__ = False  # no test case, whatever its name

    name: str
    null: str
    ideal: bool
    statistic: float
    p_value: float
    sample: int
    interval: Interval | None
    options: dict[str, Any]
    note: str = ""

    def rejects(self, *, alpha: float = 0.05) -> bool:
        """Whether the null hypothesis is rejected at a level."""
        return self.p_value <= alpha

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.name}: p = {self.p_value:.3g}, statistic {self.statistic:.3g} of {self.sample:,}; "
            f"H0: {self.null}{note}"
        )


# ---------------------------------------------------------------------------------------------- tests of a circuit


def equivalence(run: MaskedRun, circuit: Circuit, *, epsilon: float = 0.1) -> TestResult:
    """Do circuit and model beat each other equally often?

    A sign test over prompts. H0: ``abs(P(circuit better) - 1/2) <= epsilon``. A small p-value says that one of the two
    does better on most prompts; how much better plays no part.

    Cost: one masked run.

    Args:
        run: prompts (not those of the search), ablation and metric.
        circuit: of this model.
        epsilon: how far from 1/2 is still equivalent; below 1/2.

    Returns:
        The statistic is the share of prompts on which the circuit does better, with its exact interval.

    Raises:
        InvalidMask: the circuit is of a model of another shape.
        InvalidOption: epsilon is out of range.

    Source: arXiv 2410.13032, section 3.1. Theirs assumes that no prompt ties; here ties are left out, as is usual in
    sign tests.

    Example:
        >>> from patching import MaskedRun, toy
        >>> from graphs import Circuit
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> equivalence(run, Circuit(run.graph.architecture, run.graph.edges)).note
        'equal on all 4 prompts'
    """
    run = edge_run(run, circuit)
    values = run(run.mask_of(circuit)).cpu()
    better = (values - run.clean_metric.cpu()) * (1 if run.metric.higher_is_better else -1)
    return sign_test(better, epsilon=epsilon)


def independence(run: MaskedRun, circuit: Circuit, *, permutations: int = 1000, seed: int = 0) -> TestResult:
    """Does what the model does without the circuit tell anything about what it does?

    A permutation test of the Hilbert-Schmidt independence criterion between the metric with the circuit ablated and
    the clean metric, over prompts. H0: they are independent. A small p-value says that something outside the circuit
    knows about the task.

    Cost: one masked run; the test takes permutations x prompts squared.

    Args:
        run: prompts (not those of the search), ablation and metric.
        circuit: of this model.
        permutations: of the prompts.
        seed: of the permutations.

    Raises:
        InvalidMask: the circuit is of a model of another shape.
        InvalidOption: fewer than one permutation, or fewer than three prompts.

    Source: arXiv 2410.13032, section 3.2; HSIC: Gretton et al. 2007. Theirs takes one bandwidth from the distances
    between the two, here each variable has its own; and the observed order counts among the permutations, so that
    the p-value is never 0 and holds its level.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> 0 < independence(run, top_edges(atp.scores(run), n=3), permutations=20).p_value <= 1
        True
    """
    run = edge_run(run, circuit)
    without = run(1 - run.mask_of(circuit)).cpu()
    return hsic_test(without, run.clean_metric.cpu(), permutations=permutations, seed=seed)


def sufficiency(
    run: MaskedRun,
    circuit: Circuit,
    *,
    reference: int = 100,
    quantile: float = 0.9,
    seed: int = 0,
    progress: Progress = silent,
) -> TestResult:
    """Is the circuit more faithful than random circuits of its size?

    Faithfulness loss is ``abs(mean metric(circuit) - mean metric(model))``. H0: the circuit loses less than a random
    union of paths of as many edges with probability of at most ``quantile``. A small p-value speaks for the circuit.

    Cost: one masked run and one per random circuit.

    Args:
        run: prompts (not those of the search), ablation and metric.
        circuit: of this model.
        reference: number of random circuits; each has at least as many edges.
        quantile: the share of random circuits that the circuit should beat, between 0 and 1.
        seed: of the random circuits.
        progress: called with the number of runs done and in all.

    Returns:
        The statistic is the share of random circuits that lose more; ties count against the circuit.

    Raises:
        InvalidMask: the circuit is of a model of another shape.
        InvalidOption: an option is out of range.

    Source: arXiv 2410.13032, section 4 (sufficiency). Theirs counts ties for the circuit.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> 0 < sufficiency(run, top_edges(atp.scores(run), n=3), reference=20).p_value <= 1
        True
    """
    values, clean = _against_random(run, circuit, reference, quantile, seed, progress, keep=True)
    loss = (values.mean(-1) - clean.mean()).abs()
    better = int((loss[0] < loss[1:]).sum())
    null = f"the circuit loses less than at most {quantile:.0%} of random circuits of its size"
    return _binomial_result("sufficiency", null, better, reference, quantile, seed)


def necessity(
    run: MaskedRun,
    circuit: Circuit,
    *,
    reference: int = 100,
    quantile: float = 0.9,
    seed: int = 0,
    progress: Progress = silent,
) -> TestResult:
    """Does taking the circuit out do more harm than taking out random circuits of its size?

    Harm is ``abs(mean metric(model without the edges) - mean metric(model))``. H0: the circuit does more than a random
    union of paths of as many edges with probability of at most ``quantile``. A small p-value speaks for the circuit.

    Cost: one masked run and one per random circuit.

    Args:
        run: prompts (not those of the search), ablation and metric.
        circuit: of this model.
        reference: number of random circuits, drawn from the whole model; each has at least as many edges.
        quantile: the share of random circuits that the circuit should exceed, between 0 and 1.
        seed: of the random circuits.
        progress: called with the number of runs done and in all.

    Returns:
        The statistic is the share of random circuits that do less harm; ties count against the circuit.

    Raises:
        InvalidMask: the circuit is of a model of another shape.
        InvalidOption: an option is out of range.

    Source: arXiv 2410.13032, section 4 (partial necessity).

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> 0 < necessity(run, top_edges(atp.scores(run), n=3), reference=20).p_value <= 1
        True
    """
    values, clean = _against_random(run, circuit, reference, quantile, seed, progress, keep=False)
    harm = (values.mean(-1) - clean.mean()).abs()
    worse = int((harm[0] > harm[1:]).sum())
    null = f"taking it out harms more than at most {quantile:.0%} of random circuits of its size"
    return _binomial_result("necessity", null, worse, reference, quantile, seed)


def battery(
    run: MaskedRun, circuit: Circuit, *, reference: int = 100, seed: int = 0, progress: Progress = silent
) -> dict[str, TestResult | MinimalityResult]:
    """All five tests with their usual options.

    Cost: one masked run per edge and four per random circuit.

    Args:
        run: prompts (not those of the search), ablation and metric.
        circuit: of this model, with edges.
        reference: number of random circuits and of inflations.
        seed: of permutations and random circuits.
        progress: called with how many tests are done and in all.

    Raises:
        InvalidMask: the circuit is of a model of another shape.
        InvalidOption: the circuit has no edges, or edges at single positions; or fewer than three prompts.

    Source: arXiv 2410.13032.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> sorted(battery(run, top_edges(atp.scores(run), n=3), reference=10))
        ['equivalence', 'independence', 'minimality', 'necessity', 'sufficiency']
    """
    results: dict[str, TestResult | MinimalityResult] = {}
    tests: tuple[tuple[Callable[..., TestResult | MinimalityResult], dict[str, Any]], ...] = (
        (equivalence, {}),
        (independence, {"seed": seed}),
        (minimality, {"seed": seed, "reference": reference}),
        (sufficiency, {"seed": seed, "reference": reference}),
        (necessity, {"seed": seed, "reference": reference}),
    )
    for number, (test, options) in enumerate(tests, start=1):
        results[test.__name__] = test(run, circuit, **options)
        progress(number, len(tests))
    return results


# --------------------------------------------------------------------------------------------- tests of plain values


def sign_test(differences: Float[Tensor, " example"], *, epsilon: float = 0.0) -> TestResult:
    """Are differences above 0 as often as below?

    H0: ``abs(P(difference > 0) - 1/2) <= epsilon``, of those that are not 0. With k of n above 0, the p-value is
    ``P(abs(K / n - 1/2) >= abs(k / n - 1/2))`` for K binomial with ``1/2 + epsilon``, the worst case of H0.

    Args:
        differences: one per prompt; those that are exactly 0 are left out.
        epsilon: from 0 to below 1/2.

    Returns:
        The statistic is k / n, with its interval of Clopper and Pearson.

    Raises:
        InvalidOption: epsilon is out of range.

    Example:
        >>> result = sign_test(torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, -1.0]))
        >>> round(result.p_value, 5), round(result.statistic, 3)  # 14 of 64 sequences of signs are as uneven
        (0.21875, 0.833)
    """
    if not 0 <= epsilon < 0.5:
        raise InvalidOption(f"expected epsilon from 0 to below 0.5; got {epsilon}.")
    count, wins = int((differences != 0).sum()), int((differences > 0).sum())
    ties = len(differences) - count
    options = {"epsilon": epsilon}
    null = f"circuit and model beat each other equally often, within {epsilon:g}"
    if not count:
        return TestResult("equivalence", null, True, 0.5, 1.0, 0, None, options, f"equal on all {ties:,} prompts")
    uneven = abs(2 * wins - count)
    p_value = math.fsum(
        binomial(number, count, 0.5 + epsilon) for number in range(count + 1) if abs(2 * number - count) >= uneven
    )
    note = f"{ties:,} prompts tie and are left out" if ties else ""
    interval = clopper_pearson(wins, count)
    return TestResult("equivalence", null, True, wins / count, min(1.0, p_value), count, interval, options, note)


def hsic_test(
    left: Float[Tensor, " example"], right: Float[Tensor, " example"], *, permutations: int = 1000, seed: int = 0
) -> TestResult:
    """Are two variables independent?

    A permutation test of the Hilbert-Schmidt independence criterion; see `circuits.hsic`.

    Args:
        left: one variable.
        right: the other.
        permutations: of one against the other.
        seed: of the permutations.

    Raises:
        InvalidOption: fewer than one permutation, or fewer than three examples.

    Example:
        >>> line = torch.arange(20.0)
        >>> hsic_test(line, line**2, permutations=99).p_value
        0.01
    """
    if permutations < 1 or len(left) < 3 or len(left) != len(right):
        raise InvalidOption(
            f"expected at least 1 permutation and two variables of the same 3 or more examples; got {permutations} and "
            f"{len(left)} and {len(right)} examples."
        )
    options = {"permutations": permutations, "seed": seed}
    null = "the model without the circuit is independent of the model"
    constant = [
        name for name, each in (("without the circuit", left), ("clean", right)) if bool((each == each[0]).all())
    ]
    if constant:
        note = f"the metric {' and '.join(constant)} is the same on every prompt"
        return TestResult("independence", null, True, 0.0, 1.0, len(left), None, options, note)
    p_value = hsic.p_value(left, right, permutations=permutations, seed=seed)
    statistic = hsic.hsic(left, right)
    return TestResult("independence", null, True, statistic, p_value, len(left), None, options)


# --------------------------------------------------------------------------------------------------------- parts


def _against_random(
    run: MaskedRun,
    circuit: Circuit,
    reference: int,
    quantile: float,
    seed: int,
    progress: Progress,
    *,
    keep: bool,
) -> tuple[Float[Tensor, "sample example"], Float[Tensor, " example"]]:
    """The metric of the circuit, or of what is left without it, then the same of random circuits; and the clean one."""
    check_reference(circuit, reference=reference, quantile=quantile)
    run = run.edges()
    own = run.mask_of(circuit)
    generator = torch.Generator().manual_seed(seed)
    chosen = [random_paths(run.graph, n=circuit.n_edges, generator=generator) for _ in range(reference)]

    def mask(index: int) -> Tensor:
        kept = own if index == 0 else chosen[index - 1].to(own.dtype).expand(own.shape)
        return kept if keep else 1 - kept

    return in_blocks(run, 1 + reference, mask, progress=progress), run.clean_metric.cpu()


def _binomial_result(name: str, null: str, count: int, reference: int, quantile: float, seed: int) -> TestResult:
    options = {"reference": reference, "quantile": quantile, "seed": seed}
    p_value = at_least(count, reference, quantile)
    smallest = quantile**reference
    note = f"with {reference:,} random circuits the p-value cannot be below {smallest:.2g}" if smallest > 0.05 else ""
    interval = clopper_pearson(count, reference)
    return TestResult(name, null, False, count / reference, p_value, reference, interval, options, note)

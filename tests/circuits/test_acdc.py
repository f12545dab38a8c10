"""ACDC against the sequential algorithm, edge for edge."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circuits import acdc
from circuits.acdc import Decision
from graphs.circuit import Circuit
from graphs.nodes import Edge
from patching import toy
from patching.errors import InvalidOption, NotFinite
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.metrics import Metric
from patching.model_sources import zoo_names
from patching.task import Task
from tests import tiny
from tests.acdc_reference import Step, sequential, ties
from tests.oracle import Oracle, logit_difference

DOUBLE, SINGLE = torch.float64, torch.float32


def run_of(family: str, *, dtype: torch.dtype = DOUBLE, n: int = 2, **options: object) -> MaskedRun:
    return MaskedRun(tiny.model(family, dtype=dtype), tiny.task(n=n, prefix=1), **options)  # type: ignore[arg-type]


def same_circuit(run: MaskedRun, circuit: Circuit, mask: Tensor, steps: list[Step]) -> None:
    """The same edges, with the same deltas as scores."""
    expected = {run.units[number] for number in mask.nonzero().flatten().tolist()}
    assert set(circuit.edges) == expected, f"{set(circuit.edges) ^ expected}"
    sign = -1 if run.metric.higher_is_better else 1
    close = 1e-9 if run.model.dtype == DOUBLE else 1e-3
    for step in steps:
        if step.kept:
            assert step.delta is not None
            assert circuit.scores[run.units[step.edge]] == pytest.approx(sign * step.delta, abs=close)


def compare(run: MaskedRun, tau: float, *, absolute: bool = False) -> list[Step]:
    mask, steps = sequential(run, tau=tau, absolute=absolute)
    same_circuit(run, acdc.search(run, tau=tau, absolute=absolute), mask, steps)
    return steps


def compare_at_ties(run: MaskedRun, tau: float, *, at_most: int = 1) -> None:
    """At tau, and at thresholds that a delta of the same search equals to the last bit."""
    exact = ties(compare(run, tau), tau=tau)
    assert exact
    for delta in exact[:: max(1, len(exact) // at_most)][:at_most]:
        compare(run, delta)


# --- the same circuit, edge for edge --------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2"])
def test_double_precision(family: str, metric: str) -> None:
    compare_at_ties(run_of(family, metric=metric), 0.03)


@pytest.mark.parametrize(
    ("family", "metric"), [("gpt_neox", "kl"), ("qwen3", "logit_difference"), ("attention_only", "kl")]
)
def test_single_precision(family: str, metric: str) -> None:
    compare_at_ties(run_of(family, dtype=SINGLE, metric=metric), 0.02)


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_tau_of_zero_keeps_what_changes_nothing(dtype: torch.dtype) -> None:
    """Only edges whose loss helps go; a delta of exactly 0 is not below 0."""
    for family in ("gpt2", "llama"):
        compare(run_of(family, dtype=dtype), 0.0)


@pytest.mark.parametrize(("family", "metric"), [("gpt2", "logit_difference"), ("llama", "kl")])
def test_absolute(family: str, metric: str) -> None:
    run = run_of(family, metric=metric)
    compare(run, 0.05, absolute=True)
    signed, absolute = (acdc.search(run, tau=0.05, absolute=flag).edges for flag in (False, True))
    if metric == "logit_difference":
        assert set(signed) != set(absolute)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_other_ablations(ablation: str) -> None:
    compare(run_of("gpt2", ablation=ablation), 0.1)


def test_one_prompt_and_one_mask_at_a_time() -> None:
    plenty, little = (run_of("llama", dtype=SINGLE, memory=memory) for memory in (1 << 27, 1))
    assert acdc.search(plenty, tau=0.05).edges == acdc.search(little, tau=0.05).edges


def test_on_the_model_s_own_code() -> None:
    """The reference asks the oracle for every damage: no part of the engine is shared."""
    run = run_of("gpt2")
    oracle = Oracle(run.model)
    replacement = oracle.sources(run.task.corrupt)
    clean = logit_difference(run.task, run.model.logits(run.task.clean)).mean()

    def damage(mask: Tensor) -> float:
        value = oracle.measure(run.task, mask.unbind(), replacement=replacement, metric=logit_difference)
        return float(clean - value.mean())

    mask, steps = sequential(run, tau=0.1, damage=damage)
    same_circuit(run, acdc.search(run, tau=0.1), mask, steps)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_every_family_at_many_taus(family: str, dtype: torch.dtype, metric: str) -> None:
    for n, tau in ((2, 0.0), (3, 0.01), (2, 0.1), (3, 0.5)):
        run = run_of(family, dtype=dtype, metric=metric, n=n)
        compare_at_ties(run, tau, at_most=6)
        compare(run, tau, absolute=True)


def zoo_run(*, n: int, dtype: torch.dtype, **options: object) -> MaskedRun:
    from circuits import tasks

    model = LensModel.load("zoo:ioi", dtype=dtype)
    return MaskedRun(model, tasks.ioi.make(model, n=n, seed=0), **options)  # type: ignore[arg-type]


TRAINED = pytest.mark.skipif("zoo:ioi" not in zoo_names(), reason="zoo:ioi is not there yet")


@TRAINED
@pytest.mark.parametrize(("metric", "tau"), [("logit_difference", 1.0), ("kl", 0.3)])
def test_a_trained_model(metric: str, tau: float) -> None:
    compare(zoo_run(n=2, dtype=SINGLE, metric=metric), tau)


@TRAINED
@pytest.mark.slow
@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_a_trained_model_at_many_taus(dtype: torch.dtype, metric: str) -> None:
    run = zoo_run(n=8, dtype=dtype, metric=metric)
    for tau in (0.0, 0.001, 0.01, 0.1, 1.0):
        compare_at_ties(run, tau, at_most=4)
        compare(run, tau, absolute=True)


# --- what is decided, and how it is told ----------------------------------------------------------------------------


def watched(run: MaskedRun, tau: float, **options: object) -> tuple[Circuit, list[Decision]]:
    decisions: list[Decision] = []
    circuit = acdc.search(run, tau=tau, watch=decisions.append, **options)  # type: ignore[arg-type]
    return circuit, decisions


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decisions_are_those_of_the_reference_in_its_order(family: str) -> None:
    run = run_of(family)
    _, decisions = watched(run, 0.05)
    _, steps = sequential(run, tau=0.05)
    assert len(decisions) == run.n_units
    for decision, step in zip(decisions, steps, strict=True):
        assert (decision.name, decision.kept) == (str(run.units[step.edge]), step.kept)
        assert (decision.delta is None) == (step.delta is None)
        assert decision.delta is None or decision.delta == pytest.approx(step.delta, abs=1e-9)


def test_order_by_hand() -> None:
    """The toy: from the logits back; values, then keys, then queries; within each, later heads first."""
    _, decisions = watched(MaskedRun(toy.model(), toy.task()), 0.1)
    assert [decision.name for decision in decisions] == [
        "a0.h1->logits", "a0.h0->logits", "input->logits",
        "input->a0.h1<v>", "input->a0.h0<v>",
        "input->a0.h1<k>", "input->a0.h0<k>",
        "input->a0.h1<q>", "input->a0.h0<q>",
    ]  # fmt: skip


def test_circuit_by_hand() -> None:
    """On "0 1" against "0 3" only head 1 and the embedding's own logit matter."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
    circuit, decisions = watched(run, 0.1)
    assert set(map(str, circuit.edges)) == {"a0.h1->logits", "input->logits", "input->a0.h1<v>"}
    assert circuit.scores[Edge.parse("a0.h1->logits")] == pytest.approx(-1.5)
    dead = {decision.name for decision in decisions if decision.delta is None}
    assert dead == {"input->a0.h0<v>", "input->a0.h0<k>", "input->a0.h0<q>"}  # head 0 feeds nothing any more
    assert acdc.search(run, tau=1.5).n_edges == 2  # 1.5 is not below 1.5
    assert acdc.search(run, tau=1.6).n_edges == 0


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", DOUBLE), ("llama", SINGLE)])
def test_a_search_goes_on_from_any_decision(family: str, dtype: torch.dtype) -> None:
    run = run_of(family, dtype=dtype)
    circuit, decisions = watched(run, 0.05)
    for done in (0, 1, 10, 11, 17, 40, len(decisions) - 1, len(decisions)):
        again: list[Decision] = []
        resumed = acdc.search(run, tau=0.05, decided=decisions[:done], watch=again.append)
        assert resumed.edges == circuit.edges, f"after {done} decisions"
        close = 1e-9 if dtype == DOUBLE else 1e-3
        assert resumed.scores == pytest.approx(circuit.scores, abs=close)
        assert [d.name for d in again] == [d.name for d in decisions[done:]]


def test_progress_counts_edges() -> None:
    seen: list[tuple[int, int]] = []
    acdc.search(MaskedRun(toy.model(), toy.task()), tau=0.1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 9) for done in range(1, 10)]


def test_provenance_makes_the_search_repeatable() -> None:
    run = MaskedRun(toy.model(), toy.task(), metric="kl", ablation="mean")
    found = acdc.search(run, tau=0.25, absolute=True).provenance
    assert (found["method"], found["metric"], found["ablation"]) == ("acdc", "kl", "mean")
    assert found["options"].items() >= {"tau": 0.25, "absolute": True}.items()
    assert "receivers last to first" in found["order"]
    assert found["guard"]["band"] >= found["guard"]["largest_rounding"] >= 0


def test_larger_tau_larger_loss() -> None:
    """Not a law edge for edge, but nothing is dropped at tau 0 on a model whose edges all help, and all at infinity."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
    assert acdc.search(run, tau=0.0).n_edges == 9
    assert acdc.search(run, tau=1e9).n_edges == 0


def test_a_search_can_be_interrupted_without_a_trace() -> None:
    run = run_of("gpt2")
    decisions: list[Decision] = []

    def interrupt(decision: Decision) -> None:
        decisions.append(decision)
        if len(decisions) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        acdc.search(run, tau=0.05, watch=interrupt)
    assert acdc.search(run, tau=0.05, decided=decisions).edges == acdc.search(run, tau=0.05).edges


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [-0.1, math.nan, math.inf, "0.1", None, [0.1]])
def test_a_tau_that_is_no_threshold_is_refused(tau: object) -> None:
    with pytest.raises(InvalidOption, match=r"tau to be a number of 0 or more, in the unit of logit_difference; got"):
        acdc.search(MaskedRun(toy.model(), toy.task()), tau=tau)  # type: ignore[arg-type]


def test_a_run_over_neurons_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"run over edges or nodes; got one over neurons"):
        acdc.search(run_of("gpt2").neurons(), tau=0.1)


def test_decisions_of_another_model_are_refused() -> None:
    _, decisions = watched(run_of("gpt2"), 0.05)
    with pytest.raises(
        InvalidOption, match=r"expected decision 0 to be about a0.h1->logits; got m1->logits.*start again"
    ):
        acdc.search(MaskedRun(toy.model(), toy.task()), tau=0.05, decided=decisions)


def test_a_metric_that_becomes_nan_is_named() -> None:
    """Fine on the clean run, undefined once the answer's logit falls."""
    fragile = Metric("log of the difference", True, lambda p: p.logit_difference().log())
    with pytest.raises(NotFinite, match=r"finite log of the difference"):
        acdc.search(MaskedRun(toy.model(), toy.task(), metric=fragile), tau=5.0)


def test_a_task_without_a_difference_keeps_nothing() -> None:
    """Identical prompts: no edge matters (and no division by the gap)."""
    task = tiny.task()
    same = Task("same", task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    assert acdc.search(MaskedRun(tiny.model("gpt2"), same), tau=1e-6).n_edges == 0

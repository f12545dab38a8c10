"""What a circuit is worth: numbers by hand, identities, and gaps that are too small to divide by."""

from __future__ import annotations

import json

import pytest
import torch

from circuits import evaluate
from circuits.evaluation import Report
from graphs.circuit import Circuit
from graphs.components import Architecture
from graphs.nodes import Edge
from patching import toy
from patching.errors import InvalidMask, InvalidOption
from patching.masked import MaskedRun
from patching.task import Task
from tests import tiny
from tests.leftovers import traces
from tests.oracle import Oracle, logit_difference


def circuit_of(run: MaskedRun, *edges: str) -> Circuit:
    return Circuit(run.graph.architecture, tuple(map(Edge.parse, edges)))


def whole(run: MaskedRun) -> Circuit:
    return Circuit(run.graph.architecture, run.edges().units)  # type: ignore[arg-type]


def test_by_hand() -> None:
    """On "0 1" (2.5) against "0 3" (0): head 1 alone carries 1.5 of it, the embedding 1."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
    report = evaluate(run, circuit_of(run, "input->a0.h1<v>", "a0.h1->logits"))
    assert (report.clean, report.ablated) == (pytest.approx(2.5), pytest.approx(0.0))
    assert report.circuit == pytest.approx(1.5)
    assert report.complement == pytest.approx(1.0)
    assert report.faithfulness == pytest.approx(0.6)
    assert report.completeness_gap == pytest.approx(0.4)
    assert (report.n_edges, report.n_nodes, report.n_possible) == (2, 3, 9)
    assert (report.metric, report.prompts, report.interval) == ("logit_difference", 1, None)


def test_ends(family: str) -> None:
    """All edges are the model (1), none are the ablated model (0) (P1.6)."""
    run = MaskedRun(tiny.model(family), tiny.task())
    everything = evaluate(run, whole(run), random_circuits=1, resamples=50)
    assert everything.faithfulness == pytest.approx(1.0, abs=1e-9)
    assert everything.completeness_gap == pytest.approx(0.0, abs=1e-9)
    assert everything.circuit == pytest.approx(everything.clean)
    nothing = evaluate(run, circuit_of(run), random_circuits=1, resamples=50)
    assert nothing.faithfulness == pytest.approx(0.0, abs=1e-9)
    assert nothing.completeness_gap == pytest.approx(1.0, abs=1e-9)
    assert nothing.random_faithfulness == pytest.approx(0.0, abs=1e-9)
    assert nothing.interval == pytest.approx((0.0, 0.0), abs=1e-9)


def test_kl_of_the_ablated_model_is_that_of_the_corrupt_prompts() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(), metric="kl")
    rows = torch.arange(3)
    clean, corrupt = (
        torch.log_softmax(run.model.logits(tokens)[rows, run.task.positions], -1)
        for tokens in (run.task.clean, run.task.corrupt)
    )
    expected = (clean.exp() * (clean - corrupt)).sum(-1).mean()
    report = evaluate(run, whole(run))
    assert report.clean == pytest.approx(0.0, abs=1e-12)
    assert report.ablated == pytest.approx(float(expected))


def test_the_circuit_is_what_the_oracle_computes() -> None:
    run = MaskedRun(tiny.model("qwen2"), tiny.task())
    circuit = circuit_of(
        run, "input->a0.kv1<v>", "a0.h2->m0", "m0->a1.kv0<k>", "m0->a1.h1<q>", "a1.h1->logits", "m0->logits"
    )
    oracle, mask = Oracle(run.model), run.mask_of(circuit)
    report = evaluate(run, circuit)
    for value, kept in ((report.circuit, mask), (report.complement, 1 - mask)):
        expected = oracle.measure(run.task, kept.unbind(), metric=logit_difference).mean()
        assert value == pytest.approx(float(expected), abs=1e-5)


def test_faithfulness_is_not_clipped() -> None:
    """Head 0 works against head 1: without it, more than the whole is left."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(0, 1)))  # "0 1" to "0 0": 2.5 to 2
    report = evaluate(run, circuit_of(run, "a0.h1->logits", "input->a0.h1<v>"))
    assert report.faithfulness == pytest.approx(3.0)


def test_no_gap_no_faithfulness() -> None:
    task = tiny.task()
    same = Task("same", task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    report = evaluate(MaskedRun(tiny.model("gpt2"), same), whole(MaskedRun(tiny.model("gpt2"), same)))
    assert (report.faithfulness, report.interval, report.completeness_gap) == (None, None, None)
    assert report.random_faithfulness is None
    assert "undefined (no gap between clean and ablated)" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_seeds_repeat() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    circuit = Circuit(run.graph.architecture, run.units[::2])  # type: ignore[arg-type]
    first, again, other = (evaluate(run, circuit, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.random_faithfulness != other.random_faithfulness
    assert first.circuit == other.circuit


def test_the_interval_is_around_the_estimate() -> None:
    run = MaskedRun(tiny.model("llama"), tiny.task(n=12))
    report = evaluate(run, circuit_of(run, "input->m0", "m0->logits", "m0->m1", "m1->logits"))
    assert report.interval is not None
    assert report.faithfulness is not None
    low, high = report.interval
    assert low < report.faithfulness < high


def test_random_circuits_have_the_size_of_the_circuit() -> None:
    """As large as the model they are the model; none are asked for, none are run."""
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    assert evaluate(run, whole(run), random_circuits=3).random_faithfulness == pytest.approx(1.0)
    assert evaluate(run, whole(run), random_circuits=0).random_faithfulness is None


def test_prompts_do_not_depend_on_their_batch() -> None:
    circuit = circuit_of(MaskedRun(tiny.model("gpt2"), tiny.task()), "input->m0", "m0->logits")
    whole_batch, one_by_one = (
        evaluate(MaskedRun(tiny.model("gpt2"), tiny.task(), memory=memory), circuit).to_dict()
        for memory in (1 << 27, 1)
    )
    intervals = whole_batch.pop("intervals"), one_by_one.pop("intervals")
    assert whole_batch.pop("notes") == one_by_one.pop("notes")
    assert whole_batch.pop("interval") == pytest.approx(one_by_one.pop("interval"))
    assert whole_batch == pytest.approx(one_by_one)
    assert set(intervals[0]) == set(intervals[1])
    for name, interval in intervals[0].items():
        assert interval == pytest.approx(intervals[1][name], abs=1e-12)


def test_the_view_of_the_run_does_not_matter() -> None:
    run = MaskedRun(toy.model(), toy.task())
    circuit = circuit_of(run, "a0.h1->logits")
    assert evaluate(run.nodes(), circuit) == evaluate(run, circuit)


def test_a_report_reads_as_text() -> None:
    run = MaskedRun(toy.model(), toy.task())
    text = str(evaluate(run, circuit_of(run, "input->a0.h1<v>", "a0.h1->logits")))
    for part in ("2 of 9 edges (22.22%), 3 nodes; 4 prompts", "logit_difference: model 2.500", "faithfulness", "95 %"):
        assert part in text
    assert isinstance(evaluate(run, circuit_of(run)), Report)


def test_nothing_is_left_behind() -> None:
    model = tiny.model("gemma2")
    before = traces(model)
    run = MaskedRun(model, tiny.task())
    evaluate(run, whole(run))
    assert traces(model) == before


# --- beside the circuit: intervals, random circuits, KL, notes ------------------------------------------------------


def test_every_figure_has_an_interval_around_it() -> None:
    """With every one of 12 prompts; the worst prompt is one prompt and has none."""
    run = MaskedRun(tiny.model("llama"), tiny.task(n=12))
    report = evaluate(run, circuit_of(run, "input->m0", "m0->logits", "m0->m1", "m1->logits"))
    figures = ("clean", "ablated", "circuit", "complement", "faithfulness", "completeness_gap", "random_faithfulness",
               "random_paths", "kl", "kl_ablated", "kl_faithfulness", "kl_random")  # fmt: skip
    assert set(report.intervals) == set(figures)
    for name in figures:
        low, high = report.intervals[name]
        assert low - 1e-9 <= getattr(report, name) <= high + 1e-9
    assert report.interval == report.intervals["faithfulness"]
    assert report.kl_worst >= report.kl


def test_random_circuits_by_hand() -> None:
    """The figures are means and standard deviations of the same masks, run one at a time."""
    from circuits.random_circuits import random_edges, random_paths

    run = MaskedRun(tiny.model("gpt2"), tiny.task(n=5))
    circuit = Circuit(run.graph.architecture, run.units[::3])  # type: ignore[arg-type]
    report = evaluate(run, circuit, random_circuits=4, seed=7)
    generator = torch.Generator().manual_seed(7)
    gap = (run.clean_metric - run.corrupt_metric).mean()
    for draw, mean, spread in (
        (random_edges, report.random_faithfulness, report.random_spread),
        (random_paths, report.random_paths, report.random_paths_spread),
    ):
        masks = [draw(run.graph, n=circuit.n_edges, generator=generator).double() for _ in range(4)]
        shares = torch.stack([(run(mask) - run.corrupt_metric).mean() / gap for mask in masks])
        assert mean == pytest.approx(float(shares.mean()))
        assert spread == pytest.approx(float(shares.std()))


@pytest.mark.parametrize("ablation", ["corrupt", "zero", "mean"])
def test_kl_stands_beside_the_metric(ablation: str) -> None:
    """It is what a run judged by KL gives."""
    run, by_kl = (MaskedRun(tiny.model("gpt2"), tiny.task(), metric=m, ablation=ablation) for m in (None, "kl"))
    circuit = circuit_of(run, "input->m0", "m0->logits", "a0.h1->m0", "input->a0.h1<v>")
    report, expected = evaluate(run, circuit), evaluate(by_kl, circuit)
    assert report.kl == pytest.approx(expected.circuit)
    assert report.kl_ablated == pytest.approx(expected.ablated)
    assert report.kl_faithfulness == pytest.approx(expected.faithfulness)
    assert report.kl_random == pytest.approx(expected.random_faithfulness)
    assert (expected.kl, expected.kl_worst) == pytest.approx((expected.circuit, report.kl_worst))
    assert report.kl_faithfulness == pytest.approx(1 - report.kl / report.kl_ablated)


def test_kl_uses_constants_that_were_put_in_place() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(), ablation="zero")
    generator = torch.Generator().manual_seed(0)
    other = run.batches[0].replacement.map(
        lambda value: value + torch.randn(value.shape, generator=generator, dtype=value.dtype)
    )
    report = evaluate(run.with_constants(other), circuit_of(run, "input->m0", "m0->logits"))
    by_kl = MaskedRun(run.model, run.task, ablation="zero", metric="kl")
    assert report.kl_ablated == pytest.approx(float(by_kl.with_constants(other)(by_kl.zeros()).mean()))
    assert report.kl_ablated != pytest.approx(float(by_kl.corrupt_metric.mean()), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_edges_at_positions(family: str) -> None:
    """By the run over positions; edges named at every position one by one are edges without a position."""
    run = MaskedRun(tiny.model(family), tiny.task(n=4, prefix=1))
    names = ("input->m0", "m0->logits", "a0.h1->logits")
    placed = Circuit(run.graph.architecture, [Edge.parse(f"{name}@{p}") for name in names for p in range(tiny.LENGTH)])
    plain, report = evaluate(run, circuit_of(run, *names)), evaluate(run, placed)
    for name in ("circuit", "complement", "faithfulness", "completeness_gap", "kl"):
        assert getattr(report, name) == pytest.approx(getattr(plain, name), abs=1e-9)
    assert (report.n_possible, report.random_paths) == (run.n_units * tiny.LENGTH, None)
    some = Circuit(run.graph.architecture, placed.edges[::2])
    by_position = run.positions()
    assert evaluate(run, some).circuit == pytest.approx(float(by_position(by_position.mask_of(some)).mean()))
    assert evaluate(by_position, some) == evaluate(run, some)


def test_notes_say_what_to_doubt() -> None:
    run = MaskedRun(toy.model(), toy.task())
    assert any("the circuit has no edges" in note for note in evaluate(run, circuit_of(run)).notes)
    assert any("is the whole model" in note for note in evaluate(run, whole(run)).notes)
    one = MaskedRun(toy.model(), toy.task().subset(slice(0, 1)))
    notes = evaluate(one, circuit_of(one, "a0.h1->logits", "input->a0.h1<v>")).notes
    assert "one prompt has no intervals." in notes
    assert any("better than the whole model" in note for note in notes)
    swapped = MaskedRun(toy.model(), toy.task().swapped())
    assert any("does worse than with everything ablated" in note for note in evaluate(swapped, whole(swapped)).notes)
    # gaps 0.5, 2.5, 2.5, -0.5: 10 of 256 resamples of four have a mean of 0 or below
    unsteady = evaluate(run, whole(run), resamples=20_000)
    assert any("in 4% of the resamples the gap" in note for note in unsteady.notes)


def test_edges_and_knock_outs_on_request() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    circuit = circuit_of(run, "input->m0", "m0->logits", "input->logits")
    report = evaluate(run, circuit, minimality=True, knockout=True)
    assert report.minimality is not None
    assert report.knock_out is not None
    assert len(report.minimality.rows) == 3
    assert report.knock_out.left[-1] == pytest.approx(report.completeness_gap)
    assert "minimality: each of 3 edges" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)
    assert evaluate(run, circuit).minimality is None


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_circuit_of_another_architecture_is_refused() -> None:
    circuit = Circuit(Architecture(n_layers=3, n_heads=2), (Edge.parse("input->logits"),))
    with pytest.raises(InvalidMask, match=r"circuit of a model with 1 layers.*got one of 3 layers.*Load the model"):
        evaluate(MaskedRun(toy.model(), toy.task()), circuit)


@pytest.mark.parametrize("options", [{"random_circuits": -1}, {"resamples": -5}])
def test_negative_counts_are_refused(options: dict[str, int]) -> None:
    run = MaskedRun(toy.model(), toy.task())
    with pytest.raises(InvalidOption, match=r"counts of 0 or more"):
        evaluate(run, circuit_of(run), **options)  # type: ignore[arg-type]

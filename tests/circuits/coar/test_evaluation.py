"""Held-out correlation and the baselines, each against another way of computing it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits import coar
from circuits.coar.baselines import attribution_patching, conductance, gradient_times_parameter, leave_one_out
from circuits.coar.evaluation import held_out, pearson
from patching import toy
from patching.ceap import scores as conductance_scores
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.exact import scores as exact_scores
from patching.masked import MaskedRun
from patching.metrics import Contrast
from tests import tiny


def test_pearson_is_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(20, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = [np.corrcoef(first[:, i], second[:, i])[0, 1] for i in range(3)]
    assert pearson(first, second).tolist() == pytest.approx(expected)
    shifted = pearson(first * 3 + 100, second)  # P4.4: no intercept, no positive scale matters
    assert shifted.tolist() == pytest.approx(expected)
    first[:, 1] = 0.1
    assert pearson(first, second).isnan().tolist() == [False, True, False]


def test_leave_one_out_is_the_exact_effect() -> None:
    nodes = MaskedRun(tiny.model("llama"), tiny.task(n=3)).nodes()
    run = ComponentRun.of(nodes)
    torch.testing.assert_close(-leave_one_out(run).mean(0), exact_scores(nodes).values, rtol=0, atol=1e-10)


def test_gradient_times_parameter_is_autograds() -> None:
    """θ · df/dθ over a head's rows of the output matrix, a neuron's column, an MLP's matrix and bias: by autograd."""
    model, task = tiny.model("gpt2"), tiny.task(n=1)
    parameters = dict(model.bridge.named_parameters())
    ends = ("attn.o._original_component.weight", "c_proj._original_component.weight", "c_proj._original_component.bias")
    wanted = [parameter for end in ends for name, parameter in parameters.items() if name.endswith(end)]
    assert len(wanted) == 6
    before = [parameter.requires_grad for parameter in wanted]
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        logits = model.bridge(task.clean)[0, int(task.positions[0])]
        contrast = Contrast.of(task.answers, task.wrong_answers)
        slopes = torch.autograd.grad((logits[contrast.tokens[0]].double() * contrast.shares[0]).sum(), wanted)
    finally:
        for parameter, needed in zip(wanted, before, strict=True):
            parameter.requires_grad_(needed)
    products = [(parameter * slope).detach() for parameter, slope in zip(wanted, slopes, strict=True)]
    heads = [product.reshape(4, -1, 32).sum((1, 2)) for product in products[:2]]  # Conv1D: inputs lead
    neurons = [product.sum(1) for product in products[2:4]]
    expected = torch.cat([heads[0], neurons[0], heads[1], neurons[1]])
    found = gradient_times_parameter(ComponentRun(model, task, components=("heads", "neurons")))
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)
    both = torch.stack([products[2].sum() + products[4].sum(), products[3].sum() + products[5].sum()])
    found = gradient_times_parameter(ComponentRun(model, task, components=("mlps",)))
    torch.testing.assert_close(found[0], both, rtol=1e-9, atol=1e-9)


def test_conductance_is_the_other_modules() -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=3)
    run = ComponentRun(model, task, components=("neurons",))
    mine = conductance(run, steps=64).mean(0)
    theirs = conductance_scores(MaskedRun(model, task).neurons(), steps=64)
    assert float((mine + theirs.values).abs().max()) < 2e-3 * float(mine.abs().max())


def test_conductance_adds_up_over_a_cut() -> None:
    """What passes the heads of a one-layer model, and what passes around them, is the whole change."""
    run, edges = ComponentRun(toy.model(), toy.task()), MaskedRun(toy.model(), toy.task())
    mask = edges.ones()
    mask[[str(edge) for edge in edges.units].index("input->logits")] = 0.0
    around = edges.clean_metric - edges(mask)  # the toy's logits are linear in what the input adds directly
    total = conductance(run, steps=64).sum(1)
    torch.testing.assert_close(total + around, edges.clean_metric - edges.corrupt_metric, rtol=0, atol=1e-3)


def test_attribution_patching_is_first_order() -> None:
    run = ComponentRun(tiny.model("gpt2"), tiny.task(n=2))
    step = 1e-5
    masks = 1 - step * torch.eye(run.n_units, dtype=torch.float64)
    difference = (run.clean_metric - run(masks)).T / step
    torch.testing.assert_close(attribution_patching(run), difference, rtol=1e-3, atol=1e-5)


def test_all_methods_on_one_split() -> None:
    run = ComponentRun(tiny.model("gpt2"), tiny.task(n=3))
    found = coar.attribute(run, samples=400, keep=0.8)
    result = coar.evaluate(run, found, samples=60)
    assert len(result.agreements) == 3 * 5
    assert {round(one.keep, 6) for one in result.agreements} == {0.8, 0.6, 0.9}
    design, true = held_out(run, keep=0.8, samples=60)
    expected = pearson(found.predict(design.rows().double()), true)
    torch.testing.assert_close(result.of("coar", 0.8).correlations, expected)
    assert result.of("coar", 0.8).mean > result.of("gradient_times_parameter", 0.8).mean
    assert "leave_one_out" in str(result)
    assert "±" in str(result)
    assert len(result.to_frame()) == 15
    with pytest.raises(InvalidOption, match="expected a method out of"):
        result.of("magic")


def test_prompts_without_variation_are_counted_out() -> None:
    task = tiny.task(n=3)
    task = dataclasses.replace(task, corrupt=torch.cat([task.clean[:1], task.corrupt[1:]]))
    run = ComponentRun(tiny.model("gpt2"), task)
    result = coar.evaluate(run, coar.attribute(run, samples=200), samples=40, baselines=("leave_one_out",))
    one = result.of("coar")
    assert one.undefined == [0]
    assert len(one.defined) == 2
    assert "do not vary" in str(result)


def test_what_cannot_be_evaluated() -> None:
    run = ComponentRun(toy.model(), toy.task())
    found = coar.attribute(run, samples=40, keep=0.5)
    with pytest.raises(InvalidOption, match="another seed"):
        coar.evaluate(run, found, seed=0)
    with pytest.raises(InvalidOption, match="baselines out of"):
        coar.evaluate(run, found, baselines=("magic",))
    with pytest.raises(InvalidOption, match="this run's 1 components"):
        coar.evaluate(ComponentRun(toy.model(), toy.task(), components=["a0.h0"]), found)
    with pytest.raises(InvalidOption, match="replacements are a run"):
        conductance(ComponentRun(toy.model(), toy.task(), ablation="zero"))
    with pytest.raises(InvalidOption, match="steps"):
        conductance(run, steps=0)
    with pytest.raises(InvalidOption, match="Leave them or the baseline out"):
        gradient_times_parameter(ComponentRun(toy.model(), toy.task(), components=("input", "heads")))


def test_the_learning_curve_stops_when_nothing_is_gained() -> None:
    run = ComponentRun(tiny.model("gpt2"), tiny.task(n=3))
    curve = coar.learning_curve(run, keep=0.8, first=16, most=2000, held_out_samples=80)
    rises = np.diff([one.mean for one in curve.agreements])
    assert list(curve.samples) == [16 * 2**i for i in range(len(curve.samples))]
    assert bool((rises[:-1] >= 0.005).all())
    assert rises[-1] < 0.005
    assert "rose by less than 0.005" in curve.stopped
    same = coar.attribute(run, samples=curve.samples[-1], keep=0.8)
    torch.testing.assert_close(curve.chosen.weights, same.weights, rtol=1e-6, atol=1e-8)
    short = coar.learning_curve(run, keep=0.8, first=16, most=20, held_out_samples=40, rise=0.0)
    assert short.samples == (16, 20)
    assert "held-out correlation" in str(short)
    with pytest.raises(InvalidOption, match="factor above 1"):
        coar.learning_curve(run, factor=1.0)


def test_a_learning_curve_fits_the_masks_that_were_asked_for() -> None:
    run = ComponentRun(tiny.model("gpt2"), tiny.task(n=3))
    options = {"keep": 0.8, "first": 32, "most": 64, "rise": 0.0, "held_out_samples": 40}
    curve = coar.learning_curve(run, masks="subset", **options)
    same = coar.attribute(run, samples=curve.samples[-1], keep=0.8, masks="subset")
    assert curve.chosen.provenance["options"]["masks"] == "subset"
    torch.testing.assert_close(curve.chosen.weights, same.weights, rtol=1e-6, atol=1e-8)
    assert not torch.equal(curve.chosen.weights, coar.learning_curve(run, **options).chosen.weights)


def test_an_interrupted_learning_curve_goes_on(tmp_path: Path) -> None:
    run = ComponentRun(tiny.model("gpt2"), tiny.task(n=2))
    options = {"keep": 0.8, "first": 200, "most": 900, "factor": 2.0, "rise": 0.0, "held_out_samples": 20}
    whole = coar.learning_curve(run, **options)

    def stop(done: int, total: int) -> None:
        if done >= 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coar.learning_curve(run, **options, folder=tmp_path, progress=stop)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(kept) == ["shard-000000.safetensors", "shard-000001.safetensors"]
    again = coar.learning_curve(run, **options, folder=tmp_path)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}.items()
    assert again.samples == whole.samples
    assert torch.equal(again.chosen.weights, whole.chosen.weights)
    assert [one.mean for one in again.agreements] == [one.mean for one in whole.agreements]

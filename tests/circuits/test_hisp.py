"""HISP against finite differences of the masked run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circuits import hisp
from patching import toy
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests import tiny

STEP = 1e-5


def slopes(run: MaskedRun) -> Tensor:
    """d metric / d mask of every prompt and unit, at mask 1, by central differences."""
    shift = STEP * torch.eye(run.n_units, dtype=torch.float64)
    return ((run(run.ones() + shift) - run(run.ones() - shift)) / (2 * STEP)).T


@pytest.mark.parametrize("level", ["edge", "node"])
@pytest.mark.parametrize(("family", "ablation"), [("gpt2", "corrupt"), ("llama", "mean"), ("gemma2", "zero")])
def test_finite_differences(family: str, ablation: str, level: str) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(n=3, prefix=1), ablation=ablation)
    run = run.nodes() if level == "node" else run
    sizes = slopes(run).abs().mean(0)
    expected = sizes.clone()
    for unit, name in enumerate(run.units):
        node = name.target if level == "edge" else name  # type: ignore[union-attr]
        same = [
            other
            for other, peer in enumerate(run.units)
            if (peer.target if level == "edge" else peer).layer == node.layer  # type: ignore[union-attr]
        ]
        expected[unit] = sizes[unit] / sizes[same].norm()
    found = hisp.scores(run)
    assert found.values.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert float(found.values.min()) >= 0


def test_prompts_do_not_cancel() -> None:
    """The mean of sizes, not the size of the mean: slopes of opposite signs both count."""
    run = MaskedRun(toy.model(), toy.task()).nodes()
    each = slopes(run)
    assert each[:, 1].max() > 0 > each[:, 1].min()  # head 0 helps on some prompts and hurts on others
    sizes, signed = each.abs().mean(0), each.mean(0).abs()
    found = hisp.scores(run).values
    assert found[1:].tolist() == pytest.approx((sizes[1:] / sizes[1:].norm()).tolist(), abs=1e-6)
    assert found[1:].tolist() != pytest.approx((signed[1:] / signed[1:].norm()).tolist(), abs=1e-3)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_every_layer_has_norm_one(level: str) -> None:
    run = MaskedRun(tiny.model("gpt_neox"), tiny.task(n=3))
    run = run.nodes() if level == "node" else run
    values, layer = hisp.scores(run).values, hisp.layers(run)
    assert len(layer.unique()) == 3  # two layers, and the input or the logits
    for number in layer.unique():
        assert float(values[layer == number].norm()) == pytest.approx(1)


def test_by_hand() -> None:
    """On "0 1" against "0 3" only head 1 has a slope: 1.5, all of its layer."""
    found = hisp.scores(MaskedRun(toy.model(), toy.task().subset(slice(1, 2))).nodes())
    assert (found["input"], found["a0.h0"], found["a0.h1"]) == pytest.approx((1, 0, 1))


def test_a_layer_without_slopes_is_zero() -> None:
    """Identical prompts: nothing depends on any mask, and nothing is divided by 0."""
    task = toy.task()
    same = type(task)("same", task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    for run in (MaskedRun(toy.model(), same), MaskedRun(toy.model(), same).nodes()):
        assert hisp.scores(run).values.abs().sum() == 0


def test_batches_change_nothing() -> None:
    whole, single = (MaskedRun(tiny.model("gpt2"), tiny.task(n=4), memory=memory) for memory in (1 << 27, 1))
    assert hisp.scores(whole).values.tolist() == pytest.approx(hisp.scores(single).values.tolist(), abs=1e-9)


def test_bad_input() -> None:
    run = MaskedRun(toy.model(), toy.task())
    with pytest.raises(InvalidOption, match=r"gradient at the clean run is not zero; kl is at its minimum"):
        hisp.scores(MaskedRun(toy.model(), toy.task(), metric="kl"))
    with pytest.raises(InvalidOption, match=r"expected a run over edges or nodes"):
        hisp.scores(run.positions())
    with pytest.raises(InvalidOption, match=r"expected a run over edges or nodes"):
        hisp.scores(MaskedRun(tiny.model("gpt2"), tiny.task()).neurons())

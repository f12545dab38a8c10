"""The numbers that the toy's docstring works out by hand, and those that follow from them."""

from __future__ import annotations

import pytest
import torch

from patching import atp, exact, toy
from patching.masked import MaskedRun
from patching.task import Task


def logits(*prompt: int) -> list[float]:
    return toy.model().logits(torch.tensor([prompt]))[0, -1].tolist()


def test_logits_by_hand() -> None:
    """The residual at the last token: its embedding, and what the heads write along e2."""
    assert logits(0, 1) == pytest.approx([0, 1, 2.5, 0])  # e1 + (1 + 1.5) e2
    assert logits(0, 0) == pytest.approx([1, 0, 2.0, 0])  # e0 + (2 + 0) e2
    assert logits(1, 1) == pytest.approx([0, 1, 3.0, 0])
    assert logits(1, 3) == pytest.approx([0, 0, 1.5, 1])
    assert logits(0) == pytest.approx([1, 0, 2.0, 0])


def test_metric_by_hand() -> None:
    """Logit 2 minus logit 3 on the clean and on the corrupt prompts, whose "3" adds 1 to logit 3."""
    run = MaskedRun(toy.model(), toy.task())
    assert run.clean_metric.tolist() == pytest.approx([2.5, 2.5, 3.0, 2.0])
    assert run.corrupt_metric.tolist() == pytest.approx([2.0, 1.0 - 1.0, 1.5 - 1.0, 2.5])


def test_effects_of_nodes_by_hand() -> None:
    """On the prompt "0 1" corrupted to "0 0", head 0 writes 1 -> 2 and head 1 writes 1.5 -> 0."""
    task = toy.task().subset(slice(0, 1))
    effects = exact.scores(MaskedRun(toy.model(), task).nodes())
    assert effects["a0.h0"] == pytest.approx(+1.0)
    assert effects["a0.h1"] == pytest.approx(-1.5)
    assert effects["input"] == pytest.approx(-0.5)  # 2.0 - 2.5: everything starts there


def test_effects_of_edges_by_hand() -> None:
    """The input counts only through the values of the heads; queries and keys are zero."""
    effects = exact.scores(MaskedRun(toy.model(), toy.task().subset(slice(1, 2))))  # "0 1" to "0 3"
    expected = {"input->a0.h1<v>": -1.5, "a0.h1->logits": -1.5, "input->logits": -1.0}
    for edge in effects.units:
        assert effects[edge] == pytest.approx(expected.get(str(edge), 0.0), abs=1e-12), edge


def test_first_order_is_exact_here() -> None:
    """Nothing in the toy is nonlinear."""
    for run in (MaskedRun(toy.model(), toy.task()), MaskedRun(toy.model(), toy.task()).nodes()):
        torch.testing.assert_close(atp.scores(run).values, exact.scores(run).values, rtol=0, atol=1e-12)


def test_attention_is_uniform() -> None:
    """So swapping earlier tokens changes nothing at the last one."""
    embedding = torch.eye(4)
    assert logits(0, 1, 1, 0)[2] == pytest.approx(logits(1, 0, 1, 0)[2])
    assert logits(0, 1, 1, 0)[:2] == pytest.approx(embedding[0, :2].tolist())


def test_a_mask_between_mixes() -> None:
    run = MaskedRun(toy.model(), toy.task())
    mask = run.ones()
    edges = list(map(str, run.units))
    mask[edges.index("a0.h1->logits")] = 0.25
    assert run(mask)[0] == pytest.approx(2.5 - 0.75 * 1.5)


def test_two_and_gates() -> None:
    """The head's values pass only where both of its edges do (noising finds an AND; denoising does not)."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
    edges = list(map(str, run.units))
    path = [edges.index("input->a0.h1<v>"), edges.index("a0.h1->logits")]
    masks = run.zeros().repeat(4, 1)
    masks[1, path[0]] = masks[2, path[1]] = 1
    masks[3, path] = 1
    assert (run(masks)[:, 0] - run.corrupt_metric).tolist() == pytest.approx([0.0, 0.0, 0.0, 1.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_dtype(dtype: torch.dtype) -> None:
    run = MaskedRun(toy.model(dtype), toy.task())
    assert run.model.dtype == dtype
    assert run.clean_metric.tolist() == pytest.approx([2.5, 2.5, 3.0, 2.0])


def test_each_call_gives_a_model_of_its_own() -> None:
    assert toy.model().bridge is not toy.model().bridge
    assert isinstance(toy.task(), Task)

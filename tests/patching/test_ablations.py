"""What ablated edges carry, recomputed from what every source writes on the model's own code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphs.nodes import Node
from patching import ablations, toy
from patching.ablations import ABLATIONS
from patching.errors import InvalidOption, InvalidTask
from patching.masked import MaskedRun
from patching.task import Task
from tests import tiny
from tests.oracle import EVERY_LOGIT, Oracle, Values, tolerance

FAMILIES = ("gpt2", "gpt_neox", "mistral", "gemma2", "attention_only")


def real_tokens(task: Task) -> Tensor:
    """[example, pos]: True up to each prompt's last token."""
    return torch.arange(task.clean.shape[1]) <= task.positions[:, None]


def zero(values: Tensor, _task: Task) -> Tensor:
    return torch.zeros_like(values)


def mean(values: Tensor, task: Task) -> Tensor:
    return values[real_tokens(task)].mean(0).expand_as(values)


def mean_positional(values: Tensor, task: Task) -> Tensor:
    rows = []
    for position in range(values.shape[1]):
        reached = real_tokens(task)[:, position]
        rows.append(values[reached, position].mean(0) if bool(reached.any()) else values[:, position].mean(0))
    return torch.stack(rows).expand_as(values)


def as_it_is(values: Tensor, _task: Task) -> Tensor:
    return values


def partner(task: Task) -> Tensor:
    return ablations.get("resample").prompts(task)


EXPECTED: dict[str, tuple[Callable[[Task], Tensor], Callable[[Tensor, Task], Tensor]]] = {
    "corrupt": (lambda task: task.corrupt, as_it_is),
    "zero": (lambda task: task.corrupt, zero),
    "mean": (lambda task: task.corrupt, mean),
    "mean-positional": (lambda task: task.corrupt, mean_positional),
    "mean-clean": (lambda task: task.clean, mean),
    "resample": (partner, as_it_is),
}


def test_every_ablation_is_tested() -> None:
    assert EXPECTED.keys() | {"gaussian-noise"} == ABLATIONS.keys()  # the noise itself: test_activation
    assert all(ablation.name == name for name, ablation in ABLATIONS.items())


def replacements(oracle: Oracle, task: Task, name: str) -> Values:
    prompts, combine = EXPECTED[name]
    written = oracle.sources(prompts(task))
    return {node: combine(values, task) for node, values in written.items()}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("family", FAMILIES)
def test_runs_are_what_the_oracle_computes(family: str, name: str) -> None:
    """Also behind a norm over all heads (Gemma-2), where a mean is taken of what each head adds."""
    task = tiny.task(n=4)
    run = MaskedRun(tiny.model(family), task, ablation=name, metric=EVERY_LOGIT)
    oracle = Oracle(run.model)
    values = replacements(oracle, task, name)
    generator = torch.Generator().manual_seed(1)
    soft = torch.rand(run.n_units, generator=generator, dtype=torch.float64)
    for mask in (run.ones(), run.zeros(), (soft < 0.5).double(), (soft < 0.2).double(), soft):
        expected = oracle.measure(task, mask.unbind(), replacement=values)
        torch.testing.assert_close(run(mask), expected, rtol=0, atol=tolerance(family))


def test_means_leave_out_the_first_token_where_it_marks_the_beginning() -> None:
    task = tiny.task(n=2)
    marked = Task(
        "bos", task.clean, task.corrupt, task.answers, task.wrong_answers, task.positions, starts_with_bos=True
    )
    weights = ablations.get("mean").weights(marked)
    assert weights.tolist() == [[0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0]]
    assert ablations.get("mean").weights(task).tolist() == [[1] * 7, [1] * 6 + [0]]


def test_a_position_that_nobody_counts_takes_the_plain_mean() -> None:
    combine = ablations.get("mean-positional").combine
    assert combine is not None
    values = torch.tensor([[[1.0], [5.0]], [[3.0], [9.0]]])  # example pos width
    weights = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert combine(values, weights).flatten().tolist() == [2.0, 5.0]


def same_length(task: Task, chosen: Tensor) -> None:
    """Every prompt is replaced by another one of its length, and each is used once."""
    rows = [int((task.clean == prompt).all(-1).nonzero()) for prompt in chosen]
    assert sorted(rows) == list(range(len(task)))
    assert all(row != number for number, row in enumerate(rows))
    assert torch.equal(task.positions[rows], task.positions)


@pytest.mark.parametrize("n", [4, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_resample_takes_another_prompt_of_the_same_length(n: int, seed: int) -> None:
    task = tiny.task(n=n, seed=seed)
    same_length(task, ablations.resample(seed).prompts(task))


def test_resample_depends_on_its_seed_alone() -> None:
    task = tiny.task(n=12)
    first, again, other = (ablations.resample(seed).prompts(task) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert ablations.resample(3).name == "resample(seed=3)"


def test_resample_needs_two_of_each_length() -> None:
    with pytest.raises(InvalidTask, match=r"two prompts of each length.*one of 6 tokens \(row \[1\]\)"):
        MaskedRun(tiny.model("gpt2"), tiny.task(n=3), ablation="resample")


def test_get_takes_an_ablation_or_its_name() -> None:
    assert ablations.get(ablations.zero) is ablations.get("zero")
    with pytest.raises(InvalidOption, match=r"corrupt, zero, mean.*got 'noise'"):
        ablations.get("noise")


def test_an_ablation_of_one_s_own() -> None:
    """A new one is a function: here every edge that is off carries the opposite of the corrupt value."""
    opposite = ablations.Ablation("opposite", lambda task: task.corrupt, lambda values, _weights: -values)
    run = MaskedRun(toy.model(), toy.task(), ablation=opposite)
    corrupt = MaskedRun(toy.model(), toy.task())
    torch.testing.assert_close(run.corrupt_metric, -corrupt.corrupt_metric, rtol=0, atol=1e-12)
    assert run.provenance("x", {})["ablation"] == "opposite"


def test_the_toy_s_zero_ablation_by_hand() -> None:
    """Without head 1, "0 1" gives 2.5 - 1.5."""
    run = MaskedRun(toy.model(), toy.task(), ablation="zero").nodes()
    mask = run.ones()
    mask[run.units.index(Node.parse("a0.h1"))] = 0
    assert run(mask)[0] == pytest.approx(1.0)

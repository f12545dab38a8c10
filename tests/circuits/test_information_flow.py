"""Information flow, magnitude and random scores: against plain loops, by hand, and the claims of their docstrings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits import information_flow
from patching import magnitude, random_scores, toy
from patching.activation import SiteRun
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests import tiny
from tests.patching.first_order_checks import FAMILIES, ends, port_gradients_by_hand, run_of

SAME = 1e-10


def residuals(run: MaskedRun) -> list[Tensor]:
    """What every port reads, at all positions, as the sites of a plain run."""
    (part,) = SiteRun(run.model, run.task).parts
    shape, found = run.graph.architecture, []
    for layer in range(shape.n_layers):
        entering = part.base["resid_pre"][layer]
        found += [entering] * (shape.n_heads + 2 * shape.n_kv_heads)
        if shape.has_mlp:
            found.append(entering if shape.parallel else part.base["resid_mid"][layer])
    return [*found, part.base["resid_post"][-1]]


def shares_by_hand(run: MaskedRun) -> Tensor:
    """One edge, prompt and token after another: [example, pos, edge]."""
    writes = port_gradients_by_hand(run.batches[0], ends(run)[0])[0].detach()
    made = []
    for read, visible in zip(residuals(run), run.graph.n_visible, strict=True):
        near = torch.zeros(*read.shape[:2], visible, dtype=torch.float64)
        for example in range(read.shape[0]):
            for place in range(read.shape[1]):
                y = read[example, place]
                for source in range(visible):
                    left = float(y.abs().sum() - (y - writes[source, example, place]).abs().sum())
                    near[example, place, source] = max(0.0, left)
        made.append(near / near.sum(-1, keepdim=True))
    return torch.cat(made, dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_what_the_formula_says(family: str) -> None:
    run = run_of(family)
    expected = shares_by_hand(run)
    torch.testing.assert_close(information_flow.shares(run), expected, rtol=0, atol=SAME)
    weights = (torch.arange(tiny.LENGTH) <= run.task.positions[:, None]).double()
    averaged = torch.einsum("bpe,bp->be", expected, weights / weights.sum(1, keepdim=True))
    logits = torch.tensor([edge.target.kind == "logits" for edge in run.units])
    at_answer = expected[torch.arange(2), run.task.positions]
    scores = torch.where(logits, at_answer, averaged).mean(0)
    torch.testing.assert_close(information_flow.scores(run).values, scores, rtol=0, atol=SAME)


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_into_a_port_add_up_to_1(family: str) -> None:
    run = run_of(family)
    found = information_flow.scores(run)
    first = 0
    for visible in run.graph.n_visible:
        assert float(found.values[first : first + visible].sum()) == pytest.approx(1)
        first += visible


def test_shares_by_hand_on_the_toy() -> None:
    """On "0 1" the logits read (0, 1, 1 + 1.5, 0); the sources' lengths along it are 1, 1 and 1.5."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
    found = information_flow.scores(run)
    assert found["input->logits"] == pytest.approx(1 / 3.5)
    assert found["a0.h0->logits"] == pytest.approx(1 / 3.5)
    assert found["a0.h1->logits"] == pytest.approx(1.5 / 3.5)
    assert found["input->a0.h1<v>"] == 1


def test_what_points_the_other_way_has_no_share() -> None:
    """A head that writes against the rest brings the sum no nearer: its proximity is clipped at 0."""
    from tests.patching.test_exact import without_norm

    run = MaskedRun(without_norm(), tiny.task())
    found = information_flow.shares(run)
    assert float(found.min()) == 0
    assert int((found == 0).sum()) > 0


def test_neither_ablation_nor_metric_matters() -> None:
    one = information_flow.scores(run_of("gpt2"))
    other = information_flow.scores(
        MaskedRun(tiny.model("gpt2"), tiny.task(n=2, prefix=2), ablation="zero", metric="kl")
    )
    torch.testing.assert_close(one.values, other.values, rtol=0, atol=0)


@pytest.mark.parametrize("method", [information_flow.scores, magnitude.scores])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_memory_changes_nothing(family: str, method: Callable[..., Any]) -> None:
    whole, small = (method(run_of(family, n=3, memory=memory)) for memory in (1 << 28, 1))
    torch.testing.assert_close(small.values, whole.values, rtol=0, atol=SAME)
    torch.testing.assert_close(small.standard_error, whole.standard_error, rtol=0, atol=SAME)


# --- baselines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_magnitude_is_the_length_of_the_change(family: str) -> None:
    run = run_of(family)
    clean, replaced = (port_gradients_by_hand(run.batches[0], end)[0].detach() for end in ends(run))
    change = replaced - clean
    nodes, edges = magnitude.scores(run.nodes()), magnitude.scores(run)
    for number, source in enumerate(run.graph.sources):
        lengths = [
            float(change[number, row, : int(answer) + 1].norm()) for row, answer in enumerate(run.task.positions)
        ]
        at_answer = [float(change[number, row, int(answer)].norm()) for row, answer in enumerate(run.task.positions)]
        assert nodes[source] == pytest.approx(sum(lengths) / 2, abs=SAME)
        assert edges[f"{source}->logits"] == pytest.approx(sum(at_answer) / 2, abs=SAME)
        others = [edge for edge in run.units if edge.source == source and edge.target.kind != "logits"]
        assert {round(edges[edge], 9) for edge in others} <= {round(nodes[source], 9)}


def test_random_scores_are_those_of_their_seed() -> None:
    run = MaskedRun(toy.model(), toy.task())
    one, same, other = (random_scores.scores(run, seed=seed).values for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    many = random_scores.scores(run_of("gpt2", level="neuron")).values
    assert float(many.mean()) == pytest.approx(0.5, abs=0.08)  # 256 numbers: the mean's deviation is 0.018
    assert 0 <= float(many.min()) < 0.05
    assert 0.95 < float(many.max()) < 1


# --- bad inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [information_flow.scores, information_flow.shares])
def test_only_edges_have_shares(method: Callable[..., Any]) -> None:
    run = run_of("gpt2")
    for view in (run.nodes(), run.neurons()):
        with pytest.raises(InvalidOption, match=f"expected a run over edges; information_flow has no .* {view.level}s"):
            method(view)
    with pytest.raises(InvalidOption, match="expected a run over edges; scores by position"):
        method(run.positions())


def test_neurons_have_no_magnitude() -> None:
    with pytest.raises(InvalidOption, match="expected a run over edges or nodes; magnitude has no scores of neurons"):
        magnitude.scores(run_of("gpt2", level="neuron"))


@pytest.mark.parametrize("seed", [-1, True])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(InvalidOption, match="a seed that is a whole number from 0 on"):
        random_scores.scores(MaskedRun(toy.model(), toy.task()), seed=seed)

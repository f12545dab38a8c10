"""EAP-GP: its path by the definition, its scores by autograd at every port, and what must hold of any such method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from patching import eap_gp, exact, toy
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests import tiny
from tests.oracle import EVERY_LOGIT
from tests.patching.first_order_checks import (
    FAMILIES,
    SAME,
    edges_by_hand,
    ends,
    per_mlp,
    per_node,
    port_gradients_by_hand,
    run_of,
)
from tests.patching.test_exact import without_norm


def logits(run: MaskedRun, embedded: torch.Tensor) -> torch.Tensor:
    """At the answer positions, by a plain run of the blocks."""
    from patching.blocks import forward

    model = run.model
    contexts = model.contexts(embedded.shape[1])
    final = forward(model.blocks, embedded, contexts, parallel=run.graph.architecture.parallel).final
    return model.readout.logits(final[torch.arange(len(embedded)), run.task.positions])


def path_by_hand(run: MaskedRun, *, steps: int, length: float) -> list[torch.Tensor]:
    """The definition, one prompt at a time."""
    made = []
    clean, replaced = ends(run)
    goal = logits(run, replaced).detach()
    here = clean
    for _ in range(steps):
        moved = []
        for row in range(len(clean)):
            leaf = here.detach().clone().requires_grad_(True)
            distance = (logits(run, leaf)[row] - goal[row]).pow(2).sum()
            slope = torch.autograd.grad(distance, leaf)[0][row]
            moved.append(here[row] - length * slope / slope.norm())
        here = torch.stack(moved)
        made.append(here)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_follow_the_definition(family: str) -> None:
    run = run_of(family)
    (batch,) = run.batches
    clean, replaced = ends(run)
    by_hand = path_by_hand(run, steps=3, length=0.5)
    for ours, theirs in zip(eap_gp.gradient_path(batch, steps=3, length=0.5), by_hand, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=SAME)
    changes = port_gradients_by_hand(batch, replaced)[0] - port_gradients_by_hand(batch, clean)[0]
    expected = sum(
        edges_by_hand(run, changes.detach(), port_gradients_by_hand(batch, point)[1]) / 3 for point in by_hand
    )
    found = eap_gp.scores(run, steps=3, length=0.5)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_path_comes_closer(family: str) -> None:
    """Every step moves a prompt by its length, and small enough ones bring its output nearer to the goal."""
    run = run_of(family)
    (batch,) = run.batches
    clean, replaced = ends(run)
    goal = logits(run, replaced)
    before, apart = clean, (logits(run, clean) - goal).norm(dim=-1)
    for point in eap_gp.gradient_path(batch, steps=4, length=0.01):
        torch.testing.assert_close((point - before).flatten(1).norm(dim=1), torch.full((2,), 0.01).double())
        nearer = (logits(run, point) - goal).norm(dim=-1)
        assert bool((nearer < apart).all())
        before, apart = point, nearer


def test_a_prompt_that_says_the_same_stays_where_it_is() -> None:
    """The toy's third prompt and its corruption attend to other tokens; made equal, there is nowhere to go."""
    task = toy.task()
    from dataclasses import replace

    same = replace(task, corrupt=torch.where(torch.arange(4)[:, None] == 2, task.clean, task.corrupt))
    run = MaskedRun(toy.model(), same)
    (point,) = eap_gp.gradient_path(run.batches[0], steps=1)
    moved = (point - run.model.embed(same.clean)).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.tensor([1.0, 1.0, 0.0, 1.0]).double())
    assert bool(torch.isfinite(eap_gp.scores(run).values).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_node_is_the_sum_of_its_edges(family: str) -> None:
    run = run_of(family)
    found = eap_gp.scores(run, steps=2)
    torch.testing.assert_close(per_node(run, found), eap_gp.scores(run.nodes(), steps=2).values, rtol=0, atol=SAME)


def test_neurons_of_a_layer_add_up_to_its_node() -> None:
    run = run_of("llama")
    nodes = eap_gp.scores(run.nodes(), steps=2)
    for layer, total in per_mlp(run, eap_gp.scores(run.neurons(), steps=2)).items():
        assert total == pytest.approx(nodes[f"m{layer}"], abs=SAME)


def test_exact_in_a_linear_model() -> None:
    run = MaskedRun(without_norm(uniform=True, layers=3), tiny.task())
    for view in (run, run.nodes()):
        torch.testing.assert_close(eap_gp.scores(view).values, exact.scores(view).values, rtol=0, atol=SAME)


def test_memory_changes_nothing_and_progress_counts_points() -> None:
    seen: list[tuple[int, int]] = []
    whole = eap_gp.scores(run_of("gemma2", n=3), steps=2)
    small = eap_gp.scores(
        run_of("gemma2", n=3, memory=1), steps=2, progress=lambda done, total: seen.append((done, total))
    )
    torch.testing.assert_close(small.values, whole.values, rtol=0, atol=SAME)
    assert seen == [(done, 6) for done in range(1, 7)]


def test_kl_is_welcome() -> None:
    """No point is the clean run."""
    run = MaskedRun(tiny.model("gpt2"), tiny.task(), metric="kl")
    assert float(eap_gp.scores(run, steps=1).importance.max()) > 0.01


@pytest.mark.parametrize(
    ("options", "ablation", "message"),
    [
        ({"steps": 0}, "corrupt", "at least one step"),
        ({"length": 0.0}, "corrupt", "a positive length of a step; got 0.0"),
        ({"length": float("nan")}, "corrupt", "a positive length of a step; got nan"),
        ({}, "mean", "an ablation that is a run of its own .* there is none of mean"),
    ],
)
def test_bad_options(options: dict[str, Any], ablation: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        eap_gp.scores(MaskedRun(toy.model(), toy.task(), ablation=ablation, metric=EVERY_LOGIT), **options)

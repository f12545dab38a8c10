"""Walks over masks: what is computed step by step is what is computed from scratch.

From scratch means on the path that gradients take: every node anew, whatever the mask, from no stored value but the
clean input and the replacements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patching import engine
from patching.blocks import Attention, Mlp
from patching.masked import MaskedRun
from tests import tiny
from tests.oracle import EVERY_LOGIT, Oracle, tolerance

SAME = 1e-11


@dataclass(frozen=True)
class Step:
    """How one look proposes masks, and which of them becomes the current one."""

    change: str
    size: float
    samples: int
    seed: int
    chosen: int


CHANGES = ("remove", "add", "flip", "soften", "drop receivers", "drop sources", "start again", "nothing")

steps = st.builds(
    Step,
    change=st.sampled_from(CHANGES),
    size=st.sampled_from([0.01, 0.1, 0.5]),
    samples=st.integers(1, 3),
    seed=st.integers(0, 1000),
    chosen=st.integers(-1, 2),  # -1 looks without moving
)
walks = st.lists(steps, min_size=3, max_size=6)
densities = st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0])


def changed(run: MaskedRun, mask: Tensor, step: Step, generator: torch.Generator) -> Tensor:
    """One proposal."""
    uniform = torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    hit = uniform < step.size
    if step.change == "start again":
        return (uniform < torch.rand((), generator=generator)).double()
    if step.change == "soften":
        return torch.where(hit, torch.rand(mask.shape, generator=generator, dtype=torch.float64), mask)
    if step.change in ("drop receivers", "drop sources"):
        column = 0 if step.change == "drop receivers" else 1
        unit = torch.from_numpy(run._places[column])
        lost = torch.rand(int(unit.max()) + 1, generator=generator) < step.size
        return mask.masked_fill(lost[unit], 0.0)
    new = {"remove": torch.zeros_like(mask), "add": torch.ones_like(mask), "flip": 1 - mask.round(), "nothing": mask}
    return torch.where(hit, new[step.change], mask)


def from_scratch(run: MaskedRun, masks: Tensor) -> Tensor:
    return run(masks.clone().requires_grad_(True)).detach()


def walk(run: MaskedRun, density: float, path: list[Step]) -> None:
    """Follow a path with a cursor, comparing every look."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(run.mask_shape, generator=generator, dtype=torch.float64) < density).double()
    cursor, current = run.cursor(mask), from_scratch(run, mask)
    for step in path:
        generator = torch.Generator().manual_seed(step.seed)
        proposals = torch.stack([changed(run, mask, step, generator) for _ in range(step.samples)])
        expected = from_scratch(run, proposals)
        torch.testing.assert_close(cursor.look(proposals), expected, rtol=0, atol=SAME)
        torch.testing.assert_close(run(proposals), expected, rtol=0, atol=SAME)
        if 0 <= step.chosen < step.samples:
            cursor.move(step.chosen)
            mask, current = proposals[step.chosen], expected[step.chosen]
        torch.testing.assert_close(cursor.metric, current, rtol=0, atol=SAME)


def run_of(family: str, *, prefix: int = 1, **options: object) -> MaskedRun:
    return MaskedRun(tiny.model(family), tiny.task(prefix=prefix), metric=EVERY_LOGIT, **options)  # type: ignore[arg-type]


@settings(max_examples=4)
@given(density=densities, path=walks)
def test_a_walk_is_what_from_scratch_gives(family: str, density: float, path: list[Step]) -> None:
    walk(run_of(family), density, path)


ABLATED = [("gpt2", "zero"), ("mistral", "mean"), ("gemma2", "mean-positional"), ("gpt_neox", "resample")]


@settings(max_examples=3)
@given(density=densities, path=walks)
@pytest.mark.parametrize(("name", "ablation"), ABLATED)
def test_a_walk_under_another_ablation(name: str, ablation: str, density: float, path: list[Step]) -> None:
    walk(MaskedRun(tiny.model(name), tiny.task(n=4), metric=EVERY_LOGIT, ablation=ablation), density, path)


@settings(max_examples=3)
@given(density=densities, path=walks)
@pytest.mark.parametrize("view", ["nodes", "positions", "little memory"])
def test_a_walk_in_another_view(view: str, density: float, path: list[Step]) -> None:
    run = run_of("qwen3", memory=1) if view == "little memory" else run_of("gemma3")
    if view == "nodes":
        run, path = run.nodes(), [step for step in path if not step.change.startswith("drop")]
    walk(run.positions() if view == "positions" else run, density, path)


@pytest.mark.slow
@settings(max_examples=150)
@given(density=densities, path=st.lists(steps, min_size=3, max_size=20), prefix=st.integers(0, 5))
def test_long_walks(family: str, density: float, path: list[Step], prefix: int) -> None:
    walk(run_of(family, prefix=prefix), density, path)


def test_a_walk_is_what_the_oracle_computes(family: str) -> None:
    """Edges leave one after another, as in a search, on the model's own code."""
    run, generator = run_of(family), torch.Generator().manual_seed(5)
    oracle = Oracle(run.model)
    replacement = oracle.sources(run.task.corrupt)
    mask, cursor = run.ones(), run.cursor()
    for _ in range(8):
        mask = mask.clone()
        mask[torch.randperm(run.n_units, generator=generator)[: run.n_units // 8]] = 0
        value = cursor.look(mask[None])[0]
        expected = oracle.measure(run.task, mask.unbind(), replacement=replacement)
        torch.testing.assert_close(value, expected, rtol=0, atol=tolerance(family))
        cursor.move(0)


def test_looking_moves_nothing(family: str) -> None:
    run = run_of(family)
    cursor = run.cursor()
    before = cursor.metric.clone()
    first = cursor.look(run.zeros()[None])
    cursor.look(torch.rand(3, run.n_units, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(cursor.metric, before)
    assert torch.equal(cursor.look(run.zeros()[None]), first)


def test_cursors_do_not_see_each_other() -> None:
    run = run_of("gpt2")
    sparse = (torch.rand(run.n_units, generator=torch.Generator().manual_seed(2)) < 0.3).double()
    still, moving = run.cursor(), run.cursor()
    expected = run(sparse)
    moving.look(sparse[None])
    moving.move(0)
    torch.testing.assert_close(still.look(sparse[None])[0], expected, rtol=0, atol=SAME)
    assert torch.equal(still.metric, run.clean_metric)
    assert torch.equal(run(run.ones()), run.clean_metric)


# --- what is not computed -------------------------------------------------------------------------------------------


class Counter:
    """Counts heads whose attention, and MLPs whose output, is computed: (heads, mlps)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heads = self.mlps = 0
        attend, mlp = Attention.attend, Mlp.__call__

        def counting_attend(piece: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            self.heads += q.shape[-4]
            return attend(piece, q, k, v, bias)

        def counting_mlp(piece: Mlp, x: Tensor) -> Tensor:
            self.mlps += 1
            return mlp(piece, x)

        monkeypatch.setattr(Attention, "attend", counting_attend)
        monkeypatch.setattr(Mlp, "__call__", counting_mlp)

    def take(self) -> tuple[int, int]:
        found = self.heads, self.mlps
        self.heads = self.mlps = 0
        return found


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def without(run: MaskedRun, *edges: str) -> Tensor:
    mask = run.ones()
    mask[[list(map(str, run.units)).index(edge) for edge in edges]] = 0
    return mask


@pytest.mark.parametrize(
    ("edge", "computed"),
    [
        ("input->logits", (0, 0)),  # only the readout
        ("a1.h2->m1", (0, 1)),  # the last MLP
        ("m0->a1.h2<v>", (1, 1)),  # one head and the MLP after it
        ("a0.h1->m0", (4, 2)),  # an MLP, the layer that reads it, and so on
        ("input->a0.h1<q>", (5, 2)),  # one head, and all that follows
    ],
)
def test_an_edge_costs_what_it_can_reach(counter: Counter, edge: str, computed: tuple[int, int]) -> None:
    run = run_of("gpt2")
    masks = without(run, edge)
    run.clean_metric, run.corrupt_metric  # noqa: B018
    counter.take()
    run(masks)
    assert counter.take() == computed
    cursor = run.cursor()
    counter.take()
    cursor.look(masks[None])
    assert counter.take() == computed
    cursor.move(0)
    cursor.look(masks[None])
    assert counter.take() == (0, 0)


def test_a_sparse_circuit_costs_what_it_contains(counter: Counter) -> None:
    """Two heads in a row: nothing else is computed."""
    run = run_of("gpt2")
    mask = 1 - without(run, "input->a0.h1<v>", "a0.h1->a1.h2<k>", "a1.h2->logits")
    run.corrupt_metric  # noqa: B018
    counter.take()
    run(mask)
    assert counter.take() == (2, 0)


def test_states_know_the_same_values_as_a_fresh_one(family: str) -> None:
    """After a walk, every stored value that is still vouched for is what a direct evaluation stores."""
    run, generator = run_of(family), torch.Generator().manual_seed(3)
    batch = run.batches[0]
    state, mask = batch.ones(), run.ones()
    for _ in range(4):
        mask = mask.clone()
        mask[torch.rand(run.n_units, generator=generator) < 0.15] = 0
        state = engine.evaluate(state, run.expand(mask[None]), keep=True).accept(0)
    direct = engine.evaluate(batch.ones(), run.expand(mask[None]), keep=True).accept(0)
    for stage in batch.planner.stages[:-1]:
        name = "heads" if stage.kind == "attention" else "mlps"
        trusted = np.minimum(state.need_sources, direct.need_sources)[stage.sources]
        ours, theirs = state.values[name][stage.layer], direct.values[name][stage.layer]
        for number in range(len(trusted)):
            a, b = (ours[number], theirs[number]) if name == "heads" else (ours, theirs)
            if trusted[number] == engine.ANSWER:
                a, b = batch.at_answer(a), batch.at_answer(b)
            if trusted[number] > 0:
                torch.testing.assert_close(a, b, rtol=0, atol=SAME)


@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "qwen3", "attention_only"])
def test_slopes_are_the_gradient_at_the_current_mask(family: str, metric: str) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(n=3, prefix=1), metric=metric)
    generator = torch.Generator().manual_seed(0)
    cursor = run.cursor(run.ones())
    mask = (torch.rand(run.mask_shape, generator=generator) < 0.8).double()
    cursor.look(mask[None])
    cursor.move(0)
    total = sum(cursor.slopes(stage) for stage in range(len(run.planner.stages)))
    gradient = run.gradient(mask) * mask
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(total, gradient, rtol=1e-9, atol=1e-11)
    assert bool((cursor.metric == run.cursor(mask).metric).all())  # nothing moved

"""Rows of component attribution: ablated forwards over plain ones, regressions, memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from circuits import coar
from circuits.coar import MaskDesign
from experiments.benchmarks.measure import Row, at_most, medians, peak_bytes
from experiments.benchmarks.rows import random_task
from patching import LensModel, Task
from patching.blocks import forward
from patching.component_run import ComponentRun

MASKS = 16
THROUGHPUT = 0.85
"""The least share of a plain forward's throughput that ablated forwards may have."""


def rows(middle: LensModel, large: LensModel | None) -> Iterator[Row]:
    """All rows; those of GPT-2 small's shape if its model is given."""
    yield from memory(middle, budget=64 << 20, bar=1.5)
    yield from regressions(repeats=3)
    if large is not None:
        yield from throughput(large, repeats=3)
        yield deep_copies(large, repeats=3)


def repeated(task: Task, times: int) -> Tensor:
    """The clean prompts, many times over, as one batch."""
    return task.clean.repeat(times, 1)


def throughput(model: LensModel, *, repeats: int) -> Iterator[Row]:
    """Random ablations of many components over the model's own forward of as many prompts.

    Args:
        model: at GPT-2 small's shape.
        repeats: how many times each is timed.
    """
    task = random_task(model)
    tokens = repeated(task, MASKS)
    contexts = model.contexts(task.clean.shape[1])
    every = torch.arange(len(tokens))
    last = task.positions.repeat(MASKS)

    @torch.no_grad()
    def plain() -> None:
        model.bridge(tokens)

    @torch.no_grad()
    def bare() -> None:
        """The least that any forward must do: the blocks, and the answers' logits alone."""
        trace = forward(model.blocks, model.embed(tokens), contexts, parallel=model.architecture.parallel)
        model.readout.logits_of(trace.final[every, last], task.answers.repeat(MASKS, 1))

    for name, components, ablation in (
        ("heads and MLPs", ("heads", "mlps"), "corrupt"),
        ("neurons", ("neurons",), "corrupt"),
        ("neurons", ("neurons",), "zero"),
    ):
        run = ComponentRun(model, task, components=components, ablation=ablation)
        masks = MaskDesign(run.n_units, MASKS, 0.95, 0).rows().to(run.ones().dtype)

        def ours(run: ComponentRun = run, masks: Tensor = masks) -> None:
            run(masks)

        for what, floor in (("the model's own forward", plain), ("bare forwards of its blocks", bare)):
            yield at_most(
                f"COAR: {MASKS} random ablations of {run.n_units:,} {name} ({ablation}) over {what} of as many prompts "
                f"({model.name})",
                ours,
                floor,
                bar=1 / THROUGHPUT,
                repeats=repeats,
                note=f"throughput of at least {THROUGHPUT} of a plain forward's; answers' logits alone",
            )


def deep_copies(model: LensModel, *, repeats: int) -> Row:
    """The other way to ablate, for comparison: a deep copy with rows of its matrices set to 0, per mask."""
    task = random_task(model)
    masks = MaskDesign(len(model.blocks) * model.architecture.n_heads, 4, 0.95, 0).rows()

    @torch.no_grad()
    def copies() -> None:
        for mask in masks:
            broken = copy.deepcopy(model.bridge)
            heads = mask.view(len(model.blocks), -1)
            ends = [p for name, p in broken.named_parameters() if "attn.o." in name and p.ndim == 2]
            for weight, keep in zip(ends, heads, strict=True):
                weight.view(len(keep), -1, weight.shape[1])[~keep] = 0.0
            broken(task.clean)

    @torch.no_grad()
    def plain() -> None:
        for _ in masks:
            model.bridge(task.clean)

    mine, theirs = medians(copies, plain, repeats=repeats)
    return Row(
        f"for comparison: a deep copy with zeroed rows for every mask, over plain forwards ({model.name})",
        mine[0], theirs[0], "ms CPU", mine[0] / theirs[0], "none", True, mine[1] / theirs[1],
        note="how the method's authors ablate (arXiv 2404.11534)",
    )  # fmt: skip


def regressions(*, repeats: int) -> Iterator[Row]:
    """Fitting weights: of heads and MLPs against numpy's least squares, of GPT-2's neurons against one plain pass."""
    small = MaskDesign(156, 10_000, 0.9, 0)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(small.samples, 64, generator=generator, dtype=torch.float64)

    def numpys() -> None:
        masks = small.rows().double().numpy()
        np.linalg.lstsq(np.concatenate([masks, np.ones((len(masks), 1))], axis=1), outputs.numpy(), rcond=None)

    yield at_most(
        "COAR: least squares of 10,000 samples, 156 components, 64 prompts over numpy.linalg.lstsq",
        lambda: coar.fit(small, outputs, estimator="normal_equations"), numpys, bar=1.0, repeats=repeats,
        note="masks made from the seed in both",
    )  # fmt: skip
    large = MaskDesign(36_864, 4_000, 0.95, 0)
    some = torch.randn(large.samples, 8, generator=generator, dtype=torch.float64)

    def one_pass() -> None:
        for rows, masks in large.blocks():
            torch.matmul(masks.to(torch.float32).T, some[rows].float())

    for estimator in ("difference_of_means", "conjugate_gradients"):

        def ours(estimator: str = estimator) -> None:
            coar.fit(large, some, estimator=estimator, ridge=100.0 if estimator == "conjugate_gradients" else None)

        mine, theirs = medians(ours, one_pass, repeats=1)
        yield Row(
            f"COAR: {estimator.replace('_', ' ')} of 4,000 samples, 36,864 components, 8 prompts over making the masks "
            "and one product with them",
            mine[0], theirs[0], "ms CPU", mine[0] / theirs[0], "none", True, mine[1] / theirs[1],
        )  # fmt: skip


def memory(model: LensModel, *, budget: int, bar: float) -> Iterator[Row]:
    """What an attribution needs beyond the model, with few samples and with many.

    Args:
        model: a model of the benchmark.
        budget: bytes, as `ComponentRun` takes it.
        bar: the most that the peak may be, as a multiple of the budget.
    """
    task = random_task(model)

    def work(samples: int) -> Callable[[], object]:
        def attributed() -> object:
            run = ComponentRun(model, task, components=("heads", "mlps"), memory=budget)
            return coar.attribute(run, samples=samples)

        return attributed

    work(300)()  # what is made once and kept, such as compiled kernels, is not the method's
    for samples in (500, 4_000):
        peak = peak_bytes(work(samples))
        yield Row(
            f"peak memory of COAR with {samples:,} samples, with a budget of {budget >> 20} MiB ({model.name})",
            peak / 2**20, budget / 2**20, "MiB", peak / budget, f"≤ {bar:g}×", peak <= bar * budget,
            note="all values that the run keeps included",
        )  # fmt: skip

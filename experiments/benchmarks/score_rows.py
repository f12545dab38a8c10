"""Rows of the gradient methods: attribution patching with one gradient and with several, over plain runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from experiments.benchmarks.measure import Row, at_most
from experiments.benchmarks.rows import random_task
from patching import LensModel, MaskedRun, Task, atp
from patching.blocks import forward
from patching.eap_ig import inputs
from patching.metrics import Contrast, Prediction

STEPS = 5


def plain_runs(model: LensModel, task: Task, *, gradients: int) -> Callable[[], None]:
    """Two forwards of the model's blocks, and some forwards and backwards from the metric to the embeddings.

    It is what no method of this family can do without: no parameter's gradient, and only the answers' logits.
    """
    contexts, parallel = model.contexts(task.clean.shape[1]), model.architecture.parallel
    rows, contrast = torch.arange(len(task)), Contrast.of(task.answers, task.wrong_answers)

    def run() -> None:
        with torch.no_grad():
            for tokens in (task.clean, task.corrupt):
                forward(model.blocks, model.embed(tokens), contexts, parallel=parallel)
        for _ in range(gradients):
            embedded = model.embed(task.clean).detach().requires_grad_(True)
            final = forward(model.blocks, embedded, contexts, parallel=parallel).final[rows, task.positions]
            prediction = Prediction(final, model.readout, task.answers, task.wrong_answers, None, contrast)
            torch.autograd.grad(prediction.logit_difference().sum(), embedded)

    return run


def rows(model: LensModel, *, bars: tuple[float, float], repeats: int) -> Iterator[Row]:
    """From prompts to the scores of all edges: EAP, and EAP-IG with five steps, each over its plain runs.

    Args:
        model: a model of the benchmark.
        bars: the most that EAP and EAP-IG may cost, as multiples of their floors.
        repeats: how many times each is timed.
    """
    task = random_task(model)
    methods: tuple[tuple[str, int, Callable[[], Any]], ...] = (
        ("EAP", 1, lambda: atp.scores(MaskedRun(model, task))),
        (f"EAP-IG (inputs, {STEPS} steps)", STEPS, lambda: inputs(MaskedRun(model, task), steps=STEPS)),
    )
    for (name, gradients, ours), bar in zip(methods, bars, strict=True):
        floor = plain_runs(model, task, gradients=gradients)
        plural = "forward and backward" if gradients == 1 else "forwards and backwards"
        yield at_most(
            f"{name} over two forwards and {gradients} {plural} of the blocks ({model.name})", ours, floor,
            bar=bar, repeats=repeats, note="from prompts to all edge scores; backward to the embeddings alone",
        )  # fmt: skip

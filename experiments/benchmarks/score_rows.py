"""The row of gradient methods with several steps: EAP-IG over plain runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from experiments.benchmarks.measure import Row, at_most
from experiments.benchmarks.rows import random_task
from patching import LensModel, MaskedRun, Task
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


def eap_ig(model: LensModel, *, bar: float, repeats: int) -> Row:
    """From prompts to the scores of all edges by EAP-IG with five steps, over its plain runs.

    Args:
        model: a model of the benchmark.
        bar: the most that it may cost, as a multiple of its floor.
        repeats: how many times each is timed.
    """
    task = random_task(model)
    return at_most(
        f"EAP-IG ({STEPS} steps) over two forwards and {STEPS} forwards and backwards of the blocks ({model.name})",
        lambda: inputs(MaskedRun(model, task), steps=STEPS),
        plain_runs(model, task, gradients=STEPS),
        bar=bar,
        repeats=repeats,
        note="from prompts to all edge scores; backward to the embeddings alone",
    )

"""Does the engine compute what the model computes? Four identities on random prompts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from patching.engine import Batch
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.metrics import Metric
from patching.plan import FULL
from patching.task import Task


def relative_errors(model: LensModel, *, prompts: int = 2, seed: int = 0) -> dict[str, float]:
    """The largest error of each identity, relative to the spread of the model's own logits."""
    generator = torch.Generator().manual_seed(seed)
    length = min(model.n_ctx, 12)
    clean, corrupt = torch.randint(0, model.d_vocab, (2, prompts, length), generator=generator)
    answers = torch.zeros(prompts, 1, dtype=torch.long)
    last = torch.full((prompts,), length - 1)
    scores = Metric("projected logits", True, lambda prediction: _project(prediction.logits, seed))

    def run(replacing: Tensor) -> MaskedRun:
        return MaskedRun(model, Task("self-check", clean, replacing, answers, answers, last), metric=scores)

    logits = {name: model.logits(tokens)[:, -1].double() for name, tokens in (("clean", clean), ("corrupt", corrupt))}
    own = {name: _project(values, seed) for name, values in logits.items()}
    size = max(float(logits["clean"].std()), 1e-6)
    pair, same = run(corrupt), run(clean)
    random = torch.rand(same.n_units, generator=generator)
    results = {
        "the clean run (all masks 1)": pair(pair.ones()) - own["clean"],
        "the corrupt run (all masks 0)": pair(pair.zeros()) - own["corrupt"],
        "a run whose replacements equal the clean values": same(random) - own["clean"],
    }
    errors = {what: float(difference.abs().max()) / size for what, difference in results.items()}
    errors["the sum of all writers' changes"] = _residual_error(pair.batches[0])
    return errors


def _residual_error(batch: Batch) -> float:
    changes = batch.ones().rows(np.arange(batch.planner.n_sources), FULL).sum(0)
    expected = batch.clean.final - batch.base[-1]
    return float((changes - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def _project(logits: Tensor, seed: int) -> Tensor:
    """A random direction of the logits: one number per prompt that no error is likely to miss."""
    generator = torch.Generator().manual_seed(seed + 1)
    direction = torch.randn(logits.shape[-1], generator=generator, dtype=torch.float64)
    return logits @ (direction / direction.norm()).to(logits.device)

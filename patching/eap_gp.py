"""EAP-GP: attribution patching with gradients along a path that the model itself chooses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from patching.engine import Batch
from patching.errors import InvalidOption
from patching.first_order import averaged, require, require_run
from patching.gradients import quadrature
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores
from patching.tape import clean_embedding, record


def scores(run: MaskedRun, *, steps: int = 5, length: float = 1.0, progress: Progress = silent) -> Scores:
    """``(replacement - clean) · mean_j g_j``, g_j the gradient at the j-th point of a gradient path.

    The path starts at the clean embeddings and goes down the distance of what the model says from what it says on the
    replaced run: ``γ_{j+1} = γ_j - length · d / ‖d‖`` with ``d = ∂‖G(γ_j) - G(replaced)‖² / ∂γ_j``. Straight paths
    spend most of their steps where the metric is flat; this one follows where the output moves.

    The definition leaves open what we chose so: G is all logits at the answer position; ``‖d‖`` is the norm over all
    positions and dimensions of a prompt, so that prompts do not depend on each other; the points are those after the
    1st to the last step, so the clean run is none of them. A step of fixed length makes the path depend on the scale
    of the embeddings, and it need not arrive anywhere: nothing is complete. Choose ``length`` by how long embeddings
    are.

    Cost: ``2 steps`` forwards and as many backwards, beyond those of making the run.

    Args:
        run: over edges, nodes or neurons; its ablation is a run of its own.
        steps: points of the path.
        length: of each step, in the unit of the embeddings; 1 in the paper.
        progress: called with the number of points taken and to take.

    Returns:
        Signed effects in the metric's unit, mean and standard error over prompts.

    Raises:
        InvalidOption: too few steps, a length that is not a positive number, an ablation that is no run (zero, means),
            or a run by position.

    Source: arXiv 2502.06852, from its definition; the authors' code is not public.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> round(scores(run)["a0.h1->logits"], 6)
        -1.5
    """
    require(run, "eap_gp")
    require_run(run, "eap_gp")
    quadrature("right", steps)
    if isinstance(length, bool) or not isinstance(length, int | float) or not 0 < length < math.inf:
        raise InvalidOption(f"expected a positive length of a step; got {length!r}.")

    def points(batch: Batch) -> Iterator[tuple[Tensor, float]]:
        return ((embedded, 1 / steps) for embedded in gradient_path(batch, steps=steps, length=length))

    options = {"steps": steps, "length": float(length)}
    return averaged(run, "eap_gp", options, points, count=steps, progress=progress)


def gradient_path(batch: Batch, *, steps: int, length: float = 1.0) -> Iterator[Float[Tensor, "example pos d_model"]]:
    """The points of the path after each step. A prompt whose output has arrived stays where it is.

    Cost: one forward and backward per point.
    """
    readout = batch.model.readout
    with torch.no_grad():
        goal = readout.logits(_answers(batch, batch.base[-1].expand(len(batch.task), -1, -1)))
    embedded = clean_embedding(batch)
    for _ in range(steps):
        tape = record(batch, embedded)
        with torch.enable_grad():
            said = readout.logits(_answers(batch, tape.final[:, batch.start :]))
            distance = (said - goal).pow(2).sum()
        (slope,) = torch.autograd.grad(distance, tape.start)
        norm = torch.linalg.vector_norm(slope.double(), dim=(1, 2), keepdim=True)
        unit = torch.where(norm > 0, slope / norm.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        embedded = embedded - length * unit.to(embedded)
        yield embedded


def _answers(batch: Batch, residual: Tensor) -> Tensor:
    return batch.at_answer(residual)[..., 0, :]

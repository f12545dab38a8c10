"""CEAP: conductance on edges, a first-order method whose scores add up over every cut of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from patching.chunks import with_fewer_prompts
from patching.engine import Batch
from patching.errors import InvalidOption
from patching.first_order import UNITS, Units, Values, difference, require, require_run, require_slope
from patching.gradients import quadrature
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores
from patching.tape import clean_embedding, record, replaced_embedding

RULES = {"trapezoid": (0.5, 0.5), "left": (1.0, 0.0), "right": (0.0, 1.0)}
"""Weights of the gradients at the clean and at the replaced end of an interval."""


@with_fewer_prompts
def scores(run: MaskedRun, *, steps: int = 10, rule: str = "trapezoid", progress: Progress = silent) -> Scores:
    """``Σ_k ḡ_k · (z(k+1) - z(k))`` along the path of the embeddings from clean to replaced.

    z is what the unit carries on the run with the embeddings at ``clean + k/steps (replaced - clean)``, and ḡ_k the
    mean over the interval's two ends of the gradient at the target's port (at the node's write; at the neuron).

    Complete: the edges across any cut between input and logits add up to ``metric(replaced) - metric(clean)``, up to
    an error that falls as 1/steps² (``trapezoid``) or 1/steps (``left``, ``right``); so do the nodes that a cut
    consists of. A cut must not part the heads of a key/value group, nor those of a layer with a norm behind attention:
    what joins them inside the layer is no edge. A node is the sum of its outgoing edges. One step of the left rule has
    the gradient of attribution patching, and the same scores.

    Cost: ``steps + 1`` forwards and as many backwards (one fewer for ``left`` and ``right``), beyond those of making
    the run. Two points' gradients are held at a time.

    Args:
        run: over edges, nodes or neurons; its ablation is a run of its own.
        steps: intervals of the path.
        rule: ``trapezoid``, ``left`` or ``right``, counted from the clean end.
        progress: called with the number of points taken and to take.

    Returns:
        Signed effects in the metric's unit, mean and standard error over prompts.

    Raises:
        InvalidOption: an unknown rule or too few steps, an ablation that is no run (zero, means), one step to the left
            with a metric whose gradient vanishes at the clean run, or a run by position.

    Source: arXiv 2606.16920 (CEAP, known to us from its definition: conductance, arXiv 1805.12233, at edges). The rule
    is ours to choose: the trapezoid converges a power faster.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> found = scores(run)
        >>> total = sum(found[edge] for edge in found.units if edge.target.kind == "logits")
        >>> abs(total - float((run.corrupt_metric - run.clean_metric).mean())) < 1e-9
        True
    """
    require(run, "ceap")
    require_run(run, "ceap")
    quadrature(rule, steps)
    if rule not in RULES:
        raise InvalidOption(f"expected a rule out of {', '.join(RULES)} for ceap; got {rule!r}.")
    require_slope(run, only_clean=(rule, steps) == ("left", 1))
    total, done = (steps + 1) * len(run.batches), 0

    def shown() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    units, effects = UNITS[run.level], []
    for batch in run.batches:
        made = torch.zeros(len(batch.task), run.n_units, dtype=torch.float64, device=run.model.device)
        for slopes, change in _terms(units, batch, steps, RULES[rule], shown):
            made += units.product(batch, slopes, units.spread(batch, change))
        effects.append(made)
    provenance = run.provenance("ceap", {"steps": steps, "rule": rule})
    return Scores.over_prompts(run.graph.architecture, run.level, torch.cat(effects), provenance)


def _terms(
    units: Units, batch: Batch, steps: int, ends: tuple[float, float], shown: Callable[[], None]
) -> Iterator[tuple[Any, Values]]:
    """Gradients of each point with the changes that they are to be multiplied with.

    Rearranged so that every gradient is used once: that of point k goes with ``left (z(k+1) - z(k))`` and
    ``right (z(k) - z(k-1))``.
    """
    left, right = ends
    clean, goal = clean_embedding(batch), replaced_embedding(batch)
    now: Values = []
    behind: Values = []
    slopes: Any = None
    for k in range(steps + 1):
        tape = record(batch, clean + (k / steps) * (goal - clean))
        before, now = now, units.values(batch, tape)
        ahead = difference(now, before) if before else []
        if slopes is not None:
            yield slopes, _weighted(right, behind, left, ahead)
        wanted = (k < steps and left > 0) or (k > 0 and right > 0)
        slopes = units.slopes(batch, tape) if wanted else None
        behind = ahead
        shown()
    if slopes is not None:
        yield slopes, [right * value for value in behind]


def _weighted(right: float, behind: Values, left: float, ahead: Values) -> Values:
    """``right · behind + left · ahead``; nothing is behind the first point."""
    if not behind:
        return [left * value for value in ahead]
    return [right * one + left * other for one, other in zip(behind, ahead, strict=True)]

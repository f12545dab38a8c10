"""Random scores: what any method must beat."""

from __future__ import annotations

import torch

from patching.errors import InvalidOption
from patching.first_order import require
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores


def scores(run: MaskedRun, *, seed: int = 0, progress: Progress = silent) -> Scores:
    """A random number for each unit, uniform between 0 and 1: a random order.

    These are positive importances and no effects; they depend on the seed and the number of units alone.

    Cost: none.

    Args:
        run: over edges, nodes or neurons.
        seed: of the numbers.
        progress: called once, at the end.

    Returns:
        Numbers without unit, and no standard error.

    Raises:
        InvalidOption: the seed is not a whole number from 0 on, or the run is by position.

    Source: the random baseline of circuit benchmarks, as in arXiv 2504.13151.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> bool((scores(run).values == scores(run).values).all())
        True
    """
    require(run, "random")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InvalidOption(f"expected a seed that is a whole number from 0 on; got {seed!r}.")
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(run.n_units, generator=generator, dtype=torch.float64)
    progress(1, 1)
    provenance = run.provenance("random", {"seed": seed}) | {"sign": "importance: random, not an effect"}
    return Scores(run.graph.architecture, run.level, values, None, provenance)

"""What a circuit is worth: how much of the behaviour is left when everything outside it is ablated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from graphs.circuit import Circuit
from patching.errors import InvalidOption
from patching.masked import MaskedRun


@dataclass(frozen=True)
class Report:
    """The worth of a circuit on some prompts; metrics are means over prompts, in the metric's unit.

    Attributes:
        metric: name of the metric.
        prompts: how many.
        clean: the metric of the whole model.
        ablated: the metric with every edge ablated.
        circuit: the metric with every edge outside the circuit ablated.
        complement: the metric with every edge of the circuit ablated.
        faithfulness: (circuit - ablated) / (clean - ablated); 1 is the whole model, 0 nothing. Not clipped. None when
            the gap between clean and ablated is too small to divide by.
        interval: 95 % bootstrap interval of faithfulness over prompts.
        completeness_gap: (complement - ablated) / (clean - ablated): what the model still does without the circuit;
            0 when the circuit is all there is.
        random_faithfulness: faithfulness of random circuits of as many edges (mean of several).
        n_edges, n_nodes, n_possible: size of the circuit, and edges of the model.
    """

    metric: str
    prompts: int
    clean: float
    ablated: float
    circuit: float
    complement: float
    faithfulness: float | None
    interval: tuple[float, float] | None
    completeness_gap: float | None
    random_faithfulness: float | None
    n_edges: int
    n_nodes: int
    n_possible: int

    def to_dict(self) -> Mapping[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        def share(value: float | None) -> str:
            return "undefined (no gap between clean and ablated)" if value is None else f"{value:.1%}"

        low_high = "" if self.interval is None else f" (95 %: {self.interval[0]:.1%} to {self.interval[1]:.1%})"
        return "\n".join(
            (
                f"{self.n_edges:,} of {self.n_possible:,} edges ({self.n_edges / self.n_possible:.2%}), "
                f"{self.n_nodes} nodes; {self.prompts} prompts",
                f"{self.metric}: model {self.clean:.3f}, circuit {self.circuit:.3f}, "
                f"all ablated {self.ablated:.3f}, all but the circuit {self.complement:.3f}",
                f"faithfulness {share(self.faithfulness)}{low_high}; "
                f"random circuits of this size {share(self.random_faithfulness)}",
                f"left without the circuit {share(self.completeness_gap)}",
            )
        )


def evaluate(
    run: MaskedRun, circuit: Circuit, *, random_circuits: int = 5, resamples: int = 1000, seed: int = 0
) -> Report:
    """Run the circuit alone, its complement, and random circuits of its size.

    ``faithfulness = (m(circuit) - m(ablated)) / (m(clean) - m(ablated))``, a ratio of means over prompts.

    Cost: two masked runs and one per random circuit.

    Args:
        run: prompts (preferably not those of the search), ablation and metric.
        circuit: of this model.
        random_circuits: how many random circuits to compare with.
        resamples: of prompts, for the interval.
        seed: of the random circuits and resamples.

    Raises:
        InvalidMask: the circuit is of a model of another shape.

    Source: faithfulness as in arXiv 2403.19647 and 2504.13151 (f(C)); there it is not clipped either.

    Example:
        >>> from patching import MaskedRun, toy
        >>> from circuits import acdc
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> evaluate(run, acdc.search(run, tau=0.0)).prompts
        4
    """
    run = run.edges()
    if random_circuits < 0 or resamples < 0:
        raise InvalidOption(f"expected counts of 0 or more; got {random_circuits=}, {resamples=}.")
    mask = run.mask_of(circuit)
    generator = torch.Generator().manual_seed(seed)
    others = torch.zeros(random_circuits, run.n_units, dtype=mask.dtype)
    for row in others:
        row[torch.randperm(run.n_units, generator=generator)[: circuit.n_edges]] = 1.0
    values = run(torch.cat((mask[None], 1 - mask[None], others))).cpu()
    clean, ablated = run.clean_metric.cpu(), run.corrupt_metric.cpu()
    return Report(
        metric=run.metric.name,
        prompts=len(run.task),
        clean=float(clean.mean()),
        ablated=float(ablated.mean()),
        circuit=float(values[0].mean()),
        complement=float(values[1].mean()),
        faithfulness=_share(values[0], clean, ablated),
        interval=_interval(values[0], clean, ablated, resamples, generator),
        completeness_gap=_share(values[1], clean, ablated),
        random_faithfulness=_share(values[2:].mean(0), clean, ablated) if random_circuits else None,
        n_edges=circuit.n_edges,
        n_nodes=len(circuit.nodes),
        n_possible=run.n_units,
    )


def _share(
    value: Float[Tensor, " example"], clean: Float[Tensor, " example"], ablated: Float[Tensor, " example"]
) -> float | None:
    """Ratio of means, or None where the gap is lost in rounding."""
    gap = float((clean - ablated).mean())
    if abs(gap) < 1e-6 * max(1.0, float(clean.abs().mean())):
        return None
    share = float((value - ablated).mean()) / gap
    return share if math.isfinite(share) else None


def _interval(
    value: Tensor, clean: Tensor, ablated: Tensor, resamples: int, generator: torch.Generator
) -> tuple[float, float] | None:
    """Percentile bootstrap over prompts."""
    if len(value) < 2 or resamples < 2 or _share(value, clean, ablated) is None:
        return None
    rows = torch.randint(0, len(value), (resamples, len(value)), generator=generator)
    shares = (value - ablated)[rows].mean(1) / (clean - ablated)[rows].mean(1)
    low, high = torch.quantile(shares.nan_to_num(), torch.tensor([0.025, 0.975], dtype=shares.dtype)).tolist()
    return low, high

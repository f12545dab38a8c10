"""How well methods find circuits that are known by construction: ``python -m experiments.ground_truth_table``.

For every program of `patching.compiled`, methods search the model on pairs of prompts with different answers, and what
they find is held against the circuit that was read off the program. Prints a table in Markdown.


Source: the tracr models and logic gates of the ACDC paper, arXiv 2304.14997, section 4 and appendix M.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuits import acdc
from circuits.recovery import auroc
from graphs.circuit import Circuit
from patching import MaskedRun, compiled, exact

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

TAUS = (0.001, 0.01, 0.1, 1.0, 3.0)
"""Thresholds, in logits; the right answer leads by 10 in most programs."""

DECIMALS = 9
"""Scores that agree to this many places are ties: rounding must not rank what a method cannot tell apart."""


@dataclass(frozen=True)
class Found:
    """A circuit against the truth.

    Attributes:
        tau: threshold that gave it.
        precision: share of its edges that are true; 1 if it has none.
        recall: share of the true edges that it has.
    """

    tau: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall.

        Example:
            >>> round(Found(0.1, 1.0, 0.6).f1, 2)
            0.75
        """
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True)
class Row:
    """What the methods made of one program.

    Attributes:
        name: of the program.
        edges: of the model.
        true: edges of the circuit.
        acdc: the best of ACDC over thresholds.
        absolute: the same, comparing absolute changes with the threshold.
        exact: AUROC of exact edge effects, by absolute value.
        eap: AUROC of their first-order estimates (edge attribution patching).
        eap_recall: share of the true edges among as many edges of the largest estimates.
        unseen: true edges that the estimate gives exactly nothing.
    """

    name: str
    edges: int
    true: int
    acdc: Found
    absolute: Found
    exact: float
    eap: float
    eap_recall: float
    unseen: int


def measure(
    name: str, *, prompts: int = 32, seed: int = 0, taus: Sequence[float] = TAUS, sharpness: float | None = None
) -> Row:
    """Search one compiled model with every method and compare with the truth.

    Cost: two ACDC searches per threshold, one run per edge, and a backward.

    Args:
        name: of the program.
        prompts: pairs of the training split.
        seed: of the draw.
        taus: thresholds to try.
        sharpness: of the heads; that of the compiler by default, at which patterns are saturated.

    Raises:
        ModelNotFound: there is no such program.

    Example:
        >>> measure("previous_token", prompts=8).acdc.f1
        1.0
    """
    import torch

    from patching.compiled.compiler import SHARPNESS, compile_program

    model = compile_program(compiled.program(name), dtype=torch.float64, sharpness=sharpness or SHARPNESS)
    run = MaskedRun(model, compiled.task(name, n=prompts, seed=seed))
    truth = compiled.truth(name)
    positive = run.mask_of(truth).bool()
    estimate, true = (values.abs().round(decimals=DECIMALS) for values in (eap(run), exact.scores(run).values))
    return Row(
        name=name,
        edges=run.n_units,
        true=truth.n_edges,
        acdc=_best(run, truth, taus, absolute=False),
        absolute=_best(run, truth, taus, absolute=True),
        exact=auroc(true, positive),
        eap=auroc(estimate, positive),
        eap_recall=_recall_at_n(estimate, positive),
        unseen=int((estimate[positive] == 0).sum()),
    )


def eap(run: MaskedRun) -> Float[Tensor, " edge"]:
    """First-order effect of every edge: minus the gradient of the metric with respect to the mask, where it is 1.

    Cost: a dense masked forward and backward. `atp.scores` gives the same numbers without the engine's masks.

    Source: arXiv 2310.10348, whose estimate this gradient is: change of the source times gradient at the target.
    """
    return -run.gradient(run.ones()).double()


def _best(run: MaskedRun, truth: Circuit, taus: Sequence[float], *, absolute: bool) -> Found:
    """The best F1 over thresholds; of equals, the first threshold."""
    found = []
    for tau in taus:
        kept = set(acdc.search(run, tau=tau, absolute=absolute).edges)
        shared = len(kept & set(truth.edges))
        found.append(Found(tau, shared / len(kept) if kept else 1.0, shared / truth.n_edges))
    return max(found, key=lambda each: each.f1)


def _recall_at_n(scores: Float[Tensor, " edge"], positive: Bool[Tensor, " edge"]) -> float:
    """Share of the n true edges among the n largest scores; tied ones count by the share of them that has room."""
    n = int(positive.sum())
    limit = scores.sort(descending=True).values[n - 1]
    above, tied = scores > limit, scores == limit
    room = (n - int(above.sum())) / int(tied.sum())
    return (int((above & positive).sum()) + room * int((tied & positive).sum())) / n


def table(rows: Iterable[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| program | edges | true | ACDC: best F1 | precision | recall | with absolute changes | exact: AUROC | "
        "EAP: AUROC | EAP: recall at n | true edges that EAP scores 0 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        best = row.acdc
        lines.append(
            f"| `{row.name}` | {row.edges} | {row.true} | {best.f1:.2f} | {best.precision:.2f} | {best.recall:.2f} | "
            f"{row.absolute.f1:.2f} | {row.exact:.2f} | {row.eap:.2f} | {row.eap_recall:.2f} | {row.unseen} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ground_truth_table", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="all by default")
    parser.add_argument("--prompts", type=int, default=32, help="pairs of prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sharpness", type=float, default=None, help="of the heads; 200 by default, 20 leaks 0.005 %%")
    options = parser.parse_args()
    names = options.programs or list(compiled.PROGRAMS)
    for name in names:
        compiled.program(name)
    chosen = {"prompts": options.prompts, "seed": options.seed, "sharpness": options.sharpness}
    sys.stdout.write(table(measure(name, **chosen) for name in names) + "\n")


if __name__ == "__main__":
    main()

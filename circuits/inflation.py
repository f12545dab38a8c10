"""The minimality test: does every edge of a circuit matter more than edges that were added to it at random?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.binomial import at_most
from circuits.knockout import in_blocks
from circuits.random_circuits import random_path
from graphs.circuit import Circuit
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

PATHS_TO_TRY = 1000
"""Random paths that are drawn before giving up on finding an edge outside the circuit."""


@dataclass(frozen=True)
class EdgeTest:
    """Whether one edge matters less than edges added at random.

    Attributes:
        edge: its name.
        effect: absolute change of the mean metric when it is taken out of the circuit.
        larger_than: share of the reference effects that are smaller than it.
        p_value: of this edge alone; compare with alpha over the number of edges.
    """

    edge: str
    effect: float
    larger_than: float
    p_value: float


@dataclass(frozen=True)
class MinimalityResult:
    """The outcome of the minimality test.

    Attributes:
        edges: every edge, the least important first.
        reference: absolute effects of edges of random paths, each taken out of the circuit with its path.
        quantile: the share of the reference that an edge should exceed.
        p_value: smallest of the edges' p-values times their number, at most 1 (Bonferroni): small if the circuit holds
            an edge that it does not need.
        options: of the test, with its seed.
        note: what a reader should know; empty if nothing.
    """

    edges: tuple[EdgeTest, ...]
    reference: tuple[float, ...]
    quantile: float
    p_value: float
    options: dict[str, Any]
    note: str = ""

    def needless(self, *, alpha: float = 0.05) -> tuple[str, ...]:
        """Edges shown to matter less than the quantile asks, at a level corrected for their number."""
        return tuple(each.edge for each in self.edges if each.p_value * len(self.edges) <= alpha)

    def to_frame(self) -> pd.DataFrame:
        """One row per edge."""
        import pandas as pd

        return pd.DataFrame([asdict(each) for each in self.edges], columns=list(EdgeTest.__dataclass_fields__))

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return (
            f"minimality: p = {self.p_value:.3g}, {len(self.needless()):,} of {len(self.edges):,} edges shown needless "
            f"at 5 % against {len(self.reference):,} random ones; H0: every edge exceeds {self.quantile:.0%} of "
            f"them{note}"
        )


def minimality(
    run: MaskedRun,
    circuit: Circuit,
    *,
    reference: int = 100,
    quantile: float = 0.9,
    seed: int = 0,
    progress: Progress = silent,
) -> MinimalityResult:
    """Does every edge matter more than edges that were added at random?

    The circuit is inflated by a random path from the input to the logits, and one of the path's new edges, drawn at
    random, is taken out again: its effect is ``abs(mean metric(inflated) - mean metric(inflated without it))``. Many
    such draws are the reference. An edge of the circuit has the effect of taking it out of the circuit.
    H0 for an edge: it exceeds a draw of the reference with probability of at least ``quantile``. Its p-value is the
    binomial probability of exceeding as few draws as it did, or fewer.

    Cost: one masked run per edge, two per draw and one for the circuit.

    Args:
        run: prompts (not those of the search), ablation and metric.
        circuit: of this model.
        reference: number of draws.
        quantile: the share of the reference that an edge should exceed, between 0 and 1.
        seed: of the draws.
        progress: called with the number of runs done and in all.

    Raises:
        InvalidMask: the circuit is of a model of another shape.
        InvalidOption: an option is out of range, or the circuit has no edges.

    Source: arXiv 2410.13032, section 3.3, with its Bonferroni correction.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> minimality(run, top_edges(atp.scores(run), n=3), reference=20).needless()
        ()
    """
    check_reference(circuit, reference=reference, quantile=quantile)
    if not circuit.n_edges:
        raise InvalidOption("expected a circuit with edges; got one without, in which no edge can be tested.")
    run = run.edges()
    own = run.mask_of(circuit)
    options = {"reference": reference, "quantile": quantile, "seed": seed}
    draws = _inflated(run, own > 0, reference, torch.Generator().manual_seed(seed))
    numbers = [run.graph.number(edge) for edge in circuit.edges]

    def mask(index: int) -> Tensor:
        if index <= len(numbers):
            mask = own.clone()
            mask[..., numbers[index - 1 : index]] = 0.0
            return mask
        draw, part = divmod(index - len(numbers) - 1, 2)
        inflated, removed = draws[draw]
        mask = torch.maximum(own, inflated.to(own.dtype))
        mask[..., removed : removed + part] = 0.0
        return mask

    means = in_blocks(run, 1 + len(numbers) + 2 * len(draws), mask, progress=progress).mean(-1)
    effects = (means[1 : 1 + len(numbers)] - means[0]).abs()
    pairs = means[1 + len(numbers) :].reshape(-1, 2)
    found = compare_with_reference(
        [str(edge) for edge in circuit.edges], effects, (pairs[:, 0] - pairs[:, 1]).abs(), quantile, options
    )
    if draws:
        return found
    note = f"no edge outside the circuit on {PATHS_TO_TRY:,} random paths, so there is nothing to compare with"
    return replace(found, note=note)


def compare_with_reference(
    names: Sequence[str],
    effects: Float[Tensor, " edge"],
    reference: Float[Tensor, " draw"],
    quantile: float,
    options: dict[str, Any],
) -> MinimalityResult:
    """The minimality test of effects that were measured already.

    An edge's p-value is ``P(K <= number of reference effects below its own)`` for K binomial with ``quantile``.

    Example:
        >>> found = compare_with_reference(["a", "b"], torch.tensor([5.0, 0.0]), torch.arange(4.0), 0.5, {})
        >>> [(each.edge, each.larger_than, each.p_value) for each in found.edges], found.p_value
        ([('b', 0.0, 0.0625), ('a', 1.0, 1.0)], 0.125)
    """
    exceeded = (effects[:, None] > reference).sum(-1).tolist()
    tests = [
        EdgeTest(name, float(effect), count / max(1, len(reference)), at_most(count, len(reference), quantile))
        for name, effect, count in zip(names, effects, exceeded, strict=True)
    ]
    p_value = min(1.0, min(each.p_value for each in tests) * len(tests))
    tests.sort(key=lambda each: each.effect)
    return MinimalityResult(tuple(tests), tuple(reference.tolist()), quantile, p_value, options)


def check_reference(circuit: Circuit, *, reference: int, quantile: float) -> None:
    """Whether a circuit can be compared with random paths, and options are in range.

    Raises:
        InvalidOption: an edge has a position, or an option is out of range.
    """
    if any(edge.position is not None for edge in circuit.edges):
        raise InvalidOption(
            "expected edges at every position, like those of the random paths that they are compared with; the circuit "
            "has edges at one position each. Test the circuit of edge.everywhere()."
        )
    if reference < 1 or not 0 < quantile < 1:
        raise InvalidOption(
            f"expected a reference of at least 1 and a quantile between 0 and 1; got {reference=}, {quantile=}."
        )


def _inflated(
    run: MaskedRun, own: Bool[Tensor, "*pos edge"], count: int, generator: torch.Generator
) -> list[tuple[Bool[Tensor, " edge"], int]]:
    """Random paths with an edge outside the circuit, as masks, each with the number of one such edge."""
    inside = own if own.ndim == 1 else own.all(0)
    draws: list[tuple[Tensor, int]] = []
    failed = 0
    while len(draws) < count and failed < PATHS_TO_TRY:
        path = [run.graph.number(edge) for edge in random_path(run.graph, generator=generator)]
        new = [number for number in path if not inside[number]]
        if not new:
            failed += 1
            continue
        failed = 0
        mask = torch.zeros_like(inside)
        mask[path] = True
        draws.append((mask, new[int(torch.randint(0, len(new), (), generator=generator))]))
    return draws if len(draws) == count else []

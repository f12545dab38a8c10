"""Would other prompts have given another circuit? Any method, run again on resampled prompts.

`bootstrap` draws as many prompts with replacement and says how far the circuits agree. `stability_selection` draws
halves without replacement, keeps the edges that come up often enough, and bounds how many of those come up by chance.
Both wrap a method as a callable from a run to a circuit, such as ``lambda run: acdc.search(run, tau=0.02)``, or to
scores, such as ``atp.scores``, with a ``select`` that makes a circuit of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphs.circuit import Circuit
from graphs.compare import compare
from graphs.consensus import consensus, inclusion
from graphs.nodes import Edge
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

Method = Callable[[MaskedRun], Circuit | Scores]
Select = Callable[[Scores], Circuit]


@dataclass(frozen=True)
class Stability:
    """How far the circuits of a method agree over resamples of the prompts.

    Attributes:
        whole: the circuit from all prompts.
        circuits: one per resample.
        jaccards: shared edges over all edges, of every pair of resamples; 1 for two empty circuits.
        jaccards_with_whole: the same of every resample with the circuit from all prompts.
        frequencies: share of the resamples that hold each edge, for edges that are in some; most frequent first.
        options: resamples and seed.
    """

    whole: Circuit
    circuits: tuple[Circuit, ...]
    jaccards: tuple[float, ...]
    jaccards_with_whole: tuple[float, ...]
    frequencies: dict[Edge, float]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def jaccard(self) -> float:
        """Mean over pairs."""
        return math.fsum(self.jaccards) / len(self.jaccards)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Edges of each circuit."""
        return tuple(circuit.n_edges for circuit in self.circuits)

    def consensus(self, *, share: float = 0.5) -> Circuit:
        """The edges that are in at least a share of the circuits; their scores are means over the circuits they are in.

        Dead ends are not removed: a path may lose an edge that not enough circuits agree on. ``.prune()`` does that.

        Raises:
            InvalidOption: the share is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise InvalidOption(f"expected a share above 0 and at most 1; got {share}.")
        agreed = consensus(self.circuits, at_least=share).circuit
        made = {"consensus": dict(self.options) | {"share": share}}
        return replace(agreed, provenance=dict(self.whole.provenance) | made)

    def to_frame(self) -> pd.DataFrame:
        """One row per edge that is in some circuit: its frequency, and whether it is in the circuit of all prompts."""
        import pandas as pd

        whole = set(self.whole.edges)
        rows = [(str(edge), share, edge in whole) for edge, share in self.frequencies.items()]
        return pd.DataFrame(rows, columns=["edge", "frequency", "in_whole"])

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "options": dict(self.options),
            "jaccard": self.jaccard,
            "jaccards": list(self.jaccards),
            "jaccards_with_whole": list(self.jaccards_with_whole),
            "sizes": list(self.sizes),
            "whole": [str(edge) for edge in self.whole.edges],
            "frequencies": {str(edge): share for edge, share in self.frequencies.items()},
        }

    def __str__(self) -> str:
        always = sum(share == 1 for share in self.frequencies.values())
        return (
            f"{len(self.circuits)} resamples: Jaccard {self.jaccard:.3f} between pairs "
            f"({min(self.jaccards):.3f} to {max(self.jaccards):.3f}), "
            f"{math.fsum(self.jaccards_with_whole) / len(self.circuits):.3f} with the circuit of all prompts; "
            f"{min(self.sizes):,} to {max(self.sizes):,} edges, {always:,} in all of them, "
            f"{len(self.frequencies):,} in some"
        )


@dataclass(frozen=True)
class StabilitySelection:
    """Edges that come up in most halves of the prompts.

    Attributes:
        circuit: edges whose frequency is at least the threshold.
        frequencies: share of the halves whose circuit holds each edge, for edges that are in some; most frequent first.
        threshold: of the frequency, above 1/2.
        mean_selected: edges per circuit, on average (q).
        candidates: edges of the model (p), at every position if the method's are.
        expected_false: bound on the expected number of false inclusions: q^2 / ((2 threshold - 1) p).
        options: resamples and seed.
    """

    circuit: Circuit
    frequencies: dict[Edge, float]
    threshold: float
    mean_selected: float
    candidates: int
    expected_false: float
    options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        names = ("threshold", "mean_selected", "candidates", "expected_false")
        return {
            "options": dict(self.options),
            **{name: getattr(self, name) for name in names},
            "circuit": [str(edge) for edge in self.circuit.edges],
            "frequencies": {str(edge): share for edge, share in self.frequencies.items()},
        }

    def __str__(self) -> str:
        useless = "; the bound says nothing, select fewer" if self.expected_false >= self.circuit.n_edges else ""
        return (
            f"{self.circuit.n_edges:,} edges in at least {self.threshold:.0%} of the halves; at most "
            f"{self.expected_false:.2g} of them expected by chance (q = {self.mean_selected:.1f} of "
            f"{self.candidates:,}){useless}"
        )


def bootstrap(
    method: Method,
    run: MaskedRun,
    *,
    select: Select | None = None,
    resamples: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> Stability:
    """Run a method on samples of as many prompts drawn with replacement.

    Cost: the method once per resample and once on all prompts, each with a clean and a corrupt forward for its run.

    Args:
        method: from a run to a circuit, or to scores.
        run: prompts to draw from. Each resample is a new run with its ablation, metric and view; replacements that are
            pooled over prompts (means) are pooled anew.
        select: from scores to a circuit, for methods that give scores.
        resamples: how many, at least 2.
        seed: of the draws.
        progress: called with how many circuits are done and in all.

    Raises:
        InvalidOption: fewer than two resamples or prompts, or the method gives scores without a
            ``select``.

    Source: instability of circuits over prompts as in arXiv 2510.00845.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> found = bootstrap(atp.scores, run, select=lambda scores: top_edges(scores, n=3), resamples=5)
        >>> found.whole.n_edges, len(found.jaccards)
        (3, 10)
    """
    count = _check(run, resamples)
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randint(0, count, (count,), generator=generator) for _ in range(resamples))
    whole = _circuit(method, run, select)
    circuits = _circuits(method, run, select, rows, resamples, progress)
    return Stability(
        whole=whole,
        circuits=circuits,
        jaccards=tuple(compare(a, b).edge_jaccard for a, b in combinations(circuits, 2)),
        jaccards_with_whole=tuple(compare(whole, each).edge_jaccard for each in circuits),
        frequencies=inclusion(circuits),
        options={"method": "bootstrap", "resamples": resamples, "seed": seed},
    )


def stability_selection(
    method: Method,
    run: MaskedRun,
    *,
    select: Select | None = None,
    threshold: float = 0.7,
    resamples: int = 50,
    seed: int = 0,
    progress: Progress = silent,
) -> StabilitySelection:
    """Keep the edges that a method finds on most random halves of the prompts.

    With q edges found per half on average, out of p, and edges kept whose frequency is at least pi, the expected
    number of false ones is at most ``q^2 / ((2 pi - 1) p)``: if false edges are exchangeable and the method is no worse
    than guessing. Few edges per half make the bound useful: q below ``sqrt(p)``.

    Cost: the method once per half, each with a clean and a corrupt forward for its run.

    Args:
        method: from a run to a circuit, or to scores.
        run: prompts to draw from.
        select: from scores to a circuit, for methods that give scores.
        threshold: pi, above 1/2 and at most 1.
        resamples: how many halves, at least 2.
        seed: of the draws.
        progress: called with how many circuits are done and in all.

    Raises:
        InvalidOption: an option is out of range, fewer than two prompts, or the method gives scores without a
            ``select``.

    Source: Meinshausen and Buehlmann, Stability selection, arXiv 0809.2932, theorem 1, for one value of the penalty.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> from circuits.select import top_edges
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> found = stability_selection(lambda run: top_edges(atp.scores(run), n=2), run, resamples=10)
        >>> found.candidates, found.threshold
        (9, 0.7)
    """
    if not 0.5 < threshold <= 1:
        raise InvalidOption(f"expected a threshold above 0.5 and at most 1; got {threshold}.")
    count = _check(run, resamples)
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randperm(count, generator=generator)[: count // 2].sort().values for _ in range(resamples))
    circuits = _circuits(method, run, select, rows, resamples, progress)
    frequencies = inclusion(circuits)
    positions = any(edge.position is not None for edge in frequencies)
    candidates = run.graph.n_edges * (run.task.clean.shape[1] if positions else 1)
    selected = sum(circuit.n_edges for circuit in circuits) / resamples
    bound = expected_false(selected, candidates, threshold=threshold)
    options = {"method": "stability_selection", "threshold": threshold, "resamples": resamples, "seed": seed}
    kept = [edge for edge, share in frequencies.items() if share >= threshold - 1e-12]
    provenance = dict(circuits[0].provenance) | {
        "stability": options | {"expected_false": bound, "mean_selected": selected},
        "prompts": count,
    }
    circuit = Circuit(run.graph.architecture, kept, None, provenance)
    return StabilitySelection(circuit, frequencies, threshold, selected, candidates, bound, options)


def expected_false(selected: float, candidates: int, *, threshold: float) -> float:
    """The bound of Meinshausen and Buehlmann on the expected number of false inclusions.

    Args:
        selected: how many candidates are selected per resample, on average (q).
        candidates: how many there are (p).
        threshold: of the inclusion frequency, above 1/2.

    Example:
        >>> expected_false(10, 1000, threshold=0.75)
        0.2
    """
    if not 0.5 < threshold <= 1 or candidates < 1 or selected < 0:
        raise InvalidOption(
            f"expected a threshold above 0.5 and at most 1, candidates and no negative number of selected ones; got "
            f"{threshold=}, {candidates=}, {selected=}."
        )
    return selected**2 / ((2 * threshold - 1) * candidates)


def stable(chosen: Bool[Tensor, "resample unit"], *, threshold: float) -> tuple[Bool[Tensor, " unit"], float]:
    """Stability selection of any units: which come up often enough, and how many of them to expect by chance.

    Example:
        >>> stable(torch.tensor([[True, False, True], [True, False, False]]), threshold=0.75)
        (tensor([ True, False, False]), 1.5)
    """
    frequency: Float[Tensor, " unit"] = chosen.double().mean(0)
    selected = float(chosen.double().sum(-1).mean())
    return frequency >= threshold - 1e-12, expected_false(selected, chosen.shape[1], threshold=threshold)


def on_rows(run: MaskedRun, rows: Int[Tensor, " row"]) -> MaskedRun:
    """A run like this one on some of its prompts; a prompt may come twice.

    Constants that were put in place of replacements (`MaskedRun.with_constants`) are not taken over: pass a run whose
    ablation has them.
    """
    other = MaskedRun(run.model, run.task.subset(rows), ablation=run.ablation, metric=run.metric, memory=run.memory)
    views = {"edge": other.edges, "node": other.nodes, "neuron": other.neurons}
    other = views[run.level]()
    return other.positions() if run.per_position else other


def _check(run: MaskedRun, resamples: int) -> int:
    if resamples < 2:
        raise InvalidOption(f"expected at least 2 resamples; got {resamples}.")
    if len(run.task) < 2:
        raise InvalidOption("expected at least 2 prompts to draw from; got one. Make the task with more.")
    return len(run.task)


def _circuits(
    method: Method, run: MaskedRun, select: Select | None, rows: Iterator[Tensor], total: int, progress: Progress
) -> tuple[Circuit, ...]:
    circuits = []
    for number, chosen in enumerate(rows, start=1):
        circuits.append(_circuit(method, on_rows(run, chosen), select))
        progress(number, total)
    return tuple(circuits)


def _circuit(method: Method, run: MaskedRun, select: Select | None) -> Circuit:
    found = method(run)
    if isinstance(found, Scores) and select is not None:
        found = select(found)
    if not isinstance(found, Circuit):
        raise InvalidOption(
            f"expected a method that gives a Circuit; got {type(found).__name__}. For one that gives scores, say how "
            "to make a circuit of them: select=lambda scores: top_edges(scores, n=60)."
        )
    return found

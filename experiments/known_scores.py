"""AUROC of every method on models whose circuit is known: the second and third table of `ground_truth_table`.

The AUROC of scores is the probability that a unit of the true circuit scores above another, by absolute value, ties
counting half: 1 is a perfect ranking, 0.5 that of chance. ACDC gives no scores; a unit's is the number of thresholds at
which it is kept.

Compiled models are judged by edges. Interchange-trained ones by nodes (heads and MLPs; the input is in every circuit),
and by pairs: whether one node that holds variables is read by another, or by the logits (the largest score of the
edges between them, whichever port).

Source: AUROC as in MIB, arXiv 2504.13151; models with trained-in circuits as in InterpBench, arXiv 2407.14494.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from circuits.methods import METHODS
from patching import compiled
from patching.errors import InvalidOption

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from patching import MaskedRun

JUDGED: Final = (
    "acdc", "exact", "atp", "relp", "eap_ig_inputs", "eap_ig_activations", "clean_corrupted", "ceap", "eap_gp",
    "information_flow", "random",
)  # fmt: skip
"""The methods of the tables, by their names in `circuits.methods`; `atp` is EAP on edges."""

DECIMALS: Final = 9
"""Scores that agree to this many places are ties: rounding must not rank what a method cannot tell apart."""


@dataclass(frozen=True)
class Ranking:
    """How well methods rank the units of one model.

    Attributes:
        name: of the model.
        unit: what is ranked: ``edges``, ``nodes`` or ``pairs``.
        units: how many there are.
        true: how many of them are in the circuit.
        auroc: by method; None for a method that does not score such units.
    """

    name: str
    unit: str
    units: int
    true: int
    auroc: Mapping[str, float | None]


def rank_edges(name: str, run: MaskedRun, *, taus: Sequence[float], methods: Sequence[str] = JUDGED) -> Ranking:
    """Every method on the edges of a compiled model.

    Args:
        name: of the program.
        run: over edges.
        taus: thresholds of ACDC.
        methods: which to judge.

    Cost: that of the methods; one search per threshold for ACDC, less what they share.

    Example:
        >>> from patching import MaskedRun
        >>> run = MaskedRun(compiled.model("and_gate"), compiled.task("and_gate", n=8))
        >>> rank_edges("and_gate", run, taus=(0.1,), methods=("acdc", "exact")).auroc
        {'acdc': 1.0, 'exact': 1.0}
    """
    positive = run.mask_of(compiled.truth(name)).bool()
    found = {method: scores_of(method, run, taus=taus) for method in methods}
    return _ranking(name, "edges", found, positive)


def rank_trained(
    name: str, run: MaskedRun, *, taus: Sequence[float], methods: Sequence[str] = JUDGED
) -> tuple[Ranking, Ranking | None]:
    """Every method on the nodes, and on the pairs of nodes, of an interchange-trained model.

    Args:
        name: of the program.
        run: over edges.
        taus: thresholds of ACDC.
        methods: which to judge.

    Returns:
        Nodes, and pairs; None for pairs where every pair is true, so that there is nothing to tell apart.
    """
    import torch

    from patching.compiled import trained

    program = compiled.program(name)
    nodes = run.graph.sources[1:]
    holders = set(compiled.truth(f"{name}_trained").nodes)
    of_nodes = {
        method: None if (values := scores_of(method, run.nodes(), taus=taus)) is None else values[1:]
        for method in methods
    }
    by_node = _ranking(name, "nodes", of_nodes, torch.tensor([node in holders for node in nodes]))
    pairs, edges = trained.known_edges(program)
    if all(pairs.values()):
        return by_node, None
    places = [[run.graph.number(edge) for edge in edges if (edge.source, edge.target) == pair] for pair in pairs]
    of_pairs = {
        method: None if (values := scores_of(method, run, taus=taus)) is None
        else torch.stack([values[place].max() for place in places])
        for method in methods
    }  # fmt: skip
    return by_node, _ranking(name, "pairs", of_pairs, torch.tensor(list(pairs.values())))


def scores_of(method: str, run: MaskedRun, *, taus: Sequence[float]) -> Float[Tensor, " unit"] | None:
    """The absolute score of every unit of a run, by one method; None if the method does not score such units.

    Args:
        method: a name in `circuits.methods`; of those that give a circuit, ``acdc`` alone.
        run: over edges or nodes.
        taus: thresholds of ACDC.

    Raises:
        InvalidOption: another method that gives circuits and no scores.
    """
    import torch

    from circuits import acdc

    known = METHODS[method]
    if run.level not in known.levels:
        return None
    if method == "acdc":
        circuits = acdc.sweep(run, taus=taus)
        if run.level == "edge":
            return torch.stack([run.mask_of(circuit) for circuit in circuits]).sum(0).double()
        return torch.tensor([float(sum(node in each.nodes for each in circuits)) for node in run.graph.sources])
    if known.gives != "scores":
        raise InvalidOption(f"expected a method that scores units, or acdc; {method} gives a circuit.")
    return known.function()(run).values.abs().double().round(decimals=DECIMALS)


def table(rankings: Iterable[Ranking], *, methods: Sequence[str] = JUDGED) -> str:
    """Rankings as a table in Markdown, with means over models at the end."""
    rankings = list(rankings)
    lines = [
        f"| model | {rankings[0].unit} | true | " + " | ".join(methods) + " |",
        "|---|---:|---:|" + "---:|" * len(methods),
    ]
    for each in rankings:
        cells = " | ".join(_shown(each.auroc[method]) for method in methods)
        lines.append(f"| `{each.name}` | {each.units} | {each.true} | {cells} |")
    means = " | ".join(_shown(_mean([each.auroc[method] for each in rankings])) for method in methods)
    lines.append(f"| mean | | | {means} |")
    return "\n".join(lines)


def _ranking(name: str, unit: str, found: Mapping[str, Tensor | None], positive: Bool[Tensor, " unit"]) -> Ranking:
    from circuits.recovery import auroc

    rates = {method: None if values is None else auroc(values, positive) for method, values in found.items()}
    return Ranking(name, unit, len(positive), int(positive.sum()), rates)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"

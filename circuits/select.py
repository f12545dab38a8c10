"""From scores to circuits."""

from __future__ import annotations

from graphs.circuit import Circuit
from patching.errors import InvalidOption
from patching.scores import Scores


def top_edges(scores: Scores, *, n: int, signed: bool = False, prune: bool = True) -> Circuit:
    """The n most important edges, then without dead ends.

    Args:
        scores: of edges.
        n: how many edges to take; at most all.
        signed: rank by how much an edge helps instead of by absolute effect.
        prune: drop edges that are on no path from the input to the logits. Provenance records how many.

    Returns:
        A circuit of at most n edges, with their scores.

    Raises:
        InvalidOption: scores of nodes, or n out of range.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> circuit = top_edges(atp.scores(MaskedRun(toy.model(), toy.task())), n=5)
        >>> circuit.n_edges <= 5
        True
    """
    if scores.level != "edge":
        raise InvalidOption("expected scores of edges; got scores of nodes. Score the run over edges.")
    edges = scores.top(n, signed=signed)
    kept = {edge: scores[edge] for edge in edges}
    options = {"n": n, "signed": signed, "prune": prune}
    provenance = dict(scores.provenance) | {"selection": {"method": "top_edges", **options}}
    whole = Circuit(scores.architecture, tuple(kept), kept, provenance)  # type: ignore[arg-type]
    if not prune:
        return whole
    pruned = whole.prune()
    provenance["selection"]["dead_ends_removed"] = whole.n_edges - pruned.n_edges
    return Circuit(scores.architecture, pruned.edges, pruned.scores, provenance)

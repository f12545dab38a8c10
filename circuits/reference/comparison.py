"""A found circuit against one that is known: everything that the two can say about each other, in one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuits.recovery import Recovery, Roc, recover, rocs
from circuits.reference.record import Reference
from graphs.circuit import Circuit, visible
from patching.scores import Scores


@dataclass(frozen=True)
class Agreement(Recovery):
    """How far a found circuit, and the scores it was taken from, agree with a known one.

    Attributes:
        edges: counts by edges, with precision, recall, F1 and Jaccard.
        nodes: the same by nodes that write.
        reference: name of the known circuit, or whose it is.
        edge_roc: how well the scores tell true edges from others, with the area under straight lines (of scores: the
            AUROC) and the pessimistic one; None without scores, or where every edge is true, or none.
        node_roc: the same of nodes.
    """

    reference: str
    edge_roc: Roc | None = None
    node_roc: Roc | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data: that of `Recovery`, the name of the reference, and both curves."""
        curves = {"edge_roc": self.edge_roc, "node_roc": self.node_roc}
        plain = {name: None if curve is None else curve.to_dict() for name, curve in curves.items()}
        return {**super().to_dict(), "reference": self.reference, **plain}

    def __str__(self) -> str:
        shared = f"Jaccard: edges {self.edges.jaccard:.3f}, nodes {self.nodes.jaccard:.3f}"
        curves = [f"ROC of {curve}" for curve in (self.edge_roc, self.node_roc) if curve is not None]
        return "\n".join([super().__str__(), shared, *curves])


def compare(
    found: Circuit,
    known: Reference | Circuit,
    *,
    scores: Scores | Sequence[Circuit] | None = None,
    signed: bool = False,
) -> Agreement:
    """Hold a circuit against a known one: what is shared, and how well its scores rank what is true.

    References say nothing of positions, so an edge counts once, at whichever positions the found circuit has it
    (`graphs.compare` takes an edge at one position and the same edge everywhere for two). Nodes are those that write:
    input, heads and MLPs.

    Args:
        found: the circuit of a method.
        known: the reference, or any circuit that is taken for true, of the same architecture.
        scores: what the circuit was taken from: scores of edges or of nodes, or circuits at several thresholds.
        signed: rank scores by how much a unit helps instead of by absolute effect.

    Returns:
        Precision, recall, F1 and Jaccard of edges and nodes; with scores, also both ROC curves with their areas.

    Raises:
        InvalidOption: models of different shape; scores of another level, or that are NaN.

    Source: arXiv 2304.14997, section 4.2, whose area is `edge_roc.pessimistic_auc`.

    Example:
        >>> from circuits import top_edges
        >>> from patching import MaskedRun, atp, compiled
        >>> scores = atp.scores(MaskedRun(compiled.model("reverse"), compiled.task("reverse", n=8)))
        >>> print(compare(top_edges(scores, n=2), compiled.truth("reverse"), scores=scores))
        edges: 2 of 5 found, 0 more; precision 100.0%, recall 40.0%, F1 57.1%
        nodes: 2 of 4 found, 0 more; precision 100.0%, recall 50.0%, F1 66.7%
        Jaccard: edges 0.400, nodes 0.500
        ROC of edges: AUC 0.800, pessimistic 0.600 (5 of 23 are true, 5 points)
        ROC of nodes: AUC 1.000, pessimistic 1.000 (4 of 5 are true, 5 points)
    """
    true = known.circuit if isinstance(known, Reference) else known
    name = known.name if isinstance(known, Reference) else "a circuit" + _of_model(true)
    overlaps = recover(found, true)
    curves = {} if scores is None else rocs(scores, true, signed=signed)
    return Agreement(overlaps.edges, overlaps.nodes, name, curves.get("edge"), curves.get("node"))


def _of_model(circuit: Circuit) -> str:
    model = circuit.provenance.get("model")
    return f" of {visible(model)}" if isinstance(model, str) else ""

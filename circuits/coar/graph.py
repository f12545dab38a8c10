"""An attribution as a networkx graph: components with their weights, interactions between them, a circuit's edges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from circuits.coar.attribution import Attribution
from circuits.coar.pairs import Interactions
from graphs.circuit import Circuit
from patching.errors import InvalidOption

if TYPE_CHECKING:
    import networkx as nx


def to_networkx(
    attribution: Attribution,
    *,
    interactions: Interactions | None = None,
    circuit: Circuit | None = None,
    errors: float = 3.0,
    top: int | None = None,
) -> nx.MultiDiGraph[str]:
    """Components as nodes, with interactions and a circuit's edges between them on request.

    ==================  ==================================================================================
    node `weight`       mean over prompts, in the metric's unit: > 0, keeping the component raises the output
    node `score`        minus the weight: the project's effect of ablating it
    node `error`        standard error of the weight, where there is one
    node `kind` …       `kind`, `layer`, `index` as in circuits (`graphs.schema`)
    edge `relation`     ``circuit`` or ``interaction``
    edge `score`        of a circuit's edge: its effect; of an interaction: C (see `Interactions`)
    edge `error`        of an interaction: standard error of C
    edge `port`         of a circuit's edge
    ==================  ==================================================================================

    Interactions have no direction; they are drawn from the earlier to the later component with the key
    ``interaction``. Nodes of the circuit that were not attributed (``logits``, key/value groups) have no weight.

    Args:
        attribution: the components.
        interactions: pairs; only those at least ``errors`` standard errors from 0 become edges.
        circuit: of the same architecture; its edges are joined in.
        errors: see ``interactions``.
        top: only so many components of the largest mean weight, in absolute value (and the circuit's nodes).

    Raises:
        InvalidOption: a circuit or interactions of another model.

    Example:
        >>> from patching import ComponentRun, toy
        >>> from circuits import coar
        >>> found = coar.attribute(ComponentRun(toy.model(), toy.task()), samples=64, keep=0.5)
        >>> sorted(to_networkx(found).nodes)
        ['a0.h0', 'a0.h1']
    """
    import networkx as nx

    for other, name in ((interactions, "interactions"), (circuit, "a circuit")):
        if other is not None and other.architecture != attribution.architecture:
            raise InvalidOption(f"expected {name} of the model that was attributed; they are of another architecture.")
    mean, error = attribution.mean(), attribution.mean_standard_error()
    order = sorted(range(len(mean)), key=lambda place: (-abs(float(mean[place])), place))[:top]
    g: nx.MultiDiGraph[str] = nx.MultiDiGraph(
        schema="wiretrace-attribution-graph/1", provenance=dict(attribution.provenance)
    )
    for place in sorted(order):
        unit = attribution.units[place]
        told: dict[str, Any] = {"weight": float(mean[place]), "score": -float(mean[place])}
        if error is not None:
            told["error"] = float(error[place])
        numbers = {"layer": unit.layer, "index": unit.index}
        g.add_node(str(unit), kind=unit.kind, **{k: v for k, v in numbers.items() if v is not None}, **told)
    if circuit is not None:
        joined = circuit.to_networkx()
        for name, told in joined.nodes(data=True):
            if name not in g:
                g.add_node(name, **{key: value for key, value in told.items() if key != "score"})
        for start, end, key, told in joined.edges(keys=True, data=True):
            g.add_edge(start, end, key=key, relation="circuit", **told)
    if interactions is not None:
        for place in interactions.strong(errors=errors):
            first, second = (str(interactions.units[i]) for i in interactions.pairs[place].tolist())
            if first in g and second in g:
                g.add_edge(
                    first,
                    second,
                    key="interaction",
                    relation="interaction",
                    score=float(interactions.mean()[place]),
                    error=float(interactions.standard_error[place]),
                )
    return g

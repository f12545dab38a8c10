"""Sparse feature circuits: which features of which sites carry a behaviour, and through which edges.

1. Effects of all features and error terms (`node_effects`).
2. Those above the node threshold are the nodes.
3. Effects of the edges between them, and into the logits (`edge_effects`).
4. Those above the edge threshold are the edges.

Positions are kept where prompts are aligned (``aggregation="none"``), so that ``m3.f1042@5`` is a node, or summed.
`feature_faithfulness` says what the nodes are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from circuits.features.dictionary import Dictionary
from circuits.features.edge_effects import MOST_EDGES, EdgeEffects, edge_effects
from circuits.features.feature_run import FeatureRun
from circuits.features.node_effects import NodeEffects, node_effects
from graphs.circuit import Circuit
from patching.ablations import Ablation
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES
from patching.metrics import Metric
from patching.progress import Progress, silent
from patching.task import Task


def search(
    model: LensModel,
    task: Task,
    dictionaries: Sequence[Dictionary],
    *,
    node_threshold: float,
    edge_threshold: float,
    effects: str = "ig",
    edges: str = "ig",
    steps: int = 10,
    rule: str = "midpoint",
    aggregation: str = "none",
    threshold_on: str = "mean",
    ablation: str | Ablation = "corrupt",
    metric: str | Metric | None = None,
    memory: int = DEFAULT_BYTES,
    most_edges: int = MOST_EDGES,
    progress: Progress = silent,
    say: Callable[[str], None] | None = None,
) -> Circuit:
    """The circuit of features and error terms that carries what the corrupt prompts change.

    Args:
        model: the model.
        task: prompts and answers; with aligned positions unless these are summed.
        dictionaries: each at a site of its own (see `FeatureRun`); ``create("identity", ...)`` for neurons.
        node_threshold: absolute effect that a node must exceed, in the metric's unit.
        edge_threshold: likewise for edges.
        effects: of nodes: ``ig``, ``atp`` or ``exact`` (whose edges take the gradients of ``ig``).
        edges: ``ig`` or ``clean``, the paper's, which loses edges into features that are off in the clean run.
        steps: of integrated gradients, for nodes and edges.
        rule: ``midpoint``, ``trapezoid``, ``right``, or ``left``, that of the paper's code.
        aggregation: ``none`` (a node for each position) or ``sum`` (over positions).
        threshold_on: what must exceed the thresholds: the ``mean`` over prompts, or the effect on any one ``example``.
        ablation: what patches carry.
        metric: the task's own by default.
        memory: bytes that one step may use beyond what is stored.
        most_edges: more pairs of nodes than these are refused, with what they would cost.
        progress: called with what is done and to do of nodes, then again of edges.
        say: told, between the two, how many edges, bytes and products there will be.

    Returns:
        A circuit whose ``node_scores`` are the nodes' mean effects and whose ``scores`` are the edges'. A node is in it
        whether it has edges or not. Where no node exceeds the threshold, ``provenance["note"]`` says what the strongest
        one has.

    Raises:
        InvalidOption: dictionaries that do not fit, thresholds below 0, an unknown option, or too many edges.

    Cost: that of `node_effects` and `edge_effects`.

    Source: arXiv 2403.19647. Ours differs in its sign (that of all effects here; the paper's is the reverse for
    logit(patch answer) - logit(clean answer)), in midpoints, averaged Jacobians and stop-gradients, and in that
    ``threshold_on="example"`` thresholds effects prompt by prompt and then averages over all prompts.

    Example:
        >>> from circuits.features import agreement_toy as toy
        >>> circuit = search(toy.model(), toy.task(), toy.dictionaries(), node_threshold=0.1, edge_threshold=0.1)
        >>> set(circuit.edges) == set(toy.truth().edges)
        True
    """
    run = FeatureRun(model, task, dictionaries, ablation=ablation, metric=metric, memory=memory)
    shared: dict[str, Any] = {"steps": steps, "rule": rule, "progress": progress}
    found = node_effects(run, method=effects, aggregation=aggregation, **shared)
    gradients = found
    if effects == "exact":
        gradients = node_effects(run, method="ig", aggregation=aggregation, **shared)
    nodes = found.nodes(node_threshold, threshold_on=threshold_on)
    between = edge_effects(run, gradients, nodes=nodes, method=edges, most_edges=most_edges, say=say, **shared)
    return assemble(
        found, between, node_threshold=node_threshold, edge_threshold=edge_threshold, threshold_on=threshold_on
    )


def assemble(
    effects: NodeEffects,
    edges: EdgeEffects,
    *,
    node_threshold: float,
    edge_threshold: float,
    threshold_on: str = "mean",
) -> Circuit:
    """A circuit from effects that are there already: several thresholds need effects only once.

    Args:
        effects: of nodes.
        edges: of edges between at least the nodes above the threshold; those of other nodes are left out.
        node_threshold: absolute effect that a node must exceed.
        edge_threshold: likewise for edges.
        threshold_on: ``mean`` or ``example``.

    Raises:
        InvalidOption: thresholds below 0, or an unknown order.
    """
    run = effects.run
    nodes = effects.nodes(node_threshold, threshold_on=threshold_on)
    kept = {
        edge: effect
        for edge, effect in edges.edges(edge_threshold, threshold_on=threshold_on).items()
        if edge.source in nodes and (edge.target in nodes or edge.target.kind == "logits")
    }
    options = {
        "node_threshold": node_threshold,
        "edge_threshold": edge_threshold,
        "threshold_on": threshold_on,
        "aggregation": effects.aggregation,
        "nodes": {"method": effects.provenance["method"], **effects.provenance["options"]},
        "edges": dict(edges.provenance["options"]),
    }
    provenance = run.provenance("sparse feature circuit", options)
    if not nodes:
        provenance["note"] = f"no node exceeds {node_threshold:g}; the strongest has {effects.strongest:.6g}"
    return Circuit(run.model.architecture, kept, kept, provenance, nodes)

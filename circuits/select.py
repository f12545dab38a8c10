"""From scores to circuits: how many units to take, and which.

Every selection takes scores and gives a `Circuit` whose ``provenance["selection"]`` says what was asked for and how
many dead ends were removed. Where everything or nothing is left, its ``note`` says so and names thresholds to try.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from graphs.circuit import Circuit
from graphs.components import ComponentGraph
from graphs.nodes import INPUT, LOGITS, Edge, Node, mlp
from patching.errors import InvalidOption
from patching.scores import Scores

SHARES = (0.001, 0.01, 0.1)
"""Shares of the units for which `suggest` names thresholds."""


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
    _require_edges(scores)
    edges = scores.top(n, signed=signed)
    options = {"method": "top_edges", "n": n, "signed": signed, "prune": prune}
    return _circuit(scores, edges, options)  # type: ignore[arg-type]


def edges_above(scores: Scores, *, threshold: float, signed: bool = False, prune: bool = True) -> Circuit:
    """Every edge whose importance is at least the threshold, then without dead ends.

    Args:
        scores: of edges.
        threshold: in the metric's unit; `suggest` names some.
        signed: compare how much an edge helps (minus its effect) instead of its absolute effect.
        prune: drop edges that are on no path from the input to the logits. Provenance records how many.

    Returns:
        A circuit, with the scores of its edges.

    Raises:
        InvalidOption: scores of nodes, or a threshold that is not finite or, unless ``signed``, negative.

    Source: as in ACDC (arXiv 2304.14997), an edge at the threshold stays.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> scores = atp.scores(MaskedRun(toy.model(), toy.task()))
        >>> edges_above(scores, threshold=100.0).provenance["selection"]["note"]
        'nothing is kept; thresholds that keep at least 0.1 %, 1 % and 10 % of the edges: 0.75, 0.75 and 0.75'
    """
    _require_edges(scores)
    if not math.isfinite(threshold) or (threshold < 0 and not signed):
        raise InvalidOption(f"expected a finite threshold of at least 0; got {threshold}. suggest(scores) names some.")
    kept = (_keys(scores, signed=signed) >= threshold).nonzero().flatten().tolist()
    options = {"method": "edges_above", "threshold": float(threshold), "signed": signed, "prune": prune}
    return _circuit(scores, [scores.graph.edge_at(number) for number in kept], options)


def greedy_edges(scores: Scores, *, n: int, signed: bool = False, prune: bool = True) -> Circuit:
    """Grow a circuit from the logits: always the most important edge that reads into what is there already.

    A head that is in opens its query port and the key and value ports of its own or its group's. Every edge leads to
    the logits by construction; those that nothing leads to from the input are dead ends, and go last.

    Args:
        scores: of edges.
        n: how many edges to take before dead ends go; at most all.
        signed: prefer edges that help instead of edges of large absolute effect.
        prune: drop edges that are on no path from the input to the logits. Provenance records how many.

    Returns:
        A circuit of at most n edges, with their scores. Ties go to the earlier edge.

    Raises:
        InvalidOption: scores of nodes, or n out of range.

    Source: the greedy selection of arXiv 2403.17806 (EAP-IG) and 2504.13151 (MIB).

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> circuit = greedy_edges(atp.scores(MaskedRun(toy.model(), toy.task())), n=2)
        >>> [str(edge) for edge in circuit.edges]
        ['input->a0.h1<v>', 'a0.h1->logits']
    """
    _require_edges(scores)
    if not 0 <= n <= len(scores):
        raise InvalidOption(f"expected n from 0 to {len(scores):,}, the number of edges; got {n}.")
    options = {"method": "greedy_edges", "n": n, "signed": signed, "prune": prune}
    return _circuit(scores, _grown(scores, n=n, signed=signed), options)


def top_nodes(scores: Scores, *, n: int, signed: bool = False, prune: bool = True) -> Circuit:
    """The n most important nodes, or neurons, and all edges between them.

    An edge is kept if its source and its target are: the logits always are, a key/value group is if one of its query
    heads is. The input is always in, whatever its rank, unless n is 0: without it nothing else can do anything. What
    nodes outside read does not matter, since everything they write is ablated (except where a norm
    after attention joins the heads of a layer, as in Gemma: there a head's input also scales its neighbours).
    Neurons: masks hold whole MLPs, so an MLP is kept if one of its neurons is among the n; heads and input, which
    then have no scores, are all kept. Provenance lists how many neurons of each MLP were chosen.

    Args:
        scores: of nodes or neurons.
        n: how many to take; at most all. The input counts only if it is one of them.
        signed: rank by how much a unit helps instead of by absolute effect.
        prune: drop edges that are on no path from the input to the logits. Provenance records how many.

    Returns:
        A circuit. Edges have no scores, for the scores are of nodes.

    Raises:
        InvalidOption: scores of edges, or n out of range.

    Example:
        >>> from patching import MaskedRun, exact, toy
        >>> circuit = top_nodes(exact.scores(MaskedRun(toy.model(), toy.task()).nodes()), n=2)
        >>> [str(node) for node in circuit.nodes]
        ['input', 'a0.h1', 'logits']
    """
    if scores.level == "edge":
        raise InvalidOption("expected scores of nodes or neurons; got scores of edges. Use top_edges or greedy_edges.")
    chosen = [node for node in scores.top(n, signed=signed) if isinstance(node, Node)]
    options: dict[str, Any] = {"method": "top_nodes", "level": scores.level, "n": n, "signed": signed, "prune": prune}
    if scores.level == "neuron":
        counts = Counter(str(mlp(node.layer)) for node in chosen if node.layer is not None)
        options["neurons"] = {str(node): counts[str(node)] for node in scores.graph.sources if counts[str(node)]}
        options["neurons_per_mlp"] = len(scores) // scores.architecture.n_layers
        kept = {node for node in scores.graph.sources if node.kind != "mlp" or str(node) in counts}
    else:
        kept = {INPUT, *chosen} if chosen else set()
        options["nodes"] = [str(node) for node in scores.graph.sources if node in kept]
    return _circuit(scores, edges_between(scores.graph, kept), options)


def edges_between(graph: ComponentGraph, nodes: Iterable[Node]) -> list[Edge]:
    """Every edge whose source is one of the nodes and whose target is one, their group, or the logits."""
    kept = set(nodes)
    readers = kept | {LOGITS} | {graph.key_value_node(node) for node in kept if node.kind == "head"}
    return [edge for edge in graph.edges if edge.source in kept and edge.target in readers]


def suggest(scores: Scores, *, signed: bool = False, shares: Sequence[float] = SHARES) -> dict[float, float]:
    """Thresholds that keep given shares of the units, before dead ends go.

    The threshold for a share s is the importance of unit number ``max(1, ceil(s * units))`` by rank, so at least that
    many units have it or more; ties may keep more.

    Args:
        scores: of any units.
        signed: for thresholds on how much a unit helps instead of on absolute effect.
        shares: above 0, at most 1.

    Returns:
        Share -> threshold, in the metric's unit.

    Raises:
        InvalidOption: a share is out of range.

    Example:
        >>> from patching import MaskedRun, atp, toy
        >>> suggest(atp.scores(MaskedRun(toy.model(), toy.task())), shares=(0.1, 0.5))
        {0.1: 0.75, 0.5: 0.0}
    """
    if any(not 0 < share <= 1 for share in shares):
        raise InvalidOption(f"expected shares above 0 and at most 1; got {list(shares)}.")
    ordered = _keys(scores, signed=signed).sort(descending=True).values
    return {share: float(ordered[max(1, math.ceil(share * len(scores) - 1e-9)) - 1]) for share in shares}


def _keys(scores: Scores, *, signed: bool) -> torch.Tensor:
    return -scores.values if signed else scores.importance


def _require_edges(scores: Scores) -> None:
    if scores.level != "edge":
        raise InvalidOption(
            f"expected scores of edges; got scores of {scores.level}s. Score the run over edges, or use top_nodes."
        )


def _grown(scores: Scores, *, n: int, signed: bool) -> list[Edge]:
    """Edges in the order in which they join."""
    graph, keys = scores.graph, (-_keys(scores, signed=signed)).tolist()
    first = [0]
    for visible in graph.n_visible:
        first.append(first[-1] + visible)
    waiting: list[tuple[float, int]] = []
    joined: set[Node] = set()
    opened: set[int] = set()

    def join(node: Node) -> None:
        joined.add(node)
        for port in graph.readers(node):
            place = graph.target_index[port]
            if place not in opened:
                opened.add(place)
                for number in range(first[place], first[place + 1]):
                    heapq.heappush(waiting, (keys[number], number))

    join(LOGITS)
    grown: list[Edge] = []
    while waiting and len(grown) < n:
        edge = graph.edge_at(heapq.heappop(waiting)[1])
        grown.append(edge)
        if edge.source not in joined:
            join(edge.source)
    return grown


def _circuit(scores: Scores, edges: Sequence[Edge], options: dict[str, Any]) -> Circuit:
    """The circuit of the chosen edges, pruned where that was asked for, and how it came about."""
    known = {edge: scores[edge] for edge in edges} if scores.level == "edge" else {}
    circuit = Circuit(scores.architecture, edges, known)
    whole = circuit.n_edges
    circuit = circuit.prune() if options["prune"] else circuit
    selection = options | {"dead_ends_removed": whole - circuit.n_edges}
    note = _note(scores, whole, circuit, signed=options["signed"])
    if note:
        selection["note"] = note
    provenance = dict(scores.provenance) | {"selection": selection}
    return Circuit(scores.architecture, circuit.edges, circuit.scores, provenance)


def _note(scores: Scores, chosen: int, circuit: Circuit, *, signed: bool) -> str:
    """What to say where a selection keeps everything or nothing."""
    if 0 < circuit.n_edges < circuit.n_possible:
        return ""
    if circuit.n_edges:
        what = f"all {circuit.n_edges:,} edges are kept"
    elif chosen:
        what = f"nothing is kept: none of the {chosen:,} edges chosen is on a path from {INPUT} to {LOGITS}"
    else:
        what = "nothing is kept"
    found = suggest(scores, signed=signed)
    shares = _listed([f"{share:.3g} %" for share in (100 * share for share in found)])
    values = _listed([f"{value:.4g}" for value in found.values()])
    return f"{what}; thresholds that keep at least {shares} of the {scores.level}s: {values}"


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"

"""Circuits and options that the tests of the page share."""

from __future__ import annotations

import random

from graphs import Architecture, Circuit, ComponentGraph, Edge

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&\"'`\u2028\u202e\x00<!--"
NAMES = {
    "input->a0.h0<q>": -0.5,
    "input->a0.h1<v>": 0.25,
    "a0.h0->a1.h1<k>": -1.5,
    "a0.h1->m0": 0.125,
    "m0->a1.h1<v>": -2.0,
    "a1.h1->logits": -4.0,
    "m0->logits": 1.0,
}


def small(provenance: dict[str, object] | None = None) -> Circuit:
    scores = {Edge.parse(name): score for name, score in NAMES.items()}
    return Circuit(Architecture(2, 2), scores, scores, provenance or {"model": "toy", "method": "acdc"})


def rival() -> Circuit:
    """Five of the small circuit's edges, with other scores, and one of its own."""
    scores = {Edge.parse(name): 2 * score for name, score in list(NAMES.items())[:5]}
    scores[Edge.parse("m1->logits")] = 0.75
    return Circuit(Architecture(2, 2), scores, scores)


def large(n: int = 5_000) -> Circuit:
    graph, rng = ComponentGraph(Architecture(12, 12)), random.Random(0)
    edges = [graph.edge_at(number) for number in rng.sample(range(graph.n_edges), n)]
    return Circuit(graph.architecture, edges, {edge: rng.gauss(0, 1) ** 3 for edge in edges})

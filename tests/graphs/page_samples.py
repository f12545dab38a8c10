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


FEATURES = """
input.f5@1 -> r0.f3@1 a0.f2@4 r0.err@1
input.f8@2 -> a0.f2@4 m0.f11@2
a0.f2@4 -> m0.f40@4 r0.f17@4
a0.err@4 -> r0.f17@4
m0.f11@2 -> r0.f3@2
r0.f3@1 -> a1.f1042@4 r1.f90@4
r0.f3@2 -> a1.f1042@4
r0.f17@4 -> r1.f90@4
a1.f1042@4 -> r1.f90@4 r1.f512@4
r1.f90@4 -> m2.f900@4 r2.f8@4
r1.f512@4 -> r2.f8@4
m2.f900@4 -> r2.f8@4
m2.err@4 -> r2.f8@4
r2.f8@4 -> logits
"""
MADE = {
    "labels": {
        "r0.f3": "plural noun",
        "a1.f1042@4": "WWWW subject is plural",
        "r2.f8": HOSTILE,
        "r1.f512": "複数形の主語",
    },
    "tokens": ["<bos>", "The", " keys", " to the", " cabinet"],
}


def over_features(provenance: dict | None = None, *, scored: bool = True) -> Circuit:
    """Features at three positions, with error terms, and scores of edges and nodes."""
    parts = [line.split(" -> ") for line in FEATURES.strip().splitlines()]
    edges = [Edge.parse(f"{source}->{target}") for source, targets in parts for target in targets.split()]
    scores = {edge: (number - 12) / 8 for number, edge in enumerate(edges)}
    of_nodes = {edge.source: -score for edge, score in scores.items()} if scored else {}
    return Circuit(Architecture(3, 4), edges, scores, provenance, of_nodes)

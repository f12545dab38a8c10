"""From scores to circuits: the most important edges, without those that lead nowhere."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

from circuits import top_edges
from graphs.components import Architecture, ComponentGraph
from graphs.nodes import Edge
from patching import atp, toy
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.scores import Scores
from tests import tiny

SHAPE = Architecture(n_layers=2, n_heads=2, n_kv_heads=1)
EDGES = ComponentGraph(SHAPE).edges


def scores_of(**effects: float) -> Scores:
    """Scores of edges by name; the rest are zero."""
    values = torch.zeros(len(EDGES), dtype=torch.float64)
    for name, effect in effects.items():
        values[[str(edge) for edge in EDGES].index(name)] = effect
    return Scores(SHAPE, "edge", values, provenance={"method": "made up"})


CHAIN = {"input->a0.h0<q>": 0.5, "a0.h0->m0": -2.0, "m0->a1.kv0<v>": 1.0, "a1.h1->logits": -3.0, "m1->logits": 9.0}


def names(circuit: object) -> set[str]:
    return {str(edge) for edge in circuit.edges}  # type: ignore[attr-defined]


def test_the_largest_are_taken_whatever_their_sign() -> None:
    circuit = top_edges(scores_of(**CHAIN), n=3, prune=False)
    assert names(circuit) == {"m1->logits", "a1.h1->logits", "a0.h0->m0"}
    assert circuit.scores[Edge.parse("a0.h0->m0")] == -2.0


def test_signed_takes_those_that_help() -> None:
    assert names(top_edges(scores_of(**CHAIN), n=2, signed=True, prune=False)) == {"a1.h1->logits", "a0.h0->m0"}


def test_dead_ends_go_and_are_counted() -> None:
    """m1 is fed by nothing; the rest is one path through a key/value group."""
    circuit = top_edges(scores_of(**CHAIN), n=5)
    assert names(circuit) == set(CHAIN) - {"m1->logits"}
    assert circuit.provenance["selection"] == {
        "method": "top_edges", "n": 5, "signed": False, "prune": True, "dead_ends_removed": 1,
    }  # fmt: skip
    assert circuit.provenance["method"] == "made up"


def test_a_pruned_circuit_is_on_paths_only() -> None:
    """By networkx: every node but the input is reached from it, and reaches the logits."""
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    scores = atp.scores(run)
    for n in (1, 5, 20, 60):
        graph = top_edges(scores, n=n).to_networkx()
        if graph.number_of_edges():
            assert set(graph) <= nx.descendants(graph, "input") | {"input"}
            assert set(graph) <= nx.ancestors(graph, "logits") | {"logits"}


def test_pruning_does_not_change_what_a_circuit_computes() -> None:
    run = MaskedRun(tiny.model("llama"), tiny.task())
    scores = atp.scores(run)
    for n in (5, 20, 50):
        whole, pruned = (run(run.mask_of(top_edges(scores, n=n, prune=prune))) for prune in (False, True))
        torch.testing.assert_close(whole, pruned, rtol=0, atol=1e-10)


def test_ties_go_to_the_earlier_edge() -> None:
    scores = Scores(SHAPE, "edge", torch.ones(len(EDGES), dtype=torch.float64))
    assert top_edges(scores, n=4, prune=False).edges == EDGES[:4]


def test_none_and_all() -> None:
    scores = atp.scores(MaskedRun(toy.model(), toy.task()))
    assert top_edges(scores, n=0).n_edges == 0
    assert top_edges(scores, n=len(scores), prune=False).n_edges == len(scores)


@pytest.mark.parametrize("n", [-1, 10])
def test_a_number_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(InvalidOption, match=rf"n from 0 to 9, the number of edges; got {n}"):
        top_edges(atp.scores(MaskedRun(toy.model(), toy.task())), n=n)


def test_scores_of_nodes_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"scores of edges; got scores of nodes"):
        top_edges(atp.scores(MaskedRun(toy.model(), toy.task()).nodes()), n=1)

"""From scores to circuits: the most important edges, without those that lead nowhere."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.select import edges_above, edges_between, greedy_edges, suggest, top_edges, top_nodes
from graphs.components import Architecture, ComponentGraph
from graphs.nodes import INPUT, Edge, Node
from patching import atp, exact, toy
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


# --- thresholds -----------------------------------------------------------------------------------------------------


def test_an_edge_at_the_threshold_stays() -> None:
    assert names(edges_above(scores_of(**CHAIN), threshold=2.0, prune=False)) == {
        "a0.h0->m0", "a1.h1->logits", "m1->logits",
    }  # fmt: skip
    assert names(edges_above(scores_of(**CHAIN), threshold=2.0, signed=True, prune=False)) == {
        "a0.h0->m0", "a1.h1->logits",
    }  # fmt: skip


def test_a_threshold_that_keeps_all_or_nothing_says_so() -> None:
    scores = scores_of(**CHAIN)
    for threshold, words in ((100.0, "nothing is kept"), (0.0, f"all {len(EDGES):,} edges are kept")):
        note = edges_above(scores, threshold=threshold).provenance["selection"]["note"]
        assert note == f"{words}; thresholds that keep at least 0.1 %, 1 % and 10 % of the edges: 9, 9 and 1"
    assert "note" not in edges_above(scores, threshold=0.5).provenance["selection"]


def test_a_selection_that_is_all_dead_ends_says_so() -> None:
    selection = top_edges(scores_of(**CHAIN), n=1).provenance["selection"]
    assert selection["dead_ends_removed"] == 1
    assert selection["note"].startswith("nothing is kept: none of the 1 edges chosen is on a path from input to logits")


def test_dead_ends_are_counted_without_pruning_too() -> None:
    assert top_edges(scores_of(**CHAIN), n=5, prune=False).provenance["selection"]["dead_ends_removed"] == 0


@pytest.mark.parametrize(("threshold", "signed"), [(-1.0, False), (float("nan"), True), (float("inf"), False)])
def test_thresholds_that_make_no_sense_are_refused(threshold: float, signed: bool) -> None:
    with pytest.raises(InvalidOption, match=r"finite threshold of at least 0"):
        edges_above(scores_of(**CHAIN), threshold=threshold, signed=signed)


@settings(max_examples=40)
@given(
    st.lists(st.integers(-5, 5), min_size=len(EDGES), max_size=len(EDGES)),
    st.sampled_from([0.001, 0.01, 0.1, 0.5, 1.0]),
)
def test_suggested_thresholds_keep_at_least_the_share(values: list[int], share: float) -> None:
    """And a threshold above it keeps less."""
    scores = Scores(SHAPE, "edge", torch.tensor(values, dtype=torch.float64))
    threshold = suggest(scores, shares=(share,))[share]
    wanted = max(1, round(share * len(EDGES) + 0.4999))
    assert edges_above(scores, threshold=threshold, prune=False).n_edges >= wanted
    assert edges_above(scores, threshold=threshold + 0.5, prune=False).n_edges < wanted


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"shares above 0 and at most 1; got \[0\.0\]"):
        suggest(scores_of(**CHAIN), shares=(0.0,))


# --- greedy ---------------------------------------------------------------------------------------------------------


def test_greedy_grows_from_the_logits() -> None:
    """m1 first, though nothing important feeds it; then the chain, through the group that a1.h1 reads by."""
    grown = [names(greedy_edges(scores_of(**CHAIN), n=n, prune=False)) for n in range(6)]
    chain = ["m1->logits", "a1.h1->logits", "m0->a1.kv0<v>", "a0.h0->m0", "input->a0.h0<q>"]
    assert grown == [set(chain[:n]) for n in range(6)]


def test_greedy_signed_leaves_out_what_harms() -> None:
    assert names(greedy_edges(scores_of(**CHAIN), n=1, signed=True, prune=False)) == {"a1.h1->logits"}


def greedy_by_hand(scores: Scores, n: int) -> set[Edge]:
    """At each step look at every edge whose target is connected."""
    graph, chosen = scores.graph, []
    ports = set(graph.readers(Node("logits")))
    while len(chosen) < n:
        open_edges = [edge for edge in graph.edges if edge.reads in ports and edge not in chosen]
        if not open_edges:
            break
        best = max(open_edges, key=lambda edge: (abs(scores[edge]), -graph.number(edge)))
        chosen.append(best)
        ports |= set(graph.readers(best.source))
    return set(chosen)


@settings(max_examples=30)
@given(st.integers(0, 12), st.randoms(use_true_random=False))
def test_greedy_is_the_plain_algorithm(n: int, random) -> None:
    values = torch.tensor([float(random.randint(-4, 4)) for _ in EDGES], dtype=torch.float64)
    scores = Scores(SHAPE, "edge", values)
    grown = greedy_edges(scores, n=n, prune=False)
    assert set(grown.edges) == greedy_by_hand(scores, n)
    graph = grown.to_networkx()
    assert set(graph) <= (nx.ancestors(graph, "logits") | {"logits"} if grown.n_edges else set())
    assert grown.n_edges == n


def test_greedy_takes_every_edge_in_the_end() -> None:
    assert greedy_edges(scores_of(**CHAIN), n=len(EDGES), prune=False).edges == EDGES
    with pytest.raises(InvalidOption, match=r"n from 0 to .*; got -1"):
        greedy_edges(scores_of(**CHAIN), n=-1)


# --- nodes and neurons ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "attention_only"])
def test_a_circuit_of_nodes_is_what_a_mask_over_nodes_computes(family: str) -> None:
    run = MaskedRun(tiny.model(family), tiny.task()).nodes()
    scores = exact.scores(run)
    for n in (1, 3, 6):
        circuit = top_nodes(scores, n=n)
        mask = run.zeros()
        mask[[scores.index(node) for node in {INPUT, *scores.top(n)}]] = 1.0
        torch.testing.assert_close(run.edges()(run.edges().mask_of(circuit)), run(mask), rtol=0, atol=1e-9)
        assert set(circuit.nodes) <= {INPUT, *scores.top(n), Node("logits")} | {
            node for node in circuit.nodes if node.kind == "kv"
        }


def test_all_nodes_are_all_edges_and_none_are_none() -> None:
    run = MaskedRun(tiny.model("llama"), tiny.task()).nodes()
    scores = atp.scores(run)
    assert top_nodes(scores, n=len(scores)).edges == run.graph.edges
    assert top_nodes(scores, n=0).n_edges == 0


def test_neurons_keep_their_mlps_and_all_heads() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task()).neurons()
    scores = atp.scores(run)
    circuit = top_nodes(scores, n=1)
    best = scores.top(1)[0]
    left_out = Node("mlp", 1 - best.layer)
    assert set(circuit.edges) == set(edges_between(run.graph, set(run.graph.sources) - {left_out}))
    assert circuit.provenance["selection"]["neurons"] == {f"m{best.layer}": 1}


def test_scores_of_edges_are_refused_for_nodes() -> None:
    with pytest.raises(InvalidOption, match=r"scores of nodes or neurons; got scores of edges. Use top_edges"):
        top_nodes(scores_of(**CHAIN), n=1)

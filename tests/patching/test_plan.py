"""The incremental rule against reachability in a graph that spells everything out, walked by networkx.

Every source and target stands there twice, `at the answer` and `elsewhere`. Edges of a mask join equal places; queries
and MLPs stay in their place; keys and values carry from elsewhere to both. What is needed is what reaches the logits
at the answer; what is dirty is what a changed target reaches through what is needed.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.components import Architecture, ComponentGraph
from graphs.nodes import LOGITS, Port
from patching.plan import ANSWER, FULL, NONE, Planner

HERE, ELSEWHERE = "answer", "elsewhere"

architectures = st.builds(
    lambda layers, groups, share, has_mlp, parallel: Architecture(
        n_layers=layers, n_heads=groups * share, n_kv_heads=groups, has_mlp=has_mlp, parallel=parallel and has_mlp
    ),
    layers=st.integers(1, 3),
    groups=st.integers(1, 2),
    share=st.integers(1, 2),
    has_mlp=st.booleans(),
    parallel=st.booleans(),
)


def random_edges(graph: ComponentGraph, *, seed: int, density: float) -> np.ndarray:
    """Which entries of [target, source] are on; those that do not exist are off."""
    chosen = np.random.default_rng(seed).random((len(graph.targets), len(graph.sources))) < density
    return chosen & (np.arange(len(graph.sources)) < np.array(graph.n_visible)[:, None])


def spelled_out(graph: ComponentGraph, on: np.ndarray, *, joined: bool) -> nx.DiGraph:
    whole = nx.DiGraph()
    whole.add_nodes_from((place, unit) for place in (HERE, ELSEWHERE) for unit in (*graph.targets, *graph.sources))
    for target, source in zip(*np.nonzero(on), strict=True):
        for place in (HERE, ELSEWHERE):
            whole.add_edge((place, graph.sources[source]), (place, graph.targets[target]))
    for source in graph.sources:
        for port in graph.readers(source):
            for place in (HERE, ELSEWHERE):
                whole.add_edge((place, port), (place, source))
            if port.letter in ("k", "v"):
                whole.add_edge((ELSEWHERE, port), (HERE, source))
        if joined and source.kind == "head":  # a norm over their sum: each depends on all
            for other in graph.sources:
                if other.kind == "head" and other.layer == source.layer and other != source:
                    for place in (HERE, ELSEWHERE):
                        whole.add_edge((place, source), (place, other))
    return whole


def reaches_the_logits(whole: nx.DiGraph) -> set:
    end = (HERE, Port(LOGITS))
    return nx.ancestors(whole, end) | {end}


def planner(shape: Architecture, *, joined: bool = False) -> Planner:
    return Planner(ComponentGraph(shape), joined=joined)


@settings(max_examples=60)
@given(
    shape=architectures,
    joined=st.booleans(),
    seed=st.integers(0, 10_000),
    density=st.sampled_from([0.1, 0.3, 0.6, 1.0]),
)
def test_need_is_what_reaches_the_logits(shape: Architecture, joined: bool, seed: int, density: float) -> None:
    graph = ComponentGraph(shape)
    on = random_edges(graph, seed=seed, density=density)
    useful = reaches_the_logits(spelled_out(graph, on, joined=joined))
    sources, targets = planner(shape, joined=joined).needs(on)
    for units, needs in ((graph.sources, sources), (graph.targets, targets)):
        for unit, need in zip(units, needs, strict=True):
            places = [place for place in (HERE, ELSEWHERE) if (place, unit) in useful]
            expected = FULL if ELSEWHERE in places else ANSWER if places else NONE
            if isinstance(unit, Port) and unit.letter in ("k", "v") and places:
                expected = FULL  # keys and values are read at every position
            assert need == expected, f"{unit}: {need} instead of {expected}"


@settings(max_examples=60)
@given(
    shape=architectures, joined=st.booleans(), seed=st.integers(0, 10_000),
    density=st.sampled_from([0.1, 0.3, 0.6, 1.0]), changes=st.sampled_from([0.0, 0.02, 0.2]),
)  # fmt: skip
def test_dirty_is_what_a_change_reaches(
    shape: Architecture, joined: bool, seed: int, density: float, changes: float
) -> None:
    graph = ComponentGraph(shape)
    on = random_edges(graph, seed=seed, density=density)
    changed = random_edges(graph, seed=seed + 1, density=changes)
    whole = spelled_out(graph, on, joined=joined)
    useful = {unit for _place, unit in reaches_the_logits(whole)}
    flat = nx.DiGraph()
    flat.add_nodes_from(useful)
    flat.add_edges_from((a, b) for (_, a), (_, b) in whole.edges if a in useful and b in useful)
    begun = {graph.targets[number] for number in np.flatnonzero(changed.any(1))} & useful
    dirty = begun.union(*(nx.descendants(flat, port) for port in begun))
    plan = planner(shape, joined=joined).plan(on, changed)
    assert {unit for unit, is_dirty in zip(graph.sources, plan.dirty_sources, strict=True) if is_dirty} == {
        unit for unit in dirty if not isinstance(unit, Port)
    }
    assert {unit for unit, is_dirty in zip(graph.targets, plan.dirty_targets, strict=True) if is_dirty} == {
        unit for unit in dirty if isinstance(unit, Port)
    }


SMALL = Architecture(n_layers=2, n_heads=2)


def entries(graph: ComponentGraph, *edges: str) -> np.ndarray:
    from graphs.nodes import Edge

    matrix = np.zeros((len(graph.targets), len(graph.sources)), dtype=bool)
    for text in edges:
        edge = Edge.parse(text)
        matrix[graph.target_index[edge.reads], graph.source_index[edge.source]] = True
    return matrix


@pytest.mark.parametrize(
    ("kept", "changed", "recomputed"),
    [
        (["a1.h0->logits", "a0.h1->a1.h0<q>"], ["input->a0.h1<v>"], {"a0.h1", "a1.h0"}),
        (["a1.h0->logits", "a0.h1->a1.h0<q>"], ["input->a0.h0<v>"], set()),  # a head that feeds nothing
        (["a1.h0->logits", "a0.h1->a1.h0<q>"], ["input->logits"], set()),  # only the readout is new
        (["a1.h0->logits", "m0->a1.h0<k>", "a0.h0->m0"], ["input->a0.h0<q>"], {"a0.h0", "m0", "a1.h0"}),
    ],
)
def test_plans_by_hand(kept: list[str], changed: list[str], recomputed: set[str]) -> None:
    graph = ComponentGraph(SMALL)
    plan = planner(SMALL).plan(entries(graph, *kept), entries(graph, *changed))
    assert {str(source) for source, dirty in zip(graph.sources, plan.dirty_sources, strict=True) if dirty} == recomputed


def test_a_chain_of_queries_is_needed_at_the_answer_only() -> None:
    """Of a0.h1, m0 and a1.h0 only the last token matters; a0.h0 feeds a key, so all its tokens do."""
    graph = ComponentGraph(SMALL)
    on = entries(graph, "a1.h0->logits", "m0->a1.h0<q>", "a0.h1->m0", "a0.h0->a1.h0<k>")
    sources, _ = planner(SMALL).needs(on)
    need = dict(zip(map(str, graph.sources), sources.tolist(), strict=True))
    assert need == {
        "input": NONE,
        "a0.h0": FULL,
        "a0.h1": ANSWER,
        "m0": ANSWER,
        "a1.h0": ANSWER,
        "a1.h1": NONE,
        "m1": NONE,
    }


@pytest.mark.parametrize("shape", [SMALL, Architecture(2, 4, n_kv_heads=2), Architecture(1, 2, has_mlp=False)])
def test_stages_cover_every_target_and_source_once_in_order(shape: Architecture) -> None:
    graph = ComponentGraph(shape)
    stages = planner(shape).stages
    covered = [number for stage in stages for number in range(len(graph.targets))[stage.targets]]
    written = [number for stage in stages for number in range(len(graph.sources))[stage.sources]]
    assert covered == list(range(len(graph.targets)))
    assert written == list(range(1, len(graph.sources)))
    for stage in stages:
        assert {graph.n_visible[number] for number in range(len(graph.targets))[stage.targets]} == {stage.visible}

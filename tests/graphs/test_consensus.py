from __future__ import annotations

import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.consensus import consensus, inclusion
from graphs.errors import BadCircuit, BadOption
from graphs.nodes import Edge

SHAPE = Architecture(2, 2)
SMALL = ComponentGraph(Architecture(1, 2)).edges


def made(scores, provenance=None):
    scores = {Edge.parse(name): score for name, score in scores.items()}
    return Circuit(SHAPE, scores, {edge: score for edge, score in scores.items() if score is not None}, provenance)


FOUND = [
    made({"input->m0": -1.0, "m0->logits": 2.0}, {"method": "acdc", "seed": 0, "n": None}),
    made({"input->m0": -4.0, "m0->logits": None, "m0->logits@1": 1.0}, {"method": "acdc", "seed": 1}),
    made({"input->m0": 2.0}, {"method": "acdc", "seed": 2}),
]


def test_by_hand():
    found = consensus(FOUND)
    assert {str(edge): share for edge, share in found.frequencies.items()} == {
        "input->m0": 1.0,
        "m0->logits": 2 / 3,
        "m0->logits@1": 1 / 3,
    }
    assert {str(edge): score for edge, score in found.circuit.scores.items()} == {"input->m0": -1.0, "m0->logits": 2.0}
    assert found.circuit.provenance == {"method": "acdc", "consensus": {"circuits": 3, "at_least": 0.5}}
    assert [consensus(FOUND, at_least=share).circuit.n_edges for share in (1, 2 / 3, 1 / 3, 1e-9)] == [1, 2, 3, 3]


def test_one_circuit_agrees_with_itself():
    found = consensus(iter(FOUND[:1]), at_least=1)
    assert (found.circuit.edges, found.circuit.scores) == (FOUND[0].edges, FOUND[0].scores)
    assert found == consensus(FOUND[:1], at_least=1)
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301
    assert str(found).endswith("; 2 edges in all circuits, 2 in some")


MANY = st.lists(
    st.dictionaries(st.sampled_from(SMALL), st.integers(-8, 8)).map(
        lambda scores: Circuit(Architecture(1, 2), scores, scores)
    ),
    min_size=1,
    max_size=6,
)


@given(MANY, st.integers(1, 6))
def test_a_consensus_is_a_vote(circuits, votes):
    """Oracle: counting, with fractions; shares such as 1/3 are met exactly."""
    votes = min(votes, len(circuits))
    found = consensus(circuits, at_least=votes / len(circuits))
    holders = {edge: [circuit for circuit in circuits if edge in circuit.scores] for edge in SMALL}
    assert found.circuit.edges == tuple(edge for edge in SMALL if len(holders[edge]) >= votes)
    for edge, score in found.circuit.scores.items():
        assert score == float(sum(Fraction(c.scores[edge]) for c in holders[edge]) / len(holders[edge]))
    assert dict(found.frequencies) == {e: len(h) / len(circuits) for e, h in holders.items() if h}
    assert list(found.frequencies.values()) == sorted(found.frequencies.values(), reverse=True)


@given(MANY)
def test_the_extremes_are_union_and_intersection(circuits):
    sets = [set(circuit.edges) for circuit in circuits]
    assert set(consensus(circuits, at_least=1).circuit.edges) == set.intersection(*sets)
    assert set(consensus(circuits, at_least=1e-6).circuit.edges) == set.union(*sets)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan"), "0.5", True, None])
def test_a_wrong_share_is_refused(share):
    with pytest.raises(BadOption, match="share above 0 and at most 1"):
        consensus(FOUND, at_least=share)


def test_what_cannot_agree_is_refused():
    with pytest.raises(BadCircuit, match="at least one circuit; got none"):
        consensus([])
    other = Circuit(Architecture(2, 3), [])
    with pytest.raises(BadCircuit, match="one shape; got 2 layers, 2 heads, MLPs and 2 layers, 3 heads, MLPs"):
        consensus([*FOUND, other])
    with pytest.raises(BadCircuit, match="one shape"):
        inclusion([other, *FOUND])
    assert inclusion([]) == {}

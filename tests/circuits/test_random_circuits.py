"""Random edges and random paths: sizes, connectedness, and how likely a path is."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from circuits.random_circuits import random_edges, random_path, random_paths
from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from patching.errors import InvalidOption

SHAPES = [
    Architecture(2, 4), Architecture(2, 4, n_kv_heads=2), Architecture(3, 2, parallel=True),
    Architecture(2, 3, has_mlp=False),
]  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_path_leads_from_the_input_to_the_logits(shape: Architecture) -> None:
    """So it has no dead ends, through key/value groups and parallel blocks alike."""
    graph, generator = ComponentGraph(shape), seeded()
    for _ in range(50):
        path = Circuit(shape, random_path(graph, generator=generator))
        assert path.prune().edges == path.edges
        assert str(path.edges[-1].target) == "logits"


def test_paths_are_as_likely_as_their_steps() -> None:
    """One head, no MLP: from the input to q, k, v or the logits, then on to the logits; 1/4 each."""
    graph, generator = ComponentGraph(Architecture(1, 1, has_mlp=False)), seeded()
    seen = Counter(str(random_path(graph, generator=generator)[0]) for _ in range(4000))
    assert set(seen) == {"input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "input->logits"}
    assert all(abs(count - 1000) < 4 * (4000 * 3 / 16) ** 0.5 for count in seen.values())


@pytest.mark.parametrize("shape", SHAPES)
def test_sizes(shape: Architecture) -> None:
    graph = ComponentGraph(shape)
    for n in (0, 1, 7, graph.n_edges // 2, graph.n_edges):
        assert int(random_edges(graph, n=n, generator=seeded()).sum()) == n
        size = int(random_paths(graph, n=n, generator=seeded()).sum())
        assert n <= size <= n + 2 * shape.n_layers + 1
    first, again, other = (random_paths(graph, n=9, generator=seeded(seed)) for seed in (1, 1, 2))
    assert bool((first == again).all())
    assert not bool((first == other).all())


def test_random_edges_are_uniform() -> None:
    graph, generator = ComponentGraph(SHAPES[0]), seeded()
    counts = sum(random_edges(graph, n=10, generator=generator).double() for _ in range(2000))
    expected = 2000 * 10 / graph.n_edges
    assert float((counts - expected).abs().max()) < 4.5 * expected**0.5


@pytest.mark.parametrize("n", [-1, 10**6])
def test_sizes_out_of_range_are_refused(n: int) -> None:
    for draw in (random_edges, random_paths):
        with pytest.raises(InvalidOption, match=r"n from 0 to .*, the number of edges"):
            draw(ComponentGraph(SHAPES[0]), n=n, generator=seeded())

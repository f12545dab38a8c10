"""Circuits that owe nothing to the task: what any other circuit must beat.

Random edges rarely join up, so most of them are dead and such a circuit does little, whatever its size. Random paths
lead from the input to the logits, which is a harder comparison. Both are here, and reports show both.
"""

from __future__ import annotations

from bisect import bisect_right

import torch
from jaxtyping import Bool
from torch import Tensor

from graphs.components import ComponentGraph
from graphs.nodes import INPUT, LOGITS, Edge, Node
from patching.errors import InvalidOption

PATIENCE = 200
"""After this many paths in a row that add nothing, what is missing is filled with random edges."""


def random_edges(graph: ComponentGraph, *, n: int, generator: torch.Generator) -> Bool[Tensor, " edge"]:
    """Some edges, n of them, drawn without replacement, as a mask.

    Raises:
        InvalidOption: n is out of range.

    Example:
        >>> from patching import toy
        >>> int(random_edges(toy.model().graph, n=4, generator=torch.Generator().manual_seed(0)).sum())
        4
    """
    _check(graph, n)
    chosen = torch.zeros(graph.n_edges, dtype=torch.bool)
    chosen[torch.randperm(graph.n_edges, generator=generator)[:n]] = True
    return chosen


def random_path(graph: ComponentGraph, *, generator: torch.Generator) -> tuple[Edge, ...]:
    """A random walk from the input to the logits.

    From each node, one of the ports that read it, each as likely as any other; from the port of a key/value group, one
    of its query heads.

    Source: the random walks of arXiv 2410.13032, section 3.

    Example:
        >>> from patching import toy
        >>> path = random_path(toy.model().graph, generator=torch.Generator().manual_seed(0))
        >>> path[0].source, path[-1].target
        (Node('input'), Node('logits'))
    """
    node, path = INPUT, []
    while node != LOGITS:
        source = graph.source_index[node]
        first = bisect_right(graph.n_visible, source)  # ports read a prefix of the sources, later ports longer ones
        port = graph.targets[first + _draw(len(graph.targets) - first, generator)]
        path.append(Edge(node, port.node, port.letter))
        node = _goes_on(graph, port.node, generator)
    return tuple(path)


def random_paths(graph: ComponentGraph, *, n: int, generator: torch.Generator) -> Bool[Tensor, " edge"]:
    """A union of random paths of at least n edges, as a mask: the last path is kept whole.

    For an n close to the whole model, where paths hardly find anything new, the rest is filled with random edges.

    Raises:
        InvalidOption: n is out of range.

    Example:
        >>> from patching import toy
        >>> int(random_paths(toy.model().graph, n=4, generator=torch.Generator().manual_seed(0)).sum()) >= 4
        True
    """
    _check(graph, n)
    chosen: set[int] = set()
    idle = 0
    while len(chosen) < n and idle < PATIENCE:
        before = len(chosen)
        chosen.update(graph.number(edge) for edge in random_path(graph, generator=generator))
        idle = 0 if len(chosen) > before else idle + 1
    mask = torch.zeros(graph.n_edges, dtype=torch.bool)
    mask[sorted(chosen)] = True
    if len(chosen) < n:
        rest = (~mask).nonzero().flatten()
        mask[rest[torch.randperm(len(rest), generator=generator)[: n - len(chosen)]]] = True
    return mask


def _goes_on(graph: ComponentGraph, node: Node, generator: torch.Generator) -> Node:
    if node.kind != "kv":
        return node
    heads = graph.query_heads(node)
    return heads[_draw(len(heads), generator)]


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, count, (), generator=generator))


def _check(graph: ComponentGraph, n: int) -> None:
    if not 0 <= n <= graph.n_edges:
        raise InvalidOption(f"expected n from 0 to {graph.n_edges:,}, the number of edges; got {n}.")

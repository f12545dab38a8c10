"""Where nodes stand in programs that lay out graphs themselves: rows by depth, to begin with.

Much cheaper than `graphs.layout`, which also routes every edge: linear in the number of nodes.
"""

from __future__ import annotations

from typing import Final

from graphs.circuit import Circuit
from graphs.nodes import Node

ACROSS: Final = 80.0
"""Distance between neighbours in a row, in the unit of the program, mostly pixels."""

UPWARD: Final = 100.0
"""Distance between rows."""


def rows(circuit: Circuit) -> list[list[Node]]:
    """The nodes of a circuit by depth, from the input up: groups, heads and MLP of a layer are rows of their own.

    So are the features at each site, with the error term behind them.

    Example:
        >>> rows(circuit)
        [[Node('m0')], [Node('logits')]]
    """
    found: list[list[Node]] = []
    for node in circuit.nodes:  # in topological order
        if found and _depth(found[-1][0]) == _depth(node):
            found[-1].append(node)
        else:
            found.append([node])
    return found


def _depth(node: Node) -> tuple[str, int | None]:
    return f"{node.site} features" if node.site else node.kind, node.layer


def places(circuit: Circuit) -> dict[Node, tuple[float, float]]:
    """Centred rows, depth upward: the x and y of every node."""
    return {
        node: ((column - (len(row) - 1) / 2) * ACROSS, depth * UPWARD)
        for depth, row in enumerate(rows(circuit))
        for column, node in enumerate(row)
    }

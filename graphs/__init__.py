"""What a circuit is: nodes and edges, the graph they come from, and how it is saved, compared and drawn.

Nothing here needs torch; networkx and matplotlib load when a graph is built or a figure drawn.
"""

from __future__ import annotations

from graphs.circuit import Circuit
from graphs.collapse import collapse
from graphs.compare import Comparison, compare
from graphs.components import Architecture, ComponentGraph
from graphs.consensus import Consensus, consensus
from graphs.errors import WiretraceError
from graphs.export import export
from graphs.importing import load
from graphs.nodes import INPUT, LOGITS, Edge, Node, Port, error, feature, head, kv, mlp, neuron
from graphs.paths import Path, paths
from graphs.subgraph import around, between, only

__all__ = [
    "INPUT",
    "LOGITS",
    "Architecture",
    "Circuit",
    "Comparison",
    "ComponentGraph",
    "Consensus",
    "Edge",
    "Node",
    "Path",
    "Port",
    "WiretraceError",
    "around",
    "between",
    "collapse",
    "compare",
    "consensus",
    "error",
    "export",
    "feature",
    "head",
    "kv",
    "load",
    "mlp",
    "neuron",
    "only",
    "paths",
]

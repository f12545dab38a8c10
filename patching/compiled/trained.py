"""Models that were trained, not compiled, and whose circuit is known all the same. Nothing here needs torch.

Strict interchange training (`experiments.train_interchange`) makes a standard transformer compute a program node by
node: the nodes that hold variables in the compiled model hold them in the trained one, which has more heads, and MLPs
everywhere. What that says about its circuit:

- nodes: certain, to the accuracy that the model card reports. Exchanging a node that holds variables does to the answer
  what exchanging the variables does; exchanging any other node does nothing.
- edges between these nodes: those of the program, whichever port of a head they enter. Sets of variables were exchanged
  together, so a node that the program does not read from must not matter beyond the nodes that it does.
- ports (query, key or value): those of the program, as far as anyone knows; training does not see them.
- edges from the input: likewise. The input is no variable, and every node may read all of it.

Source: arXiv 2407.14494.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from graphs.circuit import Circuit
from graphs.components import Architecture, ComponentGraph
from graphs.nodes import INPUT, Edge, Node
from patching.compiled.interchange import alignment
from patching.compiled.language import Program
from patching.compiled.programs import PROGRAMS
from patching.compiled.wiring import lay_out
from patching.errors import ModelNotFound

ZOO: Final = Path(__file__).parents[1] / "zoo"
SUFFIX: Final = "_trained"
"""What the name of a trained model ends with."""


def names() -> tuple[str, ...]:
    """The programs of which a trained model ships.

    Example:
        >>> set(names()) <= set(PROGRAMS)
        True
    """
    return tuple(name for name in sorted(PROGRAMS) if (ZOO / f"{name}{SUFFIX}" / "config.json").is_file())


def truth(program: Program) -> Circuit:
    """The circuit of a program's trained model: the program's edges, in the larger architecture.

    The nodes are certain; see above for edges.

    Raises:
        ModelNotFound: no such model ships.

    Example:
        >>> circuit = truth(PROGRAMS["reverse"])
        >>> print(*circuit.nodes)
        input a0.h0 m0 a1.h0 logits
    """
    shape = architecture(program)
    provenance = {
        "method": "strict interchange training",
        "model": f"zoo:{program.name}{SUFFIX}",
        "task": program.name,
        "certain": "nodes, and between nodes that hold variables which reads which; ports are those of the program",
    }
    return Circuit(shape, lay_out(program).circuit().edges, provenance=provenance)


def architecture(program: Program) -> Architecture:
    """The shape of a program's trained model, from its configuration.

    Raises:
        ModelNotFound: no such model ships.
    """
    path = ZOO / f"{program.name}{SUFFIX}" / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelNotFound(
            f"expected a program that a trained model ships of, out of {', '.join(names())}; got {program.name!r}. "
            "Train one with `python -m experiments.train_interchange`."
        ) from error
    return Architecture(int(settings["n_layer"]), int(settings["n_head"]))


def known_edges(program: Program) -> tuple[dict[tuple[Node, Node], bool], tuple[Edge, ...]]:
    """Pairs of nodes that hold variables, and whether the program's flow goes from one to the other.

    Returns:
        For each pair that the model has an edge between, whether it is in the circuit; and the edges of all ports that
        these pairs stand for.

    Raises:
        ModelNotFound: no such model ships.

    Example:
        >>> pairs, edges = known_edges(PROGRAMS["reverse"])
        >>> {f"{source} {target}": flows for (source, target), flows in pairs.items() if flows}
        {'a0.h0 m0': True, 'm0 a1.h0': True, 'a1.h0 logits': True}
    """
    graph = ComponentGraph(architecture(program))
    true = {(edge.source, edge.target) for edge in lay_out(program).circuit().edges}
    holders = set(alignment(program))
    edges = tuple(
        edge for edge in graph.edges
        if edge.source in holders and edge.source != INPUT and (edge.target in holders or edge.target.kind == "logits")
    )  # fmt: skip
    return {(edge.source, edge.target): (edge.source, edge.target) in true for edge in edges}, edges

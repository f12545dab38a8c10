"""Circuits of models that were trained to compute a program node by node, as references."""

from __future__ import annotations

from circuits.reference.record import Reference
from patching import compiled
from patching.compiled.interchange import alignment


def names() -> tuple[str, ...]:
    """Every model of this kind that ships, without `zoo:`.

    Example:
        >>> "reverse_trained" in names()
        True
    """
    return tuple(name.removeprefix("zoo:") for name in compiled.trained_names())


def of(name: str) -> Reference:
    """The reference of one of `names`: groups are the program's variables, each with the node that holds it.

    Unlike in circuits of the literature, which nodes are in it is certain (`patching.compiled.trained`).

    Raises:
        ModelNotFound: No such model ships.

    Example:
        >>> found = of("reverse_trained")
        >>> {variable: str(*nodes) for variable, nodes in found.groups.items()}
        {'middle': 'a0.h0', 'wanted': 'm0', 'letter': 'a1.h0'}
    """
    circuit = compiled.truth(name)
    held = alignment(compiled.program(name))
    return Reference(
        name=name,
        model=f"zoo:{name}",
        circuit=circuit,
        groups={variable: (node,) for node, variables in held.items() for variable in variables},
        positions={},
        published_edges=circuit.n_edges,
        source="strict interchange training, arXiv 2407.14494; edges are the program's",
    )

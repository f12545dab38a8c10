"""What people call the nodes of a circuit and the positions of its prompt: two keys of the provenance.

    circuit.provenance["labels"] == {"m3.f7": "plural subject", "r0.f2@1": "after a comma"}
    circuit.provenance["tokens"] == ["The", " keys", " on", " the", " table"]

The label of a feature without a position is that of the feature at any position that has none of its own. Both are for
drawings alone: what is not of this form is passed over, and no text is ever taken for markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphs.circuit import Circuit, visible
from graphs.nodes import Node

_LONGEST = 200


def labels_of(circuit: Circuit) -> dict[Node, str]:
    """What the nodes of a circuit are called, those that have a label, on one line each.

    Example:
        >>> made = {"labels": {"m0.f7": "plural subject", "m0.f8@2": "a name"}}
        >>> labels_of(Circuit(Architecture(1, 1), [Edge.parse("m0.f7@3->logits")], provenance=made))
        {Node('m0.f7@3'): 'plural subject'}
    """
    labels = circuit.provenance.get("labels")
    if not isinstance(labels, Mapping):
        return {}
    found: dict[Node, str] = {}
    for node in circuit.nodes:
        label = labels.get(str(node), labels.get(str(node.everywhere())))
        if isinstance(label, str) and (text := visible(" ".join(label.split()))[:_LONGEST]):
            found[node] = text
    return found


def tokens_of(circuit: Circuit) -> tuple[str, ...]:
    """The prompt's tokens; empty if the provenance has none, or not one for each position of the circuit.

    Example:
        >>> made = {"tokens": ["The", " keys"]}
        >>> tokens_of(Circuit(Architecture(1, 1), [Edge.parse("m0.f7@1->logits")], provenance=made))
        ('The', ' keys')
    """
    tokens = circuit.provenance.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return ()
    last = max((node.position for node in circuit.features if node.position is not None), default=-1)
    return tuple(visible(token) for token in tokens) if last < len(tokens) else ()


def shared(*circuits: Circuit) -> dict[str, Any]:
    """What a drawing of several circuits has as provenance: the labels of all, the first's first, and common tokens.

    Example:
        >>> a, b = (Circuit(Architecture(1, 1), [], provenance={"labels": {name: "x"}}) for name in ("m0", "m0.f1"))
        >>> shared(a, b)
        {'labels': {'m0.f1': 'x', 'm0': 'x'}}
    """
    labels: dict[str, Any] = {}
    for circuit in reversed(circuits):
        found = circuit.provenance.get("labels")
        labels |= found if isinstance(found, Mapping) else {}
    tokens = [circuit.provenance.get("tokens") for circuit in circuits]
    common = {"tokens": tokens[0]} if tokens[0] is not None and all(each == tokens[0] for each in tokens) else {}
    return ({"labels": labels} if labels else {}) | common

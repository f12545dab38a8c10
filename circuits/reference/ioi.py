"""Indirect object identification in GPT-2 small: 26 heads in seven roles.

Roles read each other at the ports below; every MLP takes part, since the paper leaves MLPs alone: all their edges to
one another, to and from heads of the circuit, from the embeddings and to the logits count.
"""

from __future__ import annotations

from circuits.reference.record import EMBEDDING, heads, joined, mlps, reference
from graphs.components import Architecture
from graphs.nodes import LOGITS

GPT2 = Architecture(12, 12)

GROUPS = {
    "previous token": heads("2.2", "4.11"),
    "duplicate token": heads("0.1", "0.10", "3.0"),
    "induction": heads("5.5", "5.8", "5.9", "6.9"),
    "S-inhibition": heads("7.3", "7.9", "8.6", "8.10"),
    "name mover": heads("9.6", "9.9", "10.0"),
    "backup name mover": heads("9.0", "9.7", "10.1", "10.2", "10.6", "10.10", "11.2", "11.9"),
    "negative name mover": heads("10.7", "11.10"),
}
POSITIONS = {
    "previous token": "S1+1",
    "duplicate token": "S2",
    "induction": "S2",
    "S-inhibition": "END",
    "name mover": "END",
    "backup name mover": "END",
    "negative name mover": "END",
}

_ALL = tuple(head for group in GROUPS.values() for head in group)
_MOVERS = tuple(head for name, group in GROUPS.items() if name.endswith("name mover") for head in group)
_MLPS = mlps(range(12))
_CONNECTIONS = (
    (EMBEDDING, GROUPS["previous token"], "qkv"),
    (EMBEDDING, GROUPS["duplicate token"], "qkv"),
    (EMBEDDING, GROUPS["S-inhibition"], "q"),
    (EMBEDDING, _MOVERS, "kv"),
    (GROUPS["previous token"], GROUPS["induction"], "kv"),
    (GROUPS["induction"], GROUPS["S-inhibition"], "kv"),
    (GROUPS["duplicate token"], GROUPS["S-inhibition"], "kv"),
    (GROUPS["S-inhibition"], _MOVERS, "q"),
    (_MLPS, _ALL, "qkv"),
    (_ALL, _MLPS, ""),
    (_MLPS, _MLPS, ""),
    (EMBEDDING, (*_MLPS, LOGITS), ""),
    ((*_MOVERS, *_MLPS), (LOGITS,), ""),
)

REFERENCE = reference(
    "ioi",
    model="gpt2",
    shape=GPT2,
    edges=[edge for sources, targets, letters in _CONNECTIONS for edge in joined(GPT2, sources, targets, letters)],
    groups=GROUPS,
    positions=POSITIONS,
    published_edges=1041,
    source="arXiv 2211.00593; edges as in the code of arXiv 2304.14997",
)

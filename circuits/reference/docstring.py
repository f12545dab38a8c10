"""Docstring completion in a four-layer attention-only model (attn-only-4l): six heads.

Heads 0.2 and 0.4, which the first description had, are left out as in the code of the ACDC paper.
"""

from __future__ import annotations

from circuits.reference.record import EMBEDDING, heads, joined, reference
from graphs.components import Architecture
from graphs.nodes import LOGITS

SHAPE = Architecture(4, 8, has_mlp=False)

GROUPS = {
    "duplicate": heads("0.5"),
    "previous token": heads("1.2"),
    "definition position": heads("1.4"),
    "docstring position": heads("2.0"),
    "argument mover": heads("3.0", "3.6"),
}

_H05, _H12, _H14, _H20 = (GROUPS[name] for name in list(GROUPS)[:4])
_MOVERS = GROUPS["argument mover"]
_CONNECTIONS = (
    (EMBEDDING, _H05, "v"),
    ((*EMBEDDING, *_H05), _H14, "v"),
    ((*EMBEDDING, *_H05), (*_H12, *_H20), "qk"),
    (_H14, _H20, "v"),
    (_H14, _MOVERS, "q"),
    ((*_H12, *_H20), _MOVERS, "k"),
    ((*EMBEDDING, *_H05), _MOVERS, "v"),
    (_MOVERS, (LOGITS,), ""),
)

REFERENCE = reference(
    "docstring",
    model="attn-only-4l",
    shape=SHAPE,
    edges=[edge for sources, targets, letters in _CONNECTIONS for edge in joined(SHAPE, sources, targets, letters)],
    groups=GROUPS,
    positions={},
    published_edges=37,
    source="Heimersheim and Janiak 2023, 'A circuit for Python docstrings in a 4-layer attention-only transformer'; "
    "edges as in the code of arXiv 2304.14997",
)

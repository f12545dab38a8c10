"""Greater-than ("from the year 1732 to the year 17") in GPT-2 small: nine heads and the MLPs around them."""

from __future__ import annotations

from circuits.reference.record import EMBEDDING, heads, joined, mlps, reference
from graphs.components import Architecture
from graphs.nodes import LOGITS

GPT2 = Architecture(12, 12)

GROUPS = {
    "early heads": heads("0.3", "0.5"),
    "early head 0.1": heads("0.1"),
    "early MLPs": mlps(range(4)),
    "middle heads": heads("5.5", "6.1", "6.9", "7.10", "8.11", "9.1"),
    "late MLPs": mlps(range(8, 12)),
}

_EARLY = (*GROUPS["early heads"], *GROUPS["early head 0.1"])
_FIRST, _MIDDLE, _LATE = GROUPS["early MLPs"], GROUPS["middle heads"], GROUPS["late MLPs"]
_CONNECTIONS = (
    (EMBEDDING, (*_EARLY, *_FIRST), "qkv"),
    (GROUPS["early head 0.1"], _FIRST, ""),
    (_EARLY, _MIDDLE, "qkv"),
    (_FIRST, _MIDDLE, "qkv"),
    (mlps(range(9)), _MIDDLE, "q"),
    (mlps(range(9)), mlps(range(9)), ""),
    (_LATE, _LATE, ""),
    (_MIDDLE, _LATE, ""),
    ((*_MIDDLE, *_LATE), (LOGITS,), ""),
)

REFERENCE = reference(
    "greater_than",
    model="gpt2",
    shape=GPT2,
    edges=[edge for sources, targets, letters in _CONNECTIONS for edge in joined(GPT2, sources, targets, letters)],
    groups=GROUPS,
    positions={},
    published_edges=262,
    source="arXiv 2305.00586; edges as in the code of arXiv 2304.14997",
)

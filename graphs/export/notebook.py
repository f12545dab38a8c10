"""What a notebook shows of a circuit: a small table and the figure, of the strongest edges if there are many.

A notebook stores what it shows, so the whole stays below `LARGEST` bytes, whatever the circuit. All text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Final

from graphs.circuit import Circuit, visible
from graphs.export.picture import strongest

MOST_EDGES: Final = 200
"""Of a larger circuit the strongest edges are drawn."""

LARGEST: Final = 400_000
"""The answer has fewer bytes than this; fewer edges are drawn where their curves are long."""

_LISTED: Final = 5
_LONGEST: Final = 200  # characters of a name; a hostile one may be of any length


def shown(circuit: Circuit) -> str:
    """The table and the figure as an HTML element.

    Cost: no model is run; a third of a second for 200 edges.

    Example:
        >>> "<svg" in shown(circuit), len(shown(circuit)) < LARGEST
        (True, True)
    """
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in _rows(circuit))
    return f'<div class="wiretrace-circuit"><table>{rows}</table>{_drawing(circuit)}</div>'


def _rows(circuit: Circuit) -> Iterator[tuple[str, str]]:
    for name in ("model", "task", "method"):
        said = circuit.provenance.get(name)
        if isinstance(said, str) and said:
            yield name, visible(said[:_LONGEST])
    yield "edges", circuit.size if circuit.features else f"{circuit.n_edges:,} of {circuit.n_possible:,}"
    yield "nodes", f"{len(circuit.nodes):,} ({circuit.graph})"
    ranked = sorted(circuit.scores, key=lambda edge: -abs(circuit.scores[edge]))[:_LISTED]
    if ranked:
        yield "strongest", ", ".join(f"{edge} {circuit.scores[edge]:+.3g}" for edge in ranked)
    nodes = sorted(circuit.node_scores, key=lambda node: -abs(circuit.node_scores[node]))[:_LISTED]
    if nodes:
        yield "strongest nodes", ", ".join(f"{node} {circuit.node_scores[node]:+.3g}" for node in nodes)


def _drawing(circuit: Circuit) -> str:
    from graphs.export import figure

    n = MOST_EDGES
    while n:
        part = strongest(circuit, n=n)
        try:
            drawing = figure.inline_svg(part)
        except ImportError:
            return "<p><em>(install matplotlib to see the figure)</em></p>"
        size, room = len(drawing.encode()), LARGEST - 20_000
        if size < room:
            cut = f"<p>The strongest {n:,} of {circuit.n_edges:,} edges are drawn.</p>" if part is not circuit else ""
            return f"{drawing}{cut}"
        n = min(n * 9 // 10, n * room // size)
    return "<p><em>(too large to be drawn here; export it)</em></p>"

"""Drawings of more than one circuit: two beside each other in one picture, or how often each edge was found.

They stand and look as the drawing of one circuit does (`graphs.export.figure`), in SVG, PDF or PNG with the same bytes
every time. Colour is never alone: lines of two circuits also differ by dashes, frequencies also by width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Final

from graphs.atomic import write_bytes
from graphs.circuit import Circuit, visible
from graphs.compare import compare
from graphs.components import Architecture
from graphs.consensus import Consensus
from graphs.errors import BadCircuit, BadOption
from graphs.export.canvas import known_suffix
from graphs.export.figure import drawn
from graphs.export.looks import Groups, Line
from graphs.export.picture import MOST_EDGES, Entry, Picture, assembled, merged, strongest
from graphs.labels import shared
from graphs.nodes import Edge

_BOTH: Final = Line("#3A4150", 1.1, 0.9, None, 1.0)
_ONLY_A: Final = Line("#0072B2", 1.0, 0.95, (5.0, 1.6), 0.6)
_ONLY_B: Final = Line("#D55E00", 1.0, 0.95, (1.3, 1.3), 0.5)
_FREQUENT: Final = "#0072B2"


def draw_comparison(
    a: Circuit,
    b: Circuit,
    path: str | os.PathLike[str],
    *,
    names: tuple[str, str] = ("a", "b"),
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
    dpi: float = 300,
) -> None:
    """Draw which edges two circuits share: both grey and solid, only a blue and dashed, only b vermillion and dotted.

    Scores play no part, except that of more than `MOST_EDGES` edges those are drawn that are strongest in either
    circuit. Positions are not compared: an edge that both have at some position is in both.

    Args:
        a: The first circuit.
        b: The second, of a model of the same shape.
        path: Ends in .svg, .pdf or .png.
        names: What the legend calls the two.
        title: A line above the drawing.
        groups: As for `graphs.export.figure.write`, like the rest.
        width: In inches.
        dpi: Pixels per inch of a PNG.

    Raises:
        BadCircuit: The two belong to models of different shape.
        UnknownFormat: The suffix is another one.
        BadOption: An option has a wrong value.
        BadName, UnknownNode: A group names something that is no node of the model.
        WriteFailed: The file cannot be written.

    Example:
        >>> draw_comparison(circuit, circuit.prune(), folder / "pruned.svg", names=("found", "pruned"))
    """
    suffix = known_suffix(path)
    shown = compared(a, b, names=names, title=title, groups=groups, width=width)
    write_bytes(path, drawn(shown, suffix=suffix, dpi=dpi))


def compared(
    a: Circuit,
    b: Circuit,
    *,
    names: tuple[str, str] = ("a", "b"),
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
) -> Picture:
    """The picture that `draw_comparison` draws."""
    if len(names) != 2 or not all(isinstance(name, str) and name.strip() for name in names):
        raise BadOption(f"expected names as two texts, one for each circuit; got {names!r}")
    (once_a, _), (once_b, _) = merged(a), merged(b)
    found = compare(once_a, once_b)
    scores = {
        edge: max((c.scores[edge] for c in (once_a, once_b) if edge in c.scores), key=abs, default=0.0)
        for edge in (*once_a.edges, *once_b.edges)
    }
    whole = Circuit(a.architecture, scores, scores, shared(a, b))
    union = strongest(whole, n=MOST_EDGES)
    look = dict.fromkeys(found.both, _BOTH) | dict.fromkeys(found.only_a, _ONLY_A)
    look |= dict.fromkeys(found.only_b, _ONLY_B)
    counts = ((f"both ({len(found.both):,})", _BOTH), (f"only {visible(names[0])} ({len(found.only_a):,})", _ONLY_A),
              (f"only {visible(names[1])} ({len(found.only_b):,})", _ONLY_B))  # fmt: skip
    notes = [_cut_note(union, whole)] if union is not whole else []
    if any(edge.position is not None for edge in (*a.edges, *b.edges)):
        notes.append("Positions are not compared.")
    return assembled(
        union,
        {edge: str(edge) for edge in union.edges},
        {edge: look[edge] for edge in union.edges},
        legend=[Entry(text, line) for text, line in counts],
        notes=notes,
        title=title,
        groups=groups,
        width=width,
    )


def draw_consensus(
    frequencies: Consensus | Mapping[Edge, float],
    path: str | os.PathLike[str],
    *,
    architecture: Architecture | None = None,
    least: float = 0.0,
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
    dpi: float = 300,
) -> None:
    """Draw how often each edge was found, in several searches or resamples: more often is more opaque and wider.

    Args:
        frequencies: A consensus, or edge to the share of the circuits that have it, 0 to 1.
        path: Ends in .svg, .pdf or .png.
        architecture: The shape of the model; a consensus knows it.
        least: Edges found less often than this are left out, and the legend counts them; edges at 0 always are.
        title: A line above the drawing.
        groups: As for `graphs.export.figure.write`, like the rest.
        width: In inches.
        dpi: Pixels per inch of a PNG.

    Raises:
        BadCircuit: A frequency is not from 0 to 1.
        UnknownEdge: The model has no such edge.
        UnknownFormat: The suffix is another one.
        BadOption: An option has a wrong value, or the architecture is missing.
        BadName, UnknownNode: A group names something that is no node of the model.
        WriteFailed: The file cannot be written.

    Example:
        >>> from graphs.consensus import consensus
        >>> draw_consensus(consensus([circuit, circuit.prune()]), folder / "often.svg")
    """
    suffix = known_suffix(path)
    shown = agreed(frequencies, architecture=architecture, least=least, title=title, groups=groups, width=width)
    write_bytes(path, drawn(shown, suffix=suffix, dpi=dpi))


def agreed(
    frequencies: Consensus | Mapping[Edge, float],
    *,
    architecture: Architecture | None = None,
    least: float = 0.0,
    title: str | None = None,
    groups: Groups | None = None,
    width: float | None = None,
) -> Picture:
    """The picture that `draw_consensus` draws."""
    shape = frequencies.circuit.architecture if isinstance(frequencies, Consensus) else architecture
    shares = frequencies.frequencies if isinstance(frequencies, Consensus) else frequencies
    if shape is None:
        raise BadOption("expected architecture= with a table of frequencies: the shape of the model. Pass a circuit's.")
    if not 0.0 <= least <= 1.0:
        raise BadOption(f"expected least from 0 to 1, a share of the circuits; got {least!r}")
    for edge, share in shares.items():
        if not (math.isfinite(share) and 0.0 <= share <= 1.0):
            raise BadCircuit(f"expected the share of circuits that have an edge, from 0 to 1; got {share} for {edge}")
    often = {edge: share for edge, share in shares.items() if share > 0.0 and share >= least}
    made = shared(frequencies.circuit) if isinstance(frequencies, Consensus) else {}
    whole = Circuit(shape, often, often, made)
    once, names = merged(strongest(whole, n=MOST_EDGES))
    notes = [] if len(often) <= MOST_EDGES else [_cut_note(once, whole)]
    if rare := sum(0.0 < share < least for share in shares.values()):
        notes.append(f"Left out, since in less than {least:.0%}: {rare:,}.")
    samples = [share for share in (1.0, 0.75, 0.5, 0.25) if share >= least]
    return assembled(
        once,
        names,
        {edge: _frequent(share) for edge, share in once.scores.items()},
        legend=[Entry(f"in {share:.0%}", _frequent(share)) for share in samples],
        notes=notes,
        title=title,
        groups=groups,
        width=width,
    )


def _frequent(share: float) -> Line:
    return Line(_FREQUENT, 0.4 + 1.6 * share, 0.15 + 0.8 * share, None, share)


def _cut_note(part: Circuit, whole: Circuit) -> str:
    return f"The strongest {part.n_edges:,} of {whole.n_edges:,} edges are drawn."

"""What the page shows, as one JSON record: places, edges, scores, and what the options add."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, NamedTuple

from graphs.boxes import ROOMY
from graphs.circuit import Circuit, visible
from graphs.errors import BadName, BadOption
from graphs.export.looks import SITE_NAMES
from graphs.features import NAMES
from graphs.labels import labels_of, shared, tokens_of
from graphs.layout import Layout, Point, layout
from graphs.nodes import INPUT, Edge, Node

SCALE: Final = 2.0
"""CSS pixels to a point of the layout when the page is neither zoomed in nor out."""

_WIDEST: Final = 1.8  # a tall drawing is stretched sideways up to this, since windows are wide
_FONT: Final = 12.5

_MOST_TOKENS: Final = 2_048


class Prompt(NamedTuple):
    """An example to show above the circuit.

    Attributes:
        tokens: As the tokenizer spells them, leading spaces included.
        answer: The token that the task wants next; empty if there is none to show.
        wrong: The token with which the metric compares it; empty likewise.
    """

    tokens: Sequence[str]
    answer: str = ""
    wrong: str = ""


def content(
    circuit: Circuit,
    *,
    title: str | None,
    other: Circuit | None,
    groups: Mapping[str, Iterable[Node | str]] | None,
    prompt: Prompt | Sequence[str] | None,
    attention: Mapping[str, Any] | Mapping[Node, Any] | None,
) -> dict[str, Any]:
    """The record that the page's scripts read; the options as for `graphs.export.html.write`."""
    if title is not None and not isinstance(title, str):
        raise BadOption(f"title is a text; got {type(title).__name__}")
    shown = circuit if other is None else _union(circuit, other)
    plan = _Plan(layout(shown), labels_of(shown))
    roles, role_of = _roles(groups, shown)
    if prompt is None and shown.features:
        prompt = tokens_of(shown) or None
    example = _prompt(prompt)
    bands = plan.layout.bands
    number = {node: place for place, node in enumerate(shown.nodes)}
    return {
        "title": visible(title or _named(circuit) or "Circuit"),
        "summaries": [visible(str(each)) for each in (circuit, other) if each is not None],
        "width": round(plan.across * plan.layout.width, 1),
        "height": round(SCALE * plan.layout.height, 1),
        "font": round(_FONT * min(plan.across / SCALE, 1.5), 1),
        "bands": [[band.layer, *(plan.point((0.0, y))[1] for y in (band.top, band.bottom))] for band in bands],
        "links": [[plan.point(start), plan.point(end)] for start, end in plan.layout.links],
        "nodes": [_node_row(plan, node, role_of.get(node)) | _own(plan, node, circuit, other) for node in shown.nodes],
        "edges": _edge_rows(plan, number, circuit, other),
        "roles": roles,
        "prompt": example,
        "attention": _patterns(attention, shown, n_tokens=None if example is None else len(example["tokens"])),
        "provenance": [_made(each) for each in (circuit, other) if each is not None],
    } | _places(plan, shown)


def _named(circuit: Circuit) -> str:
    said = [circuit.provenance.get(name) for name in ("model", "task", "method")]
    return " · ".join(name for name in said if isinstance(name, str) and name)


def _union(circuit: Circuit, other: Circuit) -> Circuit:
    """The edges of both, scored by the first where it has a score."""
    if not isinstance(other, Circuit):
        raise BadOption(f"other is a Circuit to compare with; got {type(other).__name__}")
    if other.architecture != circuit.architecture:
        raise BadOption(
            f"two circuits compared must be of one architecture; got {circuit.graph} and {other.graph}: "
            "write a page for each"
        )
    scores = {**other.scores, **circuit.scores}
    of_nodes = {**other.node_scores, **circuit.node_scores}
    made = {**circuit.provenance, **shared(circuit, other)}
    edges = (*circuit.edges, *other.edges)
    return replace(circuit, edges=edges, scores=scores, provenance=made, node_scores=of_nodes)


def _made(circuit: Circuit) -> list[list[str]]:
    rows = circuit.provenance.items()
    texts = ((key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) for key, value in rows)
    return [[visible(key), visible(text)] for key, text in texts]


# ------------------------------------------------------------------------------------------------ nodes and edges


class _Plan:
    """A layout in CSS pixels, y downward, stretched sideways where it is much taller than wide."""

    def __init__(self, plan: Layout, labels: Mapping[Node, str]) -> None:
        self.layout = plan
        self.labels = labels
        self.sizes = ROOMY._replace(labels=labels)
        self.across = SCALE * min(max(1.0, plan.height / plan.width), _WIDEST)

    def exact(self, point: Point) -> Point:
        return self.across * point[0], SCALE * (self.layout.height - point[1])

    def point(self, point: Point) -> list[float]:
        return [round(number, 1) for number in self.exact(point)]


def _node_row(plan: _Plan, node: Node, role: int | None) -> dict[str, Any]:
    box = plan.layout.boxes[node]
    row: dict[str, Any] = {"name": str(node), "kind": node.kind}
    row |= {"layer": node.layer} if node.layer is not None else {}
    row |= {"role": role} if role is not None else {}
    x, y = plan.point((box.x, box.y))
    return row | {"x": x, "y": y, "w": round(plan.across * box.width, 1), "h": round(SCALE * box.height, 1)}


def _own(plan: _Plan, node: Node, circuit: Circuit, other: Circuit | None) -> dict[str, Any]:
    """What a node has beyond a name and a place: a text of its own for its box, a position, scores."""
    row: dict[str, Any] = {}
    if node in plan.labels:
        row["called"] = plan.labels[node]
    if node.site is not None or node in plan.labels:
        row["text"] = plan.sizes.label(node)
    if node.site is not None:
        row |= {"site": NAMES[node.site]}
        row |= {name: value for name in ("index", "position") if (value := getattr(node, name)) is not None}
    scores = [None if each is None else each.node_scores.get(node) for each in (circuit, other)]
    known = [score for score in scores if score is not None]
    return row | ({"score": known[0], "scores": scores} if known else {})


def _places(plan: _Plan, circuit: Circuit) -> dict[str, Any]:
    """The sites of dictionaries and the positions of features, if there are some."""
    where = plan.layout
    if not where.shelves:
        return {}
    bar = where.boxes[INPUT]
    foot = bar.bottom - 0.6 * bar.height if INPUT in circuit.nodes else bar.y
    heights = [((each.bottom + each.top) / 2, SITE_NAMES[each.site]) for each in where.shelves]
    middles = [((each.left + each.right) / 2, each.heading) for each in where.columns]
    return {
        "shelves": [[name, plan.point((0.0, y))[1]] for y, name in heights],
        "columns": [[heading, plan.point((x, foot))] for x, heading in middles],
        "walls": [plan.point(((one.right + two.left) / 2, 0.0))[0] for one, two in pairwise(where.columns)],
    }


def _edge_rows(plan: _Plan, number: Mapping[Node, int], circuit: Circuit, other: Circuit | None) -> list[list[Any]]:
    """For each edge: source, target, port, position, score in A and B, where (1 in A, 2 in B, 3 in both), curve."""
    in_a, in_b = set(circuit.edges), set() if other is None else set(other.edges)
    scores_b: Mapping[Edge, float] = {} if other is None else other.scores
    return [
        [
            number[wire.edge.source],
            number[wire.edge.target],
            wire.edge.port or "",
            wire.edge.position,
            circuit.scores.get(wire.edge),
            scores_b.get(wire.edge),
            (wire.edge in in_a) + 2 * (wire.edge in in_b),
            _curve(plan, wire.path),
        ]
        for wire in plan.layout.wires
    ]


def _curve(plan: _Plan, path: Sequence[Point]) -> str:
    """An SVG path in tenths of a pixel: absolute start, then control points relative to where each piece starts."""
    points = [tuple(round(10 * number) for number in plan.exact(point)) for point in path]
    (x, y), words = points[0], []
    for piece in range(1, len(points), 3):
        words += [number for point in points[piece : piece + 3] for number in (point[0] - x, point[1] - y)]
        x, y = points[piece + 2]
    return f"M{points[0][0]} {points[0][1]}c" + "".join(
        str(word) if place == 0 or word < 0 else f" {word}" for place, word in enumerate(words)
    )


# -------------------------------------------------------------------------------------------------------- options


def _roles(groups: Mapping[str, Iterable[Node | str]] | None, circuit: Circuit) -> tuple[list[str], dict[Node, int]]:
    """The names of the roles, and the number of each node's role."""
    if groups is None:
        return [], {}
    if not isinstance(groups, Mapping) or not all(isinstance(role, str) for role in groups):
        raise BadOption('groups are roles with their nodes, such as {"name movers": ["a9.h6", "a9.h9"]}')
    role_of: dict[Node, int] = {}
    for number, (role, members) in enumerate(groups.items()):
        if isinstance(members, str) or not isinstance(members, Iterable):
            raise BadOption(f"the role {role!a} needs a list of nodes; got {type(members).__name__}")
        for member in members:
            node = _node(member, option="groups")
            if role_of.setdefault(node, number) != number:
                raise BadOption(f"{node} has two roles, {list(groups)[role_of[node]]!a} and {role!a}; give it one")
    return [visible(role) for role in groups], {node: role_of[node] for node in circuit.nodes if node in role_of}


def _node(name: object, *, option: str) -> Node:
    try:
        return name if isinstance(name, Node) else Node.parse(name)  # type: ignore[arg-type]
    except BadName as error:
        raise BadOption(f"{option} names a node that cannot be: {error}") from None


def _prompt(prompt: Prompt | Sequence[str] | None) -> dict[str, Any] | None:
    if prompt is None:
        return None
    example = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
    tokens = example.tokens
    if (
        isinstance(tokens, str)
        or not isinstance(tokens, Sequence)
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise BadOption("prompt is a list of tokens, each a text, or a Prompt(tokens, answer)")
    if not 1 <= len(tokens) <= _MOST_TOKENS:
        raise BadOption(f"prompt has 1 to {_MOST_TOKENS:,} tokens; got {len(tokens):,}")
    if not isinstance(example.answer, str) or not isinstance(example.wrong, str):
        raise BadOption("the answer of a Prompt, and the wrong one, are texts")
    return {
        "tokens": [visible(token) for token in tokens],
        "answer": visible(example.answer),
        "wrong": visible(example.wrong),
    }


def _patterns(
    attention: Mapping[str, Any] | Mapping[Node, Any] | None, circuit: Circuit, *, n_tokens: int | None
) -> dict[str, list[list[float]]]:
    """The pattern of each head that is in the circuit, to four digits."""
    if attention is None:
        return {}
    if not isinstance(attention, Mapping):
        raise BadOption(f'attention is a table such as {{"a9.h6": matrix}}; got {type(attention).__name__}')
    present = set(circuit.nodes)
    patterns: dict[str, list[list[float]]] = {}
    for name, matrix in attention.items():
        node = _node(name, option="attention")
        if node.kind != "head":
            raise BadOption(f"attention belongs to heads such as a9.h6; got {node}")
        rows = _matrix(matrix, node=node, n_tokens=n_tokens)
        if node in present:
            patterns[str(node)] = rows
    return patterns


def _matrix(matrix: Any, *, node: Node, n_tokens: int | None) -> list[list[float]]:
    rows = matrix.tolist() if hasattr(matrix, "tolist") else matrix
    try:
        numbers = [[float(value) for value in row] for row in rows]
    except (TypeError, ValueError):
        raise BadOption(f"the attention of {node} must be a matrix of numbers, [query, key]") from None
    side = len(numbers) if n_tokens is None else n_tokens
    if not numbers or len(numbers) != side or any(len(row) != side for row in numbers):
        widths = sorted({len(row) for row in numbers})
        wanted = "as many rows as columns" if n_tokens is None else f"{side} rows and columns, one for each token"
        raise BadOption(f"the attention of {node} must have {wanted}; got {len(numbers)} rows of {widths}")
    if not all(math.isfinite(value) and -1e-3 <= value <= 1 + 1e-3 for row in numbers for value in row):
        raise BadOption(f"the attention of {node} must be finite numbers from 0 to 1")
    return [[round(min(max(value, 0.0), 1.0), 4) for value in row] for row in numbers]

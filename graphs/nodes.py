"""Names of the parts of a transformer: nodes, the ports they read at, and the edges between them.

A transformer block adds to one residual stream. A *node* is something that writes to it or reads from it, an *edge*
says that one node's write reaches one place where a later node reads, and a *port* is that place: attention heads
read three times (query, key, value), everything else once. The spelling is the one in which the field exchanges
circuits, and `parse` inverts `str`:

=================  ============================================================
`input`            the embeddings (token plus position), the first writer
`a9.h6`            attention head 6 of layer 9
`a3.kv1`           key/value group 1 of layer 3 (grouped-query attention only)
`m3`               the MLP of layer 3
`m3.n1021`         neuron 1021 of the MLP of layer 3
`logits`           the final residual stream, which the unembedding reads
`a9.h6->m10`       an edge
`m3->a9.h6<q>`     an edge into a head's query port
`m3->a9.h6<q>@7`   the same edge at token position 7 alone
=================  ============================================================

Names are checked for sense here (a head needs a layer and a number) and against a model in `components.py` (does
layer 9 exist?).

Example:
    >>> edge = Edge.parse("m3->a9.h6<q>")
    >>> edge.source, edge.target.layer, str(edge.reads)
    (Node('m3'), 9, 'a9.h6<q>')
    >>> str(Edge(head(9, 6), mlp(10)))
    'a9.h6->m10'
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

from graphs.errors import BadName

Kind = Literal["input", "head", "kv", "mlp", "neuron", "logits"]
Letter = Literal["q", "k", "v"]

LARGEST_NUMBER: Final = 999_999_999
"""No layer, head, neuron or position may exceed this, so that a hostile name cannot become a huge integer."""

_FIELDS: Final[dict[Kind, tuple[bool, bool]]] = {  # kind -> (has a layer, has an index)
    "input": (False, False),
    "head": (True, True),
    "kv": (True, True),
    "mlp": (True, False),
    "neuron": (True, True),
    "logits": (False, False),
}
_SPELLING: Final[dict[Kind, str]] = {
    "input": "input",
    "head": "a{layer}.h{index}",
    "kv": "a{layer}.kv{index}",
    "mlp": "m{layer}",
    "neuron": "m{layer}.n{index}",
    "logits": "logits",
}
_NUMBER = "(0|[1-9][0-9]{0,8})"
_NODE = re.compile(f"(?:(?:a{_NUMBER}\\.(h|kv)|m{_NUMBER}\\.(n)){_NUMBER}|m{_NUMBER}|(input)|(logits))")
_END = re.compile(f"([^<>@]*)(?:<([^<>@]*)>)?(?:@{_NUMBER})?")
_WRITERS: Final = frozenset({"input", "head", "mlp", "neuron"})
_LETTERS: Final[dict[str, tuple[Letter | None, ...]]] = {  # which letters the reading ports of a kind can carry
    "head": ("q", "k", "v", None),
    "kv": ("k", "v"),
    "mlp": (None,),
    "neuron": (None,),
    "logits": (None,),
}


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a model that writes to or reads from the residual stream.

    Args:
        kind: What it is. A `kv` node only reads: it is the group of heads that share keys and values.
        layer: The block it stands in, from 0; None for `input` and `logits`.
        index: The head, group or neuron within the layer, from 0; None for whole MLPs, `input` and `logits`.

    Raises:
        BadName: If the fields do not fit the kind.

    Example:
        >>> str(Node("head", 9, 6)), Node.parse("m3") == mlp(3)
        ('a9.h6', True)
    """

    kind: Kind
    layer: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _FIELDS:
            raise BadName(f"a node's kind is one of {', '.join(get_args(Kind))}; got {_shown(self.kind)}")
        has_layer, has_index = _FIELDS[self.kind]
        _check_number(self, "layer", wanted=has_layer)
        _check_number(self, "index", wanted=has_index)

    def __str__(self) -> str:
        return _SPELLING[self.kind].format(layer=self.layer, index=self.index)

    def __repr__(self) -> str:
        return f"Node({str(self)!r})"

    @staticmethod
    def parse(text: str) -> Node:
        """The node spelled `text`; the inverse of `str`.

        Raises:
            BadName: If `text` is no node's name; the message suggests the nearest spelling.
        """
        match = _NODE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise BadName(_no_such_spelling(text))
        attention, reader, neurons, _, index, whole, first, _ = match.groups()
        if attention is not None:
            return Node("head" if reader == "h" else "kv", int(attention), int(index))
        if neurons is not None:
            return Node("neuron", int(neurons), int(index))
        if whole is not None:
            return Node("mlp", int(whole))
        return INPUT if first else LOGITS


class Port(NamedTuple):
    """A place where a node reads the residual stream: `a9.h6<q>`, `a3.kv1<v>`, `m3`, `logits`.

    Attributes:
        node: The node that reads.
        letter: `q`, `k` or `v` for attention, None for nodes that read once.
    """

    node: Node
    letter: Letter | None = None

    def __str__(self) -> str:
        return str(self.node) if self.letter is None else f"{self.node}<{self.letter}>"

    @staticmethod
    def parse(text: str) -> Port:
        """The port spelled `text`; the inverse of `str`.

        Raises:
            BadName: If `text` is no port's name.
        """
        node, letter, position = _split_end(text, whole=text)
        if position is not None:
            raise BadName(f"a port has no position; got {_shown(text)}, write {node}{_angle(letter)}")
        _check_letter(node, letter)
        return Port(node, letter)


@dataclass(frozen=True, slots=True)
class Edge:
    """One wire: what `source` writes, as `target` reads it at one of its ports.

    An edge into a head normally carries a letter; without one it means the head as a whole, which component graphs
    do not have as an edge of its own but collapsed views do.

    Args:
        source: The node that writes.
        target: The node that reads.
        port: Which reading port of the target: `q`, `k`, `v`, or None where there is only one.
        position: The token position to which the edge is limited, from 0; None means every position.

    Raises:
        BadName: If the source cannot write, the target cannot read, or the port is not one of the target's.

    Example:
        >>> str(Edge(mlp(3), kv(9, 1), "k", position=7))
        'm3->a9.kv1<k>@7'
    """

    source: Node
    target: Node
    port: Letter | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        for end in (self.source, self.target):
            if not isinstance(end, Node):
                raise BadName(f"an edge joins two Nodes; got {_shown(end)} (Edge.parse reads a name)")
        if self.source.kind not in _WRITERS:
            raise BadName(f"{self.source} does not write to the residual stream, so no edge starts there")
        _check_letter(self.target, self.port)
        if self.position is not None:
            _check_number(self, "position", wanted=True)

    def __str__(self) -> str:
        at = "" if self.position is None else f"@{self.position}"
        return f"{self.source}->{self.target}{_angle(self.port)}{at}"

    def __repr__(self) -> str:
        return f"Edge({str(self)!r})"

    @property
    def reads(self) -> Port:
        """The port at which the target reads this edge."""
        return Port(self.target, self.port)

    def everywhere(self) -> Edge:
        """This edge without its position."""
        return self if self.position is None else Edge(self.source, self.target, self.port)

    @staticmethod
    def parse(text: str) -> Edge:
        """The edge spelled `text`; the inverse of `str`.

        Raises:
            BadName: If `text` is no edge's name.
        """
        ends = text.split("->") if isinstance(text, str) else []
        if len(ends) != 2:
            raise BadName(
                f"expected an edge as SOURCE->TARGET, for example m3->a9.h6<q> or a9.h6->m10; got {_shown(text)}"
            )
        node, letter, position = _split_end(ends[1], whole=text)
        return Edge(Node.parse(ends[0]), node, letter, position)


def head(layer: int, index: int) -> Node:
    """Attention head `index` of `layer`: `a9.h6`."""
    return Node("head", layer, index)


def kv(layer: int, index: int) -> Node:
    """Key/value group `index` of `layer`, in grouped-query attention: `a3.kv1`."""
    return Node("kv", layer, index)


def mlp(layer: int) -> Node:
    """The MLP of `layer`: `m3`."""
    return Node("mlp", layer)


def neuron(layer: int, index: int) -> Node:
    """Neuron `index` of the MLP of `layer`: `m3.n1021`."""
    return Node("neuron", layer, index)


def _check_number(record: Node | Edge, field: str, *, wanted: bool) -> None:
    """Raise unless the field holds a number exactly if one is wanted; whole numbers of other types become int."""
    value = getattr(record, field)
    if not wanted:
        if value is not None:
            raise BadName(f"{_owner(record)} has no {field}; got {field}={_shown(value)}, leave it out")
        return
    if type(value) is not int:
        value = _whole(value, message=f"{_owner(record)} needs a whole number as its {field}; got {_shown(value)}")
        object.__setattr__(record, field, value)
    if not 0 <= value <= LARGEST_NUMBER:
        raise BadName(f"{_owner(record)} needs a {field} from 0 to {LARGEST_NUMBER:,}; got {_shown(value)}")


def _owner(record: Node | Edge) -> str:
    return "an edge" if isinstance(record, Edge) else f"a node of kind {record.kind!r}"


def _whole(value: Any, *, message: str) -> int:
    if isinstance(value, bool):
        raise BadName(message)
    try:
        return operator.index(value)
    except TypeError:
        raise BadName(message) from None


def _check_letter(target: Node, letter: object) -> None:
    allowed = _LETTERS.get(target.kind)
    if allowed is None:
        raise BadName(f"{target} does not read the residual stream, so no edge ends there")
    if letter not in allowed:
        choices = ", ".join(f"{target}{_angle(choice)}" for choice in allowed if choice is not None)
        came = f"the port {letter!r}" if letter is not None else "no port"
        raise BadName(f"{target} reads at {choices or f'one place, spelled {target}'}; got {came}")


def _angle(letter: str | None) -> str:
    return "" if letter is None else f"<{letter}>"


def _split_end(text: str, *, whole: object) -> tuple[Node, Letter | None, int | None]:
    """Take `a9.h6<q>@7` apart into node, letter and position."""
    match = _END.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise BadName(f"expected NODE, NODE<PORT> or NODE<PORT>@POSITION, for example a9.h6<q>@7; got {_shown(whole)}")
    name, letter, position = match.groups()
    if letter not in ("q", "k", "v", None):
        raise BadName(f"a port is q, k or v, for example {_shown(f'{name}<q>')}; got {_shown(whole)}")
    return Node.parse(name), letter, None if position is None else int(position)


_HABITS: Final = (  # how people also write nodes, and how to spell them here
    (re.compile(r"(?:l|a|attn\.?|layer\.?)?([0-9]{1,4})[ .,_/-]*(?:h|head)?[ .]*([0-9]{1,5})"), "a{}.h{}"),
    (re.compile(r"(?:l|a)?([0-9]{1,4})[ .,_-]*kv[ .]*([0-9]{1,5})"), "a{}.kv{}"),
    (re.compile(r"(?:m|mlp|l)[ ._]*([0-9]{1,4})[ ._]*n(?:euron)?[ ._]*([0-9]{1,7})"), "m{}.n{}"),
    (re.compile(r"(?:m|mlp)[ ._]*([0-9]{1,4})"), "m{}"),
    (re.compile(r"inputs?|embed(?:s|ding|dings)?|resid_pre"), "input"),
    (re.compile(r"logits?|outputs?|unembed|resid_post"), "logits"),
)


def _no_such_spelling(text: object) -> str:
    message = f"expected a node: input, a9.h6, a3.kv1, m3, m3.n1021 or logits; got {_shown(text)}"
    if not isinstance(text, str):
        return message
    for pattern, spelling in _HABITS:
        match = pattern.fullmatch(text.strip().lower())
        if match:
            numbers = (int(number) for number in match.groups())
            return f"{message}; did you mean {spelling.format(*numbers)}?"
    return message


def _shown(text: object) -> str:
    """The value as Python would write it, cut where a long one would bury the message."""
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


INPUT: Final = Node("input")
"""The embeddings: token plus position, where the model has one."""

LOGITS: Final = Node("logits")
"""The final residual stream, as the final norm and the unembedding read it."""

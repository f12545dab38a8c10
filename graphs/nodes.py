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

A sparse dictionary at a place of the model splits what flows there into *features* and an *error term*, the part that
it cannot express. Both are nodes, and they alone can stand at one token position:

=================  ============================================================
`a3.f12`           feature 12 of the dictionary at the attention output of layer 3
`m3.f1042`         feature 1042 at the output of its MLP
`r3.f7`            feature 7 at the residual stream that leaves layer 3
`input.f5`         feature 5 at the embeddings
`m3.err`           the error term at the MLP's output; likewise the others
`m3.f1042@5`       feature 1042 at token position 5; without one, at all of them
`r0.f3@1->a1.f7@4` an edge between features
`m3.err@4->logits` an edge from an error term
=================  ============================================================

Names are checked for sense here (a head needs a layer and a number) and against a model in `components.py` (does
layer 9 exist?).

Example:
    >>> edge = Edge.parse("m3->a9.h6<q>")
    >>> edge.source, edge.target.layer, str(edge.reads)
    (Node('m3'), 9, 'a9.h6<q>')
    >>> str(Edge(head(9, 6), mlp(10)))
    'a9.h6->m10'
    >>> str(Edge(feature("resid", 0, 3, position=1), error("attn", 1, position=4)))
    'r0.f3@1->a1.err@4'
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, cast, get_args

from graphs.errors import BadName
from graphs.habits import suggestion

Kind = Literal[
    "input", "head", "kv", "mlp", "neuron", "logits",
    "input_feature", "attn_feature", "mlp_feature", "resid_feature",
    "input_error", "attn_error", "mlp_error", "resid_error",
]  # fmt: skip
Letter = Literal["q", "k", "v"]
Site = Literal["input", "attn", "mlp", "resid"]
"""Where a dictionary stands: the embeddings, the output of attention or MLP, the residual stream after a layer."""

LARGEST_NUMBER: Final = 999_999_999
"""No layer, head, neuron or position may exceed this, so that a hostile name cannot become a huge integer."""

SITES: Final[tuple[Site, ...]] = get_args(Site)
"""The sites of dictionaries, in the order in which a layer computes them."""


def _kinds_of(site: Site) -> tuple[Kind, Kind]:
    return cast("tuple[Kind, Kind]", (f"{site}_feature", f"{site}_error"))


_FIELDS: Final[dict[Kind, tuple[bool, bool]]] = {  # kind -> (has a layer, has an index)
    "input": (False, False),
    "head": (True, True),
    "kv": (True, True),
    "mlp": (True, False),
    "neuron": (True, True),
    "logits": (False, False),
    "input_feature": (False, True),
    "attn_feature": (True, True),
    "mlp_feature": (True, True),
    "resid_feature": (True, True),
    "input_error": (False, False),
    "attn_error": (True, False),
    "mlp_error": (True, False),
    "resid_error": (True, False),
}
_SPELLING: Final[dict[Kind, str]] = {
    "input": "input",
    "head": "a{layer}.h{index}",
    "kv": "a{layer}.kv{index}",
    "mlp": "m{layer}",
    "neuron": "m{layer}.n{index}",
    "logits": "logits",
    "input_feature": "input.f{index}",
    "attn_feature": "a{layer}.f{index}",
    "mlp_feature": "m{layer}.f{index}",
    "resid_feature": "r{layer}.f{index}",
    "input_error": "input.err",
    "attn_error": "a{layer}.err",
    "mlp_error": "m{layer}.err",
    "resid_error": "r{layer}.err",
}
_SITE_OF: Final[dict[Kind, Site]] = {kind: site for site in SITES for kind in _kinds_of(site)}
_NUMBER = "(0|[1-9][0-9]{0,8})"
_NODE = re.compile(f"(?:(?:a{_NUMBER}\\.(h|kv)|m{_NUMBER}\\.(n)){_NUMBER}|m{_NUMBER}|(input)|(logits))")
_IN_DICTIONARY = re.compile(f"(?:([amr]){_NUMBER}|input)\\.(?:f{_NUMBER}|err)(?:@{_NUMBER})?")
_SITE_LETTERS: Final[dict[str | None, Site]] = {None: "input", "a": "attn", "m": "mlp", "r": "resid"}
_END = re.compile(f"([^<>@]*)(?:<([^<>@]*)>)?(?:@{_NUMBER})?")
_ERRORS: Final = frozenset(kind for site in SITES for kind in _kinds_of(site)[1:])
_WRITERS: Final = frozenset({"input", "head", "mlp", "neuron", *_SITE_OF})
_LETTERS: Final[dict[str, tuple[Letter | None, ...]]] = {  # which letters the reading ports of a kind can carry
    "head": ("q", "k", "v", None),
    "kv": ("k", "v"),
    "mlp": (None,),
    "neuron": (None,),
    "logits": (None,),
    **{kind: (None,) for kind, site in _SITE_OF.items() if site != "input"},
}


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a model that writes to or reads from the residual stream.

    Args:
        kind: What it is. A `kv` node only reads: it is the group of heads that share keys and values.
        layer: The block it stands in, from 0; None for `input`, what a dictionary finds there, and `logits`.
        index: The head, group or neuron within the layer, or the feature within its dictionary, from 0; None for
            whole MLPs, `input`, `logits` and error terms.
        position: The token position of a feature or error term, from 0; None means all positions together, and is
            the only choice for other kinds, whose edges have positions instead.

    Raises:
        BadName: If the fields do not fit the kind.

    Example:
        >>> str(Node("head", 9, 6)), Node.parse("m3") == mlp(3)
        ('a9.h6', True)
        >>> str(Node("mlp_feature", 3, 1042, position=5)), Node.parse("r3.err").site
        ('m3.f1042@5', 'resid')
    """

    kind: Kind
    layer: int | None = None
    index: int | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _FIELDS:
            raise BadName(f"a node's kind is one of {', '.join(get_args(Kind))}; got {_shown(self.kind)}")
        has_layer, has_index = _FIELDS[self.kind]
        _check_number(self, "layer", wanted=has_layer)
        _check_number(self, "index", wanted=has_index)
        if self.position is not None:
            _check_number(self, "position", wanted=self.kind in _SITE_OF)

    def __str__(self) -> str:
        at = "" if self.position is None else f"@{self.position}"
        return _SPELLING[self.kind].format(layer=self.layer, index=self.index) + at

    def __repr__(self) -> str:
        return f"Node({str(self)!r})"

    @property
    def site(self) -> Site | None:
        """Where the dictionary stands whose feature or error term this is; None for parts of the model itself."""
        return _SITE_OF.get(self.kind)

    @property
    def is_error(self) -> bool:
        """Whether this is the error term of a dictionary."""
        return self.kind in _ERRORS

    def everywhere(self) -> Node:
        """This node without its position."""
        return self if self.position is None else Node(self.kind, self.layer, self.index)

    @staticmethod
    def parse(text: str) -> Node:
        """The node spelled `text`; the inverse of `str`.

        Raises:
            BadName: If `text` is no node's name; the message suggests the nearest spelling.
        """
        if isinstance(text, str) and (found := _IN_DICTIONARY.fullmatch(text)):
            letter, layer, index, position = found.groups()
            of_feature, of_error = _kinds_of(_SITE_LETTERS[letter])
            kind = of_error if index is None else of_feature
            return Node(kind, *(None if number is None else int(number) for number in (layer, index, position)))
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
    do not have as an edge of its own but collapsed views do. An edge from a feature or error term leads to another one
    or to the logits; it has no port, and its positions are those of its ends.

    Args:
        source: The node that writes.
        target: The node that reads.
        port: Which reading port of the target: `q`, `k`, `v`, or None where there is only one.
        position: The token position to which the edge is limited, from 0; None means every position.

    Raises:
        BadName: If the source cannot write, the target cannot read, the port is not one of the target's, an edge of
            features has a position, or a feature is joined to a part of the model other than the logits.

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
        if self.of_features or self.target.site is not None:
            _check_features(self)
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

    @property
    def of_features(self) -> bool:
        """Whether the edge starts at a feature or error term, and so is one of a feature circuit."""
        return self.source.kind in _SITE_OF

    def everywhere(self) -> Edge:
        """This edge without its position; an edge between features has none of its own and is returned as it is."""
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


def feature(site: Site, layer: int | None, index: int, position: int | None = None) -> Node:
    """Feature `index` of the dictionary at a site of `layer` (None for the site `input`): `m3.f1042@5`.

    Raises:
        BadName: If there is no such site, or a number makes no sense.
    """
    return Node(_kinds_of(_checked_site(site))[0], layer, index, position)


def error(site: Site, layer: int | None, position: int | None = None) -> Node:
    """The error term of the dictionary at a site of `layer` (None for the site `input`): `m3.err@5`.

    Raises:
        BadName: If there is no such site, or a number makes no sense.
    """
    return Node(_kinds_of(_checked_site(site))[1], layer, None, position)


def _checked_site(site: object) -> Site:
    if not isinstance(site, str) or site not in SITES:
        raise BadName(f"a dictionary stands at the site {', '.join(SITES[:-1])} or {SITES[-1]}; got {_shown(site)}")
    return site


def _check_features(edge: Edge) -> None:
    """Raise unless an edge that touches a feature joins two of them, or leads to the logits."""
    if not edge.of_features:
        raise BadName(f"{edge.target} is read from other features and error terms; got an edge from {edge.source}")
    if edge.target.site is None and edge.target.kind != "logits":
        raise BadName(f"an edge from {edge.source} leads to a feature, an error term or logits; got {edge.target}")
    if edge.position is not None:
        raise BadName(f"an edge from {edge.source} has no position of its own, its ends have; got {edge.position!r}")


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
    node, at = Node.parse(name), None if position is None else int(position)
    if node.site is None:
        return node, letter, at
    return Node(node.kind, node.layer, node.index, at), letter, None  # the position is the feature's own


def _no_such_spelling(text: object) -> str:
    message = f"expected a node: input, a9.h6, a3.kv1, m3, m3.n1021, logits, m3.f7@5 or m3.err; got {_shown(text)}"
    if not isinstance(text, str):
        return message
    name, _, at = text.partition("@")
    if at and _NODE.fullmatch(name):
        return f"{message}; only features and error terms stand at a position, for others write it behind an edge"
    meant = suggestion(text)
    return message if meant is None else f"{message}; did you mean {meant}?"


def _shown(text: object) -> str:
    """The value as Python would write it, cut where a long one would bury the message."""
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


INPUT: Final = Node("input")
"""The embeddings: token plus position, where the model has one."""

LOGITS: Final = Node("logits")
"""The final residual stream, as the final norm and the unembedding read it."""

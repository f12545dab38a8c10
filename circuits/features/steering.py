"""Change features while a model runs, and see what it then writes.

At the site of a dictionary, with f its features there and f' the changed ones,

    x' = x + (f' - f) @ W_dec

so the error term, and every feature that no edit speaks of, stays as it is. Edits:

    add      f' = f + value        also at tokens where the feature is not active
    clamp    f' = value
    scale    f' = f * value
    ablate   f' = 0

An error term can be scaled and ablated too; with all features and the error ablated, what is left at the site is the
bias b_dec. Edits of one feature happen in their order. Dictionaries at several sites act one after the other, each on
what the run with the edits before brings.

    Steered(model, edits=[clamp("m1.f12", 4.0)], dictionaries=[dictionary]).logits(tokens)

Texts written with edits, beside those without, are `circuits.features.generation`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.dictionary import Dictionary
from circuits.features.reading import Place, beside, directions, input_of, place_of
from circuits.features.spelling import spelled_feature
from graphs.nodes import Node
from patching.blocks import Context
from patching.errors import InvalidOption, InvalidTask, NotFinite
from patching.lens import LensModel
from patching.sites import Start, forward

KINDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "add": lambda features, value: features + value,
    "clamp": lambda features, value: torch.full_like(features, value),
    "scale": lambda features, value: features * value,
}
"""What becomes of a feature; ablating is scaling by 0, which is exact."""

Positions = slice | tuple[int, ...] | None


@dataclass(frozen=True)
class Edit:
    """One change of one feature; `add`, `clamp`, `scale` and `ablate` make them.

    Attributes:
        feature: its node (``m1.f12``; ``m1.err`` for an error term; ``m1.f12@5`` at one position), or its number where
            there is one dictionary; None for all features of that dictionary.
        kind: a name from `KINDS`.
        value: of the edit.
        positions: where; None for every position, those of generated tokens included.
    """

    feature: Node | int | None
    kind: str
    value: float
    positions: Positions = None


def add(feature: Node | str | int, value: float, *, positions: slice | Iterable[int] | None = None) -> Edit:
    """Add to a feature's activation, whether it is active or not.

    Args:
        feature: a node (``m1.f12``), or a number where there is one dictionary.
        value: how much.
        positions: token positions, as numbers or a slice; all by default, those of generated tokens included.

    Example:
        >>> add("m1.f12", 2.5, positions=[3, 4]).positions
        (3, 4)
    """
    return _edit(feature, "add", value, positions)


def clamp(feature: Node | str | int, value: float, *, positions: slice | Iterable[int] | None = None) -> Edit:
    """Set a feature's activation; arguments as for `add`."""
    return _edit(feature, "clamp", value, positions)


def scale(feature: Node | str | int, value: float, *, positions: slice | Iterable[int] | None = None) -> Edit:
    """Multiply a feature's activation, or an error term; arguments as for `add`."""
    return _edit(feature, "scale", value, positions)


def ablate(feature: Node | str | int | None, *, positions: slice | Iterable[int] | None = None) -> Edit:
    """Set a feature's activation, or an error term, to 0; None for all features of the one dictionary."""
    return _edit(feature, "scale", 0.0, positions)


def _edit(feature: Node | str | int | None, kind: str, value: float, positions: slice | Iterable[int] | None) -> Edit:
    node = Node.parse(feature) if isinstance(feature, str) else feature
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise InvalidOption(f"expected a finite number to {kind} a feature by or to; got {value!r}.")
    if isinstance(node, Node) and node.site is None:
        raise InvalidOption(f"expected a feature or an error term, such as m1.f12 or m1.err; got {node}.")
    if isinstance(node, Node) and node.is_error and kind != "scale":
        raise InvalidOption(f"expected an error term to be scaled or ablated, it is a vector; got {kind} of {node}.")
    if isinstance(node, bool) or not isinstance(node, Node | int | None):
        raise InvalidOption(f"expected a feature's node or number; got {feature!r}.")
    if positions is not None and not isinstance(positions, slice):
        positions = tuple(positions)
        if not all(isinstance(each, int) and each >= 0 for each in positions):
            raise InvalidOption(f"expected positions of 0 or more; got {positions!r}.")
    if isinstance(node, Node) and node.position is not None:
        if positions is not None:
            raise InvalidOption(f"expected positions in one place; got {node} and positions={positions!r}.")
        node, positions = node.everywhere(), (node.position,)
    return Edit(node, kind, float(value), positions)


class Steered:
    """A model with edits: `logits` and everything below come through it. The model itself is never changed.

    Args:
        model: the model.
        edits: what to change; none gives the model as it is.
        dictionaries: of the features that edits speak of, one per site.

    Raises:
        InvalidOption: an edit of a feature that no dictionary has, or dictionaries that do not fit the model or one
            another.

    Example:
        >>> from circuits.features import create
        >>> from patching import toy
        >>> identity = create("identity", d_in=4, n_features=4, site="attn_out0", dtype=torch.float64)
        >>> steered = Steered(toy.model(), edits=[add(3, 1.5)], dictionaries=[identity])
        >>> (steered.logits(torch.tensor([[0, 1]])) - toy.model().logits(torch.tensor([[0, 1]])))[0, -1].tolist()
        [0.0, 0.0, 0.0, 1.5]
    """

    def __init__(
        self, model: LensModel, *, edits: Iterable[Edit] = (), dictionaries: Iterable[Dictionary] = ()
    ) -> None:
        self.model, self.edits = model, tuple(edits)
        self._sites = _sites(model, tuple(dictionaries), self.edits)

    @torch.no_grad()
    def logits(
        self, tokens: Int[Tensor, "example pos"], *, contexts: tuple[Context, ...] | None = None
    ) -> Float[Tensor, "example pos d_vocab"]:
        """Logits at every position.

        Args:
            tokens: token ids, of one length.
            contexts: of the model for this length, where the caller has them.

        Raises:
            InvalidTask: ids that the model has not.
            NotFinite: the edits make a logit NaN or infinite.

        Cost: one forward, and each dictionary's encoder.
        """
        _check_tokens(self.model, tokens)
        model, length = self.model, tokens.shape[1]
        final: list[Tensor] = []
        inputs: dict[int, Tensor] = {}

        def visit(kind: str, layer: int, value: Tensor, _narrow: bool) -> Tensor:
            for number, site in enumerate(self._sites):
                found = input_of(site.place, model, kind, layer, value)
                if found is not None:
                    inputs[number] = found
                if (kind, layer) == (site.place.site.kind, site.place.site.layer):
                    value = site.edited(inputs.pop(number), value)
            if kind == "resid_post" and layer == len(model.blocks) - 1:
                final.append(value)
            return value

        last = torch.full((len(tokens),), length - 1, device=model.device)
        start = Start(0, 0, 0, model.embed(tokens))
        forward(model, contexts or model.contexts(length), start, visit, answer=last, trim=False)
        logits = model.readout.logits(final[0])
        if not bool(torch.isfinite(logits).all()):
            raise NotFinite(f"logits of {model.name} with {len(self.edits)} edits became NaN or infinite: edit less.")
        return logits


@dataclass(frozen=True)
class _Site:
    """A dictionary where it stands, with the edits of its features."""

    place: Place
    dictionary: Dictionary
    edits: tuple[Edit, ...]

    def edited(
        self, read: Float[Tensor, "example pos d_in"], value: Float[Tensor, "example pos d_out"]
    ) -> Float[Tensor, "example pos d_out"]:
        """The value at the site after the edits. Where they change nothing, it is the same bit for bit."""
        before = self.dictionary.encode(read)
        after, error = before.clone(), before.new_ones(value.shape[1])
        for edit in self.edits:
            rows = _rows(edit.positions, value.shape[1])
            change = KINDS[edit.kind]
            if isinstance(edit.feature, Node) and edit.feature.is_error:
                error[rows] = change(error[rows], edit.value)
                continue
            index = edit.feature.index if isinstance(edit.feature, Node) else edit.feature
            columns = torch.arange(before.shape[-1]) if index is None else torch.tensor([index])
            where = (slice(None), rows[:, None], columns)
            after[where] = change(after[where], edit.value)
        used = (after != before).flatten(0, -2).any(0)
        moved = (after - before)[..., used] @ directions(self.dictionary)[used]
        rest = value if bool((error == 1).all()) else value + (error - 1)[:, None] * self._error(read, before, value)
        return rest if not bool(used.any()) else rest + moved.to(value.dtype)

    def _error(self, read: Tensor, features: Tensor, value: Tensor) -> Tensor:
        """What the dictionary leaves over."""
        return (value - self.dictionary.decode(features, read)).to(value.dtype)


def _rows(positions: Positions, length: int) -> Int[Tensor, " row"]:
    every = torch.arange(length)
    if positions is None:
        return every
    return every[positions] if isinstance(positions, slice) else every[[each for each in positions if each < length]]


def _sites(model: LensModel, dictionaries: tuple[Dictionary, ...], edits: tuple[Edit, ...]) -> tuple[_Site, ...]:
    places = [place_of(dictionary, model) for dictionary in dictionaries]
    names = [str(place.site) for place in places]
    if len(set(names)) < len(names):
        raise InvalidOption(f"expected one dictionary per site; got {', '.join(names)}.")
    owned: list[list[Edit]] = [[] for _ in dictionaries]
    for edit in edits:
        owned[_owner(edit, dictionaries, names)].append(edit)
    return tuple(
        _Site(place, beside(dictionary, model), tuple(own))
        for place, dictionary, own in zip(places, dictionaries, owned, strict=True)
        if own
    )


def _owner(edit: Edit, dictionaries: tuple[Dictionary, ...], names: list[str]) -> int:
    """Which dictionary an edit belongs to."""
    have = ", ".join(
        f"{spelled_feature(name, '0')} to f{own.n_features - 1}" for name, own in zip(names, dictionaries, strict=True)
    )
    if isinstance(edit.feature, Node):
        starts = [spelled_feature(name, "").rpartition(".")[0] for name in names]
        start = str(edit.feature).rpartition(".")[0]
        number, index = (starts.index(start) if start in starts else None), edit.feature.index
    else:
        number, index = (0 if len(names) == 1 else None), edit.feature
    if number is None or not 0 <= (index or 0) < dictionaries[number].n_features:
        said = "all features" if edit.feature is None else f"feature {edit.feature}"
        raise InvalidOption(f"expected a feature of the dictionaries ({have or 'there is none'}); got {said}.")
    return number


def _check_tokens(model: LensModel, tokens: Tensor) -> None:
    if tokens.ndim != 2 or not tokens.numel():
        raise InvalidTask(f"expected token ids [example, pos], at least one; got shape {list(tokens.shape)}.")
    if int(tokens.max()) >= model.d_vocab or int(tokens.min()) < 0:
        raise InvalidTask(
            f"expected token ids from 0 to {model.d_vocab - 1}; got {int(tokens.min())} to {int(tokens.max())}."
        )

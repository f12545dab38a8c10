"""Ablations written into a model's own weights, and taken back bit for bit.

==============  =================================  ====================================================
component       to zero                            to a constant
==============  =================================  ====================================================
head            its rows of W_O become 0           as well, and constant · W_O joins the output bias
neuron          its column of w_out becomes 0      as well, and constant · column joins the output bias
whole MLP       w_out and its bias become 0        w_out becomes 0, its bias the constant
==============  =================================  ====================================================

The model's own forward then computes what an engine run with those components replaced computes. Where that cannot be
so, the edit is refused before anything is written: no bias to hold a constant, a norm between the weights and the
residual stream, weights that two places share.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from graphs.nodes import Node
from patching.errors import InvalidOption

if TYPE_CHECKING:
    from circuits.coar.edit import Edit
    from patching.lens import LensModel

REMEDY = "Use it through the engine: edit.run(model, task)."


@dataclass(eq=False)
class Written:
    """An edit in force: which slices of the weights it changed, and what they held before."""

    edit: Edit
    before: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def put(self, model: LensModel) -> None:
        """Write it; all of it or nothing."""
        try:
            for unit in self.edit.units:
                for weights, value in _changes(model, unit, self.edit.constants.get(unit)):
                    self.before.append((weights, weights.clone()))
                    weights.copy_(value)
        except BaseException:
            self.take_back()
            raise

    @torch.no_grad()
    def take_back(self) -> None:
        """Restore what was there."""
        while self.before:
            weights, held = self.before.pop()
            weights.copy_(held)


_IN_FORCE: weakref.WeakKeyDictionary[nn.Module, list[Written]] = weakref.WeakKeyDictionary()
"""Edits of every model's weights, oldest first. Two `LensModel`s of one model share its entry."""


class Undo:
    """Takes one edit back; call it. A second call does nothing.

    Edits may be undone in any order: later ones are taken back and written again, so the weights are always the
    original ones with the remaining edits on them, and the original ones bit for bit when none remains.
    """

    def __init__(self, model: LensModel, written: Written) -> None:
        self._model, self._written = model, written

    @property
    def done(self) -> bool:
        """Whether the edit has been taken back."""
        return self._written not in _IN_FORCE.get(_module(self._model), [])

    def __call__(self) -> None:
        """Take the edit back."""
        if self.done:
            return
        stack = _IN_FORCE[_module(self._model)]
        place = stack.index(self._written)
        later = stack[place + 1 :]
        for written in reversed(stack[place:]):
            written.take_back()
        del stack[place:]
        for written in later:
            written.put(self._model)
            stack.append(written)
        _forget_sums(self._model)

    def __repr__(self) -> str:
        return f"Undo({self._written.edit}, {'done' if self.done else 'in force'})"


def apply(edit: Edit, model: LensModel) -> Undo:
    """Write an edit into the weights of a model.

    Cost: no forward; memory of the slices that change.

    Returns:
        What takes it back.

    Raises:
        InvalidOption: the weights cannot hold the edit, or it contradicts one that is in force. Nothing has changed.

    Example:
        >>> from circuits.coar.edit import Edit
        >>> from patching import toy
        >>> model = toy.model()
        >>> undo = apply(Edit((Node.parse("a0.h1"),)), model)
        >>> in_force(model)
        (Edit(1 to zero: a0.h1),)
        >>> undo()
        >>> in_force(model)
        ()
    """
    module = _module(model)
    stack = _IN_FORCE.setdefault(module, [])
    for written in stack:
        _ = written.edit | edit  # refuses contradictions
    for unit in edit.units:
        _require_writable(model, unit, edit.constants.get(unit))
    _require_unshared(model, edit.units)
    written = Written(edit)
    try:
        written.put(model)
    finally:
        _forget_sums(model)
    stack.append(written)
    return Undo(model, written)


def in_force(model: LensModel) -> tuple[Edit, ...]:
    """The edits that a model's weights carry, oldest first."""
    return tuple(written.edit for written in _IN_FORCE.get(_module(model), []))


def _module(model: LensModel) -> nn.Module:
    return model.bridge.original_model


def _forget_sums(model: LensModel) -> None:
    """What the model has summed from biases is to be summed again."""
    model.__dict__.pop("bias_prefix", None)


def _changes(model: LensModel, unit: Node, constant: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of weights and what they become. Each is written before the next is asked for."""
    assert unit.layer is not None
    block = model.blocks[unit.layer]
    if unit.kind == "mlp":
        assert block.mlp is not None
        if block.mlp.b_out is not None:
            held = block.mlp.b_out
            yield held, torch.zeros_like(held) if constant is None else constant.to(held)
        yield block.mlp.w_out, torch.zeros_like(block.mlp.w_out)
        return
    weights, bias = _weights(model, unit), _bias(model, unit)
    if constant is not None:
        assert bias is not None
        yield bias, bias + (constant.to(weights) @ weights if unit.kind == "head" else constant.to(weights) * weights)
    yield weights, torch.zeros_like(weights)


def _weights(model: LensModel, unit: Node) -> Tensor:
    """The view of the weights through which a component writes."""
    assert unit.layer is not None
    block = model.blocks[unit.layer]
    if unit.kind == "head":
        return block.attention.out[unit.index]
    assert block.mlp is not None
    return block.mlp.w_out if unit.kind == "mlp" else block.mlp.w_out[:, unit.index]


def _bias(model: LensModel, unit: Node) -> Tensor | None:
    assert unit.layer is not None
    block = model.blocks[unit.layer]
    return block.attention.out_bias if block.mlp is None or unit.kind == "head" else block.mlp.b_out


def _require_writable(model: LensModel, unit: Node, constant: Tensor | None) -> None:
    """Raise unless the weights can hold this component's ablation exactly."""
    if unit.kind not in ("head", "neuron", "mlp"):
        raise InvalidOption(
            f"expected heads, neurons and MLPs, which have weights of their own; got {unit}, which has none. {REMEDY}"
        )
    architecture = model.architecture
    layer, index = unit.layer or 0, unit.index or 0
    mlp = model.blocks[layer].mlp if layer < architecture.n_layers else None
    exists = layer < architecture.n_layers and (
        index < architecture.n_heads if unit.kind == "head" else mlp is not None and index < mlp.w_in.shape[0]
    )
    if not exists:
        raise InvalidOption(f"expected components of {model.name} ({model.graph}); it has no {unit}.")
    post = model.blocks[layer].attention.post if unit.kind == "head" else mlp.post if mlp else None
    if post is not None and (unit.kind == "head" or constant is not None):
        raise InvalidOption(
            f"expected weights that write straight to the residual stream; {model.name} has a norm after them, so "
            f"changing those of {unit} also rescales what its layer's other components write. {REMEDY}"
        )
    if constant is None:
        return
    if _bias(model, unit) is None:
        raise InvalidOption(
            f"expected an output bias in which the constant of {unit} can stand; {model.name} has none there. "
            f"Ablate to zero, or: {REMEDY[0].lower()}{REMEDY[1:]}"
        )
    shape = {"head": model.blocks[layer].attention.out.shape[1:2], "mlp": (model.d_model,)}.get(unit.kind, ())
    if tuple(constant.shape) != tuple(shape):
        raise InvalidOption(
            f"expected a constant of shape {list(shape)} for {unit} of {model.name}; got {list(constant.shape)}. "
            "Is the edit of another model?"
        )


# --- whose weights they are -----------------------------------------------------------------------------------------


def _require_unshared(model: LensModel, units: Sequence[Node]) -> None:
    """Raise where weights to be changed are copies, or serve a second place too."""
    owners = _owners(_module(model))
    pieces = list(_pieces(model))
    for unit in units:
        touched = [_weights(model, unit), *([] if (bias := _bias(model, unit)) is None else [bias])]
        for weights in touched:
            places = owners.get(weights.untyped_storage().data_ptr(), [])
            if not places:
                raise InvalidOption(
                    f"expected weights of {unit} that can be changed in place; {model.name} computes or converts them "
                    f"on the way. {REMEDY}"
                )
            users = [name for name, piece in pieces if _overlap(weights, piece)]
            if len(places) > 1 or len(users) > 1:
                shared = places if len(places) > 1 else users
                raise InvalidOption(
                    f"expected weights of {unit} that nothing else uses; in {model.name} they are shared by "
                    f"{' and '.join(shared)}, which the edit would change too. {REMEDY}"
                )


def _owners(module: nn.Module) -> Mapping[int, list[str]]:
    """By the address of a storage, the parameters that live there; a parameter of two modules counts twice."""
    found: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            clean = f"{path}.{name}".replace("._original_component", "")
            found.setdefault(parameter.untyped_storage().data_ptr(), []).append(clean)
    return found


def _pieces(model: LensModel) -> Iterator[tuple[str, Tensor]]:
    """Everything that the blocks compute with, by name."""
    for layer, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        named: dict[str, Tensor | None] = {f"W_{letter}": weight for letter, weight in attention.weights.items()}
        named |= {f"b_{letter}": bias for letter, bias in attention.biases.items()}
        named |= {"W_O": attention.out, "b_O": attention.out_bias}
        if mlp is not None:
            named |= {"w_in": mlp.w_in, "b_in": mlp.b_in, "w_gate": mlp.w_gate, "b_gate": mlp.b_gate}
            named |= {"w_out": mlp.w_out, "b_out": mlp.b_out}
        yield from ((f"{name} of layer {layer}", tensor) for name, tensor in named.items() if tensor is not None)
    yield "the unembedding", model.readout.unembed


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share memory, judged by the stretches that they span."""
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    (low, high), (start, stop) = _stretch(one), _stretch(other)
    return low < stop and start < high


def _stretch(tensor: Tensor) -> tuple[int, int]:
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start, start + reach + 1

"""What a feature's direction does by itself, read from the weights: logits it raises, features it resembles.

    direct             u = v
    through the norm   u = (v - mean(v)) * weight      (the linear part of a LayerNorm; an RMSNorm does not centre)
    logit effect       u @ W_U                          per unit of activation, at a final residual of scale 1

Dividing by the residual's scale comes on top in a run, the same for all tokens, so the order of tokens is as shown.
Layers in between, which read the direction too, are left out: this is the direct path.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.dictionary import Dictionary
from circuits.features.reading import directions
from patching.blocks import Norm
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES


class Ranked(NamedTuple):
    """The first few of many values per feature, with their places; equal values in the order of places."""

    values: Float[Tensor, "feature rank"]
    places: Int[Tensor, "feature rank"]


@torch.no_grad()
def logit_effects(
    dictionary: Dictionary, model: LensModel, *, k: int = 10, through_norm: bool = True, memory: int = DEFAULT_BYTES
) -> tuple[Ranked, Ranked]:
    """The tokens that every feature's direction raises most, and those it lowers most.

    Args:
        dictionary: whose directions.
        model: whose unembedding.
        k: how many tokens of each.
        through_norm: by way of the final norm's linear part, or directly.
        memory: bytes for the logits that are held at once.

    Returns:
        raised (largest first) and lowered (smallest first).

    Raises:
        InvalidOption: the directions are not of the residual stream.

    Cost: one product [feature, d_model] · [d_model, d_vocab].

    Example:
        >>> from circuits.features import create
        >>> from patching import toy
        >>> raised, lowered = logit_effects(create("identity", d_in=4, n_features=4), toy.model(), k=2)
        >>> raised.places.tolist(), raised.values[3].tolist()
        ([[0, 1], [1, 0], [2, 0], [3, 0]], [1.0, 0.0])
    """
    rows = directions(dictionary).to(model.device, model.dtype)
    if rows.shape[1] != model.d_model:
        raise InvalidOption(
            f"expected directions of the residual stream, of width {model.d_model}; got {rows.shape[1]}. Logit effects "
            "exist for dictionaries that write there."
        )
    if through_norm:
        rows = _normed(rows, model)
    k = min(k, model.d_vocab)
    step = max(1, memory // (4 * model.d_vocab * rows.itemsize))
    raised, lowered = [], []
    for part in rows.split(step):
        logits = part @ model.readout.unembed
        raised.append(first_of(logits, k))
        lowered.append(first_of(-logits, k))
    best, worst = _joined(raised), _joined(lowered)
    return best, Ranked(-worst.values, worst.places)


@torch.no_grad()
def neighbours(dictionary: Dictionary, *, k: int = 8, memory: int = DEFAULT_BYTES) -> Ranked:
    """The features whose directions are most alike, by cosine, without the feature itself.

    Directions of length 0 are like none: their cosines are 0.

    Example:
        >>> from circuits.features import create
        >>> dictionary = create("relu", d_in=2, n_features=3)
        >>> _ = dictionary.W_dec.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
        >>> neighbours(dictionary, k=1).places.tolist()
        [[2], [2], [0]]
    """
    rows = directions(dictionary)
    unit = torch.nn.functional.normalize(rows.double(), dim=-1)
    k = min(k, len(rows) - 1)
    step = max(1, memory // (4 * len(rows) * unit.itemsize))
    parts = []
    for start in range(0, len(rows), step):
        cosines = unit[start : start + step] @ unit.T
        own = torch.arange(len(cosines))
        cosines[own, start + own] = -torch.inf
        parts.append(first_of(cosines, k))
    return _joined(parts)


def first_of(values: Float[Tensor, "row column"], k: int) -> Ranked:
    """The k largest of each row; of equal ones, the first columns.

    `torch.topk` leaves open which of equal values it takes, so rows where that matters are sorted.

    Example:
        >>> first_of(torch.tensor([[1.0, 3.0, 1.0, 3.0]]), 3).places.tolist()
        [[1, 3, 0]]
    """
    if not k:
        return Ranked(values[:, :0], torch.zeros(len(values), 0, dtype=torch.long))
    found = values.topk(k, dim=-1)
    index = found.indices
    open_rows = (values >= found.values[:, -1:]).sum(-1) > k
    if bool(open_rows.any()):
        ordered = values[open_rows].sort(dim=-1, descending=True, stable=True).indices
        index = index.index_put((open_rows,), ordered[:, :k])
    index = index.sort(dim=-1).values
    taken = values.gather(-1, index)
    order = taken.sort(dim=-1, descending=True, stable=True)
    return Ranked(order.values, index.gather(-1, order.indices))


def _normed(rows: Tensor, model: LensModel) -> Tensor:
    norm = model.readout.norm
    if not isinstance(norm, Norm):
        return rows
    if norm.centered:
        rows = rows - rows.mean(-1, keepdim=True)
    return rows if norm.weight is None else rows * norm.weight


def _joined(parts: list[Ranked]) -> Ranked:
    return Ranked(torch.cat([part.values for part in parts]).cpu(), torch.cat([part.places for part in parts]).cpu())

"""Where a dictionary stands in a model, what it reads there, and what its features write.

A dictionary stands at a site (`patching.sites`), whose value it reads and reconstructs. A transcoder stands at the
site that it reconstructs, an MLP's output, and reads what that MLP reads: the stream before it, normed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.features.activations import MLP_IN
from circuits.features.dictionary import Dictionary
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.sites import Site, kind_of

WIDE = ("resid_pre", "attn_out", "resid_mid", "neurons", "mlp_out", "resid_post")
"""Kinds of sites with one vector per token, which is what dictionaries read."""


@dataclass(frozen=True)
class Place:
    """Where a dictionary stands in a model, checked.

    Attributes:
        site: what it reconstructs.
        transcoder: whether it reads the MLP's input instead.
    """

    site: Site
    transcoder: bool

    @property
    def source(self) -> str:
        """What it reads, spelled as for `circuits.features.activations.read`."""
        return f"{MLP_IN}{self.site.layer}" if self.transcoder else str(self.site)


def place_of(dictionary: Dictionary, model: LensModel, *, site: str | None = None) -> Place:
    """Where a dictionary stands.

    Args:
        dictionary: the dictionary.
        model: the model it is to be used with.
        site: where, if the dictionary does not say or should stand elsewhere; spelled ``mlp_out1``.

    Raises:
        InvalidOption: no site is known, the model lacks it, its width is not the dictionary's, or a weight is NaN.

    Example:
        >>> from circuits.features import create
        >>> from patching import toy
        >>> str(place_of(create("relu", d_in=4, n_features=8, site="attn_out0"), toy.model()).site)
        'attn_out0'
    """
    name = dictionary.site if site is None else site
    if name is None:
        raise InvalidOption("expected a dictionary that knows its site; this one has none. Say site='mlp_out1'.")
    found = Site.parse(name)
    if found.kind not in WIDE or found.part is not None or found.position is not None:
        raise InvalidOption(f"expected a site with one vector per token ({', '.join(WIDE)}) and its layer; got {name}.")
    kind_of(found.kind, model.architecture)
    if found.layer >= len(model.blocks):
        raise InvalidOption(
            f"expected a layer from 0 to {len(model.blocks) - 1} of {model.name}; got {name}. Is this dictionary of "
            "another model?"
        )
    transcoder = dictionary.is_transcoder
    if transcoder and found.kind != "mlp_out":
        raise InvalidOption(f"expected a transcoder at an MLP's output, such as mlp_out1; got {name}.")
    mlp = model.blocks[found.layer].mlp
    width = model.d_model if found.kind != "neurons" or mlp is None else mlp.w_in.shape[0]
    if not dictionary.d_in == dictionary.d_out == width:
        raise InvalidOption(
            f"expected a dictionary of width {width}, that of {name} in {model.name}; got d_in = {dictionary.d_in} and "
            f"d_out = {dictionary.d_out}. Is it of another model or site?"
        )
    for what, weight in dictionary.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InvalidOption(f"expected finite weights; {what} of the dictionary at {name} has NaN or infinity.")
    return Place(found, transcoder)


def input_of(place: Place, model: LensModel, kind: str, layer: int, value: Tensor) -> Tensor | None:
    """What the dictionary reads, if this value of a run is where it reads it; else None."""
    before_mlp = "resid_pre" if model.architecture.parallel else "resid_mid"
    if layer != place.site.layer or kind != (before_mlp if place.transcoder else place.site.kind):
        return None
    return model.blocks[layer].mlp_norm(value) if place.transcoder else value


def beside(dictionary: Dictionary, model: LensModel) -> Dictionary:
    """The dictionary where the model is; a copy, if it has to be moved."""
    return dictionary if dictionary.W_dec.device == model.device else copy.deepcopy(dictionary).to(model.device)


def require_feature(dictionary: Dictionary, index: int) -> int:
    """The index of a feature, checked.

    Raises:
        InvalidOption: the dictionary has no such feature.
    """
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < dictionary.n_features:
        raise InvalidOption(f"expected a feature from 0 to {dictionary.n_features - 1}; got {index!r}.")
    return index


def directions(dictionary: Dictionary) -> Float[Tensor, "feature d_out"]:
    """What each feature writes per unit of activation.

    Rows of W_dec; where the architecture divides activations by their lengths (topk with rescale), of length 1.
    """
    rows = dictionary.W_dec.detach()
    return rows / rows.norm(dim=-1, keepdim=True) if getattr(dictionary, "rescale", False) else rows

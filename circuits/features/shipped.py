"""Dictionaries that ship with the package, for every site of the models that ship.

    features.load("zoo:ioi", "mlp_out1")        one of them
    shipped.shipped("zoo:ioi")                  the sites there are
    shipped.card("zoo:ioi", "mlp_out1")         how it was trained, and what it is worth

`experiments.train_dictionaries` made them; the card of each says how, and what it is worth.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from circuits.features.dictionary import Dictionary
from graphs.atomic import read_text
from patching.errors import InvalidOption, InvalidWeights
from patching.sites import Site

ZOO = Path(__file__).parent / "zoo"
CARD = "card.json"
"""How a dictionary was trained, what was measured, and the hash of its weights."""
WEIGHTS = "sae_weights.safetensors"


def models() -> tuple[str, ...]:
    """Models that dictionaries ship for.

    Example:
        >>> models()
        ('zoo:ioi',)
    """
    if not ZOO.is_dir():
        return ()
    return tuple(f"zoo:{path.name}" for path in sorted(ZOO.iterdir()) if any(path.glob(f"*/{CARD}")))


def shipped(model: str) -> tuple[str, ...]:
    """Sites of a model that a dictionary ships for, in the order of the model.

    Args:
        model: a name such as ``zoo:ioi``.

    Example:
        >>> shipped("zoo:ioi")[:4]
        ('resid_pre0', 'attn_out0', 'mlp_out0', 'resid_post0')
    """
    order = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    found = [path.parent.name for path in _folder(model).glob(f"*/{CARD}")]
    parsed = sorted((Site.parse(name) for name in found), key=lambda site: (site.layer, order.index(site.kind)))
    return tuple(str(site) for site in parsed)


def load(model: str, site: str) -> Dictionary:
    """A dictionary that ships.

    Args:
        model: a name such as ``zoo:ioi``.
        site: one of `shipped`.

    Raises:
        InvalidOption: none ships for this model or site.
        InvalidWeights: the file is not the one that its card speaks of.

    Example:
        >>> load("zoo:ioi", "mlp_out1").n_features
        256
    """
    about = card(model, site)
    weights = _folder(model) / site / WEIGHTS
    if not weights.is_file() or hashlib.sha256(weights.read_bytes()).hexdigest() != about["weights_sha256"]:
        raise InvalidWeights(
            f"expected the weights that {weights.parent / CARD} speaks of; {weights.name} is missing or another file. "
            "Install the package again."
        )
    dictionary = Dictionary.load(weights.parent)
    return dictionary.requires_grad_(False)


def card(model: str, site: str) -> dict[str, Any]:
    """How a dictionary that ships was trained, and what was measured on held-out prompts.

    Raises:
        InvalidOption: none ships for this model or site.

    Example:
        >>> card("zoo:ioi", "mlp_out1")["held_out"]["explained_variance"] > 0.9
        True
    """
    if site not in shipped(model):
        raise InvalidOption(f"expected a site out of {', '.join(shipped(model))}; got {site!r}.")
    return json.loads(read_text(_folder(model) / site / CARD))


def _folder(model: str) -> Path:
    if model not in models():
        raise InvalidOption(f"expected a model that dictionaries ship for ({', '.join(models())}); got {model!r}.")
    return ZOO / model.removeprefix("zoo:")

"""File formats of dictionaries: which one stands at a path, and reading it.

========================  ===========================================================  ======================
`sae_lens`                a folder: ``cfg.json``, ``sae_weights.safetensors``            read and written
`circuit_tracer`          one ``layer_<n>.safetensors`` per layer, ``config.yaml``       read and written
`dictionary_learning`     a folder: ``ae.pt``, ``config.json``                           read
========================  ===========================================================  ======================

Our own format is that of sae-lens, so that others open what is trained here. Only safetensors are written. A pickle
(``ae.pt``) is read by a loader that knows tensors and numbers and nothing else, so it cannot run code.
"""

from __future__ import annotations

import os
from pathlib import Path

from circuits.features.dictionary import Dictionary
from patching.errors import InvalidOption, InvalidWeights

KNOWN = (
    "a folder of sae-lens (cfg.json and sae_weights.safetensors), a transcoder of circuit-tracer "
    "(layer_<n>.safetensors), or a folder or ae.pt of dictionary_learning"
)


def load(path: str | os.PathLike[str], *, input_scale: float | None = None) -> Dictionary:
    """Read the dictionary at a path, in whichever known format it is.

    Args:
        path: a folder or a file.
        input_scale: what activations are to be multiplied by, for sae-lens folders whose scale was never folded in.

    Raises:
        InvalidWeights: nothing there is a dictionary, or one that cannot be trusted or run. Nothing is loaded then.
        InvalidOption: an input scale for a format that has none.

    Example:
        >>> from circuits.features.dictionary import create
        >>> create("relu", d_in=4, n_features=8).save("relu")
        >>> load("relu").n_features
        8
    """
    from circuits.features.formats import circuit_tracer, dictionary_learning, sae_lens

    found = Path(path)
    if found.name in (sae_lens.CONFIG_NAME, sae_lens.WEIGHTS_NAME) and found.is_file():
        found = found.parent
    if found.is_dir() and any((found / name).exists() for name in (sae_lens.CONFIG_NAME, sae_lens.WEIGHTS_NAME)):
        return sae_lens.load(found, input_scale=input_scale)
    if input_scale is not None:
        raise InvalidOption(f"expected no input_scale: only folders of sae-lens may leave one to give; got {path}.")
    if found.suffix == ".pt" or (found / dictionary_learning.WEIGHTS_NAME).is_file():
        return dictionary_learning.load(found)
    if found.suffix == ".safetensors":
        return circuit_tracer.load(found)
    if circuit_tracer.layer_files(found):
        layers = circuit_tracer.load_layers(found)
        if len(layers) == 1:
            return next(iter(layers.values()))
        raise InvalidWeights(
            f"expected one dictionary; {path} holds the transcoders of {len(layers)} layers. Give the file of one "
            "layer, or use circuits.features.formats.circuit_tracer.load_layers."
        )
    raise InvalidWeights(f"expected {KNOWN}; {path} {_what_is_there(found)}.")


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        return f"is a folder with {', '.join(names[:5]) or 'nothing'}" + (", …" if len(names) > 5 else "")
    return "is another kind of file" if path.exists() else "is not there; check the path"

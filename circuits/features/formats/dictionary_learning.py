"""Checkpoints of dictionary_learning: ``ae.pt``, a pickled state, and ``config.json`` beside it.

The pickle is read by torch's weights-only loader, which makes tensors and refuses everything that could run code.

=============================  ==============  =====================================================================
`AutoEncoder`                  `relu`          b_dec (``bias``) subtracted
`AutoEncoderNew`               `relu`          b_dec not subtracted
`AutoEncoderTopK`              `topk`
`BatchTopKSAE`                 `batchtopk`     one saved threshold; below 0 it was not set yet, and every z > 0 counts
`MatryoshkaBatchTopKSAE`       `matryoshka`    prefixes from ``group_sizes``
`GatedAutoEncoder`             `gated`
`JumpReluAutoEncoder`          `jumprelu`      b_dec not subtracted
=============================  ==============  =====================================================================

The state stores the transposes of our matrices where it has ``encoder.weight``. dictionary_learning adds biases within
its matrix products, so that features agree with ours up to rounding. Weights are taken as they stand. Some of its
versions and options multiply features by the lengths of their directions; `fold_decoder_norm` gives those.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.features.dictionary import Dictionary, blank
from circuits.features.formats.tensors import fill, number, read_json
from patching.errors import InvalidOption, InvalidWeights

WEIGHTS_NAME = "ae.pt"
CONFIG_NAME = "config.json"

_CLASSES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
}
_NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
    "bias": "b_dec",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}
_SITES = {"resid_post_layer": "resid_post", "mlp_out_layer": "mlp_out", "attention_out_layer": "attn_out"}


def load(path: str | os.PathLike[str]) -> Dictionary:
    """Read a checkpoint.

    Without ``config.json`` the class is that of the tensors' names, where they leave no doubt.

    Args:
        path: the folder, or the file ``ae.pt`` itself.

    Raises:
        InvalidWeights: a file that is missing, cut short, able to run code, not finite or not of a known class.
    """
    file = Path(path) / WEIGHTS_NAME if Path(path).is_dir() else Path(path)
    described = file.parent / CONFIG_NAME
    config = read_json(described) if described.exists() else {}
    trainer = config.get("trainer", {})
    trainer = trainer if isinstance(trainer, dict) else {}
    state = _read_state(file)
    kind = str(trainer["dict_class"]) if "dict_class" in trainer else _guess(state, file)
    if kind not in _CLASSES:
        raise InvalidWeights(f"expected a class out of {', '.join(_CLASSES)}; {file} is of {kind}, which is not read.")
    tensors = _ours(state)
    if tensors.get("W_enc", torch.zeros(0)).ndim != 2:
        raise InvalidWeights(f"expected a matrix of encoder weights in {file}; it has {', '.join(state)}.")
    options = _options(kind, trainer, state, file)
    d_in, n_features = tensors["W_enc"].shape
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE") and "threshold" in tensors:
        threshold = tensors["threshold"].clamp(min=0)
        tensors["threshold"] = threshold.expand(n_features) if threshold.ndim == 0 else threshold
    unused = {"k", "group_sizes"} | ({"threshold"} if kind == "AutoEncoderTopK" else set())
    try:
        made = blank(
            _CLASSES[kind],
            d_in=d_in,
            n_features=n_features,
            site=_site(trainer),
            dtype=tensors["W_enc"].dtype,
            metadata={"dictionary_learning": config} if config else {},
            **options,
        )
    except InvalidOption as error:
        raise InvalidWeights(f"expected a dictionary in {file} that can be made; {error}") from error
    return fill(made, {name: value for name, value in tensors.items() if name not in unused}, file)


def _read_state(file: Path) -> dict[str, Tensor]:
    import pickle  # noqa: TID251 (its error only: torch's weights-only loader raises it)

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidWeights(
            f"expected a checkpoint of tensors alone; {file} is damaged or holds more, which could run code and is "
            "refused. Save it again as safetensors, or its state_dict by torch.save, where you trust it."
        ) from error
    except Exception as error:  # an unpickler raises whatever damage leads it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidWeights(
            f"expected a whole checkpoint; {file} cannot be read ({reason}). It is missing or cut short: copy it again."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InvalidWeights(f"expected tensors by name in {file}; it holds something else.")
    return dict(state)


def _ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in our names and shapes."""
    flipped = {
        name: value.T if name.endswith(".weight") and value.ndim == 2 else value for name, value in state.items()
    }
    return {_NAMES.get(name, name): value for name, value in flipped.items()}


def _guess(state: Mapping[str, Tensor], file: Path) -> str:
    certain: dict[str, Callable[[], bool]] = {
        "GatedAutoEncoder": lambda: "gate_bias" in state,
        "MatryoshkaBatchTopKSAE": lambda: "group_sizes" in state,
        "JumpReluAutoEncoder": lambda: "W_enc" in state and "threshold" in state and "k" not in state,
        "AutoEncoderNew": lambda: "decoder.bias" in state,
        "AutoEncoder": lambda: "bias" in state and "encoder.weight" in state,
    }
    for kind, holds in certain.items():
        if holds():
            return kind
    raise InvalidWeights(
        f"expected {CONFIG_NAME} beside {file}: its tensors ({', '.join(state)}) fit more than one class. Copy it, too."
    )


def _options(kind: str, trainer: Mapping[str, Any], state: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"subtract_b_dec": kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")}
    if kind in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        k = number(state["k"], "k", file) if "k" in state else trainer.get("k")
        if k is None:
            raise InvalidWeights(f"expected k in {file} or {CONFIG_NAME}; it is in neither.")
        options["k"] = k
    if kind == "MatryoshkaBatchTopKSAE" and "group_sizes" in state:
        options["prefixes"] = tuple(state["group_sizes"].cumsum(0).tolist())
    return options


def _site(trainer: Mapping[str, Any]) -> str | None:
    """The site that a trainer's ``submodule_name`` means, where its spelling is a known one."""
    match = re.fullmatch(r"(.+?)_([0-9]+)", str(trainer.get("submodule_name", "")))
    return f"{_SITES[match[1]]}{match[2]}" if match and match[1] in _SITES else None

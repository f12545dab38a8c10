"""Per-layer transcoders of circuit-tracer: one ``layer_<n>.safetensors`` each, and ``config.yaml`` beside them.

Tensors: W_enc [feature, d_in], the transpose of ours, W_dec [feature, d_out], b_enc, b_dec, and where there are any
W_skip [d_out, d_in] and ``activation_function.threshold`` [feature] (JumpReLU) or k, one number (top-k, which keeps
negative values: `Transcoder.rectify` is False). The files of Gemma Scope 2 are read, too: w_enc [d_in, feature],
w_dec, threshold, affine_skip_connection [d_in, d_out].

circuit-tracer adds the bias within its matrix product, so that features agree with ours up to rounding.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.features.dictionary import Dictionary, blank
from circuits.features.formats.hook_names import site_of
from circuits.features.formats.tensors import DTYPES, fill, number, read_safetensors, require_finite
from circuits.features.transcoders import SkipTranscoder, Transcoder
from graphs.atomic import replacing, write_text
from patching.errors import InvalidOption, InvalidWeights

CONFIG_NAME = "config.yaml"
_THRESHOLD = "activation_function.threshold"
_GEMMA_SCOPE_2 = {"w_enc": "W_enc", "w_dec": "W_dec", "threshold": "threshold", "affine_skip_connection": "W_skip"}
_INPUT_HOOK, _OUTPUT_HOOK = "hook_resid_mid", "hook_mlp_out"


def layer_files(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """The files ``layer_<n>.safetensors`` of a folder by their layers, in order."""
    found = Path(folder).glob("layer_*.safetensors") if Path(folder).is_dir() else ()
    named = {path: re.fullmatch(r"layer_([0-9]+)", path.stem) for path in found}
    return dict(sorted((int(match[1]), path) for path, match in named.items() if match))


def load_layers(folder: str | os.PathLike[str]) -> dict[int, Dictionary]:
    """Read every transcoder of a folder.

    Returns:
        The transcoders by layer.

    Raises:
        InvalidWeights: there are none, or a file as in `load`.
    """
    files = layer_files(folder)
    if not files:
        raise InvalidWeights(f"expected files layer_<n>.safetensors in {folder}; there are none.")
    return {layer: load(path) for layer, path in files.items()}


def load(path: str | os.PathLike[str]) -> Dictionary:
    """Read one transcoder.

    The layer is that of the file's name; what it reads and writes stands in ``config.yaml`` (``feature_input_hook``,
    ``feature_output_hook``), if there is one.

    Args:
        path: the file.

    Raises:
        InvalidWeights: a file that is missing, cut short, not finite, or not a transcoder of this layout.
    """
    tensors, _ = read_safetensors(path)
    tensors, options = _ours(tensors, path)
    encoder, decoder = tensors["W_enc"], tensors["W_dec"]
    config = _flat_yaml(Path(path).parent / CONFIG_NAME)
    layer = re.search(r"([0-9]+)$", Path(path).stem)
    hook = f"blocks.{layer[1]}.{config.get('feature_output_hook', _OUTPUT_HOOK)}" if layer else None
    metadata: dict[str, Any] = {"model_name": config["model_name"]} if "model_name" in config else {}
    if layer:
        metadata["hook_name"] = f"blocks.{layer[1]}.{config.get('feature_input_hook', _INPUT_HOOK)}"
    if encoder.dtype not in DTYPES.values():
        raise InvalidWeights(f"expected weights of {', '.join(DTYPES)}; {path} has {encoder.dtype}.")
    try:
        made = blank(
            "skip_transcoder" if "W_skip" in tensors else "transcoder",
            d_in=encoder.shape[0],
            n_features=encoder.shape[1],
            d_out=decoder.shape[1],
            site=site_of(hook),
            dtype=encoder.dtype,
            metadata=metadata,
            **options,
        )
    except InvalidOption as error:
        raise InvalidWeights(f"expected a transcoder in {path} that can be made; {error}") from error
    return fill(made, tensors, path)


def save(dictionary: Dictionary, path: str | os.PathLike[str]) -> None:
    """Write a transcoder as one file of circuit-tracer.

    Args:
        dictionary: a transcoder; circuit-tracer runs no others.
        path: the file; the name ``layer_<n>.safetensors`` says its layer.

    Raises:
        InvalidOption: it is no transcoder, its output is not as wide as its input, or it is a top-k one that sets
            negative values to 0, which circuit-tracer does not.
        InvalidWeights: weights that are not finite.
        WriteFailed: the system refuses; what stood there is untouched.

    Example:
        >>> from circuits.features.dictionary import create
        >>> save(create("transcoder", d_in=4, n_features=8), "layer_0.safetensors")
        >>> load("layer_0.safetensors").site
        'mlp_out0'
    """
    from safetensors.torch import save as to_bytes

    if not isinstance(dictionary, Transcoder):
        raise InvalidOption(f"expected a transcoder to write for circuit-tracer; got {dictionary.architecture}.")
    if dictionary.d_in != dictionary.d_out:
        raise InvalidOption(
            f"expected as wide an output as input to write for circuit-tracer; got {dictionary.d_in} and "
            f"{dictionary.d_out}. Use Dictionary.save."
        )
    if dictionary.k is not None and dictionary.rectify:
        raise InvalidOption(
            "expected rectify=False of a top-k transcoder to write for circuit-tracer, which keeps negative values "
            "among the k largest; use Dictionary.save."
        )
    tensors = {name: getattr(dictionary, name) for name in ("W_dec", "b_enc", "b_dec")}
    tensors["W_enc"] = dictionary.W_enc.T
    if dictionary.threshold is not None:
        tensors[_THRESHOLD] = dictionary.threshold
    if isinstance(dictionary, SkipTranscoder):
        tensors["W_skip"] = dictionary.W_skip
    tensors = {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}
    require_finite(tensors, "the transcoder to save")
    if dictionary.k is not None:
        tensors["k"] = torch.tensor(dictionary.k)
    with replacing(path) as file:
        file.write(to_bytes(tensors))


def save_layers(layers: Mapping[int, Dictionary], folder: str | os.PathLike[str], *, model_name: str) -> None:
    """Write the transcoders of a model's layers, and the ``config.yaml`` that circuit-tracer starts from.

    Args:
        layers: transcoders by layer, every layer from 0 on, as circuit-tracer needs them.
        folder: where to; it is made.
        model_name: as circuit-tracer would load the model.

    Raises:
        InvalidOption: a layer is missing, the transcoders read different hooks, or one as in `save`.
        WriteFailed: the system refuses.
    """
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise InvalidOption(f"expected transcoders of every layer from 0 on; got those of {sorted(layers)}.")
    hooks = {
        str(dictionary.metadata.get("hook_name", f"blocks.{layer}.{_INPUT_HOOK}")).removeprefix(f"blocks.{layer}.")
        for layer, dictionary in layers.items()
    }
    if len(hooks) > 1:
        raise InvalidOption(
            f"expected transcoders that read the same hook in every layer; got {', '.join(sorted(hooks))}."
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    for layer, dictionary in sorted(layers.items()):
        save(dictionary, Path(folder) / f"layer_{layer}.safetensors")
    lines = {"model_name": model_name, "model_kind": "transcoder_set", "feature_input_hook": hooks.pop()}
    lines |= {"feature_output_hook": _OUTPUT_HOOK}
    write_text(Path(folder) / CONFIG_NAME, "".join(f'{key}: "{value}"\n' for key, value in lines.items()))


def _ours(tensors: dict[str, Tensor], path: object) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors in our names and shapes, and the options that they imply."""
    options: dict[str, Any] = {}
    new = "w_enc" in tensors
    tensors = {_GEMMA_SCOPE_2.get(name, name) if new else name: value for name, value in tensors.items()}
    if _THRESHOLD in tensors:
        tensors["threshold"] = tensors.pop(_THRESHOLD)
    if "k" in tensors:
        options |= {"k": number(tensors.pop("k"), "k", path), "rectify": False}
    if "threshold" in tensors:
        options["threshold"] = 0.0
    wrong = [name for name in ("W_enc", "W_dec") if name not in tensors or tensors[name].ndim != 2]
    if wrong:
        raise InvalidWeights(
            f"expected the matrices W_enc and W_dec of a transcoder; {path} has no {wrong[0]} ({', '.join(tensors)})."
        )
    if not new:
        tensors["W_enc"] = tensors["W_enc"].T
    elif "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T
    return tensors, options


def _flat_yaml(path: Path) -> dict[str, str]:
    """The lines ``key: value`` at the top level of a YAML file; nothing nested is needed here."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = (re.fullmatch(r"([A-Za-z_]\w*):[ \t]+([^#\[{|>]+?)[ \t]*(?:#.*)?", line) for line in lines)
    return {match[1]: match[2].strip("'\"") for match in found if match}

"""The folders of sae-lens: ``cfg.json`` and ``sae_weights.safetensors``. Our own format, too.

Read: every architecture that sae-lens 6.54 writes for inference, checkpoints of its BatchTopK and Matryoshka training,
and the configurations of versions before 6 (`legacy`). `encode` and `decode` give the same bits as sae-lens.

Refused by name: activations normalised by each row (``layer_norm``, ``constant_norm_rescale``), whitening, fine-tuning
scales, and ``expected_average_only_in`` with a scale that nobody wrote down. sae-lens itself runs the last as if the
caller had scaled the activations; here that takes ``input_scale=``.

Written: what sae-lens 6 opens, see `Dictionary.save`. What it has no place for stands in ``metadata``, under
``wiretrace`` and, as sae-lens does it, under ``training_architecture``. The file of weights and the description carry
the same mark, so that halves of two dictionaries, which a crash in the middle of replacing one by another could leave,
are noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.features.architectures import BatchTopK, Matryoshka, Tied, TopK
from circuits.features.dictionary import Dictionary, blank
from circuits.features.formats.hook_names import hook_of, site_of
from circuits.features.formats.legacy import modern
from circuits.features.formats.tensors import DTYPES, fill, integer, read_json, read_safetensors, require_finite
from circuits.features.transcoders import SkipTranscoder, Transcoder
from graphs.atomic import replacing
from graphs.errors import WriteFailed
from patching.errors import InvalidOption, InvalidWeights

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"
SCALE_NAME = "activation_scaler.json"
LAYOUT = "6.54.0"
"""The version of sae-lens whose layout is written."""

_OURS = "wiretrace"
_MARK = "wiretrace-mark"
_TRAINED_AS = {"batchtopk": "batchtopk", "matryoshka_batchtopk": "matryoshka"}
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder", "topk_transcoder")
_ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", *_TRANSCODERS, *_TRAINED_AS, "identity")


# ------------------------------------------------------------------------------------------------------ reading


def load(path: str | os.PathLike[str], *, input_scale: float | None = None) -> Dictionary:
    """Read a folder of sae-lens or of `save`.

    Args:
        path: the folder.
        input_scale: what activations were multiplied by in training, where the folder says that they were and not by
            how much. It is folded into the weights.

    Raises:
        InvalidWeights: a file is missing, cut short, of the wrong shape, not finite, or of another dictionary than the
            other file; or the dictionary does something that this library does not.
        InvalidOption: an input scale where the folder needs none.
    """
    folder = Path(path)
    config = modern(read_json(folder / CONFIG_NAME), folder / CONFIG_NAME)
    _require_plain(config, folder)
    tensors, header = read_safetensors(folder / WEIGHTS_NAME)
    _require_one_dictionary(config, header, folder)
    dtype = DTYPES.get(str(config.get("dtype", "float32")).removeprefix("torch."))
    if dtype is None:
        raise InvalidWeights(f"expected dtype out of {', '.join(DTYPES)} in {folder}; got {config['dtype']!r}.")
    tensors = _renamed({name: value.to(dtype) for name, value in tensors.items()}, folder)
    try:
        made = _made(config, tensors, dtype, folder)
    except InvalidOption as error:
        raise InvalidWeights(f"expected a dictionary in {folder} that can be made; {error}") from error
    scale = _scale_to_fold(config, folder, input_scale)
    return made if scale is None else made.fold_input_scale(scale)


def _require_plain(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse by name what would silently be computed otherwise."""
    architecture, normalised = config.get("architecture"), config.get("normalize_activations", "none")
    if architecture not in _ARCHITECTURES:
        raise InvalidWeights(
            f"expected an architecture out of {', '.join(_ARCHITECTURES)}; {folder} has {architecture!r}, which this "
            "library does not run."
        )
    if normalised not in ("none", "expected_average_only_in"):
        raise InvalidWeights(
            f"expected normalize_activations none or expected_average_only_in; {folder} has {normalised!r}, which this "
            "library does not run. Convert it with sae-lens to a dictionary of plain activations, if that is possible."
        )
    if config.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise InvalidWeights(
            f"expected reshape_activations none or hook_z; {folder} has {config['reshape_activations']!r}."
        )


def _require_one_dictionary(config: Mapping[str, Any], header: Mapping[str, str], folder: Path) -> None:
    described = _block(config).get("mark")
    if described != header.get(_MARK) and described is not None:
        raise InvalidWeights(
            f"expected {CONFIG_NAME} and {WEIGHTS_NAME} of the same dictionary; those in {folder} are of two, as when "
            "saving was interrupted. Save it again."
        )


def _block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = config.get("metadata")
    block = metadata.get(_OURS) if isinstance(metadata, dict) else None
    return block if isinstance(block, dict) else {}


def _renamed(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Tensors of old checkpoints under today's names."""
    if "log_threshold" in tensors and "threshold" not in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    scale = tensors.pop("scaling_factor", None)
    if scale is not None and not torch.allclose(scale, torch.ones_like(scale)):
        raise InvalidWeights(
            f"expected no scaling_factor other than 1; {folder} has fine-tuned ones, which this library does not run."
        )
    return tensors


def _made(config: Mapping[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> Dictionary:
    shape: dict[str, Any] = {"d_in": integer(config, "d_in", folder), "n_features": integer(config, "d_sae", folder)}
    written, options = config["architecture"], dict[str, Any]()
    if written in _TRANSCODERS:
        shape["d_out"] = integer(config, "d_out", folder)
        options["subtract_b_dec"] = bool(config.get("apply_b_dec_to_input", False))
    elif written != "identity":
        options["subtract_b_dec"] = bool(config.get("apply_b_dec_to_input", True))
    name = _our_name(config)
    if name in ("topk", "transcoder", "skip_transcoder") and "topk" in written:
        options["k"] = integer(config, "k", folder)
    if name == "topk":
        options["rescale"] = bool(config.get("rescale_acts_by_decoder_norm", False))
    if written == "topk_transcoder":
        options["rectify"] = bool(config.get("rectify", True))
    if written.startswith("jumprelu") and name.endswith("transcoder"):
        options["threshold"] = 0.0
    if name in _TRAINED_AS.values():
        options |= _training_options(config, name)
    metadata, site = _metadata(config)
    made = blank(name, **shape, site=site, dtype=dtype, metadata=metadata, **options)
    if isinstance(made, Tied):
        _require_tied(tensors, folder)
        tensors = {name: value for name, value in tensors.items() if name != "W_enc"}
    if isinstance(made, BatchTopK) and written in _TRAINED_AS:
        return _from_checkpoint(made, tensors, config, folder)
    return fill(made, tensors, folder)


def _our_name(config: Mapping[str, Any]) -> str:
    """The architecture as `create` calls it."""
    written, ours = config["architecture"], _block(config).get("architecture")
    details = _training_details(config)
    if written == "standard":
        return "tied" if ours == "tied" else "relu"
    if written in _TRANSCODERS:
        skips = "skip" in written or ours == "skip_transcoder"
        return "skip_transcoder" if skips else "transcoder"
    if written in _TRAINED_AS:
        return _TRAINED_AS[written]
    if written == "jumprelu" and isinstance(details.get("k"), int | float):
        return _TRAINED_AS.get(str(_metadata_of(config).get("training_architecture")), "jumprelu")
    return written


def _metadata_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = config.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _training_details(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What sae-lens 6.54 keeps of the training's configuration, and older checkpoints have at the top."""
    details = _metadata_of(config).get("training_architecture_details")
    return {**config, **(details if isinstance(details, dict) else {})}


def _training_options(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    details = _training_details(config)
    options: dict[str, Any] = {"k": details.get("k")}
    widths = details.get("matryoshka_widths")
    if name == "matryoshka" and isinstance(widths, list) and widths:
        options["prefixes"] = tuple(widths)
    return options


def _metadata(config: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What `save` did not add itself, and the site."""
    block, metadata = _block(config), dict(_metadata_of(config))
    transcodes = config["architecture"] in _TRANSCODERS
    site = block.get("site") or site_of(metadata.get("hook_name_out" if transcodes else "hook_name"))
    if block:
        added = [_OURS, "sae_lens_version", "sae_lens_training_version", "training_architecture"]
        added += ["training_architecture_details", "hook_name_out" if transcodes else "hook_name"]
        metadata = {key: value for key, value in metadata.items() if key not in added}
    if config.get("reshape_activations") == "hook_z":
        metadata["reshape_activations"] = "hook_z"
    return metadata, site


def _require_tied(tensors: Mapping[str, Tensor], folder: Path) -> None:
    encoder, decoder = tensors.get("W_enc"), tensors.get("W_dec")
    if encoder is None or decoder is None or not torch.equal(encoder.T, decoder):
        raise InvalidWeights(f"expected W_enc to be the transpose of W_dec in the tied dictionary {folder}; it is not.")


def _from_checkpoint(
    made: BatchTopK, tensors: dict[str, Tensor], config: Mapping[str, Any], folder: Path
) -> Dictionary:
    """From the state of sae-lens's training: one threshold for all, on features times the directions' lengths."""
    threshold = tensors.pop("topk_threshold", None)
    if threshold is None or threshold.numel() != 1:
        raise InvalidWeights(f"expected one topk_threshold in {folder}, a checkpoint of training; it is not there.")
    require_finite({"topk_threshold": threshold}, folder)
    filled = fill(made, {**tensors, "threshold": torch.zeros_like(made.threshold)}, folder)
    folded = filled.fold_decoder_norm() if config.get("rescale_acts_by_decoder_norm", True) else filled
    assert isinstance(folded, BatchTopK)
    folded.threshold.fill_(threshold.item())
    return folded


def _scale_to_fold(config: Mapping[str, Any], folder: Path, given: float | None) -> float | None:
    if config.get("normalize_activations", "none") == "none":
        if given is not None:
            raise InvalidOption(f"expected no input_scale: {folder} is of plain activations.")
        return None
    if given is None and (folder / SCALE_NAME).exists():
        given = _scale_in(folder / SCALE_NAME)
    if given is None:
        raise InvalidWeights(
            f"expected the scale of its activations: {folder} says expected_average_only_in and does not hold it. "
            "Give input_scale=, what activations were multiplied by in training (1.0 if you scale them yourself)."
        )
    return given


def _scale_in(path: Path) -> float | None:
    found = read_json(path).get("scaling_factor")
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if found is not None and not (number and math.isfinite(found) and found > 0):
        raise InvalidWeights(f"expected a scaling_factor above 0 in {path}; got {found!r}.")
    return found


# ------------------------------------------------------------------------------------------------------ writing


def save(dictionary: Dictionary, path: str | os.PathLike[str]) -> None:
    """Write a dictionary as a folder of sae-lens; `Dictionary.save` says more.

    Both files are written whole before either takes the place of an older one.

    Raises:
        WriteFailed: the system refuses; what stood there is untouched.
        InvalidWeights: weights that are not finite.
        InvalidOption: metadata that JSON cannot hold.
    """
    from safetensors.torch import save as to_bytes

    folder = Path(path)
    tensors = _tensors(dictionary)
    require_finite(tensors, "the dictionary to save")
    mark = _marked(tensors)
    config = _json(_config(dictionary, mark))
    data = to_bytes(tensors, metadata={_MARK: mark})
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteFailed(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    try:
        with replacing(folder / WEIGHTS_NAME) as weights, replacing(folder / CONFIG_NAME) as described:
            for file, content in ((weights, data), (described, config.encode())):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except WriteFailed:
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise


def _tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    named = {**dict(dictionary.named_parameters()), **dict(dictionary.named_buffers())}
    if isinstance(dictionary, Tied):
        named["W_enc"] = dictionary.W_enc
    return {
        name: named[name].detach().cpu().contiguous().to(dictionary.dtype)
        for name in sorted(named)
        if not name.startswith("_")
    }


def _marked(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in tensors.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _config(dictionary: Dictionary, mark: str) -> dict[str, Any]:
    dtype = str(dictionary.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InvalidOption(f"expected weights of {', '.join(DTYPES)} to save; got {dtype}. Convert them first.")
    metadata = dict(dictionary.metadata)
    heads = dictionary.site is not None and dictionary.site.rstrip("0123456789") == "z"
    reshape = metadata.pop("reshape_activations", "hook_z" if heads else "none")
    written, extra, training = _named(dictionary)
    hook = hook_of(dictionary.site)
    if hook is not None:
        metadata["hook_name_out" if dictionary.is_transcoder else "hook_name"] = hook
    ours = {"architecture": dictionary.architecture, "site": dictionary.site, "mark": mark}
    return {
        "architecture": written,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.subtract_b_dec,
        "normalize_activations": "none",
        "reshape_activations": reshape,
        **extra,
        "metadata": {**metadata, "sae_lens_version": LAYOUT, **training, _OURS: ours},
    }


def _named(dictionary: Dictionary) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The architecture as sae-lens calls it, what it needs beside it, and what it keeps of training."""
    if isinstance(dictionary, Transcoder):
        extra: dict[str, Any] = {"d_out": dictionary.d_out}
        skips = isinstance(dictionary, SkipTranscoder)
        if dictionary.k is not None:
            return "topk_transcoder", {**extra, "k": dictionary.k, "rectify": dictionary.rectify}, {}
        jumps = "" if dictionary.threshold is None else "jumprelu_"
        return jumps + ("skip_transcoder" if skips else "transcoder"), extra, {}
    if isinstance(dictionary, TopK):
        return "topk", {"k": dictionary.k, "rescale_acts_by_decoder_norm": dictionary.rescale}, {}
    if isinstance(dictionary, BatchTopK):
        details: dict[str, Any] = {"k": dictionary.k}
        if isinstance(dictionary, Matryoshka):
            details["matryoshka_widths"] = list(dictionary.prefixes)
        name = next(theirs for theirs, ours in _TRAINED_AS.items() if ours == dictionary.architecture)
        return "jumprelu", {}, {"training_architecture": name, "training_architecture_details": details}
    return {"relu": "standard", "tied": "standard"}.get(dictionary.architecture, dictionary.architecture), {}, {}


def _json(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(config, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidOption(
            f"expected metadata that JSON can hold (text, finite numbers, lists, dicts): {error}."
        ) from error

"""Native models in folders: those of TransformerLens itself, which Hugging Face has no class for.

A model without MLPs, say. The folder looks like one of Hugging Face's: `config.json`, `model.safetensors` and the
tokenizer's files; `LensModel.load` takes either. The configuration has the usual names:

    {
      "model_type": …,  (`patching.lens.NATIVE_TYPE`)
      "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16, "hidden_size": 64,
      "intermediate_size": null,          (no MLPs)
      "hidden_act": "gelu_new", "normalization": "LN", "layer_norm_eps": 1e-05,
      "position_embedding": "standard", "max_position_embeddings": 40, "vocab_size": 100
    }

The weights are named by their place: `tok_embed.weight`, `pos.weight`, `layers.0.ln1.weight`, `layers.0.attn.q.weight`
(rows are outputs, head after head), `layers.0.mlp.fc_in.weight`, `ln_out.weight`, `head.weight`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from patching.errors import InvalidWeights, ModelNotFound
from patching.lens import NATIVE_TYPE, native_bridge
from patching.model_sources import readable_tokenizer

WEIGHTS: Final = "model.safetensors"

_NAMES: Final[Mapping[str, str]] = {
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "head_dim": "d_head",
    "hidden_size": "d_model",
    "intermediate_size": "d_mlp",
    "hidden_act": "act_fn",
    "normalization": "normalization_type",
    "layer_norm_eps": "eps",
    "position_embedding": "positional_embedding_type",
    "max_position_embeddings": "n_ctx",
    "vocab_size": "d_vocab",
}
"""What each setting of the file is called by TransformerLens."""

_WRAPPER: Final = "._original_component"

_BIAS: Final = "head.bias"
"""A weight that TransformerLens 3 makes, of zeros, and 4 does not: saved if it is not zero, loaded if it is there."""


def is_native(folder: Path) -> bool:
    """Tell whether a folder holds a native model.

    Example:
        >>> is_native(Path("nowhere"))
        False
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") == NATIVE_TYPE


def save(bridge: Any, folder: Path) -> None:
    """Write a native model's configuration and weights; the tokenizer saves itself, with `save_pretrained`.

    Args:
        bridge: From `patching.lens.native_bridge`. Its attention is causal, over all positions, and with as many keys
            as queries; its MLPs have no gate.
        folder: That exists; files there are replaced.

    Raises:
        OSError: The folder cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> bridge = native_bridge(
        ...     d_model=4, d_head=2, n_heads=2, n_layers=1, n_ctx=8, d_vocab=5, attn_only=True, act_fn="relu",
        ...     normalization_type="LN", seed=0,
        ... )
        >>> with TemporaryDirectory() as folder:
        ...     save(bridge, Path(folder))
        ...     again = load(Path(folder), dtype=torch.float32)
        >>> tokens = torch.tensor([[1, 2, 3]])
        >>> torch.equal(again(tokens), bridge(tokens))
        True
    """
    from safetensors.torch import save_file

    settings: dict[str, Any] = {"model_type": NATIVE_TYPE, "architectures": ["TransformerLensNative"]}
    settings |= {name: getattr(bridge.cfg, ours) for name, ours in _NAMES.items()}
    settings["intermediate_size"] = None if bridge.cfg.attn_only else bridge.cfg.d_mlp
    settings["dtype"] = str(bridge.cfg.dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    weights = {name: weight.detach().contiguous() for name, weight in _named(bridge).items()}
    if _BIAS in weights and not bool(weights[_BIAS].any()):
        del weights[_BIAS]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def load(folder: Path, *, dtype: torch.dtype) -> Any:
    """Read a native model: a bridge, ready for `LensModel.wrap`.

    Args:
        folder: Of which `is_native` is true.
        dtype: Of the weights.

    Raises:
        ModelNotFound: The configuration names no model that can be built.
        InvalidWeights: A weight is missing, of another shape, or has no place in the model.
    """
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise InvalidWeights(f"expected the weights of a native model in {folder / WEIGHTS}; there is no such file.")
    bridge, weights = _empty(folder, dtype=dtype), load_file(folder / WEIGHTS)
    if _BIAS in weights:
        bridge.unembed.original_component.bias = nn.Parameter(torch.zeros(bridge.cfg.d_vocab, dtype=dtype))
    places = _named(bridge)
    wrong = sorted(set(weights) ^ set(places))
    wrong += [name for name in weights if name in places and weights[name].shape != places[name].shape]
    if wrong:
        raise InvalidWeights(
            f"expected the weights that {folder / 'config.json'} describes; {len(wrong)} are missing, too many or of "
            f"another shape ({', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}). Save the model again."
        )
    with torch.no_grad():
        for name, weight in weights.items():
            places[name].copy_(weight)
    return bridge


def tokenizer(folder: Path) -> Any:
    """The tokenizer in the folder, or None.

    Raises:
        InvalidWeights: It is there and cannot be read.
    """
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        return None
    with readable_tokenizer(folder):
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _empty(folder: Path, *, dtype: torch.dtype) -> Any:
    """A random model of the configuration's shape."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    missing = [name for name in _NAMES if name not in settings]
    if missing:
        raise ModelNotFound(
            f"expected {', '.join(_NAMES)} in {folder / 'config.json'}; it lacks {', '.join(missing)}. Save the model "
            "again, or write them in."
        )
    shape = {ours: settings[name] for name, ours in _NAMES.items()}
    if shape["d_mlp"] is None:
        del shape["d_mlp"]
    try:
        return native_bridge(dtype=dtype, attn_only=settings["intermediate_size"] is None, **shape)
    except Exception as error:  # a wrong setting meets whatever code uses it first
        raise ModelNotFound(
            f"expected settings that a model can be built from in {folder / 'config.json'}; {error}."
        ) from error


def _named(bridge: Any) -> dict[str, nn.Parameter]:
    """Every weight by its place, without the names of the wrappers."""
    return {name.replace(_WRAPPER, ""): weight for name, weight in bridge.original_model.named_parameters()}

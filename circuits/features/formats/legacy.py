"""Configurations of sae-lens before version 6, brought to today's keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from patching.errors import InvalidWeights

_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_ABOUT_THE_MODEL = (
    "model_name", "hook_name", "model_class_name", "hook_head_index", "model_from_pretrained_kwargs", "prepend_bos",
    "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice", "dataset_path", "sae_lens_version",
    "sae_lens_training_version", "hook_name_out", "hook_head_index_out", "hf_hook_name", "hf_hook_name_out",
)  # fmt: skip


def modern(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """A configuration with the keys of sae-lens 6, whichever version wrote it.

    Before version 6 everything stood at the top: ``hook_point`` for the hook, ``activation_fn_str: topk`` with
    ``activation_fn_kwargs.k`` for a top-k dictionary (called ``standard``), a bool for ``normalize_activations``, and a
    hook ending in ``hook_z`` meant flattened heads.

    Args:
        config: as read.
        where: it was read from, for errors.

    Raises:
        InvalidWeights: an activation function that this library does not run (sae-lens 6 runs such dictionaries
            with a ReLU).

    Example:
        >>> new = modern({"hook_point": "blocks.0.hook_mlp_out", "activation_fn_str": "topk",
        ...               "activation_fn_kwargs": {"k": 4}, "normalize_activations": False}, "cfg.json")
        >>> new["architecture"], new["k"], new["normalize_activations"], new["metadata"]["hook_name"]
        ('topk', 4, 'none', 'blocks.0.hook_mlp_out')
    """
    if _written_by(config) >= 6:
        return dict(config)
    new = {_RENAMED.get(key, key): value for key, value in config.items()}
    new.setdefault("architecture", "standard")
    new.setdefault("prepend_bos", True)
    new.setdefault("apply_b_dec_to_input", True)
    if new.get("reshape_activations") is None:
        new["reshape_activations"] = "hook_z" if "hook_z" in str(new.get("hook_name", "")) else "none"
    _set_activation(new, where)
    normalised = new.get("normalize_activations")
    if normalised is None or isinstance(normalised, bool):
        new["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    about = {key: new[key] for key in _ABOUT_THE_MODEL if key in new}
    nested = new.get("metadata")
    new["metadata"] = {**(nested if isinstance(nested, dict) else {}), **about}
    return new


def _written_by(config: Mapping[str, Any]) -> int:
    """The major version of sae-lens that wrote a configuration; 0 if it does not say."""
    metadata = config.get("metadata")
    version = config.get("sae_lens_version") or (metadata.get("sae_lens_version") if isinstance(metadata, dict) else "")
    found = re.match(r"[0-9]+", str(version or ""))
    return int(found[0]) if found else 0


def _set_activation(new: dict[str, Any], where: object) -> None:
    activation = new.get("activation_fn", "relu")
    options = new.get("activation_fn_kwargs")
    k = options.get("k") if isinstance(options, dict) else None
    if activation == "topk" and k is not None:
        new["architecture"], new["k"] = "topk", k
    elif activation != "relu":
        raise InvalidWeights(
            f"expected the activation relu, or topk with its k; {where} has {activation!r}, which this library does "
            "not run."
        )

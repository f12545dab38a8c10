"""What an analysis might leave behind on a model or in torch, as one value to compare before and after."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from patching.lens import LensModel

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def traces(model: LensModel) -> dict[str, Any]:
    """Hooks, training mode and values that require gradients of every module; flags and bits of every weight."""
    found: dict[str, Any] = {
        "random numbers": torch.get_rng_state().tolist(),
        "gradients on": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
    }
    for root, top in (("bridge", model.bridge), ("model", model.bridge.original_model)):
        for name, module in top.named_modules():
            where = f"{root}.{name}"
            found[f"{where} hooks"] = [len(getattr(module, kind) or ()) for kind in HOOKS]
            found[f"{where} hook point"] = [len(getattr(module, kind, ())) for kind in ("fwd_hooks", "bwd_hooks")]
            found[f"{where} training"] = module.training
            found[f"{where} graph"] = [key for key, value in vars(module).items() if _in_a_graph(value)]
        for name, tensor in itertools.chain(top.named_parameters(), top.named_buffers()):
            found[f"{root}.{name}"] = (tensor.requires_grad, tensor.grad is None, str(tensor.dtype), _bits(tensor))
    return found


def _in_a_graph(value: object) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().flatten().contiguous().view(torch.uint8).numpy().tobytes()

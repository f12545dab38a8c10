"""A model in which every head adds a number of our choosing to the output of every prompt, and nothing else happens.

Prompts are single tokens, the residual stream has one dimension for each of them and two for the answers, and head i
reads the dimension of prompt e with weight ``weights[e, i]`` and writes it to the right answer's. No norm, no MLP.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from graphs.nodes import head
from patching.lens import LensModel, native_bridge
from patching.task import Task


def model(weights: Tensor) -> LensModel:
    prompts, heads = weights.shape
    width = prompts + 2
    bridge = native_bridge(
        d_model=width, d_head=1, n_layers=1, n_ctx=1, n_heads=heads, d_vocab=width, attn_only=True, act_fn="relu",
        normalization_type=None, dtype=torch.float64,
    )  # fmt: skip
    parts = bridge.original_model
    attention = parts.layers[0].attn
    value, out = (getattr(part, "original_component", part).weight for part in (attention.v, attention.o))
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.zero_()
        parts.tok_embed.weight.copy_(torch.eye(width))
        parts.head.weight.copy_(torch.eye(width))
        value[:, :prompts] = weights.T
        out[prompts, :] = 1.0
    return LensModel.wrap(bridge, name="additive")


def task(rows: Tensor | list[int], *, prompts: int) -> Task:
    tokens = torch.as_tensor(rows)[:, None]
    count = len(tokens)
    right, wrong = torch.full((count, 1), prompts), torch.full((count, 1), prompts + 1)
    return Task("additive", tokens, tokens, right, wrong, torch.zeros(count, dtype=torch.long))


def attribution(weights: Tensor) -> SimpleNamespace:
    """What COAR would find, exactly."""
    return SimpleNamespace(units=tuple(head(0, i) for i in range(weights.shape[1])), weights=weights)
